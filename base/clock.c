#include "base/clock.h"
#include <stddef.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
    struct timespec t = {0};
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * CORRAL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint64_t monotonic_now(void *ctx)
{
    (void)ctx;
    return read_clock(CLOCK_MONOTONIC);
}

const struct corral_clock corral_clock_monotonic = {.now_ns = monotonic_now};

uint64_t corral_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

static uint64_t virtual_now(void *ctx)
{
    const struct corral_virtual_clock *v = ctx;
    return v->now_ns;
}

struct corral_clock corral_virtual_clock_use(struct corral_virtual_clock *v)
{
    return (struct corral_clock){.now_ns = virtual_now, .ctx = v};
}
