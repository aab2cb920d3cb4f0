/* Golden numbers: published shapes of 9B-class models on one device of 150,754,820,096 bytes, counted by hand in advance. */
#include "orchestrator/plan/memory.h"
#include "orchestrator/plan/plan.h"
#include "tests/check.h"
#include <stdlib.h>
#include <string.h>

static struct corral_job *load(const char *text, const char *const *sets, uint32_t count)
{
    struct corral_error err;
    struct corral_job *job = NULL;
    const struct corral_job_text source = {
        .name = "j.toml", .text = text, .bytes = strlen(text), .sets = sets, .set_count = count};
    check_ok(corral_job_load_text(&source, &job, &err));
    return job;
}

/* ---- language models ---- */

/* One device holds the trainer, by LoRA, and the engine. The engine's ceiling is all that the trainer leaves. */
static const char *const one_device =
    "schema = 1\n[job]\nname = \"golden\"\n[[node]]\nname = \"a\"\ngpus = 1\ngpu_memory = \"150754820096B\"\n"
    "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0\"]\nfloor = \"31887943168B\"\nshared = "
    "true\ncompute = 50\n"
    "[partition.rollout]\nrole = \"rollout\"\ngpus = [\"a:0\"]\nfloor = \"0B\"\nceiling = "
    "\"118866876928B\"\nshared = "
    "true\ncompute = 50\n"
    "[model]\nkind = \"transformer\"\nlayers = 48\nhidden_size = 4096\nheads = 32\nkv_heads = 4\nffn = "
    "11008\n"
    "vocab = 64000\ncontext = 2048\n"
    "[trainer]\nbackend = \"torch\"\nmethod = \"lora\"\n[engine]\nkind = \"vllm\"\nkv_fraction = 1.0\n"
    "[stop]\nwall = \"1h\"\n";

static uint64_t item_bytes(const struct corral_plan_memory *m, const char *what)
{
    for (uint32_t i = 0; i < m->item_count; i++) {
        if (strncmp(m->item[i].what, what, strlen(what)) == 0) {
            return m->item[i].bytes;
        }
    }
    fail_msg("no item %s", what);
    return 0;
}

static void counts_the_parameters_of_published_models(void **state)
{
    (void)state;
    static const struct {
        const char *sets[10];
        uint64_t params, kv, lora;
    } models[] = {
        /* Yi-1.5-9B */
        {{"model.layers=48"}, UINT64_C(8829407232), 98304, 108920832},
        /* Qwen3-8B */
        {{"model.layers=36", "model.kv_heads=8", "model.ffn=12288", "model.vocab=151936",
          "model.qk_norm=true"},
         UINT64_C(8190735360),
         147456,
         87293952},
        /* Qwen3-0.6B: head_dim is its own number */
        {{"model.layers=28", "model.hidden_size=1024", "model.heads=16", "model.kv_heads=8",
          "model.head_dim=128", "model.ffn=3072", "model.vocab=151936", "model.qk_norm=true",
          "model.tied=true"},
         596049920,
         114688,
         0},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(models); i++) {
        uint32_t sets = 0;
        while (sets < 10 && models[i].sets[sets] != NULL) {
            sets++;
        }
        struct corral_job *job = load(one_device, models[i].sets, sets);
        assert_int_equal(corral_plan_params(job), models[i].params);
        assert_int_equal(corral_plan_kv_bytes_per_token(job), models[i].kv);
        if (models[i].lora != 0) {
            assert_int_equal(corral_plan_lora_params(job), models[i].lora);
        }
        corral_job_destroy(job);
    }
}

