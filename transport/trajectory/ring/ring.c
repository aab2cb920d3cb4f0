/* Records: reserve, commit, next, release; and who takes a side over. */
#include "transport/trajectory/ring/ring.h"
#include "transport/trajectory/ring/layout.h"
#include "transport/weights/owner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFETCH_LINES 6 /* header, prologue, most of a small map */

enum corral_status ring_damaged(struct corral_error *err, const char *what, uint64_t position)
{
    return corral_fail(err, CORRAL_PROTOCOL, "a trajectory ring is damaged at position %llu: %s",
                       (unsigned long long)position, what);
}

/* Common and on the hot path: a constant text, not formatted. */
static enum corral_status again(struct corral_error *err, const char *text)
{
    if (err != NULL) {
        err->status = CORRAL_AGAIN;
        err->sys = 0;
        memcpy(err->text, text, strlen(text) + 1);
    }
    return CORRAL_AGAIN;
}

static enum corral_status check_own(const struct corral_ring *r, struct corral_error *err)
{
    /* relaxed: nothing is read on the strength of it */
    if (atomic_load_explicit(&r->control->holder[r->side], memory_order_relaxed) != r->own) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "another process has taken the %s's side of a trajectory ring",
                           r->side == CORRAL_RING_PRODUCER ? "producer" : "consumer");
    }
    return CORRAL_OK;
}

/* ---- headers ---- */

