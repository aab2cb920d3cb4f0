/* The receiver with a log that is slow, fails, or has something to replay. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 33
#define TOKEN "a-token"
#define PATIENCE_NS (60 * CORRAL_NS_PER_S)
#define LOG_MAX 256
#define HELD_MAX 128

struct fake_log {
    struct corral_traj_log log;
    struct corral_traj_item item[LOG_MAX]; /* position i + 1 */
    uint32_t count, replayed;
    uint64_t durable;
    bool full, broken, finished[LOG_MAX + 1];
};

static enum corral_status fake_append(void *ctx, const struct corral_traj_item *item, uint64_t *position,
                                      struct corral_error *err)
{
    struct fake_log *l = ctx;
    if (l->full) {
        return corral_fail(err, CORRAL_DENIED, "the disk is full");
    }
    assert_true(l->count < LOG_MAX);
    struct corral_traj_item copy = *item;
    void *data = aligned_alloc(64, item->bytes);
    memcpy(data, item->data, item->bytes);
    copy.data = data;
    l->item[l->count] = copy;
    *position = ++l->count;
    return CORRAL_OK;
}

static enum corral_status fake_durable(void *ctx, uint64_t *position, struct corral_error *err)
{
    struct fake_log *l = ctx;
    if (l->broken) {
        return corral_fail(err, CORRAL_IO, "the disk is broken");
    }
    *position = l->durable;
    return CORRAL_OK;
}

static enum corral_status fake_next(void *ctx, struct corral_traj_item *item, uint64_t *position,
                                    struct corral_error *err)
{
    struct fake_log *l = ctx;
    if (l->replayed == l->count) {
        return corral_fail(err, CORRAL_AGAIN, "the end");
    }
    *item = l->item[l->replayed];
    *position = ++l->replayed;
    return CORRAL_OK;
}

static void fake_finished(void *ctx, uint64_t position)
{
    struct fake_log *l = ctx;
    assert_true(position >= 1 && position <= l->count);
    assert_false(l->finished[position]); /* each once */
    l->finished[position] = true;
}

static void fake_open(struct fake_log *l)
{
    memset(l, 0, sizeof *l);
    l->log = (struct corral_traj_log){.ctx = l,
                                      .append = fake_append,
                                      .durable = fake_durable,
                                      .bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
                                      .next = fake_next,
                                      .finished = fake_finished};
    assert_true(l->log.bell >= 0);
}

/* What another process finds: all that is durable, or all there is when the kernel has lived on. */
static void fake_reopen(struct fake_log *l, bool power_cut)
{
    for (uint32_t i = power_cut ? (uint32_t)l->durable : l->count; i < l->count; i++) {
        free((void *)(uintptr_t)l->item[i].data);
    }
    l->count = power_cut ? (uint32_t)l->durable : l->count;
    l->durable = l->count;
    l->replayed = 0;
    memset(l->finished, 0, sizeof l->finished);
}

static void fake_close(struct fake_log *l)
{
    for (uint32_t i = 0; i < l->count; i++) {
        free((void *)(uintptr_t)l->item[i].data);
    }
    close(l->log.bell);
}

static void sync_to(struct fake_log *l, uint64_t position)
{
    l->durable = position;
    assert_int_equal(write(l->log.bell, &(uint64_t){1}, 8), 8);
}

struct world {
    char folder[TEST_PATH_MAX];
    char bind[TEST_PATH_MAX + 16];
    void *context;
    struct fake_log log;
    struct corral_traj_receiver *receiver;
    struct corral_traj_sender *sender;
    const struct corral_traj_item *held[HELD_MAX];
    uint32_t held_count;
    uint64_t sent, until;
};

static void receiver_open(struct world *w, uint64_t buffer, uint32_t workers)
{
    struct corral_error err;
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = w->bind,
                                            .buffer_bytes = buffer,
                                            .workers = workers,
                                            .memory = &corral_allocator_heap,
                                            .transport = test_transport(),
                                            .token = TOKEN,
                                            .log = &w->log.log};
    w->held_count = 0;
    check_ok(corral_traj_receiver_create(&w->receiver, &c, &err));
}

static void sender_open(struct world *w, uint32_t epoch)
{
    struct corral_error err;
    struct corral_traj_sender_config c = {.zmq_context = w->context,
                                          .run = RUN,
                                          .worker = 1,
                                          .epoch = epoch,
                                          .window_bytes = 1 << 20,
                                          .memory = &corral_allocator_heap,
                                          .transport = test_transport(),
                                          .token = TOKEN};
    corral_traj_sender_destroy(w->sender, 0);
    w->sent = 0;
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
    fake_open(&w->log);
    receiver_open(w, 64 << 10, 0);
    sender_open(w, 1);
}

static void world_close(struct world *w)
{
    corral_traj_sender_destroy(w->sender, 0);
    corral_traj_receiver_destroy(w->receiver);
    fake_close(&w->log);
    zmq_ctx_term(w->context);
    test_folder_remove(w->folder);
}

