#include "cli/run_job.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/progress.h"
#include "cli/set_args.h"
#include "orchestrator/worker/worker_config.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct run {
    struct corral_job *job;
    struct corral_plan *plan;
    struct corral_vec_spec env;
    struct corral_journal *journal;
    struct corral_launch_file launch;
    uint64_t base_step, version_floor;
    int lock_fd;
    int ready_fd; /* detached: tells the waiting parent that every worker is up */
    struct corral_progress progress;
    struct corral_run_status status;
};

static enum corral_status take_folder(struct run *r, const char *path, struct corral_error *err)
{
    if (chdir(path) != 0) {
        return corral_fail_sys(err, errno, "entering %s", path);
    }
    enum corral_status status = corral_lock_file("lock", &r->lock_fd, err);
    pid_t holder = 0;
    uint64_t start_time;
    if (status == CORRAL_EXISTS && corral_lock_holder("lock", &holder, &start_time, NULL) == CORRAL_OK &&
        holder) {
        return corral_fail(err, status, "run %s is already running (process %d)",
                           corral_progress_run_id(path), (int)holder);
    }
    return status;
}

#define CHECKPOINTS_MAX 1024

struct checkpoints {
    uint32_t count;
    uint64_t step[CHECKPOINTS_MAX]; /* the newest, oldest first */
    char path[CHECKPOINTS_MAX][256];
};

static enum corral_status list_checkpoint(void *ctx, uint64_t step, const char *path,
                                          struct corral_error *err)
{
    (void)err;
    struct checkpoints *list = ctx;
    if (list->count == CHECKPOINTS_MAX) {
        memmove(&list->step[0], &list->step[1], sizeof list->step - sizeof list->step[0]);
        memmove(list->path[0], list->path[1], sizeof list->path - sizeof list->path[0]);
        list->count--;
    }
    list->step[list->count] = step;
    snprintf(list->path[list->count++], sizeof list->path[0], "%s", path);
    return CORRAL_OK;
}

static bool has_file(const char *folder, const char *name)
{
    char path[400];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
}

static bool checkpoint_complete(const struct run *r, const char *folder)
{
    bool complete = has_file(folder, "checkpoint.json") && has_file(folder, "policy.safetensors");
    for (uint32_t rank = 0; rank < corral_job_role_count(r->job, CORRAL_ROLE_TRAIN); rank++) {
        char name[40];
        snprintf(name, sizeof name, "trainer-%u.state", rank);
        complete = complete && has_file(folder, name);
    }
    return complete;
}

/* The newest checkpoint that is all there. The ones before it in line are forgotten: they would be counted among those to keep, and would end up as the newest again. */
static enum corral_status choose_checkpoint(struct run *r, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct checkpoints *list = calloc(1, sizeof *list);
    if (!list) {
        return corral_fail(err, CORRAL_NOMEM, "listing checkpoints");
    }
    CORRAL_TRY(corral_journal_each_checkpoint(r->journal, list_checkpoint, list, err));
    uint32_t left = list->count;
    while (left > 0 && !checkpoint_complete(r, list->path[left - 1])) {
        left--;
    }
    if (left == 0 && list->count > 0) {
        return corral_fail(err, CORRAL_NOT_FOUND,
                           "none of the run's %u checkpoints is complete (newest: %s): put one back, or "
                           "launch the job again",
                           list->count, list->path[list->count - 1]);
    }
    for (uint32_t i = left; i < list->count; i++) {
        fprintf(stderr, "rlctl: warning: %s is not complete and is passed over\n", list->path[i]);
        CORRAL_TRY(corral_journal_forget_checkpoint(r->journal, list->step[i], err));
    }
    if (left > 0) {
        r->base_step = list->step[left - 1];
        snprintf(r->launch.resume, sizeof r->launch.resume, "%s", list->path[left - 1]);
    }
    return CORRAL_OK;
}

