#include "transport/weights/lanes/rdma/test_rdma.h"
#include <stdio.h>

#define LIMIT_NS (20 * CORRAL_NS_PER_S)

static struct fake_knobs fake;
static const struct corral_lane_options plain = {.open_timeout_ns = CORRAL_NS_PER_S};

static int no_faults(void **state)
{
    (void)state;
    return fake.faults("");
}

/* Nothing is left behind: every context, region, queue and event has been given back. */
static int nothing_left(void **state)
{
    (void)state;
    return (int)fake.live();
}

static void push_with(const struct corral_lane_options *rx, const struct corral_lane_options *tx,
                      uint64_t bucket)
{
    struct corral_error err;
    struct bed b;
    struct pair p;
    bed_make(&b, bucket);
    check_ok(pair_open(&p, &b, rx, tx, &err));
    for (uint8_t push = 1; push <= 20; push++) {
        bed_fill(&b, push);
        check_ok(pair_push(&p, &b, push, LIMIT_NS, &err));
        assert_true(bed_arrived(&b));
    }
    pair_close(&p);
    bed_drop(&b);
}

static void moves_pushes_one_after_another(void **state)
{
    (void)state;
    push_with(&plain, &plain, 256u << 10);
}

static void moves_with_every_shape_of_window_and_streams(void **state)
{
    (void)state;
    const uint32_t shapes[][4] = {{1, 1, 1, 1}, {16, 8, 16, 8}, {2, 4, 5, 1}, {9, 1, 2, 8}, {99, 99, 0, 0}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(shapes); i++) {
        struct corral_lane_options rx = plain, tx = plain;
        rx.window = shapes[i][0];
        rx.streams = shapes[i][1];
        tx.window = shapes[i][2];
        tx.streams = shapes[i][3];
        push_with(&rx, &tx, i % 2 == 0 ? 64u << 10 : 2u << 20);
    }
}

static void moves_when_one_side_has_fewer_ports(void **state)
{
    (void)state;
    struct corral_lane_options one = plain;
    one.device = "fake1:1";
    push_with(&one, &plain, 256u << 10);
    push_with(&plain, &one, 256u << 10);
    one.device = "fake0";
    push_with(&one, &one, 256u << 10);
}

static void sends_a_bucket_again(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b;
    struct pair p;
    struct corral_lane_blob place;
    bed_make(&b, 64u << 10);
    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 7, &b.destination_shard, &place, &err));
    check_ok(ops->tx_begin(p.tx, 7, &b.source_shard, &place, &err));
    for (uint64_t i = 0; i < 100; i++) {
        uint32_t bucket, count = 0;
        uint64_t left = 0;
        check_ok(ops->tx_send(p.tx, 3, &err));
        check_ok(ops->rx_progress(p.rx, LIMIT_NS, &bucket, 1, &count, &err));
        assert_int_equal(count, 1);
        assert_int_equal(bucket, 3);
        check_ok(ops->rx_taken(p.rx, 3, &err));
        while (left <= i) {
            check_ok(ops->tx_progress(p.tx, LIMIT_NS, &left, &err));
        }
    }
    check_ok(ops->rx_end(p.rx, true, &err));
    check_ok(ops->tx_end(p.tx, true, &err));
    pair_close(&p);
    bed_drop(&b);
}

static void holds_the_sender_to_the_window(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b;
    struct pair p;
    struct corral_lane_blob place;
    struct corral_lane_options two = plain;
    uint32_t bucket, count = 0;
    two.window = 2;
    bed_make(&b, 64u << 10);
    check_ok(pair_open(&p, &b, &two, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 1, &b.destination_shard, &place, &err));
    check_ok(ops->tx_begin(p.tx, 1, &b.source_shard, &place, &err));
    check_ok(ops->tx_send(p.tx, 0, &err));
    check_ok(ops->tx_send(p.tx, 1, &err));
    check_status(ops->tx_send(p.tx, 2, &err), CORRAL_AGAIN);
    check_ok(ops->rx_progress(p.rx, LIMIT_NS, &bucket, 1, &count, &err));
    check_ok(ops->rx_taken(p.rx, bucket, &err));
    check_status(ops->rx_taken(p.rx, b.link->buckets, &err), CORRAL_INVALID);
    enum corral_status status;
    uint64_t left;
    while ((status = ops->tx_send(p.tx, 2, &err)) == CORRAL_AGAIN) {
        check_ok(ops->tx_progress(p.tx, LIMIT_NS, &left, &err));
    }
    check_ok(status);
    pair_close(&p);
    bed_drop(&b);
}

