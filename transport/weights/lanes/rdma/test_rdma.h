/* What the tests of this lane share: a link of strided copies, its two shards, the fake adapter's knobs. Static functions, one test program each. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_TEST_RDMA_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_TEST_RDMA_H

#include "base/clock.h"
#include "base/rng.h"
#include "tests/check.h"
#include "tests/fakeverbs/fakeverbs.h"
#include "transport/weights/lanes/rdma/internal.h"
#include <dlfcn.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 1500u
#define COLUMNS 1000u /* of the source, 4 bytes each; the destination has columns [100, 800) */

struct fake_knobs {
    fakeverbs_faults_fn *faults;
    fakeverbs_live_fn *live;
    fakeverbs_resent_fn *resent;
};

/* False: what is loaded is the real library, or none. It stays loaded: the lane opens the same one. */
static inline bool fake_knobs_find(struct fake_knobs *k)
{
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    memset(k, 0, sizeof(*k));
    if (library == NULL) {
        return false;
    }
    void *f = dlsym(library, "fakeverbs_faults"), *l = dlsym(library, "fakeverbs_live"),
         *r = dlsym(library, "fakeverbs_resent");
    memcpy(&k->faults, &f, sizeof(f));
    memcpy(&k->live, &l, sizeof(l));
    memcpy(&k->resent, &r, sizeof(r));
    return f != NULL && l != NULL && r != NULL;
}

struct bed {
    struct corral_layout *from, *to;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
    uint8_t *source, *destination;
    uint64_t source_bytes, destination_bytes;
    struct corral_shard source_shard, destination_shard;
};

static inline void bed_fill(struct bed *b, uint8_t seed)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    for (uint64_t i = 0; i + 8 <= b->source_bytes; i += 8) {
        uint64_t v = corral_rng_next(&rng);
        memcpy(b->source + i, &v, 8);
    }
}

static inline void bed_make(struct bed *b, uint64_t bucket_bytes)
{
    struct corral_error err = {.status = CORRAL_OK};
    const uint64_t shape[2] = {ROWS, COLUMNS};
    uint32_t tensor;
    memset(b, 0, sizeof(*b));
    check_ok(corral_layout_create(&b->from, 1, &err));
    check_ok(corral_layout_add_tensor(b->from, "w", CORRAL_DTYPE_F32, 2, shape, &tensor, &err));
    check_ok(corral_layout_add_whole(b->from, tensor, 0, 0, &err));
    check_ok(corral_layout_create(&b->to, 1, &err));
    check_ok(corral_layout_add_tensor(b->to, "w", CORRAL_DTYPE_F32, 2, shape, &tensor, &err));
    check_ok(corral_layout_add_slice(b->to, tensor, 0, 1, 100, 700, 64, &err));
    check_ok(corral_reshard_plan_build(b->from, b->to, &b->plan, &err));
    check_ok(corral_link_create(&b->link, b->plan, 0, 0, bucket_bytes, &err));
    b->source_bytes = b->from->rank_bytes[0];
    b->destination_bytes = b->to->rank_bytes[0];
    b->source = malloc(b->source_bytes);
    b->destination = calloc(1, b->destination_bytes);
    assert_non_null(b->source);
    assert_non_null(b->destination);
    b->source_shard = corral_shard_host(b->source, b->source_bytes);
    b->destination_shard = corral_shard_host(b->destination, b->destination_bytes);
    bed_fill(b, 1);
}

static inline void bed_drop(struct bed *b)
{
    corral_link_destroy(b->link);
    corral_reshard_plan_destroy(b->plan);
    corral_layout_destroy(b->from);
    corral_layout_destroy(b->to);
    free(b->source);
    free(b->destination);
}

/* Is every row where it should be, and nothing else touched? Not by the link's own functions. */
static inline bool bed_arrived(const struct bed *b)
{
    for (uint32_t i = 0; i < 64; i++) {
        if (b->destination[i] != 0) {
            return false;
        }
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        if (memcmp(b->destination + 64 + (uint64_t)r * 700 * 4, b->source + ((uint64_t)r * COLUMNS + 100) * 4,
                   2800) != 0) {
            return false;
        }
    }
    return true;
}

struct pair {
    struct corral_lane *rx, *tx;
};

static inline enum corral_status pair_open(struct pair *p, const struct bed *b,
                                           const struct corral_lane_options *rx_options,
                                           const struct corral_lane_options *tx_options,
                                           struct corral_error *err)
{
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct corral_lane_blob offer, answer;
    memset(p, 0, sizeof(*p));
    CORRAL_TRY(ops->rx_open(&p->rx, b->link, rx_options, &offer, err));
    CORRAL_TRY(ops->tx_open(&p->tx, b->link, tx_options, &offer, &answer, err));
    return ops->rx_connect(p->rx, &answer, err);
}

static inline void pair_close(struct pair *p)
{
    int32_t tainted = -1;
    corral_lane_rdma_ops.tx_close(p->tx);
    corral_lane_rdma_ops.rx_close(p->rx, &tainted); /* NULL is fine */
    assert_int_equal(tainted, 0);
    memset(p, 0, sizeof(*p));
}

struct run {
    uint32_t next, taken;
    uint64_t left;
    bool moved;
};

static inline enum corral_status pair_step(struct pair *p, const struct bed *b, struct run *run,
                                           struct corral_error *err)
{
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    uint32_t bucket[4], count;
    uint64_t left = run->left;
    run->moved = false;
    while (run->next < b->link->buckets) {
        enum corral_status status = ops->tx_send(p->tx, run->next, err);
        if (status == CORRAL_AGAIN) {
            break;
        }
        CORRAL_TRY(status);
        run->next++;
        run->moved = true;
    }
    CORRAL_TRY(ops->rx_progress(p->rx, 0, bucket, 4, &count, err));
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(ops->rx_taken(p->rx, bucket[i], err));
        run->taken++;
        run->moved = true;
    }
    CORRAL_TRY(ops->tx_progress(p->tx, 0, &left, err));
    run->moved |= left != run->left;
    run->left = left;
    return CORRAL_OK;
}

/* A whole push from one thread. CORRAL_TIMEOUT: it stands still. */
static inline enum corral_status pair_push(struct pair *p, const struct bed *b, uint64_t push,
                                           uint64_t timeout_ns, struct corral_error *err)
{
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct corral_lane_blob place;
    struct run run = {.next = 0};
    struct corral_shard source = b->source_shard, destination = b->destination_shard;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + timeout_ns;
    CORRAL_TRY(ops->rx_begin(p->rx, push, &destination, &place, err));
    CORRAL_TRY(ops->tx_begin(p->tx, push, &source, &place, err));
    while (run.taken < b->link->buckets || run.left < b->link->buckets) {
        CORRAL_TRY(pair_step(p, b, &run, err));
        if (corral_now_ns(&corral_clock_monotonic) > deadline) {
            return corral_fail(err, CORRAL_TIMEOUT, "%u of %u buckets sent, %u taken, %u left", run.next,
                               b->link->buckets, run.taken, (unsigned)run.left);
        }
        struct pollfd fds[2] = {{.fd = p->rx->fd, .events = POLLIN}, {.fd = p->tx->fd, .events = POLLIN}};
        if (!run.moved && poll(fds, 2, 5000) == 0) {
            return corral_fail(err, CORRAL_TIMEOUT,
                               "no descriptor became readable: %u sent, %u taken, %u left", run.next,
                               run.taken, (unsigned)run.left);
        }
    }
    CORRAL_TRY(ops->rx_end(p->rx, true, err));
    return ops->tx_end(p->tx, true, err);
}

#endif
