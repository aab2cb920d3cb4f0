/* Senders and receivers in one process, over ipc and over tcp with CURVE. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "transport/bus/bus.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define RUN 42
#define TOKEN "a-token"
#define PATIENCE_NS (120 * CORRAL_NS_PER_S)

struct world {
    char folder[TEST_PATH_MAX];
    char bind[TEST_PATH_MAX + 16];
    char public_key[41], secret_key[41];
    bool tcp;
    void *context;
    struct test_allocator memory; /* the receiver's */
    struct corral_traj_receiver *receiver;
    struct corral_error err;
};

static void world_open(struct world *w, bool tcp)
{
    memset(w, 0, sizeof *w);
    w->tcp = tcp;
    w->context = zmq_ctx_new();
    test_folder_make(w->folder);
    check_status(corral_bus_keypair(w->public_key, w->secret_key, &w->err), CORRAL_OK);
    snprintf(w->bind, sizeof w->bind, tcp ? "tcp://127.0.0.1:*" : "ipc://%s/traj", w->folder);
    test_allocator_init(&w->memory, UINT64_MAX / 2);
}

static void receiver_open(struct world *w, uint64_t buffer)
{
    struct corral_error err;
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = w->bind,
                                            .buffer_bytes = buffer,
                                            .memory = &w->memory.allocator,
                                            .transport = test_transport(),
                                            .token = TOKEN,
                                            .server_secret_key = w->tcp ? w->secret_key : NULL};
    check_ok(corral_traj_receiver_create(&w->receiver, &c, &err));
}

static void receiver_close(struct world *w)
{
    corral_traj_receiver_destroy(w->receiver);
    w->receiver = NULL;
    assert_int_equal(w->memory.used, 0);
}

static void world_close(struct world *w)
{
    if (w->receiver != NULL) {
        receiver_close(w);
    }
    zmq_ctx_term(w->context);
    test_folder_remove(w->folder);
}

static struct corral_traj_sender *sender_open(struct world *w, uint32_t worker, uint32_t epoch,
                                              uint64_t window, const struct corral_allocator *memory)
{
    struct corral_error err;
    struct corral_traj_sender *s = NULL;
    struct corral_traj_sender_config c = {.zmq_context = w->context,
                                          .run = RUN,
                                          .worker = worker,
                                          .epoch = epoch,
                                          .window_bytes = window,
                                          .memory = memory,
                                          .transport = test_transport(),
                                          .token = TOKEN,
                                          .server_key = w->tcp ? w->public_key : NULL};
    check_ok(corral_traj_sender_create(&s, &c, &err));
    check_ok(corral_traj_sender_connect(s, 0, corral_traj_receiver_endpoint(w->receiver), &err));
    return s;
}

static uint64_t deadline(void)
{
    return corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
}

static bool expired(uint64_t at)
{
    return corral_now_ns(&corral_clock_monotonic) > at;
}

/* The fragment with this seed, sent as soon as it is let in; whatever arrives meanwhile is passed to `arrived`. */
typedef void (*arrived_fn)(struct world *w, const struct corral_traj_item *f, void *ctx);

static bool pull(struct world *w, uint32_t timeout_ms, arrived_fn arrived, void *ctx)
{
    const struct corral_traj_item *f;
    struct corral_error err;
    enum corral_status status = corral_traj_receiver_next(w->receiver, timeout_ms, &f, &err);
    if (status == CORRAL_AGAIN) {
        return false;
    }
    check_ok(status);
    arrived(w, f, ctx);
    return true;
}

static void push(struct world *w, struct corral_traj_sender *s, uint64_t seed, uint32_t size,
                 arrived_fn arrived, void *ctx)
{
    struct corral_error err;
    struct test_fragment t;
    test_fragment_make(&t, seed, size);
    uint64_t until = deadline();
    enum corral_status status;
    while ((status = corral_traj_sender_send_fragment(s, 0, &t.fragment, &err)) == CORRAL_AGAIN) {
        check_ok(corral_traj_sender_poll(s, 1, &err));
        pull(w, 0, arrived, ctx);
        assert_false(expired(until));
    }
    check_ok(status);
    test_fragment_free(&t);
}

