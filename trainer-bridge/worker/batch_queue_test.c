#include "tests/check.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "trainer-bridge/worker/batch_queue.h"
#include "transport/trajectory/sender.h"
#include <corral/trajectory.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 77
#define TOKEN "t"
#define WORKERS_MAX 4
#define STEPS 2
#define PATIENCE_NS (30 * CORRAL_NS_PER_S)

/* One trainer rank's real receiver and the rollout workers' real senders, over ipc, in one thread. */
struct world {
    char folder[64];
    void *context;
    struct corral_traj_receiver *receiver;
    struct corral_traj_sender *sender[WORKERS_MAX];
    struct corral_batch_queue *queue;
    struct corral_fragment_share share;
};

static void world_open(struct world *w, struct corral_fragment_share share, uint32_t rank,
                       uint32_t max_versions)
{
    struct corral_error err = {0};
    *w = (struct world){.share = share, .context = zmq_ctx_new()};
    snprintf(w->folder, sizeof w->folder, "/tmp/corral-batch-XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    char bind[96];
    snprintf(bind, sizeof bind, "ipc://%s/traj", w->folder);
    struct corral_traj_receiver_config receiver = {.zmq_context = w->context,
                                                   .run = RUN,
                                                   .bind = bind,
                                                   .buffer_bytes = 8u << 20,
                                                   .memory = &corral_allocator_heap,
                                                   .token = TOKEN};
    check_ok(corral_traj_receiver_create(&w->receiver, &receiver, &err));
    for (uint32_t i = 0; i < WORKERS_MAX; i++) {
        struct corral_traj_sender_config sender = {.zmq_context = w->context,
                                                   .run = RUN,
                                                   .worker = i,
                                                   .epoch = 1,
                                                   .window_bytes = 8u << 20,
                                                   .memory = &corral_allocator_heap,
                                                   .token = TOKEN};
        check_ok(corral_traj_sender_create(&w->sender[i], &sender, &err));
        check_ok(
            corral_traj_sender_connect(w->sender[i], 0, corral_traj_receiver_endpoint(w->receiver), &err));
    }
    check_ok(corral_batch_queue_create(&w->queue, &w->share, rank, max_versions, &err));
}

static void world_close(struct world *w)
{
    for (uint32_t i = 0; i < WORKERS_MAX; i++) {
        corral_traj_sender_destroy(w->sender[i], 0);
    }
    corral_batch_queue_destroy(w->queue);
    corral_traj_receiver_destroy(w->receiver);
    zmq_ctx_term(w->context);
    (void)corral_remove_tree(w->folder, NULL);
}

static uint64_t deadline(void)
{
    return corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
}

/* One fragment through the wire: what the receiver hands out. Its steps were chosen by `first` and `first + 1`; `tag` is its reward. */
static const struct corral_traj_item *deliver(struct world *w, uint32_t worker, uint64_t first, float tag)
{
    struct corral_error err = {0};
    float obs[STEPS] = {0}, log_prob[STEPS] = {0}, reward[STEPS] = {tag, tag}, last_obs[1] = {0};
    int32_t action[STEPS] = {0};
    uint8_t flag[STEPS] = {0}, valid[STEPS] = {1, 1};
    uint64_t version[STEPS] = {first + 1, first}; /* the oldest need not be the first in memory */
    struct corral_fragment f = {.steps = STEPS,
                                .rows = 1,
                                .obs_dim = 1,
                                .action_components = 1,
                                .obs = obs,
                                .action = action,
                                .log_prob = log_prob,
                                .reward = reward,
                                .terminated = flag,
                                .truncated = flag,
                                .valid = valid,
                                .version = version,
                                .last_obs = last_obs};
    const struct corral_traj_item *got = NULL;
    bool sent = false;
    for (uint64_t until = deadline(); got == NULL;) {
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
        if (!sent) {
            enum corral_status status = corral_traj_sender_send_fragment(w->sender[worker], 0, &f, &err);
            assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
            sent = status == CORRAL_OK;
        }
        enum corral_status status = corral_traj_receiver_next(w->receiver, sent ? 10 : 1, &got, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
        for (uint32_t i = 0; i < WORKERS_MAX && !sent; i++) {
            check_ok(corral_traj_sender_poll(w->sender[i], i == worker,
                                             &err)); /* the others too: their idle credit is called back */
        }
    }
    assert_int_equal(got->worker, worker);
    return got;
}

static void add(struct world *w, const struct corral_traj_item *f, uint64_t version)
{
    struct corral_error err = {0};
    check_ok(corral_batch_queue_add(w->queue, f, version, &err));
}

static void expect_acked(struct world *w, uint32_t worker, uint64_t count)
{
    struct corral_error err = {0};
    const struct corral_traj_item *none;
    struct corral_traj_sender_stats stats = {0};
    for (uint64_t until = deadline(); stats.acked < count;) {
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
        check_status(corral_traj_receiver_next(w->receiver, 0, &none, &err), CORRAL_AGAIN);
        check_ok(corral_traj_sender_poll(w->sender[worker], 5, &err));
        corral_traj_sender_stats(w->sender[worker], &stats);
    }
    assert_int_equal(stats.acked, count);
}

static uint32_t take(struct world *w, uint64_t version, const struct corral_fragment *const **batch,
                     struct corral_batch_staleness *staleness)
{
    assert_true(corral_batch_queue_ready(w->queue));
    return corral_batch_queue_take(w->queue, version, batch, staleness);
}

static void the_batch_does_not_depend_on_the_order_of_arrival(void **state)
{
    (void)state;
    struct world w;
    struct corral_rng rng;
    corral_rng_seed(&rng, 4);
    world_open(&w, (struct corral_fragment_share){.workers = 3, .trainers = 1, .per_step = 2}, 0, 100);
    for (uint32_t round = 0; round < 40; round++) {
        uint32_t left[3] = {2, 2, 2};
        for (uint32_t i = 0; i < 6; i++) {
            assert_false(corral_batch_queue_ready(w.queue));
            uint32_t worker = (uint32_t)corral_rng_below(&rng, 3);
            while (left[worker] == 0) {
                worker = (worker + 1) % 3;
            }
            add(&w, deliver(&w, worker, round + 1, (float)(worker * 10 + 2 - left[worker])), round + 1);
            left[worker]--;
        }
        const struct corral_fragment *const *batch = NULL;
        struct corral_batch_staleness staleness;
        assert_int_equal(take(&w, round + 1, &batch, &staleness), 6);
        for (uint32_t i = 0; i < 6; i++) {
            assert_int_equal(batch[i]->worker, i / 2);
            assert_true(batch[i]->reward[0] == (float)(i / 2 * 10 + i % 2));
        }
        corral_batch_queue_finish(w.queue, w.receiver);
        assert_false(corral_batch_queue_ready(w.queue));
    }
    for (uint32_t worker = 0; worker < 3; worker++) {
        expect_acked(&w, worker, 80);
    }
    assert_int_equal(corral_batch_queue_dropped(w.queue), 0);
    world_close(&w);
}

static void takes_its_quota_and_keeps_the_rest_for_later_steps(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct corral_fragment_share){.workers = 2, .trainers = 1, .per_step = 2}, 0, 100);
    for (uint32_t i = 0; i < 5; i++) {
        add(&w, deliver(&w, 0, 1, (float)i), 1);
    }
    assert_false(corral_batch_queue_ready(w.queue));
    assert_int_equal(corral_batch_queue_waiting_for(w.queue), 1);
    for (uint32_t step = 0; step < 2; step++) {
        const struct corral_fragment *const *batch = NULL;
        struct corral_batch_staleness staleness;
        add(&w, deliver(&w, 1, 1, 100), 1);
        assert_false(corral_batch_queue_ready(w.queue));
        add(&w, deliver(&w, 1, 1, 101), 1);
        assert_int_equal(corral_batch_queue_waiting_for(w.queue), UINT32_MAX);
        assert_int_equal(take(&w, 1, &batch, &staleness), 4);
        assert_true(batch[0]->reward[0] == (float)(2 * step) && batch[1]->reward[0] == (float)(2 * step + 1));
        assert_true(batch[2]->reward[0] == 100 && batch[3]->reward[0] == 101);
        corral_batch_queue_finish(w.queue, w.receiver);
        expect_acked(&w, 0, 2 * (step + 1)); /* and not a fragment more */
    }
    assert_int_equal(corral_batch_queue_waiting_for(w.queue), 1);
    world_close(&w);
}

