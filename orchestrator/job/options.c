#include "orchestrator/job/options.h"
#include <math.h>
#include <string.h>

#define U32_MAX 4294967295.0
#define I63_MAX 9223372036854775807.0
#define HOUR_NS 3600e9
#define YEAR_NS (8760 * HOUR_NS)

static const char *const roles[] = {"train", "rollout", "eval", NULL};
static const char *const restarts[] = {"always", "on-failure", "never", NULL};
static const char *const unknown_drivers[] = {"refuse", "unproven", NULL};
/* As quota/fences/fence.h names them. */
static const char *const fences[] = {"ledger", "interposer", "mps",    "dmem",     "cgroup-memory",
                                     "cpuset", "cpu",        "rlimit", "affinity", NULL};
static const char *const model_kinds[] = {"mlp", "transformer", NULL};
static const char *const activations[] = {"tanh", "relu", NULL};
static const char *const dtypes[] = {"bf16", "f16", "f32", NULL};
static const char *const methods[] = {"full", "lora", NULL};
static const char *const optimizers[] = {"adam", "adam8bit", NULL};
static const char *const backends[] = {"builtin", "torch", NULL};
static const char *const engines[] = {"builtin", "vllm", "sglang", "llamacpp", NULL};
static const char *const isolations[] = {"in-process", "process", NULL};
static const char *const algorithms[] = {"ppo", "vtrace", NULL};
static const char *const stream_transports[] = {"auto", "shm", "zmq", NULL};
static const char *const durabilities[] = {"memory", "wal", NULL};
static const char *const syncs[] = {"group", "never", NULL};
static const char *const keeps[] = {"checkpoint", "all", NULL};
static const char *const transports[] = {"auto", "shm", "tcp", "rdma", "nccl", "cuda_ipc", NULL};
static const char *const casts[] = {"none", "bf16", "f16", "fp8", NULL};
static const char *const logs[] = {"text", "json", NULL};
static const char *const levels[] = {"error", "warn", "info", "debug", NULL};

_Static_assert(CORRAL_TANH == 0 && CORRAL_RELU == 1, "activations[] follows enum corral_activation");
_Static_assert(CORRAL_ISOLATION_IN_PROCESS == 0 && CORRAL_ISOLATION_PROCESS == 1,
               "isolations[] follows enum corral_isolation");

_Static_assert(CORRAL_WEIGHT_CAST_NONE == 0 && CORRAL_WEIGHT_CAST_FP8 == 3,
               "casts[] follows enum corral_weight_cast");
_Static_assert(CORRAL_RESTART_ALWAYS == 0 && CORRAL_RESTART_NEVER == 2,
               "restarts[] follows enum corral_restart");
_Static_assert(CORRAL_UNKNOWN_DRIVER_REFUSE == 0, "unknown_drivers[] follows enum corral_unknown_driver");

#define AT(type, field) .offset = offsetof(struct type, field), .size = sizeof(((struct type *)0)->field)
#define JOB(field) AT(corral_job, field)
#define NODE(field) AT(corral_job_node, field)
#define PART(field) AT(corral_job_partition, field)
#define REQUIRED .required = true
#define DEF(text) .def = text
#define UNSET(text) .unset = text
#define RANGE(lo, hi) .min = (lo), .max = (hi)

