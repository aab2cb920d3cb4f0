/* One batch of a plug-in's environments behind the vector: in this process, or in a child. The vector keeps the rules (episodes, seeds, voids); a
 * backend only passes calls on.
 */
#ifndef CORRAL_ROLLOUT_BACKEND_H
#define CORRAL_ROLLOUT_BACKEND_H

#include "rollout/env_host/layout.h"
#include "rollout/env_host/vec.h"

struct corral_env_backend;

enum corral_backend_outcome {
    CORRAL_BACKEND_OK,
    CORRAL_BACKEND_LOST, /* the environments are gone and a fresh batch stands in their place: reset all; `err` says why */
    CORRAL_BACKEND_FAILED /* cannot go on; `err` says why */
};

struct corral_backend_ops {
    /* ids[0..count) and seeds[0..count) of the backend are the arguments; all: ids is not used and count = envs. */
    enum corral_backend_outcome (*reset)(struct corral_env_backend *b, bool all, uint32_t count,
                                         struct corral_error *err);
    enum corral_backend_outcome (*step)(struct corral_env_backend *b, bool all, uint32_t count,
                                        struct corral_error *err);
    /* One environment. bytes: in room, out used or needed (also when the room was too small: *fits is then false). */
    enum corral_backend_outcome (*snapshot)(struct corral_env_backend *b, uint32_t id, void *buffer,
                                            size_t *bytes, bool *fits, struct corral_error *err);
    enum corral_backend_outcome (*restore)(struct corral_env_backend *b, uint32_t id, const void *buffer,
                                           size_t bytes, struct corral_error *err);
    void (*destroy)(struct corral_env_backend *b); /* half-built is fine */
};

struct corral_env_backend {
    const struct corral_backend_ops *ops;
    char id[CORRAL_ENV_ID_BYTES];
    struct corral_env_spec spec;
    struct corral_env_layout layout;
    struct corral_env_buffers buffers;
    void *action; /* buffers.action, writable */
    uint32_t *ids;
    uint64_t *seeds;
    uint64_t restarts; /* children started again, in all */
};

/* Children with a longer history of good steps than this start with a full allowance of restarts again. */
#define CORRAL_BACKEND_FORGIVE_STEPS 100000u

enum corral_status corral_backend_in_process(struct corral_env_backend **out,
                                             const struct corral_vec_config *config,
                                             struct corral_error *err);
enum corral_status corral_backend_process(struct corral_env_backend **out,
                                          const struct corral_vec_config *config, struct corral_error *err);

static inline void corral_backend_destroy(struct corral_env_backend *b)
{
    if (b != NULL) {
        b->ops->destroy(b);
    }
}
CORRAL_DEFINE_CLEANUP(struct corral_env_backend, corral_backend_destroy)

/* Point the backend's buffers into `block` (layout.bytes, zeroed). */
void corral_backend_bind(struct corral_env_backend *b, void *block);
/* Shared by both backends: a plug-in's batch status as an error text. */
enum corral_status corral_backend_plugin_error(const char *id, const char *what, int plugin_status,
                                               const char *text, struct corral_error *err);
/* Room for one environment's snapshot. */
#define CORRAL_ENV_SNAPSHOT_BYTES_MAX (64u << 20)
#define CORRAL_ENV_ARGS_BYTES_MAX (64u << 10)

#endif
