/* Records of every size through the stream: gathered, alone, reserved and replaced, sent again in other pieces, finished in any order. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define RUN 21
#define TOKEN "a-token"
#define PATIENCE_NS (60 * CORRAL_NS_PER_S)
#define HELD_MAX 4096

struct world {
    char folder[TEST_PATH_MAX];
    char bind[TEST_PATH_MAX + 16];
    void *context;
    struct test_allocator memory, sender_memory;
    struct corral_traj_receiver *receiver;
    struct corral_traj_sender *sender;
    const struct corral_traj_item *held[HELD_MAX];
    uint32_t held_count;
    uint64_t sent, until;
};

static void receiver_open(struct world *w, uint64_t buffer)
{
    struct corral_error err;
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = w->bind,
                                            .buffer_bytes = buffer,
                                            .memory = &w->memory.allocator,
                                            .transport = test_transport(),
                                            .token = TOKEN};
    check_ok(corral_traj_receiver_create(&w->receiver, &c, &err));
}

static void sender_open(struct world *w, uint64_t window)
{
    struct corral_error err;
    struct corral_traj_sender_config c = {.zmq_context = w->context,
                                          .run = RUN,
                                          .worker = 1,
                                          .epoch = 1,
                                          .window_bytes = window,
                                          .memory = &w->sender_memory.allocator,
                                          .transport = test_transport(),
                                          .token = TOKEN};
    check_ok(corral_traj_sender_create(&w->sender, &c, &err));
    check_ok(corral_traj_sender_connect(w->sender, 0, corral_traj_receiver_endpoint(w->receiver), &err));
}

static void world_open(struct world *w, uint64_t buffer, uint64_t window)
{
    memset(w, 0, sizeof *w);
    w->context = zmq_ctx_new();
    w->until = corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
    test_folder_make(w->folder);
    snprintf(w->bind, sizeof w->bind, "ipc://%s/traj", w->folder);
    test_allocator_init(&w->memory, UINT64_MAX / 2);
    test_allocator_init(&w->sender_memory, UINT64_MAX / 2);
    receiver_open(w, buffer);
    sender_open(w, window);
}

static void world_close(struct world *w)
{
    corral_traj_sender_destroy(w->sender, 0);
    corral_traj_receiver_destroy(w->receiver);
    assert_int_equal(w->memory.used, 0);
    assert_int_equal(w->sender_memory.used, 0);
    zmq_ctx_term(w->context);
    test_folder_remove(w->folder);
}

static void in_time(const struct world *w)
{
    assert_true(corral_now_ns(&corral_clock_monotonic) < w->until);
}

static uint64_t payload_of(uint64_t sequence)
{
    /* mostly small, now and then one that goes alone */
    return sequence % 97 == 0 ? 70000 : sequence % 7 * 50 + 1;
}

/* The record with this content, once there is room; `meanwhile` may take in what arrives. */
static void send(struct world *w, uint64_t payload, void (*meanwhile)(struct world *))
{
    struct corral_error err;
    uint64_t bytes, sequence;
    void *memory, *record = test_numbered_record(0, 0, 0, w->sent + 1, payload, &bytes);
    enum corral_status status;
    while ((status = corral_traj_sender_reserve(w->sender, 0, bytes, &memory, &err)) == CORRAL_AGAIN) {
        check_ok(corral_traj_sender_poll(w->sender, 1, &err));
        meanwhile(w);
        in_time(w);
    }
    check_ok(status);
    assert_int_equal((uintptr_t)memory % 64, 0);
    memcpy(memory, record, bytes);
    check_ok(corral_traj_sender_commit(w->sender, 0, &sequence, &err));
    assert_int_equal(sequence, ++w->sent);
    free(record);
}

static void check_record(const struct corral_traj_item *item, uint64_t sequence, uint64_t payload)
{
    uint64_t bytes;
    void *expected = test_numbered_record(RUN, 1, 1, sequence, payload, &bytes);
    assert_int_equal(item->sequence, sequence);
    assert_int_equal(item->bytes, bytes);
    assert_int_equal((uintptr_t)item->data % 64, 0);
    assert_memory_equal(item->data, expected, bytes);
    free(expected);
}

static bool take(struct world *w, uint32_t timeout_ms)
{
    struct corral_error err;
    enum corral_status status =
        corral_traj_receiver_next(w->receiver, timeout_ms, &w->held[w->held_count], &err);
    if (status == CORRAL_AGAIN) {
        return false;
    }
    check_ok(status);
    w->held_count++;
    assert_true(w->held_count < HELD_MAX);
    return true;
}

