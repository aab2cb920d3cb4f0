#include "rollout/worker/rollout_worker.h"
#include "base/clock.h"
#include "base/log.h"
#include "rollout/worker/env_snapshot.h"
#include "rollout/worker/fragment_builder.h"
#include "rollout/worker/policy_view.h"
#include "transport/trajectory/sender.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLL_EVERY_NS (20 * CORRAL_NS_PER_MS)
#define WAIT_MS 50
#define TURN_PATIENCE_NS (2 * CORRAL_NS_PER_S)

struct rollout {
    struct corral_session *session;
    const struct corral_rollout_config *config;
    struct corral_vec *vec;
    const struct corral_vec_view *view;
    struct corral_policy_workspace *workspace;
    struct corral_policy_view policy;
    struct corral_fragment_builder builder;
    struct corral_traj_sender *sender;
    struct corral_rng rng;
    struct corral_mpack_writer *out;
    uint64_t sent[CORRAL_SHARE_TRAINERS_MAX]; /* fragments of this life, per trainer rank */
    uint32_t rank;                            /* the one that gets the fragment in the making */
    uint64_t polled_ns;
    bool started;
    char snapshot_path[1024]; /* asked for, written at the next fragment boundary */
};

static void rollout_close(struct rollout *r)
{
    corral_mpack_writer_destroy(r->out);
    corral_traj_sender_destroy(r->sender, 0);
    corral_fragment_builder_close(&r->builder);
    corral_policy_view_close(&r->policy);
    corral_policy_workspace_destroy(r->workspace);
    corral_vec_destroy(r->vec);
}

static enum corral_status rollout_open(struct rollout *r, struct corral_error *err)
{
    const struct corral_rollout_config *c = r->config;
    const struct corral_worker_launch *launch = &r->session->launch;
    struct corral_vec_config env = c->env;
    env.memory = r->session->memory;
    env.worker = launch->index;
    /* A restarted worker must not replay the episodes of its earlier life. */
    env.seed = corral_seed_derive(c->seed, 0x656e76, launch->epoch, 0);
    CORRAL_TRY(corral_vec_create(&r->vec, &env, err));
    r->view = corral_vec_view(r->vec);
    CORRAL_TRY(corral_policy_workspace_create(&r->workspace, &c->layout, r->view->rows, false,
                                              r->session->memory, err));
    CORRAL_TRY(
        corral_policy_view_open(&r->policy, &c->layout, r->session->store, c->cast, r->session->memory, err));
    CORRAL_TRY(corral_fragment_builder_open(&r->builder, r->view,
                                            c->layout.spec.action.kind == CORRAL_ACTION_CONTINUOUS,
                                            c->fragment_steps, r->session->memory, err));
    struct corral_traj_sender_config sender = {
        .zmq_context = r->session->zmq,
        .run = launch->run,
        .worker = launch->index,
        .epoch = launch->epoch,
        .window_bytes = c->window_bytes,
        .ring_bytes = c->ring_bytes,
        .transport = c->transport,
        .memory = r->session->memory,
        .token = launch->token,
        .server_key = launch->server_key[0] ? launch->server_key : NULL,
    };
    for (uint32_t rank = 0; rank < CORRAL_MIN(c->share.trainers, 64u); rank++) {
        sender.no_ring |= (uint64_t)(corral_fragment_quota(&c->share, launch->index, rank) == 0) << rank;
    }
    CORRAL_TRY(corral_traj_sender_create(&r->sender, &sender, err));
    corral_rng_seed(&r->rng, corral_seed_derive(c->seed, 0x616374, launch->index, launch->epoch));
    r->out = corral_mpack_writer_create();
    if (!r->out) {
        return corral_fail(err, CORRAL_NOMEM, "worker %s: no message buffer", launch->name);
    }
    CORRAL_TRY(corral_vec_reset(r->vec, err));
    if (c->snapshot[0]) {
        CORRAL_TRY(corral_env_snapshot_read(c->snapshot, r->vec, &r->rng, &r->builder, err));
    }
    return CORRAL_OK;
}

