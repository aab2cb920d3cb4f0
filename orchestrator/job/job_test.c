#include "base/file.h"
#include "orchestrator/inventory/inventory.h"
#include "orchestrator/job/job.h"
#include "orchestrator/job/options.h"
#include "tests/check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const cartpole = "schema = 1\n"
                                    "[job]\n"
                                    "name = \"cartpole\"\n"
                                    "seed = 7\n"
                                    "[partition.trainer]\n"
                                    "role = \"train\"\n"
                                    "gpus = [\"local:0-1\"]\n"
                                    "floor = \"48MiB\"\n"
                                    "ceiling = \"96MiB\"\n"
                                    "[partition.rollout]\n"
                                    "role = \"rollout\"\n"
                                    "gpus = [\"local:2,4\", \"local:3\"]\n"
                                    "floor = \"64MiB\"\n"
                                    "workers_per_device = 2\n"
                                    "[partition.eval]\n"
                                    "role = \"eval\"\n"
                                    "gpus = [\"local:5\"]\n"
                                    "floor = \"32MiB\"\n"
                                    "[env]\n"
                                    "id = \"CartPole-v1\"\n"
                                    "library = \"envs/x.so\"\n"
                                    "args = { size = 4, deep = { list = [1, 2.5, \"a\\\"b\"], on = true } }\n"
                                    "[algorithm]\n"
                                    "lr = 1e-3\n"
                                    "lr_final = 0.0\n"
                                    "[model]\n"
                                    "hidden = [64, 32]\n"
                                    "[stop]\n"
                                    "env_steps = 100_000\n"
                                    "eval_return = 475\n";

static struct corral_job *load_with(const char *text, const char *folder, const char *const *sets,
                                    uint32_t count, const struct corral_inventory *machine)
{
    struct corral_error err;
    struct corral_job *job = NULL;
    const struct corral_job_text source = {.name = "j.toml",
                                           .text = text,
                                           .bytes = strlen(text),
                                           .folder = folder,
                                           .sets = sets,
                                           .set_count = count,
                                           .machine = machine};
    check_ok(corral_job_load_text(&source, &job, &err));
    return job;
}

static void resolves_defaults_units_and_paths(void **state)
{
    (void)state;
    struct corral_job *job = load_with(cartpole, "/work/jobs", NULL, 0, NULL);
    assert_string_equal(job->name, "cartpole");
    assert_int_equal(job->seed, 7);
    assert_string_equal(job->dir, "runs");
    assert_string_equal(job->env.library, "/work/jobs/envs/x.so");
    assert_string_equal(job->env.args, "{\"size\":4,\"deep\":{\"list\":[1,2.5,\"a\\\"b\"],\"on\":true}}");
    assert_int_equal(job->partition[0].floor, 48 << 20);
    assert_int_equal(job->partition[0].ceiling, 96 << 20);
    assert_int_equal(job->partition[1].ceiling, 64 << 20); /* the floor */
    assert_int_equal(job->fault.heartbeat_ns, 500000000);
    assert_int_equal(job->model.hidden_count, 2);
    assert_int_equal(job->model.hidden[0], 64);
    assert_true(job->stop.eval_return == 475 && isnan(job->stop.train_return));
    assert_int_equal(job->algorithm.schedule_steps, 100000); /* stop.env_steps */
    assert_true(job->algorithm.clip_final == job->algorithm.clip && job->algorithm.lr_final == 0);
    assert_true(corral_job_progress(job, 50000) == 0.5 && corral_job_progress(job, 200000) == 1);
    assert_int_equal(corral_job_headroom(job, 0), 16 << 20);
    assert_int_equal(corral_job_batch(job, 1), UINT64_C(6) * 8 * 128);
    corral_job_destroy(job);
}

static void a_job_without_nodes_gets_host_devices_here(void **state)
{
    (void)state;
    struct corral_job *job = load_with(cartpole, NULL, NULL, 0, NULL);
    assert_int_equal(job->node_count, 1);
    assert_string_equal(job->node[0].name, "local");
    assert_true(job->node[0].as_found);
    assert_int_equal(job->node[0].kind, CORRAL_DEVICE_HOST);
    assert_int_equal(job->node[0].device_count, 6);
    assert_int_equal(job->node[0].device_memory, 256 << 20);
    assert_string_equal(job->env.library, "envs/x.so"); /* no folder: as written */
    corral_job_destroy(job);
    /* The table's default is the same number. */
    assert_string_equal(corral_option_find("node", "host_memory")->def, "\"256MiB\"");
    assert_int_equal(CORRAL_JOB_HOST_MEMORY, 256 << 20);
}

