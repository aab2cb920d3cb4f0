/* A run as its folder shows it, for commands that only look: lock, status.json, journal. Nothing here writes, and nothing a
 * damaged file holds is fatal: what cannot be read becomes a one-line note. */
#ifndef CORRAL_CLI_RUN_VIEW_H
#define CORRAL_CLI_RUN_VIEW_H

#include "base/json.h"
#include "orchestrator/journal/journal.h"
#include "orchestrator/run/run_folder.h"

struct corral_run_view {
    char path[CORRAL_RUN_PATH_MAX];
    char id[32];              /* "7f3a12bc" */
    char job[128];            /* from status.json, or the folder's name */
    pid_t pid;                /* the coordinator; 0 when it is not running */
    uint64_t start_time;      /* of the coordinator, as in the lock file */
    uint64_t started_wall_ns; /* when the run was launched */
    json_t *status;           /* NULL when it could not be read */
    bool status_stale;        /* status.json is of an earlier start of the run */
    bool ended;
    struct corral_journal_end end;
    uint64_t checkpoint_step;
    char note[512]; /* what could not be read, and why; "" */
};

void corral_run_view_read(struct corral_run_view *v, const char *path);
void corral_run_view_free(struct corral_run_view *v);
/* "starting", "running", "finishing", "learned", "done", "stopped", "failed" or "crashed". */
const char *corral_run_view_state(const struct corral_run_view *v);
/* Why it ended: of the journal, or of status.json; "". */
const char *corral_run_view_reason(const struct corral_run_view *v);

/* A pidfd of the run's coordinator, surely of it and of no later process with its number; -1 when the run is not running. `pid` may be NULL. */
enum corral_status corral_run_view_coordinator(const char *path, int *pidfd, pid_t *pid,
                                               struct corral_error *err);

/* Members of a JSON object, whatever it really holds: NaN, 0 or "" when the key is missing or of another type. */
double corral_view_number(const json_t *object, const char *key);
uint64_t corral_view_count(const json_t *object, const char *key);
const char *corral_view_text(const json_t *object, const char *key);

/* Text of a file or a peer, made safe for a terminal: control characters become '?'. */
const char *corral_view_plain(const char *text, char *out, size_t out_bytes);

#endif
