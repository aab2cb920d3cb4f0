/* Which trainer rank gets a record when ranks share a stream of groups: rendezvous hashing over the ranks that live. One rule, known to both ends. All completions of a group go to one rank; when a rank dies, only
 * what was its own moves, and when it is back, only that comes back. */
#ifndef CORRAL_WORKER_RECORD_SHARE_H
#define CORRAL_WORKER_RECORD_SHARE_H

#include "base/rng.h"
#include "worker/fragment_share.h"

#define CORRAL_SHARE_NOBODY UINT32_MAX

struct corral_record_share {
    uint64_t seed;
    uint64_t live; /* bit per rank, CORRAL_SHARE_TRAINERS_MAX of them */
};

/* What is dealt out as one: a group, or an episode on its own. */
static inline uint64_t corral_record_key(uint32_t worker, uint32_t group_size, uint64_t group,
                                         uint64_t episode)
{
    return group_size > 0 ? corral_seed_derive(1, group, 0, 0) : corral_seed_derive(2, worker, episode, 0);
}

/* The live rank whose hash with the key is the largest. CORRAL_SHARE_NOBODY when none lives. */
static inline uint32_t corral_record_rank(const struct corral_record_share *s, uint64_t key)
{
    uint32_t best = CORRAL_SHARE_NOBODY;
    uint64_t most = 0;
    for (uint64_t left = s->live; left != 0; left &= left - 1) {
        uint32_t rank = (uint32_t)__builtin_ctzll(left);
        uint64_t hash = corral_seed_derive(s->seed, key, rank, 0);
        if (best == CORRAL_SHARE_NOBODY || hash > most) {
            best = rank;
            most = hash;
        }
    }
    return best;
}

#endif
