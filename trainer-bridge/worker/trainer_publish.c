#include "base/clock.h"
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include "worker/policy_manifest.h"
#include <string.h>

#define LEASE_MARGIN 64 /* ask for more versions this long before the lease runs out */
#define WAIT_MS 50

enum corral_status corral_trainer_publisher_open(struct corral_trainer *t, struct corral_error *err)
{
    CORRAL_TRY(corral_policy_manifest(&t->config->layout, &t->manifest, err));
    if (t->rank != 0) {
        return CORRAL_OK;
    }
    const struct corral_worker_launch *launch = &t->session->launch;
    /* On a GPU lanes take host memory, which is not the device's. */
    t->lane_charge = (struct corral_lane_charge){.quota = t->session->quota, .holder = t->session->holder};
    const struct corral_push_budget budget = {.hold = t->config->host_device ? corral_lane_charge_hold : NULL,
                                              .ctx = &t->lane_charge};
    const struct corral_publisher_options options = {.manifest = t->manifest,
                                                     .cast = t->config->weights_cast,
                                                     .delta = t->config->weights_delta,
                                                     .anchor_every = t->config->weights_anchor_every,
                                                     .memory = t->session->memory,
                                                     .budget = budget,
                                                     .run = launch->run,
                                                     .secret = launch->secret,
                                                     .deadline_ms = t->config->weights_deadline_ms,
                                                     .lanes = t->config->weights_lanes};
    CORRAL_TRY(corral_weight_publisher_create(&t->publisher, &options, err));
    return corral_weight_publisher_add_store(t->publisher, t->session->store, err);
}

enum corral_status corral_trainer_set_targets(struct corral_trainer *t,
                                              const struct corral_mpack_node *message,
                                              struct corral_error *err)
{
    const struct corral_mpack_node *targets;
    CORRAL_TRY(corral_mpack_get_node(message, "targets", &targets, err));
    for (uint32_t i = 0; t->publisher && i < corral_mpack_count(targets); i++) {
        char node[CORRAL_BUS_NAME_MAX], endpoint[256];
        CORRAL_TRY(corral_mpack_get_str(corral_mpack_at(targets, i), "node", node, sizeof node, err));
        CORRAL_TRY(
            corral_mpack_get_str(corral_mpack_at(targets, i), "endpoint", endpoint, sizeof endpoint, err));
        if (strcmp(node, t->session->launch.node) == 0) {
            continue; /* this node's store is written directly */
        }
        enum corral_status status = corral_weight_publisher_add_node(t->publisher, node, endpoint, err);
        if (status != CORRAL_OK && status != CORRAL_EXISTS) {
            return status;
        }
    }
    return CORRAL_OK;
}

static enum corral_status ask_for_lease(struct corral_trainer *t, struct corral_error *err)
{
    corral_mpack_map(t->out, 2);
    corral_mpack_kv_str(t->out, "type", "lease");
    corral_mpack_kv_u64(t->out, "version", t->state.counters.version);
    return corral_session_send(t->session, t->out, err);
}

/* Version numbers are handed out in journalled leases, so that a run resumed after a crash of everything starts above any number that may have been seen. */
enum corral_status corral_trainer_next_version(struct corral_trainer *t, bool *granted,
                                               struct corral_error *err)
{
    uint64_t next = CORRAL_MAX(t->state.counters.version, t->version_floor) + 1;
    if (t->rank == 0 && next + LEASE_MARGIN == t->version_limit) {
        CORRAL_TRY(ask_for_lease(t, err));
    }
    if (next > t->version_limit) {
        CORRAL_TRY(ask_for_lease(t, err));
        while (next > t->version_limit && !t->session->finish) {
            CORRAL_TRY(corral_trainer_poll(t, WAIT_MS, err));
        }
    }
    *granted = next <= t->version_limit;
    if (!*granted) {
        return CORRAL_OK;
    }
    t->state.counters.version = next;
    t->state.counters.pushes++;
    return CORRAL_OK;
}

enum corral_status corral_trainer_publish(struct corral_trainer *t, uint64_t *took_ns,
                                          struct corral_error *err)
{
    *took_ns = 0;
    if (!t->publisher) {
        return CORRAL_OK;
    }
    uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
    struct corral_publish_stats stats;
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_PUBLISH);
    memcpy(t->published, corral_ppo_weights(t->ppo), t->manifest->bytes);
    CORRAL_TRY(corral_weight_publisher_push(t->publisher, t->state.counters.version, t->published,
                                            t->manifest->bytes, &stats, err));
    t->pushed = stats;
    corral_board_set(t->session->slot, CORRAL_BOARD_VERSION, t->state.counters.version);
    *took_ns = corral_now_ns(&corral_clock_monotonic) - begun_ns;
    return CORRAL_OK;
}

enum corral_status corral_trainer_catch_up(struct corral_trainer *t, struct corral_error *err)
{
    if (!t->publisher || !corral_weight_publisher_behind(t->publisher)) {
        return CORRAL_OK;
    }
    return corral_weight_publisher_catch_up(t->publisher, t->published, t->manifest->bytes,
                                            t->state.counters.version, 0, err);
}
