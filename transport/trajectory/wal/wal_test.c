/* Appending, reading beside the writer, going on, trimming, limits. */
#include "base/file.h"
#include "tests/check.h"
#include "transport/trajectory/wal/test_wal.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEGMENT 16384

static char folder[TEST_FOLDER_BYTES];

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

static uint64_t read_all(uint64_t from)
{
    struct corral_error err;
    enum corral_status end;
    uint64_t last = test_read(folder, from, &end, &err);
    if (end != CORRAL_AGAIN) {
        fail_msg("%s", err.text);
    }
    return last;
}

static void gives_back_what_was_appended_over_many_segments(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    assert_int_equal(corral_wal_first(w), 1);
    assert_int_equal(corral_wal_last(w), 0);
    test_append(w, 500);
    assert_int_equal(read_all(1), 500); /* before it is durable, too: it is in the kernel */
    test_wait_durable(w, 500);
    check_ok(corral_wal_close(w, &err));
    assert_int_equal(read_all(1), 500);
    assert_int_equal(read_all(321), 500);
}

static void goes_on_where_it_was_closed(void **state)
{
    (void)state;
    struct corral_error err;
    for (uint64_t upto = 0; upto <= 300; upto += 60) {
        struct corral_wal *w =
            test_open(folder, SEGMENT, upto % 120 ? CORRAL_WAL_SYNC_GROUP : CORRAL_WAL_SYNC_NEVER);
        assert_int_equal(corral_wal_last(w), upto > 0 ? upto - 60 : 0);
        test_append(w, upto);
        check_ok(corral_wal_close(w, &err));
    }
    assert_int_equal(read_all(1), 300);
}

static void a_reader_follows_the_writer(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    struct corral_wal_reader *r = NULL;
    struct corral_wal_item item;
    check_ok(corral_wal_reader_open(&r, folder, 0, &err));
    check_status(corral_wal_reader_next(r, &item, &err), CORRAL_AGAIN);
    for (uint64_t i = 1; i <= 400; i++) {
        test_append(w, i);
        check_ok(corral_wal_reader_next(r, &item, &err));
        assert_int_equal(item.position, i);
        check_status(corral_wal_reader_next(r, &item, &err), CORRAL_AGAIN);
    }
    check_ok(corral_wal_close(w, &err));
    w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP); /* the reader crosses over into the next life */
    check_status(corral_wal_reader_next(r, &item, &err), CORRAL_AGAIN);
    test_append(w, 401);
    check_ok(corral_wal_reader_next(r, &item, &err));
    assert_int_equal(item.position, 401);
    corral_wal_reader_close(r);
    check_ok(corral_wal_close(w, &err));
}

static void what_is_trimmed_is_gone_and_the_rest_is_there(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    struct corral_wal_reader *slow = NULL;
    struct corral_wal_item item;
    test_append(w, 400);
    test_wait_durable(w, 400);
    check_ok(corral_wal_reader_open(&slow, folder, 0, &err));
    check_ok(corral_wal_reader_next(slow, &item, &err));
    check_ok(corral_wal_trim(w, 250, &err));
    uint64_t first = corral_wal_first(w);
    assert_true(first > 100 && first <= 251);
    assert_int_equal(read_all(first), 400);
    struct corral_wal_extent extent;
    check_ok(corral_wal_measure(folder, &extent, &err));
    assert_int_equal(extent.first, first);
    assert_int_equal(extent.last, 400);
    assert_int_equal(extent.run, TEST_RUN);
    assert_true(extent.segments > 1 && extent.bytes >= extent.segments * 64 &&
                extent.begun_ns <= extent.newest_ns);
    uint64_t before = 1; /* it finishes its segment, and then skips what is gone */
    while (corral_wal_reader_next(slow, &item, &err) == CORRAL_OK) {
        assert_true(item.position == before + 1 || item.position == first);
        before = item.position;
    }
    assert_int_equal(before, 400);
    corral_wal_reader_close(slow);
    check_ok(corral_wal_close(w, &err));
    w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    assert_int_equal(corral_wal_first(w), first);
    check_ok(corral_wal_trim(w, 400, &err)); /* all that has been closed */
    assert_int_equal(corral_wal_first(w), 401);
    check_ok(corral_wal_close(w, &err));
    w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP); /* positions are never used again */
    assert_int_equal(corral_wal_last(w), 400);
    check_ok(corral_wal_close(w, &err));
}

static void a_full_log_refuses_until_it_is_trimmed(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .bytes_max = 65536};
    check_ok(corral_wal_open(&w, &o, &err));
    uint8_t record[TEST_RECORD_MAX];
    uint64_t position = 0;
    enum corral_status status = CORRAL_OK;
    while (status == CORRAL_OK) {
        status = corral_wal_append(w, record, test_record(corral_wal_last(w) + 1, record), &position, &err);
    }
    assert_int_equal(status, CORRAL_DENIED);
    assert_non_null(strstr(err.text, "65536"));
    uint64_t full = corral_wal_last(w);
    assert_int_equal(full, position);
    test_wait_durable(w, full);
    check_ok(corral_wal_trim(w, full, &err));
    test_append(w, full + 5);
    check_ok(corral_wal_close(w, &err));
    assert_int_equal(read_all(full + 1), full + 5);
}

