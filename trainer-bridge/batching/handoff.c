#include "trainer-bridge/batching/handoff.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define FREE_KEPT_MAX 4096u

struct line { /* one worker */
    bool known;
    struct corral_handoff_cursor cursor; /* all up to here is used */
    uint32_t last_epoch;                 /* of the newest record */
    uint64_t last_sequence;
    struct corral_handoff_record *head, *tail;
};

struct corral_handoff {
    corral_handoff_fn finish;
    void *ctx;
    uint64_t held, beyond;
    struct corral_handoff_state restored; /* ranges only */
    struct corral_handoff_record *spare;
    uint32_t spares;
    struct line line[CORRAL_HANDOFF_WORKERS_MAX];
};

enum corral_status corral_handoff_create(struct corral_handoff **out, corral_handoff_fn finish, void *ctx,
                                         struct corral_error *err)
{
    struct corral_handoff *h = calloc(1, sizeof *h);
    if (h == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "keep the order of records");
    }
    h->finish = finish;
    h->ctx = ctx;
    *out = h;
    return CORRAL_OK;
}

static void free_list(struct corral_handoff_record *r)
{
    while (r != NULL) {
        struct corral_handoff_record *next = r->next;
        free(r);
        r = next;
    }
}

void corral_handoff_destroy(struct corral_handoff *h)
{
    if (h == NULL) {
        return;
    }
    for (uint32_t w = 0; w < CORRAL_HANDOFF_WORKERS_MAX; w++) {
        free_list(h->line[w].head);
    }
    free_list(h->spare);
    corral_handoff_state_free(&h->restored);
    free(h);
}

void corral_handoff_state_free(struct corral_handoff_state *state)
{
    free(state->cursor);
    free(state->range);
    *state = (struct corral_handoff_state){.cursor_count = 0};
}

/* ---- a state ---- */

static int order(uint32_t worker_a, uint32_t epoch_a, uint64_t sequence_a, uint32_t worker_b,
                 uint32_t epoch_b, uint64_t sequence_b)
{
    if (worker_a != worker_b) {
        return worker_a < worker_b ? -1 : 1;
    }
    if (epoch_a != epoch_b) {
        return epoch_a < epoch_b ? -1 : 1;
    }
    return sequence_a < sequence_b ? -1 : sequence_a > sequence_b;
}

static const struct corral_handoff_cursor *find_cursor(const struct corral_handoff_state *s, uint32_t worker)
{
    uint32_t low = 0, high = s->cursor_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (s->cursor[middle].worker < worker) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < s->cursor_count && s->cursor[low].worker == worker ? &s->cursor[low] : NULL;
}

static bool in_ranges(const struct corral_handoff_state *s, uint32_t worker, uint32_t epoch,
                      uint64_t sequence)
{
    uint32_t low = 0, high = s->range_count; /* the first range that begins beyond it */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct corral_handoff_range *r = &s->range[middle];
        if (order(r->worker, r->epoch, r->first, worker, epoch, sequence) <= 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0) {
        return false;
    }
    const struct corral_handoff_range *r = &s->range[low - 1];
    return r->worker == worker && r->epoch == epoch && sequence <= r->last;
}

static bool behind(const struct corral_handoff_cursor *c, uint32_t epoch, uint64_t sequence)
{
    return epoch < c->epoch || (epoch == c->epoch && sequence <= c->sequence);
}

bool corral_handoff_covers(const struct corral_handoff_state *state, uint32_t worker, uint32_t epoch,
                           uint64_t sequence)
{
    const struct corral_handoff_cursor *c = find_cursor(state, worker);
    return (c != NULL && behind(c, epoch, sequence)) || in_ranges(state, worker, epoch, sequence);
}

