#include "transport/trajectory/wal/compress.h"
#include <stdlib.h>
#ifdef CORRAL_HAVE_ZSTD
#include <zstd.h>

struct wal_packer {
    ZSTD_CCtx *in;
    ZSTD_DCtx *out;
    void *buffer; /* aligned to 64 */
    uint64_t capacity;
};

void wal_packer_destroy(struct wal_packer *p)
{
    if (p == NULL) {
        return;
    }
    ZSTD_freeCCtx(p->in);
    ZSTD_freeDCtx(p->out);
    free(p->buffer);
    free(p);
}

enum corral_status wal_packer_create(struct wal_packer **out, struct corral_error *err)
{
    struct wal_packer *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the compression of a trajectory log");
    }
    *out = p;
    return CORRAL_OK;
}

static enum corral_status room(struct wal_packer *p, uint64_t bytes, struct corral_error *err)
{
    if (p->capacity >= bytes) {
        return CORRAL_OK;
    }
    free(p->buffer);
    p->capacity = 0;
    p->buffer = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p->buffer == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to compress or expand a record of %llu bytes",
                           (unsigned long long)bytes);
    }
    p->capacity = bytes;
    return CORRAL_OK;
}

enum corral_status wal_pack(struct wal_packer *p, int level, const void *data, uint64_t bytes,
                            const void **packed, uint64_t *packed_bytes, struct corral_error *err)
{
    if (p->in == NULL && (p->in = ZSTD_createCCtx()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the compression of a trajectory log");
    }
    CORRAL_TRY(room(p, ZSTD_compressBound(bytes), err));
    size_t n = ZSTD_compressCCtx(p->in, p->buffer, p->capacity, data, bytes, level);
    if (ZSTD_isError(n)) {
        return corral_fail(err, CORRAL_NOMEM, "cannot compress a record of %llu bytes: %s",
                           (unsigned long long)bytes, ZSTD_getErrorName(n));
    }
    *packed = p->buffer;
    *packed_bytes = n < bytes ? n : 0;
    return CORRAL_OK;
}

enum corral_status wal_unpack(struct wal_packer *p, const void *packed, uint64_t packed_bytes, uint64_t bytes,
                              const void **out, struct corral_error *err)
{
    if (ZSTD_getFrameContentSize(packed, packed_bytes) != bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "a compressed record does not hold the %llu bytes it claims",
                           (unsigned long long)bytes);
    }
    if (p->out == NULL && (p->out = ZSTD_createDCtx()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to expand records of a trajectory log");
    }
    CORRAL_TRY(room(p, bytes, err));
    size_t n = ZSTD_decompressDCtx(p->out, p->buffer, bytes, packed, packed_bytes);
    if (ZSTD_isError(n) || n != bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "a compressed record of %llu bytes is damaged",
                           (unsigned long long)bytes);
    }
    *out = p->buffer;
    return CORRAL_OK;
}
#else
#define NOT_BUILT "this build has no zstd (libzstd-dev was missing): trajectory logs cannot be compressed"

void wal_packer_destroy(struct wal_packer *p)
{
    (void)p;
}

enum corral_status wal_packer_create(struct wal_packer **out, struct corral_error *err)
{
    (void)out;
    return corral_fail(err, CORRAL_UNSUPPORTED, NOT_BUILT);
}

enum corral_status wal_pack(struct wal_packer *p, int level, const void *data, uint64_t bytes,
                            const void **packed, uint64_t *packed_bytes, struct corral_error *err)
{
    (void)p, (void)level, (void)data, (void)bytes, (void)packed, (void)packed_bytes;
    return corral_fail(err, CORRAL_UNSUPPORTED, NOT_BUILT);
}

enum corral_status wal_unpack(struct wal_packer *p, const void *packed, uint64_t packed_bytes, uint64_t bytes,
                              const void **out, struct corral_error *err)
{
    (void)p, (void)packed, (void)packed_bytes, (void)bytes, (void)out;
    return corral_fail(err, CORRAL_UNSUPPORTED, NOT_BUILT);
}
#endif
