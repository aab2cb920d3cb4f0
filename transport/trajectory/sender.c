#include "transport/trajectory/sender.h"
#include "base/clock.h"
#include "base/hash.h"
#include "transport/trajectory/sender_private.h"
#include <stdlib.h>
#include <string.h>

#define RANKS_MAX 1024
#define POLL_SLICE_MS 100
#define RETURN_WAIT_MS 10000 /* for ZeroMQ to let go of zero-copy frames after its sockets are closed */

static enum corral_status refused(const struct corral_traj_rank *r, struct corral_error *err)
{
    return corral_fail(err, CORRAL_INVALID, "refused by %s: %s", r->endpoint, r->reason);
}

static void sender_free(struct corral_traj_sender *s)
{
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; i < s->rank_count; i++) {
        corral_zmq_close(s->ranks[i].socket);
        while (s->ranks[i].head != NULL) {
            corral_traj_rank_drop_head(s, &s->ranks[i]);
        }
    }
    corral_traj_pool_destroy(s->pool, RETURN_WAIT_MS);
    corral_mpack_writer_destroy(s->writer);
    free(s->ranks);
    free(s);
}

CORRAL_DEFINE_CLEANUP(struct corral_traj_sender, sender_free)

enum corral_status corral_traj_sender_create(struct corral_traj_sender **out,
                                             const struct corral_traj_sender_config *config,
                                             struct corral_error *err)
{
    if (config->token == NULL || strlen(config->token) >= CORRAL_BUS_TOKEN_MAX ||
        (config->server_key != NULL && strlen(config->server_key) != 40)) {
        return corral_fail(err, CORRAL_INVALID,
                           "trajectory sender: the token or the receivers' key is malformed");
    }
    CORRAL_CLEANUP(sender_freep) struct corral_traj_sender *s = calloc(1, sizeof *s);
    if (s == NULL || (s->writer = corral_mpack_writer_create()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create a trajectory sender");
    }
    s->context = config->zmq_context;
    s->run = config->run;
    s->worker = config->worker;
    s->epoch = config->epoch;
    s->window = config->window_bytes;
    memcpy(s->token, config->token, strlen(config->token) + 1);
    if (config->server_key != NULL) {
        memcpy(s->server_key, config->server_key, sizeof s->server_key);
    }
    CORRAL_TRY(corral_traj_pool_create(&s->pool, config->memory, config->window_bytes, err));
    *out = CORRAL_STEAL(s);
    return CORRAL_OK;
}

static enum corral_status grow_ranks(struct corral_traj_sender *s, uint32_t rank, struct corral_error *err)
{
    if (rank >= RANKS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trainer rank %u: at most %d are supported", rank, RANKS_MAX);
    }
    if (rank < s->rank_count) {
        return CORRAL_OK;
    }
    struct corral_traj_rank *grown = realloc(s->ranks, (rank + 1) * sizeof *grown);
    if (grown == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "connect trainer rank %u", rank);
    }
    memset(grown + s->rank_count, 0, (rank + 1 - s->rank_count) * sizeof *grown);
    for (uint32_t i = s->rank_count; i <= rank; i++) {
        /* Sessions start anywhere, so that an earlier process's answers are not taken for this one's. */
        corral_random_bytes(&grown[i].session, sizeof grown[i].session);
        grown[i].session >>= 1;
    }
    s->ranks = grown;
    s->rank_count = rank + 1;
    return CORRAL_OK;
}

static void close_socketp(void **socket)
{
    corral_zmq_close(*socket);
}

