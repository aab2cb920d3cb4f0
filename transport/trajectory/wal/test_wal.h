/* What the tests of the log share: records that follow from their position, folders, reading all of it. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_TEST_WAL_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_TEST_WAL_H

#include "base/error.h"
#include "transport/trajectory/wal/wal.h"

#define TEST_RUN 77
#define TEST_RECORD_MAX 4096
#define TEST_FOLDER_BYTES 128

void test_folder(char out[TEST_FOLDER_BYTES]); /* new, in TMPDIR */
void test_remove(const char *folder);
/* The record of a position: the same each time. */
uint64_t test_record(uint64_t position, uint8_t out[TEST_RECORD_MAX]);
struct corral_wal *test_open(const char *folder, uint64_t segment_bytes, enum corral_wal_sync sync);
/* Appends up to that position; fails the test if one is refused. */
void test_append(struct corral_wal *w, uint64_t upto);
void test_wait_durable(struct corral_wal *w, uint64_t position);
/* Reads from `from` to the end, checks every byte and that nothing is left out. Returns the last position, or from - 1. */
uint64_t test_read(const char *folder, uint64_t from, enum corral_status *end, struct corral_error *err);
/* The file of the segment that begins at `first`. */
void test_segment(const char *folder, uint64_t first, char out[TEST_FOLDER_BYTES + 32]);

#endif
