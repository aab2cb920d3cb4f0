/* kill -9 of either side: after every single instruction of commit and release, and at random in a loop with successors. */
#include "transport/trajectory/ring/test_ring.h"

#include "base/clock.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#define BYTES CORRAL_RING_BYTES_MIN
#define MOST 2500u

static struct test_pair pair; /* the descriptors; sides come and go */

static void attach(struct corral_ring **out, enum corral_ring_side side)
{
    struct corral_error err;
    check_ok(corral_ring_attach(out, side, pair.fd, &err));
}

static void detach_both(void)
{
    corral_ring_close(pair.producer);
    corral_ring_close(pair.consumer);
    pair.producer = pair.consumer = NULL;
}

/* ---- after every instruction ---- */

/* In the child: stopped before `body`, then run instruction by instruction. Returns false when the body came to its end before `steps`. */
static bool run_and_kill(void (*prepare)(void), void (*body)(void), uint64_t steps, bool *can)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prepare();
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(77);
        }
        raise(SIGSTOP);
        body();
        raise(SIGUSR1); /* the end, to whoever counts the steps */
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    *can = WIFSTOPPED(status);
    assert_true(*can || (WIFEXITED(status) && WEXITSTATUS(status) == 77));
    bool at_end = !*can;
    for (uint64_t i = 0; i < steps && !at_end; i++) {
        assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSTOPPED(status));
        at_end = WSTOPSIG(status) != SIGTRAP;
    }
    if (*can) {
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
    }
    return !at_end;
}

static uint64_t next_id; /* of the record that the child commits */
static void prepare_commit(void)
{
    void *to;
    if (corral_ring_attach(&pair.producer, CORRAL_RING_PRODUCER, pair.fd, NULL) != CORRAL_OK ||
        corral_ring_reserve(pair.producer, test_record_bytes(next_id, MOST), &to, NULL) != CORRAL_OK) {
        _exit(1);
    }
    test_record_fill(to, next_id, test_record_bytes(next_id, MOST));
}

static void commit(void)
{
    corral_ring_commit(pair.producer, test_record_bytes(next_id, MOST));
}

static void a_commit_that_is_killed_has_happened_or_has_not(void **state)
{
    (void)state;
    bool can = true, goes_on = true;
    uint64_t before = 0, after = 0;
    test_pair_open(&pair, BYTES);
    detach_both();
    for (uint64_t steps = 1; goes_on; steps++) {
        goes_on = run_and_kill(prepare_commit, commit, steps, &can);
        if (!can) {
            test_pair_close(&pair);
            skip();
        }
        struct corral_error err;
        struct corral_ring_item item;
        uint64_t id;
        attach(&pair.producer, CORRAL_RING_PRODUCER);
        attach(&pair.consumer, CORRAL_RING_CONSUMER);
        bool there = corral_ring_unreleased(pair.producer) == 1;
        assert_true(there || corral_ring_unreleased(pair.producer) == 0);
        before += !there;
        after += there;
        /* The successor goes on with the record after the last one, and both are whole. */
        assert_int_equal(test_put(pair.producer, next_id + there, MOST), CORRAL_OK);
        for (uint64_t want = next_id; want < next_id + there + 1; want++) {
            check_ok(corral_ring_next(pair.consumer, &item, &err));
            assert_true(test_record_whole(&item, &id, MOST));
            assert_int_equal(id, want);
            check_ok(corral_ring_release(pair.consumer, item.position, &err));
        }
        check_status(corral_ring_next(pair.consumer, &item, &err), CORRAL_AGAIN);
        next_id += there + 1;
        assert_int_equal(corral_ring_released(pair.producer), next_id);
        detach_both();
    }
    assert_true(before > 5 && after > 2);
    test_pair_close(&pair);
}

static uint32_t release_first,
    release_count; /* the child releases held[first], the record before those that are released already, or one in the middle */
static struct corral_ring_item held[4];
static void prepare_release(void)
{
    if (corral_ring_attach(&pair.consumer, CORRAL_RING_CONSUMER, pair.fd, NULL) != CORRAL_OK) {
        _exit(1);
    }
    for (int i = 0; i < 4; i++) {
        if (corral_ring_next(pair.consumer, &held[i], NULL) != CORRAL_OK) {
            _exit(1);
        }
    }
    for (uint32_t i = 1; i < release_count; i++) {
        if (corral_ring_release(pair.consumer, held[release_first + i].position, NULL) != CORRAL_OK) {
            _exit(1);
        }
    }
}

static void release(void)
{
    if (corral_ring_release(pair.consumer, held[release_first].position, NULL) != CORRAL_OK) {
        _exit(1);
    }
}

