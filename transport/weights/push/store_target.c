#include "transport/weights/push/store_target.h"

static void current(void *ctx, uint64_t *version, struct corral_digest *digest)
{
    const struct corral_push_store_target *t = ctx;
    corral_weight_store_current(t->store, version, digest);
}

static enum corral_status begin(void *ctx, uint64_t version, uint64_t base, struct corral_shard *shadow,
                                struct corral_error *err)
{
    struct corral_push_store_target *t = ctx;
    void *slot = NULL;
    (void)base; /* every byte of the slot is written, whichever way */
    CORRAL_TRY(corral_weight_store_begin(t->store, version, t->manifest, t->bytes, &slot, err));
    *shadow = corral_shard_host(slot, t->bytes);
    corral_weight_store_place(t->store, slot, &shadow->fd, &shadow->fd_offset);
    return CORRAL_OK;
}

static enum corral_status commit(void *ctx, uint64_t version, struct corral_digest digest,
                                 struct corral_error *err)
{
    struct corral_push_store_target *t = ctx;
    return corral_weight_store_commit_chain(t->store, version, digest, err);
}

static void taint(void *ctx, uint64_t version, int32_t tainted_pid)
{
    struct corral_push_store_target *t = ctx;
    (void)version; /* the one that is begun */
    corral_weight_store_taint(t->store, tainted_pid);
}

static void give_up(void *ctx, uint64_t version, int32_t tainted_pid)
{
    struct corral_push_store_target *t = ctx;
    if (tainted_pid != 0) {
        taint(ctx, version, tainted_pid);
    }
    corral_weight_store_abort(t->store);
}

/* Nothing is held: the writer goes round its slots as ever, and who reads finds out. */
static enum corral_status source_open(void *ctx, struct corral_push_source *out, struct corral_error *err)
{
    const struct corral_push_store_target *t = ctx;
    struct corral_weight_look look;
    CORRAL_TRY(corral_weight_store_look(t->store, t->manifest, t->bytes, &look, err));
    *out = (struct corral_push_source){.shard = corral_shard_host((void *)(uintptr_t)look.slot, t->bytes),
                                       .version = look.version,
                                       .digest = look.digest,
                                       .pin = {look.seq, look.index}};
    return CORRAL_OK;
}

static bool source_intact(void *ctx, const struct corral_push_source *source)
{
    const struct corral_push_store_target *t = ctx;
    const struct corral_weight_look look = {.seq = source->pin[0], .index = (uint32_t)source->pin[1]};
    return corral_weight_store_unchanged(t->store, &look);
}

static void source_close(void *ctx, struct corral_push_source *source)
{
    (void)ctx, (void)source;
}

const struct corral_push_target_ops corral_push_store_target_ops = {.current = current,
                                                                    .begin = begin,
                                                                    .commit = commit,
                                                                    .abort = give_up,
                                                                    .taint = taint,
                                                                    .source_open = source_open,
                                                                    .source_intact = source_intact,
                                                                    .source_close = source_close};
