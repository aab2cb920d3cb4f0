/* The job file: strict TOML in, one immutable struct out. Every option is one row of the table in options.c; the parser, `rlctl config show`,
 * `rlctl config reference` and shell completion all read it. Any mistake is exactly one error, "FILE:LINE:COL: error: …" (or "--set KEY=VALUE: error: …").
 * Everything is resolved here: units, defaults, device names, the path of env.library. The struct is plain data owned by the caller of load
 * (corral_job_destroy()); nobody writes to it afterwards, so any thread may read it. Units: bytes and nanoseconds (`_ns`).
 */
#ifndef CORRAL_ORCHESTRATOR_JOB_H
#define CORRAL_ORCHESTRATOR_JOB_H

#include "base/error.h"
#include "model/policy.h"
#include "rollout/env_host/vec.h"
#include "trainer-bridge/learners/ppo.h"
#include "transport/weights/form.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CORRAL_JOB_NAME_MAX 32 /* with the NUL; job, node and partition names: a-z 0-9 - */
#define CORRAL_JOB_NODES_MAX 32
#define CORRAL_JOB_NODE_DEVICES_MAX 64
#define CORRAL_JOB_PARTITIONS_MAX 16
#define CORRAL_JOB_PARTITION_DEVICES_MAX 1024
#define CORRAL_JOB_WORKERS_MAX 2048
#define CORRAL_JOB_TEXT_MAX 1024 /* paths, addresses, args, with the NUL */
#define CORRAL_JOB_ARGV_MAX 64
#define CORRAL_JOB_HOST_MEMORY \
    (UINT64_C(256) << 20) /* of a host device that nobody described; default of node.host_memory */

enum corral_role { CORRAL_ROLE_TRAIN, CORRAL_ROLE_ROLLOUT, CORRAL_ROLE_EVAL, CORRAL_ROLE_TENANT };
enum corral_device_kind { CORRAL_DEVICE_HOST, CORRAL_DEVICE_GPU };
enum corral_model_kind { CORRAL_MODEL_MLP, CORRAL_MODEL_TRANSFORMER };
enum corral_dtype_option { CORRAL_OPTION_BF16, CORRAL_OPTION_F16, CORRAL_OPTION_F32 };
enum corral_train_method { CORRAL_TRAIN_FULL, CORRAL_TRAIN_LORA };
enum corral_optimizer { CORRAL_OPTIMIZER_ADAM, CORRAL_OPTIMIZER_ADAM8BIT };
enum corral_trainer_backend { CORRAL_TRAINER_BUILTIN, CORRAL_TRAINER_TORCH };
enum corral_engine_kind {
    CORRAL_ENGINE_BUILTIN,
    CORRAL_ENGINE_VLLM,
    CORRAL_ENGINE_SGLANG,
    CORRAL_ENGINE_LLAMACPP
};
enum corral_algorithm_kind { CORRAL_ALGORITHM_PPO, CORRAL_ALGORITHM_VTRACE };
enum corral_stream_durability { CORRAL_STREAM_MEMORY, CORRAL_STREAM_WAL };
enum corral_stream_sync { CORRAL_STREAM_SYNC_GROUP, CORRAL_STREAM_SYNC_NEVER };
enum corral_stream_transport {
    CORRAL_STREAM_AUTO,
    CORRAL_STREAM_SHM,
    CORRAL_STREAM_ZMQ
}; /* as enum corral_traj_transport */
enum corral_stream_keep { CORRAL_STREAM_KEEP_CHECKPOINT, CORRAL_STREAM_KEEP_ALL };
enum corral_weights_transport {
    CORRAL_WEIGHTS_AUTO,
    CORRAL_WEIGHTS_SHM,
    CORRAL_WEIGHTS_TCP,
    CORRAL_WEIGHTS_RDMA,
    CORRAL_WEIGHTS_NCCL,    /* refused: job_check() */
    CORRAL_WEIGHTS_CUDA_IPC /* refused */
};
/* When a tenant that has ended is started again. */
enum corral_restart { CORRAL_RESTART_ALWAYS, CORRAL_RESTART_ON_FAILURE, CORRAL_RESTART_NEVER };
enum corral_unknown_driver { CORRAL_UNKNOWN_DRIVER_REFUSE, CORRAL_UNKNOWN_DRIVER_UNPROVEN };
enum corral_log_option { CORRAL_LOG_OPTION_TEXT, CORRAL_LOG_OPTION_JSON };
enum corral_log_level_option {
    CORRAL_LOG_OPTION_ERROR,
    CORRAL_LOG_OPTION_WARN,
    CORRAL_LOG_OPTION_INFO,
    CORRAL_LOG_OPTION_DEBUG
};

