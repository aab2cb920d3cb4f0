#include "orchestrator/worker/worker_main.h"
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/worker/worker_config.h"
#include <stdio.h>
#include <string.h>

static enum corral_status find_worker(const struct corral_job *job, const char *name,
                                      struct corral_job_worker *out, struct corral_error *err)
{
    struct corral_job_worker workers[CORRAL_JOB_WORKERS_MAX];
    uint32_t count = corral_job_workers(job, workers, CORRAL_JOB_WORKERS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(workers[i].name, name) == 0) {
            *out = workers[i];
            return CORRAL_OK;
        }
    }
    return corral_fail(err, CORRAL_NOT_FOUND, "the job has no worker %s", name);
}

static void fill_launch(const struct corral_job *job, const struct corral_job_worker *worker,
                        const struct corral_launch_file *file, const struct corral_worker_arguments *a,
                        struct corral_worker_launch *out)
{
    *out = (struct corral_worker_launch){
        .index = worker->role_index,
        .count = corral_job_role_count(job, worker->role),
        .epoch = a->epoch,
        .run = file->run,
        .ledger_fd = a->ledger_fd,
        .store_fd = a->store_fd,
        .board_fd = a->board_fd,
        .collective_fd = a->collective_fd,
        .vault_fd = a->vault_fd,
        .board_slot = a->slot,
        .gpu = job->node[worker->device.node].kind == CORRAL_DEVICE_GPU,
        .spill = worker->role == CORRAL_ROLE_TRAIN ? job->memory.spill : 0,
    };
    snprintf(out->name, sizeof out->name, "%s", worker->name);
    snprintf(out->node, sizeof out->node, "%s", job->node[worker->device.node].name);
    corral_job_device_name(job, worker->device.node, worker->device.slot, out->device, sizeof out->device);
    snprintf(out->role, sizeof out->role, "%s", job->partition[worker->partition].name);
    bool here = strcmp(job->node[worker->device.node].address, "local") == 0;
    snprintf(out->endpoint, sizeof out->endpoint, "%s",
             here && file->endpoint[0] ? file->endpoint : file->endpoint_tcp);
    memcpy(out->token, file->token, sizeof out->token);
    memcpy(out->secret, file->secret, sizeof out->secret);
    snprintf(out->host, sizeof out->host, "%s", corral_job_node_host(job, worker->device.node));
    if (corral_job_is_remote(job)) {
        memcpy(out->server_key, file->server_public_key, sizeof out->server_key);
        memcpy(out->server_secret_key, file->server_secret_key, sizeof out->server_secret_key);
    }
}

static enum corral_status run_role(struct corral_session *session, const struct corral_job *job,
                                   const struct corral_job_worker *worker,
                                   const struct corral_launch_file *file, const struct corral_vec_spec *env,
                                   struct corral_error *err)
{
    if (worker->role == CORRAL_ROLE_TRAIN) {
        struct corral_trainer_config config;
        CORRAL_TRY(corral_job_trainer_config(job, worker, file, env, &config, err));
        return corral_trainer_worker_run(session, &config, err);
    }
    struct corral_rollout_config config;
    CORRAL_TRY(corral_job_rollout_config(job, worker, session->launch.epoch, file, env, &config, err));
    return worker->role == CORRAL_ROLE_EVAL ? corral_eval_worker_run(session, &config, err)
                                            : corral_rollout_worker_run(session, &config, err);
}

enum corral_status corral_worker_main(const struct corral_worker_arguments *arguments,
                                      struct corral_error *err)
{
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_TRY(corral_job_load("job.toml", NULL, 0, &job, err));
    corral_log_configure(job->observe.log_level == CORRAL_LOG_OPTION_DEBUG ? CORRAL_LOG_DEBUG
                                                                           : CORRAL_LOG_INFO,
                         job->observe.log == CORRAL_LOG_OPTION_JSON, 2, arguments->name);
    struct corral_launch_file file;
    CORRAL_TRY(corral_launch_file_read("launch.json", &file, err));
    struct corral_job_worker worker;
    CORRAL_TRY(find_worker(job, arguments->name, &worker, err));
    struct corral_worker_launch launch;
    fill_launch(job, &worker, &file, arguments, &launch);
    struct corral_session session;
    CORRAL_TRY(corral_session_open(&session, &launch,
                                   (uint32_t)(job->fault.start_timeout_ns / CORRAL_NS_PER_MS), err));
    struct corral_vec_spec env;
    enum corral_status status = corral_job_env_spec(job, &env, err);
    if (status == CORRAL_OK) {
        status = run_role(&session, job, &worker, &file, &env, err);
    }
    if (status != CORRAL_OK && err) {
        corral_session_report_failure(&session, err);
    }
    corral_session_close(&session);
    return status;
}
