/* What the suite for all lanes cannot do: strangers at the port, and a sender that knows the token and sends garbage. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/lanes/tcp/internal.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BYTES 300000u
#define GUARD 4096u
#define LOOK_NS (10 * CORRAL_NS_PER_MS)
#define LOOKS 1000u

struct end {
    struct corral_layout *layout;
    struct corral_reshard_plan *plan;
    struct corral_link *link;
    struct corral_lane *rx;
    struct corral_lane_blob offer;
    struct tcp_offer parsed;
    uint8_t *memory; /* GUARD bytes, the destination, GUARD bytes */
    struct corral_shard destination;
};

static struct corral_lane_options options = {.streams = 1, .open_timeout_ns = 20 * CORRAL_NS_PER_S};

static void open_end(struct end *e)
{
    struct corral_error err;
    uint32_t t;
    uint64_t bytes = BYTES;
    memset(e, 0, sizeof *e);
    check_ok(corral_layout_create(&e->layout, 1, &err));
    check_ok(corral_layout_add_tensor(e->layout, "w", CORRAL_DTYPE_U8, 1, &bytes, &t, &err));
    check_ok(corral_layout_add_whole(e->layout, t, 0, 0, &err));
    check_ok(corral_reshard_plan_build(e->layout, e->layout, &e->plan, &err));
    check_ok(corral_link_create(&e->link, e->plan, 0, 0, CORRAL_BUCKET_BYTES_MIN, &err));
    e->memory = malloc(BYTES + 2 * GUARD);
    assert_non_null(e->memory);
    memset(e->memory, 0x5a, BYTES + 2 * GUARD);
    e->destination = corral_shard_host(e->memory + GUARD, BYTES);
    check_ok(corral_lane_tcp_ops.rx_open(&e->rx, e->link, &options, &e->offer, &err));
    check_ok(tcp_get_offer(&e->offer, e->link, &e->parsed, &err));
}

static void close_end(struct end *e)
{
    corral_lane_tcp_ops.rx_close(e->rx, NULL);
    for (uint32_t i = 0; i < GUARD; i++) {
        assert_int_equal(e->memory[i], 0x5a);
        assert_int_equal(e->memory[GUARD + BYTES + i], 0x5a);
    }
    free(e->memory);
    corral_link_destroy(e->link);
    corral_reshard_plan_destroy(e->plan);
    corral_layout_destroy(e->layout);
}

#define WHOLE CORRAL_BUCKET_BYTES_MIN /* of a bucket that is not the last */

static int dial(const struct end *e)
{
    int fd = socket(e->parsed.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&e->parsed.address, e->parsed.address_bytes), 0);
    return fd;
}

static void answer_of(const struct end *e, struct corral_lane_blob *answer)
{
    corral_lane_blob_begin(answer, CORRAL_LANE_TCP, e->link);
    corral_lane_put32(answer->data + answer->bytes, 1);
    answer->bytes += 4;
}

static void strangers_do_not_get_in_and_do_not_keep_the_sender_out(void **state)
{
    (void)state;
    struct end e;
    struct corral_error err;
    struct corral_lane_blob answer;
    struct corral_lane *tx = NULL;
    int fd[TCP_STRANGERS_MAX + 4];
    open_end(&e);
    for (size_t i = 0; i < CORRAL_COUNT_OF(fd);
         i++) { /* silent, halting, wrong, and with the proof of another stream */
        uint8_t hello[TCP_HELLO_BYTES];
        fd[i] = dial(&e);
        tcp_put_hello(hello, e.link, e.parsed.token, 1);
        hello[8] = i % 4 == 3 ? 0 : 1;
        hello[47] ^= i % 4 == 2;
        size_t bytes = i % 4 == 0 ? 0 : i % 4 == 1 ? 17 : sizeof hello;
        assert_int_equal(send(fd[i], hello, bytes, MSG_NOSIGNAL), bytes);
    }
    check_ok(corral_lane_tcp_ops.tx_open(&tx, e.link, &options, &e.offer, &answer, &err));
    check_ok(corral_lane_tcp_ops.rx_connect(e.rx, &answer, &err));
    corral_lane_tcp_ops.tx_close(tx);
    for (size_t i = 0; i < CORRAL_COUNT_OF(fd); i++) {
        close(fd[i]);
    }
    close_end(&e);
}

