/* The lanes of device memory between two processes, on the fake driver and the fake NCCL, and what happens when one of them dies, hangs or fails. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/lanes/nccl/test_pair.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define S CORRAL_NS_PER_S

static struct pair_result receiver, sender;

static struct pair_options pair(const char *lane)
{
    return (struct pair_options){.lane = lane,
                                 .options = {.open_timeout_ns = 10 * S},
                                 .rows = 300,
                                 .columns = 4001,
                                 .first = 1000,
                                 .count = 2003,
                                 .bucket_bytes = 64 << 10,
                                 .deadline_ns = 30 * S,
                                 .pushes = 3,
                                 .source = PAIR_DEVICE,
                                 .destination = PAIR_DEVICE};
}

static void run(const struct pair_options *o)
{
    assert_true(pair_run(o, &receiver, &sender));
}

static void must_work(const struct pair_options *o)
{
    run(o);
    if (receiver.status != CORRAL_OK || sender.status != CORRAL_OK) {
        fail_msg("%s %d->%d: receiver: %s, sender: %s", o->lane, (int)o->source, (int)o->destination,
                 receiver.text, sender.text);
    }
    assert_int_equal(receiver.pushed, o->pushes);
    assert_int_equal(sender.pushed, o->pushes);
    assert_int_equal(receiver.tainted, 0);
    assert_int_equal(receiver.abandoned + sender.abandoned, 0);
}

static void every_memory_to_every_memory(const char *lane)
{
    for (int from = PAIR_HOST; from <= PAIR_MANAGED; from++) {
        for (int to = PAIR_HOST; to <= PAIR_MANAGED; to++) {
            struct pair_options o = pair(lane);
            o.source = (enum pair_memory)from;
            o.destination = (enum pair_memory)to;
            must_work(&o);
            o.first = 0;
            o.count = o.columns; /* one run: nothing is packed */
            must_work(&o);
        }
    }
}

static void cuda_ipc_moves_every_memory_to_every_memory(void **state)
{
    (void)state;
    every_memory_to_every_memory("cuda_ipc");
}

static void nccl_moves_every_memory_to_every_memory(void **state)
{
    (void)state;
    every_memory_to_every_memory("nccl");
}

static void buckets_may_be_sent_again(void **state)
{
    (void)state;
    struct pair_options o = pair("cuda_ipc");
    o.resend = 5;
    o.options.window = 1;
    must_work(&o);
    o.destination = PAIR_MANAGED; /* staged */
    must_work(&o);
    o.lane = "nccl";
    must_work(&o);
}

/* A direct copy of the dead may still be running on the device when its socket is closed: its pid is named. */
static void a_cuda_ipc_sender_that_is_killed_is_noticed(void **state)
{
    (void)state;
    struct pair_options o = pair("cuda_ipc");
    o.sender_dies_after = 4;
    run(&o);
    assert_false(sender.reported);
    assert_int_equal(receiver.status, CORRAL_PEER);
    assert_int_equal(receiver.pushed, o.pushes - 1);
    assert_true(receiver.is_peer);
    o.destination = PAIR_MANAGED; /* staging is the lane's own business */
    run(&o);
    assert_int_equal(receiver.status, CORRAL_PEER);
    assert_int_equal(receiver.tainted, 0);
}

static void a_stopped_cuda_ipc_sender_is_named(void **state)
{
    (void)state;
    struct pair_options o = pair("cuda_ipc");
    o.sender_stops_after = 4;
    o.deadline_ns = S;
    run(&o);
    assert_int_equal(receiver.status, CORRAL_TIMEOUT);
    assert_true(receiver.is_peer);
    o.destination = PAIR_MANAGED;
    run(&o);
    assert_int_equal(receiver.status, CORRAL_TIMEOUT);
    assert_int_equal(receiver.tainted, 0);
}

static void a_receiver_that_is_killed_is_noticed(void **state)
{
    (void)state;
    static const char *const lanes[] = {"cuda_ipc", "nccl"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        struct pair_options o = pair(lanes[i]);
        o.destination = PAIR_MANAGED;
        o.receiver_dies_after = 4;
        run(&o);
        assert_false(receiver.reported);
        assert_true(sender.reported);
        assert_int_equal(sender.status, CORRAL_PEER);
        assert_int_equal(sender.abandoned, 0);
    }
}

/* ---- NCCL itself ---- */

static struct pair_options faulty(const char *at_sender, const char *at_receiver)
{
    struct pair_options o = pair("nccl");
    o.variable = "CORRAL_FAKENCCL";
    o.sender_value = at_sender;
    o.receiver_value = at_receiver;
    o.deadline_ns = 2 * S;
    o.options.open_timeout_ns = S;
    return o;
}

