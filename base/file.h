/* Files that are whole or absent. All paths are relative to the current directory unless absolute. */
#ifndef CORRAL_BASE_FILE_H
#define CORRAL_BASE_FILE_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Read a whole regular file, NUL-terminated (the NUL is not counted). Larger than `bytes_max`: CORRAL_INVALID. Free with free(). */
enum corral_status corral_file_read(const char *path, size_t bytes_max, char **out, size_t *bytes,
                                    struct corral_error *err);
/* Write path.tmp.<pid>, fsync (when durable), rename over path, fsync the folder. A failure (disk full, read-only) leaves the old
 * file as it was and no temporary behind. */
enum corral_status corral_file_write_atomic(const char *path, const void *data, size_t bytes, mode_t mode,
                                            bool durable, struct corral_error *err);
/* write(2) until all is out. */
enum corral_status corral_write_all(int fd, const void *data, size_t bytes, const char *what,
                                    struct corral_error *err);
/* mkdir -p. An existing folder is fine. */
enum corral_status corral_mkdirs(const char *path, mode_t mode, struct corral_error *err);
/* rm -r; a missing path is fine. Never follows symbolic links. */
enum corral_status corral_remove_tree(const char *path, struct corral_error *err);
/* Take an exclusive lock on `path` (created 0600) for the life of the returned descriptor; writes "pid starttime\n" into it.
 * Already held: CORRAL_EXISTS, and the error names the holder's pid. The kernel releases it when the process dies. */
enum corral_status corral_lock_file(const char *path, int *fd_out, struct corral_error *err);
/* Who holds the lock: pid and kernel start time, or pid 0 when nobody does. */
enum corral_status corral_lock_holder(const char *path, pid_t *pid, uint64_t *start_time,
                                      struct corral_error *err);

#endif