static enum corral_status check_state(const struct corral_handoff_state *s, struct corral_error *err)
{
    for (uint32_t i = 0; i < s->cursor_count; i++) {
        if (s->cursor[i].worker >= CORRAL_HANDOFF_WORKERS_MAX ||
            (i > 0 && s->cursor[i].worker <= s->cursor[i - 1].worker)) {
            return corral_fail(err, CORRAL_INVALID,
                               "saved position %u: worker %u is out of range or out of order", i,
                               s->cursor[i].worker);
        }
    }
    for (uint32_t i = 0; i < s->range_count; i++) {
        const struct corral_handoff_range *r = &s->range[i], *before = &s->range[i > 0 ? i - 1 : 0];
        const struct corral_handoff_cursor *c = find_cursor(s, r->worker);
        if (r->worker >= CORRAL_HANDOFF_WORKERS_MAX || r->first == 0 || r->first > r->last ||
            (c != NULL && behind(c, r->epoch, r->first)) ||
            (i > 0 &&
             order(before->worker, before->epoch, before->last, r->worker, r->epoch, r->first) >= 0)) {
            return corral_fail(err, CORRAL_INVALID,
                               "saved position: used records %llu to %llu of worker %u "
                               "overlap others or are out of order",
                               (unsigned long long)r->first, (unsigned long long)r->last, r->worker);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_handoff_restore(struct corral_handoff *h, const struct corral_handoff_state *state,
                                          struct corral_error *err)
{
    CORRAL_TRY(check_state(state, err));
    struct corral_handoff_range *ranges = NULL;
    if (state->range_count > 0) {
        ranges = malloc(state->range_count * sizeof *ranges);
        if (ranges == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "keep %u ranges of used records", state->range_count);
        }
        memcpy(ranges, state->range, state->range_count * sizeof *ranges);
    }
    free(h->restored.range);
    h->restored.range = ranges;
    h->restored.range_count = state->range_count;
    for (uint32_t i = 0; i < state->cursor_count; i++) {
        struct line *l = &h->line[state->cursor[i].worker];
        l->known = true;
        l->cursor = state->cursor[i];
        l->last_epoch = l->cursor.epoch;
        l->last_sequence = l->cursor.sequence;
    }
    return CORRAL_OK;
}

/* ---- records ---- */

static struct corral_handoff_record *take_spare(struct corral_handoff *h)
{
    struct corral_handoff_record *r = h->spare;
    if (r == NULL) {
        return malloc(sizeof *r);
    }
    h->spare = r->next;
    h->spares--;
    return r;
}

static void pass_head(struct corral_handoff *h, struct line *l)
{
    struct corral_handoff_record *r = l->head;
    l->head = r->next;
    if (l->head == NULL) {
        l->tail = NULL;
    }
    l->cursor.epoch = r->epoch;
    l->cursor.sequence = r->sequence;
    h->beyond--;
    if (h->spares < FREE_KEPT_MAX) {
        r->next = h->spare;
        h->spare = r;
        h->spares++;
    } else {
        free(r);
    }
}

static void use(struct corral_handoff *h, struct corral_handoff_record *r)
{
    struct line *l = &h->line[r->worker];
    void *user = r->user;
    r->used = true;
    h->beyond++;
    while (l->head != NULL && l->head->used) {
        pass_head(h, l);
    }
    h->finish(h->ctx, user);
}

enum corral_status corral_handoff_add(struct corral_handoff *h, uint32_t worker, uint32_t epoch,
                                      uint64_t sequence, void *user, bool *fresh,
                                      struct corral_handoff_record **out, struct corral_error *err)
{
    if (worker >= CORRAL_HANDOFF_WORKERS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "a record of worker %u; at most %u are supported", worker,
                           CORRAL_HANDOFF_WORKERS_MAX);
    }
    struct line *l = &h->line[worker];
    if (sequence == 0 ||
        (l->known && (epoch < l->last_epoch || (epoch == l->last_epoch && sequence <= l->last_sequence)))) {
        return corral_fail(
            err, CORRAL_PROTOCOL, "record %u/%llu of worker %u came after record %u/%llu of the same", epoch,
            (unsigned long long)sequence, worker, l->last_epoch, (unsigned long long)l->last_sequence);
    }
    struct corral_handoff_record *r = take_spare(h);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "keep the order of records");
    }
    bool used = in_ranges(&h->restored, worker, epoch, sequence);
    *r = (struct corral_handoff_record){.worker = worker, .epoch = epoch, .sequence = sequence, .user = user};
    l->cursor.worker = worker;
    l->known = true;
    l->last_epoch = epoch;
    l->last_sequence = sequence;
    if (l->tail != NULL) {
        l->tail->next = r;
    } else {
        l->head = r;
    }
    l->tail = r;
    *fresh = !used;
    if (used) {
        use(h, r);
    } else {
        h->held++;
        *out = r;
    }
    return CORRAL_OK;
}

void corral_handoff_batch(struct corral_handoff_record *record, uint64_t batch)
{
    assert(!record->used && record->batch == 0 && batch > 0);
    record->batch = batch;
}