enum corral_status corral_traj_sender_connect(struct corral_traj_sender *s, uint32_t rank,
                                              const char *endpoint, struct corral_error *err)
{
    if (endpoint == NULL || strlen(endpoint) >= CORRAL_ZMQ_ENDPOINT_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trainer rank %u: the endpoint is missing or too long", rank);
    }
    CORRAL_CLEANUP(close_socketp) void *socket = NULL;
    int yes = 1;
    CORRAL_TRY(corral_zmq_open(s->context, ZMQ_DEALER, CORRAL_TRAJ_CONTROL_BYTES_MAX, &socket, err));
    /* IMMEDIATE: nothing is queued for a connection that does not exist, so what a connection carries belongs to its own session. */
    if (zmq_setsockopt(socket, ZMQ_IMMEDIATE, &yes, sizeof yes) != 0) {
        return corral_fail_sys(err, zmq_errno(), "set ZMQ_IMMEDIATE");
    }
    CORRAL_TRY(corral_zmq_connect(socket, endpoint, s->server_key[0] != '\0' ? s->server_key : NULL, err));
    CORRAL_TRY(grow_ranks(s, rank, err));
    struct corral_traj_rank *r = &s->ranks[rank];
    corral_zmq_close(r->socket);
    r->socket = CORRAL_STEAL(socket);
    memcpy(r->endpoint, endpoint, strlen(endpoint) + 1);
    r->reason_told = false;
    r->unsent = NULL;
    r->heard_ns = corral_now_ns(&corral_clock_monotonic);
    corral_traj_rank_greet(s, r, r->heard_ns);
    return CORRAL_OK;
}

static enum corral_status check_fragment(const struct corral_traj_sender *s, const struct corral_traj_rank *r,
                                         const struct corral_fragment *f,
                                         uint64_t bytes[CORRAL_FRAGMENT_FRAMES], struct corral_error *err)
{
    const void *tensors[CORRAL_FRAGMENT_FRAMES];
    CORRAL_TRY(corral_fragment_sizes(f, bytes, err));
    corral_fragment_tensors(f, tensors);
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        if (bytes[i] > 0 && tensors[i] == NULL) {
            return corral_fail(err, CORRAL_INVALID, "fragment: tensor %d is missing", i);
        }
    }
    if (!corral_fragment_boundaries_valid(f)) {
        return corral_fail(err, CORRAL_INVALID, "fragment: boundary_at does not ascend within steps * rows");
    }
    uint64_t total = corral_fragment_bytes(f);
    if (total > s->window || (r->state == CORRAL_TRAJ_RANK_LIVE && total > r->buffer)) {
        return corral_fail(err, CORRAL_INVALID, "a fragment of %llu bytes is larger than the %s of %llu",
                           (unsigned long long)total,
                           total > s->window ? "sender's window" : "receiver's buffer",
                           (unsigned long long)(total > s->window ? s->window : r->buffer));
    }
    return CORRAL_OK;
}

static enum corral_status copy_fragment(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                        const struct corral_fragment *f,
                                        const uint64_t bytes[CORRAL_FRAGMENT_FRAMES],
                                        struct corral_traj_entry **out, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_traj_entry *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "keep a fragment");
    }
    uint64_t at[CORRAL_FRAGMENT_FRAMES];
    e->frame_bytes = CORRAL_TRAJ_AREA_BYTES + corral_fragment_offsets(bytes, at);
    CORRAL_TRY(corral_traj_block_get(s->pool, e->frame_bytes, &e->block, err));
    const void *tensors[CORRAL_FRAGMENT_FRAMES];
    corral_fragment_tensors(f, tensors);
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        if (bytes[i] > 0) {
            memcpy((char *)e->block->memory + CORRAL_TRAJ_AREA_BYTES + at[i], tensors[i], bytes[i]);
        }
    }
    e->fragment = *f;
    e->fragment.run = s->run;
    e->fragment.worker = s->worker;
    e->fragment.epoch = s->epoch;
    e->fragment.sequence = r->last_sequence + 1;
    e->bytes = corral_fragment_bytes(f);
    *out = CORRAL_STEAL(e);
    return CORRAL_OK;
}

static enum corral_status blocked(struct corral_traj_sender *s, const char *why, struct corral_error *err)
{
    s->stats.blocked++;
    return corral_fail(err, CORRAL_AGAIN, "%s", why);
}

