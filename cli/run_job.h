/* What `launch` and `resume` share: taking the run's lock, running the coordinator in its folder, and showing how it goes. */
#ifndef CORRAL_CLI_RUN_JOB_H
#define CORRAL_CLI_RUN_JOB_H

#include "base/error.h"
#include "orchestrator/run/run_folder.h"
#include <stdbool.h>

struct corral_run_options {
    bool json;   /* the summary as JSON */
    bool quiet;  /* no progress */
    bool detach; /* go to the background once every worker is up */
};

/* Run (or go on with) the run in `path`. Changes the current directory. Returns an exit code. */
int corral_run_job(const char *path, const struct corral_launch_file *launch, bool resume,
                   uint64_t started_ns, const struct corral_run_options *options);

#endif
