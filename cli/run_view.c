#include "cli/run_view.h"
#include "base/clock.h"
#include "base/file.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COORDINATOR_LOOKS_MAX 16

static void add_note(struct corral_run_view *v, const struct corral_error *err)
{
    size_t used = strlen(v->note);
    char plain[256];
    snprintf(v->note + used, sizeof v->note - used, "%s%s", used ? "; " : "",
             corral_view_plain(err->text, plain, sizeof plain));
}

static void join(char *out, size_t out_bytes, const char *path, const char *name)
{
    snprintf(out, out_bytes, "%s/%s", path, name);
}

static void read_names(struct corral_run_view *v)
{
    const char *slash = strrchr(v->path, '/');
    const char *name = slash ? slash + 1 : v->path;
    const char *dash = strrchr(name, '-');
    size_t job_bytes = dash ? (size_t)(dash - name) : strlen(name);
    snprintf(v->id, sizeof v->id, "%.31s", name + (dash ? job_bytes + 1 : 0));
    snprintf(v->job, sizeof v->job, "%.*s", (int)job_bytes, name);
    char file[CORRAL_RUN_PATH_MAX + 32];
    struct stat st;
    join(file, sizeof file, v->path, "job.toml");
    if (stat(file, &st) == 0) {
        v->started_wall_ns = (uint64_t)st.st_mtim.tv_sec * CORRAL_NS_PER_S + (uint64_t)st.st_mtim.tv_nsec;
    }
}

static void read_lock(struct corral_run_view *v)
{
    char file[CORRAL_RUN_PATH_MAX + 32];
    struct corral_error err;
    join(file, sizeof file, v->path, "lock");
    if (corral_lock_holder(file, &v->pid, &v->start_time, &err) != CORRAL_OK) {
        v->pid = 0;
        add_note(v, &err);
    }
}

static void read_status(struct corral_run_view *v)
{
    char file[CORRAL_RUN_PATH_MAX + 32];
    struct corral_error err;
    join(file, sizeof file, v->path, "status.json");
    if (access(file, F_OK) != 0) {
        return; /* it has not come so far */
    }
    json_t *root = NULL;
    if (corral_json_read_file(&root, file, &err) != CORRAL_OK) {
        add_note(v, &err);
        return;
    }
    if (!json_is_object(root) || corral_view_count(root, "format") != 1) {
        corral_fail(&err, CORRAL_PROTOCOL, "%s: not a status of format 1", file);
        add_note(v, &err);
        json_decref(root);
        return;
    }
    v->status = root;
    const char *job = corral_view_text(root, "job");
    if (job[0]) {
        corral_view_plain(job, v->job, sizeof v->job);
    }
}

static enum corral_status read_journal_file(struct corral_run_view *v, struct corral_journal *j,
                                            struct corral_error *err)
{
    struct corral_journal_run run;
    CORRAL_TRY(corral_journal_read_run(j, &run, err));
    v->checkpoint_step = run.checkpoint_step;
    v->status_stale = v->status && corral_view_count(v->status, "incarnation") < run.incarnation;
    enum corral_status status = corral_journal_read_end(j, &v->end, err);
    v->ended = status == CORRAL_OK;
    return status == CORRAL_NOT_FOUND ? CORRAL_OK : status;
}

static void read_journal(struct corral_run_view *v)
{
    char file[CORRAL_RUN_PATH_MAX + 32];
    struct corral_error err;
    struct corral_journal *j = NULL;
    join(file, sizeof file, v->path, "journal.db");
    enum corral_status status = corral_journal_open_readonly(file, &j, &err);
    if (status == CORRAL_OK) {
        status = read_journal_file(v, j, &err);
        corral_journal_close(j);
    }
    /* A coordinator takes the lock first and makes the journal a moment later. */
    if (status != CORRAL_OK && (v->pid == 0 || access(file, F_OK) == 0)) {
        add_note(v, &err);
    }
}

void corral_run_view_read(struct corral_run_view *v, const char *path)
{
    *v = (struct corral_run_view){.pid = 0};
    snprintf(v->path, sizeof v->path, "%s", path);
    read_names(v);
    read_lock(v);
    read_status(v);
    read_journal(v);
}

void corral_run_view_free(struct corral_run_view *v)
{
    json_decref(v->status);
    v->status = NULL;
}

const char *corral_run_view_state(const struct corral_run_view *v)
{
    if (v->pid != 0) {
        const char *phase = v->status_stale ? "starting" : corral_view_text(v->status, "phase");
        if (strcmp(phase, "over") == 0) {
            return "finishing";
        }
        return phase[0] ? phase : "starting";
    }
    if (v->ended) {
        return v->end.outcome;
    }
    return "crashed";
}

const char *corral_run_view_reason(const struct corral_run_view *v)
{
    if (v->ended && v->pid == 0) {
        return v->end.reason;
    }
    return v->pid != 0 && !v->status_stale ? corral_view_text(v->status, "reason") : "";
}

enum corral_status corral_run_view_coordinator(const char *path, int *pidfd, pid_t *pid,
                                               struct corral_error *err)
{
    char file[CORRAL_RUN_PATH_MAX + 32];
    pid_t holder = 0, again = 0;
    uint64_t start_time = 0, start_again = 0;
    join(file, sizeof file, path, "lock");
    for (int look = 0; look < COORDINATOR_LOOKS_MAX; look++) {
        CORRAL_TRY(corral_lock_holder(file, &holder, &start_time, err));
        CORRAL_AUTO_CLOSE int fd = holder ? (int)syscall(SYS_pidfd_open, holder, 0) : -1;
        if (holder && fd < 0 && errno != ESRCH) {
            return corral_fail_sys(err, errno, "watching the run's process %d", (int)holder);
        }
        CORRAL_TRY(corral_lock_holder(file, &again, &start_again, err));
        /* Still the holder after the pidfd was opened: the number has not been given to another process. */
        if (holder == again && start_time == start_again && (holder == 0 || fd >= 0)) {
            *pidfd = fd;
            fd = -1;
            if (pid) {
                *pid = holder;
            }
            return CORRAL_OK;
        }
    }
    return corral_fail(err, CORRAL_AGAIN, "%s: the run keeps being started and ended", path);
}

double corral_view_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

uint64_t corral_view_count(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_integer(value) && json_integer_value(value) > 0 ? (uint64_t)json_integer_value(value) : 0;
}

const char *corral_view_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

const char *corral_view_plain(const char *text, char *out, size_t out_bytes)
{
    size_t n = 0;
    for (; text[n] && n + 1 < out_bytes; n++) {
        unsigned char c = (unsigned char)text[n];
        out[n] = text[n];
        if (c < 0x20 || c == 0x7f) {
            out[n] = '?';
        }
    }
    /* Never half a character at the end. */
    while (n > 0 && text[n] && ((unsigned char)text[n] & 0xc0) == 0x80) {
        n--;
    }
    out[n] = '\0';
    return out;
}