static enum corral_status connect_peers(struct rollout *r, const struct corral_mpack_node *message,
                                        struct corral_error *err)
{
    const struct corral_mpack_node *peers;
    CORRAL_TRY(corral_mpack_get_node(message, "peers", &peers, err));
    for (uint32_t i = 0; i < corral_mpack_count(peers); i++) {
        uint64_t rank;
        char endpoint[256];
        CORRAL_TRY(corral_mpack_get_u64(corral_mpack_at(peers, i), "rank", &rank, err));
        CORRAL_TRY(
            corral_mpack_get_str(corral_mpack_at(peers, i), "endpoint", endpoint, sizeof endpoint, err));
        if (rank >= r->config->share.trainers) {
            return corral_fail(err, CORRAL_PROTOCOL, "trainer rank %llu of %u", (unsigned long long)rank,
                               r->config->share.trainers);
        }
        CORRAL_TRY(corral_traj_sender_connect(r->sender, (uint32_t)rank, endpoint, err));
    }
    r->started = true;
    return CORRAL_OK;
}

static enum corral_status on_message(void *ctx, const char *type, const struct corral_mpack_node *message,
                                     struct corral_error *err)
{
    struct rollout *r = ctx;
    if (strcmp(type, "start") == 0 || strcmp(type, "peers") == 0) {
        return connect_peers(r, message, err);
    }
    if (strcmp(type, "checkpoint") == 0) {
        return corral_mpack_get_str(message, "path", r->snapshot_path, sizeof r->snapshot_path, err);
    }
    corral_log_debug("message ignored", LOG_STR("type", type));
    return CORRAL_OK;
}

static enum corral_status poll_control(struct rollout *r, uint32_t timeout_ms, struct corral_error *err)
{
    r->polled_ns = corral_now_ns(&corral_clock_monotonic);
    return corral_session_poll(r->session, timeout_ms, on_message, r, err);
}

static enum corral_status say_ready(struct rollout *r, struct corral_error *err)
{
    corral_mpack_map(r->out, 2);
    corral_mpack_kv_str(r->out, "type", "ready");
    corral_mpack_kv_str(r->out, "endpoint", "");
    return corral_session_send(r->session, r->out, err);
}

/* A checkpoint of the environments is worth having and not worth dying for: the coordinator is told how it went. */
static enum corral_status write_snapshot(struct rollout *r, struct corral_error *err)
{
    corral_board_enter(r->session->slot, CORRAL_ACTIVITY_CHECKPOINT);
    struct corral_error failure = {0};
    char path[1200];
    snprintf(path, sizeof path, "%s/env-%u.bin", r->snapshot_path, r->session->launch.index);
    enum corral_status status = corral_env_snapshot_write(path, r->vec, &r->rng, &r->builder, &failure);
    corral_mpack_map(r->out, 4);
    corral_mpack_kv_str(r->out, "type", "snapshotted");
    corral_mpack_kv_str(r->out, "path", r->snapshot_path);
    r->snapshot_path[0] = 0;
    corral_mpack_kv_bool(r->out, "written", status == CORRAL_OK);
    corral_mpack_kv_str(r->out, "reason",
                        status == CORRAL_OK || status == CORRAL_UNSUPPORTED ? "" : failure.text);
    return corral_session_send(r->session, r->out, err);
}

/* Wait for the trainers' addresses and the first version. */
static enum corral_status wait_for_start(struct rollout *r, struct corral_error *err)
{
    while (!r->session->finish && !(r->started && r->policy.version)) {
        if (!r->started) {
            corral_board_enter(r->session->slot, CORRAL_ACTIVITY_IDLE);
            CORRAL_TRY(poll_control(r, WAIT_MS, err));
            continue;
        }
        corral_board_enter(r->session->slot, CORRAL_ACTIVITY_WAIT_VERSION);
        (void)corral_weight_store_wait(r->session->store, 0, WAIT_MS, NULL);
        CORRAL_TRY(corral_policy_view_refresh(&r->policy, err));
        CORRAL_TRY(poll_control(r, 0, err));
    }
    return CORRAL_OK;
}

