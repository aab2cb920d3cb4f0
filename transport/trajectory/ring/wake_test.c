#include "transport/trajectory/ring/test_ring.h"

#include "base/clock.h"
#include "base/hash.h"
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define BYTES CORRAL_RING_BYTES_MIN
#define MOST 300u

/* How often a bell was rung since it was read last: each ring adds one. */
static uint64_t rings(int bell)
{
    uint64_t count = 0;
    return read(bell, &count, sizeof count) == (ssize_t)sizeof count ? count : 0;
}

/* As on a system without membarrier. */
static void make_fenced(struct test_pair *p)
{
    struct ring_control *c = p->producer->control;
    c->flags &= ~RING_FLAG_LIGHT;
    c->check = corral_digest_of(c, offsetof(struct ring_control, check)).lo;
    p->producer->flags = p->consumer->flags = c->flags;
}

static void nobody_is_rung_who_is_awake(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    test_pair_open(&p, BYTES);
    uint64_t put = 0, taken = 0;
    while (taken < 100000) {
        while (test_put(p.producer, put, MOST) == CORRAL_OK) {
            put++;
        }
        struct corral_ring_item item;
        while (corral_ring_next(p.consumer, &item, &err) == CORRAL_OK) {
            check_ok(corral_ring_release(p.consumer, item.position, &err));
            taken++;
        }
    }
    assert_int_equal(rings(p.fd[1]) + rings(p.fd[2]), 0);
    test_pair_close(&p);
}

static void a_consumer_that_sleeps_is_rung_once(void **state)
{
    (void)state;
    for (int fenced = 0; fenced < 2; fenced++) {
        struct test_pair p;
        struct corral_error err;
        struct corral_ring_item item;
        test_pair_open(&p, BYTES);
        if (fenced) {
            make_fenced(&p);
        }
        assert_true(corral_ring_arm(p.consumer, 0));
        assert_int_equal(rings(p.fd[1]), 0);
        for (uint64_t id = 0; id < 5; id++) {
            assert_int_equal(test_put(p.producer, id, MOST), CORRAL_OK);
        }
        struct pollfd bell = {.fd = corral_ring_bell(p.consumer), .events = POLLIN};
        assert_int_equal(poll(&bell, 1, 0), 1);
        assert_int_equal(rings(p.fd[1]), 1);
        corral_ring_disarm(p.consumer);
        assert_false(corral_ring_arm(p.consumer, 0)); /* there is something */
        check_ok(corral_ring_next(p.consumer, &item, &err));
        assert_int_equal(test_put(p.producer, 5, MOST), CORRAL_OK);
        assert_int_equal(rings(p.fd[1]), 0);
        test_pair_close(&p);
    }
}

static void a_bell_is_silent_after_disarm(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    test_pair_open(&p, BYTES);
    struct pollfd bell = {.fd = corral_ring_bell(p.consumer), .events = POLLIN};
    assert_true(corral_ring_arm(p.consumer, 0));
    assert_int_equal(test_put(p.producer, 0, MOST), CORRAL_OK);
    corral_ring_disarm(p.consumer);
    assert_int_equal(poll(&bell, 1, 0), 0);
    check_ok(corral_ring_next(p.consumer, &item, &err));
    assert_true(corral_ring_arm(p.consumer, 0));
    corral_ring_disarm(p.consumer);
    assert_int_equal(test_put(p.producer, 1, MOST), CORRAL_OK);
    assert_int_equal(poll(&bell, 1, 0), 0);
    test_pair_close(&p);
}

static void a_producer_that_waits_is_rung_when_there_is_the_room_it_wants(void **state)
{
    (void)state;
    for (int fenced = 0; fenced < 2; fenced++) {
        struct test_pair p;
        struct corral_error err;
        struct corral_ring_item items[8];
        void *to;
        uint64_t bytes = BYTES / 8 - 64, count = 0;
        test_pair_open(&p, BYTES);
        if (fenced) {
            make_fenced(&p);
        }
        while (corral_ring_reserve(p.producer, bytes, &to, &err) == CORRAL_OK) {
            corral_ring_commit(p.producer, bytes);
            check_ok(corral_ring_next(p.consumer, &items[count++], &err));
        }
        assert_int_equal(count, 7);
        assert_true(corral_ring_arm(p.producer, 2 * bytes));
        check_ok(corral_ring_release(p.consumer, items[1].position, &err));
        assert_int_equal(rings(p.fd[2]), 0);
        check_ok(corral_ring_release(p.consumer, items[0].position, &err)); /* frees two */
        assert_int_equal(rings(p.fd[2]), 1);
        corral_ring_disarm(p.producer);
        assert_false(corral_ring_arm(p.producer, 2 * bytes));
        assert_true(corral_ring_arm(p.producer, BYTES)); /* as much as half the ring is waited for */
        check_ok(corral_ring_release(p.consumer, items[2].position, &err));
        check_ok(corral_ring_release(p.consumer, items[3].position, &err));
        check_ok(corral_ring_release(p.consumer, items[4].position, &err));
        assert_int_equal(rings(p.fd[2]), 1);
        test_pair_close(&p);
    }
}

