/* Every mistake is one error with its exact place and words. */
#include "orchestrator/job/job.h"
#include "tests/check.h"
#include <string.h>

/* A job that loads; each case replaces one part of it, so lines are easy to count. */
#define HEAD "schema = 1\n[job]\nname = \"t\"\n"                                                /* 1-3 */
#define NODE "[[node]]\nname = \"a\"\nhost_devices = 8\n"                                       /* 4-6 */
#define TRAIN "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0-3\"]\nfloor = \"64MiB\"\n"  /* 7-10 */
#define ROLL "[partition.rollout]\nrole = \"rollout\"\ngpus = [\"a:4-7\"]\nfloor = \"64MiB\"\n" /* 11-14 */
#define ENV "[env]\nid = \"CartPole-v1\"\n"                                                     /* 15-16 */
#define STOP "[stop]\nenv_steps = 1000\n"                                                       /* 17-18 */
#define TENANT "[[tenant]]\nname = \"t\"\ngpus = [\"a:7\"]\n"                                   /* 19-21 */
#define SHARED "[partition.x]\nrole = \"train\"\ngpus = [\"a:0\"]\nfloor = \"1MiB\"\nshared = true\n"
#define GOOD HEAD NODE TRAIN ROLL ENV STOP

struct error_case {
    const char *text;
    const char *error; /* without "j.toml:" */
};

