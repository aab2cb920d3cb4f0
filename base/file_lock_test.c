#include "base/file.h"
#include "tests/check.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64];
static char lock_path[96];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-lock-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    snprintf(lock_path, sizeof lock_path, "%s/lock", folder);
    return 0;
}

static int drop_folder(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static void check_holder(pid_t expected)
{
    struct corral_error err;
    pid_t pid = -1;
    uint64_t start_time = 0;
    check_ok(corral_lock_holder(lock_path, &pid, &start_time, &err));
    assert_int_equal(pid, expected);
    assert_true((start_time > 0) == (expected > 0));
}

static void a_held_lock_is_refused_and_names_its_holder(void **state)
{
    (void)state;
    struct corral_error err;
    int fd = -1;
    int second = -1;
    check_holder(0); /* no file yet */
    check_ok(corral_lock_file(lock_path, &fd, &err));
    check_holder(getpid());
    check_status(corral_lock_file(lock_path, &second, &err), CORRAL_EXISTS);
    char expected[32];
    snprintf(expected, sizeof expected, "process %d", (int)getpid());
    assert_non_null(strstr(err.text, expected));
    assert_int_equal(second, -1);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    close(fd);
    check_holder(0);
    check_ok(corral_lock_file(lock_path, &fd, &err));
    close(fd);
}

struct page {
    _Atomic int ready;
    _Atomic int inside;
    _Atomic int clashes;
    _Atomic int taken;
};

static struct page *shared_page(void)
{
    struct page *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

static void a_killed_holder_frees_the_lock(void **state)
{
    (void)state;
    struct corral_error err;
    struct page *page = shared_page();
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int held = -1;
        if (corral_lock_file(lock_path, &held, NULL) == CORRAL_OK) {
            atomic_store_explicit(&page->ready, 1, memory_order_release); /* pairs with the load below */
            pause();
        }
        _exit(1);
    }
    while (atomic_load_explicit(&page->ready, memory_order_acquire) == 0) { /* pairs with the store above */
        sched_yield();
    }
    check_holder(child);
    int fd = -1;
    check_status(corral_lock_file(lock_path, &fd, &err), CORRAL_EXISTS);
    char expected[32];
    snprintf(expected, sizeof expected, "process %d", (int)child);
    assert_non_null(strstr(err.text, expected));
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    check_holder(0); /* though its name is still in the file */
    check_ok(corral_lock_file(lock_path, &fd, &err));
    check_holder(getpid());
    close(fd);
    munmap(page, sizeof *page);
}

/* Take and give back the lock until `rounds` were had by all together. */
static int contend(struct page *page, int rounds)
{
    while (atomic_load_explicit(&page->taken, memory_order_relaxed) < rounds) {
        int fd = -1;
        const enum corral_status status = corral_lock_file(lock_path, &fd, NULL);
        if (status == CORRAL_EXISTS) {
            continue;
        }
        if (status != CORRAL_OK) {
            return 2;
        }
        if (atomic_fetch_add_explicit(&page->inside, 1, memory_order_relaxed) != 0) {
            atomic_fetch_add_explicit(&page->clashes, 1, memory_order_relaxed);
        }
        sched_yield();
        atomic_fetch_add_explicit(&page->taken, 1, memory_order_relaxed);
        /* Now and then the file goes, as when a run folder is cleaned up: no second lock may come of it. */
        const bool last = atomic_load_explicit(&page->taken, memory_order_relaxed) % 7 == 0;
        atomic_fetch_sub_explicit(&page->inside, 1, memory_order_relaxed);
        if (last) {
            unlink(lock_path);
        }
        close(fd);
    }
    return 0;
}

static void contenders_hold_the_lock_one_at_a_time(void **state)
{
    (void)state;
    struct page *page = shared_page();
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            _exit(contend(page, 500));
        }
    }
    for (int i = 0; i < 3; i++) {
        int status = -1;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(atomic_load_explicit(&page->clashes, memory_order_relaxed), 0);
    munmap(page, sizeof *page);
}

static void a_child_that_execs_does_not_keep_the_lock(void **state)
{
    (void)state;
    struct corral_error err;
    int fd = -1;
    check_ok(corral_lock_file(lock_path, &fd, &err));
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    close(fd);
}

static void garbage_in_a_free_lock_file_is_no_holder(void **state)
{
    (void)state;
    struct corral_error err;
    check_ok(corral_file_write_atomic(lock_path, "99999999999 x\n", 14, 0600, false, &err));
    check_holder(0);
    int fd = -1;
    check_ok(corral_lock_file(lock_path, &fd, &err));
    check_holder(getpid());
    /* Somebody scribbles over the name while it is held. */
    assert_int_equal(ftruncate(fd, 0), 0);
    pid_t pid = -1;
    uint64_t start_time;
    check_status(corral_lock_holder(lock_path, &pid, &start_time, &err), CORRAL_AGAIN);
    assert_int_equal(pid, -1);
    int second = -1;
    check_status(corral_lock_file(lock_path, &second, &err), CORRAL_EXISTS);
    close(fd);
}

static void a_link_in_the_place_of_the_lock_is_refused(void **state)
{
    (void)state;
    struct corral_error err;
    int fd = -1;
    assert_int_equal(symlink("elsewhere", lock_path), 0);
    check_status(corral_lock_file(lock_path, &fd, &err), CORRAL_IO);
    assert_int_equal(fd, -1);
}

int main(void)
{
#define folder_test(f) cmocka_unit_test_setup_teardown(f, make_folder, drop_folder)
    const struct CMUnitTest tests[] = {
        folder_test(a_held_lock_is_refused_and_names_its_holder),
        folder_test(a_killed_holder_frees_the_lock),
        folder_test(contenders_hold_the_lock_one_at_a_time),
        folder_test(a_child_that_execs_does_not_keep_the_lock),
        folder_test(garbage_in_a_free_lock_file_is_no_holder),
        folder_test(a_link_in_the_place_of_the_lock_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