static void hold_all(struct world *w)
{
    while (take(w, 0)) {
    }
}

static struct corral_traj_receiver_stats receiver_stats(const struct world *w)
{
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w->receiver, &stats);
    return stats;
}

static struct corral_traj_sender_stats sender_stats(const struct world *w)
{
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(w->sender, &stats);
    return stats;
}

static void expect_held(struct world *w, uint32_t count)
{
    struct corral_error err;
    while (w->held_count < count) {
        check_ok(corral_traj_sender_poll(w->sender, 1, &err));
        hold_all(w);
        in_time(w);
    }
    assert_int_equal(w->held_count, count);
}

static void expect_acked(struct world *w, uint64_t count)
{
    struct corral_error err;
    while (sender_stats(w).acked < count) {
        corral_traj_receiver_flush(w->receiver);
        check_ok(corral_traj_sender_poll(w->sender, 1, &err));
        in_time(w);
    }
    assert_int_equal(sender_stats(w).acked, count);
}

/* ---- gathering ---- */

static uint64_t checked;
static void check_and_finish(struct world *w)
{
    hold_all(w);
    for (uint32_t i = 0; i < w->held_count; i++) {
        check_record(w->held[i], checked + 1, payload_of(checked + 1));
        checked++;
        corral_traj_receiver_finish(w->receiver, w->held[i]);
    }
    w->held_count = 0;
}

static void small_records_share_messages_and_keep_their_order(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct world w;
    struct corral_error err;
    world_open(&w, 1 << 20, 1 << 20);
    checked = 0;
    for (uint64_t i = 1; i <= 20000; i++) {
        send(&w, payload_of(i), check_and_finish);
    }
    while (checked < 20000) {
        check_ok(corral_traj_sender_poll(w.sender, 1, &err));
        check_and_finish(&w);
        in_time(&w);
    }
    expect_acked(&w, 20000);
    struct corral_traj_sender_stats s = sender_stats(&w);
    assert_int_equal(s.sent, 20000);
    assert_int_equal(s.resent, 0);
    assert_int_equal(s.unacked_bytes, 0);
    assert_true(s.batches < s.sent); /* how many depends on the machine */
    assert_true(w.sender_memory.peak <= (1 << 20) + (1 << 18));
    struct corral_traj_receiver_stats r = receiver_stats(&w);
    assert_int_equal(r.duplicates + r.gaps + r.malformed, 0);
    assert_int_equal(r.held_bytes, 0);
    world_close(&w);
}

static void a_record_on_an_idle_connection_goes_at_once(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1 << 20, 1 << 20);
    send(&w, 10, hold_all);
    while (!take(&w, 100)) { /* the sender is not called */
        in_time(&w);
    }
    check_record(w.held[0], 1, 10);
    world_close(&w);
}

static void a_flush_sends_what_is_gathered(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct world w;
    struct corral_error err;
    world_open(&w, 1 << 20, 1 << 20);
    for (int i = 0; i < 50; i++) {
        send(&w, 10, hold_all);
    }
    check_ok(corral_traj_sender_flush(w.sender, &err));
    while (w.held_count < 50) { /* the sender is not called any more */
        (void)take(&w, 100);
        in_time(&w);
    }
    world_close(&w);
}

/* ---- reservations ---- */

static void ready(struct world *w)
{
    send(w, 1, hold_all);
    expect_held(w, 1);
}