static void lora_and_rollout_on_one_device_match_the_golden_budget(void **state)
{
    (void)state;
    struct corral_job *job = load(one_device, (const char *[]){"memory.headroom=0B"}, 1);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, NULL, NULL, &plan, &err));
    const struct corral_plan_memory *t = &plan->memory[0], *r = &plan->memory[1];
    assert_int_equal(item_bytes(t, "frozen base"), UINT64_C(17658814464));
    assert_int_equal(item_bytes(t, "adapters, rank 32"), UINT64_C(1742733312));
    assert_int_equal(item_bytes(t, "activation checkpoints"), UINT64_C(6442450944));
    assert_int_equal(item_bytes(t, "one layer again"), UINT64_C(4143972352));
    assert_int_equal(item_bytes(t, "logits"), UINT64_C(1048576000));
    assert_int_equal(t->need, UINT64_C(31287943168) + CORRAL_PLAN_CONTEXT_BYTES);
    assert_int_equal(r->need, UINT64_C(19196026880) + CORRAL_PLAN_CONTEXT_BYTES);
    assert_int_equal(r->kv_bytes, UINT64_C(99070850048));
    assert_int_equal(r->kv_tokens, 1007800);
    assert_int_equal(r->kv_sequences, 492);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void full_training_of_qwen3_8b_counts_16_bytes_a_parameter(void **state)
{
    (void)state;
    const char *sets[] = {"model.layers=36",    "model.kv_heads=8",   "model.ffn=12288",
                          "model.vocab=151936", "model.qk_norm=true", "trainer.method=full"};
    struct corral_job *job = load(one_device, sets, CORRAL_COUNT_OF(sets));
    struct corral_error err;
    struct corral_plan_memory m = {0};
    assert_int_equal(corral_plan_state_bytes_per_param(job), 16);
    check_ok(corral_plan_trainer_memory(job, CORRAL_TRAIN_FULL, 1, &m, &err));
    uint64_t state_bytes = m.item[0].bytes + m.item[1].bytes + m.item[2].bytes;
    assert_int_equal(state_bytes, UINT64_C(131051765760));
    assert_int_equal(item_bytes(&m, "one layer again"), UINT64_C(4496293888));
    assert_int_equal(item_bytes(&m, "activation checkpoints"), UINT64_C(4831838208));
    check_ok(corral_plan_trainer_memory(job, CORRAL_TRAIN_FULL, 4, &m, &err));
    assert_int_equal(m.item[0].bytes + m.item[1].bytes + m.item[2].bytes, state_bytes / 4);
    corral_job_destroy(job);
    const char *f32[] = {"trainer.gradients=f32", "trainer.method=full"};
    job = load(one_device, f32, 2);
    assert_int_equal(corral_plan_state_bytes_per_param(job), 18);
    corral_job_destroy(job);
}

static void a_shape_too_large_to_count_is_refused(void **state)
{
    (void)state;
    const char *sets[] = {"model.layers=4096", "model.hidden_size=1048576", "model.ffn=16777216",
                          "trainer.tokens_per_gpu=16777216"};
    struct corral_job *job = load(one_device, sets, CORRAL_COUNT_OF(sets));
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_status(corral_plan_build(job, NULL, NULL, &plan, &err), CORRAL_INVALID);
    assert_null(plan);
    corral_job_destroy(job);
}

/* ---- refusals ---- */

static const char *const two_trainers =
    "schema = 1\n[job]\nname = \"nine\"\n[[node]]\nname = \"a\"\ngpus = 4\ngpu_memory = \"141GiB\"\n"
    "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0-1\"]\nfloor = \"70GiB\"\n"
    "[partition.rollout]\nrole = \"rollout\"\ngpus = [\"a:2-3\"]\nfloor = \"72GiB\"\n"
    "[model]\nkind = \"transformer\"\nlayers = 48\nhidden_size = 4096\nheads = 32\nkv_heads = 4\nffn = "
    "11008\n"
    "vocab = 64000\n[trainer]\nbackend = \"torch\"\n[engine]\nkind = \"vllm\"\n[stop]\nwall = \"1h\"\n";

