#include "transport/collective/call.h"

#include <string.h>

const char *corral_call_name(uint32_t op)
{
    static const char *const name[] = {
        [CORRAL_CALL_SUM_F32] = "sum_f32", [CORRAL_CALL_SUM_F64] = "sum_f64",
        [CORRAL_CALL_GATHER] = "gather",   [CORRAL_CALL_BROADCAST] = "broadcast",
        [CORRAL_CALL_BARRIER] = "barrier",
    };
    return op < CORRAL_COUNT_OF(name) && name[op] ? name[op] : "unknown";
}

enum corral_status corral_call_mismatch(uint32_t peer, const struct corral_call *theirs, uint32_t rank,
                                        const struct corral_call *mine, struct corral_error *err)
{
    return corral_fail(
        err, CORRAL_PROTOCOL,
        "collective: rank %u called %s of %llu bytes (piece at %llu) while rank %u called %s of %llu bytes "
        "(piece at %llu); all ranks must make the same calls in the same order",
        peer, corral_call_name(theirs->op), (unsigned long long)theirs->total,
        (unsigned long long)theirs->offset, rank, corral_call_name(mine->op), (unsigned long long)mine->total,
        (unsigned long long)mine->offset);
}

enum corral_status corral_call_check_ranks(const char *kind, uint32_t rank, uint32_t ranks,
                                           struct corral_error *err)
{
    if (ranks == 0 || ranks > CORRAL_COLLECTIVE_RANKS_MAX || rank >= ranks) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s collective: rank %u of %u; there may be 1 to %d ranks, from 0", kind, rank,
                           ranks, CORRAL_COLLECTIVE_RANKS_MAX);
    }
    return CORRAL_OK;
}

void corral_collective_set_progress(struct corral_collective *c, void (*fn)(void *ctx), void *ctx)
{
    c->progress = fn;
    c->progress_ctx = ctx;
}

uint64_t corral_call_progress(struct corral_collective *c, uint64_t now_ns)
{
    if (!c->progress) {
        return UINT64_MAX;
    }
    if (c->progress_due_ns == 0) {
        c->progress_due_ns = now_ns + CORRAL_PROGRESS_NS;
    } else if (now_ns >= c->progress_due_ns) {
        c->in_progress = true;
        c->progress(c->progress_ctx);
        c->in_progress = false;
        c->progress_due_ns = corral_now_ns(&corral_clock_monotonic) + CORRAL_PROGRESS_NS;
    }
    return c->progress_due_ns;
}

enum corral_status corral_call_begin(struct corral_collective *c, const struct corral_call *call,
                                     struct corral_error *err)
{
    if (c->in_progress) {
        return corral_fail(err, CORRAL_STATE,
                           "collective %s: called from the progress function of a call that is waiting",
                           corral_call_name(call->op));
    }
    if (call->offset == 0) {
        c->progress_due_ns = 0;
    }
    return CORRAL_OK;
}

/* 32 bytes at a time whatever the machine's own width is; the compiler splits or pairs them. memcpy is a plain load here. */
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x4 __attribute__((vector_size(32)));

#define DEFINE_ADD(name, scalar, vector)                             \
    void name(void *out, const void *a, const void *b, size_t bytes) \
    {                                                                \
        char *o = out;                                               \
        const char *x = a, *y = b;                                   \
        size_t at = 0;                                               \
        for (; at + sizeof(vector) <= bytes; at += sizeof(vector)) { \
            vector u, v;                                             \
            memcpy(&u, x + at, sizeof u);                            \
            memcpy(&v, y + at, sizeof v);                            \
            u = u + v;                                               \
            memcpy(o + at, &u, sizeof u);                            \
        }                                                            \
        for (; at < bytes; at += sizeof(scalar)) {                   \
            scalar u, v;                                             \
            memcpy(&u, x + at, sizeof u);                            \
            memcpy(&v, y + at, sizeof v);                            \
            u = u + v;                                               \
            memcpy(o + at, &u, sizeof u);                            \
        }                                                            \
    }

DEFINE_ADD(corral_add_f32, float, f32x8)
DEFINE_ADD(corral_add_f64, double, f64x4)