static void waiting_ends_at_the_deadline(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    test_pair_open(&p, BYTES);
    check_status(corral_ring_wait(p.consumer, 0, 0, &err), CORRAL_TIMEOUT);
    check_status(corral_ring_wait(p.consumer, 0, 1000000, &err), CORRAL_TIMEOUT);
    check_ok(corral_ring_wait(p.producer, MOST, UINT64_MAX, &err));
    assert_int_equal(test_put(p.producer, 0, MOST), CORRAL_OK);
    check_ok(corral_ring_wait(p.consumer, 0, UINT64_MAX, &err));
    test_pair_close(&p);
}

/* ---- two processes ---- */

static pid_t start_producer(struct test_pair *p, void (*body)(struct corral_ring *))
{
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct corral_ring *r;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || corral_ring_attach(&r, CORRAL_RING_PRODUCER, p->fd, NULL) != CORRAL_OK) {
            _exit(1);
        }
        body(r);
        _exit(0);
    }
    return pid;
}

static void end_producer(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#define CHASE 30000u
#define PATIENCE_MS 60000

/* Sleeps as soon as there is nothing, and not in slices as wait() does: a lost wake-up would end the test. */
static bool sleep_for_ever(struct corral_ring *r, uint64_t room)
{
    if (corral_ring_arm(r, room)) {
        struct pollfd bell = {.fd = corral_ring_bell(r), .events = POLLIN};
        int rung = poll(&bell, 1, PATIENCE_MS);
        corral_ring_disarm(r);
        return rung == 1;
    }
    return true;
}

static void chase_body(struct corral_ring *r)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, 8);
    for (uint64_t id = 0; id < CHASE; id++) {
        while (test_put(r, id, 9000) == CORRAL_AGAIN) {
            if (!sleep_for_ever(r, 9000)) {
                _exit(2);
            }
        }
        for (uint64_t spin = corral_rng_below(&rng, 300); spin > 0; spin--) {
            __asm__ volatile("");
        }
    }
}

static void chase(bool fenced)
{
    struct test_pair p;
    struct corral_error err;
    struct corral_rng rng;
    test_pair_open(&p, BYTES);
    if (fenced) {
        make_fenced(&p);
    }
    corral_ring_close(p.producer);
    p.producer = NULL;
    pid_t pid = start_producer(&p, chase_body);
    corral_rng_seed(&rng, 9);
    for (uint64_t id = 0; id < CHASE;) {
        struct corral_ring_item item;
        uint64_t got;
        if (corral_ring_next(p.consumer, &item, &err) == CORRAL_AGAIN) {
            assert_true(sleep_for_ever(p.consumer, 0));
            continue;
        }
        assert_true(test_record_whole(&item, &got, 9000));
        assert_int_equal(got, id);
        check_ok(corral_ring_release(p.consumer, item.position, &err));
        id++;
        for (uint64_t spin = corral_rng_below(&rng, 3000) / (id / 100 % 10 + 1); spin > 0; spin--) {
            __asm__ volatile("");
        }
    }
    end_producer(pid);
    test_pair_close(&p);
}

static void two_processes_that_sleep_at_every_turn_never_miss_each_other(void **state)
{
    (void)state;
    chase(false);
    chase(true);
}

static void put_two_body(struct corral_ring *r)
{
    if (test_put(r, 0, MOST) != CORRAL_OK || test_put(r, 1, MOST) != CORRAL_OK) {
        _exit(1);
    }
}

static void a_dead_producer_is_noticed_when_everything_is_read(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    test_pair_open(&p, BYTES);
    corral_ring_close(p.producer);
    p.producer = NULL;
    end_producer(start_producer(&p, put_two_body)); /* gone without closing */
    for (int i = 0; i < 2; i++) {
        check_ok(corral_ring_wait(p.consumer, 0, UINT64_MAX, &err));
        check_ok(corral_ring_next(p.consumer, &item, &err));
    }
    assert_false(corral_ring_peer_alive(p.consumer));
    check_status(corral_ring_wait(p.consumer, 0, UINT64_MAX, &err), CORRAL_PEER);
    test_pair_close(&p);
}

static void attach_body(struct corral_ring *r)
{
    (void)r;
}

/* The one before may have died between commit and bell. */
static void a_successor_wakes_who_sleeps(void **state)
{
    (void)state;
    struct test_pair p;
    test_pair_open(&p, BYTES);
    assert_true(corral_ring_arm(p.consumer, 0));
    corral_ring_close(p.producer);
    p.producer = NULL;
    end_producer(start_producer(&p, attach_body));
    assert_int_equal(rings(p.fd[1]), 1);
    test_pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_is_rung_who_is_awake),
        cmocka_unit_test(a_consumer_that_sleeps_is_rung_once),
        cmocka_unit_test(a_bell_is_silent_after_disarm),
        cmocka_unit_test(a_producer_that_waits_is_rung_when_there_is_the_room_it_wants),
        cmocka_unit_test(waiting_ends_at_the_deadline),
        cmocka_unit_test(two_processes_that_sleep_at_every_turn_never_miss_each_other),
        cmocka_unit_test(a_dead_producer_is_noticed_when_everything_is_read),
        cmocka_unit_test(a_successor_wakes_who_sleeps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
