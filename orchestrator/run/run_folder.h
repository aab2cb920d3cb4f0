/* A run's folder: runs/NAME-ID/ with job.toml (resolved), launch.json (0600), journal.db, status.json, metrics.jsonl, logs/, checkpoints/, sock/ (0700), lock.
 * Every process of a run has it as its current directory, so that socket paths stay short and nothing depends on where the run lies. */
#ifndef CORRAL_ORCHESTRATOR_RUN_FOLDER_H
#define CORRAL_ORCHESTRATOR_RUN_FOLDER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CORRAL_RUN_PATH_MAX 1024

/* The facts every process of the run needs, in launch.json. */
struct corral_launch_file {
    uint64_t run;
    uint32_t incarnation; /* 1 at launch, one more at each resume */
    char token[80];
    uint8_t secret[32];
    char endpoint[256];     /* control, for processes on this machine: "ipc://sock/control" */
    char endpoint_tcp[256]; /* control, for agents elsewhere: "tcp://HOST:PORT", or "" */
    char server_public_key[41], server_secret_key[41]; /* Z85, one pair for the run's tcp:// endpoints */
    char resume[CORRAL_RUN_PATH_MAX]; /* checkpoint folder, relative to the run folder, or "" */
};

/* Make dir/NAME-xxxxxxxx and its subfolders; `path` is absolute. */
enum corral_status corral_run_folder_create(const char *dir, const char *job_name, uint64_t *run,
                                            char path[CORRAL_RUN_PATH_MAX], struct corral_error *err);
/* A run by path, by folder name, by id or unique id prefix, or the newest in `dir` when `which` is NULL or "last". */
enum corral_status corral_run_folder_find(const char *dir, const char *which, char path[CORRAL_RUN_PATH_MAX],
                                          struct corral_error *err);
/* Every run in dir, oldest first. The callback gets the absolute path. */
typedef enum corral_status (*corral_run_folder_fn)(void *ctx, const char *path, struct corral_error *err);
enum corral_status corral_run_folder_each(const char *dir, corral_run_folder_fn fn, void *ctx,
                                          struct corral_error *err);
/* The pid of the coordinator that holds the run's lock; 0 when it is not running. */
pid_t corral_run_folder_coordinator(const char *path);

enum corral_status corral_launch_file_write(const char *path, const struct corral_launch_file *f,
                                            struct corral_error *err);
enum corral_status corral_launch_file_read(const char *path, struct corral_launch_file *f,
                                           struct corral_error *err);

#endif
