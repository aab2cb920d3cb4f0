#include "transport/weights/publisher.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct shm_lane {
    struct corral_weight_lane base;
    struct corral_weight_store *store; /* borrowed */
    uint8_t *slot;
    uint64_t version, bytes, written;
    struct corral_digest digest;
};

static enum corral_status shm_ready(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                    struct corral_error *err)
{
    (void)lane, (void)deadline_ns, (void)err;
    return CORRAL_OK;
}

static enum corral_status shm_prepare(struct corral_weight_lane *lane, uint64_t version,
                                      struct corral_digest manifest, uint64_t bytes, uint64_t deadline_ns,
                                      struct corral_error *err)
{
    struct shm_lane *l = (struct shm_lane *)lane;
    void *slot = NULL;
    (void)deadline_ns;
    /* What an earlier push left behind when its digest differed. */
    corral_weight_store_abort(l->store);
    CORRAL_TRY(corral_weight_store_begin(l->store, version, manifest, bytes, &slot, err));
    l->slot = slot;
    l->version = version;
    l->bytes = bytes;
    l->written = 0;
    return CORRAL_OK;
}

static enum corral_status shm_write(struct corral_weight_lane *lane, const void *data, uint64_t bytes,
                                    uint64_t deadline_ns, struct corral_error *err)
{
    struct shm_lane *l = (struct shm_lane *)lane;
    (void)deadline_ns;
    if (bytes > l->bytes - l->written) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " has more than its %" PRIu64 " bytes", l->version,
                           l->bytes);
    }
    memcpy(l->slot + l->written, data, bytes);
    l->written += bytes;
    return CORRAL_OK;
}

static enum corral_status shm_staged(struct corral_weight_lane *lane, struct corral_digest *theirs,
                                     uint64_t deadline_ns, struct corral_error *err)
{
    struct shm_lane *l = (struct shm_lane *)lane;
    (void)deadline_ns;
    if (l->written != l->bytes) {
        return corral_fail(err, CORRAL_STATE,
                           "weight version %" PRIu64 " is staged after %" PRIu64 " of %" PRIu64 " bytes",
                           l->version, l->written, l->bytes);
    }
    l->digest = corral_digest_of(l->slot, l->bytes);
    *theirs = l->digest;
    return CORRAL_OK;
}

static enum corral_status shm_commit(struct corral_weight_lane *lane, uint64_t deadline_ns,
                                     struct corral_error *err)
{
    struct shm_lane *l = (struct shm_lane *)lane;
    (void)deadline_ns;
    return corral_weight_store_commit_digest(l->store, l->version, l->digest, err);
}

static void shm_close(struct corral_weight_lane *lane)
{
    struct shm_lane *l = (struct shm_lane *)lane;
    corral_weight_store_abort(l->store);
    free(l);
}

static const struct corral_weight_lane_ops shm_ops = {
    .name = "shm",
    .ready = shm_ready,
    .prepare = shm_prepare,
    .write = shm_write,
    .staged = shm_staged,
    .commit = shm_commit,
    .close = shm_close,
};

enum corral_status corral_weight_lane_shm(struct corral_weight_store *store, struct corral_weight_lane **out,
                                          struct corral_error *err)
{
    struct shm_lane *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot open a shm weight lane: out of memory");
    }
    l->base.ops = &shm_ops;
    l->base.fd = -1;
    l->store = store;
    *out = &l->base;
    return CORRAL_OK;
}
