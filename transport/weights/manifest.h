/* What the bytes of a weight version are: tensors by name, dtype, shape and offset in one flat buffer. Both ends compute the same
 * manifest and compare its hash before the first byte moves. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_MANIFEST_H
#define CORRAL_TRANSPORT_WEIGHTS_MANIFEST_H

#include "base/hash.h"
#include "base/safetensors.h"

#define CORRAL_MANIFEST_TENSORS_MAX 1024

struct corral_manifest_tensor {
    char name[CORRAL_TENSOR_NAME_MAX];
    enum corral_dtype dtype;
    uint32_t rank;
    uint64_t shape[CORRAL_TENSOR_RANK_MAX];
    uint64_t offset, bytes;
};

struct corral_manifest {
    uint32_t count;
    uint64_t bytes; /* of the whole buffer */
    struct corral_manifest_tensor *tensor;
};

enum corral_status corral_manifest_create(struct corral_manifest **out, uint32_t capacity,
                                          struct corral_error *err);
/* Appends at the end, aligned to 64 bytes. */
enum corral_status corral_manifest_add(struct corral_manifest *m, const char *name, enum corral_dtype dtype,
                                       uint32_t rank, const uint64_t *shape, struct corral_error *err);
void corral_manifest_destroy(struct corral_manifest *m);
CORRAL_DEFINE_CLEANUP(struct corral_manifest, corral_manifest_destroy)
struct corral_digest
corral_manifest_hash(const struct corral_manifest *m); /* over names, dtypes, shapes, offsets */

#endif
