/* Torn ends are cut off; anything else that is wrong is an error that names the place. */
#include "base/rng.h"
#include "tests/check.h"
#include "transport/trajectory/wal/test_wal.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEGMENT 16384
#define RECORDS 200

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

/* A log of RECORDS records, closed in order. Returns the first position of its second segment, and of its last. */
static uint64_t make_log(uint64_t *last_segment)
{
    struct corral_error err;
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    uint64_t second = 0;
    for (uint64_t i = 1; i <= RECORDS; i++) {
        test_append(w, i);
        char path[TEST_FOLDER_BYTES + 32];
        struct stat st;
        test_segment(folder, i, path);
        if (i > 1 && stat(path, &st) == 0) {
            second = second == 0 ? i : second;
            *last_segment = i;
        }
        test_wait_durable(w, i);
    }
    check_ok(corral_wal_close(w, &err));
    assert_true(second > 1 && *last_segment > second);
    return second;
}

static uint64_t file_size(uint64_t first)
{
    char path[TEST_FOLDER_BYTES + 32];
    struct stat st;
    test_segment(folder, first, path);
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static void flip(uint64_t first, uint64_t at)
{
    char path[TEST_FOLDER_BYTES + 32];
    test_segment(folder, first, path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static void shorten(uint64_t first, uint64_t bytes)
{
    char path[TEST_FOLDER_BYTES + 32];
    test_segment(folder, first, path);
    assert_int_equal(truncate(path, (off_t)bytes), 0);
}

static void delete (uint64_t first)
{
    char path[TEST_FOLDER_BYTES + 32];
    test_segment(folder, first, path);
    assert_int_equal(unlink(path), 0);
}

static void expect_damage(bool writer_too)
{
    struct corral_error err;
    enum corral_status end;
    assert_true(test_read(folder, 1, &end, &err) < RECORDS);
    assert_int_equal(end, CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, ".wal is damaged at offset"));
    if (writer_too) {
        struct corral_wal *w = NULL;
        struct corral_wal_options o = {.folder = folder, .run = TEST_RUN};
        check_status(corral_wal_open(&w, &o, &err), CORRAL_PROTOCOL);
        assert_non_null(strstr(err.text, ".wal is damaged at offset"));
    }
}

static void a_flipped_bit_anywhere_is_found(void **state)
{
    (void)state;
    uint64_t last = 0, second = make_log(&last);
    uint64_t bytes = file_size(second), at;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    for (uint32_t i = 0; i < 60; i++) {
        at = corral_rng_below(&rng, bytes);
        struct corral_error err;
        enum corral_status end;
        flip(second, at);
        uint64_t read = test_read(folder, 1, &end, &err);
        /* The padding behind a record is covered by nothing and means nothing. */
        if (end != CORRAL_PROTOCOL && (end != CORRAL_AGAIN || read != RECORDS)) {
            fail_msg("bit at %lu: read %lu, %s", (unsigned long)at, (unsigned long)read, err.text);
        }
        flip(second, at);
    }
    flip(second, 8); /* the header of a segment */
    expect_damage(false);
}

static void damage_in_the_newest_segment_is_no_torn_end(void **state)
{
    (void)state;
    uint64_t last = 0;
    make_log(&last);
    flip(last, 64 + 16); /* its first frame; later ones know that it was durable */
    expect_damage(true);
}

static void damage_to_the_last_record_of_a_closed_log_is_no_torn_end(void **state)
{
    (void)state;
    uint64_t last = 0;
    make_log(&last);
    flip(last, file_size(last) - 64 - 64); /* END stands behind it */
    expect_damage(true);
}

static void a_missing_segment_is_damage(void **state)
{
    (void)state;
    uint64_t last = 0, second = make_log(&last);
    delete (second);
    expect_damage(false);
}

static void a_segment_that_was_cut_short_is_damage(void **state)
{
    (void)state;
    uint64_t last = 0, second = make_log(&last);
    shorten(second, file_size(second) / 2);
    expect_damage(false);
}

static void an_end_torn_anywhere_is_cut_off_and_written_over(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 40; i++) {
        struct corral_error err;
        enum corral_status end;
        char own[TEST_FOLDER_BYTES];
        memcpy(own, folder, sizeof own);
        test_folder(folder);
        /* Nothing is synced but by close(), so that nothing vouches for what is torn. */
        struct corral_wal *w = test_open(folder, 1 << 20, CORRAL_WAL_SYNC_NEVER);
        test_append(w, 50);
        check_ok(corral_wal_close(w, &err));
        shorten(1, 64 + (file_size(1) - 64) * i / 40);
        if (i % 2) {
            flip(1, file_size(1) - 1 - i);
        }
        uint64_t left = test_read(folder, 1, &end, &err);
        assert_int_equal(end, CORRAL_AGAIN);
        assert_true(left < 50);
        w = test_open(folder, 1 << 20, CORRAL_WAL_SYNC_GROUP);
        assert_int_equal(corral_wal_last(w), left);
        test_append(w, 60);
        check_ok(corral_wal_close(w, &err));
        assert_int_equal(test_read(folder, 1, &end, &err), 60);
        assert_int_equal(end, CORRAL_AGAIN);
        test_remove(folder);
        memcpy(folder, own, sizeof own);
    }
}

static void garbage_in_the_folder_is_not_the_logs(void **state)
{
    (void)state;
    struct corral_error err;
    enum corral_status end;
    uint64_t last = 0;
    make_log(&last);
    static const char *const names[] = {"new.tmp",
                                        "notes.txt",
                                        "1.wal",
                                        "0000000000000000000x.wal",
                                        "00000000000000000000.wal",
                                        "99999999999999999999.wal"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(names); i++) {
        char path[TEST_FOLDER_BYTES + 40];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        close(fd);
    }
    assert_int_equal(test_read(folder, 1, &end, &err), RECORDS);
    struct corral_wal *w = test_open(folder, SEGMENT, CORRAL_WAL_SYNC_GROUP);
    assert_int_equal(corral_wal_last(w), RECORDS);
    check_ok(corral_wal_close(w, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_flipped_bit_anywhere_is_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damage_in_the_newest_segment_is_no_torn_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damage_to_the_last_record_of_a_closed_log_is_no_torn_end, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_missing_segment_is_damage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_segment_that_was_cut_short_is_damage, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_end_torn_anywhere_is_cut_off_and_written_over, set_up, tear_down),
        cmocka_unit_test_setup_teardown(garbage_in_the_folder_is_not_the_logs, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
