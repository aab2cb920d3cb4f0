/* Finding environment plug-ins and reading what they offer.
 *
 * An id is looked up in, in this order: the folders (or .so files) of CORRAL_ENV_PATH, a colon-separated list; folders named relative to the running
 * program and to the library this code is in (../lib/corral/envs and its like); the folder of the installation. The first plug-in that offers it wins.
 * Opening runs the plug-in's constructors in this process; vec_process.c does that in a child instead.
 * Threads: any; an opened environment may be used by many.
 */
#ifndef CORRAL_ROLLOUT_REGISTRY_H
#define CORRAL_ROLLOUT_REGISTRY_H

#include "base/error.h"
#include <corral/env.h>
#include <stdbool.h>

#define CORRAL_ENV_ID_BYTES 64
#define CORRAL_ENV_PATH_BYTES 1024
#define CORRAL_ENV_SUMMARY_BYTES 160
#define CORRAL_ENV_PLUGIN_ENVS_MAX 1024
#define CORRAL_ENV_AGENTS_MAX 1024
#define CORRAL_ENV_OBS_ELEMENTS_MAX (1u << 24)

/* One environment of an open plug-in. `ops` is a copy with members this plug-in is too old to have set to NULL. */
struct corral_env_def {
    struct corral_env_ops ops;
    char id[CORRAL_ENV_ID_BYTES];
    char path[CORRAL_ENV_PATH_BYTES]; /* of the .so, as it was opened */
    void *handle;
};

/* `library`: the plug-in's path, or NULL to search. `id` may be NULL with a library that offers exactly one environment. */
enum corral_status corral_env_open(struct corral_env_def **out, const char *id, const char *library,
                                   struct corral_error *err);
void corral_env_close(struct corral_env_def *def);

/* One line of a listing: an environment, or (id "") a file that is no usable plug-in, with the reason in `summary`. */
struct corral_env_listed {
    char id[CORRAL_ENV_ID_BYTES];
    char summary[CORRAL_ENV_SUMMARY_BYTES];
    char path[CORRAL_ENV_PATH_BYTES];
};
typedef void (*corral_env_listed_fn)(void *ctx, const struct corral_env_listed *item);
/* Every environment of `library`, or (NULL) of every plug-in on the search path, in search order. */
enum corral_status corral_env_each(const char *library, corral_env_listed_fn fn, void *ctx,
                                   struct corral_error *err);

/* Where the search looks, in order, one folder or file per call. */
void corral_env_search_path(void (*fn)(void *ctx, const char *path), void *ctx);
/* The helper program of process isolation: CORRAL_ENV_HOST, or beside the built-in plug-ins' folder. */
enum corral_status corral_env_host_program(char *out, size_t out_bytes, struct corral_error *err);

/* Ask for the description and refuse one that contradicts itself. */
enum corral_status corral_env_describe(const struct corral_env_ops *ops, const char *args_json,
                                       struct corral_env_spec *out, struct corral_error *err);
/* The second half of the above, for a description that came from another process. */
enum corral_status corral_env_spec_validate(const char *id, const struct corral_env_spec *spec,
                                            bool has_snapshots, struct corral_error *err);
bool corral_env_spec_equal(const struct corral_env_spec *a, const struct corral_env_spec *b);
uint32_t corral_env_obs_dim(const struct corral_env_spec *spec);
uint32_t corral_env_dtype_bytes(enum corral_env_dtype dtype);
uint32_t corral_env_choices_sum(const struct corral_env_spec *spec);
const char *corral_env_status_name(int status);

CORRAL_DEFINE_CLEANUP(struct corral_env_def, corral_env_close)

#endif
