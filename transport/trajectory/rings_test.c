/* Streams between processes of one node through rings: what differs from ZeroMQ. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/trajectory/local/local.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/ring/ring.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 7
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
    uint64_t until;
};

static void receiver_open(struct world *w, enum corral_traj_transport transport)
{
    struct corral_error err;
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = w->bind,
                                            .buffer_bytes = 1 << 20,
                                            .memory = &w->memory.allocator,
                                            .transport = transport,
                                            .token = TOKEN};
    check_ok(corral_traj_receiver_create(&w->receiver, &c, &err));
    w->held_count = 0;
}

static void receiver_close(struct world *w)
{
    corral_traj_receiver_destroy(w->receiver);
    w->receiver = NULL;
    w->held_count = 0;
}

static void sender_open(struct world *w, uint32_t epoch, uint64_t window)
{
    struct corral_error err;
    struct corral_traj_sender_config c = {.zmq_context = w->context,
                                          .run = RUN,
                                          .worker = 1,
                                          .epoch = epoch,
                                          .window_bytes = window,
                                          .memory = &w->sender_memory.allocator,
                                          .token = TOKEN};
    check_ok(corral_traj_sender_create(&w->sender, &c, &err));
    check_ok(corral_traj_sender_connect(w->sender, 0, w->bind, &err));
}

static void world_open(struct world *w)
{
    memset(w, 0, sizeof *w);
    w->context = zmq_ctx_new();
    w->until = corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
    test_folder_make(w->folder);
    snprintf(w->bind, sizeof w->bind, "ipc://%s/traj", w->folder);
    test_allocator_init(&w->memory, UINT64_MAX / 2);
    test_allocator_init(&w->sender_memory, UINT64_MAX / 2);
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

static void take(struct world *w)
{
    struct corral_error err;
    const struct corral_traj_item *item;
    while (corral_traj_receiver_next(w->receiver, 0, &item, &err) == CORRAL_OK) {
        assert_true(w->held_count < HELD_MAX);
        w->held[w->held_count++] = item;
    }
}

static void both(struct world *w)
{
    struct corral_error err;
    if (w->sender != NULL) {
        check_ok(corral_traj_sender_poll(w->sender, 1, &err));
    }
    if (w->receiver != NULL) {
        take(w);
    }
    in_time(w);
}

static void expect_held(struct world *w, uint32_t count)
{
    while (w->held_count < count) {
        both(w);
    }
    assert_int_equal(w->held_count, count);
}

static void check_record(const struct corral_traj_item *item, uint64_t sequence, uint64_t payload)
{
    uint64_t bytes;
    void *expected = test_numbered_record(RUN, item->worker, item->epoch, sequence, payload, &bytes);
    assert_int_equal(item->sequence, sequence);
    assert_int_equal(item->bytes, bytes);
    assert_memory_equal(item->data, expected, bytes);
    free(expected);
}

static enum corral_status try_send(struct world *w, uint64_t sequence, uint64_t payload,
                                   struct corral_error *err)
{
    uint64_t bytes, got;
    void *memory, *record = test_numbered_record(RUN, 1, 1, sequence, payload, &bytes);
    enum corral_status status = corral_traj_sender_reserve(w->sender, 0, bytes, &memory, err);
    if (status == CORRAL_OK) {
        memcpy(memory, record, bytes);
        assert_int_equal(corral_traj_sender_commit(w->sender, 0, &got, err), CORRAL_OK);
        assert_int_equal(got, sequence);
    }
    free(record);
    return status;
}

static void send(struct world *w, uint64_t sequence, uint64_t payload)
{
    struct corral_error err;
    enum corral_status status;
    while ((status = try_send(w, sequence, payload, &err)) == CORRAL_AGAIN) {
        both(w);
    }
    check_ok(status);
}

static void settle(struct world *w)
{
    while (corral_traj_sender_unacked(w->sender, 0) > 0) {
        for (uint32_t i = 0; i < w->held_count; i++) {
            corral_traj_receiver_finish(w->receiver, w->held[i]);
        }
        w->held_count = 0;
        both(w);
    }
}

static bool over_ring(const struct world *w)
{
    struct corral_traj_sender_rank_stats rank;
    corral_traj_sender_rank_stats(w->sender, 0, &rank);
    return rank.ring;
}

static struct corral_traj_receiver_stats receiver_stats(const struct world *w)
{
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w->receiver, &stats);
    return stats;
}

/* ---- */

static void records_of_the_same_node_are_read_where_they_were_written(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    sender_open(&w, 1, 1 << 20);
    for (uint64_t i = 1; i <= 500; i++) {
        send(&w, i, i * 7 % 3000);
        if (w.held_count > 0) {
            corral_traj_receiver_finish(w.receiver, w.held[--w.held_count]);
        }
    }
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(w.sender, &stats);
    assert_int_equal(stats.rings, 1);
    assert_int_equal(stats.batches, 0); /* nothing went over ZeroMQ */
    assert_int_equal(receiver_stats(&w).rings, 1);
    assert_int_equal(w.memory.peak, 0);           /* nothing was copied */
    assert_true(w.sender_memory.peak <= 1 << 20); /* charged once, to who made it, within its window */
    settle(&w);
    assert_int_equal(receiver_stats(&w).received, 500);
    assert_int_equal(receiver_stats(&w).duplicates, 0);
    world_close(&w);
}

