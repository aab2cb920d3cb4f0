#include "trainer-bridge/batching/limiter.h"
#include <math.h>

enum corral_status corral_limiter_init_bounds(struct corral_limiter *l, double samples_per_insert,
                                              uint64_t min_size, double min_diff, double max_diff,
                                              struct corral_error *err)
{
    if (!(samples_per_insert > 0 && samples_per_insert <= CORRAL_LIMITER_RATIO_MAX)) {
        return corral_fail(err, CORRAL_INVALID, "samples per insert: %g is not above 0 and at most %g",
                           samples_per_insert, CORRAL_LIMITER_RATIO_MAX);
    }
    if (min_size == 0) {
        return corral_fail(err, CORRAL_INVALID, "samples per insert: min_size is 0; a sample needs an item");
    }
    if (!(max_diff - min_diff >= samples_per_insert + 1)) {
        return corral_fail(err, CORRAL_INVALID,
                           "samples per insert: bounds %g to %g are closer than samples_per_insert + 1 = %g: "
                           "inserts and samples could wait for each other",
                           min_diff, max_diff, samples_per_insert + 1);
    }
    /* Samples begin once there are min_size items; were they not allowed to then, and inserts stopped by max_diff, nothing would ever move. */
    if ((double)min_size * samples_per_insert - 1 > max_diff) {
        return corral_fail(err, CORRAL_INVALID,
                           "samples per insert: max_diff %g is below min_size * samples_per_insert - 1 = %g",
                           max_diff, (double)min_size * samples_per_insert - 1);
    }
    *l = (struct corral_limiter){.samples_per_insert = samples_per_insert,
                                 .min_diff = min_diff,
                                 .max_diff = max_diff,
                                 .min_size = min_size};
    return CORRAL_OK;
}

enum corral_status corral_limiter_init(struct corral_limiter *l, double samples_per_insert, uint64_t min_size,
                                       double error_buffer, struct corral_error *err)
{
    if (!(error_buffer >= fmax(1, samples_per_insert))) {
        return corral_fail(err, CORRAL_INVALID,
                           "samples per insert: error_buffer %g is below max(1, samples_per_insert) = %g",
                           error_buffer, fmax(1, samples_per_insert));
    }
    double offset = samples_per_insert * (double)min_size;
    return corral_limiter_init_bounds(l, samples_per_insert, min_size, offset - error_buffer,
                                      offset + error_buffer, err);
}

bool corral_limiter_may_insert(const struct corral_limiter *l, uint64_t count)
{
    if (l->inserts + count - l->deletes <= l->min_size) {
        return true;
    }
    return (double)(l->inserts + count) * l->samples_per_insert - (double)l->samples <= l->max_diff;
}

bool corral_limiter_may_sample(const struct corral_limiter *l, uint64_t count)
{
    if (l->inserts - l->deletes < l->min_size) {
        return false;
    }
    return (double)l->inserts * l->samples_per_insert - (double)(l->samples + count) >= l->min_diff;
}

void corral_limiter_inserted(struct corral_limiter *l, uint64_t count)
{
    l->inserts += count;
}

void corral_limiter_sampled(struct corral_limiter *l, uint64_t count)
{
    l->samples += count;
}

void corral_limiter_deleted(struct corral_limiter *l, uint64_t count)
{
    l->deletes += count;
}

enum corral_limiter_wait corral_limiter_waits(const struct corral_limiter *l)
{
    if (!corral_limiter_may_insert(l, 1)) {
        return CORRAL_LIMITER_INSERTS_WAIT_FOR_SAMPLES;
    }
    if (l->inserts - l->deletes < l->min_size) {
        return CORRAL_LIMITER_SAMPLES_WAIT_FOR_SIZE;
    }
    return corral_limiter_may_sample(l, 1) ? CORRAL_LIMITER_NOBODY : CORRAL_LIMITER_SAMPLES_WAIT_FOR_INSERTS;
}

const char *corral_limiter_wait_name(enum corral_limiter_wait wait)
{
    switch (wait) {
    case CORRAL_LIMITER_NOBODY:
        return "nobody waits";
    case CORRAL_LIMITER_SAMPLES_WAIT_FOR_SIZE:
        return "the trainer waits for the replay buffer to reach its least size";
    case CORRAL_LIMITER_SAMPLES_WAIT_FOR_INSERTS:
        return "the trainer waits for rollouts: every record has been sampled often enough";
    case CORRAL_LIMITER_INSERTS_WAIT_FOR_SAMPLES:
        return "rollouts wait for the trainer: records have been sampled too seldom";
    }
    return "unknown";
}
