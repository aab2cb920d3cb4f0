#include "orchestrator/worker/worker_config.h"
#include "base/clock.h"
#include "orchestrator/plan/memory.h"
#include "orchestrator/weight_lanes.h"
#include "transport/trajectory/sender.h"
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void env_config(const struct corral_job *job, struct corral_vec_config *out)
{
    *out = (struct corral_vec_config){
        .id = job->env.id,
        .library = job->env.library[0] ? job->env.library : NULL,
        .args_json = job->env.args,
        .envs = job->env.instances,
        .seed = job->seed,
        .isolation = job->env.isolation,
        .step_timeout_ms = (uint32_t)(job->env.step_timeout_ns / CORRAL_NS_PER_MS),
        .restarts_max = job->env.restarts,
        .memory = &corral_allocator_heap,
    };
}

enum corral_status corral_job_env_spec(const struct corral_job *job, struct corral_vec_spec *out,
                                       struct corral_error *err)
{
    struct corral_vec_config config;
    env_config(job, &config);
    config.envs = 1;
    config.restarts_max = 0;
    if (config.library) {
        config.isolation = CORRAL_ISOLATION_PROCESS;
    }
    struct corral_vec *vec = NULL;
    CORRAL_TRY(corral_vec_create(&vec, &config, err));
    *out = *corral_vec_spec(vec);
    corral_vec_destroy(vec);
    return CORRAL_OK;
}

void corral_plan_env_of(const struct corral_vec_spec *spec, struct corral_plan_env *out)
{
    *out = (struct corral_plan_env){.obs_dim = spec->obs_dim, .agents = spec->agents, .action = spec->action};
}

enum corral_status corral_job_policy_layout(const struct corral_job *job, const struct corral_vec_spec *env,
                                            struct corral_policy_layout *out, struct corral_error *err)
{
    struct corral_policy_spec spec;
    corral_job_policy_spec(job, env->obs_dim, &env->action, &spec);
    return corral_policy_layout_build(&spec, out, err);
}

void corral_job_fragment_share(const struct corral_job *job, uint32_t agents,
                               struct corral_fragment_share *out)
{
    uint32_t workers = corral_job_role_count(job, CORRAL_ROLE_ROLLOUT),
             trainers = corral_job_role_count(job, CORRAL_ROLE_TRAIN);
    uint64_t fragment = (uint64_t)job->rollout.fragment * job->env.instances * agents;
    *out = (struct corral_fragment_share){
        .workers = workers,
        .trainers = trainers,
        .per_step = corral_fragment_per_step(workers, trainers, job->algorithm.batch, fragment)};
}

bool corral_job_is_remote(const struct corral_job *job)
{
    for (uint32_t i = 0; i < job->node_count; i++) {
        if (strcmp(job->node[i].address, "local") != 0) {
            return true;
        }
    }
    return false;
}

/* The numeric address of the interface that leads to `peer`; false when there is none. Connecting a datagram socket sends nothing. */
static bool address_towards(const char *peer, char *out, size_t out_bytes)
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *found = NULL;
    if (getaddrinfo(peer, "9", &hints, &found) != 0) {
        return false;
    }
    bool known = false;
    for (const struct addrinfo *a = found; a && !known; a = a->ai_next) {
        struct sockaddr_storage mine;
        socklen_t bytes = sizeof mine;
        CORRAL_AUTO_CLOSE int fd = socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        known = fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0 &&
                getsockname(fd, (struct sockaddr *)&mine, &bytes) == 0 &&
                getnameinfo((struct sockaddr *)&mine, bytes, out, (socklen_t)out_bytes, NULL, 0,
                            NI_NUMERICHOST) == 0;
    }
    freeaddrinfo(found);
    return known;
}

const char *corral_job_node_host(const struct corral_job *job, uint32_t node)
{
    static char host[256]; /* a job's processes ask for one local node only */
    if (strcmp(job->node[node].address, "local") != 0) {
        return job->node[node].address;
    }
    for (uint32_t i = 0; i < job->node_count; i++) {
        if (strcmp(job->node[i].address, "local") != 0 &&
            address_towards(job->node[i].address, host, sizeof host)) {
            return host;
        }
    }
    return "127.0.0.1";
}

static void fragment_sizes(const struct corral_job *job, const struct corral_vec_spec *env, uint64_t *bytes)
{
    struct corral_fragment f = {.steps = job->rollout.fragment,
                                .rows = job->env.instances * env->agents,
                                .obs_dim = env->obs_dim,
                                .action_components = env->action.components,
                                .mask_bytes = env->mask_bytes};
    f.boundary_count = f.episode_count = f.steps * f.rows;
    *bytes = corral_fragment_bytes(&f);
}