static bool take(struct world *w, uint32_t timeout_ms)
{
    struct corral_error err;
    enum corral_status status =
        corral_traj_receiver_next(w->receiver, timeout_ms, &w->held[w->held_count], &err);
    assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
    w->held_count += status == CORRAL_OK;
    assert_true(w->held_count < HELD_MAX);
    assert_true(corral_now_ns(&corral_clock_monotonic) < w->until);
    return status == CORRAL_OK;
}

static void send(struct world *w, uint32_t count)
{
    struct corral_error err;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes;
        void *memory, *record = test_numbered_record(0, 0, 0, w->sent + 1, 100, &bytes);
        while (corral_traj_sender_reserve(w->sender, 0, bytes, &memory, &err) != CORRAL_OK) {
            check_ok(corral_traj_sender_poll(w->sender, 1, &err));
            (void)take(w, 0);
        }
        memcpy(memory, record, bytes);
        check_ok(corral_traj_sender_commit(w->sender, 0, &w->sent, &err));
        free(record);
    }
}

static void poll_both(struct world *w)
{
    struct corral_error err;
    check_ok(corral_traj_sender_poll(w->sender, 1, &err));
    (void)take(w, 1);
}

static uint64_t acked(const struct world *w)
{
    struct corral_traj_sender_stats stats;
    corral_traj_sender_stats(w->sender, &stats);
    return stats.acked;
}

static struct corral_traj_receiver_stats stats_of(const struct world *w)
{
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w->receiver, &stats);
    return stats;
}

/* Answers a question of the sender after what was sent before, so what it knows then is all there is to know. */
static void settle(struct world *w)
{
    for (int i = 0; i < 20; i++) {
        poll_both(w);
    }
}

static void acknowledges_what_is_durable_finished_or_not(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    send(&w, 6);
    while (w.held_count < 6) {
        poll_both(&w);
    }
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    corral_traj_receiver_finish(w.receiver, w.held[1]);
    corral_traj_receiver_flush(w.receiver);
    settle(&w);
    assert_int_equal(acked(&w), test_rings() ? 2 : 0); /* a ring's memory comes back with what is finished */
    sync_to(&w.log, 4);
    while (acked(&w) < 4) {
        poll_both(&w);
    }
    settle(&w);
    assert_int_equal(acked(&w), 4);
    assert_true(w.log.finished[1] && w.log.finished[2] && !w.log.finished[3]);
    sync_to(&w.log, 6);
    while (acked(&w) < 6) {
        poll_both(&w);
    }
    /* Leases are counted in what is finished. */
    while (corral_traj_sender_unfinished(w.sender, 0) > 4) {
        poll_both(&w);
    }
    settle(&w);
    assert_int_equal(corral_traj_sender_unacked(w.sender, 0), 0);
    assert_int_equal(corral_traj_sender_unfinished(w.sender, 0), 4);
    for (uint32_t i = 2; i < 6; i++) {
        corral_traj_receiver_finish(w.receiver, w.held[i]);
    }
    corral_traj_receiver_flush(w.receiver);
    while (corral_traj_sender_unfinished(w.sender, 0) > 0) {
        poll_both(&w);
    }
    world_close(&w);
}

static void a_log_that_takes_no_more_holds_up_the_workers_and_loses_nothing(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    send(&w, 3);
    while (w.held_count < 3) {
        poll_both(&w);
    }
    assert_null(corral_traj_receiver_log_trouble(w.receiver));
    w.log.full = true;
    send(&w, 4);
    while (stats_of(&w).unlogged < 3) {
        poll_both(&w);
    }
    assert_int_equal(w.held_count, 3);
    assert_non_null(strstr(corral_traj_receiver_log_trouble(w.receiver), "disk is full"));
    w.log.full = false;
    while (w.held_count < 7) {
        poll_both(&w);
    }
    assert_null(corral_traj_receiver_log_trouble(w.receiver));
    w.log.broken = true;
    sync_to(&w.log, 7);
    settle(&w);
    assert_int_equal(acked(&w), 0);
    assert_non_null(strstr(corral_traj_receiver_log_trouble(w.receiver), "disk is broken"));
    for (uint32_t i = 0; i < 7; i++) {
        assert_int_equal(w.held[i]->sequence, i + 1);
    }
    world_close(&w);
}

/* A trainer dies with `finished` of `sent` records trained on, and its log as a crash leaves it. */
static void restart(struct world *w, uint64_t cursor, bool power_cut, uint64_t buffer)
{
    struct corral_error err;
    corral_traj_receiver_destroy(w->receiver);
    fake_reopen(&w->log, power_cut);
    receiver_open(w, buffer, 0);
    check_ok(corral_traj_receiver_restore(w->receiver, &(struct corral_traj_cursor){1, 1, cursor}, 1, &err));
}