/* clang-format off */
const struct corral_option_section corral_option_sections[] = {
    {"job", CORRAL_SECTION_TABLE, "The run as a whole."},
    {"node", CORRAL_SECTION_ARRAY, "One machine each. Without any, the job runs on this machine, called `local`: on its GPUs when the model is a transformer, else on as many host devices as the partitions name. A host device is a slice of host memory with a quota and a CPU set."},
    {"partition", CORRAL_SECTION_NAMED, "A named set of devices with one role and one memory quota on each."},
    {"tenant", CORRAL_SECTION_ARRAY, "Any other command that runs beside the job, under a quota on its devices: one process that sees them all. It may share devices with partitions that say shared = true."},
    {"memory", CORRAL_SECTION_TABLE, "Limits over all partitions of a device."},
    {"model", CORRAL_SECTION_TABLE, "What is trained. The shape of a transformer is for the memory arithmetic of `rlctl plan`."},
    {"trainer", CORRAL_SECTION_TABLE, "How the gradient is computed."},
    {"engine", CORRAL_SECTION_TABLE, "What acts in rollout and eval partitions."},
    {"env", CORRAL_SECTION_TABLE, "The environment."},
    {"rollout", CORRAL_SECTION_TABLE, "How trajectories are cut."},
    {"algorithm", CORRAL_SECTION_TABLE, "The update."},
    {"staleness", CORRAL_SECTION_TABLE, "How old the weights behind a trajectory may be."},
    {"stream", CORRAL_SECTION_TABLE, "Trajectories on their way from rollout to trainer."},
    {"weights", CORRAL_SECTION_TABLE, "Weights on their way from trainer to rollout and eval."},
    {"checkpoint", CORRAL_SECTION_TABLE, "What `rlctl resume` starts from."},
    {"eval", CORRAL_SECTION_TABLE, "Evaluations by the eval partition; each is pinned to one weight version."},
    {"stop", CORRAL_SECTION_TABLE, "When the job is done; the first limit reached ends it. At least one is needed."},
    {"fault", CORRAL_SECTION_TABLE, "What is restarted, and when a silent process counts as dead."},
    {"observe", CORRAL_SECTION_TABLE, "Logs and metrics."},
};

