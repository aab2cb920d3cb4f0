#include "base/file.h"
#include "tests/check.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64];
static char path_buffer[4][PATH_MAX];

/* `name` under the test's folder; four at a time. */
static const char *in_folder(const char *name)
{
    static unsigned turn;
    char *out = path_buffer[turn++ % 4];
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-file-XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int drop_folder(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK && access(folder, F_OK) != 0 ? 0 : -1;
}

static int count_entries(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        n += e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static void check_content(const char *path, const char *expected)
{
    struct corral_error err;
    CORRAL_AUTO_FREE char *data = NULL;
    size_t bytes = 0;
    check_ok(corral_file_read(path, 1 << 20, &data, &bytes, &err));
    assert_int_equal(bytes, strlen(expected));
    assert_string_equal(data, expected);
}

/* ---- reading ---- */

static void a_file_is_read_whole_up_to_the_limit(void **state)
{
    (void)state;
    struct corral_error err;
    static char big[100000];
    memset(big, 'x', sizeof big);
    const char *path = in_folder("a");
    check_ok(corral_file_write_atomic(path, big, sizeof big, 0600, false, &err));
    CORRAL_AUTO_FREE char *data = NULL;
    size_t bytes = 0;
    check_ok(corral_file_read(path, sizeof big, &data, &bytes, &err));
    assert_int_equal(bytes, sizeof big);
    assert_memory_equal(data, big, sizeof big);
    assert_int_equal(data[bytes], '\0');
    char *none = NULL;
    check_status(corral_file_read(path, sizeof big - 1, &none, &bytes, &err), CORRAL_INVALID);
    assert_null(none);
    check_status(corral_file_read(path, 0, &none, &bytes, &err), CORRAL_INVALID);
    check_ok(corral_file_write_atomic(path, NULL, 0, 0600, false, &err));
    check_ok(corral_file_read(path, 0, &none, &bytes, &err));
    assert_int_equal(bytes, 0);
    assert_string_equal(none, "");
    free(none);
}

static void a_file_that_hides_its_size_is_read(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_AUTO_FREE char *data = NULL;
    size_t bytes = 0;
    check_ok(corral_file_read("/proc/self/status", 1 << 20, &data, &bytes, &err));
    assert_true(bytes > 100 && strlen(data) == bytes);
}

static void what_is_not_a_regular_file_is_refused(void **state)
{
    (void)state;
    struct corral_error err;
    char *data = NULL;
    check_status(corral_file_read(folder, 100, &data, NULL, &err), CORRAL_INVALID);
    check_status(corral_file_read("/dev/zero", 100, &data, NULL, &err), CORRAL_INVALID);
    const char *fifo = in_folder("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    check_status(corral_file_read(fifo, 100, &data, NULL, &err),
                 CORRAL_INVALID); /* and does not wait for a writer */
    check_status(corral_file_read(in_folder("absent"), 100, &data, NULL, &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "absent"));
    assert_null(data);
}

/* ---- atomic writes ---- */

static void a_write_replaces_the_file_and_sets_the_mode(void **state)
{
    (void)state;
    struct corral_error err;
    const char *path = in_folder("a");
    check_ok(corral_file_write_atomic(path, "one", 3, 0600, true, &err));
    check_content(path, "one");
    check_ok(corral_file_write_atomic(path, "second", 6, 0640, true, &err));
    check_content(path, "second");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0707, 0600);
    assert_int_equal(count_entries(folder), 1);
}

static void a_relative_path_is_written_durably(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_AUTO_CLOSE int here = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(chdir(folder), 0);
    const enum corral_status status = corral_file_write_atomic("plain", "x", 1, 0600, true, &err);
    assert_int_equal(fchdir(here), 0);
    check_ok(status);
    check_content(in_folder("plain"), "x");
}

/* Runs in a child: a limit on the file size stands in for a full disk. */
static int write_with_a_full_disk(const char *path)
{
    static char big[1 << 20];
    struct corral_error err = {0};
    const struct rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
        return 2;
    }
    return corral_file_write_atomic(path, big, sizeof big, 0600, true, &err) == CORRAL_IO &&
                   err.sys == EFBIG && strstr(err.text, path) != NULL
               ? 0
               : 1;
}

static void a_full_disk_leaves_the_old_file_and_no_temporary(void **state)
{
    (void)state;
    struct corral_error err;
    const char *path = in_folder("a");
    check_ok(corral_file_write_atomic(path, "old", 3, 0600, false, &err));
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        _exit(write_with_a_full_disk(path));
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    check_content(path, "old");
    assert_int_equal(count_entries(folder), 1);
}