/* Faults that an adapter repairs, or that only change the order of things. */
static void arrives_whole_in_spite_of(void **state)
{
    (void)state;
    const char *faults[] = {"delay_us=2000",
                            "hold_odd_us=3000",
                            "drop=1,ack_us=2000",
                            "drop=5,ack_us=2000",
                            "drop=40,ack_us=2000",
                            "rnr=7",
                            "delay_us=500,hold_odd_us=1000,rnr=3,drop=9,ack_us=4000"};
    struct corral_lane_options four = plain;
    four.streams = 4;
    for (size_t i = 0; i < CORRAL_COUNT_OF(faults); i++) {
        struct corral_error err;
        struct bed b;
        struct pair p;
        bed_make(&b, 256u << 10);
        assert_int_equal(fake.faults(faults[i]), 0);
        check_ok(pair_open(&p, &b, &four, &four, &err));
        check_ok(pair_push(&p, &b, 1, LIMIT_NS, &err));
        assert_true(bed_arrived(&b));
        assert_true(strstr(faults[i], "drop") == NULL || fake.resent() > 0);
        pair_close(&p);
        bed_drop(&b);
    }
}

/* Whatever the instant: an error, or all bytes; and after an error the lane says the same again. */
static void ends_cleanly_after_an_error_in_any_completion(void **state)
{
    (void)state;
    uint32_t failed = 0;
    for (unsigned n = 1; n <= 60; n++) {
        struct corral_error err, again;
        struct bed b;
        struct pair p;
        uint32_t bucket, count;
        char fault[64];
        bed_make(&b, 512u << 10);
        snprintf(fault, sizeof(fault), "cqe_error=%u,ack_us=2000", n);
        assert_int_equal(fake.faults(fault), 0);
        check_ok(pair_open(&p, &b, &plain, &plain, &err));
        enum corral_status status = pair_push(&p, &b, 1, LIMIT_NS, &err);
        if (status == CORRAL_OK) {
            assert_true(bed_arrived(&b));
        } else {
            failed++;
            assert_int_not_equal(status, CORRAL_TIMEOUT);
            assert_non_null(strstr(err.text, "rdma fake"));
            assert_non_null(strstr(err.text, "queue pair 0x"));
            assert_non_null(strstr(err.text, "error"));
            enum corral_status a = corral_lane_rdma_ops.rx_progress(p.rx, 0, &bucket, 1, &count, &again);
            uint64_t left;
            enum corral_status c = corral_lane_rdma_ops.tx_progress(p.tx, 0, &left, &again);
            assert_true(a != CORRAL_OK || c != CORRAL_OK);
        }
        pair_close(&p);
        bed_drop(&b);
    }
    assert_true(failed > 20);
}

static void names_what_broke(void **state)
{
    (void)state;
    const struct {
        const char *fault, *text;
        enum corral_status status;
    } cases[] = {
        {"drop_after=30,ack_us=2000", "retry", CORRAL_PEER},
        {"port_err=20,ack_us=100000", "port error", CORRAL_IO},
        {"device_fatal=20,ack_us=100000", "catastrophic", CORRAL_IO},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct corral_error err;
        struct bed b;
        struct pair p;
        bed_make(&b, 512u << 10);
        check_ok(pair_open(&p, &b, &plain, &plain, &err));
        assert_int_equal(fake.faults(cases[i].fault), 0);
        /* The acknowledgement timeout is the queue pair's from when it was connected: open again under the fault. */
        pair_close(&p);
        assert_int_equal(fake.faults(cases[i].fault), 0);
        check_ok(pair_open(&p, &b, &plain, &plain, &err));
        check_status(pair_push(&p, &b, 1, LIMIT_NS, &err), cases[i].status);
        assert_non_null(strstr(err.text, cases[i].text));
        assert_non_null(strstr(err.text, "rdma fake"));
        pair_close(&p);
        /* And with a new lane all is well. */
        assert_int_equal(fake.faults(""), 0);
        check_ok(pair_open(&p, &b, &plain, &plain, &err));
        check_ok(pair_push(&p, &b, 1, LIMIT_NS, &err));
        assert_true(bed_arrived(&b));
        pair_close(&p);
        bed_drop(&b);
    }
}

