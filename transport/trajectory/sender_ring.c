/* A rank of the same node: its records are written into a ring that it reads (ring/), which is handed over at its door (local/). Sessions, acknowledgements and what is finished are told over ZeroMQ
 * as for any other rank; sequences, sending again and duplicates are the ring's: what is not released is still in it, whoever reads it. */
#include "base/clock.h"
#include "base/log.h"
#include "transport/trajectory/sender_private.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PAGE UINT64_C(4096) /* of the ring's control words, charged beside the records */
#define CALL_AGAIN_NS (CORRAL_RING_CALL_MS * CORRAL_NS_PER_MS)
#define LOOK_NS (50 * CORRAL_NS_PER_MS)

static void drop_link(struct corral_traj_rank *r)
{
    corral_cleanup_close(&r->link);
    r->link = -1;
    r->answered = false;
}

void corral_traj_ring_free(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    drop_link(r);
    if (r->ring != NULL) {
        s->window += corral_ring_capacity(r->ring) + PAGE;
        corral_ring_close(r->ring);
        r->ring = NULL;
    }
}

uint64_t corral_traj_ring_bytes(uint64_t cost)
{
    return CORRAL_MAX((cost + PAGE - 1) / PAGE * PAGE, (uint64_t)CORRAL_RING_BYTES_MIN) + 2 * PAGE;
}

static enum corral_status make_ring(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                    struct corral_error *err)
{
    uint64_t bytes = CORRAL_MIN(s->ring_bytes, s->window);
    bytes = bytes > 2 * PAGE ? (bytes - PAGE) / PAGE * PAGE : 0;
    if (bytes < CORRAL_RING_BYTES_MIN) {
        return corral_fail(err, CORRAL_UNSUPPORTED,
                           "a ring takes at least %llu bytes of the sender's window, which has %llu for it",
                           (unsigned long long)(CORRAL_RING_BYTES_MIN + PAGE),
                           (unsigned long long)CORRAL_MIN(s->ring_bytes, s->window));
    }
    CORRAL_TRY(corral_ring_create(&r->ring, bytes, false, s->memory, err));
    r->ring_first = r->last_sequence + 1;
    s->window -= bytes + PAGE;
    return CORRAL_OK;
}

enum corral_status corral_traj_ring_choose(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           struct corral_error *err)
{
    struct corral_error why = {.status = CORRAL_OK};
    enum corral_status status = CORRAL_OK;
    drop_link(r);
    r->call_ns = 0;
    r->door[0] = '\0';
    if (s->transport == CORRAL_TRAJ_ZMQ || (r->index < 64 && (s->no_ring >> r->index & 1) != 0)) {
        return CORRAL_OK;
    }
    status = corral_local_path(r->endpoint, r->door, &why);
    bool node = corral_zmq_is_ipc(r->endpoint);
    if (status == CORRAL_OK && r->ring == NULL) {
        /* Records that are on their way over ZeroMQ stay there. */
        status = r->head == NULL && r->open == NULL
                     ? make_ring(s, r, &why)
                     : corral_fail(&why, CORRAL_STATE, "records on their way there are not acknowledged yet");
    }
    if (status != CORRAL_OK && s->transport == CORRAL_TRAJ_SHM) {
        return corral_fail(err, status, "trainer rank %u can't be reached through shared memory: %s",
                           r->index, why.text);
    }
    if (status != CORRAL_OK && node) {
        corral_log_info("trajectory records go over ZeroMQ, not through shared memory",
                        LOG_U64("trainer", r->index), LOG_STR("why", why.text));
    }
    return CORRAL_OK;
}

/* ---- the door ---- */

bool corral_traj_ring_call(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    if (r->link >= 0 && corral_local_gone(r->link)) {
        drop_link(r);
    }
    if (r->link >= 0 || r->door[0] == '\0') {
        return r->link < 0 || r->answered;
    }
    if (now < r->call_ns) {
        return false;
    }
    int fd[3];
    const struct corral_local_hello hello = {
        .run = s->run, .worker = s->worker, .epoch = s->epoch, .first = r->ring_first};
    corral_ring_descriptors(r->ring, fd);
    enum corral_status status = corral_local_call(&r->link, r->door, &hello, s->token, fd, NULL);
    r->call_ns = status == CORRAL_OK || status == CORRAL_NOT_FOUND ? 0 : now + CALL_AGAIN_NS;
    if (status == CORRAL_OK) {
        r->answered = false;
        r->state = CORRAL_TRAJ_RANK_CALLING;
        return false;
    }
    /* Nobody is there, or nobody that is to be trusted: who answers a hello has no door. */
    return status == CORRAL_NOT_FOUND || status == CORRAL_INVALID;
}

