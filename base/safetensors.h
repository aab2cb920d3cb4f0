/* safetensors files (https://github.com/huggingface/safetensors, README.md "Format"): u64 little-endian header length N,
 * N bytes of JSON, then the tensors' bytes. Reading maps the file and checks everything before use: N <= 100 MB and <= file,
 * no duplicate keys, offsets in order without holes or overlap, dtype x shape = bytes without overflow. Writing is atomic.
 */
#ifndef CORRAL_BASE_SAFETENSORS_H
#define CORRAL_BASE_SAFETENSORS_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_TENSOR_RANK_MAX 8
#define CORRAL_TENSOR_NAME_MAX 128

enum corral_dtype {
    CORRAL_DTYPE_U8,
    CORRAL_DTYPE_I32,
    CORRAL_DTYPE_I64,
    CORRAL_DTYPE_F16,
    CORRAL_DTYPE_BF16,
    CORRAL_DTYPE_F32,
    CORRAL_DTYPE_F64,
    CORRAL_DTYPE_U64,
    /* The values are in wire formats: new ones go to the end. */
    CORRAL_DTYPE_F8_E4M3,
    CORRAL_DTYPE_F8_E5M2,
    CORRAL_DTYPE_BOOL,
    CORRAL_DTYPE_I8,
    CORRAL_DTYPE_I16,
    CORRAL_DTYPE_U16,
    CORRAL_DTYPE_U32
};
uint32_t corral_dtype_bytes(enum corral_dtype dtype);
const char *corral_dtype_name(enum corral_dtype dtype); /* safetensors' names: "F32", "BF16", … */

struct corral_tensor {
    char name[CORRAL_TENSOR_NAME_MAX];
    enum corral_dtype dtype;
    uint32_t rank;
    uint64_t shape[CORRAL_TENSOR_RANK_MAX];
    const void *data; /* row-major */
    uint64_t bytes;
};

struct corral_safetensors; /* a mapped file; tensors borrow from it */
enum corral_status corral_safetensors_open(struct corral_safetensors **out, const char *path,
                                           struct corral_error *err);
/* The same over memory the caller keeps alive (for tests and fuzzing). */
enum corral_status corral_safetensors_open_memory(struct corral_safetensors **out, const char *name,
                                                  const void *data, size_t bytes, struct corral_error *err);
void corral_safetensors_close(struct corral_safetensors *f);
uint32_t corral_safetensors_count(const struct corral_safetensors *f);
const struct corral_tensor *corral_safetensors_at(const struct corral_safetensors *f, uint32_t i);
const struct corral_tensor *corral_safetensors_find(const struct corral_safetensors *f,
                                                    const char *name); /* NULL if absent */
const char *corral_safetensors_metadata(const struct corral_safetensors *f,
                                        const char *key); /* NULL if absent */

struct corral_safetensors_pair {
    const char *key, *value;
};
/* Tensors are laid out in the given order. Durable: fsync before rename. */
enum corral_status corral_safetensors_write(const char *path, const struct corral_tensor *tensors,
                                            uint32_t count, const struct corral_safetensors_pair *metadata,
                                            uint32_t metadata_count, bool durable, struct corral_error *err);

#endif