const struct corral_option corral_options[] = {
    {"", "schema", CORRAL_OPTION_U64, REQUIRED, RANGE(1, 1), JOB(schema), .help = "Version of this format."},

    {"job", "name", CORRAL_OPTION_NAME, REQUIRED, JOB(name), .help = "Lower-case letters, digits and dashes."},
    {"job", "dir", CORRAL_OPTION_STRING, DEF("\"runs\""), JOB(dir), .help = "Folder of runs; relative to where the command is run."},
    {"job", "seed", CORRAL_OPTION_U64, DEF("1"), RANGE(0, I63_MAX), JOB(seed), .help = "Every random number of the job comes from it."},

    {"node", "name", CORRAL_OPTION_NAME, REQUIRED, NODE(name), .help = "Name used in `gpus` of partitions."},
    {"node", "gpus", CORRAL_OPTION_GPUS, DEF("0"), RANGE(0, CORRAL_JOB_NODE_DEVICES_MAX), NODE(gpu_count), .help = "How many GPUs, or the list of their indices."},
    {"node", "gpu_memory", CORRAL_OPTION_BYTES, UNSET("needed when gpus is set"), RANGE(1 << 20, I63_MAX), NODE(gpu_memory), .help = "Memory of each GPU."},
    {"node", "host_devices", CORRAL_OPTION_U32, DEF("0"), RANGE(0, CORRAL_JOB_NODE_DEVICES_MAX), NODE(host_devices), .help = "How many host devices, instead of GPUs."},
    {"node", "host_memory", CORRAL_OPTION_BYTES, DEF("\"256MiB\""), RANGE(1 << 20, I63_MAX), NODE(host_memory), .help = "Memory of each host device."},
    {"node", "cpus", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 1024), NODE(cpus), .help = "CPUs of each device's workers; 0 = an equal share of the machine."},
    {"node", "address", CORRAL_OPTION_STRING, DEF("\"local\""), NODE(address), .help = "`local`, or the HOST whose agent joins by itself."},

    {"partition", "role", CORRAL_OPTION_ENUM, REQUIRED, .choices = roles, PART(role), .help = "What runs there."},
    {"partition", "gpus", CORRAL_OPTION_DEVICES, REQUIRED, PART(device), .help = "Devices, GPU or host: `[\"a:0-3\", \"b:0,2\"]`."},
    {"partition", "floor", CORRAL_OPTION_BYTES, REQUIRED, RANGE(0, I63_MAX), PART(floor), .help = "Memory per device that is always there for this partition; never lent."},
    {"partition", "ceiling", CORRAL_OPTION_BYTES, UNSET("the floor"), RANGE(1, I63_MAX), PART(ceiling), .help = "Memory per device it may never pass."},
    {"partition", "compute", CORRAL_OPTION_U32, DEF("100"), RANGE(1, 100), PART(compute), .help = "Share of each device's compute, in percent."},
    {"partition", "workers_per_device", CORRAL_OPTION_U32, DEF("1"), RANGE(1, 64), PART(workers_per_device), .help = "Processes on each device; they share its quota."},
    {"partition", "shared", CORRAL_OPTION_BOOL, DEF("false"), PART(shared), .help = "Allow another partition, also shared, on the same devices."},

    {"tenant", "name", CORRAL_OPTION_NAME, REQUIRED, PART(name), .help = "Its name in status, logs and quotas."},
    {"tenant", "command", CORRAL_OPTION_COMMAND, REQUIRED, PART(command), .help = "Program, found in PATH, and its arguments."},
    {"tenant", "gpus", CORRAL_OPTION_DEVICES, REQUIRED, PART(device), .help = "Devices of one node, GPU or host."},
    {"tenant", "floor", CORRAL_OPTION_BYTES, REQUIRED, RANGE(0, I63_MAX), PART(floor), .help = "Memory per device that is always there for it."},
    {"tenant", "ceiling", CORRAL_OPTION_BYTES, UNSET("the floor"), RANGE(1, I63_MAX), PART(ceiling), .help = "Memory per device it may never pass. On host devices all of it is charged while the tenant runs."},
    {"tenant", "compute", CORRAL_OPTION_U32, DEF("100"), RANGE(1, 100), PART(compute), .help = "Share of each device's compute, in percent."},
    {"tenant", "restart", CORRAL_OPTION_ENUM, DEF("\"on-failure\""), .choices = restarts, PART(restart), .help = "When it is started again after it has ended, with the pauses and limits of [fault]."},
    {"tenant", "environment", CORRAL_OPTION_ENVIRONMENT, DEF("[]"), PART(environment), .help = "`[\"KEY=VALUE\"]`, added to the environment of launch."},
    {"tenant", "folder", CORRAL_OPTION_PATH, UNSET("where launch is run"), PART(folder), .help = "Its current directory, relative to the job file."},

    {"memory", "overcommit", CORRAL_OPTION_F64, DEF("1.0"), RANGE(1, 1.3), JOB(memory.overcommit), .help = "The ceilings of a device may add up to this times its memory."},
    {"memory", "headroom", CORRAL_OPTION_BYTES, UNSET("16MiB on host devices, 2GiB on GPUs"), RANGE(0, I63_MAX), JOB(memory.headroom), .help = "Memory of each device that nobody gets."},
    {"memory", "drift", CORRAL_OPTION_BYTES, DEF("\"64MiB\""), RANGE(0, I63_MAX), JOB(memory.drift), .help = "What a process may physically use beyond its charges and its measured overhead before its gradient steps count as unproven."},
    {"memory", "pressure_wait", CORRAL_OPTION_DURATION, DEF("\"200ms\""), RANGE(0, 10e9), JOB(memory.pressure_wait_ns), .help = "How long a request waits for borrowers to give memory back before it is denied."},
    {"memory", "spill", CORRAL_OPTION_BYTES, DEF("\"0B\""), RANGE(0, I63_MAX), JOB(memory.spill), .help = "What each trainer process may put into host memory instead of being denied; counted per step."},
    {"memory", "unknown_driver", CORRAL_OPTION_ENUM, DEF("\"refuse\""), .choices = unknown_drivers, JOB(memory.unknown_driver), .help = "A GPU driver with allocation functions that Corral does not know: refuse to start, or run with every step unproven."},
    {"memory", "fences", CORRAL_OPTION_SET, DEF("[]"), .choices = fences, JOB(memory.fences), .help = "Fences that must be live beside the ledger and, on GPUs, the interposer; launch is refused without them."},

    {"model", "kind", CORRAL_OPTION_ENUM, DEF("\"mlp\""), .choices = model_kinds, JOB(model.kind), .help = "`mlp`: the built-in actor-critic. `transformer`: a language model."},
    {"model", "hidden", CORRAL_OPTION_WIDTHS, DEF("[32, 32]"), RANGE(1, CORRAL_POLICY_WIDTH_MAX), JOB(model.hidden), .help = "mlp: widths of the hidden layers of each tower, at most 4."},
    {"model", "activation", CORRAL_OPTION_ENUM, DEF("\"tanh\""), .choices = activations, JOB(model.activation), .help = "mlp: between layers."},
    {"model", "log_std_init", CORRAL_OPTION_F64, DEF("0.0"), RANGE(-20, 2), JOB(model.log_std_init), .help = "mlp: first log standard deviation of continuous actions."},
    {"model", "path", CORRAL_OPTION_PATH, DEF("\"\""), JOB(model.path), .help = "transformer: folder of the weights."},
    {"model", "params", CORRAL_OPTION_U64, DEF("0"), RANGE(0, 1e15), JOB(model.params), .help = "transformer: number of parameters; 0 = from the shape."},
    {"model", "layers", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 4096), JOB(model.layers), .help = "transformer: blocks."},
    {"model", "hidden_size", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 1 << 20), JOB(model.hidden_size), .help = "transformer: width of the residual stream."},
    {"model", "heads", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 4096), JOB(model.heads), .help = "transformer: query heads."},
    {"model", "kv_heads", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 4096), JOB(model.kv_heads), .help = "transformer: key and value heads; 0 = heads."},
    {"model", "head_dim", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 4096), JOB(model.head_dim), .help = "transformer: width of a head; 0 = hidden_size / heads."},
    {"model", "ffn", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 1 << 24), JOB(model.ffn), .help = "transformer: width of the gated feed-forward."},
    {"model", "vocab", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 1 << 24), JOB(model.vocab), .help = "transformer: tokens in the vocabulary."},
    {"model", "context", CORRAL_OPTION_U32, DEF("4096"), RANGE(1, 1 << 24), JOB(model.context), .help = "transformer: longest sequence, in tokens."},
    {"model", "tied", CORRAL_OPTION_BOOL, DEF("false"), JOB(model.tied), .help = "transformer: the output layer is the embedding."},
    {"model", "qk_norm", CORRAL_OPTION_BOOL, DEF("false"), JOB(model.qk_norm), .help = "transformer: queries and keys are normalised (Qwen3)."},
    {"model", "dtype", CORRAL_OPTION_ENUM, DEF("\"bf16\""), .choices = dtypes, JOB(model.dtype), .help = "transformer: type of the weights."},

    {"trainer", "backend", CORRAL_OPTION_ENUM, DEF("\"builtin\""), .choices = backends, JOB(trainer.backend), .help = "Who computes the gradient."},
    {"trainer", "method", CORRAL_OPTION_ENUM, DEF("\"full\""), .choices = methods, JOB(trainer.method), .help = "All parameters, or low-rank adapters on a frozen base."},
    {"trainer", "lora_rank", CORRAL_OPTION_U32, DEF("32"), RANGE(1, 4096), JOB(trainer.lora_rank), .help = "Rank of the adapters."},
    {"trainer", "optimizer", CORRAL_OPTION_ENUM, DEF("\"adam\""), .choices = optimizers, JOB(trainer.optimizer), .help = "adam keeps two f32 moments, adam8bit two of one byte."},
    {"trainer", "gradients", CORRAL_OPTION_ENUM, DEF("\"bf16\""), .choices = dtypes, JOB(trainer.gradients), .help = "transformer: type of the gradients of full training."},
    {"trainer", "master_weights", CORRAL_OPTION_BOOL, DEF("true"), JOB(trainer.master_weights), .help = "transformer: keep an f32 copy beside weights of a smaller type."},
    {"trainer", "tokens_per_gpu", CORRAL_OPTION_U32, DEF("16384"), RANGE(1, 1 << 24), JOB(trainer.tokens_per_gpu), .help = "transformer: tokens in one forward and backward pass on a device."},
    {"trainer", "logits_chunk", CORRAL_OPTION_U32, DEF("2048"), RANGE(1, 1 << 24), JOB(trainer.logits_chunk), .help = "transformer: tokens whose logits exist at once."},
    {"trainer", "checkpointing", CORRAL_OPTION_BOOL, DEF("true"), JOB(trainer.checkpointing), .help = "transformer: keep one activation per layer and recompute the rest."},
    {"trainer", "peak", CORRAL_OPTION_BYTES, DEF("\"0B\""), RANGE(0, I63_MAX), JOB(trainer.peak), .help = "Most memory a trainer process holds during a gradient step, declared before each; 0B = what the plan counts."},

    {"engine", "kind", CORRAL_OPTION_ENUM, DEF("\"builtin\""), .choices = engines, JOB(engine.kind), .help = "The built-in policy, or an inference server."},
    {"engine", "tensor_parallel", CORRAL_OPTION_U32, DEF("1"), RANGE(1, 64), JOB(engine.tensor_parallel), .help = "Devices of one engine."},
    {"engine", "kv_fraction", CORRAL_OPTION_F64, DEF("0.95"), RANGE(0.01, 1), JOB(engine.kv_fraction), .help = "Share of what the ceiling leaves that holds the KV cache."},
    {"engine", "max_sequences", CORRAL_OPTION_U32, DEF("256"), RANGE(1, 65536), JOB(engine.max_sequences), .help = "Sequences in flight in one engine."},

    {"env", "id", CORRAL_OPTION_STRING, UNSET("needed when model.kind is \"mlp\""), JOB(env.id), .help = "Name of the environment, such as `CartPole-v1`."},
    {"env", "library", CORRAL_OPTION_PATH, DEF("\"\""), JOB(env.library), .help = "Plug-in file, relative to the job file; \"\" = the built-in ones and CORRAL_ENV_PATH."},
    {"env", "args", CORRAL_OPTION_ARGS, DEF("{}"), JOB(env.args), .help = "Given to the environment, as an inline table."},
    {"env", "instances", CORRAL_OPTION_U32, DEF("8"), RANGE(1, 65536), JOB(env.instances), .help = "Environments in each rollout worker."},
    {"env", "isolation", CORRAL_OPTION_ENUM, DEF("\"in-process\""), .choices = isolations, JOB(env.isolation), .help = "`process` survives a plug-in that crashes or hangs."},
    {"env", "step_timeout", CORRAL_OPTION_DURATION, DEF("\"10s\""), RANGE(1e6, HOUR_NS), JOB(env.step_timeout_ns), .help = "Longest step with isolation = \"process\"."},
    {"env", "restarts", CORRAL_OPTION_U32, DEF("20"), RANGE(0, 1e6), JOB(env.restarts), .help = "Crashes of the plug-in before its worker gives up."},

    {"rollout", "fragment", CORRAL_OPTION_U32, DEF("128"), RANGE(1, 65536), JOB(rollout.fragment), .help = "Steps of each environment in one trajectory fragment."},

    {"algorithm", "kind", CORRAL_OPTION_ENUM, DEF("\"ppo\""), .choices = algorithms, JOB(algorithm.kind), .help = "PPO with GAE, or with V-trace targets for stale fragments."},
    {"algorithm", "gamma", CORRAL_OPTION_F64, DEF("0.99"), RANGE(0, 1), JOB(algorithm.gamma), .help = "Discount."},
    {"algorithm", "lambda", CORRAL_OPTION_F64, DEF("0.95"), RANGE(0, 1), JOB(algorithm.lambda), .help = "GAE and V-trace mixing."},
    {"algorithm", "clip", CORRAL_OPTION_F64, DEF("0.2"), RANGE(0, 10), JOB(algorithm.clip), .help = "Clip of the policy ratio."},
    {"algorithm", "clip_final", CORRAL_OPTION_F64, UNSET("clip"), RANGE(0, 10), JOB(algorithm.clip_final), .help = "Clip at the end of the schedule."},
    {"algorithm", "value_clip", CORRAL_OPTION_F64, DEF("0.0"), RANGE(0, 1e6), JOB(algorithm.value_clip), .help = "Clip of the value's change; 0 = none."},
    {"algorithm", "epochs", CORRAL_OPTION_U32, DEF("10"), RANGE(1, 1000), JOB(algorithm.epochs), .help = "Passes over each batch."},
    {"algorithm", "minibatch", CORRAL_OPTION_U32, DEF("64"), RANGE(1, 1 << 24), JOB(algorithm.minibatch), .help = "Transitions per optimizer update, over all trainers."},
    {"algorithm", "lr", CORRAL_OPTION_F64, DEF("3e-4"), RANGE(0, 10), JOB(algorithm.lr), .help = "Learning rate."},
    {"algorithm", "lr_final", CORRAL_OPTION_F64, UNSET("lr"), RANGE(0, 10), JOB(algorithm.lr_final), .help = "Learning rate at the end of the schedule."},
    {"algorithm", "adam_beta1", CORRAL_OPTION_F64, DEF("0.9"), RANGE(0, 0.999999), JOB(algorithm.adam_beta1), .help = "Decay of Adam's first moment."},
    {"algorithm", "adam_beta2", CORRAL_OPTION_F64, DEF("0.999"), RANGE(0, 0.999999), JOB(algorithm.adam_beta2), .help = "Decay of Adam's second moment."},
    {"algorithm", "adam_eps", CORRAL_OPTION_F64, DEF("1e-5"), RANGE(1e-20, 1), JOB(algorithm.adam_eps), .help = "Adam's divisor floor."},
    {"algorithm", "entropy", CORRAL_OPTION_F64, DEF("0.0"), RANGE(0, 100), JOB(algorithm.entropy), .help = "Weight of the entropy bonus."},
    {"algorithm", "value_coef", CORRAL_OPTION_F64, DEF("0.5"), RANGE(0, 100), JOB(algorithm.value_coef), .help = "Weight of the value loss."},
    {"algorithm", "max_grad_norm", CORRAL_OPTION_F64, DEF("0.5"), RANGE(0, 1e9), JOB(algorithm.max_grad_norm), .help = "Gradients are scaled down to this norm."},
    {"algorithm", "target_kl", CORRAL_OPTION_F64, DEF("0.0"), RANGE(0, 100), JOB(algorithm.target_kl), .help = "Stop the epochs when the policy has moved this far; 0 = never."},
    {"algorithm", "normalise_obs", CORRAL_OPTION_BOOL, DEF("false"), JOB(algorithm.normalise_obs), .help = "Observations by their running mean and variance."},
    {"algorithm", "normalise_reward", CORRAL_OPTION_BOOL, DEF("false"), JOB(algorithm.normalise_reward), .help = "Rewards by the running deviation of the discounted return."},
    {"algorithm", "reward_clip", CORRAL_OPTION_F64, DEF("10.0"), RANGE(1e-6, 1e9), JOB(algorithm.reward_clip), .help = "Clip of normalised rewards."},
    {"algorithm", "normalise_advantage", CORRAL_OPTION_BOOL, DEF("true"), JOB(algorithm.normalise_advantage), .help = "Advantages to mean 0, deviation 1 in each minibatch."},
    {"algorithm", "batch", CORRAL_OPTION_U64, DEF("0"), RANGE(0, 1 << 30), JOB(algorithm.batch), .help = "Transitions per gradient step over all trainers; 0 = one fragment of every rollout worker."},
    {"algorithm", "schedule_steps", CORRAL_OPTION_U64, DEF("0"), RANGE(0, I63_MAX), JOB(algorithm.schedule_steps), .help = "Environment steps over which lr and clip move to their final values; 0 = stop.env_steps."},
    {"algorithm", "vtrace_rho", CORRAL_OPTION_F64, DEF("1.0"), RANGE(0, 1000), JOB(algorithm.vtrace_rho), .help = "V-trace: clip of the ratio in the temporal difference."},
    {"algorithm", "vtrace_c", CORRAL_OPTION_F64, DEF("1.0"), RANGE(0, 1000), JOB(algorithm.vtrace_c), .help = "V-trace: clip of the ratio in the trace."},

    {"staleness", "max_versions", CORRAL_OPTION_U32, DEF("1"), RANGE(0, 1e6), JOB(staleness.max_versions), .help = "Weight versions between what acted and what trains, from the oldest step."},

    {"stream", "buffer", CORRAL_OPTION_BYTES, DEF("\"8MiB\""), RANGE(4096, 1e12), JOB(stream.buffer), .help = "Trajectories waiting in front of each trainer."},
    {"stream", "transport", CORRAL_OPTION_ENUM, DEF("\"zmq\""), .choices = stream_transports, JOB(stream.transport), .help = "How trajectories get to a trainer. `auto`: through shared memory where both are on one node, else over ZeroMQ; `shm` and `zmq`: this way only."},
    {"stream", "durability", CORRAL_OPTION_ENUM, DEF("\"memory\""), .choices = durabilities, JOB(stream.durability), .help = "Where waiting trajectories live. `wal`: also in a log on disk, RUN/traj, before they are acknowledged; `resume` then loses none."},
    {"stream", "sync", CORRAL_OPTION_ENUM, DEF("\"group\""), .choices = syncs, JOB(stream.sync), .help = "wal: what counts as durable. `group`: synced to disk, many at a time; `never`: given to the kernel, which survives kill -9 of everything but not a power cut."},
    {"stream", "keep", CORRAL_OPTION_ENUM, DEF("\"checkpoint\""), .choices = keeps, JOB(stream.keep), .help = "wal: how long. `checkpoint`: until no kept checkpoint needs it; `all`: for good, to look at with `rlctl traj`."},
    {"stream", "compression", CORRAL_OPTION_U32, DEF("0"), RANGE(0, 19), JOB(stream.compression), .help = "wal: zstd level; 0 = records as they are."},
    {"stream", "log_segment", CORRAL_OPTION_BYTES, DEF("\"64MiB\""), RANGE(65536, 6e10), JOB(stream.log_segment), .help = "wal: size of one file of the log. Whole files are deleted."},
    {"stream", "log_max", CORRAL_OPTION_BYTES, DEF("\"0B\""), RANGE(0, I63_MAX), JOB(stream.log_max), .help = "wal: most that the log of one trainer may take on disk; rollouts wait when it is full. 0 = no limit."},

    {"weights", "every", CORRAL_OPTION_U32, DEF("1"), RANGE(1, 1e6), JOB(weights.every), .help = "Gradient steps per published version."},
    {"weights", "transport", CORRAL_OPTION_ENUM, DEF("\"auto\""), .choices = transports, JOB(weights.transport), .help = "The lane between nodes (within one it is shared memory). `auto`: the fastest that both ends have, measured at the start for versions of `weights.measure` and more."},
    {"weights", "measure", CORRAL_OPTION_BYTES, DEF("\"64MiB\""), RANGE(1, I63_MAX), JOB(weights.measure), .help = "Size of a version from which `transport` = \"auto\" measures; smaller ones take the first lane that opens."},
    {"weights", "deadline", CORRAL_OPTION_DURATION, DEF("\"2s\""), RANGE(1e6, HOUR_NS), JOB(weights.deadline_ns), .help = "A receiver that takes longer is dropped; the others commit."},
    {"weights", "delta", CORRAL_OPTION_BOOL, DEF("false"), JOB(weights.delta), .help = "Send other nodes what has changed since the version before, bit by bit, where that is less. Takes a copy of a version in the trainer."},
    {"weights", "anchor_every", CORRAL_OPTION_U32, DEF("25"), RANGE(2, 1e6), JOB(weights.anchor_every), .help = "With `delta`: at least one version in so many goes whole."},
    {"weights", "cast", CORRAL_OPTION_ENUM, DEF("\"none\""), .choices = casts, JOB(weights.cast), .help = "Precision of matrices in published versions: what rollout and eval workers act with. fp8 is E4M3 with a scale per 128 elements of a row. The trainer keeps its own."},

    {"checkpoint", "every", CORRAL_OPTION_U64, DEF("0"), RANGE(0, I63_MAX), JOB(checkpoint.every), .help = "Gradient steps; 0 = only at the end."},
    {"checkpoint", "keep", CORRAL_OPTION_U32, DEF("3"), RANGE(1, 10000), JOB(checkpoint.keep), .help = "Checkpoints kept."},

    {"eval", "every", CORRAL_OPTION_U64, DEF("1"), RANGE(1, I63_MAX), JOB(eval.every), .help = "Weight versions between evaluations."},
    {"eval", "episodes", CORRAL_OPTION_U32, DEF("100"), RANGE(1, 1e6), JOB(eval.episodes), .help = "Episodes of one evaluation."},
    {"eval", "greedy", CORRAL_OPTION_BOOL, DEF("true"), JOB(eval.greedy), .help = "Take the most likely action instead of sampling."},

    {"stop", "env_steps", CORRAL_OPTION_U64, DEF("0"), RANGE(0, I63_MAX), JOB(stop.env_steps), .help = "Environment steps trained on; 0 = no limit."},
    {"stop", "train_steps", CORRAL_OPTION_U64, DEF("0"), RANGE(0, I63_MAX), JOB(stop.train_steps), .help = "Gradient steps; 0 = no limit."},
    {"stop", "wall", CORRAL_OPTION_DURATION, DEF("\"0s\""), RANGE(0, YEAR_NS), JOB(stop.wall_ns), .help = "Time since launch; 0s = no limit."},
    {"stop", "eval_return", CORRAL_OPTION_F64, UNSET("no limit"), RANGE(-1e300, 1e300), JOB(stop.eval_return), .help = "Mean return of an evaluation."},
    {"stop", "train_return", CORRAL_OPTION_F64, UNSET("no limit"), RANGE(-1e300, 1e300), JOB(stop.train_return), .help = "Mean return of the last 100 training episodes."},

    {"fault", "restarts_max", CORRAL_OPTION_U32, DEF("10"), RANGE(0, 10000), JOB(fault.restarts_max), .help = "Restarts of one worker within the window; one more stops the job."},
    {"fault", "window", CORRAL_OPTION_DURATION, DEF("\"60s\""), RANGE(1e9, 24 * HOUR_NS), JOB(fault.window_ns), .help = "The window of restarts_max."},
    {"fault", "backoff", CORRAL_OPTION_DURATION, DEF("\"50ms\""), RANGE(1e6, HOUR_NS), JOB(fault.backoff_ns), .help = "Pause before the first restart; doubles each time."},
    {"fault", "backoff_max", CORRAL_OPTION_DURATION, DEF("\"5s\""), RANGE(1e6, HOUR_NS), JOB(fault.backoff_max_ns), .help = "Longest pause before a restart."},
    {"fault", "heartbeat", CORRAL_OPTION_DURATION, DEF("\"500ms\""), RANGE(1e6, HOUR_NS), JOB(fault.heartbeat_ns), .help = "How often processes report."},
    {"fault", "dead_after", CORRAL_OPTION_DURATION, DEF("\"10s\""), RANGE(1e7, HOUR_NS), JOB(fault.dead_after_ns), .help = "Silence after which a process is dead; at least three heartbeats."},
    {"fault", "start_timeout", CORRAL_OPTION_DURATION, DEF("\"20s\""), RANGE(1e8, HOUR_NS), JOB(fault.start_timeout_ns), .help = "Longest time from start to ready."},

    {"observe", "prometheus", CORRAL_OPTION_STRING, DEF("\"\""), JOB(observe.prometheus), .help = "HOST:PORT of the metrics page; port 0 = any free one; \"\" = none."},
    {"observe", "log", CORRAL_OPTION_ENUM, DEF("\"text\""), .choices = logs, JOB(observe.log), .help = "Form of log lines."},
    {"observe", "log_level", CORRAL_OPTION_ENUM, DEF("\"info\""), .choices = levels, JOB(observe.log_level), .help = "Least important line that is written."},
    {"observe", "metrics", CORRAL_OPTION_BOOL, DEF("true"), JOB(observe.metrics), .help = "Write metrics.jsonl into the run folder."},
};
/* clang-format on */

