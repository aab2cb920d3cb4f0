#include "transport/trajectory/receiver.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/trajectory/receiver_private.h"
#include <stdlib.h>
#include <string.h>

#define MESSAGES_PER_CALL_MAX 1024 /* so that a flood can't keep next() from returning */
#define COST_MAX ((uint64_t)CORRAL_TRAJ_RECORD_MAX + CORRAL_TRAJ_ITEM_BYTES)
#define CHUNK_BYTES_MIN ((uint64_t)4 << 10)
#define CHUNK_BYTES_MAX ((uint64_t)64 << 10)
#define LOOK_EVERY 64    /* records from rings, then the sockets have their turn */
#define DOOR_MS 1000     /* callers that say nothing are turned away in time */
#define POLL_SLICE_MS 50 /* retries that wait for time are looked at this often */

void corral_traj_receiver_destroy(struct corral_traj_receiver *r)
{
    if (r == NULL) {
        return;
    }
    corral_traj_receiver_door_close(r);
    const char *endpoint = r->bound;
    corral_zmq_close_bound(r->context, r->socket, &endpoint, r->bound[0] != '\0' ? 1 : 0);
    if (r->pending.left > 0) {
        zmq_msg_close(&r->pending.frame);
    }
    corral_traj_receiver_hold_free(r);
    corral_traj_pool_destroy(r->pool, 0);
    corral_mpack_writer_destroy(r->writer);
    corral_idmap_free(&r->by_route);
    corral_credit_free(&r->credit);
    free(r->streams);
    free(r->dirty);
    free(r->runs);
    free(r);
}

CORRAL_DEFINE_CLEANUP(struct corral_traj_receiver, corral_traj_receiver_destroy)

static enum corral_status allocate(struct corral_traj_receiver *r,
                                   const struct corral_traj_receiver_config *config, struct corral_error *err)
{
    r->streams = calloc(CORRAL_TRAJ_WORKERS_MAX, sizeof *r->streams);
    r->dirty = calloc(CORRAL_TRAJ_WORKERS_MAX, sizeof *r->dirty);
    r->writer = corral_mpack_writer_create();
    if (r->streams == NULL || r->dirty == NULL || r->writer == NULL ||
        !corral_idmap_init(&r->by_route, CORRAL_TRAJ_WORKERS_MAX) ||
        !corral_credit_init(&r->credit, config->buffer_bytes,
                            config->workers != 0 ? config->buffer_bytes / config->workers : 0,
                            CORRAL_TRAJ_WORKERS_MAX)) {
        return corral_fail(err, CORRAL_NOMEM, "create a trajectory receiver");
    }
    r->credit.all_fit = config->record_bytes_max != 0 && config->record_bytes_max <= r->credit.share;
    for (uint32_t i = 0; i < CORRAL_TRAJ_WORKERS_MAX; i++) {
        r->streams[i].index = i;
    }
    return corral_traj_pool_create(&r->pool, config->memory, config->buffer_bytes, err);
}

static enum corral_status check_config(const struct corral_traj_receiver_config *config,
                                       struct corral_error *err)
{
    if (config->token == NULL || strlen(config->token) >= CORRAL_BUS_TOKEN_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "trajectory receiver: the token is missing or longer than %d characters",
                           CORRAL_BUS_TOKEN_MAX - 1);
    }
    if (config->buffer_bytes <= corral_traj_cost(CORRAL_TRAJ_PROLOGUE_BYTES)) {
        return corral_fail(err, CORRAL_INVALID, "trajectory receiver: a buffer of %llu bytes holds no record",
                           (unsigned long long)config->buffer_bytes);
    }
    if (config->workers > CORRAL_TRAJ_WORKERS_MAX || config->record_bytes_max > COST_MAX) {
        return corral_fail(
            err, CORRAL_INVALID,
            "trajectory receiver: %u workers with records of %llu bytes; at most %d and %llu are supported",
            config->workers, (unsigned long long)config->record_bytes_max, CORRAL_TRAJ_WORKERS_MAX,
            (unsigned long long)COST_MAX);
    }
    uint32_t parts = CORRAL_MAX(config->workers, 1u);
    uint64_t least = CORRAL_MAX(config->record_bytes_max, 1u);
    if (config->buffer_bytes / parts < least) {
        return corral_fail(
            err, CORRAL_INVALID,
            "trajectory receiver: a buffer of %llu bytes has no room for a record of %llu bytes "
            "of each of %u workers; at least %llu bytes are needed",
            (unsigned long long)config->buffer_bytes, (unsigned long long)least, parts,
            (unsigned long long)(least * parts));
    }
    return CORRAL_OK;
}