static void publish_counters(struct rollout *r, const struct corral_traj_sender_stats *stats)
{
    struct corral_board_slot *slot = r->session->slot;
    corral_board_set(slot, CORRAL_BOARD_FRAGMENTS, stats->sent);
    corral_board_set(slot, CORRAL_BOARD_ACKED, stats->acked);
    corral_board_set(slot, CORRAL_BOARD_RESENT, stats->resent);
    corral_board_set(slot, CORRAL_BOARD_VERSION, r->policy.version);
    corral_board_set(slot, CORRAL_BOARD_VOID_EPISODES, r->builder.void_episodes);
    corral_board_set(slot, CORRAL_BOARD_MEMORY_BYTES, corral_session_memory_used(r->session));
}

static bool lease_open(const struct rollout *r, uint32_t rank)
{
    uint64_t quota = corral_fragment_quota(&r->config->share, r->session->launch.index, rank);
    /* With a log, a trainer that was started again first trains on what earlier lives have left in it. */
    if (r->config->logged && !corral_traj_sender_welcomed(r->sender, rank)) {
        return false;
    }
    return corral_traj_sender_unfinished(r->sender, rank) < quota * (1 + (uint64_t)r->config->max_versions);
}

/* The rank whose turn it is: the one with the fewest fragments for its quota, in dealing order among equals. With `open`, only ranks whose lease has room. */
static bool next_rank(const struct rollout *r, bool open, uint32_t *out)
{
    const struct corral_fragment_share *share = &r->config->share;
    uint32_t worker = r->session->launch.index;
    bool found = false;
    for (uint32_t k = 0; k < share->per_step; k++) {
        uint32_t rank = corral_fragment_rank(share, worker, k);
        uint64_t quota = corral_fragment_quota(share, worker, rank);
        if (open && !lease_open(r, rank)) {
            continue;
        }
        if (!found || r->sent[rank] * corral_fragment_quota(share, worker, *out) < r->sent[*out] * quota) {
            *out = rank;
            found = true;
        }
    }
    return found;
}

/* The lease: see rollout_worker.h. Counted per rank, because after a restart the ranks may hold unequal numbers of this worker's fragments. Normally the fragment goes to the rank
 * whose turn it is, so that a run without failures deals the same way every time; when that one stays shut while another waits for us, to the other. */
static enum corral_status wait_for_lease(struct rollout *r, struct corral_error *err)
{
    struct corral_traj_sender_stats stats;
    uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(corral_traj_sender_poll(r->sender, 0, err));
    for (;;) {
        corral_traj_sender_stats(r->sender, &stats);
        publish_counters(r, &stats);
        bool patient = corral_now_ns(&corral_clock_monotonic) - begun_ns < TURN_PATIENCE_NS;
        if (r->session->finish || (next_rank(r, !patient, &r->rank) && lease_open(r, r->rank))) {
            return CORRAL_OK;
        }
        corral_board_enter(r->session->slot, CORRAL_ACTIVITY_WAIT_VERSION);
        CORRAL_TRY(corral_traj_sender_poll(r->sender, WAIT_MS, err));
        CORRAL_TRY(poll_control(r, 0, err));
        if (r->snapshot_path[0]) {
            CORRAL_TRY(write_snapshot(r, err));
        }
    }
}

static enum corral_status collect_fragment(struct rollout *r, struct corral_error *err)
{
    struct corral_board_slot *slot = r->session->slot;
    const struct corral_policy_layout *layout = &r->config->layout;
    corral_fragment_builder_next(&r->builder);
    while (!corral_fragment_builder_full(&r->builder)) {
        corral_board_enter(slot, CORRAL_ACTIVITY_INFERENCE);
        CORRAL_TRY(corral_policy_view_refresh(&r->policy, err));
        corral_policy_act(layout, r->policy.weights, r->workspace, r->view->obs, r->view->mask, r->view->rows,
                          false, &r->rng, r->view->action, corral_fragment_builder_log_prob(&r->builder),
                          NULL);
        corral_fragment_builder_before_step(&r->builder, r->view, r->policy.version);
        corral_board_enter(slot, CORRAL_ACTIVITY_ENV_STEP);
        CORRAL_TRY(corral_vec_step(r->vec, err));
        corral_fragment_builder_after_step(&r->builder, r->view);
        corral_board_add(slot, CORRAL_BOARD_ENV_STEPS, r->view->envs);
        if (corral_now_ns(&corral_clock_monotonic) - r->polled_ns > POLL_EVERY_NS) {
            CORRAL_TRY(poll_control(r, 0, err));
            if (r->session->finish) {
                return CORRAL_OK;
            }
        }
    }
    corral_board_add(slot, CORRAL_BOARD_EPISODES, r->builder.fragment.episode_count);
    return CORRAL_OK;
}

