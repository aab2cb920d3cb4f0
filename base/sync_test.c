#include "base/clock.h"
#include "base/sync.h"
#include "tests/check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Yield until the kernel says that the thread sleeps; the test's timeout bounds it. */
static void wait_until_asleep(pid_t process, pid_t thread)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)process, (int)thread);
    for (;;) {
        char text[512] = "";
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        const ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        const char *after_name = n > 0 ? strrchr(text, ')') : NULL;
        if (after_name != NULL && after_name[2] == 'S') {
            return;
        }
        sched_yield();
    }
}

struct shared {
    _Atomic uint32_t word;
    _Atomic int thread;
};

static void *wait_for_one(void *arg)
{
    struct shared *s = arg;
    atomic_store_explicit(&s->thread, (int)gettid(),
                          memory_order_release); /* pairs with the load in started_thread() */
    while (atomic_load_explicit(&s->word, memory_order_acquire) ==
           0) { /* pairs with the store in release() */
        if (!corral_futex_wait(&s->word, 0, UINT64_MAX)) {
            return arg; /* there was no deadline to pass */
        }
    }
    return NULL;
}

static pid_t started_thread(struct shared *s)
{
    int thread;
    while ((thread = atomic_load_explicit(&s->thread, memory_order_acquire)) == 0) {
        sched_yield();
    }
    return (pid_t)thread;
}

static void release(struct shared *s)
{
    atomic_store_explicit(&s->word, 1, memory_order_release); /* pairs with the load in wait_for_one() */
    corral_futex_wake_all(&s->word);
}

static void a_sleeping_thread_is_woken(void **state)
{
    (void)state;
    struct shared s = {0};
    pthread_t waiter;
    assert_int_equal(pthread_create(&waiter, NULL, wait_for_one, &s), 0);
    wait_until_asleep(getpid(), started_thread(&s));
    release(&s);
    void *result = &s;
    assert_int_equal(pthread_join(waiter, &result), 0);
    assert_null(result);
}

static void all_sleeping_threads_are_woken(void **state)
{
    (void)state;
    struct shared s = {0};
    pthread_t waiters[4];
    for (int i = 0; i < 4; i++) {
        atomic_store_explicit(&s.thread, 0,
                              memory_order_relaxed); /* the previous waiter has been seen already */
        assert_int_equal(pthread_create(&waiters[i], NULL, wait_for_one, &s), 0);
        wait_until_asleep(getpid(), started_thread(&s));
    }
    release(&s);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(waiters[i], NULL), 0);
    }
}

static void another_process_is_woken(void **state)
{
    (void)state;
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(s, MAP_FAILED);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        _exit(wait_for_one(s) == NULL ? 0 : 1);
    }
    wait_until_asleep(child, started_thread(s));
    release(s);
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    munmap(s, sizeof *s);
}

static void a_passed_deadline_is_false(void **state)
{
    (void)state;
    _Atomic uint32_t word = 5;
    assert_false(corral_futex_wait(&word, 5, 0));
    const uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + CORRAL_NS_PER_MS;
    while (corral_futex_wait(&word, 5, deadline)) {
    }
    assert_true(corral_now_ns(&corral_clock_monotonic) >= deadline);
}

static void another_value_returns_at_once(void **state)
{
    (void)state;
    _Atomic uint32_t word = 5;
    assert_true(corral_futex_wait(&word, 4, UINT64_MAX));
    assert_true(corral_futex_wait(&word, 4, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sleeping_thread_is_woken),    cmocka_unit_test(all_sleeping_threads_are_woken),
        cmocka_unit_test(another_process_is_woken),      cmocka_unit_test(a_passed_deadline_is_false),
        cmocka_unit_test(another_value_returns_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