/* A worker sends to `ranks` trainers, to each the same number of fragments a step. What its lease allows of them fits into the window and into each ring; a ring takes at least two. */
static void ring_sizes(struct corral_rollout_config *c, uint64_t fragment)
{
    uint64_t ranks = c->share.trainers / corral_fragment_common(c->share.workers, c->share.trainers);
    uint64_t leased = c->share.per_step / ranks * (1 + (uint64_t)c->max_versions);
    c->ring_bytes = corral_traj_ring_bytes(fragment * CORRAL_MAX(leased, UINT64_C(2)));
    c->window_bytes = fragment * c->share.per_step * (1 + (uint64_t)c->max_versions);
    if (c->transport != CORRAL_TRAJ_ZMQ) {
        c->window_bytes = CORRAL_MAX(c->window_bytes, ranks * c->ring_bytes);
    }
}

enum corral_status corral_job_rollout_config(const struct corral_job *job,
                                             const struct corral_job_worker *worker, uint32_t epoch,
                                             const struct corral_launch_file *launch,
                                             const struct corral_vec_spec *env,
                                             struct corral_rollout_config *out, struct corral_error *err)
{
    memset(out, 0, sizeof *out);
    env_config(job, &out->env);
    CORRAL_TRY(corral_job_policy_layout(job, env, &out->layout, err));
    out->cast = job->weights.cast;
    corral_job_fragment_share(job, env->agents, &out->share);
    out->seed = job->seed;
    out->fragment_steps = job->rollout.fragment;
    out->max_versions = job->staleness.max_versions;
    uint64_t bytes;
    fragment_sizes(job, env, &bytes);
    out->transport = (enum corral_traj_transport)job->stream.transport;
    ring_sizes(out, bytes);
    bool first_life = epoch == launch->incarnation * CORRAL_EPOCHS_PER_INCARNATION;
    /* With a log, the trainer gets again what these environments did since the checkpoint: they must not do it once more. */
    out->logged = job->stream.durability == CORRAL_STREAM_WAL;
    if (launch->resume[0] && worker->role == CORRAL_ROLE_ROLLOUT && first_life && !out->logged) {
        char path[sizeof out->snapshot + 64];
        snprintf(path, sizeof path, "%s/env-%u.bin", launch->resume, worker->role_index);
        if (access(path, R_OK) == 0 && strlen(path) < sizeof out->snapshot) {
            memcpy(out->snapshot, path, strlen(path) + 1);
        }
    }
    return CORRAL_OK;
}

void corral_job_proof_path(uint32_t rank, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "proof/trainer-%u.chain", rank);
}

/* Several trainers of one device share its declared need. */
static enum corral_status proof_config(const struct corral_job *job, const struct corral_job_worker *worker,
                                       const struct corral_vec_spec *env, struct corral_trainer_config *out,
                                       struct corral_error *err)
{
    const struct corral_job_partition *p = &job->partition[worker->partition];
    const char *fences = getenv(CORRAL_WORKER_ENV_FENCES);
    corral_job_proof_path(worker->role_index, out->proof, sizeof out->proof);
    snprintf(out->fences, sizeof out->fences, "%s", fences ? fences : "");
    out->drift_max = job->memory.drift;
    out->declared = job->trainer.peak;
    out->refused_ms = (uint32_t)(job->fault.dead_after_ns / CORRAL_NS_PER_MS);
    out->host_device = job->node[worker->device.node].kind == CORRAL_DEVICE_HOST;
    if (out->declared == 0) {
        struct corral_plan_env plan_env;
        struct corral_plan_memory memory = {.partition = worker->partition};
        uint64_t params;
        corral_plan_env_of(env, &plan_env);
        CORRAL_TRY(corral_plan_mlp_memory(job, p, &plan_env, &memory, &params, err));
        /* What it may spill need not be in the quota. Not the floor: that can change while the run is on, and is the trainer's anyway. */
        out->declared = memory.need / p->workers_per_device;
        out->declared -= CORRAL_MIN(out->declared, job->memory.spill);
    }
    return CORRAL_OK;
}

