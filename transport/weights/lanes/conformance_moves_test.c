/* What a lane does with bytes when nothing dies. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/lanes/conformance.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)

static const struct rig_shape shapes[] = {
    {1, 1, 0, 1, 64 * KIB},                        /* a byte */
    {1, 64 * KIB - 1, 0, 64 * KIB - 1, 64 * KIB},  /* nearly a bucket */
    {1, 256 * KIB, 0, 256 * KIB, 64 * KIB},        /* buckets that divide */
    {1, 5 * MIB + 12345, 0, 5 * MIB + 12345, MIB}, /* and that do not */
    {70000, 9, 3, 2, 64 * KIB},                    /* runs of 2 bytes */
    {5000, 130, 7, 100, 68 * KIB},                 /* 100 */
    {900, 4000, 1000, 1500, 64 * KIB},             /* 1500, over the ends of buckets */
    {40, 300001, 100000, 200001, 4 * MIB},         /* long ones */
    {1, 40 * MIB + 1, 0, 40 * MIB + 1, 16 * MIB},  /* large buckets */
};

static void moves_every_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < CORRAL_COUNT_OF(shapes); i++) {
        for (int from = RIG_HOST; from <= RIG_OPAQUE; from += RIG_OPAQUE - RIG_HOST) {
            for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
                struct rig r;
                rig_make(&r, shapes[i], (enum rig_memory)from, (enum rig_memory)to);
                rig_open(&r, &conformance.options);
                rig_push(&r, 1);
                rig_drop(&r);
            }
        }
    }
}

static void pushes_many_times_over_one_lane(void **state)
{
    (void)state;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct rig r;
        rig_make(&r, shapes[6], RIG_HOST, (enum rig_memory)to);
        rig_open(&r, &conformance.options);
        for (uint64_t push = 1; push <= 12; push++) {
            rig_fill(&r, push);
            rig_push(&r, push * 3); /* numbers grow, with gaps */
        }
        rig_drop(&r);
    }
}

static void window_and_streams_may_be_small(void **state)
{
    (void)state;
    for (uint32_t window = 1; window <= 4; window++) {
        for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
            struct corral_lane_options options = conformance.options;
            struct rig r;
            options.window = window;
            options.streams = 5 - window;
            rig_make(&r, shapes[3], window % 2 != 0 ? RIG_HOST : RIG_OPAQUE, (enum rig_memory)to);
            rig_open(&r, &options);
            rig_push(&r, 1);
            rig_drop(&r);
        }
    }
}

static void sends_a_bucket_again(void **state)
{
    (void)state;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct rig r;
        uint32_t all[64], again[9] = {3, 0, 1, 2, 3, 0, 1, 3, 0};
        rig_make(&r, shapes[2], RIG_HOST, (enum rig_memory)to);
        rig_open(&r, &conformance.options);
        rig_begin(&r, 1);
        assert_true(r.link->buckets == 4);
        for (uint32_t i = 0; i < r.link->buckets; i++) {
            all[i] = i;
        }
        rig_move(&r, all, r.link->buckets);
        memset(r.destination + 8, 0, r.destination_bytes - 8); /* as a damaged wire would have left it */
        for (uint32_t i = 0; i < CORRAL_COUNT_OF(again); i += 3) {
            rig_move(&r, again + i, 3);
        }
        rig_end(&r, true);
        rig_check(&r);
        rig_drop(&r);
    }
}

/* An encoding for this test: as many bytes as it likes, each one more than the one before. It stands for a bucket of bytes that are all its first. */
static uint32_t decoded;

static enum corral_status decode(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 const void *encoded, uint64_t bytes, struct corral_error *err)
{
    const uint8_t *from = encoded;
    uint8_t *packed = malloc(corral_link_bucket_size(link, bucket));
    assert_non_null(packed);
    for (uint64_t i = 0; i < bytes; i++) {
        assert_int_equal(from[i], (uint8_t)(from[0] + i));
    }
    memset(packed, from[0], corral_link_bucket_size(link, bucket));
    enum corral_status status = shard->ops->scatter(shard, link, bucket, packed, err);
    free(packed);
    decoded++;
    return status;
}