static void hands_out_the_log_first_and_then_goes_on(void **state)
{
    (void)state;
    for (int power_cut = 0; power_cut < 2; power_cut++) {
        struct world w;
        world_open(&w);
        send(&w, 10);
        while (w.held_count < 10) {
            poll_both(&w);
        }
        for (uint32_t i = 0; i < 5; i++) {
            corral_traj_receiver_finish(w.receiver, w.held[i]);
        }
        sync_to(&w.log, 7);
        while (acked(&w) < 7) {
            poll_both(&w);
        }
        restart(&w, 3, power_cut != 0, 64 << 10); /* the last checkpoint knew of 3 */
        send(&w, 2);
        while (w.held_count < 9) {
            poll_both(&w);
        }
        for (uint32_t i = 0; i < 9; i++) {
            assert_int_equal(w.held[i]->sequence, i + 4);
            assert_true((uintptr_t)w.held[i]->data % 64 == 0);
        }
        assert_int_equal(stats_of(&w).replayed, power_cut ? 4 : 7);
        assert_int_equal(stats_of(&w).lost, 0);
        assert_true(w.log.finished[1] && w.log.finished[2] && w.log.finished[3] && !w.log.finished[4]);
        assert_int_equal(w.log.count, 12); /* nothing twice */
        sync_to(&w.log, 12);
        while (acked(&w) < 12) {
            poll_both(&w);
        }
        world_close(&w);
    }
}

static void an_epoch_that_died_is_replayed_before_its_successor(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    send(&w, 3);
    while (w.held_count < 3) {
        poll_both(&w);
    }
    sender_open(&w, 2);
    send(&w, 2);
    while (w.held_count < 5) {
        poll_both(&w);
    }
    restart(&w, 1, false, 64 << 10);
    sender_open(&w, 3); /* both died */
    send(&w, 1);
    while (w.held_count < 5) {
        poll_both(&w);
    }
    const uint32_t epochs[] = {1, 1, 2, 2, 3};
    const uint64_t sequences[] = {2, 3, 1, 2, 1};
    struct corral_traj_cursor cursor;
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(w.held[i]->epoch, epochs[i]);
        assert_int_equal(w.held[i]->sequence, sequences[i]);
    }
    assert_int_equal(corral_traj_receiver_cursors(w.receiver, w.held, 3, &cursor, 1), 1);
    assert_true(cursor.epoch == 2 && cursor.sequence == 1);
    world_close(&w);
}

static void a_replay_keeps_to_the_buffer_unless_the_caller_waits(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w);
    send(&w, 40);
    while (w.held_count < 40) {
        poll_both(&w);
    }
    corral_traj_sender_destroy(w.sender, 0);
    w.sender = NULL;
    restart(&w, 0, false, 4096);
    while (take(&w, 0)) {
        assert_true(stats_of(&w).held_bytes <= 4096);
    }
    uint32_t fits = w.held_count;
    assert_true(fits > 4 && fits < 20);
    assert_true(take(&w, 1000)); /* it needs one more than there is room for */
    assert_int_equal(w.held_count, fits + 1);
    assert_false(take(&w, 0));
    for (uint32_t i = 0; i < fits + 1; i++) {
        corral_traj_receiver_finish(w.receiver, w.held[i]);
    }
    assert_true(take(&w, 0));
    while (w.held_count < 40) {
        assert_true(take(&w, 1000));
    }
    for (uint32_t i = 0; i < 40; i++) {
        assert_true(i < fits + 1 || w.held[i]->sequence == i + 1);
    }
    /* More is held than the buffer: a worker is welcomed, and let in when there is room again. */
    sender_open(&w, 2);
    for (int i = 0; i < 10; i++) {
        check_ok(corral_traj_sender_poll(w.sender, 1, &err));
        assert_false(take(&w, 1));
    }
    for (uint32_t i = fits + 1; i < 40; i++) {
        corral_traj_receiver_finish(w.receiver, w.held[i]);
    }
    w.held_count = 0;
    send(&w, 1);
    while (w.held_count < 1) {
        poll_both(&w);
    }
    assert_int_equal(w.held[0]->epoch, 2);
    world_close(&w);
}

static void a_log_of_strangers_is_an_error(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    const struct corral_traj_item *item;
    world_open(&w);
    send(&w, 1);
    while (w.held_count < 1) {
        poll_both(&w);
    }
    corral_traj_receiver_destroy(w.receiver);
    fake_reopen(&w.log, false);
    receiver_open(&w, 64 << 10, 1); /* a job with one worker, whose index is 0 */
    check_status(corral_traj_receiver_next(w.receiver, 0, &item, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "does not expect"));
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(acknowledges_what_is_durable_finished_or_not),
        cmocka_unit_test(a_log_that_takes_no_more_holds_up_the_workers_and_loses_nothing),
        cmocka_unit_test(hands_out_the_log_first_and_then_goes_on),
        cmocka_unit_test(an_epoch_that_died_is_replayed_before_its_successor),
        cmocka_unit_test(a_replay_keeps_to_the_buffer_unless_the_caller_waits),
        cmocka_unit_test(a_log_of_strangers_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