void corral_handoff_use(struct corral_handoff *h, struct corral_handoff_record *record)
{
    assert(!record->used);
    h->held--;
    use(h, record);
}

uint64_t corral_handoff_held(const struct corral_handoff *h)
{
    return h->held;
}

uint64_t corral_handoff_beyond(const struct corral_handoff *h)
{
    return h->beyond;
}

/* ---- saving ---- */

struct saver {
    struct corral_handoff_state state;
    uint32_t room;
};

static enum corral_status add_range(struct saver *s, uint32_t worker, uint32_t epoch, uint64_t first,
                                    uint64_t last, struct corral_error *err)
{
    struct corral_handoff_range *newest =
        s->state.range_count > 0 ? &s->state.range[s->state.range_count - 1] : NULL;
    if (newest != NULL && newest->worker == worker && newest->epoch == epoch && newest->last + 1 == first) {
        newest->last = last;
        return CORRAL_OK;
    }
    if (s->state.range_count == s->room) {
        uint32_t room = s->room > 0 ? 2 * s->room : 64;
        void *grown = s->room < CORRAL_HANDOFF_RANGES_MAX
                          ? reallocarray(s->state.range, room, sizeof s->state.range[0])
                          : NULL;
        if (grown == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "save %u ranges of used records", room);
        }
        s->state.range = grown;
        s->room = room;
    }
    s->state.range[s->state.range_count++] =
        (struct corral_handoff_range){.worker = worker, .epoch = epoch, .first = first, .last = last};
    return CORRAL_OK;
}

/* Ranges of the restored state that no record has come for yet stay in force: their records may still come. `c`: the worker's cursor when all that came is used, else NULL. */
static enum corral_status keep_restored(struct saver *s, const struct corral_handoff *h, uint32_t worker,
                                        struct corral_handoff_cursor *c, struct corral_error *err)
{
    const struct line *l = &h->line[worker];
    for (uint32_t i = 0; i < h->restored.range_count; i++) {
        const struct corral_handoff_range *r = &h->restored.range[i];
        if (r->worker != worker || (l->known && (r->epoch < l->last_epoch))) {
            continue;
        }
        uint64_t first =
            l->known && r->epoch == l->last_epoch ? CORRAL_MAX(r->first, l->last_sequence + 1) : r->first;
        if (c != NULL && r->epoch == c->epoch && first == c->sequence + 1 && first <= r->last) {
            c->sequence =
                r->last; /* they follow the cursor: their records will be finished as they come, without another save */
            continue;
        }
        if (first <= r->last) {
            CORRAL_TRY(add_range(s, worker, r->epoch, first, r->last, err));
        }
    }
    return CORRAL_OK;
}

static enum corral_status save_line(struct saver *s, const struct corral_handoff *h, uint32_t worker,
                                    uint64_t batch, struct corral_error *err)
{
    const struct line *l = &h->line[worker];
    struct corral_handoff_cursor c = l->cursor;
    bool all = true;
    for (const struct corral_handoff_record *r = l->head; r != NULL; r = r->next) {
        bool used = r->used || (r->batch > 0 && r->batch <= batch);
        all = all && used;
        if (all) {
            c.epoch = r->epoch;
            c.sequence = r->sequence;
        } else if (used) {
            CORRAL_TRY(add_range(s, worker, r->epoch, r->sequence, r->sequence, err));
        }
    }
    CORRAL_TRY(keep_restored(s, h, worker, l->known && all ? &c : NULL, err));
    if (l->known) {
        c.worker = worker;
        s->state.cursor[s->state.cursor_count++] = c;
    }
    return CORRAL_OK;
}

enum corral_status corral_handoff_save(const struct corral_handoff *h, uint64_t batch,
                                       struct corral_handoff_state *out, struct corral_error *err)
{
    struct saver s = {.state.cursor = calloc(CORRAL_HANDOFF_WORKERS_MAX, sizeof s.state.cursor[0])};
    if (s.state.cursor == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "save the position of %u workers", CORRAL_HANDOFF_WORKERS_MAX);
    }
    enum corral_status status = CORRAL_OK;
    for (uint32_t w = 0; w < CORRAL_HANDOFF_WORKERS_MAX && status == CORRAL_OK; w++) {
        status = save_line(&s, h, w, batch, err);
    }
    if (status != CORRAL_OK) {
        corral_handoff_state_free(&s.state);
        return status;
    }
    *out = s.state;
    return CORRAL_OK;
}
