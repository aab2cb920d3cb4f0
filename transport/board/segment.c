#include "transport/board/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

enum corral_status corral_segment_create(const char *name, uint64_t bytes, int *fd_out,
                                         struct corral_error *err)
{
    if (bytes == 0 || bytes > INT64_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: a segment of %llu bytes", name,
                           (unsigned long long)bytes);
    }
    CORRAL_AUTO_CLOSE int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "%s: create a segment", name);
    }
    /* Pages are taken now: a first touch that finds no memory later would be a signal, not an error. */
    int rc = posix_fallocate(fd, 0, (off_t)bytes);
    if (rc != 0) {
        return corral_fail_sys(err, rc, "%s: size a segment of %llu bytes", name, (unsigned long long)bytes);
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS) != 0) {
        return corral_fail_sys(err, errno, "%s: seal a segment", name);
    }
    *fd_out = fd;
    fd = -1;
    return CORRAL_OK;
}

enum corral_status corral_segment_map(const char *name, int fd, uint64_t bytes_min, void **map,
                                      uint64_t *bytes, struct corral_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "%s: descriptor %d", name, fd);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) {
        return corral_fail(err, CORRAL_INVALID, "%s: descriptor %d is not a sealed segment", name, fd);
    }
    if (st.st_size < 0 || (uint64_t)st.st_size < bytes_min) {
        return corral_fail(err, CORRAL_INVALID, "%s: descriptor %d has %lld bytes, expected %llu", name, fd,
                           (long long)st.st_size, (unsigned long long)bytes_min);
    }
    void *at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        return corral_fail_sys(err, errno, "%s: map %lld bytes", name, (long long)st.st_size);
    }
    *map = at;
    *bytes = (uint64_t)st.st_size;
    return CORRAL_OK;
}