/* Every second one is encoded, in 1 byte up to all but 1. */
static enum corral_status send_either(struct rig *r, uint32_t bucket, struct corral_error *err)
{
    static uint8_t encoded[64][64 * KIB];
    uint64_t size = corral_link_bucket_size(r->link, bucket), bytes = (size - 1) / (1 + bucket % 5 * 300);
    if (bucket % 2 == 0 || bytes == 0) {
        return conformance.ops->tx_send(r->tx, bucket, err);
    }
    for (uint64_t i = 0; i < bytes; i++) {
        encoded[bucket][i] = (uint8_t)(bucket * 7 + i);
    }
    return conformance.ops->tx_send_encoded(r->tx, bucket, encoded[bucket], bytes, err);
}

static void encoded_buckets_arrive_beside_whole_ones(void **state)
{
    (void)state;
    static const struct rig_shape shape = {1, 20 * 64 * KIB + 999, 0, 20 * 64 * KIB + 999, 64 * KIB};
    for (int from = RIG_HOST; conformance.ops->tx_send_encoded != NULL && from <= RIG_OPAQUE;
         from += RIG_OPAQUE - RIG_HOST) {
        struct rig r;
        uint32_t all[64];
        uint8_t same[64 * KIB];
        struct corral_error err;
        rig_make(&r, shape, (enum rig_memory)from, RIG_OPAQUE);
        struct corral_shard_ops ops = *r.destination_shard.ops;
        ops.decode = decode;
        r.destination_shard.ops = &ops;
        r.send = send_either;
        decoded = 0;
        rig_open(&r, &conformance.options);
        rig_begin(&r, 1);
        for (uint32_t i = 0; i < r.link->buckets; i++) {
            all[i] = i;
            memset(same, (uint8_t)(i * 7), sizeof same);
            if (i % 2 == 1) {
                corral_link_unpack(r.link, i, same, r.expected);
            }
        }
        check_status(conformance.ops->tx_send_encoded(r.tx, 0, same, sizeof same, &err), CORRAL_STATE);
        check_status(conformance.ops->tx_send_encoded(r.tx, r.link->buckets, same, 1, &err), CORRAL_STATE);
        rig_move(&r, all, r.link->buckets);
        assert_int_equal(decoded, r.link->buckets / 2);
        rig_end(&r, true);
        rig_check(&r);
        rig_drop(&r);
    }
}

/* A bucket that was sent twice may come after the receiver has what it needs. */
static void ends_with_a_bucket_still_on_its_way(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = conformance.ops;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct rig r;
        struct corral_lane_blob place;
        uint32_t one = 0;
        rig_make(&r, shapes[1], RIG_HOST, (enum rig_memory)to);
        rig_open(&r, &conformance.options);
        rig_begin(&r, 1);
        rig_move(&r, &one, 1);
        enum corral_status status = ops->tx_send(r.tx, 0, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
        check_ok(ops->rx_end(r.rx, true, &err));
        rig_check(&r);
        bool whole = ops->tx_end(r.tx, true, &err) == CORRAL_OK;
        rig_fill(&r, 2);
        /* Either the lane goes on and the old bucket does not show, or it says that it must be opened again. */
        if (ops->rx_begin(r.rx, 2, &r.destination_shard, &place, &err) == CORRAL_OK && whole) {
            check_ok(ops->tx_begin(r.tx, 2, &r.source_shard, &place, &err));
            rig_move(&r, &one, 1);
            check_ok(ops->rx_end(r.rx, true, &err));
            rig_check(&r);
        }
        rig_drop(&r);
    }
}