static void a_full_ring_holds_its_writer_up_until_something_is_finished(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    sender_open(&w, 1, 128 << 10);
    uint64_t sent = 0;
    send(&w, ++sent, 8000);
    while (try_send(&w, sent + 1, 8000, &err) == CORRAL_OK) {
        sent++;
    }
    check_status(err.status, CORRAL_AGAIN);
    assert_non_null(strstr(err.text, "no room"));
    assert_true(sent >= 14 && sent <= 16);
    expect_held(&w, (uint32_t)sent);
    check_status(try_send(&w, sent + 1, 8000, &err), CORRAL_AGAIN);
    corral_traj_receiver_finish(w.receiver, w.held[1]); /* the oldest is still there */
    check_status(try_send(&w, sent + 1, 8000, &err), CORRAL_AGAIN);
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    check_ok(try_send(&w, sent + 1, 8000, &err));
    check_status(try_send(&w, sent + 2, 70 << 10, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "window_bytes"));
    world_close(&w);
}

static void a_new_trainer_gets_the_same_ring_and_what_is_in_it(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_traj_cursor cursor;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    sender_open(&w, 1, 1 << 20);
    for (uint64_t i = 1; i <= 20; i++) {
        send(&w, i, 100);
    }
    expect_held(&w, 20);
    for (int i = 0; i < 5; i++) {
        corral_traj_receiver_finish(w.receiver, w.held[i]);
    }
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, NULL, 0, &cursor, 1), 1);
    assert_int_equal(cursor.sequence, 5);
    receiver_close(&w);
    for (uint64_t i = 21; i <= 30; i++) { /* nobody is needed to write */
        check_ok(try_send(&w, i, 100, &err));
    }
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    check_ok(corral_traj_receiver_restore(w.receiver, &cursor, 1, &err));
    expect_held(&w, 25); /* found again by itself */
    for (uint32_t i = 0; i < 25; i++) {
        check_record(w.held[i], 6 + i, 100);
    }
    assert_true(over_ring(&w));
    assert_int_equal(receiver_stats(&w).lost, 0);
    settle(&w);
    world_close(&w);
}

static void a_trainer_without_a_door_gets_everything_over_zeromq(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_traj_cursor cursor;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    sender_open(&w, 1, 1 << 20);
    for (uint64_t i = 1; i <= 9; i++) {
        send(&w, i, 1000);
    }
    expect_held(&w, 9);
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, NULL, 0, &cursor, 1), 1);
    receiver_close(&w);
    receiver_open(&w, CORRAL_TRAJ_ZMQ);
    check_ok(corral_traj_receiver_restore(w.receiver, &cursor, 1, &err));
    expect_held(&w, 8);
    assert_false(over_ring(&w));
    send(&w, 10, 1000);
    expect_held(&w, 9);
    for (uint32_t i = 0; i < 9; i++) {
        check_record(w.held[i], 2 + i, 1000);
    }
    settle(&w);
    /* And back again, once nothing is on its way. */
    receiver_close(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    check_ok(corral_traj_sender_connect(w.sender, 0, w.bind, &err));
    send(&w, 11, 1000);
    expect_held(&w, 1);
    check_record(w.held[0], 11, 1000);
    assert_true(over_ring(&w));
    settle(&w);
    world_close(&w);
}

static void shared_memory_alone_says_why_it_is_not_possible(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_ZMQ);
    struct corral_traj_sender_config c = {.zmq_context = w.context,
                                          .run = RUN,
                                          .worker = 1,
                                          .epoch = 1,
                                          .window_bytes = 1 << 20,
                                          .memory = &w.sender_memory.allocator,
                                          .transport = CORRAL_TRAJ_SHM,
                                          .token = TOKEN};
    check_ok(corral_traj_sender_create(&w.sender, &c, &err));
    check_ok(corral_traj_sender_connect(w.sender, 0, w.bind, &err));
    enum corral_status status;
    while ((status = corral_traj_sender_poll(w.sender, 1, &err)) == CORRAL_OK) {
        take(&w);
        in_time(&w);
    }
    check_status(status, CORRAL_INVALID);
    assert_non_null(strstr(err.text, "door"));
    world_close(&w);
}

/* ---- another process ---- */