/* One node. Its devices are all GPUs or all host devices. */
struct corral_job_node {
    char name[CORRAL_JOB_NAME_MAX];
    char address[256]; /* "local", or the HOST whose agent joins by itself */
    enum corral_device_kind kind;
    uint32_t device_count;
    uint32_t device_index
        [CORRAL_JOB_NODE_DEVICES_MAX]; /* the number in the name: slot 1 of gpus = [0, 4] is "a:4" */
    uint64_t device_memory;            /* physical bytes of each device */
    uint32_t cpus;                     /* CPUs of each device's workers; 0 = an equal share */
    bool as_found;                     /* no [[node]] in the file: this machine */
    /* as written in the file */
    uint32_t gpu_count, gpu_index[CORRAL_JOB_NODE_DEVICES_MAX];
    uint64_t gpu_memory;
    uint32_t host_devices;
    uint64_t host_memory;
};

struct corral_job_device {
    uint32_t node;  /* into job->node */
    uint32_t slot;  /* into node->device_index; also the device's number in the node's ledger */
    uint32_t index; /* node->device_index[slot] */
};

struct corral_job_partition {
    char name[CORRAL_JOB_NAME_MAX]; /* also the name of the ledger role */
    enum corral_role role;
    uint32_t device_count;
    struct corral_job_device device[CORRAL_JOB_PARTITION_DEVICES_MAX]; /* in the order written */
    uint64_t floor, ceiling;                                           /* bytes per device */
    uint32_t compute;                                                  /* percent */
    uint32_t workers_per_device;
    bool shared;
    /* tenants: a program under a quota, one process that sees all its devices, which are of one node */
    uint32_t command_count, environment_count;
    char command[CORRAL_JOB_TEXT_MAX]; /* command_count strings, each with its NUL: corral_job_command() */
    char environment[CORRAL_JOB_TEXT_MAX]; /* "KEY=VALUE" strings: corral_job_environment() */
    char folder[CORRAL_JOB_TEXT_MAX];      /* absolute; "": where launch is run */
    enum corral_restart restart;
};

struct corral_job {
    uint64_t schema;
    char path[CORRAL_JOB_TEXT_MAX];   /* the file, absolute ("" when loaded from text without a folder) */
    char folder[CORRAL_JOB_TEXT_MAX]; /* of the file, absolute; relative paths in the file start here */

    char name[CORRAL_JOB_NAME_MAX];
    char dir
        [CORRAL_JOB_TEXT_MAX]; /* where runs go, as written: relative to the current directory of the command */
    uint64_t seed;

    uint32_t node_count;
    struct corral_job_node node[CORRAL_JOB_NODES_MAX];
    uint32_t partition_count;
    struct corral_job_partition
        partition[CORRAL_JOB_PARTITIONS_MAX]; /* in the order of the file; tenants after the others */

    struct {
        double overcommit;
        uint64_t headroom; /* UINT64_MAX = by kind of device: corral_job_headroom() */
        uint64_t drift, spill, pressure_wait_ns;
        enum corral_unknown_driver unknown_driver;
        uint32_t fences; /* bit mask: corral_job_fence_name() */
    } memory;

    struct {
        enum corral_model_kind kind;
        uint32_t hidden_count;
        uint32_t hidden[CORRAL_POLICY_LAYERS_MAX];
        enum corral_activation activation;
        double log_std_init;
        /* transformer */
        char path[CORRAL_JOB_TEXT_MAX]; /* absolute, or "" */
        uint64_t params;                /* 0 = from the shape */
        uint32_t layers, hidden_size, heads, kv_heads, head_dim, ffn, vocab, context;
        bool tied, qk_norm;
        enum corral_dtype_option dtype;
    } model;

