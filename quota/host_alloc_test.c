#include "quota/host_alloc.h"
#include "quota/test_node.h"

#include "base/log.h"
#include "base/rng.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static struct corral_error err;

struct fixture {
    int fd;
    struct corral_quota *q;
    struct corral_host_alloc *a;
    const struct corral_allocator *allocator;
};

static struct fixture open_fixture(uint64_t physical, uint64_t ceiling)
{
    struct fixture f = {0};
    uint32_t holder;
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL);
    f.q = test_node_sized(physical, ceiling, &f.fd);
    check_ok(corral_quota_join(f.q, "a:0", "trainer", &holder, &err));
    check_ok(corral_host_alloc_create(f.q, holder, &f.a, &err));
    f.allocator = corral_host_allocator(f.a);
    return f;
}

static void close_fixture(struct fixture *f)
{
    corral_host_alloc_destroy(f->a);
    corral_quota_detach(f->q);
    close(f->fd);
}

static uint64_t charged(struct fixture *f)
{
    static struct corral_ledger seen;
    corral_quota_snapshot(f->q, &seen);
    assert_true(corral_ledger_consistent(&seen));
    const struct corral_ledger_role *role = &seen.device[0].role[TRAINER];
    assert_int_equal(role->used, corral_host_alloc_used(f->a));
    return role->used;
}

static void memory_is_zeroed_aligned_and_charged_as_documented(void **state)
{
    (void)state;
    static const struct {
        size_t bytes;
        uint64_t charge;
    } cases[] = {{0, 64},        {1, 64},        {64, 64},       {65, 128},
                 {65535, 65536}, {65536, 65536}, {65537, 69632}, {MIB, MIB}};
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        unsigned char *memory = NULL;
        check_ok(corral_alloc(f.allocator, cases[i].bytes, "test", (void **)&memory, &err));
        assert_int_equal((uintptr_t)memory % 64, 0);
        assert_int_equal(charged(&f), cases[i].charge);
        for (size_t b = 0; b < cases[i].bytes; b++) {
            assert_int_equal(memory[b], 0);
        }
        memset(memory, 0xff, cases[i].bytes);
        corral_release(f.allocator, memory, cases[i].bytes);
        assert_int_equal(charged(&f), 0);
    }
    corral_release(f.allocator, NULL, 100);
    close_fixture(&f);
}

static void a_denied_request_changes_nothing(void **state)
{
    (void)state;
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    void *memory = &f;
    assert_int_equal(corral_alloc(f.allocator, 51 * MIB, "adam moments", &memory, &err), CORRAL_DENIED);
    assert_ptr_equal(memory, &f);
    assert_non_null(strstr(err.text, "adam moments"));
    assert_int_equal(corral_alloc(f.allocator, SIZE_MAX, "overflow", &memory, &err), CORRAL_DENIED);
    assert_int_equal(corral_alloc(f.allocator, SIZE_MAX - 4096, "overflow", &memory, &err), CORRAL_DENIED);
    assert_int_equal(charged(&f), 0);
    check_ok(corral_alloc(f.allocator, 50 * MIB, "all", &memory, &err));
    corral_release(f.allocator, memory, 50 * MIB);
    close_fixture(&f);
}

static void the_system_refusing_pages_rolls_the_charge_back(void **state)
{
    (void)state;
    const uint64_t beyond_the_address_space = UINT64_C(1) << 50;
    struct fixture f = open_fixture(beyond_the_address_space * 4, beyond_the_address_space * 2);
    void *memory = &f;
    assert_int_equal(corral_alloc(f.allocator, beyond_the_address_space, "huge", &memory, &err),
                     CORRAL_NOMEM);
    assert_ptr_equal(memory, &f);
    assert_non_null(strstr(err.text, "huge"));
    assert_int_equal(charged(&f), 0);
    close_fixture(&f);
}

/* In a child whose address space is full: take small pieces until the heap has none. */
static int exhaust_heap(int fd)
{
    struct corral_quota *q;
    struct corral_host_alloc *a;
    uint32_t holder;
    const struct rlimit none = {.rlim_cur = 1, .rlim_max = 1};
    if (corral_quota_attach(fd, &q, NULL) != CORRAL_OK ||
        corral_quota_join(q, "a:0", "rollout", &holder, NULL) != CORRAL_OK ||
        corral_host_alloc_create(q, holder, &a, NULL) != CORRAL_OK || setrlimit(RLIMIT_AS, &none) != 0) {
        return 1;
    }
    enum corral_status status;
    void *memory;
    uint64_t taken = 0;
    while ((status = corral_alloc(corral_host_allocator(a), 60000, "piece", &memory, &err)) == CORRAL_OK) {
        taken += 60032;
    }
    const struct corral_ledger *seen = corral_quota_ledger(q); /* nobody else is at it */
    bool ok = status == CORRAL_NOMEM && corral_host_alloc_used(a) == taken &&
              seen->device[0].role[ROLLOUT].used == taken;
    return ok ? 0 : 2;
}