static void settle(struct world *w, struct corral_traj_sender *s, arrived_fn arrived, void *ctx)
{
    struct corral_traj_sender_stats stats;
    struct corral_error err;
    uint64_t until = deadline();
    for (;;) {
        corral_traj_sender_stats(s, &stats);
        if (stats.unacked_bytes == 0) {
            return;
        }
        assert_false(expired(until));
        check_ok(corral_traj_sender_poll(s, 1, &err));
        pull(w, 0, arrived, ctx);
    }
}

/* ---- round trips ---- */

struct expect_in_order {
    uint64_t next, first_seed;
    uint32_t size;
};

static void compare_and_finish(struct world *w, const struct corral_traj_item *f, void *ctx)
{
    struct expect_in_order *e = ctx;
    struct test_fragment t;
    assert_int_equal(f->sequence, e->next);
    struct corral_fragment view;
    assert_true(test_item_fragment(f, &view));
    assert_int_equal(view.run, RUN);
    test_fragment_make(&t, e->first_seed + e->next - 1, e->size);
    assert_true(test_item_equal(&t.fragment, f));
    test_fragment_free(&t);
    e->next++;
    corral_traj_receiver_finish(w->receiver, f);
}

static void round_trip(bool tcp)
{
    struct world w;
    struct test_allocator memory;
    test_allocator_init(&memory, UINT64_MAX / 2);
    world_open(&w, tcp);
    receiver_open(&w, 4 << 20);
    struct corral_traj_sender *s = sender_open(&w, 3, 7, 8 << 20, &memory.allocator);
    struct expect_in_order e = {.next = 1, .first_seed = 1000, .size = 24};
    for (uint64_t i = 0; i < 300; i++) {
        push(&w, s, 1000 + i, 24, compare_and_finish, &e);
    }
    settle(&w, s, compare_and_finish, &e);
    assert_int_equal(e.next, 301);
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w.receiver, &stats);
    assert_int_equal(stats.received, 300);
    assert_int_equal(stats.acked, 300);
    assert_int_equal(stats.held_bytes, 0);
    assert_int_equal(stats.duplicates + stats.malformed + stats.gaps, 0);
    corral_traj_sender_destroy(s, 0);
    assert_int_equal(memory.used, 0);
    world_close(&w);
}

static void carries_every_tensor_bit_for_bit_over_ipc(void **state)
{
    (void)state;
    round_trip(false);
}

static void carries_every_tensor_bit_for_bit_over_tcp_with_curve(void **state)
{
    (void)state;
    round_trip(true);
}

/* ---- credit ---- */

#define CROWD 5
#define CROWD_EACH 120
#define CROWD_BUFFER (192u << 10)

struct crowd {
    uint64_t next[CROWD];
    const struct corral_traj_item *held[4096];
    uint32_t held_first, held_end;
    struct corral_rng rng;
};

static void keep_for_a_while(struct world *w, const struct corral_traj_item *f, void *ctx)
{
    struct crowd *c = ctx;
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w->receiver, &stats);
    assert_true(test_rings() || stats.held_bytes <= CROWD_BUFFER); /* a ring is bounded by itself */
    assert_true(w->memory.used <= CROWD_BUFFER);
    assert_int_equal(f->sequence, ++c->next[f->worker]);
    c->held[c->held_end++] = f;
}