static const char *const small = "schema = 1\n[job]\nname = \"small\"\n[[node]]\nname = \"a\"\nhost_devices "
                                 "= 4\nhost_memory = \"100MiB\"\n"
                                 "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0-1\"]\nfloor = "
                                 "\"48MiB\"\nceiling = \"60MiB\"\nshared = true\ncompute = 50\n"
                                 "[partition.rollout]\nrole = \"rollout\"\ngpus = [\"a:1-3\"]\nfloor = "
                                 "\"32MiB\"\nceiling = \"40MiB\"\nshared = true\ncompute = 50\n"
                                 "[env]\nid = \"CartPole-v1\"\n[stop]\nwall = \"1h\"\n";

static void refuse(const char *text, const char *const *sets, uint32_t count,
                   const struct corral_inventory *machine, const struct corral_plan_env *env,
                   const char *expected)
{
    struct corral_job *job = load(text, sets, count);
    struct corral_plan *plan = NULL;
    struct corral_error err = {.text = "no error"};
    enum corral_status status = corral_plan_build(job, machine, env, &plan, &err);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
    assert_string_equal(err.text, expected);
    assert_int_equal(status, CORRAL_INVALID);
}

#define SETS(...) (const char *[]){__VA_ARGS__}, CORRAL_COUNT_OF(((const char *[]){__VA_ARGS__}))

static void refuses_a_9b_full_trainer_on_two_quotas_of_70_gib_and_says_what_fits(void **state)
{
    (void)state;
    refuse(two_trainers, NULL, 0, NULL, NULL,
           "partition.trainer: full-parameter training of 8.83B parameters on 2 devices needs 77.9 GiB on "
           "each; the "
           "ceiling is 70 GiB. What fits: 3 trainer devices, a ceiling of at least 78GiB, or trainer.method "
           "= \"lora\" "
           "(29.7 GiB)");
    refuse(two_trainers, SETS("trainer.method=lora", "partition.trainer.floor=20GiB"), NULL, NULL,
           "partition.trainer: LoRA training of 8.83B parameters on 2 devices needs 29.7 GiB on each; the "
           "ceiling is 20 "
           "GiB. What fits: a ceiling of at least 30GiB");
}

static void refuses_an_engine_without_room_for_one_sequence(void **state)
{
    (void)state;
    refuse(two_trainers, SETS("trainer.method=lora", "partition.rollout.floor=18GiB"), NULL, NULL,
           "partition.rollout: an engine needs 18.4 GiB on each device before any KV cache, and 4096 tokens "
           "of it for "
           "one sequence; the ceiling is 18 GiB. What fits: a ceiling of at least 19GiB, or "
           "engine.tensor_parallel = 2");
    refuse(two_trainers, SETS("engine.tensor_parallel=3"), NULL, NULL,
           "partition.rollout has 2 devices, not a multiple of engine.tensor_parallel (3)");
}

static void refuses_floors_and_ceilings_that_do_not_fit_the_device(void **state)
{
    (void)state;
    refuse(small, SETS("partition.trainer.floor=60MiB"), NULL, NULL,
           "device a:1: floors add up to 92 MiB, which is 8 MiB more than fits; at most 84 MiB do");
    refuse(small, SETS("partition.trainer.ceiling=61MiB"), NULL, NULL,
           "device a:1: ceilings add up to 101 MiB, which is 1 MiB more than overcommit 1.00 allows; at most "
           "100 MiB do");
}

static void refuses_a_job_without_trainer_or_rollout(void **state)
{
    (void)state;
    refuse(small, SETS("partition.trainer.role=rollout"), NULL, NULL,
           "no partition has role = \"train\"; a job needs one");
    refuse(small, SETS("partition.rollout.role=eval"), NULL, NULL,
           "no partition has role = \"rollout\"; a job needs one");
}

static void refuses_more_cpus_or_memory_than_this_machine_has(void **state)
{
    (void)state;
    static struct corral_inventory machine = {.cpu_count = 6, .memory_total = UINT64_C(399) << 20};
    refuse(small, SETS("partition.trainer.floor=1MiB"), &machine, NULL,
           "host devices on this machine add up to 400 MiB; it has 399 MiB");
    machine.memory_total = UINT64_C(1) << 30;
    refuse(small, SETS("node.a.cpus=2"), &machine, NULL,
           "the devices of this machine's nodes ask for 8 CPUs; it has 6: lower node.cpus, or leave it out "
           "for equal "
           "shares");
}