static void the_heap_refusing_rolls_the_charge_back(void **state)
{
    (void)state;
    if (SANITIZED) {
        skip(); /* the sanitizers' allocators do not live within RLIMIT_AS */
    }
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    pid_t child = fork();
    if (child == 0) {
        _exit(exhaust_heap(f.fd));
    }
    assert_int_equal(test_wait(child), 0);
    assert_int_equal(corral_quota_reap(f.q), 1);
    close_fixture(&f);
}

static void *churn(void *arg)
{
    struct fixture *f = arg;
    struct corral_rng rng;
    corral_rng_seed(&rng, (uint64_t)(uintptr_t)&rng);
    void *memory[8] = {0};
    size_t bytes[8] = {0};
    for (int i = 0; i < 500; i++) {
        size_t at = corral_rng_below(&rng, 8);
        corral_release(f->allocator, memory[at], bytes[at]);
        memory[at] = NULL;
        bytes[at] = corral_rng_below(&rng, 200000);
        if (corral_alloc(f->allocator, bytes[at], "churn", &memory[at], NULL) == CORRAL_OK) {
            memset(memory[at], 1, bytes[at]);
        }
    }
    for (size_t at = 0; at < 8; at++) {
        corral_release(f->allocator, memory[at], bytes[at]);
    }
    return NULL;
}

static void any_thread_may_allocate_and_release(void **state)
{
    (void)state;
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, churn, &f), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
    }
    assert_int_equal(charged(&f), 0);
    close_fixture(&f);
}

static void spilling_is_opt_in_bounded_and_counted(void **state)
{
    (void)state;
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    void *all, *first, *second = &f;
    check_ok(corral_alloc(f.allocator, 50 * MIB, "all", &all, &err));
    assert_int_equal(corral_alloc(f.allocator, MIB, "adam moments", &second, &err), CORRAL_DENIED);
    corral_host_alloc_set_spill(f.a, 3 * MIB);
    check_ok(corral_alloc(f.allocator, 2 * MIB, "adam moments", &first, &err));
    memset(first, 1, 2 * MIB);
    assert_int_equal(charged(&f), 50 * MIB);
    assert_int_equal(corral_host_alloc_spilled(f.a), 2 * MIB);
    assert_int_equal(corral_quota_ledger(f.q)->device[0].role[TRAINER].spilled, 2 * MIB);
    assert_int_equal(corral_alloc(f.allocator, 2 * MIB, "adam moments", &second, &err), CORRAL_DENIED);
    assert_ptr_equal(second, &f);
    corral_release(f.allocator, first, 2 * MIB);
    assert_int_equal(corral_quota_ledger(f.q)->device[0].role[TRAINER].spilled, 0);
    check_ok(corral_alloc(f.allocator, 3 * MIB, "adam moments", &second, &err));
    corral_release(f.allocator, second, 3 * MIB);
    corral_release(f.allocator, all, 50 * MIB);
    assert_int_equal(charged(&f), 0);
    close_fixture(&f);
}

static void a_charge_is_found_among_thousands(void **state)
{
    (void)state;
    enum { PIECES = 3000 };
    struct fixture f = open_fixture(100 * MIB, 70 * MIB);
    static void *memory[PIECES];
    for (size_t i = 0; i < PIECES; i++) {
        check_ok(corral_alloc(f.allocator, i, "piece", &memory[i], &err));
    }
    for (size_t step = 0; step < 7; step++) {
        for (size_t i = step; i < PIECES; i += 7) {
            corral_release(f.allocator, memory[i], i);
        }
    }
    assert_int_equal(charged(&f), 0);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_zeroed_aligned_and_charged_as_documented),
        cmocka_unit_test(a_denied_request_changes_nothing),
        cmocka_unit_test(the_system_refusing_pages_rolls_the_charge_back),
        cmocka_unit_test(the_heap_refusing_rolls_the_charge_back),
        cmocka_unit_test(any_thread_may_allocate_and_release),
        cmocka_unit_test(spilling_is_opt_in_bounded_and_counted),
        cmocka_unit_test(a_charge_is_found_among_thousands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
