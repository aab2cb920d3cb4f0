#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/lanes/conformance.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PATIENCE_NS (60 * CORRAL_NS_PER_S)
#define SHARED_OFFSET 4104 /* in its memfd: not of a page */

struct conformance conformance;

struct patience patience_start(void)
{
    return (struct patience){corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS};
}

void patience_check(const struct patience *p, const char *what)
{
    if (corral_now_ns(&corral_clock_monotonic) > p->deadline_ns) {
        fail_msg("waited too long for %s", what);
    }
}

/* ---- memory that only its ops can reach ---- */

static enum corral_status opaque_gather(struct corral_shard *shard, const struct corral_link *link,
                                        uint32_t bucket, void *packed, struct corral_error *err)
{
    (void)err;
    corral_link_pack(link, bucket, shard->ctx, packed);
    return CORRAL_OK;
}

static enum corral_status opaque_scatter(struct corral_shard *shard, const struct corral_link *link,
                                         uint32_t bucket, const void *packed, struct corral_error *err)
{
    (void)err;
    corral_link_unpack(link, bucket, packed, shard->ctx);
    return CORRAL_OK;
}

static enum corral_status opaque_digest(struct corral_shard *shard, const struct corral_link *link,
                                        enum corral_link_side side, uint32_t bucket,
                                        struct corral_digest *out, struct corral_error *err)
{
    (void)err;
    *out = corral_link_digest(link, bucket, side, shard->ctx);
    return CORRAL_OK;
}

static const struct corral_shard_ops opaque_ops = {
    .name = "opaque", .gather = opaque_gather, .scatter = opaque_scatter, .digest = opaque_digest};

static struct corral_shard make_shard(enum rig_memory memory, uint8_t *buffer, uint64_t bytes, int fd)
{
    struct corral_shard shard = corral_shard_host(buffer, bytes);
    if (memory == RIG_OPAQUE) {
        shard.ops = &opaque_ops;
        shard.ctx = buffer;
        shard.host = NULL;
    } else if (memory == RIG_SHARED) {
        shard.fd = fd;
        shard.fd_offset = SHARED_OFFSET;
    }
    return shard;
}