static void never_holds_more_than_the_buffer_and_serves_everyone(void **state)
{
    (void)state;
    struct world w;
    struct crowd c = {.held_end = 0};
    struct corral_traj_sender *senders[CROWD];
    struct test_fragment waiting[CROWD];
    uint32_t sent[CROWD] = {0}, total = 0;
    corral_rng_seed(&c.rng, 9);
    world_open(&w, false);
    receiver_open(&w, CROWD_BUFFER);
    for (uint32_t i = 0; i < CROWD; i++) {
        senders[i] = sender_open(&w, i, 1, 1 << 20, &corral_allocator_heap);
        test_fragment_make(&waiting[i], i, 4);
    }
    uint64_t until = deadline();
    while (total < CROWD * CROWD_EACH || c.held_first < c.held_end || c.held_end < total) {
        assert_false(expired(until));
        for (uint32_t i = 0; i < CROWD; i++) {
            struct corral_error err;
            check_ok(corral_traj_sender_poll(senders[i], 0, &err));
            if (sent[i] < CROWD_EACH &&
                corral_traj_sender_send_fragment(senders[i], 0, &waiting[i].fragment, &err) == CORRAL_OK) {
                test_fragment_free(&waiting[i]);
                sent[i]++;
                total++;
                test_fragment_make(&waiting[i], total, 4 + 8 * i); /* later workers send larger fragments */
            }
        }
        bool got = pull(&w, 0, keep_for_a_while, &c);
        /* Finish in hand-out order, sometimes late: when nothing comes any more, or by chance. */
        if (c.held_first < c.held_end && (!got || corral_rng_below(&c.rng, 3) == 0)) {
            corral_traj_receiver_finish(w.receiver, c.held[c.held_first++]);
        }
    }
    for (uint32_t i = 0; i < CROWD; i++) {
        assert_int_equal(c.next[i], CROWD_EACH);
        test_fragment_free(&waiting[i]);
        corral_traj_sender_destroy(senders[i], 0);
    }
    assert_true(w.memory.peak <= CROWD_BUFFER);
    world_close(&w);
}

static void refuses_a_fragment_larger_than_the_buffer(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct test_fragment t;
    world_open(&w, false);
    receiver_open(&w, 16 << 10);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 1 << 20, &corral_allocator_heap);
    struct expect_in_order e = {.next = 1, .first_seed = 1, .size = 2};
    push(&w, s, 1, 2, compare_and_finish, &e);
    test_fragment_sized(&t, 64 << 10);
    check_status(corral_traj_sender_send_fragment(s, 0, &t.fragment, &err), CORRAL_INVALID);
    test_fragment_free(&t);
    test_fragment_sized(&t, 2 << 20);
    check_status(corral_traj_sender_send_fragment(s, 0, &t.fragment, &err), CORRAL_INVALID);
    test_fragment_free(&t);
    corral_traj_sender_destroy(s, 0);
    world_close(&w);
}

static void a_full_window_blocks_until_acknowledged(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct test_fragment t;
    test_fragment_make(&t, 5, 8);
    uint64_t bytes = test_fragment_cost(&t.fragment);
    world_open(&w, false);
    receiver_open(&w, 4 << 20);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 2 * bytes, &corral_allocator_heap);
    struct expect_in_order e = {.next = 1, .first_seed = 5, .size = 8};
    push(&w, s, 5, 8, compare_and_finish, &e);
    const struct corral_traj_item *first = NULL;
    uint64_t until = deadline();
    while (corral_traj_sender_send_fragment(s, 0, &t.fragment, &err) != CORRAL_OK) {
        check_ok(corral_traj_sender_poll(s, 1, &err));
        assert_false(expired(until));
    }
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(s, &stats);
    if (stats.unacked_bytes == 2 * bytes) { /* nothing acknowledged yet */
        check_status(corral_traj_sender_send_fragment(s, 0, &t.fragment, &err), CORRAL_AGAIN);
    }
    for (int finished = 0; finished < 2;) {
        if (corral_traj_receiver_next(w.receiver, 10, &first, &err) == CORRAL_OK) {
            corral_traj_receiver_finish(w.receiver, first);
            finished++;
        }
        assert_false(expired(until));
    }
    while (corral_traj_sender_send_fragment(s, 0, &t.fragment, &err) != CORRAL_OK) {
        check_ok(corral_traj_sender_poll(s, 1, &err));
        assert_false(expired(until));
    }
    test_fragment_free(&t);
    corral_traj_sender_destroy(s, 0);
    world_close(&w);
}

/* ---- a new receiver ---- */