static void an_mlp_leaves_gpus_alone_and_a_transformer_takes_them(void **state)
{
    (void)state;
    static struct corral_inventory machine = {.gpu_count = 6};
    for (int i = 0; i < 6; i++) {
        machine.gpu[i].memory_total = UINT64_C(80) << 30;
    }
    machine.gpu[3].memory_total = UINT64_C(40) << 30;
    struct corral_job *job = load_with(cartpole, NULL, NULL, 0, &machine);
    assert_int_equal(job->node[0].kind, CORRAL_DEVICE_HOST);
    corral_job_destroy(job);
    static const char *const sets[] = {"model.kind=transformer", "model.layers=2",  "model.hidden_size=64",
                                       "model.heads=4",          "model.ffn=128",   "model.vocab=100",
                                       "trainer.backend=torch",  "engine.kind=vllm"};
    job = load_with(cartpole, NULL, sets, CORRAL_COUNT_OF(sets), &machine);
    assert_int_equal(job->node[0].kind, CORRAL_DEVICE_GPU);
    assert_int_equal(job->node[0].device_count, 6);
    assert_int_equal(job->node[0].device_memory, UINT64_C(40) << 30); /* the smallest */
    assert_int_equal(job->model.head_dim, 16);
    assert_int_equal(job->model.kv_heads, 4);
    corral_job_destroy(job);
}

static void names_one_worker_per_device_and_place(void **state)
{
    (void)state;
    struct corral_job *job = load_with(cartpole, NULL, NULL, 0, NULL);
    struct corral_job_worker w[16];
    assert_int_equal(corral_job_workers(job, w, 16), 9);
    assert_string_equal(w[1].name, "trainer-1");
    assert_int_equal(w[1].role_index, 1);
    assert_string_equal(w[2].name, "rollout-0");
    assert_string_equal(w[7].name, "rollout-5");
    assert_int_equal(w[7].device.index, 3); /* "local:2,4" then "local:3" */
    assert_int_equal(w[4].device.index, 4);
    assert_int_equal(w[8].role, CORRAL_ROLE_EVAL);
    assert_int_equal(corral_job_role_count(job, CORRAL_ROLE_ROLLOUT), 6);
    char text[64];
    assert_string_equal(corral_job_device_set(job, &job->partition[1], text, sizeof text), "local:2,4,3");
    assert_string_equal(corral_job_device_set(job, &job->partition[0], text, sizeof text), "local:0-1");
    assert_string_equal(corral_job_device_set(job, &job->partition[1], text, 12), "local:2…");
    corral_job_destroy(job);
}

static void set_overrides_the_file_with_or_without_quotes(void **state)
{
    (void)state;
    static const char *const sets[] = {"job.name=12",
                                       "partition.trainer.ceiling=128MiB",
                                       "stop.wall=\"30s\"",
                                       "algorithm.lr=1e-2",
                                       "observe.log=json",
                                       "model.hidden=[16]",
                                       "partition.eval.gpus=local:7",
                                       "env.args={ a = 1 }",
                                       "eval.greedy=false",
                                       "algorithm.lr=2e-2"};
    struct corral_job *job = load_with(cartpole, NULL, sets, CORRAL_COUNT_OF(sets), NULL);
    assert_string_equal(job->name, "12");
    assert_int_equal(job->partition[0].ceiling, 128 << 20);
    assert_int_equal(job->stop.wall_ns, UINT64_C(30000000000));
    assert_true(job->algorithm.lr == 2e-2); /* the last one */
    assert_int_equal(job->observe.log, CORRAL_LOG_OPTION_JSON);
    assert_int_equal(job->model.hidden_count, 1);
    assert_int_equal(job->partition[2].device[0].index, 7);
    assert_int_equal(job->node[0].device_count, 8);
    assert_string_equal(job->env.args, "{\"a\":1}");
    assert_false(job->eval.greedy);
    corral_job_destroy(job);
}

/* Everything but where values came from. */
static void assert_same_job(const struct corral_job *a, const struct corral_job *b)
{
    struct corral_error err;
    char *x = NULL, *y = NULL;
    check_ok(corral_job_text_of(a, &x, &err));
    check_ok(corral_job_text_of(b, &y, &err));
    assert_string_equal(x, y);
    free(x);
    free(y);
    struct corral_job *p = malloc(sizeof *p), *q = malloc(sizeof *q);
    memcpy(p, a, sizeof *p);
    memcpy(q, b, sizeof *q);
    p->origins = q->origins = NULL;
    memset(p->folder, 0, sizeof p->folder);
    memset(q->folder, 0, sizeof q->folder);
    p->node[0].as_found = q->node[0].as_found = false;
    assert_memory_equal(p, q, sizeof *p);
    free(p);
    free(q);
}