void corral_traj_ring_hear(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t now)
{
    uint64_t acked, received;
    struct corral_error err = {.status = CORRAL_OK};
    enum corral_status status = corral_local_answer(r->link, &acked, &received, &err);
    if (status == CORRAL_AGAIN) {
        return;
    }
    if (status == CORRAL_PEER) { /* it died, or could not take the ring now */
        drop_link(r);
        r->call_ns = now + CALL_AGAIN_NS;
        r->state = CORRAL_TRAJ_RANK_GREETING;
        return;
    }
    if (status == CORRAL_OK && received > r->last_sequence) {
        status = corral_fail(&err, CORRAL_INVALID,
                             "it has seen later records of epoch %u: the epoch was used before", s->epoch);
    }
    if (status != CORRAL_OK) {
        snprintf(r->reason, sizeof r->reason, "%.*s", (int)sizeof r->reason - 1, err.text);
        drop_link(r);
        r->state = CORRAL_TRAJ_RANK_REFUSED;
        return;
    }
    r->answered = true;
    r->call_ns = 0;
    r->looked_ns = now;
    r->state = CORRAL_TRAJ_RANK_GREETING;
    corral_traj_rank_acknowledge(s, r, acked);
}

bool corral_traj_ring_lost(struct corral_traj_rank *r, uint64_t now)
{
    if (now - r->looked_ns < LOOK_NS) {
        return false;
    }
    r->looked_ns = now;
    return r->link < 0 || corral_local_gone(r->link);
}

/* ---- records ---- */

enum corral_status corral_traj_ring_reserve(struct corral_traj_rank *r, uint64_t bytes,
                                            struct corral_error *err)
{
    CORRAL_TRY(corral_ring_reserve(r->ring, bytes, &r->reserved, err));
    r->reserved_bytes = bytes;
    return CORRAL_OK;
}

void corral_traj_ring_commit(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes)
{
    r->reserved = NULL;
    r->last_sequence++;
    s->stats.sent++;
    s->stats.bytes += bytes;
    corral_ring_commit(r->ring, bytes);
}

uint64_t corral_traj_ring_used(const struct corral_traj_rank *r)
{
    uint64_t number, bytes;
    return corral_ring_oldest(r->ring, &number, &bytes, NULL) == CORRAL_OK ? bytes : 0;
}

void corral_traj_ring_settle(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    uint64_t number, bytes;
    if (corral_ring_oldest(r->ring, &number, &bytes, NULL) ==
        CORRAL_OK) { /* else the next reservation fails */
        uint64_t released = CORRAL_MIN(r->ring_first + number - 1, r->last_sequence);
        corral_traj_rank_acknowledge(s, r, released);
        r->finished_sequence = CORRAL_MAX(r->finished_sequence, released);
    }
}

bool corral_traj_ring_leave(struct corral_traj_sender *s, struct corral_traj_rank *r)
{
    if (s->transport == CORRAL_TRAJ_SHM) {
        snprintf(r->reason, sizeof r->reason,
                 "it has no door for workers of its node, and nothing else is "
                 "allowed");
        r->state = CORRAL_TRAJ_RANK_REFUSED;
        return false;
    }
    if (r->reserved != NULL) {
        return false; /* it lies in the ring */
    }
    corral_traj_ring_settle(s, r);
    struct corral_error err = {.status = CORRAL_OK};
    struct corral_ring_item item;
    enum corral_status status;
    uint64_t position = UINT64_MAX;
    while ((status = corral_ring_kept(r->ring, &position, &item, &err)) == CORRAL_OK) {
        uint64_t sequence = r->ring_first + item.number;
        if (sequence > r->acked_sequence) {
            status = corral_traj_gather_copy(s, r, item.data, item.bytes, sequence, &err);
        }
        if (status != CORRAL_OK) {
            break;
        }
    }
    if (status != CORRAL_AGAIN) {
        corral_traj_rank_drop(s, r); /* all or nothing */
        corral_log_warn("trajectory records can't go over ZeroMQ yet", LOG_U64("trainer", r->index),
                        LOG_STR("why", err.text));
        return false;
    }
    corral_log_info("trajectory records go over ZeroMQ from now on", LOG_U64("trainer", r->index),
                    LOG_STR("why", "the trainer has no door for rings"));
    corral_traj_ring_free(s, r);
    return true;
}
