#include "transport/trajectory/wal/test_wal.h"
#include "base/file.h"
#include "base/rng.h"
#include "tests/check.h"
#include "transport/trajectory/wal/files.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void test_folder(char out[TEST_FOLDER_BYTES])
{
    const char *base = getenv("TMPDIR");
    snprintf(out, TEST_FOLDER_BYTES, "%s/corral-wal-XXXXXX",
             base != NULL && strlen(base) < 80 ? base : "/tmp");
    assert_non_null(mkdtemp(out));
}

void test_remove(const char *folder)
{
    struct corral_error err;
    check_ok(corral_remove_tree(folder, &err));
}

uint64_t test_record(uint64_t position, uint8_t out[TEST_RECORD_MAX])
{
    struct corral_rng rng;
    corral_rng_seed(&rng, corral_seed_derive(5, position, 0, 0));
    uint64_t bytes = 1 + corral_rng_below(&rng, position % 7 == 0 ? TEST_RECORD_MAX : 300);
    for (uint64_t i = 0; i < bytes; i++) {
        out[i] = (uint8_t)(corral_rng_next(&rng) & 0x3f); /* compresses a little */
    }
    return bytes;
}

struct corral_wal *test_open(const char *folder, uint64_t segment_bytes, enum corral_wal_sync sync)
{
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {
        .folder = folder, .run = TEST_RUN, .segment_bytes = segment_bytes, .sync = sync};
    check_ok(corral_wal_open(&w, &o, &err));
    return w;
}

void test_append(struct corral_wal *w, uint64_t upto)
{
    struct corral_error err;
    uint8_t record[TEST_RECORD_MAX];
    while (corral_wal_last(w) < upto) {
        uint64_t bytes = test_record(corral_wal_last(w) + 1, record), position = 0;
        check_ok(corral_wal_append(w, record, bytes, &position, &err));
        assert_int_equal(position, corral_wal_last(w));
    }
}

void test_wait_durable(struct corral_wal *w, uint64_t position)
{
    for (;;) {
        struct corral_error err;
        struct pollfd bell = {.fd = corral_wal_bell(w), .events = POLLIN};
        uint64_t durable = 0, drained;
        check_ok(corral_wal_durable(w, &durable, &err));
        if (durable >= position) {
            return;
        }
        assert_int_equal(poll(&bell, 1, 60000), 1);
        assert_int_equal(read(bell.fd, &drained, sizeof drained), sizeof drained);
    }
}

uint64_t test_read(const char *folder, uint64_t from, enum corral_status *end, struct corral_error *err)
{
    struct corral_wal_reader *r = NULL;
    *end = corral_wal_reader_open(&r, folder, from, err);
    uint64_t last = from - 1;
    while (*end == CORRAL_OK) {
        struct corral_wal_item item;
        uint8_t expected[TEST_RECORD_MAX];
        *end = corral_wal_reader_next(r, &item, err);
        if (*end != CORRAL_OK) {
            break;
        }
        assert_int_equal(item.position, last + 1);
        assert_int_equal((uintptr_t)item.data % 64, 0);
        uint64_t bytes = test_record(item.position, expected);
        assert_int_equal(item.bytes, bytes);
        assert_memory_equal(item.data, expected, bytes);
        last = item.position;
    }
    corral_wal_reader_close(r);
    return last;
}

void test_segment(const char *folder, uint64_t first, char out[TEST_FOLDER_BYTES + 32])
{
    char name[WAL_NAME_BYTES];
    wal_name(first, name);
    snprintf(out, TEST_FOLDER_BYTES + 32, "%s/%s", folder, name);
}
