/* Receivers over plain memory and groups of senders on threads, for the tests of the push protocol. Include "tests/check.h" first. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_TEST_GROUP_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_TEST_GROUP_H

#include "base/clock.h"
#include "transport/weights/link/test_mesh.h"
#include "transport/weights/push/push.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEST_RUN 77
#define TEST_BUCKET CORRAL_BUCKET_BYTES_MIN
#define TEST_DEADLINE_NS (20 * CORRAL_NS_PER_S)

/* ---- a target: two buffers, one of them current ---- */

struct test_target {
    uint8_t *buffer[2];
    uint64_t bytes;
    int fd;
    pthread_mutex_t lock; /* guards what follows: the test reads while the receiver flips */
    uint32_t at;
    uint64_t version;
    struct corral_digest digest;
    uint32_t begun, commits, aborts;
    bool refuse_commit;
};

static inline void target_current(void *ctx, uint64_t *version, struct corral_digest *digest)
{
    struct test_target *t = ctx;
    pthread_mutex_lock(&t->lock);
    *version = t->version;
    *digest = t->digest;
    pthread_mutex_unlock(&t->lock);
}

static inline enum corral_status target_begin(void *ctx, uint64_t version, uint64_t base,
                                              struct corral_shard *shadow, struct corral_error *err)
{
    struct test_target *t = ctx;
    (void)base;
    pthread_mutex_lock(&t->lock);
    bool below = version < t->version;
    t->begun += !below;
    uint32_t other = 1 - t->at;
    pthread_mutex_unlock(&t->lock);
    if (below) {
        return corral_fail(err, CORRAL_INVALID, "below the current version");
    }
    *shadow = corral_shard_host(t->buffer[other], t->bytes);
    shadow->fd = t->fd;
    shadow->fd_offset = other * ((t->bytes + 4096) / 4096 * 4096);
    return CORRAL_OK;
}

static inline enum corral_status target_commit(void *ctx, uint64_t version, struct corral_digest digest,
                                               struct corral_error *err)
{
    struct test_target *t = ctx;
    pthread_mutex_lock(&t->lock);
    bool same = version == t->version && corral_digest_equal(digest, t->digest);
    bool refused = t->refuse_commit || (version == t->version && !same);
    if (!refused && !same) {
        t->at = 1 - t->at;
        t->version = version;
        t->digest = digest;
    }
    t->commits += !refused;
    pthread_mutex_unlock(&t->lock);
    return refused ? corral_fail(err, CORRAL_INVALID, "the target has other bytes") : CORRAL_OK;
}

static inline void target_abort(void *ctx, uint64_t version, int32_t tainted_pid)
{
    struct test_target *t = ctx;
    (void)version;
    (void)tainted_pid;
    pthread_mutex_lock(&t->lock);
    t->aborts++;
    pthread_mutex_unlock(&t->lock);
}

/* Good until the next version but one is begun, which no test here does while it pulls. */
static inline enum corral_status target_open(void *ctx, struct corral_push_source *out,
                                             struct corral_error *err)
{
    struct test_target *t = ctx;
    pthread_mutex_lock(&t->lock);
    *out = (struct corral_push_source){
        .shard = corral_shard_host(t->buffer[t->at], t->bytes), .version = t->version, .digest = t->digest};
    pthread_mutex_unlock(&t->lock);
    return out->version > 0 ? CORRAL_OK : corral_fail(err, CORRAL_AGAIN, "nothing yet");
}

static inline bool target_intact(void *ctx, const struct corral_push_source *source)
{
    (void)ctx, (void)source;
    return true;
}

static inline void target_close(void *ctx, struct corral_push_source *source)
{
    (void)ctx, (void)source;
}

static const struct corral_push_target_ops test_target_ops = {.current = target_current,
                                                              .begin = target_begin,
                                                              .commit = target_commit,
                                                              .abort = target_abort,
                                                              .source_open = target_open,
                                                              .source_intact = target_intact,
                                                              .source_close = target_close};

