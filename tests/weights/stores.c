#include "tests/weights/stores.h"
#include "base/clock.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WORDS 16384u
#define BYTES (WORDS * sizeof(uint64_t))
#define RUN 43

static const uint8_t secret[32] = "the stores of the fault soak";

static void must(enum corral_status status, const struct corral_error *err, const char *what)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, corral_status_name(status), err->text);
        _exit(3);
    }
}

static void nap(long us)
{
    const struct timespec t = {.tv_nsec = us * 1000};
    (void)nanosleep(&t, NULL);
}

static struct corral_manifest *make_manifest(void)
{
    const uint64_t shape[1] = {WORDS};
    struct corral_error err;
    struct corral_manifest *m;
    must(corral_manifest_create(&m, 1, &err), &err, "manifest");
    must(corral_manifest_add(m, "w", CORRAL_DTYPE_U64, 1, shape, &err), &err, "manifest");
    return m;
}

void stores_make(struct stores *s)
{
    struct corral_error err;
    for (uint32_t i = 0; i < STORES; i++) {
        must(corral_weight_store_create(BYTES, &s->fd[i], &err), &err, "store");
    }
}

bool stores_have(const struct stores *s, uint64_t version)
{
    bool all = true;
    for (uint32_t i = 0; i < STORES * STORE_READERS; i++) {
        all = all && atomic_load_explicit(&s->reader[i / STORE_READERS][i % STORE_READERS].version,
                                          memory_order_acquire) == version;
    }
    return all;
}

const char *stores_complaint(const struct stores *s)
{
    for (uint32_t i = 0; i < STORES * STORE_READERS; i++) {
        if (s->reader[i / STORE_READERS][i % STORE_READERS].torn > 0) {
            return "a read of a store was torn, or of a version that was never published";
        }
        if (s->reader[i / STORE_READERS][i % STORE_READERS].regressed > 0) {
            return "a store went back to an older version";
        }
    }
    return "";
}

/* ---- the trainer's node ---- */

static void look_for_node(struct stores *s, struct corral_weight_publisher *p, uint32_t *seen)
{
    char endpoint[sizeof s->endpoint];
    struct corral_error err;
    uint32_t serial = atomic_load_explicit(&s->serial, memory_order_acquire);
    if (serial != *seen) {
        memcpy(endpoint, s->endpoint, sizeof endpoint);
        endpoint[sizeof endpoint - 1] = '\0';
        enum corral_status status = corral_weight_publisher_add_node(p, "b", endpoint, &err);
        *seen = status == CORRAL_OK || status == CORRAL_EXISTS ? serial : *seen;
    }
}

_Noreturn void stores_publish(struct world *w, struct stores *s, uint64_t generation, const char *lanes)
{
    struct corral_error err;
    struct corral_weight_store *store;
    struct corral_weight_publisher *p;
    uint64_t *weights = calloc(WORDS, sizeof *weights), last = atomic_load(&s->done);
    uint32_t seen = 0;
    const struct corral_publisher_options options = {.manifest = make_manifest(),
                                                     .run = RUN,
                                                     .generation = generation,
                                                     .secret = secret,
                                                     .deadline_ms = DEADLINE_MS,
                                                     .lanes = lanes,
                                                     .delta = w->delta,
                                                     .anchor_every = 7};
    if (!weights) {
        _exit(3);
    }
    must(corral_weight_store_attach(s->fd[0], &store, &err), &err, "store");
    must(corral_weight_publisher_create(&p, &options, &err), &err, "publisher");
    must(corral_weight_publisher_add_store(p, store, &err), &err, "publisher");
    for (;;) {
        uint64_t version = atomic_load_explicit(&w->go, memory_order_acquire);
        struct corral_publish_stats stats = {.version = 0};
        if (version <= last) {
            nap(300);
            continue;
        }
        look_for_node(s, p, &seen);
        for (uint64_t i = 0; i < WORDS; i++) {
            weights[i] = world_word(w, version, i);
        }
        if (corral_weight_publisher_push(p, version, weights, BYTES, &stats, &err) == CORRAL_OK) {
            atomic_fetch_add(&s->pushed, 1);
            atomic_fetch_add(&s->deltas, stats.deltas);
        }
        last = version;
        atomic_store_explicit(&s->done, version, memory_order_release);
    }
}

/* ---- the other node ---- */

_Noreturn void stores_receive(struct world *w, struct stores *s, const char *lanes)
{
    struct corral_error err;
    struct corral_weight_store *store;
    struct corral_weight_receiver *r;
    struct corral_push_receiver_status status;
    (void)w;
    must(corral_weight_store_attach(s->fd[1], &store, &err), &err, "store");
    const struct corral_node_receiver_options options = {.node = "b",
                                                         .host = "127.0.0.1",
                                                         .manifest = make_manifest(),
                                                         .store = store,
                                                         .run = RUN,
                                                         .secret = secret,
                                                         .lanes = lanes};
    must(corral_weight_receiver_start(&r, &options, &err), &err, "receiver");
    snprintf(s->endpoint, sizeof s->endpoint, "%s", corral_weight_receiver_endpoint(r));
    atomic_fetch_add_explicit(&s->serial, 1, memory_order_release); /* pairs with look_for_node's acquire */
    for (;;) {
        corral_weight_receiver_status(r, &status);
        atomic_store(&s->aborted, status.aborted);
        nap(100000);
    }
}

_Noreturn void stores_read(struct world *w, struct stores *s, uint32_t index, uint32_t reader)
{
    struct corral_error err;
    struct corral_weight_store *store;
    struct corral_manifest *m = make_manifest();
    const struct corral_digest hash = corral_manifest_hash(m);
    uint64_t *words = calloc(WORDS, sizeof *words), last = 0;
    if (!words) {
        _exit(3);
    }
    must(corral_weight_store_attach(s->fd[index], &store, &err), &err, "store");
    for (;;) {
        struct corral_digest digest;
        uint64_t version = 0;
        if (corral_weight_store_wait(store, last, 50, NULL) != CORRAL_OK ||
            corral_weight_store_read(store, hash, words, BYTES, &version, &digest, &err) != CORRAL_OK) {
            continue; /* overtaken while it was read: the next one */
        }
        bool whole = version <= atomic_load(&w->go);
        for (uint64_t i = 0; i < WORDS && whole; i++) {
            whole = words[i] == world_word(w, version, i);
        }
        atomic_fetch_add(&s->reader[index][reader].torn, !whole);
        atomic_fetch_add(&s->reader[index][reader].regressed, version < last);
        atomic_fetch_add(&s->reader[index][reader].reads, 1);
        last = version;
        atomic_store_explicit(&s->reader[index][reader].version, version, memory_order_release);
    }
}
