/* What the log's writer asks of the file system, as a table so that tests can count, fail and cut it, and the names of segments. Private to wal/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_FILES_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_FILES_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define WAL_NAME_BYTES 32
#define WAL_NEW_NAME "new.tmp" /* a segment before it has its header and its name */

/* As the system calls they are named after: -1 and errno. `folder` is a descriptor. Called by the appending thread and the log's own. */
struct wal_files {
    /* A new file of that many zero bytes, with blocks behind them where the file system can. */
    int (*create)(void *ctx, int folder, const char *name, uint64_t bytes);
    ssize_t (*pwritev)(void *ctx, int fd, const struct iovec *parts, int count, uint64_t at);
    int (*truncate)(void *ctx, int fd, uint64_t bytes);
    int (*sync)(void *ctx, int fd);
    int (*sync_folder)(void *ctx, int folder);
    int (*rename)(void *ctx, int folder, const char *from, const char *to);
    int (*unlink)(void *ctx, int folder, const char *name);
    void *ctx;
};

extern const struct wal_files wal_files_real;

/* Of the segment whose first position is `first`. */
void wal_name(uint64_t first, char out[WAL_NAME_BYTES]);

/* First positions of the segments in a folder, ascending. */
struct wal_list {
    uint64_t *first;
    uint32_t count;
};
enum corral_status wal_list_read(struct wal_list *out, int folder, struct corral_error *err);
void wal_list_free(struct wal_list *l);

/* All of the parts, starting at `at`; consumes the array. */
enum corral_status wal_write(const struct wal_files *files, int fd, struct iovec *parts, int count,
                             uint64_t at, const char *what, struct corral_error *err);

#endif