/* What an earlier life of the run left: its id, its newest checkpoint, and the versions that may have been seen. */
static enum corral_status read_past(struct run *r, struct corral_error *err)
{
    struct corral_journal_run past;
    if (access("journal.db", F_OK) != 0) {
        return corral_fail(err, CORRAL_NOT_FOUND,
                           "this run ended before it began: nothing to go on with; launch the job again");
    }
    CORRAL_TRY(corral_journal_open("journal.db", &r->journal, err));
    CORRAL_TRY(corral_journal_read_run(r->journal, &past, err));
    CORRAL_TRY(choose_checkpoint(r, err));
    CORRAL_TRY(corral_journal_next_incarnation(r->journal, &r->launch.incarnation, err));
    r->launch.run = past.run;
    r->version_floor = past.version_limit;
    return CORRAL_OK;
}

static enum corral_status make_plan(struct run *r, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_inventory *machine = calloc(1, sizeof *machine);
    if (!machine) {
        return corral_fail(err, CORRAL_NOMEM, "no room for the inventory");
    }
    struct corral_plan_env env;
    CORRAL_TRY(corral_job_env_spec(r->job, &r->env, err));
    corral_plan_env_of(&r->env, &env);
    CORRAL_TRY(corral_inventory_read(machine, err));
    return corral_plan_build(r->job, machine, &env, &r->plan, err);
}

static enum corral_status log_to_file(const struct run *r, struct corral_error *err)
{
    int fd = open("logs/coordinator.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "opening logs/coordinator.log");
    }
    corral_log_configure(r->job->observe.log_level == CORRAL_LOG_OPTION_DEBUG ? CORRAL_LOG_DEBUG
                                                                              : CORRAL_LOG_INFO,
                         r->job->observe.log == CORRAL_LOG_OPTION_JSON, fd, "coordinator");
    return CORRAL_OK;
}