const uint32_t corral_option_count = CORRAL_COUNT_OF(corral_options);
const uint32_t corral_option_section_count = CORRAL_COUNT_OF(corral_option_sections);
_Static_assert(CORRAL_COUNT_OF(corral_options) <= CORRAL_OPTIONS_MAX, "raise CORRAL_OPTIONS_MAX");

const struct corral_option *corral_option_find(const char *section, const char *name)
{
    for (uint32_t i = 0; i < corral_option_count; i++) {
        if (strcmp(corral_options[i].section, section) == 0 && strcmp(corral_options[i].name, name) == 0) {
            return &corral_options[i];
        }
    }
    return NULL;
}

const struct corral_option_section *corral_option_section_find(const char *name)
{
    for (uint32_t i = 0; i < corral_option_section_count; i++) {
        if (strcmp(corral_option_sections[i].name, name) == 0) {
            return &corral_option_sections[i];
        }
    }
    return NULL;
}

const char *corral_job_fence_name(uint32_t bit)
{
    return bit < CORRAL_COUNT_OF(fences) - 1 ? fences[bit] : NULL;
}

const char *corral_restart_name(enum corral_restart restart)
{
    return restarts[restart];
}

const char *corral_option_type_name(enum corral_option_type type)
{
    static const char *const names[] = {
        [CORRAL_OPTION_NAME] = "name",         [CORRAL_OPTION_STRING] = "string",
        [CORRAL_OPTION_PATH] = "path",         [CORRAL_OPTION_U32] = "integer",
        [CORRAL_OPTION_U64] = "integer",       [CORRAL_OPTION_F64] = "number",
        [CORRAL_OPTION_BOOL] = "bool",         [CORRAL_OPTION_BYTES] = "size",
        [CORRAL_OPTION_DURATION] = "duration", [CORRAL_OPTION_ENUM] = "choice",
        [CORRAL_OPTION_WIDTHS] = "integers",   [CORRAL_OPTION_GPUS] = "count or indices",
        [CORRAL_OPTION_DEVICES] = "devices",   [CORRAL_OPTION_COMMAND] = "strings",
        [CORRAL_OPTION_ARGS] = "inline table", [CORRAL_OPTION_ENVIRONMENT] = "strings",
        [CORRAL_OPTION_SET] = "choices",
    };
    return names[type];
}