static void a_rank_waits_for_its_share_only(void **state)
{
    (void)state;
    struct world w;
    const struct corral_fragment *const *batch = NULL;
    struct corral_batch_staleness staleness;
    world_open(&w, (struct corral_fragment_share){.workers = 3, .trainers = 2, .per_step = 2}, 1, 100);
    for (uint32_t worker = 0; worker < 3; worker++) {
        assert_false(corral_batch_queue_ready(w.queue));
        assert_int_equal(corral_batch_queue_waiting_for(w.queue), worker);
        add(&w, deliver(&w, worker, 1, 0), 1);
    }
    assert_int_equal(take(&w, 1, &batch, &staleness), 3);
    world_close(&w);
}

/* What a trainer does once its cursors are saved. */
static void settle(struct world *w, uint32_t expected)
{
    const struct corral_traj_item *const *drops;
    assert_int_equal(corral_batch_queue_drops(w->queue, &drops), expected);
    corral_batch_queue_finish_drops(w->queue, w->receiver);
    assert_int_equal(corral_batch_queue_drops(w->queue, &drops), 0);
}

static void drops_what_comes_too_stale_and_counts_it(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct corral_fragment_share){.workers = 1, .trainers = 1, .per_step = 1}, 0, 1);
    add(&w, deliver(&w, 0, 3, 1), 5); /* its older step is two versions behind */
    assert_false(corral_batch_queue_ready(w.queue));
    assert_int_equal(corral_batch_queue_dropped(w.queue), 1);
    settle(&w, 1);
    expect_acked(&w, 0, 1);
    add(&w, deliver(&w, 0, 4, 2), 5);
    assert_true(corral_batch_queue_ready(w.queue));
    assert_int_equal(corral_batch_queue_dropped(w.queue), 1);
    world_close(&w);
}