/* A relaxed load each, so that every field is looked at once: what is checked is what is used. */
static inline uint64_t load(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static inline void store(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* The header where the next record goes; made visible by what is stored with release after it. */
static inline void open_header(const struct corral_ring *r, uint64_t position, uint64_t offset,
                               uint64_t number)
{
    struct ring_header *h = ring_header_at(r, offset);
    store(&h->number, number);
    store(&h->mark, ring_check(r->key, position, number, RING_NONE));
    store(&h->stamp, position | RING_OPEN);
}

enum corral_status ring_header_check(const struct corral_ring *r, uint64_t position, uint64_t offset,
                                     uint64_t number, uint64_t *bytes, struct corral_error *err)
{
    const struct ring_header *h = ring_header_at(r, offset);
    uint64_t size = load(&h->bytes);
    if (__builtin_expect(load(&h->number) != number, 0)) {
        return ring_damaged(err, "the record's number is not the next one", position);
    }
    if (__builtin_expect(
            size > r->capacity / 2 || load(&h->seal) != ring_check(r->key, position, number, size), 0)) {
        return ring_damaged(err, "the record's length does not match its check", position);
    }
    *bytes = size;
    return CORRAL_OK;
}

struct walk {
    uint64_t position, offset, number; /* of the open header */
    uint64_t marked;                   /* released ones on the way */
    uint64_t first_number;
};

/* From the tail to the open header, each one checked. */
static enum corral_status walk_chain(const struct corral_ring *r, uint64_t tail, struct walk *out,
                                     struct corral_error *err)
{
    struct walk w = {.position = tail, .offset = tail % r->capacity};
    w.number = w.first_number = load(&ring_header_at(r, w.offset)->number);
    for (;;) {
        struct ring_header *h = ring_header_at(r, w.offset);
        /* acquire pairs with the release of the commit: the header's fields are the record's */
        uint64_t stamp = atomic_load_explicit(&h->stamp, memory_order_acquire), bytes = 0;
        if (stamp == (w.position | RING_OPEN)) {
            break;
        }
        if (stamp != (w.position | RING_COMMITTED) && stamp != (w.position | RING_RELEASED)) {
            return ring_damaged(err, "no header where one should be", w.position);
        }
        CORRAL_TRY(ring_header_check(r, w.position, w.offset, w.number, &bytes, err));
        w.marked += stamp == (w.position | RING_RELEASED);
        w.number++;
        w.position += RING_HEADER_BYTES + ring_round(bytes);
        w.offset = ring_step(r, w.offset, RING_HEADER_BYTES + ring_round(bytes));
        if (w.position + RING_HEADER_BYTES - tail > r->capacity) {
            return ring_damaged(err, "its records have no end", w.position);
        }
    }
    const struct ring_header *open = ring_header_at(r, w.offset);
    if (load(&open->number) != w.number ||
        load(&open->mark) != ring_check(r->key, w.position, w.number, RING_NONE)) {
        return ring_damaged(err, "the number of the next record does not match its check", w.position);
    }
    *out = w;
    return CORRAL_OK;
}

/* ---- sides ---- */

static enum corral_status claim(struct corral_ring *r, struct corral_error *err)
{
    _Atomic uint64_t *holder = &r->control->holder[r->side];
    uint64_t own;
    CORRAL_TRY(corral_owner_word(getpid(), &own, err));
    uint64_t seen = load(holder);
    do {
        if (seen != 0 && corral_owner_alive(seen)) {
            return corral_fail(err, CORRAL_EXISTS, "process %d holds the %s's side of a trajectory ring",
                               (int)corral_owner_pid(seen),
                               r->side == CORRAL_RING_PRODUCER ? "producer" : "consumer");
        }
        /* acq_rel pairs with the release of corral_ring_close(), and with the next holder's */
    } while (!atomic_compare_exchange_weak_explicit(holder, &seen, own, memory_order_acq_rel,
                                                    memory_order_relaxed));
    r->own = own;
    return CORRAL_OK;
}

static enum corral_status take_over(struct corral_ring *r, struct corral_error *err)
{
    /* acquire pairs with the release of the consumer's store: what it released is read no more */
    uint64_t word = atomic_load_explicit(&r->control->tail, memory_order_acquire);
    uint64_t tail = word & ~RING_LOW;
    struct walk w = {0};
    if ((word & RING_LOW) != ring_fold(tail)) {
        return ring_damaged(err, "the tail does not match its check", tail);
    }
    CORRAL_TRY(walk_chain(r, tail, &w, err));
    r->tail = tail;
    r->room = RING_NONE;
    if (r->side == CORRAL_RING_PRODUCER) {
        r->position = w.position;
        r->offset = w.offset;
        r->number = w.number;
        store(&r->control->producer_sleeps, 0);
    } else {
        r->position = tail;
        r->offset = r->tail_offset = tail % r->capacity;
        r->number = w.first_number;
        r->marked = w.marked;
        r->released = w.first_number + w.marked;
        store(&r->control->released, r->released);
        store(&r->control->consumer_sleeps, 0);
    }
    return CORRAL_OK;
}

static struct corral_ring *new_side(enum corral_ring_side side)
{
    struct corral_ring *r = calloc(1, sizeof *r);
    if (r != NULL) {
        r->side = side;
        r->fd[0] = r->fd[1] = r->fd[2] = -1;
    }
    return r;
}

CORRAL_DEFINE_CLEANUP(struct corral_ring, corral_ring_close)

enum corral_status corral_ring_create(struct corral_ring **out, uint64_t bytes, bool huge_pages,
                                      const struct corral_allocator *charge, struct corral_error *err)
{
    if (bytes < CORRAL_RING_BYTES_MIN || bytes > CORRAL_RING_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a trajectory ring of %llu bytes: %u to %llu are possible",
                           (unsigned long long)bytes, CORRAL_RING_BYTES_MIN,
                           (unsigned long long)CORRAL_RING_BYTES_MAX);
    }
    CORRAL_CLEANUP(corral_ring_closep) struct corral_ring *r = new_side(CORRAL_RING_PRODUCER);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "make a trajectory ring");
    }
    CORRAL_TRY(ring_memory_create(r, bytes, huge_pages, charge, err));
    CORRAL_TRY(ring_memory_map(r, err));
    open_header(r, 0, 0, 0);
    store(&r->control->tail, ring_fold(0));
    CORRAL_TRY(claim(r, err));
    CORRAL_TRY(take_over(r, err));
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

