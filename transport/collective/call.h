/* What the implementations share: how a call is described to the other ranks, and sums in rank order. Internal. */
#ifndef CORRAL_TRANSPORT_COLLECTIVE_CALL_H
#define CORRAL_TRANSPORT_COLLECTIVE_CALL_H

#include "base/clock.h"
#include "transport/collective/collective.h"
#include <stdbool.h>

enum corral_call_op {
    CORRAL_CALL_SUM_F32 = 1,
    CORRAL_CALL_SUM_F64,
    CORRAL_CALL_GATHER,
    CORRAL_CALL_BROADCAST,
    CORRAL_CALL_BARRIER
};

/* One piece of a call. Every rank describes its own; all must be equal. */
struct corral_call {
    uint32_t op;
    uint32_t bytes;  /* of this piece, per rank */
    uint64_t total;  /* of the whole call, per rank */
    uint64_t offset; /* of this piece */
};

const char *corral_call_name(uint32_t op); /* "sum_f32", …; "unknown" */
static inline bool corral_call_equal(const struct corral_call *a, const struct corral_call *b)
{
    return a->op == b->op && a->bytes == b->bytes && a->total == b->total && a->offset == b->offset;
}
/* CORRAL_PROTOCOL, naming the peer and both calls. */
enum corral_status corral_call_mismatch(uint32_t peer, const struct corral_call *theirs, uint32_t rank,
                                        const struct corral_call *mine, struct corral_error *err);
enum corral_status corral_call_check_ranks(const char *kind, uint32_t rank, uint32_t ranks,
                                           struct corral_error *err);

/* Shorter than the promised 5 ms by what a wake-up may take. */
#define CORRAL_PROGRESS_NS (4 * CORRAL_NS_PER_MS)
/* For a rank that has found nothing to do at `now_ns` and is about to sleep: calls the progress function when it is due. Returns when to come
 * back at the latest; UINT64_MAX without a function. */
uint64_t corral_call_progress(struct corral_collective *c, uint64_t now_ns);
/* At the start of every piece: CORRAL_STATE from within the progress function. Hot path. */
enum corral_status corral_call_begin(struct corral_collective *c, const struct corral_call *call,
                                     struct corral_error *err);

/* out = a + b. Hot path; no alignment needed; `a` may be `out`; otherwise nothing overlaps. `bytes` is a whole number of elements. */
void corral_add_f32(void *out, const void *a, const void *b, size_t bytes);
void corral_add_f64(void *out, const void *a, const void *b, size_t bytes);

#endif