static void an_nccl_sender_that_is_killed_is_noticed(void **state)
{
    (void)state;
    struct pair_options o = faulty("die:5", NULL);
    run(&o);
    assert_false(sender.reported);
    assert_int_equal(receiver.status, CORRAL_PEER);
    assert_int_equal(receiver.tainted, 0); /* the communicator is aborted: nothing writes any more */
    assert_int_equal(receiver.abandoned, 0);
}

static void an_error_of_nccl_is_an_error(void **state)
{
    (void)state;
    struct pair_options o = faulty("error:5", NULL);
    run(&o);
    assert_int_equal(sender.status, CORRAL_PEER);
    assert_non_null(strstr(sender.text, "NCCL"));
    assert_int_not_equal(receiver.status, CORRAL_OK);
    assert_int_equal(receiver.pushed, 0);
}

static void a_transfer_that_never_ends_costs_the_callers_deadline_and_is_aborted(void **state)
{
    (void)state;
    struct pair_options o = faulty("stall:5", NULL);
    run(&o);
    assert_int_equal(receiver.status == CORRAL_TIMEOUT || sender.status == CORRAL_TIMEOUT, 1);
    assert_int_not_equal(receiver.status, CORRAL_OK);
    assert_int_equal(sender.abandoned + receiver.abandoned, 0);
    assert_int_equal(receiver.tainted, 0);
}

static void a_communicator_that_is_never_made_is_a_timeout(void **state)
{
    (void)state;
    struct pair_options o = faulty("init-stall", NULL);
    run(&o);
    assert_int_equal(sender.status == CORRAL_TIMEOUT || receiver.status == CORRAL_TIMEOUT, 1);
    assert_int_not_equal(receiver.status, CORRAL_OK);
    assert_int_equal(sender.abandoned + receiver.abandoned, 0);
}

static void hanging_calls_cost_their_thread_and_nothing_else(void **state)
{
    (void)state;
    static const char *const hangs[] = {"init-hang", "group-hang:3", "stall:3,abort-hang"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(hangs); i++) {
        struct pair_options o = faulty(hangs[i], NULL);
        o.deadline_ns = S;
        run(&o);
        assert_true(sender.reported);
        assert_int_not_equal(sender.status, CORRAL_OK);
        assert_int_equal(sender.abandoned, 1);
        assert_int_not_equal(receiver.status, CORRAL_OK);
        assert_int_equal(receiver.abandoned, 0);
    }
    struct pair_options o = faulty(NULL, "id-hang");
    run(&o);
    assert_int_equal(receiver.status, CORRAL_TIMEOUT);
    assert_int_equal(receiver.abandoned, 1);
}

/* The destination itself was given to NCCL, and nobody can say that it is no longer written. */
static void memory_under_a_hanging_receive_is_called_unsafe(void **state)
{
    (void)state;
    struct pair_options o = faulty(NULL, "stall:3,abort-hang");
    o.first = 0;
    o.count = o.columns;
    o.deadline_ns = S;
    run(&o);
    assert_int_not_equal(receiver.status, CORRAL_OK); /* its own deadline, or the sender's */
    assert_int_equal(receiver.abandoned, 1);
    assert_int_not_equal(receiver.tainted, 0);
    assert_false(receiver.is_peer); /* it is the receiver's own thread */
}

int main(void)
{
    char folder[] = "/tmp/corral-pair-XXXXXX", path[64];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuda_ipc_moves_every_memory_to_every_memory),
        cmocka_unit_test(nccl_moves_every_memory_to_every_memory),
        cmocka_unit_test(buckets_may_be_sent_again),
        cmocka_unit_test(a_cuda_ipc_sender_that_is_killed_is_noticed),
        cmocka_unit_test(a_stopped_cuda_ipc_sender_is_named),
        cmocka_unit_test(a_receiver_that_is_killed_is_noticed),
        cmocka_unit_test(an_nccl_sender_that_is_killed_is_noticed),
        cmocka_unit_test(an_error_of_nccl_is_an_error),
        cmocka_unit_test(a_transfer_that_never_ends_costs_the_callers_deadline_and_is_aborted),
        cmocka_unit_test(a_communicator_that_is_never_made_is_a_timeout),
        cmocka_unit_test(hanging_calls_cost_their_thread_and_nothing_else),
        cmocka_unit_test(memory_under_a_hanging_receive_is_called_unsafe),
    };
    if (mkdtemp(folder) == NULL) {
        return 1;
    }
    snprintf(path, sizeof path, "%s/state", folder);
    setenv("CORRAL_FAKECUDA_STATE", path, 1);
    struct pair_options probe = pair("nccl");
    int failed = CORRAL_TEST_SKIPPED;
    if (pair_run(&probe, &receiver, &sender) && receiver.status == CORRAL_UNSUPPORTED) {
        printf("skipped: %s\n", receiver.text);
    } else {
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    }
    unlink(path);
    rmdir(folder);
    return failed;
}
