/* Records in memory. Small ones lie one behind the other in chunks that go when all in them are finished; others have a block of their own. */
#include "transport/trajectory/receiver_private.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define TELL_BYTES_MAX \
    ((uint64_t)1 << 20) /* so that a sender uses little memory again and again, which stays in its cache */

static enum corral_status place(struct corral_traj_receiver *r, struct corral_traj_held *h, uint64_t bytes,
                                void **out, struct corral_error *err)
{
    if (bytes > r->chunk_bytes / 8) {
        CORRAL_TRY(corral_traj_block_get(r->pool, bytes, &h->block, err));
        *out = h->block->memory;
        return CORRAL_OK;
    }
    if (r->chunk == NULL || r->chunk->capacity - r->chunk_used < bytes) {
        struct corral_traj_block *chunk;
        CORRAL_TRY(corral_traj_block_get(r->pool, r->chunk_bytes, &chunk, err));
        if (r->chunk != NULL) {
            corral_traj_block_unref(r->chunk);
        }
        r->chunk = chunk;
        r->chunk_used = 0;
    }
    h->block = r->chunk;
    corral_traj_block_ref(h->block);
    *out = (uint8_t *)h->block->memory + r->chunk_used;
    r->chunk_used += bytes;
    return CORRAL_OK;
}

static void recycle(struct corral_traj_receiver *r, struct corral_traj_held *h)
{
    h->next = r->spare;
    r->spare = h;
}

static enum corral_status new_held(struct corral_traj_receiver *r, uint64_t bytes,
                                   struct corral_traj_held **out, struct corral_error *err)
{
    struct corral_traj_held *h = r->spare;
    if (h != NULL) {
        r->spare = h->next;
    } else if ((h = malloc(sizeof *h)) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "hold a trajectory record");
    }
    *h = (struct corral_traj_held){.item = {.bytes = bytes}};
    *out = h;
    return CORRAL_OK;
}

enum corral_status corral_traj_receiver_hold_in_place(struct corral_traj_receiver *r, const void *at,
                                                      uint64_t bytes, struct corral_traj_held **out,
                                                      struct corral_error *err)
{
    CORRAL_TRY(new_held(r, bytes, out, err));
    (*out)->item.data = at;
    (*out)->local = true;
    return CORRAL_OK;
}

enum corral_status corral_traj_receiver_hold(struct corral_traj_receiver *r, const void *from, uint64_t bytes,
                                             struct corral_traj_held **out, struct corral_error *err)
{
    struct corral_traj_held *h = NULL;
    void *memory;
    CORRAL_TRY(new_held(r, bytes, &h, err));
    enum corral_status status = place(r, h, bytes, &memory, err);
    if (status != CORRAL_OK) {
        recycle(r, h);
        return status;
    }
    memcpy(memory, from, bytes);
    h->item.data = memory;
    *out = h;
    return CORRAL_OK;
}

void corral_traj_receiver_unhold(struct corral_traj_receiver *r, struct corral_traj_held *h)
{
    if (h->block != NULL) {
        corral_traj_block_unref(h->block);
    }
    recycle(r, h);
}

void corral_traj_receiver_enlist(struct corral_traj_receiver *r, struct corral_traj_stream *st,
                                 struct corral_traj_held *h)
{
    *(st->tail != NULL ? &st->tail->next : &st->head) = h;
    st->tail = h;
    st->held_count++;
    r->stats.received++;
    r->stats.held_bytes += corral_traj_cost(h->item.bytes);
}

void corral_traj_receiver_hold_free(struct corral_traj_receiver *r)
{
    for (uint32_t i = 0; r->streams != NULL && i < CORRAL_TRAJ_WORKERS_MAX; i++) {
        for (struct corral_traj_held *h = r->streams[i].head, *next; h != NULL; h = next) {
            next = h->next;
            if (!h->done && h->block != NULL) {
                corral_traj_block_unref(h->block);
            }
            free(h);
        }
    }
    while (r->spare != NULL) {
        struct corral_traj_held *h = r->spare;
        r->spare = h->next;
        free(h);
    }
    if (r->chunk != NULL) {
        corral_traj_block_unref(r->chunk);
    }
    free(r->spans);
}

/* ---- finishing ---- */

static void advance(struct corral_traj_cursor *c, const struct corral_traj_item *item)
{
    if (c->epoch < item->epoch || (c->epoch == item->epoch && c->sequence < item->sequence)) {
        c->epoch = item->epoch;
        c->sequence = item->sequence;
    }
}

/* Acknowledgements of a worker are gathered while more of its records are held, unless it could run out of credit meanwhile; they go
 * with the next flush at the latest. */
static bool worth_telling(const struct corral_traj_receiver *r, const struct corral_traj_stream *st)
{
    const struct corral_credit_account *a = &r->credit.accounts[st->index];
    return st->held_count == 0 ||
           a->limit - st->told_limit >= CORRAL_MIN(corral_credit_part(&r->credit) / 8, TELL_BYTES_MAX);
}

static void pass_finished(struct corral_traj_receiver *r, struct corral_traj_stream *st)
{
    while (st->head != NULL && st->head->done) {
        struct corral_traj_held *h = st->head;
        advance(&st->cursor, &h->item);
        if (h->item.epoch == st->epoch) {
            st->finished = h->item.sequence;
            st->credit_due = st->live;
        }
        st->head = h->next;
        st->tail = st->head != NULL ? st->tail : NULL;
        if (!h->local) {
            corral_credit_finish(&r->credit, st->index, CORRAL_TRAJ_ITEM_BYTES);
        }
        recycle(r, h);
    }
}

