#include "transport/trajectory/sender.h"
#include "base/clock.h"
#include "base/hash.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/sender_private.h"
#include <stdlib.h>
#include <string.h>

#define RANKS_MAX 1024
#define POLL_SLICE_MS 100
#define RETURN_WAIT_MS 10000 /* for ZeroMQ to let go of zero-copy frames after its sockets are closed */
#define CHUNK_BYTES_MIN ((uint64_t)4 << 10)
#define CHUNK_BYTES_MAX ((uint64_t)1 << 20)

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
        if (s->ranks[i].carrier != NULL) {
            s->ranks[i].carrier->close(&s->ranks[i]);
        }
        corral_traj_rank_free(s, &s->ranks[i]);
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
    s->ring_bytes = config->ring_bytes != 0 ? config->ring_bytes : config->window_bytes;
    s->transport = config->transport;
    s->no_ring = config->no_ring;
    s->memory = config->memory;
    s->chunk_bytes =
        CORRAL_MIN(CORRAL_MAX(config->window_bytes / 8, CHUNK_BYTES_MIN), CHUNK_BYTES_MAX) / 64 * 64;
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
        grown[i].session = (grown[i].session >> 1) + 1; /* 0: never sent */
        grown[i].index = i;
        grown[i].link = -1;
    }
    s->ranks = grown;
    s->rank_count = rank + 1;
    return CORRAL_OK;
}

enum corral_status corral_traj_sender_connect(struct corral_traj_sender *s, uint32_t rank,
                                              const char *endpoint, struct corral_error *err)
{
    if (endpoint == NULL || strlen(endpoint) >= CORRAL_ZMQ_ENDPOINT_MAX) {
        return corral_fail(err, CORRAL_INVALID, "trainer rank %u: the endpoint is missing or too long", rank);
    }
    CORRAL_TRY(grow_ranks(s, rank, err));
    struct corral_traj_rank *r = &s->ranks[rank];
    CORRAL_TRY(corral_traj_zmq_connect(s, r, endpoint, err));
    memcpy(r->endpoint, endpoint, strlen(endpoint) + 1);
    r->reason_told = false;
    r->unsent = NULL;
    r->state = CORRAL_TRAJ_RANK_CLOSED; /* until it is clear how */
    CORRAL_TRY(corral_traj_ring_choose(s, r, err));
    r->heard_ns = corral_now_ns(&corral_clock_monotonic);
    corral_traj_rank_greet(s, r, r->heard_ns);
    return CORRAL_OK;
}

/* ---- records ---- */

static enum corral_status check_size(const struct corral_traj_sender *s, const struct corral_traj_rank *r,
                                     uint64_t bytes, struct corral_error *err)
{
    if (bytes == 0 || bytes % CORRAL_TRAJ_ALIGN != 0 || bytes > CORRAL_TRAJ_RECORD_MAX) {
        return corral_fail(
            err, CORRAL_INVALID, "a record of %llu bytes: must be a multiple of %u, at most %llu",
            (unsigned long long)bytes, CORRAL_TRAJ_ALIGN, (unsigned long long)CORRAL_TRAJ_RECORD_MAX);
    }
    uint64_t cost = corral_traj_cost(bytes);
    if (r->ring != NULL && bytes > corral_ring_capacity(r->ring) / 2) {
        return corral_fail(
            err, CORRAL_INVALID,
            "a record of %llu bytes is larger than half of the ring of %llu to trainer-%u, which "
            "ring_bytes or window_bytes of the sender set",
            (unsigned long long)bytes, (unsigned long long)corral_ring_capacity(r->ring), r->index);
    }
    if ((r->ring == NULL && cost > s->window) || (r->state == CORRAL_TRAJ_RANK_LIVE && cost > r->buffer) ||
        (r->ring != NULL && r->buffer != 0 && cost > r->buffer)) {
        bool window = r->ring == NULL && cost > s->window;
        return corral_fail(err, CORRAL_INVALID, "a record of %llu bytes is larger than the %s of %llu",
                           (unsigned long long)bytes, window ? "sender's window" : "receiver's buffer",
                           (unsigned long long)(window ? s->window : r->buffer));
    }
    return CORRAL_OK;
}