static void a_damaged_bucket_shows_in_its_digest(void **state)
{
    (void)state;
    struct corral_error err;
    struct bed b;
    struct pair p;
    uint32_t wrong = 0;
    bed_make(&b, 512u << 10);
    assert_int_equal(fake.faults("corrupt=17"), 0);
    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(pair_push(&p, &b, 1, LIMIT_NS, &err));
    assert_false(bed_arrived(&b));
    for (uint32_t i = 0; i < b.link->buckets; i++) {
        struct corral_digest sent, got;
        check_ok(b.source_shard.ops->digest(&b.source_shard, b.link, CORRAL_LINK_SOURCE, i, &sent, &err));
        check_ok(b.destination_shard.ops->digest(&b.destination_shard, b.link, CORRAL_LINK_DESTINATION, i,
                                                 &got, &err));
        wrong += !corral_digest_equal(sent, got);
    }
    assert_int_equal(wrong, 1);
    pair_close(&p);
    bed_drop(&b);
}

/* The receiver goes away in the middle: the sender is told, and nothing is written into what was its memory. */
static void a_closed_receiver_is_out_of_reach(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b;
    struct pair p;
    struct corral_lane_blob place;
    int32_t tainted = -1;
    uint64_t left = 0;
    assert_int_equal(fake.faults("ack_us=2000"), 0);
    bed_make(&b, 512u << 10);
    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 1, &b.destination_shard, &place, &err));
    check_ok(ops->tx_begin(p.tx, 1, &b.source_shard, &place, &err));
    ops->rx_close(p.rx, &tainted);
    p.rx = NULL;
    assert_int_equal(tainted, 0);
    check_ok(ops->tx_send(p.tx, 0, &err));
    enum corral_status status = CORRAL_OK;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + LIMIT_NS;
    while (status == CORRAL_OK && corral_now_ns(&corral_clock_monotonic) < deadline) {
        status = ops->tx_progress(p.tx, CORRAL_NS_PER_S, &left, &err);
    }
    check_status(status, CORRAL_PEER);
    for (uint64_t i = 0; i < b.destination_bytes; i++) {
        assert_int_equal(b.destination[i], 0);
    }
    pair_close(&p);
    bed_drop(&b);
}

/* All has been acknowledged by the receiver's adapter, and then the receiver is gone: nothing is under way that could fail. */
static void notices_a_receiver_that_went_while_it_waits(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b;
    struct pair p;
    struct corral_lane_blob place;
    uint64_t left = 0;
    assert_int_equal(fake.faults("ack_us=2000"), 0);
    bed_make(&b, 512u << 10);
    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 1, &b.destination_shard, &place, &err));
    check_ok(ops->tx_begin(p.tx, 1, &b.source_shard, &place, &err));
    for (uint32_t i = 0; i < CORRAL_RDMA_WINDOW_DEFAULT; i++) {
        check_ok(ops->tx_send(p.tx, i, &err));
    }
    while (left < CORRAL_RDMA_WINDOW_DEFAULT) {
        check_ok(ops->tx_progress(p.tx, LIMIT_NS, &left, &err));
    }
    ops->rx_close(p.rx, NULL);
    p.rx = NULL;
    check_status(ops->tx_progress(p.tx, LIMIT_NS, &left, &err), CORRAL_PEER);
    pair_close(&p);
    bed_drop(&b);
}

/* No traffic of the receiver's own is under way: it asks. */
static void notices_a_sender_that_went_while_it_waits(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b;
    struct pair p;
    struct corral_lane_blob place;
    uint32_t bucket, count = 0;
    assert_int_equal(fake.faults("ack_us=2000"), 0);
    bed_make(&b, 512u << 10);
    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 1, &b.destination_shard, &place, &err));
    /* While it is there, asking changes nothing. */
    check_ok(ops->rx_progress(p.rx, 2 * CORRAL_RDMA_PROBE_NS, &bucket, 1, &count, &err));
    assert_int_equal(count, 0);
    ops->tx_close(p.tx);
    p.tx = NULL;
    check_status(ops->rx_progress(p.rx, LIMIT_NS, &bucket, 1, &count, &err), CORRAL_PEER);
    assert_non_null(strstr(err.text, "retry"));
    ops->rx_close(p.rx, NULL);
    bed_drop(&b);
}