static void gives_up_when_only_strangers_come(void **state)
{
    (void)state;
    struct end e;
    struct corral_error err;
    struct corral_lane_blob answer;
    options.open_timeout_ns = 50 * CORRAL_NS_PER_MS;
    open_end(&e);
    options.open_timeout_ns = 20 * CORRAL_NS_PER_S;
    int fd = dial(&e);
    answer_of(&e, &answer);
    check_status(corral_lane_tcp_ops.rx_connect(e.rx, &answer, &err), CORRAL_PEER);
    close(fd);
    close_end(&e);
}

/* One frame, and as many bytes as it should have, from a sender with the right token. */
static enum corral_status send_one(struct end *e, const uint8_t *head, size_t head_bytes, uint32_t payload,
                                   uint32_t *arrived, uint32_t looks)
{
    struct corral_error err;
    struct corral_lane_blob answer, place;
    uint8_t hello[TCP_HELLO_BYTES];
    CORRAL_AUTO_FREE uint8_t *bytes = calloc(1, payload + 1);
    assert_non_null(bytes);
    open_end(e);
    int fd = dial(e);
    tcp_put_hello(hello, e->link, e->parsed.token, 0);
    assert_int_equal(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    answer_of(e, &answer);
    check_ok(corral_lane_tcp_ops.rx_connect(e->rx, &answer, &err));
    check_ok(corral_lane_tcp_ops.rx_begin(e->rx, 5, &e->destination, &place, &err));
    assert_int_equal(send(fd, head, head_bytes, MSG_NOSIGNAL), head_bytes);
    (void)send(fd, bytes, payload, MSG_NOSIGNAL); /* it may have been cut off by now */
    close(fd);
    *arrived = 0;
    enum corral_status status = CORRAL_OK;
    for (uint32_t silent = 0; status == CORRAL_OK && silent < looks; silent++) {
        uint32_t bucket[4], count = 0;
        status = corral_lane_tcp_ops.rx_progress(e->rx, LOOK_NS, bucket, 4, &count, &err);
        *arrived += status == CORRAL_OK ? count : 0;
    }
    close_end(e);
    return status;
}

static void frames_that_do_not_fit_end_the_lane(void **state)
{
    (void)state;
    const uint32_t last = BYTES / CORRAL_BUCKET_BYTES_MIN, rest = BYTES % CORRAL_BUCKET_BYTES_MIN;
    const struct tcp_frame bad[] = {
        {.push = 6, .bucket = 0, .bytes = 8, .total = WHOLE},        /* a push that has not begun */
        {.push = 5, .bucket = last + 1, .bytes = 8, .total = WHOLE}, /* no such bucket */
        {.push = 5, .bucket = UINT32_MAX, .bytes = 8, .total = WHOLE},
        {.push = 5, .bucket = last, .from = rest, .bytes = 1, .total = rest}, /* beyond the end */
        {.push = 5, .bucket = last, .from = UINT64_MAX - 3, .bytes = 8, .total = rest},
        {.push = 5, .bucket = 0, .bytes = WHOLE + 1, .total = WHOLE},
        {.push = 5, .bucket = 0, .bytes = WHOLE, .total = WHOLE + 1},
        {.push = 5, .bucket = 0, .bytes = 8, .total = 8}, /* encoded, and the destination decodes nothing */
        {.push = 5, .bucket = 0, .bytes = 0, .total = WHOLE},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct end e;
        uint8_t head[TCP_FRAME_BYTES];
        uint32_t arrived;
        tcp_put_frame(head, &bad[i]);
        check_status(send_one(&e, head, sizeof head, bad[i].bytes, &arrived, LOOKS), CORRAL_PROTOCOL);
        assert_int_equal(arrived, 0);
    }
}

static void a_whole_bucket_of_a_stranger_to_the_library_arrives(void **state)
{
    (void)state;
    struct end e;
    uint8_t head[2 * TCP_FRAME_BYTES];
    uint32_t arrived;
    tcp_put_frame(head, &(struct tcp_frame){.push = 5, .bucket = 1, .bytes = WHOLE, .total = WHOLE});
    check_status(send_one(&e, head, TCP_FRAME_BYTES, CORRAL_BUCKET_BYTES_MIN, &arrived, LOOKS), CORRAL_PEER);
    assert_int_equal(arrived, 1);
    /* an ended push is thrown away: then nothing arrives, and the end of the connection is the end */
    tcp_put_frame(head, &(struct tcp_frame){.push = 0, .bucket = 1, .bytes = 8, .total = WHOLE});
    check_status(send_one(&e, head, TCP_FRAME_BYTES, 8, &arrived, LOOKS), CORRAL_PEER);
    assert_int_equal(arrived, 0);
    /* broken off in the middle */
    tcp_put_frame(head, &(struct tcp_frame){.push = 5, .bucket = 1, .bytes = WHOLE, .total = WHOLE});
    check_status(send_one(&e, head, TCP_FRAME_BYTES, 100, &arrived, LOOKS), CORRAL_PEER);
    check_status(send_one(&e, head, 11, 0, &arrived, LOOKS), CORRAL_PEER);
    assert_int_equal(arrived, 0);
}

static void noise_never_gets_out_of_the_destination(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 11);
    for (int i = 0; i < 200; i++) {
        struct end e;
        uint8_t head[TCP_FRAME_BYTES];
        uint32_t arrived;
        struct tcp_frame f = {.push = corral_rng_below(&rng, 7),
                              .number = corral_rng_below(&rng, 3),
                              .from = corral_rng_below(&rng, CORRAL_BUCKET_BYTES_MIN),
                              .bucket = (uint32_t)corral_rng_below(&rng, 6),
                              .bytes = (uint32_t)corral_rng_below(&rng, CORRAL_BUCKET_BYTES_MIN),
                              .total = i % 4 == 0 ? corral_rng_below(&rng, WHOLE + 1) : WHOLE};
        tcp_put_frame(head, &f);
        head[corral_rng_below(&rng, sizeof head)] ^= (uint8_t)corral_rng_next(&rng);
        /* a number from far ahead is waited for, which is the caller's to end */
        (void)send_one(&e, head, sizeof head, f.bytes, &arrived, 2);
        assert_true(arrived <= 1);
    }
}

