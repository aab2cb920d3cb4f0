/* A trainer that needs fragments of every worker for each step, and workers that send as fast as they are let: nobody's fragments may take
 * the room that another's next ones need. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#define RUN 11
#define TOKEN "a-token"
#define PATIENCE_NS (60 * CORRAL_NS_PER_S)
#define WORKERS 2
#define FRAGMENT_BYTES (30u << 10)
#define BUFFER (300u << 10)
#define QUEUE_MAX 64

struct world {
    char folder[TEST_PATH_MAX];
    char bind[TEST_PATH_MAX + 16];
    void *context;
    struct corral_traj_receiver *receiver;
    struct corral_traj_sender *sender[WORKERS];
    struct test_fragment next; /* what every worker sends, again and again */
    uint64_t fragment_bytes;
    const struct corral_traj_item *queue[WORKERS][QUEUE_MAX]; /* handed out and not finished, in order */
    uint32_t queued[WORKERS];
    uint32_t trained_epoch[WORKERS];
};

static enum corral_status receiver_create(struct world *w, uint64_t buffer, uint32_t workers,
                                          uint64_t fragment_max, struct corral_error *err)
{
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = w->bind,
                                            .buffer_bytes = buffer,
                                            .memory = &corral_allocator_heap,
                                            .transport = test_transport(),
                                            .token = TOKEN,
                                            .workers = workers,
                                            .record_bytes_max = fragment_max};
    return corral_traj_receiver_create(&w->receiver, &c, err);
}

static void world_open(struct world *w, bool size_known)
{
    struct corral_error err;
    memset(w, 0, sizeof *w);
    w->context = zmq_ctx_new();
    test_folder_make(w->folder);
    snprintf(w->bind, sizeof w->bind, "ipc://%s/traj", w->folder);
    test_fragment_sized(&w->next, FRAGMENT_BYTES);
    w->fragment_bytes = test_fragment_cost(&w->next.fragment);
    check_ok(receiver_create(w, BUFFER, WORKERS, size_known ? w->fragment_bytes : 0, &err));
}

static void sender_open(struct world *w, uint32_t worker, uint32_t epoch)
{
    struct corral_error err;
    struct corral_traj_sender_config c = {.zmq_context = w->context,
                                          .run = RUN,
                                          .worker = worker,
                                          .epoch = epoch,
                                          .window_bytes = 16 << 20,
                                          .memory = &corral_allocator_heap,
                                          .transport = test_transport(),
                                          .token = TOKEN};
    corral_traj_sender_destroy(w->sender[worker], 0);
    check_ok(corral_traj_sender_create(&w->sender[worker], &c, &err));
    check_ok(
        corral_traj_sender_connect(w->sender[worker], 0, corral_traj_receiver_endpoint(w->receiver), &err));
}

static void world_close(struct world *w)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        corral_traj_sender_destroy(w->sender[i], 0);
    }
    corral_traj_receiver_destroy(w->receiver);
    zmq_ctx_term(w->context);
    test_fragment_free(&w->next);
    test_folder_remove(w->folder);
}

static uint64_t deadline(void)
{
    return corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
}

static bool expired(uint64_t at)
{
    return corral_now_ns(&corral_clock_monotonic) > at;
}

static void send_what_is_let_in(struct world *w, uint32_t worker)
{
    struct corral_error err;
    enum corral_status status = CORRAL_OK;
    check_ok(corral_traj_sender_poll(w->sender[worker], 1, &err));
    while (status == CORRAL_OK) {
        status = corral_traj_sender_send_fragment(w->sender[worker], 0, &w->next.fragment, &err);
    }
    check_status(status, CORRAL_AGAIN);
}

/* Takes in all there is; no worker ever has more than its share. */
static void take_in(struct world *w)
{
    const struct corral_traj_item *f;
    struct corral_error err;
    while (corral_traj_receiver_next(w->receiver, 1, &f, &err) == CORRAL_OK) {
        assert_true(f->worker < WORKERS && w->queued[f->worker] < QUEUE_MAX);
        w->queue[f->worker][w->queued[f->worker]++] = f;
        assert_true(w->queued[f->worker] * w->fragment_bytes <= BUFFER / WORKERS);
    }
}

static void finish_oldest(struct world *w, uint32_t worker)
{
    assert_true(w->queue[worker][0]->epoch >= w->trained_epoch[worker]);
    w->trained_epoch[worker] = w->queue[worker][0]->epoch;
    corral_traj_receiver_finish(w->receiver, w->queue[worker][0]);
    w->queued[worker]--;
    memmove(&w->queue[worker][0], &w->queue[worker][1], w->queued[worker] * sizeof w->queue[worker][0]);
}

static void fill_share(struct world *w, uint32_t worker)
{
    uint64_t until = deadline();
    while (w->queued[worker] < BUFFER / WORKERS / w->fragment_bytes) {
        send_what_is_let_in(w, worker);
        take_in(w);
        assert_false(expired(until));
    }
}

/* Steps of a trainer that takes `quota` fragments of each worker for each. */
static void train(struct world *w, uint32_t steps, uint32_t quota)
{
    uint64_t until = deadline();
    for (uint32_t step = 0; step < steps;) {
        for (uint32_t i = 0; i < WORKERS; i++) {
            send_what_is_let_in(w, i);
        }
        take_in(w);
        assert_false(expired(until));
        bool ready = true;
        for (uint32_t i = 0; i < WORKERS; i++) {
            ready &= w->queued[i] >= quota;
        }
        for (uint32_t i = 0; i < WORKERS * quota && ready; i++) {
            finish_oldest(w, i % WORKERS);
        }
        step += ready;
    }
}

