/* Records in the log: acknowledged when they are durable, handed out first at start. */
#include "base/log.h"
#include "transport/trajectory/receiver_private.h"
#include <stdlib.h>

#define RUNS_FIRST 64u
#define RUNS_MAX (1u << 24) /* far more records than any window of unacknowledged ones holds */

static void trouble(struct corral_traj_receiver *r, const struct corral_error *err)
{
    if (r->log_error.status == CORRAL_OK) {
        corral_log_warn("the trajectory log takes no more: nothing is acknowledged until it does",
                        LOG_STR("why", err->text));
    }
    r->log_error = *err;
}

static bool make_room(struct corral_traj_receiver *r)
{
    if (r->run_end - r->run_first < r->run_room) {
        return true;
    }
    uint32_t room = r->run_room != 0 ? 2 * r->run_room : RUNS_FIRST;
    struct corral_traj_log_run *runs = room <= RUNS_MAX ? calloc(room, sizeof *runs) : NULL;
    if (runs == NULL) {
        return false;
    }
    for (uint64_t i = r->run_first; i < r->run_end; i++) {
        runs[i & (room - 1)] = r->runs[i & (r->run_room - 1)];
    }
    free(r->runs);
    r->runs = runs;
    r->run_room = room;
    return true;
}

enum corral_status corral_traj_receiver_append(struct corral_traj_receiver *r, struct corral_traj_held *h,
                                               struct corral_error *err)
{
    struct corral_error failure = {.status = CORRAL_OK};
    if (!make_room(r)) {
        return corral_fail(err, CORRAL_NOMEM, "too many records wait for the log");
    }
    if (r->log->append(r->log->ctx, &h->item, &h->position, &failure) != CORRAL_OK) {
        trouble(r, &failure);
        return corral_fail(err, failure.status, "%s", failure.text);
    }
    r->log_error.status = CORRAL_OK;
    struct corral_traj_log_run *last =
        r->run_end > r->run_first ? &r->runs[(r->run_end - 1) & (r->run_room - 1)] : NULL;
    if (last != NULL && last->worker == h->item.worker && last->epoch == h->item.epoch &&
        last->sequence + last->count == h->item.sequence && last->position + last->count == h->position) {
        last->count++;
        return CORRAL_OK;
    }
    r->runs[r->run_end++ & (r->run_room - 1)] = (struct corral_traj_log_run){.position = h->position,
                                                                             .sequence = h->item.sequence,
                                                                             .worker = h->item.worker,
                                                                             .epoch = h->item.epoch,
                                                                             .count = 1};
    return CORRAL_OK;
}

void corral_traj_receiver_settle(struct corral_traj_receiver *r)
{
    uint64_t durable;
    struct corral_error err = {.status = CORRAL_OK};
    if (r->run_first == r->run_end) {
        return;
    }
    if (r->log->durable(r->log->ctx, &durable, &err) != CORRAL_OK) {
        trouble(r, &err);
        return;
    }
    while (r->run_first < r->run_end) {
        struct corral_traj_log_run *run = &r->runs[r->run_first & (r->run_room - 1)];
        if (run->position > durable) {
            return;
        }
        uint32_t count = (uint32_t)CORRAL_MIN((uint64_t)run->count, durable - run->position + 1);
        struct corral_traj_stream *st = &r->streams[run->worker];
        if (st->epoch == run->epoch) {
            st->durable = CORRAL_MAX(st->durable, run->sequence + count - 1);
            st->credit_due = st->live;
            corral_traj_receiver_mark(r, st);
        }
        run->position += count;
        run->sequence += count;
        run->count -= count;
        r->run_first += run->count == 0;
    }
}

/* ---- replay ---- */

static enum corral_status check_replayed(const struct corral_traj_receiver *r,
                                         const struct corral_traj_item *item, struct corral_error *err)
{
    uint64_t bytes;
    const struct corral_traj_prologue *p = item->data;
    CORRAL_TRY(corral_traj_prologue_check(p, item->bytes, &bytes, err));
    if (bytes != item->bytes || p->run != r->run || p->worker != item->worker || p->epoch != item->epoch ||
        p->sequence != item->sequence || p->sequence == 0 || p->worker >= r->workers) {
        return corral_fail(
            err, CORRAL_PROTOCOL,
            "the trajectory log holds record %u/%u/%llu of run %llx, which this trainer does not "
            "expect",
            p->worker, p->epoch, (unsigned long long)p->sequence, (unsigned long long)p->run);
    }
    return CORRAL_OK;
}

/* Trained on by a saved step, or twice in the log. */
static bool covered(const struct corral_traj_receiver *r, const struct corral_traj_item *item)
{
    const struct corral_traj_stream *st = &r->streams[item->worker];
    return st->known &&
           (item->epoch < st->epoch || (item->epoch == st->epoch && item->sequence <= st->received));
}

/* The stream stands in front of this record now. */
static void advance_to(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                       const struct corral_traj_item *item)
{
    if (!st->known) {
        st->known = true;
        st->epoch = item->epoch;
        st->cursor = (struct corral_traj_cursor){.worker = st->index, .epoch = item->epoch};
    } else if (item->epoch > st->epoch) {
        st->epoch = item->epoch;
        st->received = st->finished = 0;
        st->older = st->held_count;
    }
    if (item->sequence > st->received + 1) {
        r->stats.lost += item->sequence - st->received - 1;
        corral_log_warn("trajectory records are missing in the log; going on after them",
                        LOG_U64("worker", st->index), LOG_U64("epoch", st->epoch),
                        LOG_U64("records", item->sequence - st->received - 1));
        st->finished = st->finished == st->received ? item->sequence - 1 : st->finished;
    }
    st->received = st->durable = item->sequence;
}

static enum corral_status fetch(struct corral_traj_receiver *r, struct corral_error *err)
{
    while (!r->replay_waits) {
        enum corral_status status = r->log->next(r->log->ctx, &r->replay, &r->replay_position, err);
        if (status == CORRAL_AGAIN) {
            r->replaying = false;
        }
        if (status != CORRAL_OK) {
            return status;
        }
        CORRAL_TRY(check_replayed(r, &r->replay, err));
        r->replay_waits = !covered(r, &r->replay);
        if (!r->replay_waits) {
            r->log->finished(r->log->ctx, r->replay_position);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_traj_receiver_replay(struct corral_traj_receiver *r, bool beyond_buffer,
                                               struct corral_traj_held **out, struct corral_error *err)
{
    for (;;) {
        struct corral_traj_held *h;
        CORRAL_TRY(fetch(r, err));
        const struct corral_traj_item *item = &r->replay;
        uint64_t cost = corral_traj_cost(item->bytes);
        if (!beyond_buffer &&
            (r->credit.used > r->credit.buffer || cost > r->credit.buffer - r->credit.used)) {
            return corral_fail(err, CORRAL_AGAIN, "no room to read the trajectory log on");
        }
        CORRAL_TRY(corral_traj_receiver_hold(r, item->data, item->bytes, &h, err));
        struct corral_traj_stream *st = &r->streams[item->worker];
        advance_to(r, st, item);
        h->item.worker = item->worker;
        h->item.epoch = item->epoch;
        h->item.sequence = item->sequence;
        h->position = r->replay_position;
        r->replay_waits = false;
        corral_credit_hold(&r->credit, st->index, cost);
        corral_traj_receiver_enlist(r, st, h);
        if (corral_traj_receiver_spanned(r, item->worker, item->epoch, item->sequence)) {
            corral_traj_receiver_finish(r, &h->item);
            continue;
        }
        r->stats.replayed++;
        *out = h;
        return CORRAL_OK;
    }
}
