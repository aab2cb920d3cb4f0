/* A file system that fails: full, broken, taken away. What fails stays failed, and nothing is called durable that is not. */
#include "tests/check.h"
#include "transport/trajectory/wal/test_wal.h"
#include "transport/trajectory/wal/wal_private.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEGMENT 16384

enum call { CREATE, WRITE, TRUNCATE, SYNC, SYNC_FOLDER, RENAME, UNLINK, CALLS };

struct broken {
    _Atomic int failing; /* of `call`, after so many more that work; -1: never */
    enum call call;
    int code;
    bool part; /* a write takes a part first */
};

static char folder[TEST_FOLDER_BYTES];

static bool fails(struct broken *b, enum call call)
{
    if (b->call != call || atomic_load(&b->failing) < 0 || atomic_fetch_sub(&b->failing, 1) > 0) {
        return false;
    }
    atomic_store(&b->failing, 0);
    errno = b->code;
    return true;
}

static int broken_create(void *ctx, int at, const char *name, uint64_t bytes)
{
    return fails(ctx, CREATE) ? -1 : wal_files_real.create(NULL, at, name, bytes);
}
static ssize_t broken_pwritev(void *ctx, int fd, const struct iovec *parts, int count, uint64_t at)
{
    struct broken *b = ctx;
    if (fails(b, WRITE)) {
        if (b->part) {
            b->part = false; /* the rest fails the next time */
            return pwrite(fd, parts[0].iov_base, parts[0].iov_len / 2, (off_t)at);
        }
        return -1;
    }
    return wal_files_real.pwritev(NULL, fd, parts, count, at);
}
static int broken_truncate(void *ctx, int fd, uint64_t bytes)
{
    return fails(ctx, TRUNCATE) ? -1 : wal_files_real.truncate(NULL, fd, bytes);
}
static int broken_sync(void *ctx, int fd)
{
    return fails(ctx, SYNC) ? -1 : wal_files_real.sync(NULL, fd);
}
static int broken_sync_folder(void *ctx, int fd)
{
    return fails(ctx, SYNC_FOLDER) ? -1 : wal_files_real.sync_folder(NULL, fd);
}
static int broken_rename(void *ctx, int at, const char *from, const char *to)
{
    return fails(ctx, RENAME) ? -1 : wal_files_real.rename(NULL, at, from, to);
}
static int broken_unlink(void *ctx, int at, const char *name)
{
    return fails(ctx, UNLINK) ? -1 : wal_files_real.unlink(NULL, at, name);
}

static struct wal_files broken_files(struct broken *b)
{
    return (struct wal_files){.create = broken_create,
                              .pwritev = broken_pwritev,
                              .truncate = broken_truncate,
                              .sync = broken_sync,
                              .sync_folder = broken_sync_folder,
                              .rename = broken_rename,
                              .unlink = broken_unlink,
                              .ctx = b};
}

static int set_up(void **state)
{
    (void)state;
    test_folder(folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_remove(folder);
    return 0;
}

/* Appends until that fails; returns what was durable at the end. */
static uint64_t append_until_failure(struct corral_wal *w, struct corral_error *err)
{
    uint8_t record[TEST_RECORD_MAX];
    uint64_t position, durable;
    enum corral_status status = CORRAL_OK;
    while (status == CORRAL_OK) {
        status = corral_wal_append(w, record, test_record(corral_wal_last(w) + 1, record), &position, err);
        assert_true(corral_wal_last(w) < 100000);
    }
    assert_int_equal(status, CORRAL_IO);
    check_status(corral_wal_append(w, record, 10, &position, NULL), CORRAL_IO); /* sticky */
    check_status(corral_wal_trim(w, 1, NULL), CORRAL_IO);
    check_status(corral_wal_durable(w, &durable, err), CORRAL_IO);
    return durable;
}

static void check_fault(enum call call, int code, int after, bool part)
{
    struct corral_error err = {0};
    enum corral_status end;
    struct broken b = {.failing = -1, .call = call, .code = code, .part = part};
    struct wal_files files = broken_files(&b);
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .segment_bytes = SEGMENT};
    check_ok(wal_open_with(&w, &o, &files, &err));
    atomic_store(&b.failing, after);
    uint64_t last = 0, durable = append_until_failure(w, &err);
    assert_int_equal(err.sys, code);
    assert_non_null(strstr(err.text, folder));
    last = corral_wal_last(w);
    struct pollfd bell = {.fd = corral_wal_bell(w), .events = POLLIN};
    assert_int_equal(poll(&bell, 1, 60000), 1); /* who waits for durable() hears of it */
    check_status(corral_wal_close(w, &err), CORRAL_IO);
    uint64_t read = test_read(folder, 1, &end, &err);
    assert_int_equal(end, CORRAL_AGAIN);
    assert_true(read >= durable && read <= last);
    w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP); /* repaired: goes on */
    assert_int_equal(corral_wal_last(w), read);
    test_append(w, read + 100);
    check_ok(corral_wal_close(w, &err));
    assert_int_equal(test_read(folder, 1, &end, &err), read + 100);
}