/* What a receiver that has ended well does with its memory is its own business: no bucket that was sent twice is written over it, or the lane says that it must be closed first. */
static void nothing_is_written_after_the_end(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = conformance.ops;
    for (int round = 0; round < 6; round++) {
        struct rig r;
        struct corral_lane_blob place;
        uint32_t all[3] = {0, 1, 2};
        int32_t tainted = 0;
        rig_make(&r, (struct rig_shape){1, 6 * MIB, 0, 6 * MIB, 2 * MIB}, RIG_HOST,
                 round % 2 == 0 ? RIG_SHARED : RIG_HOST);
        rig_open(&r, &conformance.options);
        rig_begin(&r, 1);
        rig_move(&r, all, 3);
        for (uint32_t i = 0; i < 3; i++) {
            enum corral_status status = ops->tx_send(r.tx, i, &err);
            assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
        }
        check_ok(ops->rx_end(r.rx, true, &err));
        if (ops->rx_begin(r.rx, 2, &r.destination_shard, &place, &err) != CORRAL_OK) {
            ops->rx_close(r.rx, &tainted);
            assert_int_equal(tainted, 0);
            r.rx = NULL;
        }
        for (uint32_t i = 0; i < 3; i++) { /* the last bytes of each bucket: what a copy comes to last */
            memset(r.destination + (i + 1) * 2 * MIB - 64, 7, 64);
            memset(r.expected + (i + 1) * 2 * MIB - 64, 7, 64);
        }
        uint64_t left = 0;
        for (int i = 0; i < 100 && left < 6; i++) { /* let it go on, where it does without the receiver */
            if (ops->tx_progress(r.tx, CORRAL_NS_PER_MS, &left, &err) != CORRAL_OK) {
                break;
            }
        }
        (void)ops->tx_end(r.tx, true, &err); /* whatever was on its way has ended */
        rig_check(&r);
        rig_drop(&r);
    }
}

/* A sender that sleeps because no slot was free wakes when one is, also when that happened before it lay down. The test hangs when it does not. */
static void waiting_for_a_slot_ends_when_there_is_one(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = conformance.ops;
    struct corral_lane_options options = conformance.options;
    struct patience patience = patience_start();
    struct rig r;
    uint32_t bucket, arrived = 0, count;
    uint64_t left = 0;
    options.window = 1;
    rig_make(&r, shapes[2], RIG_HOST, RIG_OPAQUE);
    rig_open(&r, &options);
    rig_begin(&r, 1);
    check_ok(ops->tx_send(r.tx, 0, &err));
    enum corral_status status = CORRAL_OK;
    for (bool asked = false; arrived == 0; patience_check(&patience, "a bucket to arrive")) {
        check_ok(ops->tx_progress(r.tx, CORRAL_NS_PER_MS, &left, &err));
        if (left == 1 && !asked) {
            status = ops->tx_send(r.tx, 1, &err); /* CORRAL_AGAIN where the receiver has to empty the slot */
            asked = true;
        }
        check_ok(ops->rx_progress(r.rx, 0, &bucket, 1, &count, &err));
        for (; count > 0; count--, arrived++) {
            check_ok(ops->rx_taken(r.rx, bucket, &err));
        }
    }
    while (status == CORRAL_AGAIN) {
        check_ok(ops->tx_progress(r.tx, 3600 * CORRAL_NS_PER_S, &left, &err));
        status = ops->tx_send(r.tx, 1, &err);
    }
    check_ok(status);
    rig_end(&r, false);
    rig_drop(&r);
}

static void does_nothing_at_once_when_there_is_nothing(void **state)
{
    (void)state;
    struct corral_error err;
    struct rig r;
    uint32_t bucket, count = 7;
    uint64_t left = 7;
    rig_make(&r, shapes[3], RIG_HOST, RIG_SHARED);
    rig_open(&r, &conformance.options);
    rig_begin(&r, 1);
    check_ok(conformance.ops->rx_progress(r.rx, 0, &bucket, 1, &count, &err));
    check_ok(conformance.ops->tx_progress(r.tx, 0, &left, &err));
    assert_int_equal(count, 0);
    assert_int_equal(left, 0);
    check_ok(conformance.ops->rx_progress(r.rx, CORRAL_NS_PER_MS, &bucket, 1, &count, &err));
    check_ok(conformance.ops->tx_progress(r.tx, CORRAL_NS_PER_MS, &left, &err));
    assert_int_equal(count, 0);
    assert_int_equal(left, 0);
    rig_end(&r, false);
    rig_drop(&r);
}

