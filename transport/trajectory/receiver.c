#include "transport/trajectory/receiver.h"
#include "base/clock.h"
#include "transport/trajectory/receiver_private.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGES_PER_CALL_MAX 1024 /* so that a flood can't keep next() from returning */
#define FRAGMENT_MAX ((uint64_t)CORRAL_FRAGMENT_BYTES_MAX + CORRAL_FRAGMENT_HEADER_BYTES)
#define POLL_SLICE_MS 50 /* retries that wait for time are looked at this often */

void corral_traj_receiver_destroy(struct corral_traj_receiver *r)
{
    if (r == NULL) {
        return;
    }
    const char *endpoint = r->bound;
    corral_zmq_close_bound(r->context, r->socket, &endpoint, r->bound[0] != '\0' ? 1 : 0);
    while (r->held != NULL) {
        struct corral_traj_held *h = r->held;
        r->held = h->next;
        corral_traj_block_unref(h->block);
        free(h);
    }
    corral_traj_pool_destroy(r->pool, 0);
    corral_mpack_writer_destroy(r->writer);
    corral_idmap_free(&r->by_route);
    corral_credit_free(&r->credit);
    free(r->streams);
    free(r->dirty);
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
    if (config->buffer_bytes <= CORRAL_FRAGMENT_HEADER_BYTES) {
        return corral_fail(err, CORRAL_INVALID,
                           "trajectory receiver: a buffer of %llu bytes holds no fragment",
                           (unsigned long long)config->buffer_bytes);
    }
    if (config->workers > CORRAL_TRAJ_WORKERS_MAX || config->fragment_bytes_max > FRAGMENT_MAX) {
        return corral_fail(
            err, CORRAL_INVALID,
            "trajectory receiver: %u workers with fragments of %llu bytes; at most %d and %llu are supported",
            config->workers, (unsigned long long)config->fragment_bytes_max, CORRAL_TRAJ_WORKERS_MAX,
            (unsigned long long)FRAGMENT_MAX);
    }
    uint32_t parts = CORRAL_MAX(config->workers, 1u);
    uint64_t least = CORRAL_MAX(config->fragment_bytes_max, 1u);
    if (config->buffer_bytes / parts < least) {
        return corral_fail(
            err, CORRAL_INVALID,
            "trajectory receiver: a buffer of %llu bytes has no room for a fragment of %llu bytes "
            "of each of %u workers; at least %llu bytes are needed",
            (unsigned long long)config->buffer_bytes, (unsigned long long)least, parts,
            (unsigned long long)(least * parts));
    }
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
    r->context = config->zmq_context;
    r->run = config->run;
    r->workers = config->workers != 0 ? config->workers : CORRAL_TRAJ_WORKERS_MAX;
    r->fragment_max = config->fragment_bytes_max != 0 ? config->fragment_bytes_max : config->buffer_bytes;
    memcpy(r->token, config->token, strlen(config->token) + 1);
    CORRAL_TRY(allocate(r, config, err));
    /* No frame is larger than what its fragment counts for. */
    uint64_t frame_max = CORRAL_MIN(config->buffer_bytes, FRAGMENT_MAX);
    CORRAL_TRY(corral_zmq_open(r->context, ZMQ_ROUTER, frame_max, &r->socket, err));
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
static bool receive_one(struct corral_traj_receiver *r, struct corral_traj_held **out)
{
    zmq_msg_t id;
    zmq_msg_init(&id);
    bool any = zmq_msg_recv(&id, r->socket, ZMQ_DONTWAIT) >= 0;
    struct corral_traj_incoming in = {.frames = 0};
    zmq_msg_init(&in.frame);
    bool more = any && zmq_msg_more(&id) != 0;
    while (more) { /* frames after the first are read and thrown away */
        zmq_msg_t extra, *part = in.frames == 0 ? &in.frame : &extra;
        zmq_msg_init(&extra);
        bool got = zmq_msg_recv(part, r->socket, ZMQ_DONTWAIT) >= 0;
        more = got && zmq_msg_more(part) != 0;
        in.frames += got;
        zmq_msg_close(&extra);
    }
    if (any && corral_zmq_route_parse(zmq_msg_data(&id), zmq_msg_size(&id), &in.route)) {
        corral_traj_receiver_handle(r, &in, out);
    } else if (any) {
        r->stats.malformed++; /* a peer that chose its own routing id: it has no name to be logged under */
    }
    zmq_msg_close(&in.frame);
    zmq_msg_close(&id);
    return any;
}

static void hand_out(struct corral_traj_receiver *r, struct corral_traj_held *h)
{
    h->serial = ++r->serial;
    h->next = r->held;
    h->link = &r->held;
    if (h->next != NULL) {
        h->next->link = &h->next;
    }
    r->held = h;
}

enum corral_status corral_traj_receiver_next(struct corral_traj_receiver *r, uint32_t timeout_ms,
                                             const struct corral_fragment **out, struct corral_error *err)
{
    uint64_t deadline =
        timeout_ms > 0 ? corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS : 0;
    for (;;) {
        corral_traj_receiver_flush(r);
        struct corral_traj_held *h = NULL;
        bool any = true;
        for (uint32_t i = 0; i < MESSAGES_PER_CALL_MAX && h == NULL && any; i++) {
            any = receive_one(r, &h);
        }
        if (h != NULL) {
            hand_out(r, h);
            *out = &h->fragment;
            return CORRAL_OK;
        }
        corral_traj_receiver_flush(r);
        uint64_t now = timeout_ms > 0 ? corral_now_ns(&corral_clock_monotonic) : 0;
        if (now >= deadline) {
            return corral_fail(err, CORRAL_AGAIN, "no trajectory fragment yet");
        }
        uint64_t left_ms = (deadline - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS;
        zmq_pollitem_t item = {.socket = r->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, (long)(r->dirty_count > 0 ? CORRAL_MIN(left_ms, POLL_SLICE_MS) : left_ms));
    }
}

/* ---- finishing ---- */

static void advance(struct corral_traj_cursor *c, const struct corral_fragment *f)
{
    if (c->epoch < f->epoch || (c->epoch == f->epoch && c->sequence < f->sequence)) {
        c->epoch = f->epoch;
        c->sequence = f->sequence;
    }
}

/* Acknowledgements of a worker are gathered while more of its fragments are held, unless it could run out of credit meanwhile; they go
 * with the next flush at the latest. */
static bool worth_telling(const struct corral_traj_receiver *r, const struct corral_traj_stream *st)
{
    const struct corral_credit_account *a = &r->credit.accounts[st->index];
    return st->held_count == 0 || a->limit - st->told_limit >= corral_credit_part(&r->credit) / 8;
}

void corral_traj_receiver_finish(struct corral_traj_receiver *r, const struct corral_fragment *f)
{
    struct corral_traj_held *h = (struct corral_traj_held *)(uintptr_t)f; /* its first member */
    struct corral_traj_stream *st = &r->streams[f->worker];
    assert(h->serial > st->finished_serial); /* else finished out of the order they were handed out in */
    st->finished_serial = h->serial;
    advance(&st->cursor, f);
    st->held_count--;
    r->stats.acked++;
    r->stats.held_bytes -= h->bytes;
    corral_credit_finish(&r->credit, st->index, h->bytes);
    if (f->epoch == st->epoch) {
        st->finished = f->sequence;
        st->credit_due = st->live;
    }
    *h->link = h->next;
    if (h->next != NULL) {
        h->next->link = h->link;
    }
    corral_traj_block_unref(h->block);
    free(h);
    if (r->credit.waiting > 0) {
        corral_traj_receiver_share(r);
    } else {
        corral_credit_top_up(&r->credit, st->index);
    }
    corral_traj_receiver_mark(r, st);
    if (!st->live || worth_telling(r, st)) {
        corral_traj_receiver_flush(r);
    }
}

uint32_t corral_traj_receiver_cursors(const struct corral_traj_receiver *r,
                                      const struct corral_fragment *const *taken, uint32_t taken_count,
                                      struct corral_traj_cursor *out, uint32_t out_max)
{
    uint32_t count = 0, place[CORRAL_TRAJ_WORKERS_MAX];
    memset(place, 0xff, sizeof place);
    for (uint32_t w = 0; w < CORRAL_TRAJ_WORKERS_MAX && count < out_max; w++) {
        if (r->streams[w].known) {
            place[w] = count;
            out[count++] = r->streams[w].cursor;
        }
    }
    for (uint32_t i = 0; i < taken_count; i++) {
        if (place[taken[i]->worker] < count) {
            advance(&out[place[taken[i]->worker]], taken[i]);
        }
    }
    return count;
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
        st->received = st->finished = cursors[i].sequence;
    }
    return CORRAL_OK;
}

void corral_traj_receiver_stats(const struct corral_traj_receiver *r, struct corral_traj_receiver_stats *out)
{
    *out = r->stats;
}