static void check_release(uint64_t steps, bool *goes_on, bool *can, uint64_t seen[2])
{
    struct corral_error err;
    struct corral_ring_item item;
    uint64_t id, base = next_id;
    attach(&pair.producer, CORRAL_RING_PRODUCER);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(test_put(pair.producer, next_id++, MOST), CORRAL_OK);
    }
    *goes_on = run_and_kill(prepare_release, release, steps, can);
    if (!*can) {
        return;
    }
    attach(&pair.consumer, CORRAL_RING_CONSUMER);
    uint64_t left = corral_ring_unreleased(pair.producer);
    assert_true(left == 4 - release_count || left == 4 - release_count + 1);
    bool released = left == 4 - release_count;
    seen[released]++;
    for (uint64_t i = 0; i < 4; i++) {
        bool expected =
            i < release_first || i >= release_first + release_count || (i == release_first && !released);
        if (expected) {
            check_ok(corral_ring_next(pair.consumer, &item, &err));
            assert_true(test_record_whole(&item, &id, MOST));
            assert_int_equal(id, base + i);
            check_ok(corral_ring_release(pair.consumer, item.position, &err));
        }
    }
    check_status(corral_ring_next(pair.consumer, &item, &err), CORRAL_AGAIN);
    assert_int_equal(corral_ring_unreleased(pair.producer), 0);
    assert_int_equal(pair.consumer->tail, pair.producer->position);
    detach_both();
}

static void a_release_that_is_killed_has_happened_or_has_not(void **state)
{
    (void)state;
    static const uint32_t cases[][2] = {
        {0, 1}, {1, 1}, {0, 3}}; /* the oldest, one in the middle, the oldest with two behind it */
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        bool can = true, goes_on = true;
        uint64_t seen[2] = {0, 0};
        release_first = cases[i][0];
        release_count = cases[i][1];
        next_id = 0;
        test_pair_open(&pair, BYTES);
        detach_both();
        for (uint64_t steps = 1; goes_on && can; steps++) {
            check_release(steps, &goes_on, &can, seen);
        }
        test_pair_close(&pair);
        if (!can) {
            skip();
        }
        assert_true(seen[0] > 5 && seen[1] > 0);
    }
}

/* ---- at random, with successors ---- */

#define IDS_MAX (4u << 20)
#define CYCLES 300
#define HELD_MAX 24

/* The independent ledger, in memory that outlives both sides. */
struct ledger {
    _Atomic uint64_t seen, duplicates;
    _Atomic bool over;
    _Atomic uint32_t failed;            /* a line of this file */
    _Atomic uint8_t committed[IDS_MAX]; /* the producer came back from commit */
    _Atomic uint8_t taken[IDS_MAX];     /* times handed out */
    _Atomic uint8_t releasing[IDS_MAX]; /* release was called */
    _Atomic uint8_t released[IDS_MAX];  /* and came back */
};
static struct ledger *ledger;

#define must(expr)                                   \
    do {                                             \
        if (!(expr)) {                               \
            atomic_store(&ledger->failed, __LINE__); \
            _exit(1);                                \
        }                                            \
    } while (0)

static void producer_life(void)
{
    struct corral_ring *r;
    must(corral_ring_attach(&r, CORRAL_RING_PRODUCER, pair.fd, NULL) == CORRAL_OK);
    /* What is in the ring is what was committed: the successor needs no other memory. */
    for (uint64_t id = corral_ring_released(r) + corral_ring_unreleased(r); id < IDS_MAX; id++) {
        enum corral_status status;
        must(!atomic_load(&ledger->committed[id]));
        while ((status = test_put(r, id, MOST)) == CORRAL_AGAIN) {
            status = corral_ring_wait(r, MOST, 20 * CORRAL_NS_PER_MS, NULL);
            must(status == CORRAL_OK || status == CORRAL_TIMEOUT || status == CORRAL_PEER);
        }
        must(status == CORRAL_OK);
        atomic_store(&ledger->committed[id], 1);
    }
    _exit(0);
}

static void take_one(const struct corral_ring_item *item, uint64_t *last)
{
    uint64_t id;
    must(test_record_whole(item, &id, MOST)); /* none torn */
    must(id < IDS_MAX && (*last == UINT64_MAX || id > *last));
    must(!atomic_load(&ledger->released[id])); /* none that was released */
    *last = id;
    if (atomic_fetch_add(&ledger->taken[id], 1) > 0) {
        atomic_fetch_add(&ledger->duplicates, 1);
    } else {
        atomic_fetch_add(&ledger->seen, 1);
    }
}