static void delivers_everything_unacknowledged_again_after_a_restart(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct world w;
        struct corral_error err;
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        world_open(&w, seed % 4 == 0);
        receiver_open(&w, 1 << 20);
        struct corral_traj_sender *s = sender_open(&w, 2, 5, 16 << 20, &corral_allocator_heap);
        uint64_t finished = 0, pushed = 0;
        struct corral_traj_cursor cursor = {.worker = 2};
        for (int life = 0; life < 4; life++) {
            struct crowd c = {.held_end = 0};
            c.next[2] = finished;
            for (uint64_t n = corral_rng_below(&rng, 12); n > 0; n--) {
                push(&w, s, seed * 1000 + pushed++, 10, keep_for_a_while, &c);
            }
            while (pull(&w, 5, keep_for_a_while, &c)) {
            }
            uint32_t finish = (uint32_t)corral_rng_below(&rng, c.held_end + 1);
            uint32_t saved = corral_traj_receiver_cursors(w.receiver, c.held, finish, &cursor, 1);
            for (uint32_t i = 0; i < finish; i++) {
                corral_traj_receiver_finish(w.receiver, c.held[i]);
            }
            if (corral_rng_below(&rng, 2) == 0) { /* the acknowledgements may or may not have been heard */
                check_ok(corral_traj_sender_poll(s, 1, &err));
            }
            finished += finish;
            assert_int_equal(cursor.sequence, saved == 1 ? finished : 0);
            receiver_close(&w);
            receiver_open(&w, 1 << 20);
            check_ok(corral_traj_receiver_restore(w.receiver, &cursor, saved, &err));
            check_ok(corral_traj_sender_connect(s, 0, corral_traj_receiver_endpoint(w.receiver), &err));
        }
        struct expect_in_order e = {.next = finished + 1, .first_seed = seed * 1000, .size = 10};
        settle(&w, s, compare_and_finish, &e);
        assert_int_equal(e.next, pushed + 1);
        corral_traj_sender_destroy(s, 0);
        world_close(&w);
    }
}

static void finds_a_receiver_that_came_back_at_the_same_place_by_itself(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 16 << 20, &corral_allocator_heap);
    struct crowd c = {.held_end = 0};
    for (uint64_t i = 0; i < 6; i++) {
        push(&w, s, 50 + i, 10, keep_for_a_while, &c);
    }
    receiver_close(&w);
    receiver_open(&w, 1 << 20); /* the same ipc path; the sender is told nothing */
    struct expect_in_order e = {.next = 1, .first_seed = 50, .size = 10};
    settle(&w, s, compare_and_finish, &e);
    assert_int_equal(e.next, 7);
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(s, &stats);
    assert_true(stats.resent > 0 || test_rings()); /* the same ring is handed over again */
    (void)err;
    corral_traj_sender_destroy(s, 0);
    world_close(&w);
}

static void counts_what_an_older_state_has_lost_and_goes_on(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 16 << 20, &corral_allocator_heap);
    struct expect_in_order e = {.next = 1, .first_seed = 1, .size = 6};
    for (uint64_t i = 0; i < 10; i++) {
        push(&w, s, 1 + i, 6, compare_and_finish, &e);
    }
    settle(&w, s, compare_and_finish, &e);
    receiver_close(&w);
    receiver_open(&w, 1 << 20); /* its state says 4, the sender has let go of 5 … 10 */
    check_ok(corral_traj_receiver_restore(w.receiver, &(struct corral_traj_cursor){0, 1, 4}, 1, &err));
    check_ok(corral_traj_sender_connect(s, 0, corral_traj_receiver_endpoint(w.receiver), &err));
    push(&w, s, 11, 6, compare_and_finish, &e);
    settle(&w, s, compare_and_finish, &e);
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w.receiver, &stats);
    assert_int_equal(stats.lost, 6);
    assert_int_equal(stats.received, 1);
    corral_traj_sender_destroy(s, 0);
    world_close(&w);
}