static void its_descriptor_says_when_to_look(void **state)
{
    (void)state;
    struct corral_error err;
    struct rig r;
    uint32_t bucket, count = 0;
    rig_make(&r, shapes[1], RIG_HOST, RIG_HOST);
    rig_open(&r, &conformance.options);
    rig_begin(&r, 1);
    check_ok(conformance.ops->tx_send(r.tx, 0, &err));
    struct patience patience = patience_start();
    while (count == 0 && r.rx->fd >= 0) {
        /* Lanes that only move when called: the sender's descriptor, or its progress, is looked at as well. */
        struct pollfd p[2] = {{.fd = r.rx->fd, .events = POLLIN}, {.fd = r.tx->fd, .events = POLLIN}};
        uint64_t left;
        assert_true(poll(p, 2, 20000) > 0);
        if (p[1].revents != 0 || r.tx->fd < 0) {
            check_ok(conformance.ops->tx_progress(r.tx, 0, &left, &err));
        }
        if (p[0].revents != 0) {
            check_ok(conformance.ops->rx_progress(r.rx, 0, &bucket, 1, &count, &err));
        }
        patience_check(&patience, "the descriptor");
    }
    rig_end(&r, false);
    rig_drop(&r);
}

static void an_empty_link_is_pushed_too(void **state)
{
    (void)state;
    struct rig r;
    struct corral_error err;
    rig_make(&r, shapes[1], RIG_HOST, RIG_SHARED);
    struct corral_link empty = *r.link;
    struct corral_link *whole = r.link;
    empty.copy_count = 0;
    empty.bytes = 0;
    empty.buckets = 0;
    empty.source_extent = empty.destination_extent = 0;
    r.link = &empty;
    rig_open(&r, &conformance.options);
    rig_begin(&r, 1);
    assert_int_not_equal(conformance.ops->tx_send(r.tx, 0, &err), CORRAL_OK);
    rig_end(&r, true);
    rig_close(&r);
    r.link = whole;
    rig_drop(&r);
}

static void refuses_shards_that_are_too_small(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_blob place;
    struct rig r;
    rig_make(&r, shapes[3], RIG_HOST, RIG_HOST);
    rig_open(&r, &conformance.options);
    r.destination_shard.bytes--;
    assert_int_not_equal(conformance.ops->rx_begin(r.rx, 1, &r.destination_shard, &place, &err), CORRAL_OK);
    r.destination_shard.bytes++;
    rig_close(&r);
    rig_open(&r, &conformance.options);
    check_ok(conformance.ops->rx_begin(r.rx, 1, &r.destination_shard, &place, &err));
    r.source_shard.bytes--;
    assert_int_not_equal(conformance.ops->tx_begin(r.tx, 1, &r.source_shard, &place, &err), CORRAL_OK);
    rig_drop(&r);
}

static void a_failed_push_ends_the_lane(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_blob place;
    struct rig r;
    uint32_t one = 1;
    rig_make(&r, shapes[3], RIG_HOST, RIG_SHARED);
    rig_open(&r, &conformance.options);
    rig_begin(&r, 1);
    rig_move(&r, &one, 1);
    rig_end(&r, false);
    assert_int_not_equal(conformance.ops->rx_begin(r.rx, 2, &r.destination_shard, &place, &err), CORRAL_OK);
    memset(&place, 0, sizeof place);
    assert_int_not_equal(conformance.ops->tx_begin(r.tx, 2, &r.source_shard, &place, &err), CORRAL_OK);
    rig_close(&r);
    rig_fill(&r, 2); /* and nothing of the old push shows in a new one */
    rig_open(&r, &conformance.options);
    rig_push(&r, 2);
    rig_drop(&r);
}