static void a_reservation_is_replaced_flushed_around_and_shrunk(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    uint64_t bytes, large;
    void *memory;
    world_open(&w, 1 << 20, 1 << 20);
    ready(&w);
    check_status(corral_traj_sender_commit(w.sender, 0, NULL, &err), CORRAL_STATE);
    check_status(corral_traj_sender_reserve(w.sender, 0, 63, &memory, &err), CORRAL_INVALID);
    check_status(corral_traj_sender_reserve(w.sender, 3, 64, &memory, &err), CORRAL_STATE);
    /* Each replaces the one before: small, large, small. */
    void *small = test_numbered_record(0, 0, 0, 2, 500, &bytes),
         *big = test_numbered_record(0, 0, 0, 3, 100000, &large);
    check_ok(corral_traj_sender_reserve(w.sender, 0, bytes, &memory, &err));
    check_ok(corral_traj_sender_reserve(w.sender, 0, large, &memory, &err));
    check_ok(corral_traj_sender_reserve(w.sender, 0, 4 * bytes, &memory, &err));
    memset(memory, 0xaa, 4 * bytes);
    check_status(corral_traj_sender_commit(w.sender, 0, NULL, &err), CORRAL_PROTOCOL);
    check_ok(corral_traj_sender_flush(w.sender, &err)); /* the reservation stays */
    check_ok(corral_traj_sender_poll(w.sender, 0, &err));
    memcpy(memory, small, bytes); /* less than was reserved */
    check_ok(corral_traj_sender_commit(w.sender, 0, NULL, &err));
    check_status(corral_traj_sender_commit(w.sender, 0, NULL, &err), CORRAL_STATE);
    check_ok(corral_traj_sender_reserve(w.sender, 0, large, &memory, &err));
    check_ok(corral_traj_sender_poll(w.sender, 0, &err));
    memcpy(memory, big, large);
    check_ok(corral_traj_sender_commit(w.sender, 0, NULL, &err));
    expect_held(&w, 3);
    check_record(w.held[1], 2, 500);
    check_record(w.held[2], 3, 100000);
    check_ok(corral_traj_sender_reserve(w.sender, 0, large, &memory, &err)); /* never committed: not leaked */
    free(small);
    free(big);
    world_close(&w);
}

static void who_has_no_room_is_said_and_timed(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct world w;
    struct corral_error err;
    void *memory;
    struct corral_traj_sender_rank_stats rank;
    world_open(&w, 16 << 10, 1 << 20);
    ready(&w);
    send(&w, 12 << 10, hold_all);
    expect_held(&w, 2);
    for (int i = 0; i < 20; i++) {
        check_status(corral_traj_sender_reserve(w.sender, 0, 8192, &memory, &err), CORRAL_AGAIN);
        check_ok(corral_traj_sender_poll(w.sender, 1, &err));
        hold_all(&w);
    }
    assert_non_null(strstr(err.text, "trainer-0"));
    assert_non_null(strstr(err.text, "no room"));
    corral_traj_sender_rank_stats(w.sender, 0, &rank);
    assert_int_equal(rank.unacked, 2);
    assert_true(rank.unacked_bytes > 12 << 10);
    assert_true(rank.blocked >= 20);
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    corral_traj_receiver_finish(w.receiver, w.held[1]);
    while (corral_traj_sender_reserve(w.sender, 0, 8192, &memory, &err) == CORRAL_AGAIN) {
        check_ok(corral_traj_sender_poll(w.sender, 1, &err));
        hold_all(&w);
        in_time(&w);
    }
    corral_traj_sender_rank_stats(w.sender, 0, &rank);
    assert_true(rank.blocked_ns > 0);
    assert_int_equal(rank.unacked, 0);
    world_close(&w);
}

/* ---- again, in other pieces ---- */

static void what_was_gathered_under_much_credit_goes_through_little(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    for (int round = 0; round < 6; round++) {
        struct world w;
        struct corral_error err;
        world_open(&w, 1 << 20, 8 << 20);
        uint32_t count = 200 + (uint32_t)corral_rng_below(&rng, 800);
        ready(&w);
        while (w.sent < count) { /* gathered into few messages, which nobody takes */
            send(&w, 200, hold_all);
        }
        uint32_t kept = w.held_count < 2 ? 0 : (uint32_t)corral_rng_below(&rng, w.held_count);
        struct corral_traj_cursor cursor;
        assert_int_equal(corral_traj_receiver_cursors(w.receiver, w.held, kept, &cursor, 1), 1);
        assert_int_equal(cursor.sequence, kept);
        corral_traj_receiver_destroy(w.receiver);
        receiver_open(&w, 2048); /* room for four */
        check_ok(corral_traj_receiver_restore(w.receiver, &cursor, 1, &err));
        check_ok(corral_traj_sender_connect(w.sender, 0, corral_traj_receiver_endpoint(w.receiver), &err));
        w.held_count = 0;
        for (uint64_t next = kept + 1; next <= count;) {
            check_ok(corral_traj_sender_poll(w.sender, 1, &err));
            while (take(&w, 0)) {
                check_record(w.held[0], next, next == 1 ? 1 : 200);
                next++;
                assert_true(receiver_stats(&w).held_bytes <= 2048);
                corral_traj_receiver_finish(w.receiver, w.held[0]);
                w.held_count = 0;
            }
            in_time(&w);
        }
        expect_acked(&w, count);
        assert_int_equal(receiver_stats(&w).malformed, 0);
        world_close(&w);
    }
}

