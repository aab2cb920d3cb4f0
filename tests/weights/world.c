#include "tests/weights/world.h"
#include "base/clock.h"
#include "base/error.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TENSORS 3u
#define SPARSE_READ 61u /* every so many words: a prime, so that all tensors and both halves are met */

static const struct {
    const char *name;
    uint64_t shape[2];
    uint32_t cut; /* dimension that the engine cuts; 2: whole on both */
} model[TENSORS] = {{"embed", {96, 128}, 0}, {"mlp.down", {128, 96}, 1}, {"norm", {64, 1}, 2}};

static const uint8_t secret[32] = "the fault soak";

static void must(enum corral_status status, const struct corral_error *err, const char *what)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, corral_status_name(status), err->text);
        _exit(3);
    }
}

struct corral_weights_layout *world_layout(bool trainer)
{
    struct corral_error err;
    struct corral_weights_layout *l;
    uint32_t t;
    must(corral_weights_layout_create(&l, trainer ? SENDERS : TP, &err), &err, "layout");
    for (uint32_t i = 0; i < TENSORS; i++) {
        const uint64_t *shape = model[i].shape;
        must(corral_weights_layout_tensor(l, model[i].name, CORRAL_WEIGHTS_U64, 2, shape, &t, &err), &err,
             "tensor");
        uint64_t elements = shape[0] * shape[1], part = elements / SENDERS;
        for (uint32_t r = 0; r < (trainer ? SENDERS : TP); r++) {
            uint64_t cut = model[i].cut < 2 ? shape[model[i].cut] / TP : 0;
            must(trainer
                     ? corral_weights_layout_flat(l, t, r, r * part, part, CORRAL_WEIGHTS_NEXT, NULL, &err)
                 : model[i].cut == 2 ? corral_weights_layout_whole(l, t, r, CORRAL_WEIGHTS_NEXT, NULL, &err)
                                     : corral_weights_layout_slice(l, t, r, model[i].cut, r * cut, cut,
                                                                   CORRAL_WEIGHTS_NEXT, NULL, &err),
                 &err, "piece");
        }
    }
    return l;
}

static uint64_t align64(uint64_t at)
{
    return (at + 63) / 64 * 64;
}

/* Written a second time, apart from the layouts, so that a mistake in those is seen as wrong words. */
uint64_t *world_ids(bool trainer, uint32_t rank, uint64_t *words)
{
    struct corral_weights_layout *l = world_layout(trainer);
    *words = corral_weights_layout_bytes(l, rank) / 8;
    corral_weights_layout_destroy(l);
    uint64_t *id = malloc(*words * sizeof *id);
    if (!id) {
        _exit(3);
    }
    memset(id, 0xff, *words * sizeof *id);
    uint64_t at = 0, base = 0;
    for (uint32_t i = 0; i < TENSORS; i++) {
        uint64_t rows = model[i].shape[0], columns = model[i].shape[1], n = 0;
        at = align64(at);
        for (uint64_t e = 0; e < rows * columns; e++) {
            uint64_t row = e / columns, column = e % columns;
            bool mine = trainer             ? e / (rows * columns / SENDERS) == rank
                        : model[i].cut == 0 ? row / (rows / TP) == rank
                        : model[i].cut == 1 ? column / (columns / TP) == rank
                                            : true;
            if (mine) {
                id[at / 8 + n++] = base + e;
            }
        }
        at += n * 8;
        base += rows * columns;
    }
    return id;
}

static struct corral_weights_identity identity(uint64_t generation)
{
    return (struct corral_weights_identity){.size = sizeof(struct corral_weights_identity),
                                            .run = 42,
                                            .generation = generation,
                                            .secret = secret};
}

static void put_card(struct world_card *to, uint64_t bytes)
{
    to->bytes = bytes;
    atomic_fetch_add_explicit(&to->serial, 1, memory_order_release); /* pairs with take_card's acquire */
}

static void nap(long us)
{
    const struct timespec t = {.tv_nsec = us * 1000};
    (void)nanosleep(&t, NULL);
}

/* ---- a trainer rank ---- */

