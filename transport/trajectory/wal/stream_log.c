#include "transport/trajectory/wal/stream_log.h"
#include "transport/trajectory/record/prologue.h"
#include <stdlib.h>
#include <string.h>

#define WORD 64u
#define WORDS_FIRST 64u
#define WORDS_MAX (1u << 22) /* 256 M records that are finished before one older than them */

struct corral_stream_log {
    struct corral_traj_log hook;
    struct corral_wal *wal;
    struct corral_wal_reader *reader; /* of what was there at start; NULL: read to its end */
    uint64_t low;                     /* all up to here are finished */
    /* A ring of bits, from the word that low is in; set: finished before one older than it. */
    uint64_t *bits;
    uint32_t words; /* a power of two */
};

static enum corral_status append(void *ctx, const struct corral_traj_item *item, uint64_t *position,
                                 struct corral_error *err)
{
    struct corral_stream_log *l = ctx;
    return corral_wal_append(l->wal, item->data, item->bytes, position, err);
}

static enum corral_status durable(void *ctx, uint64_t *position, struct corral_error *err)
{
    struct corral_stream_log *l = ctx;
    return corral_wal_durable(l->wal, position, err);
}

static enum corral_status next(void *ctx, struct corral_traj_item *out, uint64_t *position,
                               struct corral_error *err)
{
    struct corral_stream_log *l = ctx;
    struct corral_wal_item item;
    if (l->reader == NULL) {
        return corral_fail(err, CORRAL_AGAIN, "the trajectory log has been read");
    }
    enum corral_status status = corral_wal_reader_next(l->reader, &item, err);
    if (status == CORRAL_AGAIN) {
        corral_wal_reader_close(l->reader);
        l->reader = NULL;
    }
    CORRAL_TRY(status);
    if (item.bytes < CORRAL_TRAJ_PROLOGUE_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL, "the trajectory log holds %llu bytes that are no record",
                           (unsigned long long)item.bytes);
    }
    const struct corral_traj_prologue *p = item.data;
    *out = (struct corral_traj_item){.worker = p->worker,
                                     .epoch = p->epoch,
                                     .sequence = p->sequence,
                                     .data = item.data,
                                     .bytes = item.bytes};
    *position = item.position;
    return CORRAL_OK;
}

static uint64_t *word_of(const struct corral_stream_log *l, uint64_t position)
{
    return &l->bits[position / WORD & (l->words - 1)];
}

static bool is_set(const struct corral_stream_log *l, uint64_t position)
{
    return (*word_of(l, position) >> position % WORD & 1) != 0;
}

/* A ring in which `position` has a bit of its own. Without memory, the mark stays where it is: the log keeps more than it must. */
static bool reach(struct corral_stream_log *l, uint64_t position)
{
    uint32_t words = l->words;
    while (position / WORD - l->low / WORD >= words) {
        words *= 2;
        if (words > WORDS_MAX) {
            return false;
        }
    }
    if (words == l->words) {
        return true;
    }
    uint64_t *bits = calloc(words, sizeof *bits);
    if (bits == NULL) {
        return false;
    }
    for (uint64_t i = l->low / WORD; i < l->low / WORD + l->words; i++) {
        bits[i & (words - 1)] = l->bits[i & (l->words - 1)];
    }
    free(l->bits);
    l->bits = bits;
    l->words = words;
    return true;
}

static void finished(void *ctx, uint64_t position)
{
    struct corral_stream_log *l = ctx;
    if (position <= l->low || !reach(l, position)) {
        return;
    }
    *word_of(l, position) |= UINT64_C(1) << position % WORD;
    while (is_set(l, l->low + 1)) {
        l->low++;
        *word_of(l, l->low) &= ~(UINT64_C(1) << l->low % WORD);
    }
}

static void release(struct corral_stream_log *l)
{
    corral_wal_reader_close(l->reader);
    free(l->bits);
    free(l);
}

enum corral_status corral_stream_log_open(struct corral_stream_log **out, const struct corral_wal_options *o,
                                          struct corral_error *err)
{
    struct corral_stream_log *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a trajectory log");
    }
    l->words = WORDS_FIRST;
    l->bits = calloc(l->words, sizeof *l->bits);
    enum corral_status status = l->bits == NULL
                                    ? corral_fail(err, CORRAL_NOMEM, "no memory for a trajectory log")
                                    : corral_wal_open(&l->wal, o, err);
    if (status == CORRAL_OK) {
        l->low = corral_wal_first(l->wal) - 1;
        status = corral_wal_reader_open(&l->reader, o->folder, 0, err);
    }
    if (status != CORRAL_OK) {
        (void)corral_wal_close(l->wal, NULL);
        release(l);
        return status;
    }
    l->hook = (struct corral_traj_log){.ctx = l,
                                       .append = append,
                                       .durable = durable,
                                       .bell = corral_wal_bell(l->wal),
                                       .next = next,
                                       .finished = finished};
    *out = l;
    return CORRAL_OK;
}

enum corral_status corral_stream_log_close(struct corral_stream_log *l, struct corral_error *err)
{
    if (l == NULL) {
        return CORRAL_OK;
    }
    enum corral_status status = corral_wal_close(l->wal, err);
    release(l);
    return status;
}

const struct corral_traj_log *corral_stream_log_hook(const struct corral_stream_log *l)
{
    return &l->hook;
}

uint64_t corral_stream_log_low(const struct corral_stream_log *l)
{
    return l->low;
}

uint64_t corral_stream_log_first(const struct corral_stream_log *l)
{
    return corral_wal_first(l->wal);
}

uint64_t corral_stream_log_waiting(const struct corral_stream_log *l)
{
    return corral_wal_last(l->wal) - l->low;
}

enum corral_status corral_stream_log_trim(struct corral_stream_log *l, uint64_t position,
                                          struct corral_error *err)
{
    return corral_wal_trim(l->wal, CORRAL_MIN(position, l->low), err);
}