static enum corral_status open_door(struct corral_traj_receiver *r,
                                    const struct corral_traj_receiver_config *config,
                                    struct corral_error *err)
{
    struct corral_error why = {.status = CORRAL_OK};
    bool wild = strchr(config->bind, '*') != NULL; /* nobody could know the path */
    if (config->transport == CORRAL_TRAJ_ZMQ ||
        (config->transport == CORRAL_TRAJ_AUTO && (wild || !corral_zmq_is_ipc(config->bind)))) {
        return CORRAL_OK;
    }
    if (!wild && corral_traj_receiver_door_open(r, config->bind, &why) == CORRAL_OK) {
        return CORRAL_OK;
    }
    if (config->transport == CORRAL_TRAJ_SHM) {
        return corral_fail(err, wild ? CORRAL_UNSUPPORTED : why.status,
                           "trajectory receiver: no shared memory at %s: %s", config->bind,
                           wild ? "the path must be known before" : why.text);
    }
    corral_traj_receiver_door_close(r);
    corral_log_info("trajectory records come over ZeroMQ only", LOG_STR("why", why.text));
    return CORRAL_OK;
}

enum corral_status corral_traj_receiver_create(struct corral_traj_receiver **out,
                                               const struct corral_traj_receiver_config *config,
                                               struct corral_error *err)
{
    CORRAL_TRY(check_config(config, err));
    CORRAL_CLEANUP(corral_traj_receiver_destroyp) struct corral_traj_receiver *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a trajectory receiver");
    }
    r->epoll = -1;
    r->context = config->zmq_context;
    r->run = config->run;
    r->workers = config->workers != 0 ? config->workers : CORRAL_TRAJ_WORKERS_MAX;
    r->record_max = config->record_bytes_max != 0 ? config->record_bytes_max : config->buffer_bytes;
    r->memory = config->memory;
    r->chunk_bytes = CORRAL_MIN(CORRAL_MAX(config->buffer_bytes / 64, CHUNK_BYTES_MIN), CHUNK_BYTES_MAX);
    r->chunk_bytes = r->chunk_bytes / CORRAL_TRAJ_ALIGN * CORRAL_TRAJ_ALIGN;
    r->log = config->log;
    r->replaying = config->log != NULL;
    memcpy(r->token, config->token, strlen(config->token) + 1);
    CORRAL_TRY(allocate(r, config, err));
    /* No frame is larger than what its records count for. */
    uint64_t frame_max = CORRAL_MIN(config->buffer_bytes, COST_MAX);
    CORRAL_TRY(corral_zmq_open(r->context, ZMQ_ROUTER, frame_max, &r->socket, err));
    /* The door first: whoever is answered over ZeroMQ would have found it. */
    CORRAL_TRY(open_door(r, config, err));
    CORRAL_TRY(corral_zmq_bind(r->socket, config->bind, config->server_secret_key, r->bound, err));
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

const char *corral_traj_receiver_endpoint(const struct corral_traj_receiver *r)
{
    return r->bound;
}

/* ---- receiving ---- */

/* One message. False when there is none. */
static bool receive_one(struct corral_traj_receiver *r)
{
    struct corral_traj_incoming in;
    bool named, any = corral_traj_receiver_zmq_receive(r, &in, &named);
    if (named) {
        corral_traj_receiver_handle(r, &in);
    } else if (any) {
        r->stats.malformed++; /* a peer that chose its own routing id: it has no name to be logged under */
    }
    zmq_msg_close(&in.frame);
    return any;
}