static void count_blocked(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    s->stats.blocked++;
    r->blocked++;
    if (r->blocked_since_ns == 0) {
        r->blocked_since_ns = corral_now_ns(&corral_clock_monotonic);
    }
}

static void end_blocked(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    if (r->blocked_since_ns != 0) {
        uint64_t waited = corral_now_ns(&corral_clock_monotonic) - r->blocked_since_ns;
        r->blocked_since_ns = 0;
        r->blocked_ns += waited;
        s->stats.blocked_ns += waited;
    }
}

/* Why the next record can't go yet, or NULL. */
static const char *why_not(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t cost)
{
    if (s->stats.unacked_bytes >= s->window || cost > s->window - s->stats.unacked_bytes) {
        corral_traj_gather_seal(r); /* nothing may wait for company that can't come */
        corral_traj_rank_pump(s, r);
        return "this worker's window is full";
    }
    corral_traj_rank_pump(s, r);
    if (r->state != CORRAL_TRAJ_RANK_LIVE) {
        return "it has not let this worker in yet";
    }
    if (r->unsent == NULL && cost > r->limit - r->offset - corral_traj_gather_cost(r)) {
        corral_traj_gather_seal(r);
        corral_traj_rank_pump(s, r);
        if (r->unsent == NULL && cost > r->limit - r->offset) {
            corral_traj_rank_want(s, r, cost);
            return "it has no room";
        }
    }
    return r->unsent != NULL ? "it has not taken earlier records yet" : NULL;
}

static enum corral_status find_rank(struct corral_traj_sender *s, uint32_t rank,
                                    struct corral_traj_rank **out, struct corral_error *err)
{
    if (rank >= s->rank_count || s->ranks[rank].state == CORRAL_TRAJ_RANK_CLOSED) {
        return corral_fail(err, CORRAL_STATE, "trainer rank %u is not connected", rank);
    }
    if (s->ranks[rank].state == CORRAL_TRAJ_RANK_REFUSED) {
        return refused(&s->ranks[rank], err);
    }
    *out = &s->ranks[rank];
    return CORRAL_OK;
}

static enum corral_status reserve_in_ring(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                          uint64_t bytes, struct corral_error *err)
{
    enum corral_status status = r->welcomed ? corral_traj_ring_reserve(r, bytes, err) : CORRAL_AGAIN;
    if (status != CORRAL_AGAIN) {
        return status;
    }
    count_blocked(s, r);
    r->wanted_bytes = bytes;
    return corral_fail(err, CORRAL_AGAIN, "trainer-%u: %s; %llu bytes are not acknowledged there", r->index,
                       r->welcomed ? "it has no room" : "it has not let this worker in yet",
                       (unsigned long long)corral_traj_ring_used(r));
}

enum corral_status corral_traj_sender_reserve(struct corral_traj_sender *s, uint32_t rank, uint64_t bytes,
                                              void **out, struct corral_error *err)
{
    struct corral_traj_rank *r = NULL;
    CORRAL_TRY(find_rank(s, rank, &r, err));
    CORRAL_TRY(check_size(s, r, bytes, err));
    corral_traj_gather_drop(r);
    if (r->ring != NULL) {
        CORRAL_TRY(reserve_in_ring(s, r, bytes, err));
        end_blocked(s, r);
        *out = r->reserved;
        return CORRAL_OK;
    }
    const char *why = why_not(s, r, corral_traj_cost(bytes));
    if (why != NULL) {
        count_blocked(s, r);
        return corral_fail(err, CORRAL_AGAIN, "trainer-%u: %s; %llu bytes are not acknowledged there", rank,
                           why, (unsigned long long)r->unacked_bytes);
    }
    CORRAL_TRY(corral_traj_gather_reserve(s, r, bytes, err));
    end_blocked(s, r);
    *out = r->reserved;
    return CORRAL_OK;
}