/* Detached, from here on: whoever reads our output must see its end (`RUN=$(rlctl launch JOB --detach)`). What is still said goes to the log. */
static void leave_terminal(void)
{
    (void)fflush(NULL);
    CORRAL_AUTO_CLOSE int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    CORRAL_AUTO_CLOSE int log = open("logs/coordinator.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    (void)dup2(null, 0);
    (void)dup2(null, 1);
    (void)dup2(log >= 0 ? log : null, 2);
}

static void on_progress(void *ctx, const struct corral_run_status *status)
{
    corral_progress_update(&((struct run *)ctx)->progress, status);
}

static void on_started(void *ctx, const struct corral_run_status *status)
{
    struct run *r = ctx;
    corral_progress_started(&r->progress, status);
    if (r->ready_fd >= 0) {
        leave_terminal();
        (void)!write(r->ready_fd, "1", 1);
        close(r->ready_fd);
        r->ready_fd = -1;
    }
}

static enum corral_status run(struct run *r, const char *path, bool resume, uint64_t started_ns,
                              struct corral_error *err)
{
    CORRAL_TRY(corral_job_load("job.toml", NULL, 0, &r->job, err));
    CORRAL_TRY(make_plan(r, err));
    if (resume) {
        CORRAL_TRY(read_past(r, err));
    }
    CORRAL_TRY(log_to_file(r, err));
    r->progress.job = r->job;
    r->progress.plan = r->plan;
    r->progress.run_path = path;
    corral_progress_header(&r->progress);
    struct corral_coordinator_config config = {
        .job = r->job,
        .plan = r->plan,
        .env = &r->env,
        .launch = r->launch,
        .journal = r->journal,
        .base_step = r->base_step,
        .version_floor = r->version_floor,
        .started_ns = started_ns,
        .progress = on_progress,
        .started = on_started,
        .ctx = r,
    };
    return corral_coordinator_run(&config, &r->status, err);
}

static void print_json_summary(const char *path)
{
    json_t *root = NULL;
    if (corral_json_read_file(&root, "status.json", NULL) != CORRAL_OK) {
        root = json_object();
    }
    json_object_set_new(root, "path", json_string(path));
    (void)corral_json_print(stdout, root, NULL); /* cli_flush() sees to what fails here */
    json_decref(root);
}

static int run_here(const char *path, const struct corral_launch_file *launch, bool resume,
                    uint64_t started_ns, const struct corral_run_options *options, int ready_fd)
{
    struct run *r = calloc(1, sizeof *r);
    struct corral_error err = {0};
    if (!r) {
        corral_fail(&err, CORRAL_NOMEM, "starting the run");
        return corral_cli_fail(&err);
    }
    r->launch = *launch;
    r->lock_fd = -1;
    r->ready_fd = ready_fd;
    r->progress.quiet = options->quiet;
    r->progress.terminal = isatty(2) && !getenv("NO_COLOR");
    corral_progress_shown_path(path, r->progress.shown_path);
    enum corral_status status = take_folder(r, path, &err);
    if (status == CORRAL_OK) {
        status = run(r, path, resume, started_ns, &err);
    }
    corral_progress_end(&r->progress);
    int code = CORRAL_EXIT_DONE;
    if (status != CORRAL_OK) {
        code = corral_cli_fail(&err);
        if (r->status.elapsed_ns) {
            code = CORRAL_EXIT_FAILED;
            fprintf(stderr, "see %s/logs; go on with `rlctl resume %s`\n", r->progress.shown_path,
                    corral_progress_run_id(path));
        }
    } else if (options->json) {
        print_json_summary(path);
    } else {
        corral_progress_summary(&r->progress, &r->status);
    }
    if (code == CORRAL_EXIT_DONE) {
        code = cli_flush();
    }
    corral_journal_close(r->journal);
    corral_plan_destroy(r->plan);
    corral_job_destroy(r->job);
    corral_cleanup_close(&r->lock_fd);
    free(r);
    return code;
}

/* The child runs the job; this process stays until every worker is up, or until the child has failed and said why. */
static int run_detached(const char *path, const struct corral_launch_file *launch, bool resume,
                        uint64_t started_ns, const struct corral_run_options *options)
{
    int pipe_fds[2];
    struct corral_error err;
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        corral_fail_sys(&err, errno, "--detach");
        return corral_cli_fail(&err);
    }
    (void)fflush(NULL); /* or both would print what is still in the buffers */
    pid_t pid = fork();
    if (pid < 0) {
        corral_fail_sys(&err, errno, "--detach");
        return corral_cli_fail(&err);
    }
    if (pid == 0) {
        close(pipe_fds[0]);
        (void)setsid();
        struct corral_run_options quiet = *options;
        quiet.quiet = true;
        int code = run_here(path, launch, resume, started_ns, &quiet, pipe_fds[1]);
        (void)fflush(NULL);
        _exit(code); /* not exit(): what the parent registered is the parent's */
    }
    close(pipe_fds[1]);
    char ready = 0;
    ssize_t n;
    do {
        n = read(pipe_fds[0], &ready, 1);
    } while (n < 0 && errno == EINTR);
    close(pipe_fds[0]);
    if (n != 1) { /* it has ended already, and has printed why */
        int code;
        return waitpid(pid, &code, 0) == pid && WIFEXITED(code) ? WEXITSTATUS(code) : CORRAL_EXIT_FAILED;
    }
    if (options->json) {
        json_t *root = json_pack("{s:s, s:s}", "run", corral_progress_run_id(path), "path", path);
        (void)corral_json_print(stdout, root, NULL);
        json_decref(root);
    } else {
        printf("%s\n", corral_progress_run_id(path));
    }
    return cli_flush();
}

int corral_run_job(const char *path, const struct corral_launch_file *launch, bool resume,
                   uint64_t started_ns, const struct corral_run_options *options)
{
    /* The built-in learner runs one thread per worker; OpenBLAS must not start its own. Workers inherit it. */
    (void)setenv("OPENBLAS_NUM_THREADS", "1", 0);
    /* A reader that goes away (`rlctl launch JOB | head`) must not take the run along. */
    (void)signal(SIGPIPE, SIG_IGN);
    if (options->detach) {
        return run_detached(path, launch, resume, started_ns, options);
    }
    return run_here(path, launch, resume, started_ns, options, -1);
}