static void offers_no_address_that_nobody_can_reach(void **state)
{
    (void)state;
    struct end e;
    struct corral_error err;
    struct corral_lane *rx = NULL;
    struct corral_lane_blob offer;
    const char *bad[] = {"0.0.0.0", "::", "localhost", "", "1.2.3.4.5"};
    open_end(&e);
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_lane_options there = {.local_host = bad[i]};
        check_status(corral_lane_tcp_ops.rx_open(&rx, e.link, &there, &offer, &err), CORRAL_INVALID);
    }
    close_end(&e);
}

/* One push over a lane that a sender in this process has; the sender's state once its threads have ended. */
static void push_once(struct corral_lane *tx, struct end *e, uint64_t push, const uint8_t *weights)
{
    struct corral_error err;
    struct corral_lane_blob place;
    uint64_t left = 0;
    struct corral_shard source = corral_shard_host((void *)(uintptr_t)weights, BYTES);
    check_ok(corral_lane_tcp_ops.rx_begin(e->rx, push, &e->destination, &place, &err));
    check_ok(corral_lane_tcp_ops.tx_begin(tx, push, &source, &place, &err));
    for (uint32_t sent = 0, arrived = 0; arrived < e->link->buckets || left < e->link->buckets;) {
        uint32_t bucket[4], count = 0;
        enum corral_status status = CORRAL_AGAIN;
        if (sent < e->link->buckets) {
            status = corral_lane_tcp_ops.tx_send(tx, sent, &err);
            assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
            sent += status == CORRAL_OK;
        }
        check_ok(corral_lane_tcp_ops.rx_progress(e->rx, status == CORRAL_OK ? 0 : LOOK_NS, bucket, 4, &count,
                                                 &err));
        arrived += count;
        check_ok(corral_lane_tcp_ops.tx_progress(tx, 0, &left, &err));
    }
    check_ok(corral_lane_tcp_ops.rx_end(e->rx, true, &err));
    check_ok(corral_lane_tcp_ops.tx_end(tx, true, &err));
    assert_memory_equal(e->memory + GUARD, weights, BYTES);
}

