/* A rollout worker's environments in a checkpoint: the vector's snapshot, the sampling RNG and where the running episodes stand, in one file with a digest
 * (docs/spec/checkpoint.md). */
#ifndef CORRAL_ROLLOUT_ENV_SNAPSHOT_H
#define CORRAL_ROLLOUT_ENV_SNAPSHOT_H

#include "base/rng.h"
#include "rollout/env_host/vec.h"
#include "rollout/worker/fragment_builder.h"

/* CORRAL_UNSUPPORTED when the environment has no snapshots. */
enum corral_status corral_env_snapshot_write(const char *path, struct corral_vec *vec,
                                             const struct corral_rng *rng,
                                             const struct corral_fragment_builder *builder,
                                             struct corral_error *err);
enum corral_status corral_env_snapshot_read(const char *path, struct corral_vec *vec, struct corral_rng *rng,
                                            struct corral_fragment_builder *builder,
                                            struct corral_error *err);

#endif