/* Writes records 1 to `count` of an epoch, says so, and waits to be killed. */
static pid_t start_writer(const struct world *w, uint32_t epoch, uint64_t count)
{
    int said[2];
    assert_int_equal(pipe(said), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct corral_ring *ring = NULL;
        int link, fd[3];
        uint64_t acked, received;
        char door[CORRAL_LOCAL_PATH_MAX];
        const struct corral_local_hello hello = {.run = RUN, .worker = 1, .epoch = epoch, .first = 1};
        bool ok = corral_ring_create(&ring, 1 << 20, false, NULL, NULL) == CORRAL_OK &&
                  corral_local_path(w->bind, door, NULL) == CORRAL_OK;
        for (uint64_t i = 1; ok && i <= count; i++) {
            uint64_t bytes;
            void *memory, *record = test_numbered_record(RUN, 1, epoch, i, 100, &bytes);
            ok = corral_ring_reserve(ring, bytes, &memory, NULL) == CORRAL_OK;
            memcpy(memory, record, bytes);
            corral_ring_commit(ring, bytes);
            free(record);
        }
        corral_ring_descriptors(ring, fd);
        ok = ok && corral_local_call(&link, door, &hello, TOKEN, fd, NULL) == CORRAL_OK;
        while (ok && corral_local_answer(link, &acked, &received, NULL) == CORRAL_AGAIN) {
            usleep(100);
        }
        (void)!write(said[1], "x", ok ? 1 : 0);
        close(said[1]);
        for (;;) {
            pause();
        }
    }
    close(said[1]);
    char x = 0;
    const struct corral_traj_item *item;
    /* The door is looked at in next(): what it hands out meanwhile is kept by the caller. */
    struct world *own = (struct world *)(uintptr_t)w;
    while (receiver_stats(w).rings == 0 || receiver_stats(w).received == 0) {
        if (corral_traj_receiver_next(w->receiver, 1, &item, NULL) == CORRAL_OK) {
            own->held[own->held_count++] = item;
        }
        in_time(w);
    }
    assert_int_equal(read(said[0], &x, 1), 1);
    close(said[0]);
    return pid;
}

static void kill_writer(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

static void what_a_killed_worker_had_committed_comes_before_its_successor(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    pid_t pid = start_writer(&w, 1, 40);
    assert_int_equal(w.held_count, 1); /* 39 are unread */
    kill_writer(pid);
    sender_open(&w, 2, 1 << 20);
    send(&w, 1, 100);
    expect_held(&w, 41);
    for (uint32_t i = 0; i < 40; i++) {
        assert_int_equal(w.held[i]->epoch, 1);
        check_record(w.held[i], i + 1, 100);
    }
    assert_int_equal(w.held[40]->epoch, 2);
    assert_int_equal(corral_traj_sender_unfinished(w.sender, 0), 41);
    for (uint32_t i = 0; i < 41; i++) {
        check_record(w.held[i], w.held[i]->sequence, 100); /* still there although another ring took over */
    }
    settle(&w);
    assert_int_equal(receiver_stats(&w).rings, 1); /* the dead one's is gone */
    world_close(&w);
}

static void a_ring_with_what_is_no_record_is_not_let_in_again(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w);
    receiver_open(&w, CORRAL_TRAJ_AUTO);
    struct corral_ring *ring = NULL;
    int link = -1, fd[3];
    char door[CORRAL_LOCAL_PATH_MAX];
    uint64_t bytes, acked, received;
    void *memory, *record = test_numbered_record(RUN, 1, 1, 2, 100, &bytes); /* 1 is due */
    const struct corral_local_hello hello = {.run = RUN, .worker = 1, .epoch = 1, .first = 1};
    check_ok(corral_ring_create(&ring, 1 << 20, false, NULL, &err));
    check_ok(corral_ring_reserve(ring, bytes, &memory, &err));
    memcpy(memory, record, bytes);
    corral_ring_commit(ring, bytes);
    free(record);
    check_ok(corral_local_path(w.bind, door, &err));
    for (int i = 0; i < 2; i++) {
        corral_ring_descriptors(ring, fd);
        check_ok(corral_local_call(&link, door, &hello, TOKEN, fd, &err));
        while (!corral_local_gone(link)) {
            take(&w);
            in_time(&w);
        }
        check_status(corral_local_answer(link, &acked, &received, &err), i == 0 ? CORRAL_OK : CORRAL_INVALID);
        close(link);
    }
    assert_int_equal(receiver_stats(&w).malformed, 1);
    assert_int_equal(receiver_stats(&w).received, 0);
    corral_ring_close(ring);
    sender_open(&w, 2, 1 << 20); /* its successor is */
    send(&w, 1, 100);
    expect_held(&w, 1);
    settle(&w);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_of_the_same_node_are_read_where_they_were_written),
        cmocka_unit_test(a_full_ring_holds_its_writer_up_until_something_is_finished),
        cmocka_unit_test(a_new_trainer_gets_the_same_ring_and_what_is_in_it),
        cmocka_unit_test(a_trainer_without_a_door_gets_everything_over_zeromq),
        cmocka_unit_test(shared_memory_alone_says_why_it_is_not_possible),
        cmocka_unit_test(what_a_killed_worker_had_committed_comes_before_its_successor),
        cmocka_unit_test(a_ring_with_what_is_no_record_is_not_let_in_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
