/* The checks. Each runs in its own process with the plug-in loaded and described, ends by check_pass, check_fail or check_skip. */
#ifndef CORRAL_ROLLOUT_CHECK_CASES_H
#define CORRAL_ROLLOUT_CHECK_CASES_H

#include "rollout/env_host/check_rig.h"

enum check_aspect {
    ASPECT_FINITE,
    ASPECT_OBS_BOUNDS,
    ASPECT_REWARD_BOUNDS,
    ASPECT_FLAGS,
    ASPECT_LIMIT,
    ASPECT_MASKS,
    ASPECT_ACTIVE
};

void check_arguments(struct check *c);
void check_create(struct check *c);
void check_memory(struct check *c);
void check_aspect(struct check *c); /* one enum check_aspect of a long run */
void check_autoreset(struct check *c);
void check_determinism(struct check *c);
void check_batches(struct check *c);
void check_subsets(struct check *c);
void check_edges(struct check *c);
void check_snapshot(struct check *c);
void check_stdout(struct check *c);

#endif
