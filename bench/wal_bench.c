/* The trajectory log's throughput until everything is durable, as a ratio to a plain write + fdatasync of the same bytes, in turns in one run; and how long one record takes to be durable.
 *
 * WHAT IS COMPARED. plain: pwrite of each record into a fresh file that was preallocated as the log's segments are, then one fdatasync. log: append of each record, then waiting until
 * durable() covers the last: check sums, framing and group commit included. Latency: one record of 1 KiB, appended or written, until it is durable.
 *
 * usage: bench_wal [FOLDER] [MiB per round] [rounds]      (default: ., 64, 9) */
#include "base/clock.h"
#include "base/file.h"
#include "transport/trajectory/wal/wal.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROUNDS_MAX 101
#define LATENCY_RECORDS 50
#define SEGMENT (UINT64_C(16) << 20)

struct figure {
    double sample[ROUNDS_MAX];
    uint32_t count;
};

static void die(const char *what)
{
    fprintf(stderr, "bench_wal: %s\n", what);
    exit(1);
}

static double seconds(void)
{
    return (double)corral_now_ns(&corral_clock_monotonic) / 1e9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(struct figure *f)
{
    qsort(f->sample, f->count, sizeof f->sample[0], by_value);
    return f->sample[f->count / 2];
}

static void wait_durable(struct corral_wal *w, uint64_t position)
{
    struct corral_error err;
    uint64_t durable = 0, drained;
    for (;;) {
        if (corral_wal_durable(w, &durable, &err) != CORRAL_OK) {
            die(err.text);
        }
        if (durable >= position) {
            return;
        }
        struct pollfd bell = {.fd = corral_wal_bell(w), .events = POLLIN};
        if (poll(&bell, 1, -1) == 1 && read(bell.fd, &drained, sizeof drained) < 0) {
            die("the log's bell");
        }
    }
}

static struct corral_wal *open_log(const char *folder, enum corral_wal_sync sync, int level)
{
    struct corral_error err;
    struct corral_wal *w = NULL;
    struct corral_wal_options o = {
        .folder = folder, .run = 1, .segment_bytes = SEGMENT, .sync = sync, .zstd_level = level};
    if (corral_remove_tree(folder, &err) != CORRAL_OK || corral_wal_open(&w, &o, &err) != CORRAL_OK) {
        die(err.text);
    }
    return w;
}

static double run_log(const char *folder, const uint8_t *record, uint64_t bytes, uint64_t count,
                      enum corral_wal_sync sync)
{
    struct corral_error err;
    struct corral_wal *w = open_log(folder, sync, 0);
    uint64_t position = 0;
    double begun = seconds();
    for (uint64_t i = 0; i < count; i++) {
        if (corral_wal_append(w, record, bytes, &position, &err) != CORRAL_OK) {
            die(err.text);
        }
    }
    wait_durable(w, position);
    double took = seconds() - begun;
    corral_wal_close(w, &err);
    return took;
}

static int plain_file(const char *folder, uint64_t bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.plain", folder);
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, (off_t)bytes) != 0 || fsync(fd) != 0) {
        die("cannot make the plain file");
    }
    unlink(path);
    return fd;
}

static double run_plain(const char *folder, const uint8_t *record, uint64_t bytes, uint64_t count, bool sync)
{
    int fd = plain_file(folder, bytes * count);
    double begun = seconds();
    for (uint64_t i = 0; i < count; i++) {
        if (pwrite(fd, record, bytes, (off_t)(i * bytes)) != (ssize_t)bytes) {
            die("plain write");
        }
    }
    if (sync && fdatasync(fd) != 0) {
        die("plain fdatasync");
    }
    double took = seconds() - begun;
    close(fd);
    return took;
}

static void throughput(const char *folder, uint64_t bytes, uint64_t total, uint32_t rounds)
{
    struct figure plain = {.count = rounds}, log = plain, kernel = plain, never = plain;
    uint64_t count = total / bytes;
    uint8_t *record = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i++) {
        record[i] = (uint8_t)(i * 2654435761u >> 7);
    }
    for (uint32_t r = 0; r < rounds; r++) {
        double mib = (double)(count * bytes) / 1048576;
        plain.sample[r] = mib / run_plain(folder, record, bytes, count, true);
        log.sample[r] = mib / run_log(folder, record, bytes, count, CORRAL_WAL_SYNC_GROUP);
        kernel.sample[r] = mib / run_plain(folder, record, bytes, count, false);
        never.sample[r] = mib / run_log(folder, record, bytes, count, CORRAL_WAL_SYNC_NEVER);
    }
    double p = median(&plain), g = median(&log), k = median(&kernel), n = median(&never);
    printf("%8llu B  plain %7.0f MiB/s  log (group) %7.0f [%.0f-%.0f]  ratio %.2f   |  write only %7.0f  log "
           "(never) %7.0f  ratio %.2f\n",
           (unsigned long long)bytes, p, g, log.sample[0], log.sample[rounds - 1], g / p, k, n, n / k);
    free(record);
}

static void latency(const char *folder)
{
    struct corral_error err;
    uint8_t record[1024] = {1};
    struct figure plain = {.count = LATENCY_RECORDS}, log = plain;
    struct corral_wal *w = open_log(folder, CORRAL_WAL_SYNC_GROUP, 0);
    int fd = plain_file(folder, sizeof record * LATENCY_RECORDS);
    for (uint32_t i = 0; i < LATENCY_RECORDS; i++) {
        uint64_t position;
        double begun = seconds();
        if (pwrite(fd, record, sizeof record, (off_t)(i * sizeof record)) < 0 || fdatasync(fd) != 0) {
            die("plain write");
        }
        double between = seconds();
        if (corral_wal_append(w, record, sizeof record, &position, &err) != CORRAL_OK) {
            die(err.text);
        }
        wait_durable(w, position);
        plain.sample[i] = (between - begun) * 1e6;
        log.sample[i] = (seconds() - between) * 1e6;
    }
    double p = median(&plain), g = median(&log);
    printf("one record durable: plain %.0f us, log %.0f us (median of %d)\n", p, g, LATENCY_RECORDS);
    close(fd);
    corral_wal_close(w, &err);
}

int main(int argc, char **argv)
{
    char folder[3000];
    uint64_t mib = argc > 2 ? strtoull(argv[2], NULL, 10) : 64;
    uint32_t rounds = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 9;
    if (mib == 0 || rounds == 0 || rounds > ROUNDS_MAX) {
        die("usage: bench_wal [FOLDER] [MiB per round] [rounds]");
    }
    snprintf(folder, sizeof folder, "%s/bench-wal-%d", argc > 1 ? argv[1] : ".", (int)getpid());
    static const uint64_t sizes[] = {1024, 16384, 262144, 1048576};
    for (size_t i = 0; i < CORRAL_COUNT_OF(sizes); i++) {
        throughput(folder, sizes[i], mib << 20, rounds);
    }
    latency(folder);
    struct corral_error err;
    return corral_remove_tree(folder, &err) == CORRAL_OK ? 0 : 1;
}