enum corral_status corral_traj_sender_send(struct corral_traj_sender *s, uint32_t rank,
                                           struct corral_fragment *f, struct corral_error *err)
{
    if (rank >= s->rank_count || s->ranks[rank].state == CORRAL_TRAJ_RANK_CLOSED) {
        return corral_fail(err, CORRAL_STATE, "trainer rank %u is not connected", rank);
    }
    struct corral_traj_rank *r = &s->ranks[rank];
    if (r->state == CORRAL_TRAJ_RANK_REFUSED) {
        return refused(r, err);
    }
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES];
    CORRAL_TRY(check_fragment(s, r, f, bytes, err));
    uint64_t total = corral_fragment_bytes(f);
    if (total > s->window - s->stats.unacked_bytes) {
        return blocked(s, "the window of unacknowledged fragments is full", err);
    }
    corral_traj_rank_pump(s, r);
    if (r->state != CORRAL_TRAJ_RANK_LIVE || r->unsent != NULL) {
        return blocked(s, "the receiver has not taken earlier fragments yet", err);
    }
    if (total > r->limit - r->offset) {
        corral_traj_rank_want(s, r, total);
        return blocked(s, "no credit", err);
    }
    struct corral_traj_entry *e = NULL;
    CORRAL_TRY(copy_fragment(s, r, f, bytes, &e, err));
    f->run = s->run;
    f->worker = s->worker;
    f->epoch = s->epoch;
    f->sequence = ++r->last_sequence;
    *(r->tail != NULL ? &r->tail->next : &r->head) = e;
    r->tail = e;
    r->unsent = e;
    s->stats.unacked_bytes += e->bytes;
    corral_traj_rank_pump(s, r);
    return CORRAL_OK;
}

/* Everything that can be done without waiting. True when something came in. */
static bool step(struct corral_traj_sender *s)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    bool any = false;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        if (s->ranks[i].socket != NULL) {
            any |= corral_traj_rank_drain(s, &s->ranks[i], now);
            corral_traj_rank_service(s, &s->ranks[i], now);
        }
    }
    return any;
}

static void wait_for_any(const struct corral_traj_sender *s, uint64_t deadline)
{
    zmq_pollitem_t items[RANKS_MAX];
    int count = 0;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        if (s->ranks[i].socket != NULL) {
            /* A greeting waits for the connection, which shows as being able to send. */
            short events =
                s->ranks[i].state == CORRAL_TRAJ_RANK_GREETING ? ZMQ_POLLIN | ZMQ_POLLOUT : ZMQ_POLLIN;
            items[count++] = (zmq_pollitem_t){.socket = s->ranks[i].socket, .events = events};
        }
    }
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (now < deadline) {
        uint64_t left_ms = (deadline - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS;
        zmq_poll(items, count, (long)CORRAL_MIN(left_ms, POLL_SLICE_MS));
    }
}

enum corral_status corral_traj_sender_poll(struct corral_traj_sender *s, uint32_t timeout_ms,
                                           struct corral_error *err)
{
    bool any = step(s);
    if (!any && timeout_ms > 0) {
        uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS;
        do {
            wait_for_any(s, deadline);
            any = step(s);
        } while (!any && corral_now_ns(&corral_clock_monotonic) < deadline);
    }
    for (uint32_t i = 0; i < s->rank_count; i++) {
        if (s->ranks[i].state == CORRAL_TRAJ_RANK_REFUSED && !s->ranks[i].reason_told) {
            s->ranks[i].reason_told = true;
            return refused(&s->ranks[i], err);
        }
    }
    return CORRAL_OK;
}

uint64_t corral_traj_sender_unacked(const struct corral_traj_sender *s, uint32_t rank)
{
    if (rank >= s->rank_count || !s->ranks[rank].head) {
        return 0;
    }
    /* acknowledgements are cumulative, so what is left is one run of sequence numbers */
    return s->ranks[rank].last_sequence - s->ranks[rank].head->fragment.sequence + 1;
}

void corral_traj_sender_stats(const struct corral_traj_sender *s, struct corral_traj_sender_stats *out)
{
    *out = s->stats;
    out->credit_bytes = 0;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        out->credit_bytes += s->ranks[i].limit - s->ranks[i].offset;
    }
}

void corral_traj_sender_destroy(struct corral_traj_sender *s, uint32_t linger_ms)
{
    if (s == NULL) {
        return;
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)linger_ms * CORRAL_NS_PER_MS;
    while (s->stats.unacked_bytes > 0 && corral_now_ns(&corral_clock_monotonic) < deadline) {
        if (corral_traj_sender_poll(s, POLL_SLICE_MS, NULL) != CORRAL_OK) {
            break; /* refused: nobody will acknowledge */
        }
    }
    sender_free(s);
}
