/* What the advantage estimators read: consecutive steps of several environment rows, and what they bootstrap from.
 *
 * Rules, shared by all estimators. A step that terminated is followed by nothing: value 0. A step truncated without termination is followed
 * by its final observation (boundary). The last step of the segment is followed by last_value. Invalid steps are no decisions: the next
 * value and advantage pass over them unchanged, a reward that arrives on one belongs to the row's previous valid step of the
 * same episode (none in this segment: it is lost), and an episode that ends on one has ended for that step too.
 * Pure functions: no state, no allocation. Any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_SEGMENT_H
#define CORRAL_TRAINER_ALGORITHMS_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct corral_segment {
    uint32_t steps, rows;
    const float *reward;       /* [S][R] */
    const float *value;        /* [S][R] of the observation each step decided on */
    const uint8_t *terminated; /* [S][R] */
    const uint8_t *truncated;  /* [S][R] */
    const uint8_t *valid;      /* [S][R]; NULL: all */
    const float *last_value;   /* [R] of the observation after the last step */
    uint32_t boundary_count;
    const uint32_t *boundary_at; /* step * rows + row, ascending: every step truncated without termination */
    const float *boundary_value; /* [boundary_count] of the final observation there */
};

static inline bool corral_segment_is_valid(const struct corral_segment *s, size_t at)
{
    return !s->valid || s->valid[at];
}

/* The value after a step that ended its episode. A truncation missing from boundary_at counts as a termination. */
float corral_segment_end_value(const struct corral_segment *s, size_t at);

/* Rewards moved to the decisions they belong to; 0 on invalid steps. out may not be s->reward. */
void corral_segment_fold_rewards(const struct corral_segment *s, float *out);

#endif
