#include "transport/weights/manifest.h"

#include <stdlib.h>
#include <string.h>

#define TENSOR_ALIGN 64u

struct owned_manifest {
    struct corral_manifest m;
    uint32_t capacity;
};

enum corral_status corral_manifest_create(struct corral_manifest **out, uint32_t capacity,
                                          struct corral_error *err)
{
    if (capacity == 0 || capacity > CORRAL_MANIFEST_TENSORS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a weight manifest of %u tensors: 1 to %d are possible",
                           capacity, CORRAL_MANIFEST_TENSORS_MAX);
    }
    struct owned_manifest *o = calloc(1, sizeof *o);
    if (o == NULL || (o->m.tensor = calloc(capacity, sizeof *o->m.tensor)) == NULL) {
        free(o);
        return corral_fail(err, CORRAL_NOMEM, "no memory for a weight manifest of %u tensors", capacity);
    }
    o->capacity = capacity;
    *out = &o->m;
    return CORRAL_OK;
}

enum corral_status corral_manifest_add(struct corral_manifest *m, const char *name, enum corral_dtype dtype,
                                       uint32_t rank, const uint64_t *shape, struct corral_error *err)
{
    struct owned_manifest *o = (struct owned_manifest *)m;
    if (m->count == o->capacity) {
        return corral_fail(err, CORRAL_INVALID, "tensor '%.127s' is one more than the manifest's %u", name,
                           o->capacity);
    }
    if (name[0] == '\0' || strlen(name) >= CORRAL_TENSOR_NAME_MAX || rank > CORRAL_TENSOR_RANK_MAX ||
        corral_dtype_bytes(dtype) == 0) {
        return corral_fail(err, CORRAL_INVALID, "tensor '%.127s': name, rank %u or dtype %d out of range",
                           name, rank, (int)dtype);
    }
    for (uint32_t i = 0; i < m->count; i++) {
        if (strcmp(m->tensor[i].name, name) == 0) {
            return corral_fail(err, CORRAL_EXISTS, "tensor '%s' is already in the manifest", name);
        }
    }
    uint64_t bytes = corral_dtype_bytes(dtype), offset = 0, end = 0;
    bool fits = !__builtin_add_overflow(m->bytes, TENSOR_ALIGN - 1, &offset);
    for (uint32_t i = 0; i < rank; i++) {
        fits = fits && !__builtin_mul_overflow(bytes, shape[i], &bytes);
    }
    offset = offset / TENSOR_ALIGN * TENSOR_ALIGN;
    if (!fits || __builtin_add_overflow(offset, bytes, &end)) {
        return corral_fail(err, CORRAL_INVALID, "tensor '%s' is larger than 2^64 bytes", name);
    }
    struct corral_manifest_tensor *t = &m->tensor[m->count++];
    strcpy(t->name, name);
    t->dtype = dtype;
    t->rank = rank;
    for (uint32_t i = 0; i < rank; i++) {
        t->shape[i] = shape[i];
    }
    t->offset = offset;
    t->bytes = bytes;
    m->bytes = end;
    return CORRAL_OK;
}

void corral_manifest_destroy(struct corral_manifest *m)
{
    if (m != NULL) {
        free(m->tensor);
        free(m);
    }
}

struct corral_digest corral_manifest_hash(const struct corral_manifest *m)
{
    /* The text of one tensor is hashed at a time and chained, so no memory is needed: seed = digest so far. */
    struct {
        struct corral_digest before;
        uint8_t bytes[4 + CORRAL_TENSOR_NAME_MAX + 8 + 8 * CORRAL_TENSOR_RANK_MAX + 16];
    } block;
    memset(&block, 0, sizeof block);
    memcpy(block.bytes, &m->count, 4);
    memcpy(block.bytes + 4, &m->bytes, 8);
    struct corral_digest d = corral_digest_of(&block, sizeof block.before + 12);
    for (uint32_t i = 0; i < m->count; i++) {
        const struct corral_manifest_tensor *t = &m->tensor[i];
        uint32_t name_bytes = (uint32_t)strlen(t->name), dtype = (uint32_t)t->dtype;
        uint8_t *to = block.bytes;
        block.before = d;
        to = (uint8_t *)memcpy(to, &name_bytes, 4) + 4;
        to = (uint8_t *)memcpy(to, t->name, name_bytes) + name_bytes;
        to = (uint8_t *)memcpy(to, &dtype, 4) + 4;
        to = (uint8_t *)memcpy(to, &t->rank, 4) + 4;
        to = (uint8_t *)memcpy(to, t->shape, 8 * t->rank) + 8 * t->rank;
        to = (uint8_t *)memcpy(to, &t->offset, 8) + 8;
        to = (uint8_t *)memcpy(to, &t->bytes, 8) + 8;
        d = corral_digest_of(&block, sizeof block.before + (size_t)(to - block.bytes));
    }
    return d;
}
