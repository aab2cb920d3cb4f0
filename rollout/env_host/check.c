#include "rollout/env_host/check.h"
#include "base/clock.h"
#include "rollout/env_host/check_cases.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void check_load(struct check *c)
{
    check_pass(c, "%s from %s", c->def->id, c->def->path);
}

static void check_spec(struct check *c)
{
    struct corral_env_spec again;
    struct corral_error err = {0};
    if (corral_env_describe(&c->def->ops, c->config->args_json, &again, &err) != CORRAL_OK ||
        !corral_env_spec_equal(&c->spec, &again)) {
        check_fail(c, "describe() gives another description the second time %s", err.text);
    }
    if (c->def->ops.summary == NULL || c->def->ops.summary[0] == '\0') {
        check_fail(c, "it has no summary, the line `rlctl env list` shows");
    }
    check_pass(c, "%u agent%s, %u observed numbers, %u action component%s, %u steps at most", again.agents,
               again.agents == 1 ? "" : "s", corral_env_obs_dim(&again), again.components,
               again.components == 1 ? "" : "s", again.max_episode_steps);
}

static const struct {
    const char *name;
    void (*run)(struct check *c);
    uint32_t aspect;
} checks[] = {
    {"load", check_load, 0},
    {"description", check_spec, 0},
    {"bad arguments", check_arguments, 0},
    {"create and destroy", check_create, 0},
    {"memory", check_memory, 0},
    {"finite numbers", check_aspect, ASPECT_FINITE},
    {"observation bounds", check_aspect, ASPECT_OBS_BOUNDS},
    {"reward bounds", check_aspect, ASPECT_REWARD_BOUNDS},
    {"terminated, truncated", check_aspect, ASPECT_FLAGS},
    {"max_episode_steps", check_aspect, ASPECT_LIMIT},
    {"masks", check_aspect, ASPECT_MASKS},
    {"active rows", check_aspect, ASPECT_ACTIVE},
    {"autoreset and seeds", check_autoreset, 0},
    {"determinism", check_determinism, 0},
    {"batch independence", check_batches, 0},
    {"subsets of ids", check_subsets, 0},
    {"buffer edges", check_edges, 0},
    {"snapshots", check_snapshot, 0},
    {"stdout", check_stdout, 0},
};
enum { LOAD_INDEX = 0, SPEC_INDEX = 1 };

/* ---- one check, in its child ---- */

static void isolate(struct check *c)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit no_core = {0};
    setrlimit(RLIMIT_CORE, &no_core);
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGINT, SIGTERM};
    for (size_t i = 0; i < CORRAL_COUNT_OF(fatal); i++) {
        signal(fatal[i], SIG_DFL);
    }
    c->captured_stdout = memfd_create("corral-check-stdout", MFD_CLOEXEC);
    dup2(c->captured_stdout, STDOUT_FILENO);
}

static void run_child(const struct corral_check_config *config, struct check_report *report, size_t index)
{
    struct check c = {.config = config, .report = report, .aspect = checks[index].aspect};
    struct corral_error err = {0};
    isolate(&c);
    check_doing(&c, "loading");
    if (corral_env_open(&c.def, config->id, config->library, &err) != CORRAL_OK) {
        check_fail(&c, "%s", err.text);
    }
    if (index > LOAD_INDEX) {
        check_doing(&c, "describing");
        if (corral_env_describe(&c.def->ops, config->args_json, &c.spec, &err) != CORRAL_OK) {
            check_fail(&c, "%s", err.text);
        }
    }
    checks[index].run(&c);
    _exit(0);
}

/* ---- the parent ---- */

static enum corral_status await_child(pid_t pid, uint32_t timeout_ms, int *wstatus, bool *hung,
                                      struct corral_error *err)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        int code = errno;
        kill(pid, SIGKILL);
        waitpid(pid, wstatus, 0);
        return corral_fail_sys(err, code, "cannot watch a check");
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + timeout_ms * CORRAL_NS_PER_MS;
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    *hung = true;
    for (uint64_t now; *hung && (now = corral_now_ns(&corral_clock_monotonic)) < deadline;) {
        int rc = poll(&p, 1, (int)((deadline - now) / CORRAL_NS_PER_MS) + 1);
        *hung = rc <= 0;
    }
    if (*hung) {
        kill(pid, SIGKILL);
    }
    while (waitpid(pid, wstatus, 0) < 0 && errno == EINTR) {
    }
    close(pidfd);
    return CORRAL_OK;
}

/* A report that no child has finished. */
static const enum corral_check_result UNFINISHED = (enum corral_check_result) - 1;