static uint8_t *make_shared(struct rig *r)
{
    r->mapping_bytes = r->destination_bytes + SHARED_OFFSET;
    r->fd = memfd_create("lane-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(r->fd >= 0);
    assert_int_equal(ftruncate(r->fd, (off_t)r->mapping_bytes), 0);
    assert_int_equal(fcntl(r->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    r->mapping = mmap(NULL, r->mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    assert_ptr_not_equal(r->mapping, MAP_FAILED);
    return (uint8_t *)r->mapping + SHARED_OFFSET;
}

/* ---- the rig ---- */

static void make_plan(struct rig *r, struct rig_shape shape)
{
    struct corral_error err;
    uint32_t t;
    uint64_t dims[2] = {shape.rows, shape.columns};
    check_ok(corral_layout_create(&r->from, 1, &err));
    check_ok(corral_layout_add_tensor(r->from, "w", CORRAL_DTYPE_U8, 2, dims, &t, &err));
    check_ok(corral_layout_add_whole(r->from, t, 0, 0, &err));
    check_ok(corral_layout_create(&r->to, 1, &err));
    check_ok(corral_layout_add_tensor(r->to, "w", CORRAL_DTYPE_U8, 2, dims, &t, &err));
    /* 16 bytes of padding in the destination's rows, unless the whole tensor is one run */
    uint64_t stride[2] = {shape.count == shape.columns ? shape.columns : shape.count + 16, 1};
    struct corral_box box = {.first = {0, shape.first}, .count = {shape.rows, shape.count}};
    check_ok(corral_layout_add_box(r->to, t, 0, &box, 8, stride, &err));
    check_ok(corral_reshard_plan_build(r->from, r->to, &r->plan, &err));
    check_ok(corral_link_create(&r->link, r->plan, 0, 0, shape.bucket_bytes, &err));
    r->source_bytes = r->from->rank_bytes[0];
    r->destination_bytes = r->to->rank_bytes[0];
}

void rig_make(struct rig *r, struct rig_shape shape, enum rig_memory source, enum rig_memory destination)
{
    *r = (struct rig){.fd = -1, .source_memory = source, .destination_memory = destination};
    make_plan(r, shape);
    r->source = malloc(r->source_bytes);
    r->expected = malloc(r->destination_bytes);
    r->destination = destination == RIG_SHARED ? make_shared(r) : malloc(r->destination_bytes);
    assert_true(r->source != NULL && r->expected != NULL && r->destination != NULL);
    r->source_shard = make_shard(source == RIG_SHARED ? RIG_HOST : source, r->source, r->source_bytes, -1);
    r->destination_shard = make_shard(destination, r->destination, r->destination_bytes, r->fd);
    rig_fill(r, 1);
}

void rig_drop(struct rig *r)
{
    rig_close(r);
    if (r->fd >= 0) {
        munmap(r->mapping, r->mapping_bytes);
        close(r->fd);
    } else {
        free(r->destination);
    }
    free(r->source);
    free(r->expected);
    corral_link_destroy(r->link);
    corral_reshard_plan_destroy(r->plan);
    corral_layout_destroy(r->from);
    corral_layout_destroy(r->to);
}

void rig_fill(struct rig *r, uint64_t seed)
{
    uint64_t state = seed;
    for (uint64_t i = 0; i < r->source_bytes; i += 8) {
        uint64_t word = corral_splitmix64(&state);
        memcpy(r->source + i, &word, CORRAL_MIN(r->source_bytes - i, 8u));
    }
    memset(r->destination, RIG_UNTOUCHED, r->destination_bytes);
    memset(r->expected, RIG_UNTOUCHED, r->destination_bytes);
    for (uint32_t i = 0; i < r->plan->copy_count; i++) {
        corral_reshard_copy_run(&r->plan->copy[i], r->source, r->expected);
    }
}

void rig_check(const struct rig *r)
{
    if (memcmp(r->destination, r->expected, r->destination_bytes) == 0) {
        return;
    }
    for (uint64_t i = 0; i < r->destination_bytes; i++) {
        if (r->destination[i] != r->expected[i]) {
            fail_msg("byte %llu of %llu is %02x, not %02x", (unsigned long long)i,
                     (unsigned long long)r->destination_bytes, r->destination[i], r->expected[i]);
        }
    }
}

void rig_open(struct rig *r, const struct corral_lane_options *options)
{
    struct corral_error err;
    struct corral_lane_blob offer, answer;
    const struct corral_lane_ops *ops = conformance.ops;
    check_ok(ops->rx_open(&r->rx, r->link, options, &offer, &err));
    assert_true(offer.bytes <= CORRAL_LANE_BLOB_MAX);
    check_ok(ops->tx_open(&r->tx, r->link, options, &offer, &answer, &err));
    assert_true(answer.bytes <= CORRAL_LANE_BLOB_MAX);
    check_ok(ops->rx_connect(r->rx, &answer, &err));
    assert_ptr_equal(r->rx->ops, ops);
    assert_ptr_equal(r->tx->ops, ops);
    r->push = 0;
}

void rig_close(struct rig *r)
{
    int32_t tainted = -1;
    if (r->tx != NULL) {
        conformance.ops->tx_close(r->tx);
    }
    if (r->rx != NULL) {
        conformance.ops->rx_close(r->rx, &tainted);
        assert_int_equal(tainted, 0); /* the sender had closed */
    }
    r->rx = r->tx = NULL;
}

void rig_begin(struct rig *r, uint64_t push)
{
    struct corral_error err;
    struct corral_lane_blob place;
    check_ok(conformance.ops->rx_begin(r->rx, push, &r->destination_shard, &place, &err));
    assert_true(place.bytes <= CORRAL_LANE_BLOB_MAX);
    check_ok(conformance.ops->tx_begin(r->tx, push, &r->source_shard, &place, &err));
    r->push = push;
}

/* Counts arrivals; more of a bucket than were sent is a failure. */
static uint32_t receive(struct rig *r, uint32_t *pending, uint64_t timeout_ns)
{
    struct corral_error err;
    uint32_t bucket[7], count = UINT32_MAX;
    check_ok(conformance.ops->rx_progress(r->rx, timeout_ns, bucket, CORRAL_COUNT_OF(bucket), &count, &err));
    assert_true(count <= CORRAL_COUNT_OF(bucket));
    for (uint32_t i = 0; i < count; i++) {
        assert_true(bucket[i] < r->link->buckets);
        assert_true(pending[bucket[i]] > 0);
        pending[bucket[i]]--;
        check_ok(conformance.ops->rx_taken(r->rx, bucket[i], &err));
    }
    return count;
}

void rig_move(struct rig *r, const uint32_t *bucket, uint32_t count)
{
    const struct corral_lane_ops *ops = conformance.ops;
    struct corral_error err;
    struct patience patience = patience_start();
    uint32_t *pending = calloc(r->link->buckets + 1, sizeof *pending);
    uint64_t left = 0, before = 0;
    assert_non_null(pending);
    for (uint32_t sent = 0, arrived = 0; arrived < count;) {
        enum corral_status status = CORRAL_AGAIN;
        if (sent < count) {
            status =
                r->send != NULL ? r->send(r, bucket[sent], &err) : ops->tx_send(r->tx, bucket[sent], &err);
            if (status != CORRAL_AGAIN) {
                check_ok(status);
                pending[bucket[sent++]]++;
                continue;
            }
        }
        check_ok(ops->tx_progress(r->tx, 0, &left, &err));
        assert_true(left >= before);
        before = left;
        arrived += receive(r, pending, CORRAL_NS_PER_MS);
        patience_check(&patience, "buckets to arrive");
    }
    free(pending);
}

void rig_end(struct rig *r, bool ok)
{
    struct corral_error err;
    check_ok(conformance.ops->rx_end(r->rx, ok, &err));
    check_ok(conformance.ops->tx_end(r->tx, ok, &err));
}

void rig_push(struct rig *r, uint64_t push)
{
    uint32_t *all = calloc(r->link->buckets + 1, sizeof *all);
    assert_non_null(all);
    for (uint32_t i = 0; i < r->link->buckets; i++) {
        all[i] = i;
    }
    rig_begin(r, push);
    rig_move(r, all, r->link->buckets);
    struct corral_error err;
    struct patience patience = patience_start();
    uint64_t left = 0;
    while (r->link->buckets > 0 && left < r->link->buckets) { /* what has arrived has left, soon */
        check_ok(conformance.ops->tx_progress(r->tx, CORRAL_NS_PER_MS, &left, &err));
        patience_check(&patience, "buckets to leave");
    }
    rig_end(r, true);
    rig_check(r);
    free(all);
}
