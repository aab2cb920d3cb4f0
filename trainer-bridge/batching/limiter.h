/* Samples per insert: keeps how often each record is trained on near a wanted ratio, by saying which side waits. The rule is that of Reverb's RateLimiter. Pure arithmetic on plain data (copy it
 * into a checkpoint); one thread.
 *
 *     diff = inserts * samples_per_insert - samples
 *     an insert may happen when the table is (and stays) at or below min_size, or diff after it <= max_diff
 *     a sample may happen when the table has min_size items and diff after it >= min_diff
 *
 * The two bounds are far enough apart that one side may always go on: max_diff - min_diff >= samples_per_insert + 1 is checked, since below that both could wait for ever. */
#ifndef CORRAL_TRAINER_LIMITER_H
#define CORRAL_TRAINER_LIMITER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_LIMITER_RATIO_MAX 1e6

struct corral_limiter {
    double samples_per_insert, min_diff, max_diff;
    uint64_t min_size;
    uint64_t inserts, samples, deletes;
};

enum corral_limiter_wait {
    CORRAL_LIMITER_NOBODY,
    CORRAL_LIMITER_SAMPLES_WAIT_FOR_SIZE,    /* fewer than min_size items */
    CORRAL_LIMITER_SAMPLES_WAIT_FOR_INSERTS, /* each item has been sampled as often as it should be */
    CORRAL_LIMITER_INSERTS_WAIT_FOR_SAMPLES, /* rollouts are ahead */
};

/* error_buffer: how far, in samples, the two sides may drift apart in either direction; at least max(1, samples_per_insert). */
enum corral_status corral_limiter_init(struct corral_limiter *l, double samples_per_insert, uint64_t min_size,
                                       double error_buffer, struct corral_error *err);
/* With bounds of its own on diff. -INFINITY and INFINITY bound nothing. */
enum corral_status corral_limiter_init_bounds(struct corral_limiter *l, double samples_per_insert,
                                              uint64_t min_size, double min_diff, double max_diff,
                                              struct corral_error *err);
bool corral_limiter_may_insert(const struct corral_limiter *l, uint64_t count);
bool corral_limiter_may_sample(const struct corral_limiter *l, uint64_t count);
/* What has happened. Deletes are items that left the table, for whatever reason. */
void corral_limiter_inserted(struct corral_limiter *l, uint64_t count);
void corral_limiter_sampled(struct corral_limiter *l, uint64_t count);
void corral_limiter_deleted(struct corral_limiter *l, uint64_t count);
/* Who would wait, of one insert and one sample. At most one of the two sides does. */
enum corral_limiter_wait corral_limiter_waits(const struct corral_limiter *l);
const char *corral_limiter_wait_name(enum corral_limiter_wait wait);

#endif
