#include "tests/trajectory/world.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DESCRIPTORS_MAX 256

uint64_t world_now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

void world_nap_us(uint64_t us)
{
    const struct timespec t = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    (void)nanosleep(&t, NULL);
}

__attribute__((format(printf, 2, 0))) static void complain(struct world *w, const char *format,
                                                           va_list values)
{
    if (atomic_fetch_add_explicit(&w->complaints, 1, memory_order_relaxed) == 0) {
        (void)vsnprintf(w->complaint, sizeof w->complaint, format, values);
        atomic_store_explicit(&w->complained, 1, memory_order_release); /* pairs with the driver's look */
    }
}

void world_complain(struct world *w, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    complain(w, format, values);
    va_end(values);
}

_Noreturn void world_die(struct world *w, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    complain(w, format, values);
    va_end(values);
    _exit(EXIT_COMPLAINT);
}

void world_log(const struct world *w, const char *program)
{
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s/messages", w->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    corral_log_configure(CORRAL_LOG_WARN, false, fd >= 0 ? fd : 2, program);
}

void world_cut(struct world_role *role, uint64_t *seen)
{
    uint64_t wanted = atomic_load_explicit(&role->cut, memory_order_relaxed);
    if (wanted == *seen) {
        return;
    }
    *seen = wanted;
    for (int fd = 3; fd < DESCRIPTORS_MAX; fd++) {
        int type = 0;
        socklen_t bytes = sizeof type;
        struct sockaddr_storage peer;
        socklen_t peer_bytes = sizeof peer;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_STREAM &&
            getpeername(fd, (struct sockaddr *)&peer, &peer_bytes) == 0 && shutdown(fd, SHUT_RDWR) == 0) {
            atomic_fetch_add_explicit(&role->cuts, 1, memory_order_relaxed);
        }
    }
}

/* ---- every connection goes through the proxy where one is in use (tests/weights/proxy.h): libzmq's too ---- */

int __real_connect(int fd, const struct sockaddr *address, socklen_t bytes);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t bytes);

int __real_connect(int fd, const struct sockaddr *address, socklen_t bytes)
{
    return (int)syscall(SYS_connect, fd, address, bytes);
}

__attribute__((visibility("default"))) int connect(int fd, const struct sockaddr *address, socklen_t bytes)
{
    return __wrap_connect(fd, address, bytes);
}

/* ---- records ---- */

static uint64_t seed_of(const struct world *w, uint32_t worker, uint32_t epoch, uint32_t rank,
                        uint64_t sequence)
{
    return corral_seed_derive(w->seed, (uint64_t)worker << 32 | epoch, rank, sequence);
}

uint32_t record_bytes(const struct world *w, uint32_t worker, uint32_t epoch, uint32_t rank,
                      uint64_t sequence)
{
    uint64_t state = seed_of(w, worker, epoch, rank, sequence), a = corral_splitmix64(&state);
    if (w->soak) {
        return 512 + (uint32_t)(a % 1024);
    }
    /* All magnitudes: most are gathered, some go alone. */
    uint32_t top = 16u << (a >> 32) % 14;
    return 1 + (uint32_t)(a % top);
}

void record_fill(const struct world *w, uint32_t worker, uint32_t epoch, uint32_t rank, uint64_t sequence,
                 void *out, uint32_t bytes)
{
    uint64_t state = ~seed_of(w, worker, epoch, rank, sequence);
    uint8_t *to = out;
    for (uint32_t at = 0; at < bytes; at += 8) {
        uint64_t word = corral_splitmix64(&state);
        memcpy(to + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

void world_path(const struct world *w, uint32_t rank, const char *name, char out[PATH_BYTES])
{
    (void)snprintf(out, PATH_BYTES, "%s/rank-%u%s%s", w->folder, rank, name[0] != '\0' ? "/" : "", name);
}

/* ---- coordinator ---- */

_Noreturn void coordinator_run(struct world *w)
{
    for (;;) {
        for (uint32_t i = 0; i < w->producers + w->consumers; i++) {
            struct world_role *r = &w->role[i];
            uint64_t started = atomic_load_explicit(&r->started, memory_order_acquire);
            if (atomic_load_explicit(&r->alive, memory_order_acquire) == 0 &&
                atomic_load_explicit(&r->done, memory_order_acquire) == 0) {
                atomic_store_explicit(&r->ordered, started + 1, memory_order_release);
            }
        }
        for (uint32_t i = 0; i < w->consumers; i++) {
            struct world_consumer *c = &w->consumer[i];
            atomic_store_explicit(&c->published, atomic_load_explicit(&c->bound, memory_order_acquire),
                                  memory_order_release);
        }
        world_nap_us(1000);
    }
}