void corral_traj_receiver_finish(struct corral_traj_receiver *r, const struct corral_traj_item *item)
{
    struct corral_traj_held *h = (struct corral_traj_held *)(uintptr_t)item; /* its first member */
    struct corral_traj_stream *st = &r->streams[item->worker];
    assert(!h->done);
    h->done = true;
    st->held_count--;
    if (item->epoch < st->epoch && st->older > 0) {
        st->older--;
        st->credit_due = st->live;
    }
    r->stats.acked++;
    r->stats.held_bytes -= corral_traj_cost(item->bytes);
    if (h->local) {
        corral_traj_receiver_ring_finish(r, h);
    } else {
        corral_traj_block_unref(h->block);
        corral_credit_finish(&r->credit, st->index, item->bytes);
    }
    if (r->log != NULL) {
        r->log->finished(r->log->ctx, h->position);
    }
    pass_finished(r, st);
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

/* ---- cursors ---- */

static void mark_taken(struct corral_traj_receiver *r, const struct corral_traj_item *const *taken,
                       uint32_t count)
{
    r->mark++;
    for (uint32_t i = 0; i < count; i++) {
        ((struct corral_traj_held *)(uintptr_t)taken[i])->mark = r->mark;
    }
}

static bool will_be_done(const struct corral_traj_receiver *r, const struct corral_traj_held *h)
{
    return h->done || h->mark == r->mark;
}

uint32_t corral_traj_receiver_cursors(struct corral_traj_receiver *r,
                                      const struct corral_traj_item *const *taken, uint32_t taken_count,
                                      struct corral_traj_cursor *out, uint32_t out_max)
{
    uint32_t count = 0;
    mark_taken(r, taken, taken_count);
    for (uint32_t w = 0; w < CORRAL_TRAJ_WORKERS_MAX && count < out_max; w++) {
        const struct corral_traj_stream *st = &r->streams[w];
        if (!st->known) {
            continue;
        }
        out[count] = st->cursor;
        for (const struct corral_traj_held *h = st->head; h != NULL && will_be_done(r, h); h = h->next) {
            advance(&out[count], &h->item);
        }
        count++;
    }
    return count;
}

static bool continues(const struct corral_traj_span *s, const struct corral_traj_item *item)
{
    return s->worker == item->worker && s->epoch == item->epoch && s->last + 1 == item->sequence;
}

uint32_t corral_traj_receiver_spans(struct corral_traj_receiver *r,
                                    const struct corral_traj_item *const *taken, uint32_t taken_count,
                                    struct corral_traj_span *out, uint32_t out_max)
{
    uint32_t count = 0;
    mark_taken(r, taken, taken_count);
    /* Restored ones that have not come yet may come after the next restart. */
    for (uint32_t i = 0; i < r->span_count; i++) {
        const struct corral_traj_span *s = &r->spans[i];
        const struct corral_traj_stream *st = &r->streams[s->worker];
        uint64_t from = s->epoch == st->epoch ? CORRAL_MAX(s->first, st->received + 1) : s->first;
        if (s->epoch >= st->epoch && from <= s->last && count++ < out_max) {
            out[count - 1] = (struct corral_traj_span){s->worker, s->epoch, from, s->last};
        }
    }
    for (uint32_t w = 0; w < CORRAL_TRAJ_WORKERS_MAX; w++) {
        const struct corral_traj_held *h = r->streams[w].head;
        while (h != NULL && will_be_done(r, h)) {
            h = h->next; /* the cursor says these */
        }
        struct corral_traj_span span = {.last = 0};
        for (; h != NULL; h = h->next) {
            if (!will_be_done(r, h)) {
                continue;
            }
            bool more = span.last != 0 && continues(&span, &h->item);
            if (!more) {
                count++;
                span = (struct corral_traj_span){w, h->item.epoch, h->item.sequence, 0};
            }
            span.last = h->item.sequence;
            if (count <= out_max) {
                out[count - 1] = span;
            }
        }
    }
    return count;
}

enum corral_status corral_traj_receiver_restore_spans(struct corral_traj_receiver *r,
                                                      const struct corral_traj_span *spans, uint32_t count,
                                                      struct corral_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        if (spans[i].worker >= CORRAL_TRAJ_WORKERS_MAX || spans[i].first == 0 ||
            spans[i].first > spans[i].last || !r->streams[spans[i].worker].known) {
            return corral_fail(err, CORRAL_INVALID,
                               "saved trajectory span: worker %u has no cursor, or the span is empty",
                               spans[i].worker);
        }
    }
    struct corral_traj_span *copy = calloc(CORRAL_MAX(count, 1u), sizeof *copy);
    if (copy == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "restore %u trajectory spans", count);
    }
    if (count > 0) {
        memcpy(copy, spans, count * sizeof *copy);
    }
    free(r->spans);
    r->spans = copy;
    r->span_count = count;
    return CORRAL_OK;
}

bool corral_traj_receiver_spanned(const struct corral_traj_receiver *r, uint32_t worker, uint32_t epoch,
                                  uint64_t sequence)
{
    for (uint32_t i = 0; i < r->span_count; i++) {
        const struct corral_traj_span *s = &r->spans[i];
        if (s->worker == worker && s->epoch == epoch && s->first <= sequence && sequence <= s->last) {
            return true;
        }
    }
    return false;
}
