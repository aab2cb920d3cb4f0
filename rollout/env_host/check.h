/* `rlctl env check`: does a plug-in keep the promises of <corral/env.h>? Every check runs in a process of its own with a time limit, so that a crash or a hang of the plug-in is a
 * line of the report. The calling process never loads the plug-in. Call from a program with one thread: the checks are forked.
 */
#ifndef CORRAL_ROLLOUT_CHECK_H
#define CORRAL_ROLLOUT_CHECK_H

#include "rollout/env_host/registry.h"

#define CORRAL_CHECK_TIMEOUT_MS 60000u

enum corral_check_result { CORRAL_CHECK_OK, CORRAL_CHECK_FAIL, CORRAL_CHECK_SKIPPED };

struct corral_check_config {
    const char *id;        /* NULL: the library's only environment */
    const char *library;   /* NULL: search for the id */
    const char *args_json; /* NULL: "{}" */
    uint32_t timeout_ms;   /* of one check; 0: CORRAL_CHECK_TIMEOUT_MS */
};

struct corral_check_line {
    const char *name; /* "snapshot" */
    enum corral_check_result result;
    char text[400]; /* what was seen, or why it was skipped */
};
typedef void (*corral_check_line_fn)(void *ctx, const struct corral_check_line *line);

/* Reports one line per check, as it ends. *failed counts the failures. An error means that checking itself was impossible. */
enum corral_status corral_env_check(const struct corral_check_config *config, corral_check_line_fn fn,
                                    void *ctx, uint32_t *failed, struct corral_error *err);

/* The ids a plug-in file offers, read in a child. Free *ids with free(). */
enum corral_status corral_env_check_ids(const char *library, char (**ids)[CORRAL_ENV_ID_BYTES],
                                        uint32_t *count, struct corral_error *err);

#endif