    struct {
        enum corral_trainer_backend backend;
        enum corral_train_method method;
        uint32_t lora_rank;
        enum corral_optimizer optimizer;
        enum corral_dtype_option gradients;
        bool master_weights;
        uint32_t tokens_per_gpu, logits_chunk;
        bool checkpointing; /* activation checkpointing */
        uint64_t peak;      /* declared peak of a gradient step on a device; 0 = the plan's need */
    } trainer;

    struct {
        enum corral_engine_kind kind;
        uint32_t tensor_parallel;
        double kv_fraction;
        uint32_t max_sequences;
    } engine;

    struct {
        char id[64];
        char library[CORRAL_JOB_TEXT_MAX]; /* absolute, or "": built-in plug-ins */
        char args[CORRAL_JOB_TEXT_MAX];    /* JSON object */
        uint32_t instances;                /* per rollout worker */
        enum corral_isolation isolation;
        uint64_t step_timeout_ns;
        uint32_t restarts;
    } env;

    struct {
        uint32_t fragment; /* steps */
    } rollout;

    struct {
        enum corral_algorithm_kind kind;
        double gamma, lambda, clip, clip_final, value_clip, vtrace_rho, vtrace_c;
        uint32_t epochs, minibatch;
        double lr, lr_final, adam_beta1, adam_beta2, adam_eps, entropy, value_coef, max_grad_norm, target_kl;
        bool normalise_obs, normalise_reward, normalise_advantage;
        double reward_clip;
        uint64_t batch; /* transitions; 0 = one fragment of every rollout worker: corral_job_batch() */
        uint64_t schedule_steps; /* env steps over which lr and clip move; resolved: 0 = constant */
    } algorithm;

    struct {
        uint32_t max_versions;
    } staleness;
    struct {
        uint64_t buffer; /* bytes per trainer */
        enum corral_stream_transport transport;
        enum corral_stream_durability durability;
        /* with `wal` */
        enum corral_stream_sync sync;
        uint64_t log_segment, log_max; /* bytes; log_max 0: no limit but the disk */
        uint32_t compression;          /* zstd level; 0: off */
        enum corral_stream_keep keep;
    } stream;
    struct {
        uint32_t every; /* gradient steps per published version */
        enum corral_weights_transport transport;
        uint64_t measure; /* from this size of a version on, `auto` measures */
        uint64_t deadline_ns;
        bool delta;            /* between nodes: what has changed */
        uint32_t anchor_every; /* versions; with delta */
        enum corral_weight_cast cast;
    } weights;
    struct {
        uint64_t every; /* gradient steps; 0 = only at the end */
        uint32_t keep;
    } checkpoint;
    struct {
        uint64_t every; /* versions */
        uint32_t episodes;
        bool greedy;
    } eval;
    struct {
        uint64_t env_steps, train_steps;  /* 0 = no limit */
        uint64_t wall_ns;                 /* 0 = no limit */
        double eval_return, train_return; /* NaN = none */
    } stop;
    struct {
        uint32_t restarts_max; /* of one worker within window_ns */
        uint64_t window_ns, backoff_ns, backoff_max_ns, heartbeat_ns, dead_after_ns, start_timeout_ns;
    } fault;
    struct {
        char prometheus[256]; /* "HOST:PORT" or "" */
        enum corral_log_option log;
        enum corral_log_level_option log_level;
        bool metrics;
    } observe;

    struct corral_job_origins *origins; /* where each value came from, for config show */
};

struct corral_inventory;

/* Read a job file. sets[i] is the text of a --set argument, "a.b=value". A job without [[node]] describes this machine, which is looked at then. */
enum corral_status corral_job_load(const char *path, const char *const *sets, uint32_t set_count,
                                   struct corral_job **out, struct corral_error *err);

