#include "trainer-bridge/worker/trainer_worker.h"
#include "base/log.h"
#include "trainer-bridge/worker/trainer_internal.h"
#include <stdlib.h>
#include <string.h>

#define WAIT_MS 50

static enum corral_status on_message(void *ctx, const char *type, const struct corral_mpack_node *message,
                                     struct corral_error *err)
{
    struct corral_trainer *t = ctx;
    if (strcmp(type, "group") == 0) {
        uint64_t generation;
        CORRAL_TRY(corral_mpack_get_u64(message, "generation", &generation, err));
        CORRAL_TRY(corral_mpack_get_u64(message, "step", &t->group_step, err));
        CORRAL_TRY(corral_mpack_get_u64(message, "version", &t->version_floor, err));
        CORRAL_TRY(corral_mpack_get_u64(message, "version_limit", &t->version_limit, err));
        CORRAL_TRY(corral_mpack_get_str(message, "collective", t->collective_endpoint,
                                        sizeof t->collective_endpoint, err));
        t->generation = (uint32_t)generation;
        if (t->publisher) {
            corral_weight_publisher_set_generation(t->publisher, generation);
        }
        t->grouped = true;
        return CORRAL_OK;
    }
    if (strcmp(type, "weights") == 0) {
        return corral_trainer_set_targets(t, message, err);
    }
    if (strcmp(type, "leased") == 0) {
        return corral_mpack_get_u64(message, "version_limit", &t->version_limit, err);
    }
    corral_log_debug("message ignored", LOG_STR("type", type));
    return CORRAL_OK;
}

enum corral_status corral_trainer_poll(struct corral_trainer *t, uint32_t timeout_ms,
                                       struct corral_error *err)
{
    return corral_session_poll(t->session, timeout_ms, on_message, t, err);
}

static void trainer_close(struct corral_trainer *t)
{
    corral_mpack_writer_destroy(t->out);
    if (t->manifest) {
        corral_release(t->session->memory, t->published, t->manifest->bytes);
    }
    corral_weight_publisher_destroy(t->publisher);
    corral_manifest_destroy(t->manifest);
    if (t->guard) {
        corral_step_guard_abandon(
            t->guard); /* a step cut short by another rank's death was not refused: it comes again */
    }
    corral_step_guard_destroy(t->guard);
    corral_batch_queue_destroy(t->queue);
    corral_traj_receiver_destroy(t->receiver);
    corral_trainer_log_close(t);
    corral_state_vault_detach(t->vault);
    corral_ppo_destroy(t->ppo);
    corral_collective_destroy(t->collective);
    corral_collective_listener_destroy(t->listener);
}

static enum corral_status open_receiver(struct corral_trainer *t, struct corral_error *err)
{
    const struct corral_worker_launch *launch = &t->session->launch;
    struct corral_traj_receiver_config config = {
        .zmq_context = t->session->zmq,
        .run = launch->run,
        .bind = t->config->bind,
        .buffer_bytes = t->config->buffer_bytes,
        .memory = t->session->memory,
        .token = launch->token,
        .server_secret_key = launch->server_secret_key[0] ? launch->server_secret_key : NULL,
        .log = t->log ? corral_stream_log_hook(t->log) : NULL,
        .workers = t->config->share.workers,
        .record_bytes_max = t->config->fragment_bytes,
    };
    return corral_traj_receiver_create(&t->receiver, &config, err);
}

static enum corral_status trainer_open(struct corral_trainer *t, struct corral_error *err)
{
    const struct corral_trainer_config *c = t->config;
    t->out = corral_mpack_writer_create();
    if (!t->out) {
        return corral_fail(err, CORRAL_NOMEM, "worker %s: no message buffer", t->session->launch.name);
    }
    CORRAL_TRY(corral_trainer_log_open(t, err));
    CORRAL_TRY(open_receiver(t, err));
    CORRAL_TRY(corral_batch_queue_create(&t->queue, &c->share, t->rank, c->max_versions, err));
    CORRAL_TRY(corral_trainer_publisher_open(t, err));
    CORRAL_TRY(corral_trainer_say_ready(t, err));
    CORRAL_TRY(corral_trainer_join_group(t, err));
    if (t->session->finish) {
        return CORRAL_OK;
    }
    corral_board_enter(t->session->slot, CORRAL_ACTIVITY_STARTING);
    CORRAL_TRY(corral_ppo_create(&t->ppo, &c->layout, &c->ppo, c->transitions_max, t->collective,
                                 t->session->memory, err));
    CORRAL_TRY(corral_state_vault_attach(t->session->launch.vault_fd, corral_trainer_state_bytes(t->ppo),
                                         &t->vault, err));
    CORRAL_TRY(corral_session_charge_mapping(t->session, t->session->launch.vault_fd, 1, "state vault", err));
    CORRAL_TRY(corral_session_charge_mapping(t->session, t->session->launch.collective_fd, c->share.trainers,
                                             "collective staging", err));
    CORRAL_TRY(corral_alloc(t->session->memory, t->manifest->bytes, "published weights", &t->published, err));
    CORRAL_TRY(corral_trainer_restore_state(t, err));
    CORRAL_TRY(corral_trainer_guard_open(t, err));
    corral_collective_set_progress(t->collective, corral_trainer_on_collective_wait, t);
    return corral_trainer_publish_where_we_stand(t, err);
}

/* Every rank must learn whether a last checkpoint is wanted, also one that was stopped by another. */
static enum corral_status last_checkpoint(struct corral_trainer *t, struct corral_error *err)
{
    while (!t->session->finish) {
        CORRAL_TRY(corral_trainer_poll(t, WAIT_MS, err));
    }
    return t->session->finish_checkpoint ? corral_trainer_checkpoint(t, err) : CORRAL_OK;
}

enum corral_status corral_trainer_worker_run(struct corral_session *session,
                                             const struct corral_trainer_config *config,
                                             struct corral_error *err)
{
    struct corral_trainer t = {.session = session, .config = config, .rank = session->launch.index};
    CORRAL_AUTO_FREE struct corral_trainer_report *report = calloc(1, sizeof *report);
    enum corral_status status =
        report ? trainer_open(&t, err)
               : corral_fail(err, CORRAL_NOMEM, "worker %s: no report buffer", session->launch.name);
    if (status == CORRAL_OK && t.ppo) {
        status = corral_trainer_take_steps(&t, report, err);
        if (status == CORRAL_OK) {
            status = last_checkpoint(&t, err);
        }
        if (status == CORRAL_OK) {
            status = corral_trainer_guard_finish(&t, err);
        }
    }
    trainer_close(&t);
    return status;
}