static const struct error_case cases[] = {
    /* names */
    {HEAD NODE "[partion.trainer]\nrole = \"train\"\n",
     "7:2: error: unknown key `partion.trainer`; did you mean `partition.trainer`?"},
    {GOOD "[evall]\nevery = 1\n", "19:2: error: unknown key `evall`; did you mean `eval`?"},
    {GOOD "[quux]\nevery = 1\n", "19:2: error: unknown key `quux`"},
    {"shema = 1\n", "1:1: error: unknown key `shema`; did you mean `schema`?"},
    {GOOD "[algorithm]\ngama = 0.9\n",
     "20:1: error: unknown key `algorithm.gama`; did you mean `algorithm.gamma`?"},
    {GOOD "[trainer]\nlr = 0.1\n", "20:1: error: unknown key `trainer.lr`; did you mean `algorithm.lr`?"},
    {HEAD "[[node]]\nnam = \"a\"\n", "5:1: error: unknown key `node.nam`; did you mean `node.name`?"},
    {HEAD NODE "[partition.trainer]\nrole = \"train\"\nflor = \"1MiB\"\n",
     "9:1: error: unknown key `partition.trainer.flor`; did you mean `partition.trainer.floor`?"},
    {GOOD "[weights]\nxyzzy = 1\n", "20:1: error: unknown key `weights.xyzzy`"},
    {GOOD "[weights]\ntransport = \"nccl\"\n", "20:13: error: `weights.transport` = \"nccl\" moves GPU "
                                               "memory, and a node's copy of this job's weights is in "
                                               "host memory; write \"auto\", \"tcp\" or \"rdma\""},
    {GOOD "[weights]\ndelta = true\n", "20:9: error: `weights.delta` = true has no use in a job of one node, "
                                       "where versions are written into the node's memory and not sent"},
    {GOOD "[weights]\nanchor_every = 4\n",
     "20:16: error: `weights.anchor_every` is for deltas; write `delta = true` beside it"},
    {GOOD "[weights]\nanchor_every = 1\n",
     "20:16: error: `weights.anchor_every` must be between 2 and 1000000, not 1"},
    {GOOD "[weights]\ncast = \"int4\"\n",
     "20:8: error: `weights.cast` must be one of \"none\", \"bf16\", \"f16\", \"fp8\", not \"int4\""},
    /* types */
    {HEAD "seed = \"x\"\n", "4:8: error: `job.seed` must be an integer, not a string"},
    {HEAD "seed = 1.5\n", "4:8: error: `job.seed` must be an integer, not a float"},
    {"schema = 1\n[job]\nname = 3\n", "3:8: error: `job.name` must be a string, not an integer"},
    {GOOD "[eval]\ngreedy = 1\n", "20:10: error: `eval.greedy` must be true or false, not an integer"},
    {GOOD "[algorithm]\ngamma = true\n", "20:9: error: `algorithm.gamma` must be a number, not a boolean"},
    {GOOD "[stream]\nbuffer = 8\n",
     "20:10: error: `stream.buffer` must be a size such as \"64MiB\", not an integer"},
    {GOOD "[fault]\nwindow = 8\n",
     "20:10: error: `fault.window` must be a duration such as \"30s\", not an integer"},
    {GOOD "[model]\nhidden = 8\n", "20:10: error: `model.hidden` must be a list of integers, not an integer"},
    {GOOD "[checkpoint]\nevery = 2020-01-01\n",
     "20:9: error: `checkpoint.every` must be an integer, not a date or time"},
    {HEAD NODE "[partition.trainer]\nrole = \"train\"\ngpus = \"a:0\"\n",
     "9:8: error: `partition.trainer.gpus` must be a list such as [\"a:0-3\"], not a string"},
    {HEAD NODE "[partition.trainer]\nrole = \"train\"\ngpus = [\"a:0\", 1]\n",
     "9:16: error: `partition.trainer.gpus` must be a list of strings such as [\"a:0-3\"], not an integer"},
    {HEAD "[[node]]\nname = \"a\"\ngpus = \"8\"\n",
     "6:8: error: `node.gpus` must be a count or a list of indices, not a string"},
    {"schema = 1\njob = 3\n", "2:1: error: `job` must be a table: write [job]"},
    {"schema = 1\npartition = 3\n", "2:1: error: `partition` must be a table: write [partition.NAME]"},
    {"schema = 1\n[partition]\ntrainer = 3\n",
     "3:1: error: `partition.trainer` must be a table: write [partition.NAME]"},
    {"schema = 1\n[node]\nname = \"a\"\n", "2:2: error: `node` must be written as [[node]]"},
    {GOOD "args = 3\n", "19:1: error: unknown key `stop.args`; did you mean `env.args`?"},
    {HEAD NODE TRAIN ROLL "[env]\nid = \"x\"\nargs = 3\n",
     "17:8: error: `env.args` must be a table such as { size = 4 }, not an integer"},
    {HEAD NODE TRAIN ROLL "[env]\nid = \"x\"\nargs = { a = nan }\n",
     "17:8: error: `env.args` holds a value that JSON cannot: a date, a time, nan or inf"},
    /* units and ranges */
    {"schema = 2\n", "1:10: error: `schema` must be 1, not 2"},
    {HEAD "seed = -1\n", "4:8: error: `job.seed` must be at least 0, not -1"},
    {GOOD "[memory]\novercommit = 2\n", "20:14: error: `memory.overcommit` must be between 1 and 1.3, not 2"},
    {GOOD "[memory]\novercommit = nan\n",
     "20:14: error: `memory.overcommit` must be between 1 and 1.3, not nan"},
    {GOOD "[stream]\nbuffer = \"8\"\n", "20:10: error: `stream.buffer`: size `8` has no unit; write it like "
                                        "\"64MiB\" (units: B, KiB, MiB, GiB, TiB, KB, "
                                        "MB, GB, TB)"},
    {GOOD "[stream]\nbuffer = \"1KiB\"\n",
     "20:10: error: `stream.buffer` must be between 4KiB and 1TB, not 1KiB"},
    {GOOD "[fault]\nwindow = \"5parsecs\"\n",
     "20:10: error: `fault.window`: unknown unit `parsecs` in `5parsecs`; the units are ns, us, ms, s, m, h"},
    {GOOD "[engine]\nkind = \"vlm\"\n", "20:8: error: `engine.kind` must be one of \"builtin\", \"vllm\", "
                                        "\"sglang\", \"llamacpp\", not \"vlm\"; did you "
                                        "mean \"vllm\"?"},
    {GOOD "[model]\nhidden = []\n", "20:10: error: `model.hidden` must have 1 to 4 layers, not 0"},
    {GOOD "[model]\nhidden = [8, 0]\n", "20:10: error: `model.hidden` must be between 1 and 1024, not 0"},
    {"schema = 1\n[job]\nname = \"No Good\"\n",
     "3:8: error: `job.name` must be 1 to 24 lower-case letters, digits and dashes, not \"No Good\""},
    {HEAD NODE "[partition.\"a b\"]\nrole = \"train\"\n",
     "7:12: error: partition name \"a b\" must be 1 to 24 lower-case letters, digits and dashes"},
    {HEAD "[[node]]\nname = \"a\"\ngpus = [0, 1, 0]\n", "6:8: error: `node.gpus` lists GPU 0 twice"},
    /* missing */
    {"", "1:1: error: missing key `schema`"},
    {"schema = 1\n", "1:1: error: missing key `job.name`"},
    {"schema = 1\n[job]\nseed = 2\n", "2:1: error: missing key `job.name`"},
    {HEAD "[[node]]\nhost_devices = 1\n", "4:1: error: missing key `node.name`"},
    {HEAD NODE "[partition.trainer]\ngpus = [\"a:0\"]\n",
     "7:12: error: missing key `partition.trainer.role`"},
    {HEAD ENV STOP, "1:1: error: no [partition.NAME]: nothing would run"},
    {HEAD NODE TRAIN ROLL STOP, "1:1: error: missing key `env.id`"},
    {HEAD NODE TRAIN ROLL ENV, "1:1: error: the job would never end: set one of stop.env_steps, train_steps, "
                               "wall, eval_return, train_return"},
    {HEAD "[[node]]\nname = \"a\"\n" TRAIN ROLL ENV STOP,
     "4:1: error: node `a` has no devices: set gpus or host_devices"},
    {HEAD "[[node]]\nname = \"a\"\ngpus = 8\n" TRAIN ROLL ENV STOP,
     "4:1: error: missing key `node.gpu_memory` of node `a`: the memory of each GPU"},
    {HEAD "[[node]]\nname = \"a\"\ngpus = 8\nhost_devices = 1\n" TRAIN ROLL ENV STOP,
     "4:1: error: node `a` has both gpus and host_devices; a node has one kind"},
    {HEAD NODE NODE TRAIN ROLL ENV STOP, "7:1: error: node `a` is already defined on line 4"},
    /* devices */
    {HEAD NODE TRAIN "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:3-4\"]\n" ENV STOP,
     "14:9: error: gpus \"a:3-4\" overlap partition.trainer (a:0-3, line 9)"},
    {HEAD NODE TRAIN
     "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\nshared = true\ngpus = [\"a:5\", \"a:3\"]\n" ENV
         STOP,
     "15:16: error: gpus \"a:3\" overlap partition.trainer (a:0-3, line 9); both must say shared = true"},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:5\", \"a:4-5\"]\n" ENV STOP,
     "10:16: error: gpus \"a:4-5\" name a:5 twice in partition.x"},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"b:5\"]\n" ENV STOP,
     "10:9: error: `partition.x.gpus`: unknown node `b` in \"b:5\""},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:7-8\"]\n" ENV STOP,
     "10:9: error: `partition.x.gpus`: \"a:7-8\" names a:8, but node `a` has 0-7"},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:5-\"]\n" ENV STOP,
     "10:9: error: `partition.x.gpus`: \"a:5-\" is not a set of devices; write \"NODE:3\" or \"NODE:0-3\""},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:5-4\"]\n" ENV STOP,
     "10:9: error: `partition.x.gpus`: \"a:5-4\" is not a set of devices; write \"NODE:3\" or \"NODE:0-3\""},
    {HEAD NODE "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"5\"]\n" ENV STOP,
     "10:9: error: `partition.x.gpus`: \"5\" is not a set of devices; write \"NODE:3\" or \"NODE:0-3\""},
    {HEAD "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"a:0\"]\n" ENV STOP,
     "7:9: error: `partition.x.gpus`: unknown node `a` in \"a:0\"; without [[node]] the only node is "
     "`local`"},
    {HEAD "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\ngpus = [\"local:99\"]\n" ENV STOP,
     "7:9: error: `partition.x.gpus`: \"local:99\" goes past the last possible device, 63"},
    {HEAD NODE
     "[partition.x]\nrole = \"rollout\"\nfloor = \"1MiB\"\nshared = true\ncompute = 60\ngpus = [\"a:0\"]\n"
     "[partition.y]\nrole = \"train\"\nfloor = \"1MiB\"\nshared = true\ncompute = 50\ngpus = [\"a:0\"]\n" ENV
         STOP,
     "17:11: error: the compute shares on a:0 add up to 110 percent; set `compute` of each, at most 100 "
     "together"},
    /* values that contradict each other */
    {HEAD NODE
     "[partition.x]\nrole = \"rollout\"\nfloor = \"2MiB\"\nceiling = \"1MiB\"\ngpus = [\"a:0\"]\n" ENV STOP,
     "10:11: error: `partition.x.ceiling` (1MiB) is below its floor (2MiB)"},
    /* tenants */
    {HEAD NODE "[partition.x]\nrole = \"tenant\"\nfloor = \"2MiB\"\ngpus = [\"a:0\"]\n" ENV STOP,
     "8:8: error: `partition.x.role` must be one of \"train\", \"rollout\", \"eval\", not \"tenant\""},
    {HEAD NODE
     "[partition.x]\nrole = \"eval\"\nfloor = \"2MiB\"\ngpus = [\"a:0\"]\ncommand = [\"ls\"]\n" ENV STOP,
     "11:1: error: unknown key `partition.x.command`; did you mean `tenant.command`?"},
    {GOOD TENANT "floor = \"1MiB\"\n", "19:1: error: missing key `tenant.command`"},
    {GOOD TENANT "floor = \"1MiB\"\ncommand = []\n",
     "23:11: error: `tenant.command` must have 1 to 64 strings"},
    {GOOD TENANT "floor = \"1MiB\"\ncommand = [\"\"]\n",
     "23:11: error: `tenant.command` must begin with a program"},
    {GOOD TENANT "floor = \"1MiB\"\ncommand = [\"x\"]\n",
     "21:9: error: gpus \"a:7\" overlap partition.rollout (a:4-7, line 13); a partition shares its devices "
     "with a "
     "tenant when it says shared = true"},
    {GOOD TENANT "floor = \"1MiB\"\ncommand = [\"x\"]\nenvironment = [\"A\"]\n",
     "24:15: error: `tenant.environment` must hold \"KEY=VALUE\" strings"},
    {GOOD TENANT "floor = \"1MiB\"\ncommand = [\"x\"]\nenvironment = [\"LD_PRELOAD=x\"]\n",
     "24:15: error: `tenant.environment` may not set CORRAL_*, CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER, "
     "CUDA_MPS_*, "
     "LD_PRELOAD or LD_AUDIT: they belong to the fences"},
    {GOOD "[[tenant]]\nname = \"rollout-3\"\ngpus = [\"a:7\"]\nfloor = \"1MiB\"\ncommand = [\"x\"]\n",
     "21:9: error: gpus \"a:7\" overlap partition.rollout (a:4-7, line 13); a partition shares its devices "
     "with a "
     "tenant when it says shared = true"},
    {HEAD NODE
     "host_memory = \"1GiB\"\n" SHARED
     "[[tenant]]\nname = \"x-3\"\ngpus = [\"a:0\"]\nfloor = \"1MiB\"\ncompute = 50\ncommand = [\"x\"]\n" ENV
         STOP,
     "14:8: error: `x-3` is the name of another process of the run; choose another"},
    {HEAD NODE
     "host_memory = \"1GiB\"\n" SHARED
     "[[tenant]]\nname = \"x\"\ngpus = [\"a:0\"]\nfloor = \"1MiB\"\ncompute = 50\ncommand = [\"x\"]\n" ENV
         STOP,
     "14:8: error: `x` is already the name of a partition"},
    {HEAD NODE "host_memory = \"1GiB\"\n" SHARED
               "[[tenant]]\nname = \"y\"\ngpus = [\"a:0\"]\nfloor = \"1MiB\"\ncommand = [\"x\"]\n" ENV STOP,
     "13:1: error: the compute shares on a:0 add up to 200 percent; set `compute` of each, at most 100 "
     "together"},
    {HEAD NODE
     "[[node]]\nname = \"b\"\nhost_devices = 1\n"
     "[[tenant]]\nname = \"y\"\ngpus = [\"a:0\", \"b:0\"]\nfloor = \"1MiB\"\ncommand = [\"x\"]\n" ENV STOP,
     "12:8: error: tenant.y is one process, and its devices are on nodes `a` and `b`; write one [[tenant]] "
     "for each "
     "node"},
    {HEAD "[[node]]\nname = \"a\"\ngpus = 2\ngpu_memory = \"1GiB\"\n[[node]]\nname = \"b\"\ngpus = [3, "
          "1]\ngpu_memory = "
          "\"1GiB\"\n" TRAIN ENV STOP,
     "8:1: error: node `b` and node `a` are the same machine (address \"local\") and both have GPU 1; list "
     "the indices "
     "of each, such as gpus = [0, 1]"},
    {GOOD "[tenant]\nname = \"y\"\n", "19:2: error: `tenant` must be written as [[tenant]]"},
    {GOOD "[memory]\nfences = [\"mpps\"]\n",
     "20:10: error: `memory.fences` may name \"ledger\", \"interposer\", \"mps\", \"dmem\", "
     "\"cgroup-memory\", "
     "\"cpuset\", \"cpu\", \"rlimit\", \"affinity\", not \"mpps\"; did you mean \"mps\"?"},
    {GOOD "[memory]\nfences = [\"mps\"]\n",
     "20:10: error: `memory.fences` asks for \"mps\", which holds processes on GPUs; this job has none"},
    {GOOD "[memory]\nfences = [\"affinity\", \"rlimit\"]\n",
     "20:10: error: `memory.fences` asks for \"rlimit\", which holds tenants on host devices; this job has "
     "none"},
    {GOOD "[memory]\npressure_wait = \"11s\"\n",
     "20:17: error: `memory.pressure_wait` must be between 0s and 10s, not 11s"},
    {GOOD "[model]\nkind = \"transformer\"\n",
     "20:8: error: missing key `model.layers`: needed when model.kind is \"transformer\""},
    {GOOD "[engine]\nkind = \"vllm\"\n",
     "20:8: error: `engine.kind` must be \"builtin\" when model.kind is \"mlp\""},
    {GOOD "[stream]\ntransport = \"tcp\"\n",
     "20:13: error: `stream.transport` must be one of \"auto\", \"shm\", \"zmq\", not \"tcp\""},
    {GOOD "[stream]\ndurability = \"wal\"\nlog_max = \"1GiB\"\n",
     "21:11: error: `stream.log_max` needs `checkpoint.every`: the log is only trimmed at checkpoints"},
    {GOOD "[stream]\ndurability = \"wal\"\nlog_max = \"1GiB\"\nkeep = \"all\"\n",
     "21:11: error: `stream.log_max` limits what `stream.keep` = \"all\" keeps for good; leave one of them "
     "out"},
    {GOOD "eval_return = 5\n", "19:15: error: `stop.eval_return` needs a partition with role = \"eval\""},
    {HEAD NODE TRAIN ROLL ENV "[stop]\nwall = \"5s\"\n[algorithm]\nlr_final = 0.0\n",
     "20:12: error: `algorithm.lr_final` needs algorithm.schedule_steps or stop.env_steps: how long the way "
     "is"},
    {GOOD "[algorithm]\nbatch = 32\nminibatch = 64\n",
     "21:13: error: `algorithm.minibatch` (64) is larger than `algorithm.batch` (32)"},
    {GOOD "[fault]\nheartbeat = \"5s\"\ndead_after = \"10s\"\n",
     "21:14: error: `fault.dead_after` must be at least three times `fault.heartbeat`"},
    {GOOD "[observe]\nprometheus = \"9464\"\n",
     "20:14: error: `observe.prometheus` must be \"HOST:PORT\", not \"9464\""},
};

