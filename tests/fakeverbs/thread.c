/* The adapter's thread: waits for sockets and timers. */
#include "state.h"
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static uint64_t sooner(uint64_t a, uint64_t b)
{
    return a == 0 || (b != 0 && b < a) ? b : a;
}

static uint64_t work(uint64_t now)
{
    uint64_t next = 0;
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        fake_read_socket(qp, now);
    }
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        next = sooner(next, fake_transmit(qp, now));
    }
    for (struct fake_cq *cq = fake_nic.cqs; cq != NULL; cq = cq->next) {
        next = sooner(next, fake_cq_advance(cq, now));
    }
    return next;
}

/* The descriptors to wait for; one more than there are queue pairs. */
static struct pollfd *descriptors(struct pollfd *old, nfds_t *count)
{
    nfds_t n = 1;
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        n++;
    }
    struct pollfd *p = realloc(old, n * sizeof(*p));
    if (p == NULL) {
        abort();
    }
    p[0] = (struct pollfd){.fd = fake_nic.kick, .events = POLLIN};
    n = 1;
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        p[n++] = (struct pollfd){.fd = qp->fd, .events = (short)(POLLIN | (qp->blocked ? POLLOUT : 0))};
    }
    *count = n;
    return p;
}

static void *run(void *unused)
{
    (void)unused;
    struct pollfd *p = NULL;
    pthread_mutex_lock(&fake_nic.lock);
    while (!fake_nic.stop) {
        while (fake_nic.closing_count > 0) {
            close(fake_nic.closing[--fake_nic.closing_count]);
        }
        uint64_t now = fake_now_ns(), next = work(now);
        nfds_t count;
        p = descriptors(p, &count);
        pthread_mutex_unlock(&fake_nic.lock);
        uint64_t wait = next > now ? next - now : 0;
        struct timespec ts = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
        ppoll(p, count, next != 0 ? &ts : NULL, NULL);
        uint64_t drained;
        if ((p[0].revents & POLLIN) != 0 && read(fake_nic.kick, &drained, sizeof(drained)) < 0) {
            drained = 0;
        }
        pthread_mutex_lock(&fake_nic.lock);
    }
    while (fake_nic.closing_count > 0) {
        close(fake_nic.closing[--fake_nic.closing_count]);
    }
    pthread_mutex_unlock(&fake_nic.lock);
    free(p);
    return NULL;
}

int fake_nic_start(void)
{
    if (fake_nic.running) {
        return 0;
    }
    fake_nic.stop = false;
    fake_nic.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fake_nic.kick < 0 || pthread_create(&fake_nic.thread, NULL, run, NULL) != 0) {
        return -1;
    }
    fake_nic.running = true;
    return 0;
}

void fake_stop_thread(void)
{
    pthread_mutex_lock(&fake_nic.lock);
    fake_nic.stop = true;
    fake_nic_wake();
    pthread_mutex_unlock(&fake_nic.lock);
    pthread_join(fake_nic.thread, NULL);
    pthread_mutex_lock(&fake_nic.lock);
    close(fake_nic.kick);
    fake_nic.kick = -1;
    fake_nic.running = false;
    free(fake_nic.closing);
    fake_nic.closing = NULL;
    fake_nic.closing_room = 0;
    pthread_mutex_unlock(&fake_nic.lock);
}