static void an_eager_worker_leaves_room_for_the_others(void **state)
{
    (void)state;
    for (int known = 0; known < 2; known++) {
        for (uint32_t quota = 1; quota <= 4; quota++) {
            struct world w;
            world_open(&w, known != 0);
            sender_open(&w, 0, 1);
            fill_share(&w, 0); /* all before the other one starts */
            sender_open(&w, 1, 1);
            train(&w, 20, quota);
            world_close(&w);
        }
    }
}

static void what_a_dead_epoch_left_counts_for_its_worker_and_is_trained_first(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, true);
    uint32_t share = (uint32_t)(BUFFER / WORKERS / w.fragment_bytes);
    sender_open(&w, 0, 1);
    sender_open(&w, 1, 1);
    for (uint32_t epoch = 2; epoch <= 5; epoch++) {
        fill_share(&w, 0);
        sender_open(&w, 0, epoch); /* killed and started again: nothing of the old one is finished */
        send_what_is_let_in(&w, 0);
        take_in(&w);
        assert_int_equal(w.queued[0], share);
        assert_int_equal(w.queue[0][0]->epoch, epoch - 1);
        train(&w, share + 2, 1 + epoch % 2);
        assert_int_equal(w.trained_epoch[0], epoch);
    }
    world_close(&w);
}

static void acknowledgements_do_not_wait_for_what_else_is_held(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_traj_sender_stats stats;
    world_open(&w, true);
    sender_open(&w, 0, 1);
    fill_share(&w, 0);
    uint64_t until = deadline();
    for (uint32_t i = 1; w.queued[0] > 0; i++) {
        finish_oldest(&w, 0);
        corral_traj_receiver_flush(w.receiver); /* and the receiver is not called again */
        do {
            check_ok(corral_traj_sender_poll(w.sender[0], 10, &err));
            corral_traj_sender_stats(w.sender[0], &stats);
            assert_false(expired(until));
        } while (stats.acked < i);
        assert_int_equal(stats.acked, i);
        assert_true(stats.credit_bytes >= i * w.fragment_bytes); /* and so does the credit */
    }
    world_close(&w);
}

/* Many small ones: below the size at which credit is told at once. */
static void gathered_acknowledgements_go_with_the_next_flush(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_traj_sender_stats stats = {.acked = 0};
    world_open(&w, true);
    test_fragment_free(&w.next);
    test_fragment_sized(&w.next, 4 << 10);
    w.fragment_bytes = test_fragment_cost(&w.next.fragment);
    sender_open(&w, 0, 1);
    fill_share(&w, 0);
    finish_oldest(&w, 0);
    corral_traj_receiver_flush(w.receiver);
    corral_traj_receiver_flush(w.receiver); /* nothing is due */
    for (uint64_t until = deadline(); stats.acked < 1;) {
        check_ok(corral_traj_sender_poll(w.sender[0], 10, &err));
        corral_traj_sender_stats(w.sender[0], &stats);
        assert_false(expired(until));
    }
    assert_int_equal(stats.acked, 1);
    world_close(&w);
}

static void refuses_a_buffer_without_room_for_a_fragment_of_each_worker(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, true);
    corral_traj_receiver_destroy(w.receiver);
    w.receiver = NULL;
    check_status(receiver_create(&w, 399999, 4, 100000, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "at least 400000 bytes"));
    check_status(receiver_create(&w, 1 << 20, CORRAL_TRAJ_WORKERS_MAX + 1, 0, &err), CORRAL_INVALID);
    check_status(receiver_create(&w, UINT64_MAX, 4, UINT64_MAX / 2, &err), CORRAL_INVALID);
    assert_null(w.receiver);
    check_ok(receiver_create(&w, 400000, 4, 100000, &err));
    world_close(&w);
}

static void refuses_workers_and_fragments_it_has_no_share_for(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_traj_sender *stranger = NULL;
    world_open(&w, true);
    struct corral_traj_sender_config c = {.zmq_context = w.context,
                                          .run = RUN,
                                          .worker = WORKERS,
                                          .epoch = 1,
                                          .window_bytes = 1 << 20,
                                          .memory = &corral_allocator_heap,
                                          .transport = test_transport(),
                                          .token = TOKEN};
    check_ok(corral_traj_sender_create(&stranger, &c, &err));
    check_ok(corral_traj_sender_connect(stranger, 0, corral_traj_receiver_endpoint(w.receiver), &err));
    uint64_t until = deadline();
    while (corral_traj_sender_poll(stranger, 1, &err) == CORRAL_OK) {
        take_in(&w);
        assert_false(expired(until));
    }
    assert_non_null(strstr(err.text, "out of range"));
    corral_traj_sender_destroy(stranger, 0);
    sender_open(&w, 0, 1);
    fill_share(&w, 0);
    struct test_fragment larger;
    test_fragment_sized(&larger, 2 * FRAGMENT_BYTES);
    check_status(corral_traj_sender_send_fragment(w.sender[0], 0, &larger.fragment, &err), CORRAL_INVALID);
    test_fragment_free(&larger);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_eager_worker_leaves_room_for_the_others),
        cmocka_unit_test(what_a_dead_epoch_left_counts_for_its_worker_and_is_trained_first),
        cmocka_unit_test(acknowledgements_do_not_wait_for_what_else_is_held),
        cmocka_unit_test(gathered_acknowledgements_go_with_the_next_flush),
        cmocka_unit_test(refuses_a_buffer_without_room_for_a_fragment_of_each_worker),
        cmocka_unit_test(refuses_workers_and_fragments_it_has_no_share_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