static void a_full_disk_stops_the_log_and_loses_nothing(void **state)
{
    (void)state;
    check_fault(WRITE, ENOSPC, 50, false);
    check_fault(WRITE, ENOSPC, 3, true);
    check_fault(CREATE, ENOSPC, 2, false);
    check_fault(WRITE, EDQUOT, 0, false);
}

static void a_sync_that_fails_is_never_tried_again(void **state)
{
    (void)state;
    check_fault(SYNC, EIO, 0, false);
    check_fault(SYNC, EIO, 7, false);
    check_fault(SYNC_FOLDER, EIO, 0, false);
    check_fault(TRUNCATE, EIO, 1, false);
    check_fault(RENAME, EIO, 1, false);
}

static void no_failure_while_opening_leaves_a_log_that_cannot_be_opened(void **state)
{
    (void)state;
    struct corral_error err;
    enum corral_status end;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    test_append(w, 200);
    check_ok(corral_wal_close(w, &err));
    for (int call = CREATE; call < CALLS; call++) {
        for (int after = 0; after < 3; after++) {
            struct broken b = {.failing = after, .call = (enum call)call, .code = EIO};
            struct wal_files files = broken_files(&b);
            struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .segment_bytes = SEGMENT};
            w = NULL;
            if (wal_open_with(&w, &o, &files, &err) == CORRAL_OK) {
                corral_wal_close(w, &err);
            }
            assert_int_equal(test_read(folder, 1, &end, &err), 200);
            assert_int_equal(end, CORRAL_AGAIN);
        }
    }
    w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    assert_int_equal(corral_wal_last(w), 200);
    check_ok(corral_wal_close(w, &err));
}

static void a_folder_that_is_taken_away_is_noticed(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    test_append(w, 10);
    test_wait_durable(w, 10);
    test_remove(folder);
    uint64_t durable = append_until_failure(w, &err);
    assert_true(durable >= 10);
    check_status(corral_wal_close(w, &err), CORRAL_IO);
}

static void a_folder_that_cannot_be_written_is_refused_and_can_be_read(void **state)
{
    (void)state;
    struct corral_error err;
    enum corral_status end;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    test_append(w, 10);
    check_ok(corral_wal_close(w, &err));
    char lock[TEST_FOLDER_BYTES + 8];
    snprintf(lock, sizeof lock, "%s/lock", folder);
    unlink(lock);
    assert_int_equal(chmod(folder, 0500), 0);
    if (geteuid() != 0) {
        struct corral_wal_options o = {.folder = folder, .run = TEST_RUN};
        check_status(corral_wal_open(&w, &o, &err), CORRAL_IO);
    }
    assert_int_equal(test_read(folder, 1, &end, &err), 10);
    assert_int_equal(chmod(folder, 0700), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_full_disk_stops_the_log_and_loses_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_sync_that_fails_is_never_tried_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_failure_while_opening_leaves_a_log_that_cannot_be_opened, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_folder_that_is_taken_away_is_noticed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_folder_that_cannot_be_written_is_refused_and_can_be_read, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