/* Gathered records wait only while the connection has something to do, or until they fill a message. */
static bool worth_sending(const struct corral_traj_rank *r)
{
    return r->open == NULL || r->open->bytes >= CORRAL_TRAJ_BATCH_BYTES_MAX - CORRAL_TRAJ_ALONE_BYTES / 4 ||
           r->last == NULL || corral_traj_parcel_free(r->last);
}

enum corral_status corral_traj_sender_commit(struct corral_traj_sender *s, uint32_t rank, uint64_t *sequence,
                                             struct corral_error *err)
{
    struct corral_traj_rank *r = NULL;
    CORRAL_TRY(find_rank(s, rank, &r, err));
    if (r->reserved == NULL) {
        return corral_fail(err, CORRAL_STATE, "trainer rank %u: no record is reserved", rank);
    }
    uint64_t bytes;
    CORRAL_TRY(corral_traj_prologue_check(r->reserved, r->reserved_bytes, &bytes, err));
    corral_traj_record_stamp(r->reserved, s->run, s->worker, s->epoch, r->last_sequence + 1);
    if (r->ring != NULL) {
        corral_traj_ring_commit(s, r, bytes);
    } else {
        corral_traj_gather_commit(s, r, bytes);
    }
    if (r->ring == NULL && worth_sending(r)) {
        corral_traj_gather_seal(r);
        corral_traj_rank_pump(s, r);
    }
    if (sequence != NULL) {
        *sequence = r->last_sequence;
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_sender_flush(struct corral_traj_sender *s, struct corral_error *err)
{
    (void)err;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        corral_traj_gather_seal(&s->ranks[i]);
        corral_traj_rank_pump(s, &s->ranks[i]);
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_sender_send_fragment(struct corral_traj_sender *s, uint32_t rank,
                                                    struct corral_fragment *f, struct corral_error *err)
{
    struct corral_traj_record record;
    struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
    uint64_t bytes, sequence;
    void *memory;
    CORRAL_TRY(corral_fragment_record(f, &record, tensors, err));
    CORRAL_TRY(corral_traj_record_bytes(&record, &bytes, err));
    CORRAL_TRY(corral_traj_sender_reserve(s, rank, bytes, &memory, err));
    CORRAL_TRY(corral_traj_record_encode(&record, memory, bytes, err));
    CORRAL_TRY(corral_traj_sender_commit(s, rank, &sequence, err));
    f->run = s->run;
    f->worker = s->worker;
    f->epoch = s->epoch;
    f->sequence = sequence;
    return CORRAL_OK;
}

/* ---- waiting ---- */

/* Everything that can be done without waiting. True when something came in. */
static bool step(struct corral_traj_sender *s)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    bool any = false;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        if (s->ranks[i].carrier != NULL) {
            any |= corral_traj_rank_drain(s, &s->ranks[i], now);
            corral_traj_rank_service(s, &s->ranks[i], now);
        }
    }
    return any;
}

/* What a rank that is reached through a ring is waited for: room, or an answer at the door. False: there is something to do already. */
static bool add_ring(struct corral_traj_rank *r, zmq_pollitem_t *item, int *count)
{
    if (r->state == CORRAL_TRAJ_RANK_CALLING) {
        *item = (zmq_pollitem_t){.fd = r->link, .events = ZMQ_POLLIN};
        (*count)++;
    } else if (r->blocked_since_ns != 0 && r->welcomed) {
        if (!corral_ring_arm(r->ring, r->wanted_bytes)) {
            return false;
        }
        *item = (zmq_pollitem_t){.fd = corral_ring_bell(r->ring), .events = ZMQ_POLLIN};
        (*count)++;
    }
    return true;
}

/* True: there may be room in a ring now. */
static bool wait_for_any(const struct corral_traj_sender *s, uint64_t deadline)
{
    zmq_pollitem_t items[2 * RANKS_MAX];
    int count = 0;
    bool room = false;
    uint64_t slice = POLL_SLICE_MS, now = corral_now_ns(&corral_clock_monotonic);
    for (uint32_t i = 0; i < s->rank_count; i++) {
        struct corral_traj_rank *r = &s->ranks[i];
        if (r->socket != NULL) {
            /* A greeting waits for the connection, which shows as being able to send. */
            bool greets = r->state == CORRAL_TRAJ_RANK_GREETING && r->call_ns <= now;
            short events = greets ? ZMQ_POLLIN | ZMQ_POLLOUT : ZMQ_POLLIN;
            slice = r->call_ns > now ? CORRAL_RING_CALL_MS : slice;
            items[count++] = (zmq_pollitem_t){.socket = r->socket, .events = events};
        }
        room |= r->ring != NULL && !add_ring(r, &items[count], &count);
    }
    now = corral_now_ns(&corral_clock_monotonic);
    if (now < deadline && !room) {
        uint64_t left_ms = (deadline - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS;
        zmq_poll(items, count, (long)CORRAL_MIN(left_ms, slice));
    }
    for (uint32_t i = 0; i < s->rank_count; i++) {
        struct corral_traj_rank *r = &s->ranks[i];
        if (r->ring != NULL && r->blocked_since_ns != 0 && r->welcomed) {
            corral_ring_disarm(r->ring);
            room |= !corral_ring_full(r->ring, r->wanted_bytes);
        }
    }
    return room;
}

enum corral_status corral_traj_sender_poll(struct corral_traj_sender *s, uint32_t timeout_ms,
                                           struct corral_error *err)
{
    bool any = step(s);
    if (!any && timeout_ms > 0) {
        uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)timeout_ms * CORRAL_NS_PER_MS;
        do {
            bool room = wait_for_any(s, deadline);
            any = step(s) || room;
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
    /* acknowledgements are cumulative, so what is left is one run of sequence numbers */
    return rank < s->rank_count ? s->ranks[rank].last_sequence - s->ranks[rank].acked_sequence : 0;
}

bool corral_traj_sender_welcomed(const struct corral_traj_sender *s, uint32_t rank)
{
    return rank < s->rank_count && s->ranks[rank].welcomed;
}

uint64_t corral_traj_sender_unfinished(const struct corral_traj_sender *s, uint32_t rank)
{
    const struct corral_traj_rank *r = rank < s->rank_count ? &s->ranks[rank] : NULL;
    return r != NULL ? r->last_sequence - r->finished_sequence + r->older : 0;
}

void corral_traj_sender_stats(const struct corral_traj_sender *s, struct corral_traj_sender_stats *out)
{
    *out = s->stats;
    out->credit_bytes = 0;
    for (uint32_t i = 0; i < s->rank_count; i++) {
        struct corral_traj_sender_rank_stats rank;
        corral_traj_sender_rank_stats(s, i, &rank);
        out->credit_bytes += rank.credit_bytes;
        out->rings += rank.ring;
        out->unacked_bytes += rank.ring ? rank.unacked_bytes : 0;
    }
}

void corral_traj_sender_rank_stats(const struct corral_traj_sender *s, uint32_t rank,
                                   struct corral_traj_sender_rank_stats *out)
{
    *out = (struct corral_traj_sender_rank_stats){.unacked = corral_traj_sender_unacked(s, rank)};
    if (rank < s->rank_count) {
        const struct corral_traj_rank *r = &s->ranks[rank];
        out->unacked_bytes = r->unacked_bytes;
        out->credit_bytes = r->limit - r->offset;
        if (r->ring != NULL) {
            out->ring = true;
            out->unacked_bytes = corral_traj_ring_used(r);
            out->credit_bytes = corral_ring_capacity(r->ring) - out->unacked_bytes;
        }
        out->blocked = r->blocked;
        out->blocked_ns = r->blocked_ns;
    }
}

static bool anything_kept(const struct corral_traj_sender *s)
{
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(s, &stats);
    return stats.unacked_bytes > 0;
}

void corral_traj_sender_destroy(struct corral_traj_sender *s, uint32_t linger_ms)
{
    if (s == NULL) {
        return;
    }
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + (uint64_t)linger_ms * CORRAL_NS_PER_MS;
    while (anything_kept(s) && corral_now_ns(&corral_clock_monotonic) < deadline) {
        if (corral_traj_sender_poll(s, POLL_SLICE_MS, NULL) != CORRAL_OK) {
            break; /* refused: nobody will acknowledge */
        }
    }
    sender_free(s);
}