static void versions_that_were_numbered_on_keep_their_age(void **state)
{
    (void)state;
    struct world w;
    struct corral_batch_staleness staleness = {.max = 99};
    const struct corral_fragment *const *batch = NULL;
    world_open(&w, (struct corral_fragment_share){.workers = 1, .trainers = 1, .per_step = 1}, 0, 2);
    corral_batch_queue_rebase(w.queue, 10, 4097);   /* a resume from version 10 … */
    corral_batch_queue_rebase(w.queue, 4100, 8193); /* … and another from 4100, three versions later */
    add(&w, deliver(&w, 0, 9, 9), 8193);            /* four before 13, which is what 4100 and 8193 continue */
    assert_int_equal(corral_batch_queue_dropped(w.queue), 1);
    settle(&w, 1);
    add(&w, deliver(&w, 0, 12, 12), 8193); /* of a step that was lost: one before 13 */
    assert_int_equal(take(&w, 8194, &batch, &staleness), 1);
    assert_int_equal(staleness.max, 2);
    corral_batch_queue_finish(w.queue, w.receiver);
    add(&w, deliver(&w, 0, 4101, 4101), 8194);
    assert_int_equal(take(&w, 8194, &batch, &staleness), 1);
    assert_int_equal(staleness.max, 0);
    corral_batch_queue_finish(w.queue, w.receiver);
    add(&w, deliver(&w, 0, 8193, 8193), 8195);
    assert_int_equal(take(&w, 8195, &batch, &staleness), 1);
    assert_int_equal(staleness.max, 2);
    corral_batch_queue_finish(w.queue, w.receiver);
    world_close(&w);
}

static void drops_what_became_too_stale_while_it_waited(void **state)
{
    (void)state;
    struct world w;
    struct corral_batch_staleness staleness = {.max = 99};
    const struct corral_fragment *const *batch = NULL;
    world_open(&w, (struct corral_fragment_share){.workers = 2, .trainers = 1, .per_step = 1}, 0, 2);
    add(&w, deliver(&w, 0, 1, 1), 1);
    add(&w, deliver(&w, 0, 2, 2), 2);
    add(&w, deliver(&w, 1, 3, 3), 3);
    assert_int_equal(take(&w, 5, &batch, &staleness), 0); /* worker 0: both gone */
    assert_int_equal(corral_batch_queue_dropped(w.queue), 2);
    assert_false(corral_batch_queue_ready(w.queue));
    assert_int_equal(corral_batch_queue_waiting_for(w.queue), 0);
    settle(&w, 2);
    expect_acked(&w, 0, 2);
    add(&w, deliver(&w, 0, 4, 4), 5);
    assert_int_equal(take(&w, 5, &batch, &staleness), 2);
    assert_true(batch[0]->reward[0] == 4 && batch[1]->reward[0] == 3);
    assert_true(staleness.mean == 1.5);
    assert_int_equal(staleness.max, 2);
    corral_batch_queue_finish(w.queue, w.receiver);
    expect_acked(&w, 0, 3);
    expect_acked(&w, 1, 1);
    world_close(&w);
}

static void a_stale_head_with_a_fresh_one_behind_it_costs_no_step(void **state)
{
    (void)state;
    struct world w;
    struct corral_batch_staleness staleness;
    const struct corral_fragment *const *batch = NULL;
    world_open(&w, (struct corral_fragment_share){.workers = 1, .trainers = 1, .per_step = 1}, 0, 0);
    add(&w, deliver(&w, 0, 1, 1), 1);
    add(&w, deliver(&w, 0, 2, 2), 1);
    assert_int_equal(take(&w, 2, &batch, &staleness), 1);
    assert_true(batch[0]->reward[0] == 2);
    assert_int_equal(staleness.max, 0);
    assert_int_equal(corral_batch_queue_dropped(w.queue), 1);
    world_close(&w);
}

