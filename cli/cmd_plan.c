/* rlctl plan: what a job would run where, and the arithmetic that shows it fits. */
#include "base/json.h"
#include "cli/cli.h"
#include "cli/set_args.h"
#include "orchestrator/inventory/inventory.h"
#include "orchestrator/plan/plan.h"
#include "rollout/env_host/vec.h"
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

CORRAL_DEFINE_CLEANUP(struct corral_vec, corral_vec_destroy)

static void usage(FILE *to)
{
    fputs("Usage: rlctl plan JOB [--json] [--set SECTION.KEY=VALUE]...\n"
          "\n"
          "Shows partitions, processes, CPU sets and the memory each device must hold, or says why the job "
          "cannot run\n"
          "and what would fit. Nothing is started and no GPU is needed.\n"
          "\n"
          "  -j, --json           machine-readable\n"
          "  -s, --set KEY=VALUE  override a value of the file; may be repeated\n"
          "  -h, --help           this text\n"
          "\n"
          "Exit code: 0 the plan works, 2 the file is wrong or the plan cannot work, 1 anything else.\n"
          "\n"
          "Examples:\n"
          "  rlctl plan configs/12gpu-9b.toml\n"
          "  rlctl plan configs/12gpu-9b.toml --set trainer.method=lora --json\n",
          to);
}

/* The environment knows its own sizes. Not being able to open it here costs only the exact memory of an mlp. */
static void look_at_env(const struct corral_job *job, struct corral_plan_env *out)
{
    if (job->model.kind != CORRAL_MODEL_MLP) {
        return;
    }
    const struct corral_vec_config config = {
        .id = job->env.id,
        .library = job->env.library[0] != '\0' ? job->env.library : NULL,
        .args_json = job->env.args,
        .envs = 1,
        .seed = job->seed,
        .isolation = CORRAL_ISOLATION_PROCESS,
        .step_timeout_ms = (uint32_t)CORRAL_MIN(job->env.step_timeout_ns / 1000000, (uint64_t)UINT32_MAX),
        .memory = &corral_allocator_heap,
    };
    struct corral_error err;
    CORRAL_CLEANUP(corral_vec_destroyp) struct corral_vec *vec = NULL;
    if (corral_vec_create(&vec, &config, &err) != CORRAL_OK) {
        fprintf(stderr,
                "note: the memory of workers is not counted, because environment %s does not open: %s\n",
                job->env.id, err.text);
        return;
    }
    const struct corral_vec_spec *spec = corral_vec_spec(vec);
    *out = (struct corral_plan_env){.obs_dim = spec->obs_dim, .agents = spec->agents, .action = spec->action};
}

static enum corral_status print(const struct corral_plan *plan, bool json, struct corral_error *err)
{
    if (!json) {
        return corral_plan_print(plan, stdout, err);
    }
    json_t *value = corral_plan_json(plan);
    if (value == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the plan: out of memory");
    }
    enum corral_status status = corral_json_print(stdout, value, err);
    json_decref(value);
    return status;
}

static int plan_job(const char *path, const struct cli_sets *sets, bool json)
{
    struct corral_error err;
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_CLEANUP(corral_plan_destroyp) struct corral_plan *plan = NULL;
    CORRAL_AUTO_FREE struct corral_inventory *machine = calloc(1, sizeof *machine);
    enum corral_status status = corral_job_load(path, sets->text, sets->count, &job, &err);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    struct corral_plan_env env = {.obs_dim = 0};
    look_at_env(job, &env);
    status = machine == NULL ? corral_fail(&err, CORRAL_NOMEM, "out of memory")
                             : corral_inventory_read(machine, &err);
    if (status == CORRAL_OK) {
        status = corral_plan_build(job, machine, &env, &plan, &err);
    }
    if (status != CORRAL_OK) {
        corral_error_prefix(&err, status, "%s: error", path);
        return corral_cli_fail(&err);
    }
    if (print(plan, json, &err) != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    return cli_flush();
}

int corral_cmd_plan(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"set", required_argument, NULL, 's'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct cli_sets sets = {.count = 0};
    bool json = false;
    int c;
    optind = 0; /* starts getopt afresh */
    opterr = 0;
    while ((c = getopt_long(argc, argv, "js:h", options, NULL)) != -1) {
        switch (c) {
        case 'j':
            json = true;
            break;
        case 's':
            if (!cli_sets_add(&sets, optarg)) {
                return corral_cli_usage("plan", "more than %d --set arguments", CLI_SETS_MAX);
            }
            break;
        case 'h':
            usage(stdout);
            return cli_flush();
        default:
            return corral_cli_usage("plan", "unknown option, or no value for %s", argv[optind - 1]);
        }
    }
    if (argc - optind != 1) {
        return corral_cli_usage("plan", "name one job file");
    }
    return plan_job(argv[optind], &sets, json);
}
