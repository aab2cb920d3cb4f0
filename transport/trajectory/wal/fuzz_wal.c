/* Any bytes as the segments of a log: the reader gives records or an error, and the writer opens it or refuses. The first byte says where the input is cut in two files. */
#include "transport/trajectory/wal/files.h"
#include "transport/trajectory/wal/format.h"
#include "transport/trajectory/wal/wal.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

static void clean_up(void)
{
    rmdir(folder);
}

/* Checks are made right, so that what is behind them is reached. */
static void mend(uint8_t *bytes, size_t count)
{
    for (size_t at = 0; at + WAL_ALIGN <= count; at += WAL_ALIGN) {
        if (bytes[at] == 'C') {
            uint64_t check = wal_digest(bytes + at, WAL_ALIGN - 8);
            memcpy(bytes + at + WAL_ALIGN - 8, &check, sizeof check);
        }
    }
}

static void write_segment(uint64_t first, const uint8_t *bytes, size_t count)
{
    char name[WAL_NAME_BYTES], path[128];
    wal_name(first, name);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, bytes, count) != (ssize_t)count) {
        abort();
    }
    close(fd);
}

static void remove_all(void)
{
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct wal_list list = {0};
    if (dir < 0 || wal_list_read(&list, dir, NULL) != CORRAL_OK) {
        abort();
    }
    for (uint32_t i = 0; i < list.count; i++) {
        char name[WAL_NAME_BYTES];
        wal_name(list.first[i], name);
        unlinkat(dir, name, 0);
    }
    unlinkat(dir, "lock", 0);
    close(dir);
    wal_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (folder[0] == '\0') {
        snprintf(folder, sizeof folder, "/tmp/corral-fuzz-wal-XXXXXX");
        if (mkdtemp(folder) == NULL) {
            abort();
        }
        atexit(clean_up);
    }
    if (size < 2 || size > 1 << 16) {
        return 0;
    }
    size_t cut = (size_t)data[0] * WAL_ALIGN;
    uint64_t second = 1 + data[1] % 8;
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 2, size - 2);
    mend(copy, size - 2);
    cut = cut < size - 2 ? cut : size - 2;
    write_segment(1, copy, cut);
    if (second > 1) {
        write_segment(second, copy + cut, size - 2 - cut);
    }
    free(copy);
    struct corral_wal_reader *r = NULL;
    struct corral_wal_item item;
    uint64_t before = 0;
    if (corral_wal_reader_open(&r, folder, 0, NULL) == CORRAL_OK) {
        while (corral_wal_reader_next(r, &item, NULL) == CORRAL_OK) {
            if (item.position <= before || item.bytes == 0) {
                abort();
            }
            before = item.position;
        }
        corral_wal_reader_close(r);
    }
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {
        .folder = folder, .run = 0, .segment_bytes = 4096, .sync = CORRAL_WAL_SYNC_NEVER};
    if (corral_wal_open(&w, &o, NULL) == CORRAL_OK) {
        corral_wal_close(w, NULL);
    }
    remove_all();
    return 0;
}
