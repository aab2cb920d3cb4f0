/* rlctl launch: from a job file to a run folder to a run. */
#include "base/clock.h"
#include "base/file.h"
#include "cli/cli.h"
#include "cli/run_job.h"
#include "cli/set_args.h"
#include "orchestrator/weight_lanes.h"
#include "orchestrator/worker/worker_config.h"
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void help(void)
{
    printf(
        "Usage: rlctl launch JOB [--set SECTION.KEY=VALUE]... [--dir DIR] [--detach] [--json] [--quiet]\n\n"
        "Plans the job, starts its agents and workers (all or nothing), trains until one of the job's [stop] "
        "conditions holds, and prints a summary.\n"
        "Ctrl-C ends the run in order, with a checkpoint; a second Ctrl-C at once.\n\n"
        "  -s, --set KEY=VALUE  override a value of the file; may be repeated\n"
        "      --dir DIR        where the run's folder goes (default: job.dir)\n"
        "      --detach         return once every worker is up, and print the run's id\n"
        "  -j, --json           print the summary (with --detach, id and path) as JSON\n"
        "  -q, --quiet          no progress\n\n"
        "Exit code: 0 the run ended by its own rules or was stopped, 1 it failed, 2 the job is wrong or "
        "cannot fit.\n\n"
        "Examples:\n"
        "  rlctl launch configs/cartpole.toml\n"
        "  rlctl launch configs/pendulum.toml --set job.seed=3 --set stop.wall=60s\n"
        "  RUN=$(rlctl launch configs/acrobot.toml --detach) && rlctl status $RUN\n");
}

struct arguments {
    const char *job, *dir;
    struct cli_sets sets;
    struct corral_run_options options;
};

/* Returns an exit code, or -1 to go on. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"set", required_argument, NULL, 's'},
                                            {"dir", required_argument, NULL, 'd'},
                                            {"detach", no_argument, NULL, 'D'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "s:jqh", options, NULL)) != -1) {
        switch (option) {
        case 's':
            if (!cli_sets_add(&a->sets, optarg)) {
                return CORRAL_EXIT_USAGE;
            }
            break;
        case 'd':
            a->dir = optarg;
            break;
        case 'D':
            a->options.detach = true;
            break;
        case 'j':
            a->options.json = true;
            break;
        case 'q':
            a->options.quiet = true;
            break;
        case 'h':
            help();
            return CORRAL_EXIT_DONE;
        default:
            return corral_cli_usage("launch", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind != 1) {
        return corral_cli_usage("launch", "name one job file");
    }
    a->job = argv[optind];
    return -1;
}

/* What the plan allows and this build cannot run yet is refused before anything starts. */
static enum corral_status check_supported(const char *file, const struct corral_job *job,
                                          struct corral_error *err)
{
    if (job->model.kind != CORRAL_MODEL_MLP) {
        return corral_fail(
            err, CORRAL_INVALID,
            "%s: error: launching model.kind = \"transformer\" is not supported yet; `rlctl plan` works",
            file);
    }
    return CORRAL_OK;
}

/* An impossible job is refused here, before a folder is made for it. */
static enum corral_status check_plan(const char *file, const struct corral_job *job, struct corral_error *err)
{
    CORRAL_TRY(check_supported(file, job, err));
    if (corral_weight_lanes_check(job, err) != CORRAL_OK) {
        return corral_job_error_at(job, "weights", "transport", err);
    }
    struct corral_vec_spec env;
    enum corral_status status = corral_job_env_spec(job, &env, err);
    if (status != CORRAL_OK) {
        const char *key = status == CORRAL_INVALID && strcmp(job->env.args, "{}") != 0 ? "args"
                          : job->env.library[0] != '\0'                                ? "library"
                                                                                       : "id";
        return corral_job_error_at(job, "env", key, err);
    }
    struct corral_plan_env plan_env;
    corral_plan_env_of(&env, &plan_env);
    CORRAL_CLEANUP(corral_plan_destroyp) struct corral_plan *plan = NULL;
    status = corral_plan_build(job, NULL, &plan_env, &plan, err);
    return status == CORRAL_OK ? CORRAL_OK : corral_error_prefix(err, status, "%s: error", file);
}

/* A folder that cannot take runs is the user's to change; a disk that is full or broken is not a wrong job. */
static enum corral_status make_folder(const struct arguments *a, const struct corral_job *job,
                                      char path[CORRAL_RUN_PATH_MAX], uint64_t *run, struct corral_error *err)
{
    enum corral_status status =
        corral_run_folder_create(a->dir ? a->dir : job->dir, job->name, run, path, err);
    if (status == CORRAL_IO && err->sys != ENOSPC && err->sys != EDQUOT && err->sys != EIO) {
        status = err->status = CORRAL_INVALID;
    }
    return status == CORRAL_OK ? CORRAL_OK
                               : corral_error_prefix(err, status, "%s", a->dir ? "--dir" : "job.dir");
}

static enum corral_status make_run(const struct arguments *a, char path[CORRAL_RUN_PATH_MAX],
                                   struct corral_launch_file *launch, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_TRY(corral_job_load(a->job, a->sets.text, a->sets.count, &job, err));
    CORRAL_TRY(check_plan(a->job, job, err));
    char here[PATH_MAX];
    if (getcwd(here, sizeof here) == NULL) {
        return corral_fail_sys(err, errno, "reading the path of the current directory");
    }
    CORRAL_TRY(corral_job_set_tenant_folder(job, here, err));
    CORRAL_AUTO_FREE char *text = NULL;
    CORRAL_TRY(corral_job_text_of(job, &text, err));
    CORRAL_TRY(make_folder(a, job, path, &launch->run, err));
    char file[CORRAL_RUN_PATH_MAX + 16];
    snprintf(file, sizeof file, "%s/job.toml", path);
    return corral_file_write_atomic(file, text, strlen(text), 0644, false, err);
}

int corral_cmd_launch(int argc, char **argv)
{
    uint64_t started_ns = corral_now_ns(&corral_clock_monotonic);
    struct arguments a = {0};
    int code = parse(argc, argv, &a);
    if (code >= 0) {
        return code;
    }
    struct corral_error err = {0};
    struct corral_launch_file launch = {.incarnation = 1};
    char path[CORRAL_RUN_PATH_MAX];
    if (make_run(&a, path, &launch, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    return corral_run_job(path, &launch, false, started_ns, &a.options);
}