enum corral_status corral_ring_attach(struct corral_ring **out, enum corral_ring_side side, const int fd[3],
                                      struct corral_error *err)
{
    CORRAL_CLEANUP(corral_ring_closep) struct corral_ring *r = new_side(side);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "attach to a trajectory ring");
    }
    for (int i = 0; i < 3; i++) {
        r->fd[i] = fcntl(fd[i], F_DUPFD_CLOEXEC, 3);
        if (r->fd[i] < 0) {
            return corral_fail_sys(err, errno, "attach to a trajectory ring: descriptor %d", fd[i]);
        }
    }
    CORRAL_TRY(ring_memory_map(r, err));
    CORRAL_TRY(claim(r, err));
    CORRAL_TRY(take_over(r, err));
    /* Whoever was here before may have died between a commit or release and the bell. */
    ring_ring(r, side == CORRAL_RING_PRODUCER ? CORRAL_RING_CONSUMER : CORRAL_RING_PRODUCER);
    *out = CORRAL_STEAL(r);
    return CORRAL_OK;
}

void corral_ring_close(struct corral_ring *r)
{
    if (r == NULL) {
        return;
    }
    /* A child that inherited this has its parent's word, and does not give it up. */
    if (r->own != 0 && corral_owner_pid(r->own) == getpid()) {
        uint64_t own = r->own;
        /* release: all that this side did comes before the next holder's acquire */
        atomic_compare_exchange_strong_explicit(&r->control->holder[r->side], &own, 0, memory_order_release,
                                                memory_order_relaxed);
    }
    ring_memory_free(r);
    free(r);
}

void corral_ring_descriptors(const struct corral_ring *r, int fd[3])
{
    memcpy(fd, r->fd, sizeof r->fd);
}

const char *corral_ring_pages(const struct corral_ring *r)
{
    return r->pages;
}

uint64_t corral_ring_capacity(const struct corral_ring *r)
{
    return r->capacity;
}

bool corral_ring_peer_alive(const struct corral_ring *r)
{
    uint64_t word = load(&r->control->holder[!r->side]);
    return word != 0 && corral_owner_alive(word);
}

/* ---- producer ---- */

bool ring_producer_refresh(struct corral_ring *r)
{
    /* acquire pairs with the consumer's release: it reads no more of what is before the tail */
    uint64_t word = atomic_load_explicit(&r->control->tail, memory_order_acquire);
    uint64_t tail = word & ~RING_LOW;
    if ((word & RING_LOW) != ring_fold(tail) || tail - r->tail > r->position - r->tail) {
        return false;
    }
    r->tail = tail;
    return true;
}

static enum corral_status make_room(struct corral_ring *r, uint64_t bytes, struct corral_error *err)
{
    if (bytes > r->capacity / 2) {
        return corral_fail(err, CORRAL_INVALID,
                           "a record of %llu bytes is more than half of a trajectory ring of %llu",
                           (unsigned long long)bytes, (unsigned long long)r->capacity);
    }
    if (!ring_producer_refresh(r)) {
        return ring_damaged(err, "the tail is where it cannot be", r->tail);
    }
    if (!ring_has_room(r, bytes)) {
        CORRAL_TRY(check_own(r, err));
        return again(err, "the trajectory ring has no room");
    }
    return CORRAL_OK;
}

enum corral_status corral_ring_reserve(struct corral_ring *r, uint64_t bytes, void **out,
                                       struct corral_error *err)
{
    if (__builtin_expect(bytes > r->capacity / 2 || !ring_has_room(r, bytes), 0)) {
        CORRAL_TRY(make_room(r, bytes, err));
    }
    r->room = bytes;
    *out = r->data + r->offset + RING_HEADER_BYTES;
    return CORRAL_OK;
}