static inline void test_target_make(struct test_target *t, uint64_t bytes)
{
    uint64_t room = (bytes + 4096) / 4096 * 4096;
    *t = (struct test_target){.bytes = bytes,
                              .fd = memfd_create("corral-push-test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    assert_true(t->fd >= 0 && ftruncate(t->fd, (off_t)(2 * room)) == 0);
    uint8_t *map = mmap(NULL, 2 * room, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
    assert_true(map != MAP_FAILED);
    t->buffer[0] = map;
    t->buffer[1] = map + room;
    pthread_mutex_init(&t->lock, NULL);
}

static inline void test_target_drop(struct test_target *t)
{
    munmap(t->buffer[0], 2 * ((t->bytes + 4096) / 4096 * 4096));
    close(t->fd);
    pthread_mutex_destroy(&t->lock);
}

/* ---- a cluster ---- */

#define TEST_MAX 8

struct test_sender {
    struct corral_push_sender *sender;
    struct corral_shard source;
    struct corral_push_result result;
    struct corral_error err;
    enum corral_status status;
    uint64_t version, timeout_ns; /* timeout: catch_up when not 0 */
    pthread_t thread;
};

struct test_group {
    struct test_mesh mesh;
    const char *lanes;
    const struct corral_lane_ops *const *more;
    uint64_t generation, silence_ns, deadline_ns, group;
    struct corral_push_budget budget, receiver_budget; /* of the senders, of the receivers */
    bool delta;
    uint32_t anchor_every;
    uint32_t senders, receivers;
    struct test_sender tx[TEST_MAX];
    struct corral_push_receiver *rx[TEST_MAX];
    struct test_target target[TEST_MAX];
    uint32_t rank[TEST_MAX]; /* of each receiver */
};

static inline struct corral_push_identity test_identity(uint64_t generation)
{
    struct corral_push_identity id = {.run = TEST_RUN, .generation = generation};
    memset(id.secret, 0x5a, sizeof id.secret);
    return id;
}

static inline void test_receiver_start(struct test_group *g, uint32_t i)
{
    char name[16];
    struct corral_error err = {0};
    snprintf(name, sizeof name, "r%u", i);
    struct corral_push_receiver_options o = {.name = name,
                                             .host = "127.0.0.1",
                                             .replica = "",
                                             .rank = g->rank[i],
                                             .identity = test_identity(0),
                                             .plan = g->mesh.plan,
                                             .bucket_bytes = TEST_BUCKET,
                                             .lanes = g->lanes,
                                             .more_lanes = g->more,
                                             .target = &test_target_ops,
                                             .target_ctx = &g->target[i],
                                             .silence_ns = g->silence_ns,
                                             .budget = g->receiver_budget};
    check_ok(corral_push_receiver_start(&g->rx[i], &o, &err));
}

static inline void test_sender_create(struct test_group *g, uint32_t rank)
{
    struct corral_error err = {0};
    struct corral_push_sender_options o = {.rank = rank,
                                           .leader = rank == 0,
                                           .ranks = g->senders,
                                           .identity = test_identity(g->generation),
                                           .plan = g->mesh.plan,
                                           .bucket_bytes = TEST_BUCKET,
                                           .lanes = g->lanes,
                                           .more_lanes = g->more,
                                           .deadline_ns = g->deadline_ns,
                                           .delta = g->delta,
                                           .anchor_every = g->anchor_every,
                                           .budget = g->budget};
    o.identity.group = g->group;
    check_ok(corral_push_sender_create(&g->tx[rank].sender, &o, &err));
    g->tx[rank].source = corral_shard_host(g->mesh.source[rank], g->mesh.from->rank_bytes[rank]);
}

static inline void test_add(struct test_group *g, uint32_t rank, uint32_t i, const char *replica)
{
    char name[16];
    struct corral_error err = {0};
    snprintf(name, sizeof name, "r%u", i);
    check_ok(corral_push_sender_add(g->tx[rank].sender, name, corral_push_receiver_endpoint(g->rx[i]),
                                    g->rank[i], replica, &err));
}

/* Receiver i is destination rank i mod `ranks`. */
static inline void test_group_make(struct test_group *g, uint64_t seed, uint32_t senders, uint32_t receivers,
                                   uint32_t ranks, uint64_t elements, const char *replica)
{
    g->mesh = test_mesh_make(seed, senders, ranks, 3, elements);
    g->senders = senders;
    g->receivers = receivers;
    g->generation = g->generation == 0 ? 1 : g->generation;
    g->deadline_ns = g->deadline_ns == 0 ? TEST_DEADLINE_NS : g->deadline_ns;
    for (uint32_t i = 0; i < receivers; i++) {
        g->rank[i] = i % ranks;
        test_target_make(&g->target[i], g->mesh.to->rank_bytes[g->rank[i]]);
        test_receiver_start(g, i);
    }
    for (uint32_t r = 0; r < senders; r++) {
        test_sender_create(g, r);
        for (uint32_t i = 0; i < receivers; i++) {
            test_add(g, r, i, replica);
        }
    }
}

static inline void test_group_drop(struct test_group *g)
{
    for (uint32_t r = 0; r < g->senders; r++) {
        corral_push_sender_destroy(g->tx[r].sender);
    }
    for (uint32_t i = 0; i < g->receivers; i++) {
        corral_push_receiver_stop(g->rx[i]);
        test_target_drop(&g->target[i]);
    }
    test_mesh_drop(&g->mesh);
}

static inline void *test_push_thread(void *arg)
{
    struct test_sender *t = arg;
    t->status = t->timeout_ns == 0
                    ? corral_push_sender_push(t->sender, t->version, 0, &t->source, &t->result, &t->err)
                    : corral_push_sender_catch_up(t->sender, t->version, &t->source, t->timeout_ns,
                                                  &t->result, &t->err);
    return NULL;
}

static inline void test_push_ranks(struct test_group *g, uint64_t version, uint64_t timeout_ns,
                                   uint32_t first, uint32_t end)
{
    for (uint32_t r = first; r < end; r++) {
        g->tx[r].version = version;
        g->tx[r].timeout_ns = timeout_ns;
        g->tx[r].result = (struct corral_push_result){0};
        assert_int_equal(pthread_create(&g->tx[r].thread, NULL, test_push_thread, &g->tx[r]), 0);
    }
    for (uint32_t r = first; r < end; r++) {
        pthread_join(g->tx[r].thread, NULL);
    }
}

/* All ranks push; the statuses and results are in tx[]. */
static inline void test_push(struct test_group *g, uint64_t version)
{
    test_push_ranks(g, version, 0, 0, g->senders);
}

static inline void check_has(struct test_group *g, uint32_t i, uint64_t version)
{
    struct test_target *t = &g->target[i];
    pthread_mutex_lock(&t->lock);
    assert_int_equal(t->version, version);
    if (version > 0) {
        assert_memory_equal(t->buffer[t->at], g->mesh.expected[g->rank[i]], t->bytes);
    }
    pthread_mutex_unlock(&t->lock);
}

static inline void check_applied(struct test_group *g, uint32_t applied)
{
    if (g->tx[0].status != CORRAL_OK) {
        fail_msg("push: %s", g->tx[0].err.text);
    }
    assert_int_equal(g->tx[0].result.applied, applied);
    assert_int_equal(g->tx[0].result.dropped, g->receivers - applied);
}

#endif
