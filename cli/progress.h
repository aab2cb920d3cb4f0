/* What a person sees while a job runs and after it: the header, the progress line (redrawn on a terminal, plain lines when piped), and the summary. Talk goes to stderr, the
 * summary to stdout. */
#ifndef CORRAL_CLI_PROGRESS_H
#define CORRAL_CLI_PROGRESS_H

#include "orchestrator/coordinator/coordinator.h"
#include "orchestrator/run/run_folder.h"

struct corral_progress {
    const struct corral_job *job;
    const struct corral_plan *plan;
    const char *run_path;
    char shown_path[CORRAL_RUN_PATH_MAX]; /* run_path as the user would write it where rlctl was started */
    bool terminal, quiet;
    bool line_open;      /* the terminal's cursor is behind a progress line */
    uint64_t printed_ns; /* piped: time of the last line */
    float spark[24];     /* returns for the sparkline, oldest first */
    uint32_t spark_count;
    uint64_t spark_step;
    uint32_t restarts_told;
};

/* The path to show for `path`: relative when it is below the current directory. */
void corral_progress_shown_path(const char *path, char out[CORRAL_RUN_PATH_MAX]);
void corral_progress_header(struct corral_progress *p);
void corral_progress_started(struct corral_progress *p, const struct corral_run_status *s);
void corral_progress_update(struct corral_progress *p, const struct corral_run_status *s);
/* Ends an open line. */
void corral_progress_end(struct corral_progress *p);
void corral_progress_summary(const struct corral_progress *p, const struct corral_run_status *s);
/* "7f3a12bc" of a run folder. */
const char *corral_progress_run_id(const char *run_path);

#endif