/* Out of credit, or out of memory while earlier fragments still hold some: both end when the trainers take what they have. */
static bool worth_waiting(const struct rollout *r, enum corral_status status)
{
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(r->sender, &stats);
    return status == CORRAL_AGAIN ||
           ((status == CORRAL_DENIED || status == CORRAL_NOMEM) && stats.unacked_bytes > 0);
}

static enum corral_status wait_for_ack(struct rollout *r, bool of_memory, struct corral_error *err)
{
    struct corral_traj_sender_stats before, now;
    corral_traj_sender_stats(r->sender, &before);
    do {
        corral_board_enter(r->session->slot, CORRAL_ACTIVITY_WAIT_CREDIT);
        CORRAL_TRY(corral_traj_sender_poll(r->sender, WAIT_MS, err));
        CORRAL_TRY(poll_control(r, 0, err));
        if (r->snapshot_path[0]) {
            CORRAL_TRY(write_snapshot(r, err)); /* also a boundary: the trainers may have gone for good */
        }
        corral_traj_sender_stats(r->sender, &now);
    } while (of_memory && now.acked == before.acked && !r->session->finish);
    return CORRAL_OK;
}

/* To the rank whose turn it is; when that one has had no room for long, to any that has: it may be the one the others wait for. */
static enum corral_status try_send(struct rollout *r, bool patient, struct corral_error *err)
{
    const struct corral_fragment_share *share = &r->config->share;
    enum corral_status status =
        corral_traj_sender_send_fragment(r->sender, r->rank, &r->builder.fragment, err);
    for (uint32_t k = 0; k < share->per_step && status == CORRAL_AGAIN && !patient; k++) {
        uint32_t rank = corral_fragment_rank(share, r->session->launch.index, k);
        if (rank != r->rank && lease_open(r, rank)) {
            r->rank = rank;
            status = corral_traj_sender_send_fragment(r->sender, rank, &r->builder.fragment, err);
        }
    }
    return status;
}

static enum corral_status send_fragment(struct rollout *r, struct corral_error *err)
{
    uint64_t begun_ns = corral_now_ns(&corral_clock_monotonic);
    while (!r->session->finish) {
        bool patient = corral_now_ns(&corral_clock_monotonic) - begun_ns < TURN_PATIENCE_NS;
        enum corral_status status = try_send(r, patient, err);
        if (status == CORRAL_OK) {
            r->sent[r->rank]++;
            return CORRAL_OK;
        }
        if (!worth_waiting(r, status)) {
            return status;
        }
        CORRAL_TRY(wait_for_ack(r, status != CORRAL_AGAIN, err));
    }
    return CORRAL_OK;
}

static enum corral_status rollout_loop(struct rollout *r, struct corral_error *err)
{
    CORRAL_TRY(say_ready(r, err));
    CORRAL_TRY(wait_for_start(r, err));
    while (!r->session->finish) {
        if (r->snapshot_path[0]) {
            CORRAL_TRY(write_snapshot(r, err));
        }
        CORRAL_TRY(wait_for_lease(r, err));
        if (r->session->finish) {
            break;
        }
        CORRAL_TRY(collect_fragment(r, err));
        if (!r->session->finish) {
            CORRAL_TRY(send_fragment(r, err));
        }
        CORRAL_TRY(poll_control(r, 0, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_rollout_worker_run(struct corral_session *session,
                                             const struct corral_rollout_config *config,
                                             struct corral_error *err)
{
    struct rollout r = {.session = session, .config = config};
    enum corral_status status = rollout_open(&r, err);
    if (status == CORRAL_OK) {
        status = rollout_loop(&r, err);
    }
    rollout_close(&r);
    return status;
}