static void add_cards(struct world *w, struct corral_weights_publisher *p, uint32_t seen[RECEIVERS])
{
    struct corral_error err;
    static uint8_t card[CARD_MAX];
    for (uint32_t i = 0; i < RECEIVERS; i++) {
        struct world_card *c = &w->receiver[i].card;
        uint32_t serial = atomic_load_explicit(&c->serial, memory_order_acquire);
        uint64_t bytes = c->bytes;
        if (serial == seen[i] || bytes > sizeof card || atomic_load(&w->receiver[i].hidden)) {
            continue;
        }
        memcpy(card, c->data, bytes);
        /* Half of the next card is refused by its signature; it will have another serial. */
        if (corral_weights_publisher_add(p, card, bytes, &err) == CORRAL_OK) {
            seen[i] = serial;
        }
    }
}

_Noreturn void world_send(struct world *w, uint32_t rank, uint64_t generation, const char *lanes,
                          bool proxied)
{
    struct corral_error err;
    uint64_t words, bytes = CARD_MAX, last;
    uint32_t seen[RECEIVERS] = {0};
    if (proxied) {
        proxy_use(&w->proxy);
    }
    uint64_t *id = world_ids(true, rank, &words), *weights = calloc(words, sizeof *weights);
    struct corral_weights_layout *l = world_layout(true);
    struct corral_weights_identity who = identity(generation);
    struct corral_weights_region region = {
        .size = sizeof region, .device = -1, .bytes = words * 8, .address = weights};
    struct corral_weights_publisher_options options = {.size = sizeof options,
                                                       .rank = rank,
                                                       .identity = &who,
                                                       .layout = l,
                                                       .regions = &region,
                                                       .region_count = 1,
                                                       .deadline_ms = DEADLINE_MS,
                                                       .bucket_bytes = 64u << 10,
                                                       .lanes = lanes,
                                                       .delta = w->delta,
                                                       .anchor_every = 7,
                                                       .delta_element_bytes = 8};
    struct corral_weights_publisher *p;
    must(corral_weights_publisher_open(&p, &options, &err), &err, "publisher");
    if (rank == 0 && atomic_load(&w->trainer_card.serial) == 0) {
        must(corral_weights_publisher_card(p, w->trainer_card.data, &bytes, &err), &err, "card");
        put_card(&w->trainer_card, bytes);
    }
    struct world_sender *me = &w->sender[rank];
    last = atomic_load_explicit(&me->done, memory_order_relaxed);
    for (;;) {
        uint64_t version = atomic_load_explicit(&w->go, memory_order_acquire);
        if (version <= last) {
            nap(300);
            continue;
        }
        add_cards(w, p, seen);
        for (uint64_t i = 0; i < words; i++) {
            weights[i] = id[i] == UINT64_MAX ? 0 : world_word(w, version, id[i]);
        }
        me->result = (struct corral_weights_result){.size = sizeof me->result};
        me->status = corral_weights_publish(p, version, &me->result, &err);
        snprintf(me->text, sizeof me->text, "%.180s", me->status == CORRAL_OK ? "" : err.text);
        last = version;
        atomic_store_explicit(&me->done, version, memory_order_release);
    }
}

/* ---- an engine rank ---- */

struct reader {
    struct corral_weights_subscriber *s;
    struct world *w;
    struct world_receiver *r;
    const uint64_t *id;
    uint64_t words;
    uint32_t start; /* of its stride: both readers together see more */
};

static bool view_is_whole(const struct reader *me, const struct corral_weights_view *view, uint32_t stride)
{
    const uint64_t *word = view->base;
    for (uint64_t i = me->start % stride; i < me->words; i += stride) {
        if (word[i] != (me->id[i] == UINT64_MAX ? 0 : world_word(me->w, view->version, me->id[i]))) {
            return false;
        }
    }
    return true;
}

