/* How rollout workers' fragments are dealt out to trainer ranks: one rule, known to both ends. Each gradient step takes exactly `per_step` fragments of
 * every rollout worker, over all ranks. */
#ifndef CORRAL_WORKER_FRAGMENT_SHARE_H
#define CORRAL_WORKER_FRAGMENT_SHARE_H

#include <stdint.h>

#define CORRAL_SHARE_TRAINERS_MAX 64 /* ranks, as many as a collective may have */

struct corral_fragment_share {
    uint32_t workers;  /* rollout workers of the job */
    uint32_t trainers; /* ranks */
    uint32_t
        per_step; /* fragments of one worker in one gradient step; per_step * workers is a multiple of trainers */
};

/* The rank that gets fragment number `number` (from 0) of a worker. */
static inline uint32_t corral_fragment_rank(const struct corral_fragment_share *s, uint32_t worker,
                                            uint64_t number)
{
    return (uint32_t)(((number % s->per_step) * s->workers + worker) % s->trainers);
}

static inline uint32_t corral_fragment_common(uint32_t workers,
                                              uint32_t trainers) /* greatest common divisor */
{
    while (trainers != 0) {
        uint32_t rest = workers % trainers;
        workers = trainers;
        trainers = rest;
    }
    return workers;
}

/* How many fragments of a worker a rank trains on in each step: how often corral_fragment_rank() names it in a round. The ranks of successive numbers go through all
 * that differ from the worker by a multiple of the common divisor, each once, and start again. */
static inline uint32_t corral_fragment_quota(const struct corral_fragment_share *s, uint32_t worker,
                                             uint32_t rank)
{
    uint32_t common = corral_fragment_common(s->workers, s->trainers);
    return (rank + s->trainers - worker % s->trainers) % common == 0 ? s->per_step / (s->trainers / common)
                                                                     : 0;
}

/* The smallest per_step that deals evenly and reaches `batch` transitions of `fragment` each (batch 0: whatever deals evenly). None of the others may be 0. */
static inline uint32_t corral_fragment_per_step(uint32_t workers, uint32_t trainers, uint64_t batch,
                                                uint64_t fragment)
{
    uint64_t even = trainers / corral_fragment_common(workers, trainers); /* per_step is a multiple of this */
    uint64_t fragments = batch / fragment + (batch % fragment != 0);
    uint64_t enough = fragments / workers + (fragments % workers != 0);
    uint64_t per_step = enough <= even ? even : (enough - 1) / even * even + even;
    return per_step < UINT32_MAX ? (uint32_t)per_step : UINT32_MAX;
}

#endif