static void log_config(const struct corral_job *job, const struct corral_job_worker *worker,
                       struct corral_trainer_config *out)
{
    if (job->stream.durability != CORRAL_STREAM_WAL) {
        return;
    }
    snprintf(out->log.folder, sizeof out->log.folder, "traj/rank-%u", worker->role_index);
    out->log.sync =
        job->stream.sync == CORRAL_STREAM_SYNC_GROUP ? CORRAL_WAL_SYNC_GROUP : CORRAL_WAL_SYNC_NEVER;
    out->log.segment_bytes = job->stream.log_segment;
    out->log.bytes_max = job->stream.log_max;
    out->log.zstd_level = (int)job->stream.compression;
    out->log.keep_all = job->stream.keep == CORRAL_STREAM_KEEP_ALL;
}

enum corral_status corral_job_trainer_config(const struct corral_job *job,
                                             const struct corral_job_worker *worker,
                                             const struct corral_launch_file *launch,
                                             const struct corral_vec_spec *env,
                                             struct corral_trainer_config *out, struct corral_error *err)
{
    memset(out, 0, sizeof *out);
    CORRAL_TRY(corral_job_policy_layout(job, env, &out->layout, err));
    corral_job_ppo_config(job, &out->ppo);
    corral_job_fragment_share(job, env->agents, &out->share);
    out->seed = job->seed;
    out->agents = env->agents;
    if (out->share.trainers > CORRAL_SHARE_TRAINERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%u trainer workers; at most %d can train together",
                           out->share.trainers, CORRAL_SHARE_TRAINERS_MAX);
    }
    uint64_t fragments = 0, quota = 1; /* the largest of any rollout worker */
    for (uint32_t w = 0; w < out->share.workers; w++) {
        uint32_t one = corral_fragment_quota(&out->share, w, worker->role_index);
        fragments += one;
        quota = CORRAL_MAX(quota, one);
    }
    uint64_t transitions = fragments * job->rollout.fragment * job->env.instances * env->agents;
    if (transitions > UINT32_MAX / 2) {
        return corral_fail(err, CORRAL_INVALID,
                           "a gradient step of %llu transitions per trainer is too large; lower "
                           "algorithm.batch, rollout.fragment or env.instances",
                           (unsigned long long)transitions);
    }
    out->transitions_max = (uint32_t)transitions;
    out->max_versions = job->staleness.max_versions;
    uint64_t bytes;
    fragment_sizes(job, env, &bytes);
    out->fragment_bytes = bytes;
    out->buffer_bytes = job->stream.buffer;
    /* Each worker has an equal part of the buffer (docs/spec/trajectory.md): what a step takes of one must fit into it. */
    if (job->stream.buffer / out->share.workers / quota < bytes) {
        return corral_fail(err, CORRAL_INVALID,
                           "stream.buffer of %llu bytes: one gradient step takes up to %llu fragments of "
                           "%llu bytes of each of %u rollout workers; at least %llu bytes are needed",
                           (unsigned long long)job->stream.buffer, (unsigned long long)quota,
                           (unsigned long long)bytes, out->share.workers,
                           (unsigned long long)(out->share.workers * quota * bytes));
    }
    if (corral_job_is_remote(job)) {
        snprintf(out->bind, sizeof out->bind, "tcp://*:*"); /* told to others under the node's own address */
    } else {
        snprintf(out->bind, sizeof out->bind, "ipc://sock/traj-%u-%d", worker->role_index, (int)getpid());
    }
    log_config(job, worker, out);
    out->weights_every = job->weights.every;
    out->weights_deadline_ms = (uint32_t)(job->weights.deadline_ns / CORRAL_NS_PER_MS);
    corral_weight_lanes(job, out->weights_lanes);
    out->weights_delta = job->weights.delta;
    out->weights_anchor_every = job->weights.anchor_every;
    out->weights_cast = job->weights.cast;
    out->schedule_env_steps = job->algorithm.schedule_steps;
    out->stop_steps = job->stop.train_steps;
    out->stop_env_steps = job->stop.env_steps;
    out->checkpoint_every = job->checkpoint.every;
    snprintf(out->resume, sizeof out->resume, "%s", launch->resume);
    /* Ranks wait for each other's rollout workers, which may be starting again; a dead rank is noticed at once, a hung one by its agent. */
    out->collective_timeout_ms =
        (uint32_t)(4 * (job->fault.dead_after_ns + job->fault.start_timeout_ns) / CORRAL_NS_PER_MS);
    CORRAL_TRY(proof_config(job, worker, env, out, err));
    struct corral_job_worker workers[CORRAL_JOB_WORKERS_MAX];
    uint32_t count = corral_job_workers(job, workers, CORRAL_JOB_WORKERS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        out->collective_tcp |=
            workers[i].role == CORRAL_ROLE_TRAIN && workers[i].device.node != worker->device.node;
    }
    return CORRAL_OK;
}