static void *read_versions(void *arg)
{
    const struct reader *me = arg;
    struct corral_weights_view view = {.size = sizeof view};
    uint64_t last = 0;
    for (;;) {
        uint64_t begun = corral_now_ns(&corral_clock_monotonic);
        if (corral_weights_acquire(me->s, &view, NULL) != CORRAL_OK) {
            nap(200);
            continue;
        }
        uint64_t took = corral_now_ns(&corral_clock_monotonic) - begun;
        if (took > atomic_load_explicit(&me->r->acquire_ns_max, memory_order_relaxed)) {
            atomic_store_explicit(&me->r->acquire_ns_max, took, memory_order_relaxed);
        }
        /* Each version once in full, and again sparsely as long as it is there. */
        bool whole = view_is_whole(me, &view, view.version == last ? SPARSE_READ : 1);
        atomic_fetch_add_explicit(&me->r->torn, !whole, memory_order_relaxed);
        atomic_fetch_add_explicit(&me->r->regressed, view.version < last, memory_order_relaxed);
        atomic_fetch_add_explicit(&me->r->wrong, view.version > atomic_load(&me->w->go),
                                  memory_order_relaxed);
        atomic_fetch_add_explicit(&me->r->reads, 1, memory_order_relaxed);
        bool again = view.version == last;
        last = view.version;
        corral_weights_release(me->s, &view);
        if (again) {
            nap(300);
        }
    }
    return NULL;
}

_Noreturn void world_receive(struct world *w, uint32_t index, const char *lanes)
{
    struct corral_error err;
    char name[32], replica[32];
    uint64_t words, bytes = CARD_MAX;
    struct world_receiver *me = &w->receiver[index];
    struct corral_weights_layout *l = world_layout(false);
    struct corral_weights_identity who = identity(0);
    while (atomic_load_explicit(&w->trainer_card.serial, memory_order_acquire) == 0) {
        nap(200);
    }
    snprintf(name, sizeof name, "engine-%u.tp%u", index / TP, index % TP);
    snprintf(replica, sizeof replica, "engine-%u", index / TP);
    struct corral_weights_subscriber_options options = {.size = sizeof options,
                                                        .rank = index % TP,
                                                        .identity = &who,
                                                        .layout = l,
                                                        .trainer_card = w->trainer_card.data,
                                                        .trainer_card_bytes = w->trainer_card.bytes,
                                                        .name = name,
                                                        .replica = replica,
                                                        .buffers = 2 + index % 2,
                                                        .auto_flip = 1,
                                                        .busy_wait_ms = 100,
                                                        .lanes = lanes};
    static struct reader reader[READERS];
    struct corral_weights_subscriber *s;
    static uint8_t card[CARD_MAX];
    struct corral_weights_peer peer = {.card = card};
    const struct world_card *other = &w->receiver[(index + TP) % RECEIVERS].card;
    if (atomic_load(&w->pulls) && atomic_load_explicit(&other->serial, memory_order_acquire) > 0) {
        peer.bytes = other->bytes <= CARD_MAX ? other->bytes : 0;
        memcpy(card, other->data, peer.bytes);
        options.peers = &peer;
        options.peer_count = 1;
    }
    /* Half of a card that is being written has a wrong signature. */
    if (corral_weights_subscriber_open(&s, &options, &err) != CORRAL_OK) {
        options.peers = NULL;
        options.peer_count = 0;
        must(corral_weights_subscriber_open(&s, &options, &err), &err, "subscriber");
    }
    atomic_store_explicit(&me->version, 0, memory_order_relaxed);
    must(corral_weights_subscriber_card(s, me->card.data, &bytes, &err), &err, "card");
    put_card(&me->card, bytes);
    const uint64_t *id = world_ids(false, index % TP, &words);
    for (uint32_t i = 0; i < READERS; i++) {
        pthread_t thread;
        reader[i] = (struct reader){.s = s, .w = w, .r = me, .id = id, .words = words, .start = 7 * i};
        if (pthread_create(&thread, NULL, read_versions, &reader[i]) != 0) {
            _exit(3);
        }
    }
    struct corral_weights_status status = {.size = sizeof status};
    for (uint64_t seen = 0;;) {
        if (corral_weights_wait(s, seen + 1, 50, &seen, NULL) == CORRAL_OK) {
            atomic_store_explicit(&me->version, corral_weights_version(s), memory_order_release);
        }
        if (corral_weights_subscriber_status(s, &status, NULL) == CORRAL_OK) {
            atomic_store_explicit(&me->resent, status.resent_buckets, memory_order_relaxed);
            atomic_store_explicit(&me->aborted, status.aborted, memory_order_relaxed);
            atomic_store_explicit(&me->pulls, status.pulls, memory_order_release);
        }
    }
}
