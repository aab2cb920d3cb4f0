#include "orchestrator/agent/agent_internal.h"
#include "transport/collective/collective.h"
#include "worker/state_vault.h"
#include <string.h>
#include <unistd.h>

#define COLLECTIVE_STAGING_BYTES (1u << 20)

static enum corral_status make_ledger(struct corral_agent *a, struct corral_error *err)
{
    struct corral_ledger ledger;
    CORRAL_TRY(corral_plan_ledger(a->plan, a->node, &ledger, err));
    return corral_quota_create(&ledger, &a->ledger_fd, &a->quota, err);
}

static enum corral_status make_store(struct corral_agent *a, struct corral_error *err)
{
    struct corral_policy_layout layout;
    CORRAL_TRY(corral_job_policy_layout(a->job, &a->env, &layout, err));
    CORRAL_TRY(corral_weight_store_create(layout.floats * sizeof(float), &a->store_fd, err));
    CORRAL_TRY(corral_weight_store_attach(a->store_fd, &a->store, err));
    if (a->job->node_count == 1) {
        return CORRAL_OK;
    }
    return corral_weight_receiver_start(&a->receiver, a->store, corral_job_node_host(a->job, a->node),
                                        a->launch.run, a->launch.secret, a->weights_endpoint,
                                        sizeof a->weights_endpoint, err);
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
    return corral_board_create(CORRAL_MAX(a->worker_count, 1u), &a->board_fd, &a->board, err);
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
}
