#include "transport/weights/owner.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define START_BITS 42

struct process {
    char state;
    long threads;
    uint64_t start_time;
};

/* proc(5), /proc/[pid]/stat: the fields after the last ')' are 3 state … 20 num_threads, 22 starttime. */
static int process_read(pid_t pid, struct process *out)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    if (n <= 0) {
        return n < 0 ? errno : EIO;
    }
    text[n] = '\0';
    const char *after = strrchr(text, ')');
    if (after == NULL ||
        sscanf(after + 1,
               " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %" SCNu64,
               &out->state, &out->threads, &out->start_time) != 3) {
        return EIO;
    }
    return 0;
}

static uint64_t word_of(pid_t pid, uint64_t start_time)
{
    return (uint64_t)pid << START_BITS | (start_time & ((UINT64_C(1) << START_BITS) - 1));
}

enum corral_status corral_owner_word(pid_t pid, uint64_t *out, struct corral_error *err)
{
    struct process p;
    int sys = process_read(pid, &p);
    if (sys != 0) {
        return corral_fail_sys(err, sys, "cannot read the start time of process %d", (int)pid);
    }
    *out = word_of(pid, p.start_time);
    return CORRAL_OK;
}

pid_t corral_owner_pid(uint64_t word)
{
    return (pid_t)(word >> START_BITS);
}

bool corral_owner_alive(uint64_t word)
{
    struct process p;
    int sys = process_read(corral_owner_pid(word), &p);
    if (sys == ENOENT || sys == ESRCH) {
        return false;
    }
    if (sys != 0) {
        return true; /* cannot tell */
    }
    /* A zombie runs no more code, unless only its first thread has ended. */
    bool zombie = (p.state == 'Z' || p.state == 'X') && p.threads <= 1;
    return word_of(corral_owner_pid(word), p.start_time) == word && !zombie;
}