static void a_newer_epoch_supersedes_and_held_fragments_stay_valid(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct crowd c = {.held_end = 0};
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    struct corral_traj_sender *old = sender_open(&w, 1, 1, 16 << 20, &corral_allocator_heap);
    push(&w, old, 70, 10, keep_for_a_while, &c);
    uint64_t until = deadline();
    while (c.held_end < 1) {
        pull(&w, 5, keep_for_a_while, &c);
        assert_false(expired(until));
    }
    struct corral_traj_sender *young = sender_open(&w, 1, 2, 16 << 20, &corral_allocator_heap);
    c.next[1] = 0;
    push(&w, young, 80, 10, keep_for_a_while, &c);
    while (c.held_end < 2) {
        pull(&w, 5, keep_for_a_while, &c);
        assert_false(expired(until));
    }
    struct test_fragment t;
    test_fragment_make(&t, 70, 10);
    assert_true(test_item_equal(&t.fragment, c.held[0]));
    /* The old process goes on as if nothing had happened: it never gets in again, and learns why. */
    enum corral_status status = CORRAL_OK;
    for (uint64_t n = 0; status != CORRAL_INVALID; n++) {
        (void)corral_traj_sender_send_fragment(old, 0, &t.fragment, &err);
        status = corral_traj_sender_poll(old, 1, &err);
        check_status(corral_traj_receiver_next(w.receiver, 1, &c.held[2], &err), CORRAL_AGAIN);
        if (n == 20) { /* a reconnect makes it say hello */
            check_ok(corral_traj_sender_connect(old, 0, corral_traj_receiver_endpoint(w.receiver), &err));
        }
        assert_false(expired(until));
    }
    test_fragment_free(&t);
    struct corral_traj_cursor cursor;
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, c.held, 2, &cursor, 1), 1);
    assert_int_equal(cursor.epoch, 2);
    assert_int_equal(cursor.sequence, 1);
    corral_traj_receiver_finish(w.receiver, c.held[0]);
    corral_traj_receiver_finish(w.receiver, c.held[1]);
    corral_traj_sender_destroy(old, 0);
    corral_traj_sender_destroy(young, 0);
    world_close(&w);
}

/* ---- refusals ---- */

static void expect_refusal(struct world *w, struct corral_traj_sender_config *c, const char *reason)
{
    struct corral_error err = {.text = ""};
    struct corral_traj_sender *s = NULL;
    struct test_fragment t;
    const struct corral_traj_item *f;
    c->zmq_context = w->context;
    c->memory = &corral_allocator_heap;
    c->window_bytes = 1 << 20;
    check_ok(corral_traj_sender_create(&s, c, &err));
    check_ok(corral_traj_sender_connect(s, 0, corral_traj_receiver_endpoint(w->receiver), &err));
    uint64_t until = deadline();
    while (corral_traj_sender_poll(s, 1, &err) != CORRAL_INVALID) {
        check_status(corral_traj_receiver_next(w->receiver, 0, &f, &err), CORRAL_AGAIN);
        assert_false(expired(until));
    }
    assert_non_null(strstr(err.text, reason));
    test_fragment_make(&t, 1, 2);
    check_status(corral_traj_sender_send_fragment(s, 0, &t.fragment, &err), CORRAL_INVALID);
    test_fragment_free(&t);
    corral_traj_sender_destroy(s, 1000); /* does not wait for a receiver that refuses */
}

static void refuses_strangers_with_a_reason(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    check_ok(corral_traj_receiver_restore(w.receiver, &(struct corral_traj_cursor){4, 9, 3}, 1, &err));
    expect_refusal(&w, &(struct corral_traj_sender_config){.run = RUN, .token = "another"}, "token");
    expect_refusal(
        &w,
        &(struct corral_traj_sender_config){.run = RUN + 1, .transport = test_transport(), .token = TOKEN},
        "run");
    expect_refusal(
        &w,
        &(struct corral_traj_sender_config){
            .run = RUN, .transport = test_transport(), .token = TOKEN, .worker = CORRAL_TRAJ_WORKERS_MAX},
        "range");
    expect_refusal(&w,
                   &(struct corral_traj_sender_config){
                       .run = RUN, .transport = test_transport(), .token = TOKEN, .worker = 4, .epoch = 8},
                   "newer epoch");
    /* The same epoch, used by an earlier process that got further: going on would lose the first three. */
    expect_refusal(&w,
                   &(struct corral_traj_sender_config){
                       .run = RUN, .transport = test_transport(), .token = TOKEN, .worker = 4, .epoch = 9},
                   "used before");
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w.receiver, &stats);
    assert_int_equal(stats.refused, 4);
    assert_int_equal(stats.received, 0);
    world_close(&w);
}

