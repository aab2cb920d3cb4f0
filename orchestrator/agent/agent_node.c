#include "base/clock.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/weight_lanes.h"
#include "transport/collective/collective.h"
#include "transport/weights/node_receiver.h"
#include "worker/policy_manifest.h"
#include "worker/state_vault.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COLLECTIVE_STAGING_BYTES (1u << 20)

static enum corral_status make_ledger(struct corral_agent *a, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_ledger *ledger = malloc(corral_ledger_bytes());
    if (!ledger) {
        return corral_fail(err, CORRAL_NOMEM, "agent: no room for the ledger");
    }
    const struct corral_quota_options options = {
        .pressure_wait_ms = (uint32_t)(a->job->memory.pressure_wait_ns / CORRAL_NS_PER_MS)};
    CORRAL_TRY(corral_plan_ledger(a->plan, a->node, ledger, err));
    CORRAL_TRY(corral_agent_check_gpus(a, ledger, err));
    return corral_quota_create(ledger, &options, &a->ledger_fd, &a->quota, err);
}

static enum corral_status make_store(struct corral_agent *a, struct corral_error *err)
{
    struct corral_policy_layout layout;
    CORRAL_CLEANUP(corral_weight_form_destroyp) struct corral_weight_form *form = NULL;
    CORRAL_TRY(corral_job_policy_layout(a->job, &a->env, &layout, err));
    CORRAL_TRY(corral_policy_form(&layout, a->job->weights.cast, &form, err));
    CORRAL_TRY(corral_weight_store_create(corral_weight_form_manifest(form)->bytes, &a->store_fd, err));
    CORRAL_TRY(corral_weight_store_attach(a->store_fd, &a->store, err));
    if (a->job->node_count == 1) {
        return CORRAL_OK;
    }
    char lanes[CORRAL_WEIGHT_LANES_MAX];
    const struct corral_lane_options here = {.local_host = NULL};
    if (a->job->weights.transport == CORRAL_WEIGHTS_RDMA &&
        corral_lane_rdma_ops.available(&here, err) != CORRAL_OK) {
        return corral_error_prefix(err, CORRAL_UNSUPPORTED, "weights.transport = \"rdma\"");
    }
    corral_weight_lanes(a->job, lanes);
    const struct corral_node_receiver_options options = {
        .node = a->job->node[a->node].name,
        .host = corral_job_node_host(a->job, a->node),
        .manifest = corral_weight_form_manifest(form),
        .store = a->store,
        .run = a->launch.run,
        .secret = a->launch.secret,
        .lanes = lanes,
    };
    CORRAL_TRY(corral_weight_receiver_start(&a->receiver, &options, err));
    snprintf(a->weights_endpoint, sizeof a->weights_endpoint, "%s",
             corral_weight_receiver_endpoint(a->receiver));
    return CORRAL_OK;
}

static enum corral_status list_workers(struct corral_agent *a, struct corral_error *err)
{
    uint32_t trainers = 0;
    for (uint32_t i = 0; i < a->plan->worker_count; i++) {
        const struct corral_plan_worker *p = &a->plan->worker[i];
        if (p->worker.device.node != a->node) {
            continue;
        }
        if (a->worker_count == CORRAL_AGENT_WORKERS_MAX) {
            return corral_fail(err, CORRAL_INVALID, "node %s has more than %d workers",
                               a->job->node[a->node].name, CORRAL_AGENT_WORKERS_MAX);
        }
        struct corral_agent_worker *w = &a->worker[a->worker_count];
        *w = (struct corral_agent_worker){
            .plan = p, .agent = a, .slot = a->worker_count, .vault_fd = -1, .process = {.pidfd = -1}};
        a->worker_count++;
        if (p->worker.role == CORRAL_ROLE_TRAIN) {
            CORRAL_TRY(corral_state_vault_create(&w->vault_fd, err));
            trainers++;
        }
    }
    if (trainers > 1) {
        CORRAL_TRY(corral_collective_shm_segment(corral_job_role_count(a->job, CORRAL_ROLE_TRAIN),
                                                 COLLECTIVE_STAGING_BYTES, &a->collective_fd, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_agent_make_node(struct corral_agent *a, struct corral_error *err)
{
    CORRAL_TRY(make_ledger(a, err));
    CORRAL_TRY(make_store(a, err));
    CORRAL_TRY(list_workers(a, err));
    CORRAL_TRY(corral_board_create(CORRAL_MAX(a->worker_count, 1u), &a->board_fd, &a->board, err));
    CORRAL_TRY(corral_agent_make_fences(a, err));
    return corral_agent_check_fences(a, err);
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

void corral_agent_drop_node(struct corral_agent *a)
{
    corral_weight_receiver_stop(a->receiver);
    corral_weight_store_detach(a->store);
    corral_board_detach(a->board);
    corral_quota_detach(a->quota);
    for (uint32_t i = 0; i < a->worker_count; i++) {
        close_fd(&a->worker[i].vault_fd);
    }
    close_fd(&a->ledger_fd);
    close_fd(&a->store_fd);
    close_fd(&a->board_fd);
    close_fd(&a->collective_fd);
    for (uint32_t slot = 0; slot < CORRAL_JOB_NODE_DEVICES_MAX; slot++) {
        close_fd(&a->gpu_claim[slot]);
    }
}
