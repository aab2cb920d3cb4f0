/* What dropping does to lengths: long rollouts take longer, so they are the ones that become too old, and a policy that never sees them learns to be short. Sums only; one thread. */
#ifndef CORRAL_TRAINER_LENGTH_BIAS_H
#define CORRAL_TRAINER_LENGTH_BIAS_H

#include <stdbool.h>
#include <stdint.h>

struct corral_length_bias {
    uint64_t kept, dropped;
    double kept_tokens, dropped_tokens;
};
struct corral_length_report {
    double mean_kept, mean_dropped, mean_all; /* tokens; 0 where there are none */
    double
        ratio; /* mean_kept / mean_all: 1 when dropping does not prefer a length, below 1 when it is the long ones that go */
};

static inline void corral_length_bias_add(struct corral_length_bias *b, uint64_t tokens, bool kept)
{
    *(kept ? &b->kept : &b->dropped) += 1;
    *(kept ? &b->kept_tokens : &b->dropped_tokens) += (double)tokens;
}

static inline struct corral_length_report corral_length_bias_report(const struct corral_length_bias *b)
{
    struct corral_length_report r = {.ratio = 1};
    r.mean_kept = b->kept > 0 ? b->kept_tokens / (double)b->kept : 0;
    r.mean_dropped = b->dropped > 0 ? b->dropped_tokens / (double)b->dropped : 0;
    if (b->kept + b->dropped > 0) {
        r.mean_all = (b->kept_tokens + b->dropped_tokens) / (double)(b->kept + b->dropped);
    }
    if (b->kept > 0 && r.mean_all > 0) {
        r.ratio = r.mean_kept / r.mean_all;
    }
    return r;
}

#endif