static void refuses_a_worker_it_does_not_expect(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err = {0};
    world_open(&w, (struct corral_fragment_share){.workers = 2, .trainers = 2, .per_step = 1}, 0, 1);
    const struct corral_traj_item *other_rank = deliver(&w, 1, 1, 0); /* worker 1's go to rank 1 */
    check_status(corral_batch_queue_add(w.queue, other_rank, 1, &err), CORRAL_PROTOCOL);
    const struct corral_traj_item *unknown = deliver(&w, 3, 1, 0);
    check_status(corral_batch_queue_add(w.queue, unknown, 1, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "worker 3"));
    assert_false(corral_batch_queue_ready(w.queue));
    world_close(&w);
}

/* An episode is a fine record, and no fragment. */
static void drops_a_record_without_a_fragment_and_counts_it(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err = {0};
    world_open(&w, (struct corral_fragment_share){.workers = 1, .trainers = 1, .per_step = 1}, 0, 100);
    add(&w, deliver(&w, 0, 1, 1), 1);
    const struct corral_traj_item *item = NULL;
    const float reward = 1;
    struct corral_traj_tensor tensor = {
        .name = "reward", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {1}, .data = &reward};
    struct corral_traj_record record = {
        .size = sizeof record, .kind = CORRAL_TRAJ_EPISODE, .tensors = &tensor, .tensor_count = 1};
    uint64_t bytes;
    void *memory = NULL;
    check_ok(corral_traj_record_bytes(&record, &bytes, &err));
    for (uint64_t until = deadline(); !memory;) {
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
        check_ok(corral_traj_sender_poll(w.sender[0], 1, &err));
        check_status(corral_traj_receiver_next(w.receiver, 0, &item, &err), CORRAL_AGAIN);
        enum corral_status status = corral_traj_sender_reserve(w.sender[0], 0, bytes, &memory, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
    }
    check_ok(corral_traj_record_encode(&record, memory, bytes, &err));
    check_ok(corral_traj_sender_commit(w.sender[0], 0, NULL, &err));
    check_ok(corral_traj_sender_flush(w.sender[0], &err));
    check_ok(corral_traj_receiver_next(w.receiver, 10000, &item, &err));
    add(&w, item, 1);
    assert_int_equal(corral_batch_queue_malformed(w.queue), 1);
    assert_int_equal(corral_batch_queue_dropped(w.queue), 0);
    const struct corral_fragment *const *batch = NULL;
    struct corral_batch_staleness staleness;
    assert_int_equal(take(&w, 1, &batch, &staleness), 1);
    settle(&w, 1); /* before the one in front of it is finished */
    corral_batch_queue_finish(w.queue, w.receiver);
    expect_acked(&w, 0, 2);
    world_close(&w);
}

static void a_step_may_take_hundreds_of_fragments_of_one_worker(void **state)
{
    (void)state;
    struct world w;
    struct corral_batch_staleness staleness;
    const struct corral_fragment *const *batch = NULL;
    world_open(&w, (struct corral_fragment_share){.workers = 1, .trainers = 1, .per_step = 600}, 0, 1);
    for (uint32_t i = 0; i < 700; i++) {
        add(&w, deliver(&w, 0, 1, (float)i), 1);
    }
    assert_int_equal(take(&w, 1, &batch, &staleness), 600);
    for (uint32_t i = 0; i < 600; i++) {
        assert_true(batch[i]->reward[0] == (float)i);
    }
    corral_batch_queue_finish(w.queue, w.receiver);
    expect_acked(&w, 0, 600);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_batch_does_not_depend_on_the_order_of_arrival),
        cmocka_unit_test(takes_its_quota_and_keeps_the_rest_for_later_steps),
        cmocka_unit_test(a_rank_waits_for_its_share_only),
        cmocka_unit_test(drops_what_comes_too_stale_and_counts_it),
        cmocka_unit_test(versions_that_were_numbered_on_keep_their_age),
        cmocka_unit_test(drops_what_became_too_stale_while_it_waited),
        cmocka_unit_test(a_stale_head_with_a_fresh_one_behind_it_costs_no_step),
        cmocka_unit_test(refuses_a_worker_it_does_not_expect),
        cmocka_unit_test(drops_a_record_without_a_fragment_and_counts_it),
        cmocka_unit_test(a_step_may_take_hundreds_of_fragments_of_one_worker),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