/* Opened while it is full, a log has no segment to write to; trimmed then, it must not forget how far it was. */
static void a_full_log_that_is_opened_and_trimmed_keeps_its_positions(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .bytes_max = 65536};
    uint8_t record[TEST_RECORD_MAX];
    uint64_t position = 0;
    check_ok(corral_wal_open(&w, &o, &err));
    while (corral_wal_append(w, record, test_record(corral_wal_last(w) + 1, record), &position, &err) ==
           CORRAL_OK) {
    }
    uint64_t full = corral_wal_last(w);
    check_ok(corral_wal_close(w, &err));
    check_ok(corral_wal_open(&w, &o, &err));
    check_ok(corral_wal_trim(w, full, &err));
    assert_int_equal(corral_wal_first(w), full + 1);
    check_ok(corral_wal_close(w, &err));
    check_ok(corral_wal_open(&w, &o, &err));
    assert_int_equal(corral_wal_last(w), full);
    test_append(w, full + 5);
    check_ok(corral_wal_close(w, &err));
    assert_int_equal(read_all(full + 1), full + 5);
}

static void a_record_larger_than_a_segment_gets_one_of_its_own(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, 4096, CORRAL_WAL_SYNC_GROUP);
    uint64_t bytes = 1000001, position = 0;
    uint8_t *big = calloc(1, bytes);
    big[bytes - 1] = 9;
    check_ok(corral_wal_append(w, big, bytes, &position, &err));
    check_status(corral_wal_append(w, big, 0, &position, &err), CORRAL_INVALID);
    check_status(corral_wal_append(w, big, UINT64_C(1) << 31, &position, &err), CORRAL_INVALID);
    check_ok(corral_wal_close(w, &err));
    struct corral_wal_reader *r = NULL;
    struct corral_wal_item item;
    check_ok(corral_wal_reader_open(&r, folder, 0, &err));
    check_ok(corral_wal_reader_next(r, &item, &err));
    assert_int_equal(item.bytes, bytes);
    assert_memory_equal(item.data, big, bytes);
    corral_wal_reader_close(r);
    free(big);
}

static void compressed_records_come_back_as_they_were(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {
        .folder = folder, .run = TEST_RUN, .segment_bytes = SEGMENT, .zstd_level = 1};
    enum corral_status status = corral_wal_open(&w, &o, &err);
    if (status == CORRAL_UNSUPPORTED) {
        print_message("skipped: %s\n", err.text);
        return;
    }
    check_ok(status);
    test_append(w, 300);
    check_ok(corral_wal_close(w, &err));
    assert_int_equal(read_all(1), 300);
}

static void two_writers_are_one_too_many(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP), *second = NULL;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN};
    check_status(corral_wal_open(&second, &o, &err), CORRAL_EXISTS);
    check_ok(corral_wal_close(w, &err));
}

static void another_runs_log_is_refused(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    test_append(w, 3);
    check_ok(corral_wal_close(w, &err));
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN + 1};
    check_status(corral_wal_open(&w, &o, &err), CORRAL_INVALID);
    assert_int_equal(read_all(1), 3);
}

static void options_out_of_range_are_refused(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .segment_bytes = 100};
    check_status(corral_wal_open(&w, &o, &err), CORRAL_INVALID);
    o = (struct corral_wal_options){.folder = "", .run = TEST_RUN};
    check_status(corral_wal_open(&w, &o, &err), CORRAL_INVALID);
    o = (struct corral_wal_options){.folder = folder, .run = TEST_RUN, .zstd_level = 99};
    check_status(corral_wal_open(&w, &o, &err), CORRAL_INVALID);
    struct corral_wal_reader *r = NULL;
    check_status(corral_wal_reader_open(&r, "no-such-folder", 0, &err), CORRAL_NOT_FOUND);
}

/* The child appends as fast as it can and says through a pipe what is durable. */
static void append_until_killed(int out)
{
    struct corral_error err;
    struct corral_wal_options o = {.folder = folder, .run = TEST_RUN, .segment_bytes = SEGMENT};
    struct corral_wal *w = NULL;
    uint8_t record[TEST_RECORD_MAX];
    if (corral_wal_open(&w, &o, &err) != CORRAL_OK) {
        _exit(1);
    }
    for (;;) {
        uint64_t position, durable;
        if (corral_wal_append(w, record, test_record(corral_wal_last(w) + 1, record), &position, &err) !=
                CORRAL_OK ||
            corral_wal_durable(w, &durable, &err) != CORRAL_OK ||
            write(out, &durable, sizeof durable) != sizeof durable) {
            _exit(1);
        }
    }
}

static void a_writer_killed_at_any_moment_has_kept_what_was_durable(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 20; round++) {
        int pipes[2];
        assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            close(pipes[0]);
            append_until_killed(pipes[1]);
        }
        close(pipes[1]);
        uint64_t durable = 0, said;
        for (uint32_t i = 0; i < 10 + round * 13; i++) {
            if (read(pipes[0], &said, sizeof said) == sizeof said) {
                durable = said;
            }
        }
        kill(child, SIGKILL);
        while (read(pipes[0], &said, sizeof said) == sizeof said) {
            durable = said;
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        close(pipes[0]);
        assert_true(read_all(1) >= durable);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(gives_back_what_was_appended_over_many_segments, set_up, tear_down),
        cmocka_unit_test_setup_teardown(goes_on_where_it_was_closed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reader_follows_the_writer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_trimmed_is_gone_and_the_rest_is_there, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_full_log_refuses_until_it_is_trimmed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_full_log_that_is_opened_and_trimmed_keeps_its_positions, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_record_larger_than_a_segment_gets_one_of_its_own, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(compressed_records_come_back_as_they_were, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_writers_are_one_too_many, set_up, tear_down),
        cmocka_unit_test_setup_teardown(another_runs_log_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(options_out_of_range_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_writer_killed_at_any_moment_has_kept_what_was_durable, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