static void try_offers(struct rig *r, const struct corral_lane_blob *good)
{
    struct corral_error err;
    struct corral_lane *tx = NULL;
    struct corral_lane_blob bad, answer;
    for (uint32_t bytes = 0; bytes < good->bytes; bytes++) {
        bad = *good;
        bad.bytes = bytes;
        assert_int_not_equal(
            conformance.ops->tx_open(&tx, r->link, &conformance.options, &bad, &answer, &err), CORRAL_OK);
    }
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (int i = 0; i < 200; i++) {
        bad.bytes = (uint32_t)corral_rng_below(&rng, CORRAL_LANE_BLOB_MAX + 1);
        bad.bytes = i % 2 == 0 ? good->bytes : bad.bytes;
        for (uint32_t k = 0; k < bad.bytes; k++) {
            bad.data[k] = (uint8_t)corral_rng_next(&rng);
        }
        assert_int_not_equal(
            conformance.ops->tx_open(&tx, r->link, &conformance.options, &bad, &answer, &err), CORRAL_OK);
    }
    assert_null(tx);
}

/* Lengths that are wrong: 0, 1, half, one short. */
static uint32_t cut(uint32_t bytes, int how)
{
    return how == 0 ? 0 : how == 1 ? 1 : how == 2 ? bytes / 2 : bytes - 1;
}

static void refuses_malformed_messages(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_blob offer, answer, place;
    struct rig r;
    const struct corral_lane_ops *ops = conformance.ops;
    rig_make(&r, shapes[3], RIG_HOST, RIG_SHARED);
    check_ok(ops->rx_open(&r.rx, r.link, &conformance.options, &offer, &err));
    try_offers(&r, &offer);
    rig_close(&r);
    for (int how = 0; how < 4; how++) {
        check_ok(ops->rx_open(&r.rx, r.link, &conformance.options, &offer, &err));
        check_ok(ops->tx_open(&r.tx, r.link, &conformance.options, &offer, &answer, &err));
        answer.bytes = cut(answer.bytes, how);
        assert_int_not_equal(ops->rx_connect(r.rx, &answer, &err), CORRAL_OK);
        rig_close(&r);
        rig_open(&r, &conformance.options);
        check_ok(ops->rx_begin(r.rx, 1, &r.destination_shard, &place, &err));
        place.bytes = cut(place.bytes, how);
        assert_int_not_equal(ops->tx_begin(r.tx, 1, &r.source_shard, &place, &err), CORRAL_OK);
        rig_close(&r);
    }
    rig_drop(&r);
}

static void refuses_the_offer_of_another_link(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_blob offer, answer;
    struct rig one, two;
    struct corral_lane *tx = NULL;
    rig_make(&one, shapes[3], RIG_HOST, RIG_HOST);
    rig_make(&two, shapes[2], RIG_HOST, RIG_HOST);
    check_ok(conformance.ops->rx_open(&one.rx, one.link, &conformance.options, &offer, &err));
    assert_int_not_equal(conformance.ops->tx_open(&tx, two.link, &conformance.options, &offer, &answer, &err),
                         CORRAL_OK);
    rig_drop(&one);
    rig_drop(&two);
}

const struct CMUnitTest conformance_moves[] = {
    cmocka_unit_test(moves_every_byte),
    cmocka_unit_test(pushes_many_times_over_one_lane),
    cmocka_unit_test(window_and_streams_may_be_small),
    cmocka_unit_test(sends_a_bucket_again),
    cmocka_unit_test(encoded_buckets_arrive_beside_whole_ones),
    cmocka_unit_test(ends_with_a_bucket_still_on_its_way),
    cmocka_unit_test(nothing_is_written_after_the_end),
    cmocka_unit_test(waiting_for_a_slot_ends_when_there_is_one),
    cmocka_unit_test(does_nothing_at_once_when_there_is_nothing),
    cmocka_unit_test(its_descriptor_says_when_to_look),
    cmocka_unit_test(an_empty_link_is_pushed_too),
    cmocka_unit_test(refuses_shards_that_are_too_small),
    cmocka_unit_test(a_failed_push_ends_the_lane),
    cmocka_unit_test(refuses_malformed_messages),
    cmocka_unit_test(refuses_the_offer_of_another_link),
};
const size_t conformance_moves_count = CORRAL_COUNT_OF(conformance_moves);
