/* Time, passed in. Programs use corral_clock_monotonic; tests drive a virtual clock. Nanoseconds everywhere. */
#ifndef CORRAL_BASE_CLOCK_H
#define CORRAL_BASE_CLOCK_H

#include <stdint.h>

struct corral_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
};

extern const struct corral_clock corral_clock_monotonic; /* CLOCK_MONOTONIC */

static inline uint64_t corral_now_ns(const struct corral_clock *clock)
{
    return clock->now_ns(clock->ctx);
}

/* Wall-clock time for records people read, nanoseconds since the epoch. Never used for deadlines. */
uint64_t corral_wall_ns(void);

#define CORRAL_NS_PER_MS UINT64_C(1000000)
#define CORRAL_NS_PER_S UINT64_C(1000000000)

/* A clock that moves only when told to. */
struct corral_virtual_clock {
    uint64_t now_ns;
};
struct corral_clock corral_virtual_clock_use(struct corral_virtual_clock *v);

#endif