static void a_failed_rename_or_create_leaves_nothing(void **state)
{
    (void)state;
    struct corral_error err;
    assert_int_equal(mkdir(in_folder("sub"), 0700), 0);
    check_status(corral_file_write_atomic(in_folder("sub"), "x", 1, 0600, true, &err),
                 CORRAL_IO); /* over a folder */
    assert_int_equal(count_entries(folder), 1);
    check_status(corral_file_write_atomic(in_folder("absent/a"), "x", 1, 0600, true, &err), CORRAL_IO);
    assert_int_equal(err.sys, ENOENT);
    char path[PATH_MAX + 16];
    memset(path, 'a', sizeof path);
    path[PATH_MAX - 4] = '\0';
    check_status(corral_file_write_atomic(path, "x", 1, 0600, true, &err), CORRAL_INVALID);
}

static void a_leftover_temporary_is_no_obstacle(void **state)
{
    (void)state;
    struct corral_error err;
    char name[64];
    snprintf(name, sizeof name, "a.tmp.%d", (int)getpid());
    assert_int_equal(symlink("victim", in_folder(name)), 0); /* and is not written through */
    check_ok(corral_file_write_atomic(in_folder("a"), "x", 1, 0600, false, &err));
    check_content(in_folder("a"), "x");
    assert_int_equal(count_entries(folder), 1);
}

struct page {
    _Atomic uint32_t rounds;
};

static struct page *shared_page(void)
{
    struct page *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

static void a_killed_writer_leaves_a_whole_file(void **state)
{
    (void)state;
    struct corral_error err;
    enum { BYTES = 300000 };
    const char *path = in_folder("a");
    struct page *page = shared_page();
    for (uint32_t kills = 0; kills < 15; kills++) {
        atomic_store_explicit(&page->rounds, 0, memory_order_relaxed);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            CORRAL_AUTO_FREE char *data = malloc(BYTES);
            for (unsigned i = 0; data != NULL; i++) {
                memset(data, (int)('a' + i % 26), BYTES);
                if (corral_file_write_atomic(path, data, BYTES, 0600, false, NULL) != CORRAL_OK) {
                    break;
                }
                atomic_fetch_add_explicit(&page->rounds, 1, memory_order_relaxed);
            }
            _exit(1);
        }
        while (atomic_load_explicit(&page->rounds, memory_order_relaxed) < 2 + kills) {
            sched_yield();
        }
        kill(child, SIGKILL);
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        CORRAL_AUTO_FREE char *data = NULL;
        size_t bytes = 0;
        check_ok(corral_file_read(path, BYTES, &data, &bytes, &err));
        assert_int_equal(bytes, BYTES);
        assert_int_equal(strspn(data, (char[]){data[0], '\0'}), BYTES);
    }
    munmap(page, sizeof *page);
}

struct thread_job {
    const char *path;
    char letter;
    bool failed;
};

static void *write_often(void *arg)
{
    struct thread_job *job = arg;
    char data[5000];
    memset(data, job->letter, sizeof data);
    for (int i = 0; i < 200; i++) {
        job->failed = job->failed ||
                      corral_file_write_atomic(job->path, data, sizeof data, 0600, false, NULL) != CORRAL_OK;
    }
    return NULL;
}

static void two_threads_may_write_one_file(void **state)
{
    (void)state;
    struct corral_error err;
    const char *path = in_folder("a");
    struct thread_job jobs[2] = {{.path = path, .letter = 'a'}, {.path = path, .letter = 'b'}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, write_often, &jobs[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_false(jobs[i].failed);
    }
    CORRAL_AUTO_FREE char *data = NULL;
    size_t bytes = 0;
    check_ok(corral_file_read(path, 1 << 20, &data, &bytes, &err));
    assert_int_equal(bytes, 5000);
    assert_int_equal(strspn(data, (char[]){data[0], '\0'}), 5000);
    assert_int_equal(count_entries(folder), 1);
}

static void write_all_reports_a_full_device(void **state)
{
    (void)state;
    struct corral_error err;
    CORRAL_AUTO_CLOSE int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        skip();
    }
    check_status(corral_write_all(fd, "x", 1, "the journal", &err), CORRAL_IO);
    assert_int_equal(err.sys, ENOSPC);
    assert_non_null(strstr(err.text, "the journal"));
    check_ok(corral_write_all(fd, NULL, 0, "nothing", &err));
}

static void *drain(void *arg)
{
    const int fd = *(const int *)arg;
    static size_t total;
    char data[777];
    total = 0;
    for (ssize_t n; (n = read(fd, data, sizeof data)) > 0;) {
        total += (size_t)n;
    }
    return &total;
}