static void zero_copy(enum corral_lane_zero_copy how, uint64_t pushes, struct tcp_zero *out)
{
    struct end e;
    struct corral_error err;
    struct corral_lane_blob answer;
    struct corral_lane *lane = NULL;
    struct corral_lane_options sender = options;
    CORRAL_AUTO_FREE uint8_t *weights = malloc(BYTES);
    assert_non_null(weights);
    sender.zero_copy = how;
    open_end(&e);
    check_ok(corral_lane_tcp_ops.tx_open(&lane, e.link, &sender, &e.offer, &answer, &err));
    check_ok(corral_lane_tcp_ops.rx_connect(e.rx, &answer, &err));
    for (uint64_t push = 1; push <= pushes; push++) {
        memset(weights, (int)push, BYTES); /* the last push is done with: its memory may change */
        push_once(lane, &e, push, weights);
    }
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    tcp_stop_tx(tx, false);
    *out = tx->stream[0].zero;
    corral_lane_tcp_ops.tx_close(lane);
    close_end(&e);
}

static void what_has_left_is_read_no_more_by_the_kernel(void **state)
{
    (void)state;
    struct tcp_zero z;
    zero_copy(CORRAL_LANE_ZERO_COPY_ALWAYS, 50, &z); /* more sends than are remembered */
    if (z.next == 0 && z.wake < 0) {
        skip(); /* a kernel without it */
    }
    assert_true(z.next > TCP_ZERO_SENDS);
    assert_int_equal(z.first, z.next);
    assert_int_equal(z.pending, 0);
}

static void a_push_that_is_given_up_leaves_nothing_with_the_kernel(void **state)
{
    (void)state;
    struct end e;
    struct corral_error err;
    struct corral_lane_blob answer, place;
    struct corral_lane *lane = NULL;
    struct corral_lane_options sender = options;
    CORRAL_AUTO_FREE uint8_t *weights = calloc(1, BYTES);
    assert_non_null(weights);
    sender.zero_copy = CORRAL_LANE_ZERO_COPY_ALWAYS;
    sender.window = CORRAL_LANE_WINDOW_MAX;
    open_end(&e);
    check_ok(corral_lane_tcp_ops.tx_open(&lane, e.link, &sender, &e.offer, &answer, &err));
    check_ok(corral_lane_tcp_ops.rx_connect(e.rx, &answer, &err));
    struct corral_shard source = corral_shard_host(weights, BYTES);
    check_ok(corral_lane_tcp_ops.rx_begin(e.rx, 1, &e.destination, &place, &err));
    check_ok(corral_lane_tcp_ops.tx_begin(lane, 1, &source, &place, &err));
    uint64_t left = 0;
    for (uint32_t silent = 0;
         silent < 20;) { /* the receiver takes nothing: buffers fill up, then the window */
        uint64_t before = left;
        enum corral_status status = corral_lane_tcp_ops.tx_send(lane, 0, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
        check_ok(corral_lane_tcp_ops.tx_progress(lane, status == CORRAL_OK ? 0 : LOOK_NS, &left, &err));
        silent = status == CORRAL_AGAIN && left == before ? silent + 1 : 0;
    }
    struct tcp_tx *tx = (struct tcp_tx *)lane;
    check_ok(corral_lane_tcp_ops.tx_end(lane, false, &err));
    assert_int_equal(tx->stream[0].zero.pending, 0);
    assert_true(tx->zero_copy == CORRAL_LANE_ZERO_COPY_NEVER || tx->stream[0].zero.next > 0);
    corral_lane_tcp_ops.tx_close(lane);
    close_end(&e);
}

static void stops_asking_where_the_kernel_copies_after_all(void **state)
{
    (void)state;
    struct tcp_zero z;
    zero_copy(CORRAL_LANE_ZERO_COPY_TRY, 50, &z);
    assert_false(z.on);
    assert_true(z.next < 50 * (BYTES / CORRAL_BUCKET_BYTES_MIN));
    assert_int_equal(z.pending, 0);
    zero_copy(CORRAL_LANE_ZERO_COPY_NEVER, 1, &z);
    assert_int_equal(z.next, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_do_not_get_in_and_do_not_keep_the_sender_out),
        cmocka_unit_test(gives_up_when_only_strangers_come),
        cmocka_unit_test(frames_that_do_not_fit_end_the_lane),
        cmocka_unit_test(a_whole_bucket_of_a_stranger_to_the_library_arrives),
        cmocka_unit_test(noise_never_gets_out_of_the_destination),
        cmocka_unit_test(offers_no_address_that_nobody_can_reach),
        cmocka_unit_test(what_has_left_is_read_no_more_by_the_kernel),
        cmocka_unit_test(a_push_that_is_given_up_leaves_nothing_with_the_kernel),
        cmocka_unit_test(stops_asking_where_the_kernel_copies_after_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
