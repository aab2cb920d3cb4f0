#include "base/sync.h"
#include "base/clock.h"
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t),
              "the kernel reads the word as a plain 32-bit integer");

bool corral_futex_wait(const _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / CORRAL_NS_PER_S),
                                .tv_nsec = (long)(deadline_ns % CORRAL_NS_PER_S)};
    const struct timespec *limit = deadline_ns == UINT64_MAX ? NULL : &deadline;
    /* The bitset form takes an absolute CLOCK_MONOTONIC time; not FUTEX_PRIVATE, for the word may be shared. */
    long rc =
        syscall(SYS_futex, (uintptr_t)word, FUTEX_WAIT_BITSET, expected, limit, NULL, FUTEX_BITSET_MATCH_ANY);
    return !(rc == -1 && errno == ETIMEDOUT);
}

void corral_futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uintptr_t)word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
