/* Coming up: what a trainer rank says of its saved state, the group it joins, the state it goes on from, the version it starts with. */
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <stdio.h>
#include <string.h>

#define WAIT_MS 50

/* A tcp:// receiver listens on every interface; others reach it under this node's address. */
static void endpoint_for_others(const struct corral_trainer *t, char *out, size_t out_bytes)
{
    const char *bound = corral_traj_receiver_endpoint(t->receiver);
    const char *port = strrchr(bound, ':');
    if (strncmp(bound, "tcp://", 6) == 0 && port) {
        (void)snprintf(out, out_bytes, "tcp://%s%s", t->session->launch.host, port);
    } else {
        (void)snprintf(out, out_bytes, "%s", bound);
    }
}

/* Tell the coordinator where this rank can be reached and where its saved state stands. */
enum corral_status corral_trainer_say_ready(struct corral_trainer *t, struct corral_error *err)
{
    char collective[256] = "", endpoint[320];
    endpoint_for_others(t, endpoint, sizeof endpoint);
    if (t->config->collective_tcp && t->rank == 0) {
        CORRAL_TRY(corral_collective_tcp_listen(t->session->launch.host, &t->listener, collective,
                                                sizeof collective, err));
    }
    struct corral_trainer_counters counters = {0};
    bool saved = corral_trainer_state_peek(t->session->launch.vault_fd, &counters, NULL) == CORRAL_OK;
    /* A version is saved before it is pushed: another node may hold one that this node's store does not. */
    uint64_t version = CORRAL_MAX(counters.version, corral_weight_store_version(t->session->store));
    corral_mpack_map(t->out, 7);
    corral_mpack_kv_str(t->out, "type", "ready");
    corral_mpack_kv_str(t->out, "endpoint", endpoint);
    corral_mpack_kv_str(t->out, "collective", collective);
    corral_mpack_kv_u64(t->out, "step", counters.step);
    corral_mpack_kv_bool(t->out, "saved", saved);
    corral_mpack_kv_u64(t->out, "version", version);
    corral_mpack_kv_u64(t->out, "rank", t->rank);
    return corral_session_send(t->session, t->out, err);
}

enum corral_status corral_trainer_join_group(struct corral_trainer *t, struct corral_error *err)
{
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_IDLE);
    while (!t->grouped && !t->session->finish) {
        CORRAL_TRY(corral_trainer_poll(t, WAIT_MS, err));
    }
    if (t->session->finish) {
        return CORRAL_OK;
    }
    const struct corral_trainer_config *c = t->config;
    uint32_t ranks = c->share.trainers;
    if (ranks == 1) {
        return corral_collective_self_create(&t->collective, err);
    }
    if (c->collective_tcp) {
        struct corral_collective_listener *listener = CORRAL_STEAL(t->listener);
        return corral_collective_tcp_create(listener, t->collective_endpoint, t->rank, ranks, t->generation,
                                            t->session->launch.secret, c->collective_timeout_ms,
                                            &t->collective, err);
    }
    return corral_collective_shm_create(t->session->launch.collective_fd, t->rank, ranks, t->generation,
                                        c->collective_timeout_ms, &t->collective, err);
}

/* The group's step from the vault; else the checkpoint to resume; else a fresh learner. */
enum corral_status corral_trainer_restore_state(struct corral_trainer *t, struct corral_error *err)
{
    const void *state;
    uint64_t bytes, newest;
    if (corral_state_vault_newest(t->vault, &newest, NULL) == CORRAL_OK) {
        CORRAL_TRY(corral_state_vault_find(t->vault, t->group_step, &state, &bytes, err));
        CORRAL_TRY(corral_trainer_state_unpack(&t->state, t->ppo, state, bytes, err));
        corral_state_vault_rewind(t->vault, t->group_step);
        corral_log_info("state restored", LOG_U64("step", t->state.counters.step),
                        LOG_U64("version", t->state.counters.version));
    } else if (t->config->resume[0]) {
        CORRAL_TRY(corral_trainer_restore_checkpoint(t, err));
        corral_log_info("checkpoint restored", LOG_STR("folder", t->config->resume),
                        LOG_U64("step", t->state.counters.step));
    }
    CORRAL_TRY(corral_trainer_log_check(t, err));
    return corral_traj_receiver_restore(t->receiver, t->state.cursor, t->state.cursor_count, err);
}

void corral_trainer_save_state(struct corral_trainer *t)
{
    corral_trainer_state_pack(&t->state, t->ppo, corral_state_vault_begin(t->vault));
    corral_state_vault_commit(t->vault, t->state.counters.step, corral_trainer_state_bytes(t->ppo));
}

/* A run that goes on may already be at its limit: the coordinator must know without waiting for a step. */
static enum corral_status say_where_we_stand(struct corral_trainer *t, struct corral_error *err)
{
    corral_mpack_map(t->out, 6);
    corral_mpack_kv_str(t->out, "type", "stands");
    corral_mpack_kv_u64(t->out, "rank", t->rank);
    corral_mpack_kv_u64(t->out, "step", t->state.counters.step);
    corral_mpack_kv_u64(t->out, "version", t->state.counters.version);
    corral_mpack_kv_u64(t->out, "env_steps", t->state.counters.env_steps);
    corral_mpack_kv_u64(t->out, "pushes", t->state.counters.pushes);
    return corral_session_send(t->session, t->out, err);
}

/* The state may hold a version that is out, one that some nodes have, or one that nobody has: pushing the same weights under the same number again is harmless. Weights that went back a step,
 * or come from a checkpoint, need a number above every one that was seen. */
enum corral_status corral_trainer_publish_where_we_stand(struct corral_trainer *t, struct corral_error *err)
{
    uint64_t took_ns, before = t->state.counters.version;
    if (t->rank == 0 && (t->state.counters.version == 0 || t->state.counters.version < t->version_floor)) {
        bool granted;
        CORRAL_TRY(corral_trainer_next_version(t, &granted, err));
        if (!granted) {
            return CORRAL_OK; /* told to finish */
        }
    }
    /* Rank 0 knows which versions are out; all ranks count on from the same number. */
    uint64_t agreed[2] = {t->state.counters.version, t->state.counters.pushes};
    CORRAL_TRY(t->collective->ops->broadcast(t->collective, agreed, sizeof agreed, err));
    corral_trainer_log_rebase(t, before, agreed[0]);
    t->state.counters.version = agreed[0];
    t->state.counters.pushes = agreed[1];
    t->standing = true;
    corral_trainer_save_state(t);
    CORRAL_TRY(corral_trainer_publish(t, &took_ns, err));
    return say_where_we_stand(t, err);
}