static enum corral_status load(const char *text, const char *set, struct corral_job **out,
                               struct corral_error *err)
{
    const struct corral_job_text source = {
        .name = "j.toml", .text = text, .bytes = strlen(text), .sets = &set, .set_count = set != NULL};
    return corral_job_load_text(&source, out, err);
}

static void names_the_place_and_the_mistake(void **state)
{
    (void)state;
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct corral_job *job = NULL;
        struct corral_error err;
        char expected[512];
        snprintf(expected, sizeof expected, "j.toml:%s", cases[i].error);
        enum corral_status status = load(cases[i].text, NULL, &job, &err);
        if (status != CORRAL_INVALID || job != NULL || strcmp(err.text, expected) != 0) {
            corral_job_destroy(job);
            fail_msg("case %zu:\n%s\nexpected: %s\n     got: %s", i, cases[i].text, expected,
                     status == CORRAL_OK ? "no error" : err.text);
        }
    }
}

static const struct {
    const char *set, *error;
} set_cases[] = {
    {"job.nam=x", "unknown key `job.nam`; did you mean `job.name`?"},
    {"jb.name=x", "unknown key `jb`; did you mean `job`?"},
    {"schem=1", "unknown key `schem`; did you mean `schema`?"},
    {"partition.trainr.floor=1MiB", "no partition is called `trainr`; did you mean `trainer`?"},
    {"partition.trainer.flor=1MiB",
     "unknown key `partition.trainer.flor`; did you mean `partition.trainer.floor`?"},
    {"node.zz.cpus=1", "no node is called `zz`"},
    {"node.cpus=1", "write node.NAME.KEY=VALUE"},
    {"job.seed=x", "`x` is not a value; write it as in the file"},
    {"job.seed=1\nb = 2", "`1\nb = 2` is not a value; write it as in the file"},
    {"job.seed=\"x\"", "`job.seed` must be an integer, not a string"},
    {"partition.trainer.floor=64",
     "`partition.trainer.floor`: size `64` has no unit; write it like \"64MiB\" (units: "
     "B, KiB, MiB, GiB, TiB, KB, MB, GB, TB)"},
    {"nothing", "write SECTION.KEY=VALUE"},
    {".=1", "write SECTION.KEY=VALUE"},
    {"a.b.c.d=1", "write SECTION.KEY=VALUE"},
    {"partition.rollout.gpus=a:3", "gpus \"a:3\" overlap partition.trainer (a:0-3, line 9)"},
};

