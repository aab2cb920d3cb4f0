#include "bench/weights_yardstick.h"
#include "base/clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WINDOW (UINT64_C(64) << 20)
#define PART_MAX (UINT64_C(4) << 30) /* of the bytes that is measured */
#define LANES_MAX 64u
#define SEND_BYTES (1u << 20)

struct mover {
    pthread_t thread;
    uint64_t bytes;
    char *from, *to; /* WINDOW bytes each, touched */
    int fd;
};

static void *copy_main(void *arg)
{
    const struct mover *m = arg;
    for (uint64_t done = 0; done < m->bytes; done += WINDOW) {
        memcpy(m->to, m->from, CORRAL_MIN(WINDOW, m->bytes - done));
        __asm__ volatile("" : : "r"(m->to) : "memory"); /* each copy is wanted */
    }
    return NULL;
}

static void *send_main(void *arg)
{
    const struct mover *m = arg;
    for (uint64_t done = 0; done < m->bytes;) {
        uint64_t at = done % WINDOW, want = CORRAL_MIN(m->bytes - done, WINDOW - at);
        ssize_t n = send(m->fd, m->from + at, CORRAL_MIN(want, (uint64_t)SEND_BYTES), MSG_NOSIGNAL);
        if (n <= 0) {
            return NULL; /* the receiver finds out */
        }
        done += (uint64_t)n;
    }
    return NULL;
}

static void *receive_main(void *arg)
{
    struct mover *m = arg;
    uint64_t left = m->bytes;
    while (left > 0) {
        uint64_t at = (m->bytes - left) % WINDOW;
        ssize_t n = recv(m->fd, m->to + at, CORRAL_MIN(left, WINDOW - at), 0);
        if (n <= 0) {
            break;
        }
        left -= (uint64_t)n;
    }
    m->bytes = left; /* 0: all came */
    return NULL;
}

static int tcp_pair(int pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair[1] = bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0 &&
                      getsockname(listener, (struct sockaddr *)&address, &length) == 0 &&
                      connect(pair[0], (struct sockaddr *)&address, length) == 0
                  ? accept(listener, NULL, NULL)
                  : -1;
    close(listener);
    return pair[1] < 0 ? -1 : 0;
}

static char *window(uint32_t which)
{
    static char *made[2 * LANES_MAX]; /* kept: touching pages anew would be measured */
    char **at = &made[which];
    if (!*at && (*at = malloc(WINDOW)) != NULL) {
        memset(*at, 1, WINDOW);
    }
    return *at;
}

static enum corral_status prepare(uint32_t index, struct mover *out, struct mover *in, bool tcp,
                                  struct corral_error *err)
{
    int pair[2];
    out->from = window(2 * index);
    out->to = in->to = window(2 * index + 1);
    in->from = NULL;
    if (!out->from || !out->to) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a yardstick");
    }
    if (tcp) {
        if (tcp_pair(pair) != 0) {
            return corral_fail_sys(err, errno, "making a loopback pair");
        }
        out->fd = pair[0];
        in->fd = pair[1];
    }
    return CORRAL_OK;
}

enum corral_status bench_yardstick(const char *lane, uint64_t bytes, double *seconds,
                                   struct corral_error *err)
{
    static struct mover out[LANES_MAX], in[LANES_MAX];
    bool tcp = strcmp(lane, "tcp") == 0;
    if (!tcp && strcmp(lane, "shm") != 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no yardstick for the lane %s", lane);
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t count = (uint32_t)CORRAL_MIN(CORRAL_MAX(cores, 1L), (long)LANES_MAX / 2);
    uint64_t part = CORRAL_MIN(bytes, PART_MAX), each = part / count;
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(prepare(i, &out[i], &in[i], tcp, err));
        out[i].bytes = in[i].bytes = each;
    }
    uint64_t begun = corral_now_ns(&corral_clock_monotonic);
    bool good = true;
    for (uint32_t i = 0; i < count && good; i++) {
        good = pthread_create(&out[i].thread, NULL, tcp ? send_main : copy_main, &out[i]) == 0 &&
               (!tcp || pthread_create(&in[i].thread, NULL, receive_main, &in[i]) == 0);
    }
    if (!good) {
        return corral_fail(err, CORRAL_NOMEM, "no threads for a yardstick");
    }
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(out[i].thread, NULL);
        if (tcp) {
            pthread_join(in[i].thread, NULL);
            good &= in[i].bytes == 0;
            close(in[i].fd);
            close(out[i].fd);
        }
    }
    double took = (double)(corral_now_ns(&corral_clock_monotonic) - begun) / 1e9;
    *seconds = took * (double)bytes / (double)(each * count);
    return good ? CORRAL_OK : corral_fail(err, CORRAL_IO, "the raw sockets broke");
}