/* A record from the messages that are there, or NULL. */
static struct corral_traj_held *receive_record(struct corral_traj_receiver *r)
{
    bool looked = false;
    for (uint32_t i = 0;; i++) {
        struct corral_traj_held *h = corral_traj_receiver_take_pending(r);
        if (h == NULL && r->feed_count > 0 && r->taken < LOOK_EVERY) {
            h = corral_traj_receiver_take_ring(r);
            r->taken++;
        }
        if (h != NULL || i == MESSAGES_PER_CALL_MAX) {
            return h;
        }
        if (receive_one(r)) {
            continue;
        }
        r->taken = 0;
        if (looked || r->door == NULL) {
            return NULL;
        }
        looked = true;
        corral_traj_receiver_ring_events(r);
    }
}

static enum corral_status look(struct corral_traj_receiver *r, bool waits, struct corral_traj_held **out,
                               struct corral_error *err)
{
    if (r->replaying) {
        enum corral_status status = corral_traj_receiver_replay(r, waits, out, err);
        if (status != CORRAL_AGAIN || r->replaying) {
            return status;
        }
    }
    *out = receive_record(r);
    return *out != NULL ? CORRAL_OK : CORRAL_AGAIN;
}

enum corral_status corral_traj_receiver_next(struct corral_traj_receiver *r, uint32_t timeout_ms,
                                             const struct corral_traj_item **out, struct corral_error *err)
{
    uint64_t deadline =
        timeout_ms > 0 ? corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS : 0;
    for (;;) {
        struct corral_traj_held *h = NULL;
        corral_traj_receiver_flush(r);
        enum corral_status status = look(r, timeout_ms > 0, &h, err);
        if (status == CORRAL_OK) {
            *out = &h->item;
        }
        if (status != CORRAL_AGAIN) {
            return status;
        }
        corral_traj_receiver_flush(r);
        uint64_t now = timeout_ms > 0 ? corral_now_ns(&corral_clock_monotonic) : 0;
        if (now >= deadline) {
            return corral_fail(err, CORRAL_AGAIN, "no trajectory record yet");
        }
        uint64_t left_ms = (deadline - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS;
        bool soon = r->dirty_count > 0 || r->run_first < r->run_end || r->replaying;
        if (!r->replaying && !corral_traj_receiver_ring_arm(r, &soon)) {
            continue;
        }
        left_ms = r->door != NULL ? CORRAL_MIN(left_ms, DOOR_MS) : left_ms;
        corral_traj_receiver_zmq_wait(r, soon ? CORRAL_MIN(left_ms, POLL_SLICE_MS) : left_ms);
    }
}

enum corral_status corral_traj_receiver_restore(struct corral_traj_receiver *r,
                                                const struct corral_traj_cursor *cursors, uint32_t count,
                                                struct corral_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (cursors[i].worker >= CORRAL_TRAJ_WORKERS_MAX) {
            return corral_fail(err, CORRAL_INVALID, "saved trajectory cursor: worker %u is out of range",
                               cursors[i].worker);
        }
        if (r->streams[cursors[i].worker].known) {
            return corral_fail(err, CORRAL_STATE,
                               "saved trajectory cursor: worker %u is named twice or has connected already",
                               cursors[i].worker);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        struct corral_traj_stream *st = &r->streams[cursors[i].worker];
        st->known = true;
        st->cursor = cursors[i];
        st->epoch = cursors[i].epoch;
        st->received = st->finished = st->durable = cursors[i].sequence;
    }
    return CORRAL_OK;
}

void corral_traj_receiver_stats(const struct corral_traj_receiver *r, struct corral_traj_receiver_stats *out)
{
    *out = r->stats;
    out->refused += r->door != NULL ? corral_local_door_strangers(r->door) : 0;
    out->rings = r->feed_count;
}

const char *corral_traj_receiver_log_trouble(const struct corral_traj_receiver *r)
{
    return r->log_error.status != CORRAL_OK ? r->log_error.text : NULL;
}