static void names_the_set_argument(void **state)
{
    (void)state;
    for (size_t i = 0; i < CORRAL_COUNT_OF(set_cases); i++) {
        struct corral_job *job = NULL;
        struct corral_error err;
        char expected[512];
        snprintf(expected, sizeof expected, "--set %s: error: %s", set_cases[i].set, set_cases[i].error);
        enum corral_status status = load(GOOD, set_cases[i].set, &job, &err);
        if (status != CORRAL_INVALID || strcmp(err.text, expected) != 0) {
            corral_job_destroy(job);
            fail_msg("expected: %s\n     got: %s", expected, status == CORRAL_OK ? "no error" : err.text);
        }
    }
}

static void the_unbroken_job_loads(void **state)
{
    (void)state;
    struct corral_job *job = NULL;
    struct corral_error err;
    check_ok(load(GOOD, NULL, &job, &err));
    corral_job_destroy(job);
}

static void reports_a_syntax_error_with_its_place(void **state)
{
    (void)state;
    struct corral_job *job = NULL;
    struct corral_error err;
    check_status(load("schema = 1\n[job\n", NULL, &job, &err), CORRAL_INVALID);
    assert_memory_equal(err.text, "j.toml:2:", 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_unbroken_job_loads),
        cmocka_unit_test(names_the_place_and_the_mistake),
        cmocka_unit_test(names_the_set_argument),
        cmocka_unit_test(reports_a_syntax_error_with_its_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