void corral_ring_commit(struct corral_ring *r, uint64_t bytes)
{
    assert(r->room != RING_NONE && bytes <= r->room);
    struct ring_header *h = ring_header_at(r, r->offset);
    uint64_t position = r->position, step = RING_HEADER_BYTES + ring_round(bytes);
    store(&h->bytes, bytes);
    store(&h->seal, ring_check(r->key, position, r->number, bytes));
    r->position += step;
    r->offset = ring_step(r, r->offset, step);
    r->number++;
    r->room = RING_NONE;
    open_header(r, r->position, r->offset, r->number);
    /* release: the record, its header and the next one come before; pairs with the acquire in next() and walk_chain() */
    atomic_store_explicit(&h->stamp, position | RING_COMMITTED, memory_order_release);
    ring_light_barrier(r);
    if (__builtin_expect(load(&r->control->consumer_sleeps) != 0, 0)) {
        ring_ring(r, CORRAL_RING_CONSUMER);
    }
}

bool corral_ring_full(struct corral_ring *r, uint64_t bytes)
{
    return ring_producer_refresh(r) && !ring_has_room(r, bytes);
}

uint64_t corral_ring_released(const struct corral_ring *r)
{
    uint64_t released = load(&r->control->released);
    return CORRAL_MIN(released, r->number);
}

uint64_t corral_ring_unreleased(const struct corral_ring *r)
{
    return r->number - corral_ring_released(r);
}

enum corral_status corral_ring_oldest(struct corral_ring *r, uint64_t *number, uint64_t *bytes,
                                      struct corral_error *err)
{
    if (!ring_producer_refresh(r)) {
        return ring_damaged(err, "the tail is where it cannot be", r->tail);
    }
    *number = load(&ring_header_at(r, r->tail % r->capacity)->number);
    *bytes = r->position - r->tail;
    return CORRAL_OK;
}

enum corral_status corral_ring_kept(struct corral_ring *r, uint64_t *position, struct corral_ring_item *out,
                                    struct corral_error *err)
{
    uint64_t at = *position != UINT64_MAX ? *position : r->tail, bytes = 0;
    if (at == r->position) {
        return again(err, "the trajectory ring keeps no other record");
    }
    struct ring_header *h = ring_header_at(r, at % r->capacity);
    uint64_t number = load(&h->number);
    CORRAL_TRY(ring_header_check(r, at, at % r->capacity, number, &bytes, err));
    *out = (struct corral_ring_item){.data = h + 1, .bytes = bytes, .position = at, .number = number};
    *position = at + RING_HEADER_BYTES + ring_round(bytes);
    return CORRAL_OK;
}

/* ---- consumer ---- */

static void publish_tail(struct corral_ring *r)
{
    /* release: what was read of the records comes before the producer's acquire, after which it writes there */
    atomic_store_explicit(&r->control->tail, r->tail | ring_fold(r->tail), memory_order_release);
    store(&r->control->released,
          r->released); /* after the tail: a successor's count is never less than what was shown */
    ring_light_barrier(r);
    uint64_t wanted = load(&r->control->producer_sleeps);
    if (__builtin_expect(wanted != 0, 0) && r->tail >= (wanted & ~RING_LOW)) {
        ring_ring(r, CORRAL_RING_PRODUCER);
    }
}

static inline void read_on(struct corral_ring *r, uint64_t bytes)
{
    r->position += RING_HEADER_BYTES + ring_round(bytes);
    r->offset = ring_step(r, r->offset, RING_HEADER_BYTES + ring_round(bytes));
    r->number++;
}

/* The tail goes over released headers as far as there are any, and takes the reading position with it: what is behind the tail is the producer's. */
static enum corral_status skip_marked(struct corral_ring *r, struct corral_error *err)
{
    while (r->marked > 0) {
        struct ring_header *h = ring_header_at(r, r->tail_offset);
        uint64_t bytes = 0;
        if (atomic_load_explicit(&h->stamp, memory_order_acquire) != (r->tail | RING_RELEASED)) {
            break;
        }
        CORRAL_TRY(ring_header_check(r, r->tail, r->tail_offset, load(&h->number), &bytes, err));
        r->marked--;
        if (r->tail == r->position) {
            read_on(r, bytes);
        }
        r->tail += RING_HEADER_BYTES + ring_round(bytes);
        r->tail_offset = ring_step(r, r->tail_offset, RING_HEADER_BYTES + ring_round(bytes));
    }
    return CORRAL_OK;
}

