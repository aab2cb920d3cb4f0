#include "worker/session.h"
#include "base/log.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#define POLL_MESSAGES_MAX 64

static enum corral_status attach_memory(struct corral_session *s, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_attach(s->launch.ledger_fd, &s->quota, err));
    CORRAL_TRY(corral_quota_join(s->quota, s->launch.device, s->launch.role, &s->holder, err));
    CORRAL_TRY(corral_host_alloc_create(s->quota, s->holder, &s->host_alloc, err));
    s->memory = corral_host_allocator(s->host_alloc);
    /* The node's weight store serves all its workers; the first one is charged with it. */
    return s->launch.board_slot == 0
               ? corral_session_charge_mapping(s, s->launch.store_fd, 1, "weight store", err)
               : CORRAL_OK;
}

enum corral_status corral_session_charge_mapping(struct corral_session *s, int fd, uint32_t sharers,
                                                 const char *what, struct corral_error *err)
{
    struct stat st;
    if (fd < 0) {
        return CORRAL_OK;
    }
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "reading the size of the %s", what);
    }
    uint64_t bytes = (uint64_t)st.st_size / sharers;
    CORRAL_TRY(corral_quota_reserve(s->quota, s->holder, bytes, what, err));
    corral_quota_commit(s->quota, s->holder, bytes);
    return CORRAL_OK;
}

static enum corral_status attach_node(struct corral_session *s, struct corral_error *err)
{
    CORRAL_TRY(corral_board_attach(s->launch.board_fd, &s->board, err));
    s->slot = corral_board_slot(s->board, s->launch.board_slot);
    if (!s->slot) {
        return corral_fail(err, CORRAL_INVALID, "worker %s: the node's board has no slot %u", s->launch.name,
                           s->launch.board_slot);
    }
    corral_board_enter(s->slot, CORRAL_ACTIVITY_STARTING);
    return corral_weight_store_attach(s->launch.store_fd, &s->store, err);
}

static enum corral_status log_in(struct corral_session *s, uint32_t timeout_ms, struct corral_error *err)
{
    s->zmq = zmq_ctx_new();
    if (!s->zmq) {
        return corral_fail(err, CORRAL_NOMEM, "worker %s: no ZeroMQ context", s->launch.name);
    }
    struct corral_bus_client_config config = {
        .zmq_context = s->zmq,
        .endpoint = s->launch.endpoint,
        .token = s->launch.token,
        .run = s->launch.run,
        .server_public_key = s->launch.server_key[0] ? s->launch.server_key : NULL,
        .hello = {.kind = "worker", .epoch = s->launch.epoch, .pid = (int64_t)getpid()},
    };
    memcpy(config.hello.name, s->launch.name, sizeof config.hello.name);
    memcpy(config.hello.node, s->launch.node, sizeof config.hello.node);
    return corral_bus_client_create(&s->bus, &config, timeout_ms, err);
}

enum corral_status corral_session_open(struct corral_session *s, const struct corral_worker_launch *launch,
                                       uint32_t timeout_ms, struct corral_error *err)
{
    memset(s, 0, sizeof *s);
    s->launch = *launch;
    enum corral_status status = attach_node(s, err);
    if (status == CORRAL_OK) {
        status = attach_memory(s, err);
    }
    if (status == CORRAL_OK) {
        status = log_in(s, timeout_ms, err);
    }
    if (status != CORRAL_OK) {
        corral_session_close(s);
    }
    return status;
}

void corral_session_close(struct corral_session *s)
{
    if (s->slot) {
        corral_board_enter(s->slot, CORRAL_ACTIVITY_STOPPING);
    }
    corral_bus_client_destroy(s->bus);
    if (s->zmq) {
        zmq_ctx_term(s->zmq);
    }
    corral_weight_store_detach(s->store);
    corral_host_alloc_destroy(s->host_alloc);
    corral_quota_detach(s->quota);
    corral_board_detach(s->board);
    memset(s, 0, sizeof *s);
}

enum corral_status corral_session_poll(struct corral_session *s, uint32_t timeout_ms,
                                       corral_session_message_fn fn, void *ctx, struct corral_error *err)
{
    corral_board_beat(s->slot);
    for (uint32_t i = 0; i < POLL_MESSAGES_MAX; i++) {
        char type[32];
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        enum corral_status status =
            corral_bus_client_receive(s->bus, i == 0 ? timeout_ms : 0, type, &reader, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        const struct corral_mpack_node *message = corral_mpack_root(reader);
        if (strcmp(type, "finish") == 0) {
            s->finish = true;
            (void)corral_mpack_get_bool(message, "checkpoint", &s->finish_checkpoint, NULL);
            continue;
        }
        if (strcmp(type, "refused") == 0) {
            char reason[200] = "";
            (void)corral_mpack_get_str(message, "reason", reason, sizeof reason, NULL);
            return corral_fail(err, CORRAL_PEER, "the coordinator refused worker %s: %s", s->launch.name,
                               reason);
        }
        CORRAL_TRY(fn(ctx, type, message, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_session_send(struct corral_session *s, struct corral_mpack_writer *message,
                                       struct corral_error *err)
{
    enum corral_status status = corral_bus_client_send(s->bus, message, err);
    corral_mpack_writer_reset(message);
    return status;
}

void corral_session_report_failure(struct corral_session *s, const struct corral_error *reason)
{
    if (!s->bus) {
        return;
    }
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    if (!w) {
        return;
    }
    corral_mpack_map(w, 2);
    corral_mpack_kv_str(w, "type", "failed");
    corral_mpack_kv_str(w, "reason", reason->text);
    (void)corral_bus_client_send(s->bus, w, NULL);
}