static void release_one(struct corral_ring *r, const struct corral_ring_item *item)
{
    uint64_t id;
    must(test_record_whole(item, &id, MOST)); /* still */
    atomic_store(&ledger->releasing[id], 1);
    must(corral_ring_release(r, item->position, NULL) == CORRAL_OK);
    atomic_store(&ledger->released[id], 1);
}

static void consumer_life(uint64_t seed)
{
    struct corral_ring *r;
    struct corral_rng rng;
    struct corral_ring_item items[HELD_MAX];
    uint32_t count = 0;
    uint64_t last = UINT64_MAX;
    corral_rng_seed(&rng, seed);
    must(corral_ring_attach(&r, CORRAL_RING_CONSUMER, pair.fd, NULL) == CORRAL_OK);
    for (;;) {
        enum corral_status status = CORRAL_AGAIN;
        if (count < HELD_MAX && (status = corral_ring_next(r, &items[count], NULL)) == CORRAL_OK) {
            take_one(&items[count++], &last);
        }
        must(status == CORRAL_OK || status == CORRAL_AGAIN);
        if (count > 0 && (status == CORRAL_AGAIN || corral_rng_below(&rng, 2) == 0)) {
            uint32_t i = (uint32_t)corral_rng_below(&rng, count);
            release_one(r, &items[i]);
            items[i] = items[--count];
        } else if (status == CORRAL_AGAIN) {
            if (atomic_load(&ledger->over) && corral_ring_next(r, &items[0], NULL) == CORRAL_AGAIN) {
                _exit(0);
            }
            status = corral_ring_wait(r, 0, 5 * CORRAL_NS_PER_MS, NULL);
            must(status == CORRAL_OK || status == CORRAL_TIMEOUT || status == CORRAL_PEER);
        }
    }
}

static pid_t start(bool producer, uint64_t seed)
{
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
        if (producer) {
            producer_life();
        }
        consumer_life(seed);
    }
    return pid;
}

static void kill_one(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status)) {
        fail_msg("a side gave up at line %u", atomic_load(&ledger->failed));
    }
}

/* Until so many more records have been seen, so that every cycle gets somewhere; then a little more or less. */
static void let_run(uint64_t records, uint64_t spin)
{
    uint64_t until = atomic_load(&ledger->seen) + records;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + 60 * CORRAL_NS_PER_S;
    while (atomic_load(&ledger->seen) < until && atomic_load(&ledger->failed) == 0) {
        assert_true(corral_now_ns(&corral_clock_monotonic) < deadline);
        sched_yield();
    }
    for (; spin > 0; spin--) {
        __asm__ volatile("");
    }
}

static void killed_sides_lose_nothing_and_repeat_only_what_was_not_released(void **state)
{
    (void)state;
    struct corral_rng rng;
    int status;
    corral_rng_seed(&rng, 12);
    ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(ledger != MAP_FAILED);
    test_pair_open(&pair, BYTES);
    detach_both();
    pid_t producer = start(true, 0), consumer = start(false, 1);
    for (uint64_t cycle = 0; cycle < CYCLES; cycle++) {
        let_run(corral_rng_below(&rng, 60), corral_rng_below(&rng, 20000));
        uint64_t which = corral_rng_below(&rng, 5);
        if (which != 1) {
            kill_one(producer);
        }
        if (which != 0 && which != 3) {
            kill_one(consumer);
            consumer = start(false, cycle + 2);
        }
        if (which != 1) {
            producer = start(true, 0);
        }
    }
    kill_one(producer);
    atomic_store(&ledger->over, true);
    assert_int_equal(waitpid(consumer, &status, 0), consumer);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fail_msg("the consumer gave up at line %u", atomic_load(&ledger->failed));
    }
    attach(&pair.producer, CORRAL_RING_PRODUCER);
    uint64_t total = corral_ring_released(pair.producer);
    assert_int_equal(corral_ring_unreleased(pair.producer), 0);
    assert_int_equal(atomic_load(&ledger->seen), total);
    for (uint64_t id = 0; id < IDS_MAX; id++) {
        /* A producer that was killed behind the commit did not write that it came back. */
        assert_true(id < total ? ledger->taken[id] > 0 && ledger->releasing[id]
                               : !ledger->committed[id] && !ledger->taken[id]);
    }
    print_message("%llu records, %llu handed out again after a death\n", (unsigned long long)total,
                  (unsigned long long)atomic_load(&ledger->duplicates));
    assert_true(total > CYCLES && atomic_load(&ledger->duplicates) > 0);
    test_pair_close(&pair);
    munmap(ledger, sizeof *ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_that_is_killed_has_happened_or_has_not),
        cmocka_unit_test(a_release_that_is_killed_has_happened_or_has_not),
        cmocka_unit_test(killed_sides_lose_nothing_and_repeat_only_what_was_not_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