/* The next record's header and what its reader looks at first: they lie in the producer's cache, and fetching them takes longer than reading a small record. */
static inline void prefetch_record(const struct corral_ring *r)
{
    const char *next = (const char *)ring_header_at(r, r->offset);
    for (uint32_t i = 0; i < PREFETCH_LINES; i++) {
        __builtin_prefetch(next + (size_t)i * CORRAL_RING_ALIGN);
    }
}

/* Neither a committed header nor the open one: released by a consumer before, or damage. */
static enum corral_status next_unusual(struct corral_ring *r, uint64_t stamp, struct corral_error *err)
{
    uint64_t bytes, before = r->tail;
    if (stamp != (r->position | RING_RELEASED)) {
        return ring_damaged(err, "no header where one should be", r->position);
    }
    CORRAL_TRY(ring_header_check(r, r->position, r->offset, r->number, &bytes, err));
    read_on(r, bytes);
    CORRAL_TRY(skip_marked(r, err));
    if (r->tail != before) {
        publish_tail(r);
    }
    return CORRAL_OK;
}

enum corral_status corral_ring_next(struct corral_ring *r, struct corral_ring_item *out,
                                    struct corral_error *err)
{
    for (;;) {
        struct ring_header *h = ring_header_at(r, r->offset);
        /* acquire pairs with the release of the commit */
        uint64_t stamp = atomic_load_explicit(&h->stamp, memory_order_acquire), bytes = 0;
        if (__builtin_expect(stamp == (r->position | RING_COMMITTED), 1)) {
            CORRAL_TRY(ring_header_check(r, r->position, r->offset, r->number, &bytes, err));
            *out = (struct corral_ring_item){
                .data = h + 1, .bytes = bytes, .position = r->position, .number = r->number};
            read_on(r, bytes);
            prefetch_record(r);
            return CORRAL_OK;
        }
        if (stamp == (r->position | RING_OPEN)) {
            CORRAL_TRY(check_own(r, err));
            return again(err, "the trajectory ring has no other record");
        }
        CORRAL_TRY(next_unusual(r, stamp, err));
    }
}

uint64_t corral_ring_reached(const struct corral_ring *r)
{
    return r->number;
}

enum corral_status corral_ring_release(struct corral_ring *r, uint64_t position, struct corral_error *err)
{
    if (position - r->tail >= r->position - r->tail || position & RING_LOW) {
        return corral_fail(err, CORRAL_INVALID, "position %llu of a trajectory ring is not handed out",
                           (unsigned long long)position);
    }
    uint64_t offset = ring_step(r, r->tail_offset, position - r->tail), bytes = 0;
    struct ring_header *h = ring_header_at(r, offset);
    /* relaxed: acquired when it was handed out */
    if (load(&h->stamp) != (position | RING_COMMITTED)) {
        return corral_fail(err, CORRAL_INVALID, "no unreleased record at position %llu of a trajectory ring",
                           (unsigned long long)position);
    }
    if (position != r->tail) {
        /* release: the record is read no more. The producer does not look; a consumer after this one does. */
        atomic_store_explicit(&h->stamp, position | RING_RELEASED, memory_order_release);
        r->marked++;
        r->released++;
        store(&r->control->released, r->released);
        return CORRAL_OK;
    }
    CORRAL_TRY(ring_header_check(r, position, offset, load(&h->number), &bytes, err));
    ring_forget(h, RING_HEADER_BYTES + bytes);
    r->tail += RING_HEADER_BYTES + ring_round(bytes);
    r->tail_offset = ring_step(r, r->tail_offset, RING_HEADER_BYTES + ring_round(bytes));
    r->released++;
    if (r->marked > 0) {
        CORRAL_TRY(skip_marked(r, err));
    }
    publish_tail(r);
    return CORRAL_OK;
}