static void refuses_endpoints_without_protection(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_traj_receiver *r = NULL;
    struct corral_traj_receiver_config c = {.zmq_context = w.context,
                                            .run = RUN,
                                            .bind = "tcp://127.0.0.1:*",
                                            .buffer_bytes = 1 << 20,
                                            .memory = &corral_allocator_heap,
                                            .transport = test_transport(),
                                            .token = TOKEN};
    check_status(corral_traj_receiver_create(&r, &c, &err), CORRAL_INVALID);
    c.bind = "inproc://nowhere";
    check_status(corral_traj_receiver_create(&r, &c, &err), CORRAL_INVALID);
    assert_null(r);
    world_close(&w);
}

/* ---- the quota ---- */

static void asks_again_for_what_the_quota_refused(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct world w;
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 16 << 20, &corral_allocator_heap);
    struct expect_in_order e = {.next = 1, .first_seed = 300, .size = 12};
    w.memory.limit = 0;
    for (uint64_t i = 0; i < 5; i++) {
        push(&w, s, 300 + i, 12, compare_and_finish, &e);
    }
    struct corral_traj_receiver_stats stats = {.denied = 0};
    uint64_t until = deadline();
    while (stats.denied < 3) {
        struct corral_error err;
        check_ok(corral_traj_sender_poll(s, 1, &err));
        assert_false(pull(&w, 1, compare_and_finish, &e));
        corral_traj_receiver_stats(w.receiver, &stats);
        assert_false(expired(until));
    }
    assert_int_equal(stats.received, 0);
    w.memory.limit = UINT64_MAX / 2;
    settle(&w, s, compare_and_finish, &e);
    assert_int_equal(e.next, 6);
    corral_traj_sender_destroy(s, 0);
    world_close(&w);
}

static void passes_on_the_senders_own_denial(void **state)
{
    (void)state;
    TEST_NEEDS_ZMQ();
    struct world w;
    struct corral_error err;
    struct test_allocator memory;
    struct test_fragment t;
    test_allocator_init(&memory, 0);
    world_open(&w, false);
    receiver_open(&w, 1 << 20);
    struct corral_traj_sender *s = sender_open(&w, 0, 1, 1 << 20, &memory.allocator);
    struct expect_in_order e = {.next = 1, .first_seed = 8, .size = 4};
    test_fragment_make(&t, 8, 4);
    uint64_t until = deadline();
    enum corral_status status;
    while ((status = corral_traj_sender_send_fragment(s, 0, &t.fragment, &err)) == CORRAL_AGAIN) {
        check_ok(corral_traj_sender_poll(s, 1, &err));
        pull(&w, 0, compare_and_finish, &e);
        assert_false(expired(until));
    }
    check_status(status, CORRAL_DENIED);
    assert_int_equal(memory.denials, 1);
    memory.limit = 1 << 20;
    check_ok(corral_traj_sender_send_fragment(s, 0, &t.fragment, &err)); /* the sequence has no gap */
    assert_int_equal(t.fragment.sequence, 1);
    test_fragment_free(&t);
    settle(&w, s, compare_and_finish, &e);
    corral_traj_sender_destroy(s, 0);
    assert_int_equal(memory.used, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(carries_every_tensor_bit_for_bit_over_ipc),
        cmocka_unit_test(carries_every_tensor_bit_for_bit_over_tcp_with_curve),
        cmocka_unit_test(never_holds_more_than_the_buffer_and_serves_everyone),
        cmocka_unit_test(refuses_a_fragment_larger_than_the_buffer),
        cmocka_unit_test(a_full_window_blocks_until_acknowledged),
        cmocka_unit_test(delivers_everything_unacknowledged_again_after_a_restart),
        cmocka_unit_test(finds_a_receiver_that_came_back_at_the_same_place_by_itself),
        cmocka_unit_test(counts_what_an_older_state_has_lost_and_goes_on),
        cmocka_unit_test(a_newer_epoch_supersedes_and_held_fragments_stay_valid),
        cmocka_unit_test(refuses_strangers_with_a_reason),
        cmocka_unit_test(refuses_endpoints_without_protection),
        cmocka_unit_test(asks_again_for_what_the_quota_refused),
        cmocka_unit_test(passes_on_the_senders_own_denial),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