static void refuses_an_mlp_whose_ceiling_cannot_hold_it(void **state)
{
    (void)state;
    const struct corral_plan_env env = {
        .obs_dim = 4,
        .agents = 1,
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}}};
    refuse(small, SETS("stream.buffer=61MiB"), NULL, &env,
           "partition.trainer: its workers need 61.3 MiB on each device; the ceiling is 60 MiB. What fits: a "
           "ceiling of "
           "at least 62MiB");
}

/* ---- what a good plan holds ---- */

static void counts_an_mlp_exactly(void **state)
{
    (void)state;
    struct corral_job *job = load(small, NULL, 0);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    const struct corral_plan_env env = {
        .obs_dim = 4,
        .agents = 1,
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}}};
    check_ok(corral_plan_build(job, NULL, &env, &plan, &err));
    /* Two towers 4-32-32, heads of 2 and 1. */
    uint64_t tower = 4 * 32 + 32 + 32 * 32 + 32;
    assert_int_equal(plan->params, 2 * tower + 32 * 2 + 2 + 32 + 1);
    const struct corral_plan_memory *m = &plan->memory[0];
    assert_int_equal(item_bytes(m, "adam m and v"), 2 * item_bytes(m, "gradients"));
    assert_true(item_bytes(m, "gradients") >= 4 * plan->params);
    assert_int_equal(item_bytes(m, "trajectory buffer"), 8 << 20);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void the_ledger_of_a_node_follows_the_job(void **state)
{
    (void)state;
    struct corral_job *job = load(small, NULL, 0);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, NULL, NULL, &plan, &err));
    struct corral_ledger *l = malloc(sizeof *l);
    check_ok(corral_plan_ledger(plan, 0, l, &err));
    assert_int_equal(l->device_count, 4);
    assert_int_equal(l->role_count, 2);
    assert_string_equal(l->role_name[1], "rollout");
    assert_string_equal(l->device[3].name, "a:3");
    assert_int_equal(l->device[3].physical, 100 << 20);
    assert_int_equal(l->device[3].headroom, 16 << 20);
    assert_int_equal(l->device[1].role[0].floor, 48 << 20);
    assert_int_equal(l->device[1].role[1].ceiling, 40 << 20);
    assert_int_equal(l->device[0].role[1].ceiling, 0);
    assert_int_equal(l->device[3].role[0].ceiling, 0);
    free(l);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void cuts_the_cpus_into_disjoint_runs(void **state)
{
    (void)state;
    static struct corral_inventory machine = {.cpu_count = 10};
    for (uint32_t i = 0; i < 10; i++) {
        machine.cpu[i] = 9 - i;
    }
    struct corral_job *job = load(small, NULL, 0);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, &machine, NULL, &plan, &err));
    assert_int_equal(plan->worker_count, 5);
    /* Four devices in ten CPUs: 2, 3, 2, 3; the two workers on a:1 share. */
    const uint32_t first[] = {0, 2, 2, 5, 7}, count[] = {2, 3, 3, 2, 3};
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(plan->worker[i].cpu_first, first[i]);
        assert_int_equal(plan->worker[i].cpu_count, count[i]);
    }
    assert_int_equal(plan->cpu[0], 9);
    assert_false(plan->cpus_shared);
    corral_plan_destroy(plan);

    machine.cpu_count = 3; /* fewer than devices: everybody gets all of them */
    check_ok(corral_plan_build(job, &machine, NULL, &plan, &err));
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(plan->worker[i].cpu_first, 0);
        assert_int_equal(plan->worker[i].cpu_count, 3);
    }
    assert_true(plan->cpus_shared);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void the_table_and_the_json_show_the_same_plan(void **state)
{
    (void)state;
    struct corral_job *job = load(small, NULL, 0);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, NULL, NULL, &plan, &err));
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    check_ok(corral_plan_print(plan, f, &err));
    fclose(f);
    assert_non_null(strstr(text, "small  1 node, 4 host devices, 5 workers\n"));
    assert_non_null(strstr(
        text,
        "trainer      train    a:0-1                       2       48 MiB       60 MiB      50% shared\n"));
    assert_non_null(strstr(text, "rollout-2            a:3            any\n"));
    free(text);
    json_t *json = corral_plan_json(plan);
    assert_non_null(json);
    assert_int_equal(json_array_size(json_object_get(json, "workers")), 5);
    const json_t *trainer = json_array_get(json_object_get(json, "partitions"), 0);
    assert_int_equal(json_integer_value(json_object_get(trainer, "ceiling")), 60 << 20);
    json_decref(json);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void the_12_gpu_configuration_plans_anywhere(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_job *job = NULL;
    struct corral_plan *plan = NULL;
    check_ok(corral_job_load(CORRAL_CONFIGS "/12gpu-9b.toml", NULL, 0, &job, &err));
    check_ok(corral_plan_build(job, NULL, NULL, &plan, &err));
    assert_int_equal(plan->worker_count, 12);
    assert_int_equal(plan->params, UINT64_C(8829407232));
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

/* ---- tenants, GPUs, peaks ---- */

#define WITH_TENANT                                                                                 \
    "schema = 1\n[job]\nname = \"small\"\n[[node]]\nname = \"a\"\nhost_devices = 3\nhost_memory = " \
    "\"100MiB\"\n"                                                                                  \
    "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0\"]\nfloor = \"48MiB\"\nceiling = "        \
    "\"60MiB\"\nshared = true\n"                                                                    \
    "compute = 50\n[partition.rollout]\nrole = \"rollout\"\ngpus = [\"a:1\"]\nfloor = \"32MiB\"\n"  \
    "[[tenant]]\nname = \"notebook\"\ngpus = [\"a:2\", \"a:0\"]\nfloor = \"30MiB\"\nceiling = "     \
    "\"40MiB\"\ncompute = 20\n"                                                                     \
    "command = [\"jupyter\", \"lab\"]\n[env]\nid = \"CartPole-v1\"\n[stop]\nwall = \"1h\"\n"

static void a_tenant_is_a_role_of_the_ledger_and_one_process_on_its_devices_cpus(void **state)
{
    (void)state;
    static struct corral_inventory machine = {.cpu_count = 6, .cpu = {0, 1, 2, 3, 4, 5}};
    struct corral_job *job = load(WITH_TENANT, NULL, 0);
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, &machine, NULL, &plan, &err));
    assert_int_equal(plan->worker_count, 2);
    assert_int_equal(plan->tenant_count, 1);
    assert_int_equal(plan->tenant[0].partition, 2);
    /* Two CPUs for each device; the tenant's are those of a:2 and a:0. */
    assert_int_equal(plan->tenant[0].cpu_count[0], 2);
    assert_int_equal(plan->tenant[0].cpu_first[0], 4);
    assert_int_equal(plan->tenant[0].cpu_first[1], plan->worker[0].cpu_first);
    struct corral_ledger *l = malloc(corral_ledger_bytes());
    check_ok(corral_plan_ledger(plan, 0, l, &err));
    assert_string_equal(l->role_name[2], "notebook");
    assert_int_equal(l->device[0].role[2].floor, 30 << 20);
    assert_int_equal(l->device[1].role[2].ceiling, 0);
    assert_int_equal(l->device[2].role[2].ceiling, 40 << 20);
    assert_int_equal(l->device[0].overcommit_ppm, 1000000);
    free(l);
    json_t *json = corral_plan_json(plan);
    const json_t *tenant = json_array_get(json_object_get(json, "tenants"), 0);
    assert_string_equal(json_string_value(json_object_get(tenant, "name")), "notebook");
    assert_string_equal(json_string_value(json_array_get(json_object_get(tenant, "command"), 1)), "lab");
    json_decref(json);
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void a_tenants_floor_and_ceiling_count_like_anybodys(void **state)
{
    (void)state;
    refuse(WITH_TENANT, SETS("tenant.notebook.floor=40MiB"), NULL, NULL,
           "device a:0: floors add up to 88 MiB, which is 4 MiB more than fits; at most 84 MiB do");
    refuse(WITH_TENANT, SETS("tenant.notebook.ceiling=41MiB"), NULL, NULL,
           "device a:0: ceilings add up to 101 MiB, which is 1 MiB more than overcommit 1.00 allows; at most "
           "100 MiB do");
    struct corral_job *job =
        load(WITH_TENANT, SETS("tenant.notebook.ceiling=65MiB", "memory.overcommit=1.25"));
    struct corral_plan *plan = NULL;
    struct corral_error err;
    check_ok(corral_plan_build(job, NULL, NULL, &plan, &err));
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

static void refuses_a_declared_peak_above_the_ceiling(void **state)
{
    (void)state;
    refuse(WITH_TENANT, SETS("trainer.peak=61MiB"), NULL, NULL,
           "partition.trainer: trainer.peak of 61MiB for each of 1 process on a device is above the ceiling, "
           "60MiB");
    refuse(WITH_TENANT, SETS("trainer.peak=31MiB", "partition.trainer.workers_per_device=2"), NULL, NULL,
           "partition.trainer: trainer.peak of 31MiB for each of 2 processes on a device is above the "
           "ceiling, 60MiB");
}

static void a_process_on_a_gpu_needs_its_context(void **state)
{
    (void)state;
    const struct corral_plan_env env = {
        .obs_dim = 4,
        .agents = 1,
        .action = {.kind = CORRAL_ACTION_DISCRETE, .components = 1, .choices = {2}}};
    struct corral_error err;
    struct corral_job *job = NULL;
    struct corral_plan *plan = NULL;
    check_ok(corral_job_load(CORRAL_CONFIGS "/12gpu-small.toml", NULL, 0, &job, &err));
    check_ok(corral_plan_build(job, NULL, &env, &plan, &err));
    assert_int_equal(plan->worker_count, 12);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(item_bytes(&plan->memory[i], "driver contexts"), CORRAL_PLAN_CONTEXT_BYTES);
        assert_true(plan->memory[i].need <= job->partition[i].floor);
    }
    corral_plan_destroy(plan);
    corral_job_destroy(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_the_parameters_of_published_models),
        cmocka_unit_test(lora_and_rollout_on_one_device_match_the_golden_budget),
        cmocka_unit_test(full_training_of_qwen3_8b_counts_16_bytes_a_parameter),
        cmocka_unit_test(a_shape_too_large_to_count_is_refused),
        cmocka_unit_test(refuses_a_9b_full_trainer_on_two_quotas_of_70_gib_and_says_what_fits),
        cmocka_unit_test(refuses_an_engine_without_room_for_one_sequence),
        cmocka_unit_test(refuses_floors_and_ceilings_that_do_not_fit_the_device),
        cmocka_unit_test(refuses_a_job_without_trainer_or_rollout),
        cmocka_unit_test(refuses_more_cpus_or_memory_than_this_machine_has),
        cmocka_unit_test(refuses_an_mlp_whose_ceiling_cannot_hold_it),
        cmocka_unit_test(the_12_gpu_configuration_plans_anywhere),
        cmocka_unit_test(counts_an_mlp_exactly),
        cmocka_unit_test(the_ledger_of_a_node_follows_the_job),
        cmocka_unit_test(cuts_the_cpus_into_disjoint_runs),
        cmocka_unit_test(a_tenant_is_a_role_of_the_ledger_and_one_process_on_its_devices_cpus),
        cmocka_unit_test(a_tenants_floor_and_ceiling_count_like_anybodys),
        cmocka_unit_test(refuses_a_declared_peak_above_the_ceiling),
        cmocka_unit_test(a_process_on_a_gpu_needs_its_context),
        cmocka_unit_test(the_table_and_the_json_show_the_same_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