static void conclude(struct corral_check_line *line, const struct check_report *report, int wstatus,
                     bool hung, uint32_t timeout_ms)
{
    int doing = (int)strnlen(report->doing, sizeof report->doing - 1);
    if (hung) {
        line->result = CORRAL_CHECK_FAIL;
        snprintf(line->text, sizeof line->text, "it hung while %.*s and was ended after %u ms", doing,
                 report->doing, timeout_ms);
    } else if (WIFSIGNALED(wstatus)) {
        line->result = CORRAL_CHECK_FAIL;
        snprintf(line->text, sizeof line->text, "it crashed with signal %d (%s) while %.*s",
                 WTERMSIG(wstatus), strsignal(WTERMSIG(wstatus)), doing, report->doing);
    } else if (WEXITSTATUS(wstatus) != 0 || report->result == UNFINISHED) {
        line->result = CORRAL_CHECK_FAIL;
        snprintf(line->text, sizeof line->text, "it ended the process with exit status %d while %.*s",
                 WEXITSTATUS(wstatus), doing, report->doing);
    } else {
        line->result = report->result;
        snprintf(line->text, sizeof line->text, "%.*s", (int)sizeof line->text - 1, report->text);
    }
}

static enum corral_status run_check(const struct corral_check_config *config, struct check_report *report,
                                    size_t index, struct corral_check_line *line, struct corral_error *err)
{
    uint32_t timeout_ms = config->timeout_ms ? config->timeout_ms : CORRAL_CHECK_TIMEOUT_MS;
    *report = (struct check_report){.result = UNFINISHED};
    line->name = checks[index].name;
    fflush(NULL); /* what is buffered must not be written twice */
    pid_t pid = fork();
    if (pid < 0) {
        return corral_fail_sys(err, errno, "cannot start a check");
    }
    if (pid == 0) {
        run_child(config, report, index);
    }
    int wstatus = 0;
    bool hung = false;
    CORRAL_TRY(await_child(pid, timeout_ms, &wstatus, &hung, err));
    conclude(line, report, wstatus, hung, timeout_ms);
    return CORRAL_OK;
}

enum corral_status corral_env_check(const struct corral_check_config *config, corral_check_line_fn fn,
                                    void *ctx, uint32_t *failed, struct corral_error *err)
{
    struct check_report *report =
        mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot set up the checks");
    }
    enum corral_status status = CORRAL_OK;
    uint32_t failures = 0;
    bool usable = true;
    for (size_t i = 0; i < CORRAL_COUNT_OF(checks) && status == CORRAL_OK; i++) {
        struct corral_check_line line = {
            .name = checks[i].name, .result = CORRAL_CHECK_SKIPPED, .text = "it cannot be used as it is"};
        if (usable) {
            status = run_check(config, report, i, &line, err);
        }
        if (status == CORRAL_OK) {
            fn(ctx, &line);
            failures += line.result == CORRAL_CHECK_FAIL;
            usable &= i > SPEC_INDEX || line.result != CORRAL_CHECK_FAIL;
        }
    }
    munmap(report, sizeof *report);
    if (status == CORRAL_OK) {
        *failed = failures;
    }
    return status;
}

/* ---- ids of a file ---- */

struct id_list {
    enum corral_status status;
    uint32_t count;
    char text[400];
    char ids[CORRAL_ENV_PLUGIN_ENVS_MAX][CORRAL_ENV_ID_BYTES];
};

static void note_id(void *ctx, const struct corral_env_listed *item)
{
    struct id_list *list = ctx;
    if (list->count < CORRAL_ENV_PLUGIN_ENVS_MAX) {
        memcpy(list->ids[list->count++], item->id, CORRAL_ENV_ID_BYTES);
    }
}

static enum corral_status copy_ids(const struct id_list *list, const char *library, int wstatus, bool hung,
                                   char (**ids)[CORRAL_ENV_ID_BYTES], uint32_t *count,
                                   struct corral_error *err)
{
    if (hung || !WIFEXITED(wstatus) || WEXITSTATUS(wstatus) != 0) {
        return corral_fail(err, CORRAL_INVALID, "the plug-in %s %s while it was loaded", library,
                           hung ? "hung" : "crashed");
    }
    if (list->status != CORRAL_OK) {
        return corral_fail(err, list->status, "%s", list->text);
    }
    size_t bytes = (size_t)list->count * CORRAL_ENV_ID_BYTES;
    char(*copy)[CORRAL_ENV_ID_BYTES] = malloc(bytes + 1);
    if (copy == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot list %s: out of memory", library);
    }
    memcpy(copy, list->ids, bytes);
    *ids = copy;
    *count = list->count;
    return CORRAL_OK;
}

enum corral_status corral_env_check_ids(const char *library, char (**ids)[CORRAL_ENV_ID_BYTES],
                                        uint32_t *count, struct corral_error *err)
{
    struct id_list *list =
        mmap(NULL, sizeof *list, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (list == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot list %s", library);
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct check c = {0};
        struct corral_error local = {0};
        isolate(&c);
        list->status = corral_env_each(library, note_id, list, &local);
        snprintf(list->text, sizeof list->text, "%.*s", (int)sizeof list->text - 1, local.text);
        _exit(0);
    }
    int wstatus = 0;
    bool hung = false;
    enum corral_status status = pid < 0 ? corral_fail_sys(err, errno, "cannot list %s", library)
                                        : await_child(pid, CORRAL_CHECK_TIMEOUT_MS, &wstatus, &hung, err);
    if (status == CORRAL_OK) {
        status = copy_ids(list, library, wstatus, hung, ids, count, err);
    }
    munmap(list, sizeof *list);
    return status;
}