static void write_all_goes_on_after_short_writes(void **state)
{
    (void)state;
    struct corral_error err;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pthread_t reader;
    assert_int_equal(pthread_create(&reader, NULL, drain, &ends[0]), 0);
    CORRAL_AUTO_FREE char *data = calloc(1, 1 << 20);
    check_ok(corral_write_all(ends[1], data, 1 << 20, "the pipe", &err));
    close(ends[1]);
    void *total = NULL;
    pthread_join(reader, &total);
    assert_int_equal(*(const size_t *)total, 1 << 20);
    close(ends[0]);
}

/* ---- folders ---- */

static void folders_are_made_with_their_parents(void **state)
{
    (void)state;
    struct corral_error err;
    check_ok(corral_mkdirs(in_folder("a/b//c/"), 0700, &err));
    check_ok(corral_mkdirs(in_folder("a/b/c"), 0700, &err));
    struct stat st;
    assert_int_equal(stat(in_folder("a/b/c"), &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0700);
    check_ok(corral_mkdirs("/", 0700, &err));
    check_ok(corral_file_write_atomic(in_folder("file"), "x", 1, 0600, false, &err));
    check_status(corral_mkdirs(in_folder("file"), 0700, &err), CORRAL_IO);
    check_status(corral_mkdirs(in_folder("file/sub"), 0700, &err), CORRAL_IO);
    check_status(corral_mkdirs("", 0700, &err), CORRAL_INVALID);
}

static void a_tree_is_removed_without_following_links(void **state)
{
    (void)state;
    struct corral_error err;
    check_ok(corral_mkdirs(in_folder("outside"), 0700, &err));
    check_ok(corral_file_write_atomic(in_folder("outside/kept"), "x", 1, 0600, false, &err));
    check_ok(corral_mkdirs(in_folder("tree/a/b/c"), 0700, &err));
    check_ok(corral_file_write_atomic(in_folder("tree/a/b/file"), "x", 1, 0600, false, &err));
    assert_int_equal(symlink(in_folder("outside"), in_folder("tree/a/link")), 0);
    assert_int_equal(symlink("/absent", in_folder("tree/dangling")), 0);
    check_ok(corral_remove_tree(in_folder("tree"), &err));
    assert_int_equal(access(in_folder("tree"), F_OK), -1);
    check_content(in_folder("outside/kept"), "x");
    /* A link as the path itself goes; what it points to stays. */
    assert_int_equal(symlink(in_folder("outside"), in_folder("link")), 0);
    check_ok(corral_remove_tree(in_folder("link"), &err));
    check_content(in_folder("outside/kept"), "x");
    check_ok(corral_remove_tree(in_folder("outside/kept"), &err));
    check_ok(corral_remove_tree(in_folder("never-was"), &err));
}

static void a_tree_too_deep_is_refused_and_no_descriptor_leaks(void **state)
{
    (void)state;
    struct corral_error err;
    char deep[2048];
    int n = snprintf(deep, sizeof deep, "%s/deep", folder);
    for (int i = 0; i < 200; i++) {
        n += snprintf(deep + n, sizeof deep - (size_t)n, "/d");
    }
    check_ok(corral_mkdirs(deep, 0700, &err));
    const int before = count_entries("/proc/self/fd");
    check_status(corral_remove_tree(in_folder("deep"), &err), CORRAL_INVALID);
    assert_int_equal(count_entries("/proc/self/fd"), before);
    /* Take off the lower half, then the rest fits. */
    deep[strlen(deep) - 200] = '\0';
    check_ok(corral_remove_tree(deep, &err));
    check_ok(corral_remove_tree(in_folder("deep"), &err));
}

int main(void)
{
#define folder_test(f) cmocka_unit_test_setup_teardown(f, make_folder, drop_folder)
    const struct CMUnitTest tests[] = {
        folder_test(a_file_is_read_whole_up_to_the_limit),
        cmocka_unit_test(a_file_that_hides_its_size_is_read),
        folder_test(what_is_not_a_regular_file_is_refused),
        folder_test(a_write_replaces_the_file_and_sets_the_mode),
        folder_test(a_relative_path_is_written_durably),
        folder_test(a_full_disk_leaves_the_old_file_and_no_temporary),
        folder_test(a_failed_rename_or_create_leaves_nothing),
        folder_test(a_leftover_temporary_is_no_obstacle),
        folder_test(a_killed_writer_leaves_a_whole_file),
        folder_test(two_threads_may_write_one_file),
        cmocka_unit_test(write_all_reports_a_full_device),
        cmocka_unit_test(write_all_goes_on_after_short_writes),
        folder_test(folders_are_made_with_their_parents),
        folder_test(a_tree_is_removed_without_following_links),
        folder_test(a_tree_too_deep_is_refused_and_no_descriptor_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