static void what_it_prints_parses_to_the_same_job(void **state)
{
    (void)state;
    static const char *const sets[] = {"algorithm.lr=0.1234567890123", "stop.wall=1.5h",
                                       "stream.buffer=12345678B", "observe.prometheus=\"127.0.0.1:0\"",
                                       "job.dir=\"a \\\" b\\\\ é\""};
    struct corral_error err;
    for (uint32_t count = 0; count <= CORRAL_COUNT_OF(sets); count += CORRAL_COUNT_OF(sets)) {
        struct corral_job *job = load_with(cartpole, "/jobs", sets, count, NULL);
        char *text = NULL;
        size_t bytes = 0;
        FILE *f = open_memstream(&text, &bytes);
        check_ok(corral_job_print(job, true, f, &err));
        fclose(f);
        struct corral_job *again = load_with(text, "/elsewhere", NULL, 0, NULL);
        assert_same_job(job, again);
        corral_job_destroy(again);
        corral_job_destroy(job);
        free(text);
    }
}

static void a_tenant_with_gpus_prints_and_parses_too(void **state)
{
    (void)state;
    const char *text =
        "schema = 1\n[job]\nname = \"t\"\n[[node]]\nname = \"n\"\ngpus = [4, 2, 7]\n"
        "gpu_memory = \"80GiB\"\ncpus = 3\naddress = \"10.0.0.1\"\n"
        "[[tenant]]\nname = \"j\"\ngpus = [\"n:4\", \"n:7\"]\nfloor = \"0B\"\nceiling = \"1.5GiB\"\n"
        "compute = 30\ncommand = [\"jupyter\", \"lab\", \"--ip=0.0.0.0\", \"\"]\nrestart = \"always\"\n"
        "environment = [\"A=b=c\", \"D=\"]\nfolder = \"work\"\n"
        "[memory]\nfences = [\"mps\", \"affinity\"]\n[partition.r]\nrole = \"rollout\"\ngpus = [\"n:2\", "
        "\"n:4\"]\n"
        "floor = \"1GiB\"\nshared = true\ncompute = 70\n[env]\nid = \"x\"\n[stop]\nwall = "
        "\"1s\"\n";
    struct corral_job *job = load_with(text, NULL, NULL, 0, NULL);
    struct corral_error err;
    const char *argv[CORRAL_JOB_ARGV_MAX + 1];
    /* After the partitions, and no worker. */
    assert_int_equal(job->partition_count, 2);
    const struct corral_job_partition *tenant = &job->partition[1];
    assert_int_equal(tenant->role, CORRAL_ROLE_TENANT);
    assert_int_equal(corral_job_workers(job, NULL, 0), 2);
    assert_int_equal(corral_job_role_count(job, CORRAL_ROLE_TENANT), 0);
    assert_int_equal(tenant->restart, CORRAL_RESTART_ALWAYS);
    assert_int_equal(corral_job_environment(tenant, argv), 2);
    assert_string_equal(argv[0], "A=b=c");
    assert_string_equal(argv[1], "D=");
    assert_string_equal(tenant->folder, "work");
    assert_int_equal(job->memory.fences, 1u << 2 | 1u << 8);
    assert_string_equal(corral_job_fence_name(8), "affinity");
    assert_null(corral_job_fence_name(9));
    assert_int_equal(corral_job_command(tenant, argv), 4);
    assert_string_equal(argv[2], "--ip=0.0.0.0");
    assert_string_equal(argv[3], "");
    assert_null(argv[4]);
    assert_int_equal(tenant->device[1].slot, 2);
    assert_int_equal(tenant->device[1].index, 7);
    assert_int_equal(corral_job_headroom(job, 0), UINT64_C(2) << 30);
    check_ok(corral_job_set_tenant_folder(job, "/elsewhere", &err)); /* it has one */
    assert_string_equal(tenant->folder, "work");
    char *printed = NULL;
    check_ok(corral_job_text_of(job, &printed, &err));
    struct corral_job *again = load_with(printed, NULL, NULL, 0, NULL);
    assert_same_job(job, again);
    corral_job_destroy(again);
    corral_job_destroy(job);
    free(printed);
}

static void says_where_each_value_came_from(void **state)
{
    (void)state;
    static const char *const sets[] = {"algorithm.gamma=0.5"};
    struct corral_job *job = load_with(cartpole, NULL, sets, 1, NULL);
    struct corral_error err;
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    check_ok(corral_job_print(job, true, f, &err));
    fclose(f);
    assert_non_null(strstr(text, "seed = 7                                         # j.toml:4\n"));
    assert_non_null(
        strstr(text, "gamma = 0.5                                      # --set algorithm.gamma=0.5\n"));
    assert_non_null(strstr(text, "lambda = 0.95                                    # default\n"));
    assert_non_null(strstr(text, "host_devices = 6                                 # this machine\n"));
    assert_non_null(strstr(text, "clip_final = 0.2                                 # follows from others\n"));
    assert_non_null(strstr(text, "# headroom: 16MiB on host devices, 2GiB on GPUs\n"));
    free(text);
    corral_job_destroy(job);
}