static void refuses_another_generation_push_or_link(void **state)
{
    (void)state;
    struct corral_error err;
    const struct corral_lane_ops *ops = &corral_lane_rdma_ops;
    struct bed b, other;
    struct pair p;
    struct corral_lane *tx = NULL, *rx = NULL;
    struct corral_lane_blob offer, answer, place;
    int32_t tainted;
    bed_make(&b, 512u << 10);
    bed_make(&other, 256u << 10);
    check_ok(ops->rx_open(&rx, b.link, &plain, &offer, &err));
    check_status(ops->tx_open(&tx, other.link, &plain, &offer, &answer, &err), CORRAL_PROTOCOL);
    assert_null(tx);
    check_ok(ops->tx_open(&tx, b.link, &plain, &offer, &answer, &err));
    ops->rx_close(rx, &tainted);
    ops->tx_close(tx);
    check_ok(ops->rx_open(&rx, b.link, &plain, &offer, &err));
    check_status(ops->rx_begin(rx, 1, &b.destination_shard, &place, &err), CORRAL_STATE);
    check_status(ops->rx_connect(rx, &answer, &err), CORRAL_PROTOCOL); /* of the lane before */
    ops->rx_close(rx, &tainted);

    check_ok(pair_open(&p, &b, &plain, &plain, &err));
    check_ok(ops->rx_begin(p.rx, 4, &b.destination_shard, &place, &err));
    check_status(ops->tx_begin(p.tx, 5, &b.source_shard, &place, &err), CORRAL_PROTOCOL);
    check_ok(ops->tx_begin(p.tx, 4, &b.source_shard, &place, &err));
    check_ok(ops->rx_end(p.rx, false, &err));
    check_status(ops->rx_begin(p.rx, 5, &b.destination_shard, &place, &err), CORRAL_STATE);
    pair_close(&p);
    bed_drop(&b);
    bed_drop(&other);
}

static void refuses_every_cut_and_garbled_blob(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rdma_address a, back;
    struct corral_rdma_place place = {1, 2, 3}, place_back;
    struct corral_lane_blob blob, bad;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    memset(&a, 0, sizeof(a));
    a.slot_bytes = 4096;
    a.window = 3;
    a.rails = CORRAL_RDMA_RAILS_MAX;
    a.streams = CORRAL_RDMA_STREAMS_MAX;
    for (uint32_t i = 0; i < a.rails; i++) {
        a.rail[i].mtu = IBV_MTU_1024;
        a.rail[i].staging = 0x1000 * i;
        a.rail[i].qpn[7] = 77;
    }
    corral_rdma_address_write(&a, CORRAL_RDMA_OFFER, &blob);
    check_ok(corral_rdma_address_read(&blob, CORRAL_RDMA_OFFER, &back, &err));
    assert_memory_equal(&a, &back, sizeof(a));
    check_status(corral_rdma_address_read(&blob, CORRAL_RDMA_ANSWER, &back, &err), CORRAL_PROTOCOL);
    for (uint32_t n = 0; n < blob.bytes; n++) {
        bad = blob;
        bad.bytes = n;
        check_status(corral_rdma_address_read(&bad, CORRAL_RDMA_OFFER, &back, &err), CORRAL_PROTOCOL);
    }
    bad = blob;
    bad.bytes++;
    check_status(corral_rdma_address_read(&bad, CORRAL_RDMA_OFFER, &back, &err), CORRAL_PROTOCOL);
    bad.bytes = UINT32_MAX;
    check_status(corral_rdma_address_read(&bad, CORRAL_RDMA_OFFER, &back, &err), CORRAL_PROTOCOL);
    for (uint32_t i = 0; i < 20000; i++) {
        bad = blob;
        bad.data[corral_rng_below(&rng, blob.bytes)] ^= (uint8_t)(1 + corral_rng_below(&rng, 255));
        enum corral_status status = corral_rdma_address_read(&bad, CORRAL_RDMA_OFFER, &back, &err);
        assert_true(status == CORRAL_PROTOCOL || (back.rails == 8 && back.streams == 8 && back.window <= 16));
    }
    corral_rdma_place_write(&place, &blob);
    check_ok(corral_rdma_place_read(&blob, &place_back, &err));
    assert_memory_equal(&place, &place_back, sizeof(place));
    for (uint32_t n = 0; n < blob.bytes; n++) {
        bad = blob;
        bad.bytes = n;
        check_status(corral_rdma_place_read(&bad, &place_back, &err), CORRAL_PROTOCOL);
    }
}