/* ---- any order ---- */

static void records_may_be_finished_in_any_order(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, 1 << 20, 1 << 20);
    for (int i = 0; i < 8; i++) {
        send(&w, 100, hold_all);
    }
    expect_held(&w, 8);
    struct corral_traj_cursor cursor;
    struct corral_traj_span spans[8];
    const struct corral_traj_item *batch[] = {w.held[4], w.held[1], w.held[2], w.held[7]};
    uint64_t before = receiver_stats(&w).held_bytes;
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, batch, 4, &cursor, 1), 1);
    assert_int_equal(cursor.sequence, 0);
    assert_int_equal(corral_traj_receiver_spans(w.receiver, batch, 4, spans, 8), 3);
    assert_true(spans[0].first == 2 && spans[0].last == 3);
    assert_true(spans[1].first == 5 && spans[1].last == 5);
    assert_true(spans[2].first == 8 && spans[2].last == 8);
    assert_int_equal(corral_traj_receiver_spans(w.receiver, batch, 4, spans, 1), 3); /* the rest is counted */
    for (int i = 0; i < 4; i++) {
        corral_traj_receiver_finish(w.receiver, batch[i]);
    }
    assert_true(receiver_stats(&w).held_bytes == before / 2); /* their room is free again */
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, NULL, 0, &cursor, 1), 1);
    assert_int_equal(cursor.sequence, 0);
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, NULL, 0, &cursor, 1), 1);
    assert_int_equal(cursor.sequence, 3);
    expect_acked(&w, 3);
    assert_int_equal(corral_traj_receiver_spans(w.receiver, NULL, 0, spans, 8), 2);
    /* A new trainer with both: 4, 6 and 7 come again, and nothing else. */
    corral_traj_receiver_destroy(w.receiver);
    receiver_open(&w, 1 << 20);
    check_status(corral_traj_receiver_restore_spans(w.receiver, spans, 2, &err),
                 CORRAL_INVALID); /* no cursor */
    check_ok(corral_traj_receiver_restore(w.receiver, &cursor, 1, &err));
    check_ok(corral_traj_receiver_restore_spans(w.receiver, spans, 2, &err));
    check_ok(corral_traj_sender_connect(w.sender, 0, corral_traj_receiver_endpoint(w.receiver), &err));
    assert_int_equal(corral_traj_receiver_spans(w.receiver, NULL, 0, spans, 8), 2);
    w.held_count = 0;
    expect_held(&w, 3);
    const uint64_t expected[] = {4, 6, 7};
    for (int i = 0; i < 3; i++) {
        check_record(w.held[i], expected[i], 100);
        corral_traj_receiver_finish(w.receiver, w.held[i]);
    }
    expect_acked(&w, 8);
    assert_int_equal(corral_traj_receiver_spans(w.receiver, NULL, 0, spans, 8), 0);
    world_close(&w);
}

/* What waits far behind must not keep the memory and the credit of what is finished. */
static void one_that_is_kept_holds_up_nothing(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 64 << 10, 4 << 20);
    send(&w, 4000, hold_all);
    expect_held(&w, 1);
    const struct corral_traj_item *kept = w.held[0];
    w.held_count = 0;
    for (uint64_t i = 0; i < 200; i++) { /* twelve times the buffer */
        send(&w, 4000, hold_all);
        expect_held(&w, 1);
        corral_traj_receiver_finish(w.receiver, w.held[0]);
        w.held_count = 0;
    }
    assert_int_equal(sender_stats(&w).acked, 0);
    check_record(kept, 1, 4000);
    corral_traj_receiver_finish(w.receiver, kept);
    expect_acked(&w, 201);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_records_share_messages_and_keep_their_order),
        cmocka_unit_test(a_record_on_an_idle_connection_goes_at_once),
        cmocka_unit_test(a_flush_sends_what_is_gathered),
        cmocka_unit_test(a_reservation_is_replaced_flushed_around_and_shrunk),
        cmocka_unit_test(who_has_no_room_is_said_and_timed),
        cmocka_unit_test(what_was_gathered_under_much_credit_goes_through_little),
        cmocka_unit_test(records_may_be_finished_in_any_order),
        cmocka_unit_test(one_that_is_kept_holds_up_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