static void passes_the_algorithm_on(void **state)
{
    (void)state;
    static const char *const sets[] = {"algorithm.kind=vtrace", "algorithm.normalise_obs=true",
                                       "model.activation=relu"};
    struct corral_job *job = load_with(cartpole, NULL, sets, 3, NULL);
    struct corral_ppo_config ppo;
    corral_job_ppo_config(job, &ppo);
    assert_int_equal(ppo.advantage, CORRAL_ADVANTAGE_VTRACE);
    assert_true(ppo.lr == 1e-3 && ppo.lr_final == 0 && ppo.lambda == 0.95 && ppo.seed == 7);
    struct corral_policy_spec spec;
    struct corral_action_spec action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}};
    corral_job_policy_spec(job, 4, &action, &spec);
    assert_int_equal(spec.obs_dim, 4);
    assert_int_equal(spec.layers, 2);
    assert_int_equal(spec.hidden[1], 32);
    assert_int_equal(spec.activation, CORRAL_RELU);
    assert_true(spec.normalise_obs);
    corral_job_destroy(job);
}

static void loads_from_a_file_and_resolves_against_its_folder(void **state)
{
    (void)state;
    char folder[] = "/tmp/corral-job-XXXXXX";
    char path[128], expected[160];
    struct corral_error err;
    struct corral_job *job = NULL;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/job.toml", folder);
    snprintf(expected, sizeof expected, "%s/envs/x.so", folder);
    check_ok(corral_file_write_atomic(path, cartpole, strlen(cartpole), 0600, false, &err));
    check_ok(corral_job_load(path, NULL, 0, &job, &err));
    assert_string_equal(job->env.library, expected);
    assert_string_equal(job->path, path);
    corral_job_destroy(job);
    check_ok(corral_remove_tree(folder, &err));
    job = NULL;
    assert_int_not_equal(corral_job_load(path, NULL, 0, &job, &err), CORRAL_OK);
    assert_null(job);
    assert_non_null(strstr(err.text, path));
}

static size_t field_bytes(enum corral_option_type type)
{
    switch (type) {
    case CORRAL_OPTION_U32:
    case CORRAL_OPTION_ENUM:
    case CORRAL_OPTION_GPUS:
        return 4;
    case CORRAL_OPTION_U64:
    case CORRAL_OPTION_F64:
    case CORRAL_OPTION_BYTES:
    case CORRAL_OPTION_DURATION:
        return 8;
    case CORRAL_OPTION_BOOL:
        return sizeof(bool);
    case CORRAL_OPTION_SET:
        return 4;
    default:
        return 0; /* several fields or a text of its own size */
    }
}

static void every_row_of_the_table_is_sound(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        size_t bytes = field_bytes(o->type);
        if ((bytes != 0 && o->size != bytes) || o->help == NULL || o->help[0] == '\0' ||
            (o->section[0] != '\0' && corral_option_section_find(o->section) == NULL) ||
            (o->required + (o->def != NULL) + (o->unset != NULL)) != 1 ||
            ((o->type == CORRAL_OPTION_ENUM || o->type == CORRAL_OPTION_SET) != (o->choices != NULL)) ||
            corral_option_find(o->section, o->name) != o) {
            fail_msg("option %s.%s", o->section, o->name);
        }
    }
}

static void the_reference_lists_every_option(void **state)
{
    (void)state;
    struct corral_error err;
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    check_ok(corral_job_reference(f, &err));
    fclose(f);
    for (uint32_t i = 0; i < corral_option_count; i++) {
        char row[64];
        snprintf(row, sizeof row, "\n| `%s` | ", corral_options[i].name);
        assert_non_null(strstr(text, row));
    }
    assert_non_null(strstr(text, "| `overcommit` | number | `1.0` | 1 … 1.3 | "));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resolves_defaults_units_and_paths),
        cmocka_unit_test(a_job_without_nodes_gets_host_devices_here),
        cmocka_unit_test(an_mlp_leaves_gpus_alone_and_a_transformer_takes_them),
        cmocka_unit_test(names_one_worker_per_device_and_place),
        cmocka_unit_test(set_overrides_the_file_with_or_without_quotes),
        cmocka_unit_test(what_it_prints_parses_to_the_same_job),
        cmocka_unit_test(a_tenant_with_gpus_prints_and_parses_too),
        cmocka_unit_test(says_where_each_value_came_from),
        cmocka_unit_test(passes_the_algorithm_on),
        cmocka_unit_test(loads_from_a_file_and_resolves_against_its_folder),
        cmocka_unit_test(every_row_of_the_table_is_sound),
        cmocka_unit_test(the_reference_lists_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