static void takes_the_routable_gid_nearest_to_the_wanted_address(void **state)
{
    (void)state;
    uint8_t wanted[16];
    struct corral_rdma_gid near = {CORRAL_RDMA_GID_ROCE2, 1, {0}}, far = near, old = near, local = near,
                           six = near;
    assert_true(corral_rdma_gid_of_host("10.1.2.3", wanted));
    assert_true(corral_rdma_gid_of_host("10.1.2.9", near.raw));
    assert_true(corral_rdma_gid_of_host("10.7.2.3", far.raw));
    assert_true(corral_rdma_gid_of_host("10.1.2.3", old.raw));
    old.type = CORRAL_RDMA_GID_IB;
    assert_true(corral_rdma_gid_of_host("fe80::1", local.raw));
    assert_true(corral_rdma_gid_of_host("2001:db8::1", six.raw));
    assert_true(corral_rdma_gid_score(&near, wanted) > corral_rdma_gid_score(&far, wanted));
    assert_true(corral_rdma_gid_score(&far, wanted) > corral_rdma_gid_score(&six, wanted));
    assert_true(corral_rdma_gid_score(&six, wanted) > corral_rdma_gid_score(&local, wanted));
    assert_true(corral_rdma_gid_score(&local, wanted) > corral_rdma_gid_score(&old, wanted));
    memset(near.raw, 0, 16);
    assert_int_equal(corral_rdma_gid_score(&near, wanted), 0);
    assert_false(corral_rdma_gid_of_host("node7", wanted));
}

static void counts_steps_between_pci_devices(void **state)
{
    (void)state;
    const char *gpu = "/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0";
    assert_int_equal(corral_rdma_pci_distance(gpu, gpu), 0);
    assert_int_equal(corral_rdma_pci_distance(gpu, "/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.1"), 2);
    assert_int_equal(corral_rdma_pci_distance(gpu, "/sys/devices/pci0000:3a/0000:3a:02.0/0000:3d:00.0"), 4);
    assert_int_equal(corral_rdma_pci_distance(gpu, "/sys/devices/pci0000:80/0000:80:02.0/0000:81:00.0"), 6);
    assert_int_equal(corral_rdma_pci_distance("/a/bc", "/a/b"), 2);
}

static void says_which_port_is_not_there(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_options o = plain;
    check_ok(corral_lane_rdma_ops.available(&o, &err));
    o.device = "fake0:1,mlx5_7:1";
    check_status(corral_lane_rdma_ops.available(&o, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "\"mlx5_7:1\""));
    o.device = NULL;
    o.local_host = "localhost";
    check_status(corral_lane_rdma_ops.available(&o, &err), CORRAL_INVALID);
}

int main(void)
{
    if (!fake_knobs_find(&fake)) {
        puts("the fake libibverbs is not in LD_LIBRARY_PATH (tests/fakeverbs)");
        return CORRAL_TEST_SKIPPED;
    }
#define T(f) cmocka_unit_test_setup_teardown(f, no_faults, nothing_left)
    const struct CMUnitTest tests[] = {
        T(moves_pushes_one_after_another),
        T(moves_with_every_shape_of_window_and_streams),
        T(moves_when_one_side_has_fewer_ports),
        T(sends_a_bucket_again),
        T(holds_the_sender_to_the_window),
        T(arrives_whole_in_spite_of),
        T(ends_cleanly_after_an_error_in_any_completion),
        T(names_what_broke),
        T(a_damaged_bucket_shows_in_its_digest),
        T(a_closed_receiver_is_out_of_reach),
        T(notices_a_receiver_that_went_while_it_waits),
        T(notices_a_sender_that_went_while_it_waits),
        T(refuses_another_generation_push_or_link),
        T(refuses_every_cut_and_garbled_blob),
        T(takes_the_routable_gid_nearest_to_the_wanted_address),
        T(counts_steps_between_pci_devices),
        T(says_which_port_is_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