struct corral_job_text {
    const char *name; /* in errors */
    const char *text;
    size_t bytes;
    const char *folder; /* absolute, relative paths start here; NULL = they stay as they are */
    const char *const *sets;
    uint32_t set_count;
    const struct corral_inventory *machine; /* for jobs without [[node]]; NULL = a machine without GPUs */
};
/* The same from memory; looks at nothing outside. */
enum corral_status corral_job_load_text(const struct corral_job_text *source, struct corral_job **out,
                                        struct corral_error *err);
/* What only trying could show, such as an environment that is not there: puts the place of the key before *err, as errors of the file have it. */
enum corral_status corral_job_error_at(const struct corral_job *job, const char *section, const char *key,
                                       struct corral_error *err);
void corral_job_destroy(struct corral_job *job);
CORRAL_DEFINE_CLEANUP(struct corral_job, corral_job_destroy)

/* ---- what others ask of a job ---- */
const char *corral_role_name(enum corral_role role);               /* "train", "rollout", "eval", "tenant" */
const char *corral_device_kind_name(enum corral_device_kind kind); /* "host", "gpu" */

/* One process per device and workers_per_device, partitions in file order, devices in the order written. Tenants are not workers. */
struct corral_job_worker {
    char name[48]; /* partition name + "-" + index in the partition: "rollout-3" */
    enum corral_role role;
    uint32_t partition;  /* into job->partition */
    uint32_t index;      /* within the partition */
    uint32_t role_index; /* within the role over all partitions: a trainer's rank */
    struct corral_job_device device;
};
/* Returns how many there are; writes at most `max` of them (out may be NULL). */
uint32_t corral_job_workers(const struct corral_job *job, struct corral_job_worker *out, uint32_t max);
uint32_t corral_job_role_count(const struct corral_job *job,
                               enum corral_role role); /* workers of that role */
/* "a:3". Returns out. */
const char *corral_job_device_name(const struct corral_job *job, uint32_t node, uint32_t slot, char *out,
                                   size_t out_bytes);
/* "a:0-3 b:0" of a partition; cut with "…" when it does not fit. Returns out. */
const char *corral_job_device_set(const struct corral_job *job, const struct corral_job_partition *p,
                                  char *out, size_t out_bytes);
uint64_t corral_job_headroom(const struct corral_job *job, uint32_t node); /* bytes per device of that node */
/* argv of a tenant, and what it adds to the environment, NULL-terminated, pointing into the job. Return the count. */
uint32_t corral_job_command(const struct corral_job_partition *p, const char *argv[CORRAL_JOB_ARGV_MAX + 1]);
uint32_t corral_job_environment(const struct corral_job_partition *p,
                                const char *env[CORRAL_JOB_ARGV_MAX + 1]);
/* Tenants without a folder get this one: the only value that launch decides. CORRAL_INVALID when it is too long. */
enum corral_status corral_job_set_tenant_folder(struct corral_job *job, const char *folder,
                                                struct corral_error *err);
/* Names that memory.fences knows, by bit; NULL past the last. */
const char *corral_job_fence_name(uint32_t bit);
const char *corral_restart_name(enum corral_restart restart); /* "always", "on-failure", "never" */
/* Transitions per gradient step over all trainers, for an environment with `agents` rows per instance. */
uint64_t corral_job_batch(const struct corral_job *job, uint32_t agents);
/* 0..1: where the schedules stand after `env_steps`. */
double corral_job_progress(const struct corral_job *job, uint64_t env_steps);
void corral_job_ppo_config(const struct corral_job *job, struct corral_ppo_config *out);
/* The policy for an environment's observation width and action space. */
void corral_job_policy_spec(const struct corral_job *job, uint32_t obs_dim,
                            const struct corral_action_spec *action, struct corral_policy_spec *out);

/* ---- printing, from the option table ---- */
/* The whole job as TOML that parses to the same job; with `origins`, each line says where its value came from. */
enum corral_status corral_job_print(const struct corral_job *job, bool origins, FILE *to,
                                    struct corral_error *err);
/* The same as text (free()): what a run folder keeps. */
enum corral_status corral_job_text_of(const struct corral_job *job, char **out, struct corral_error *err);
/* Every option, as Markdown. */
enum corral_status corral_job_reference(FILE *to, struct corral_error *err);

#endif
