/* rlctl's command table and what its commands share. A command is one file, cmd_NAME.c: parse the options, call the library, print. Results go to stdout, talk to stderr.
 * Exit 0 done, 1 failed, 2 wrong usage or config. */
#ifndef CORRAL_CLI_H
#define CORRAL_CLI_H

#include "base/error.h"
#include <stdbool.h>

struct corral_command {
    const char *name;
    const char *summary;
    int (*fn)(int argc, char **argv); /* argv[0] is the command's name */
    bool hidden;                      /* started by rlctl itself */
};
/* Ends with a NULL name. */
extern const struct corral_command corral_commands[];

#define CORRAL_EXIT_DONE 0
#define CORRAL_EXIT_FAILED 1
#define CORRAL_EXIT_USAGE 2

int corral_cmd_launch(int argc, char **argv);
int corral_cmd_resume(int argc, char **argv);
int corral_cmd_plan(int argc, char **argv);
int corral_cmd_config(int argc, char **argv);
int corral_cmd_devices(int argc, char **argv);
int corral_cmd_doctor(int argc, char **argv);
int corral_cmd_env(int argc, char **argv);
int corral_cmd_status(int argc, char **argv);
int corral_cmd_list(int argc, char **argv);
int corral_cmd_audit(int argc, char **argv);
int corral_cmd_logs(int argc, char **argv);
int corral_cmd_quota(int argc, char **argv);
int corral_cmd_weights(int argc, char **argv);
int corral_cmd_traj(int argc, char **argv);
int corral_cmd_stop(int argc, char **argv);
int corral_cmd_completion(int argc, char **argv);
int corral_cmd_agent(int argc, char **argv);
int corral_cmd_worker(int argc, char **argv);
int corral_cmd_tenant(int argc, char **argv);
int corral_cmd_canary(int argc, char **argv);

/* "rlctl: TEXT" to stderr; returns the exit code for the error's status: 2 for CORRAL_INVALID and CORRAL_NOT_FOUND of what the user named, else 1. */
int corral_cli_fail(const struct corral_error *err);
/* "rlctl COMMAND: TEXT; see `rlctl COMMAND --help`" to stderr; returns 2. */
int corral_cli_usage(const char *command, const char *fmt, ...) CORRAL_PRINTF(2, 3);

#endif
