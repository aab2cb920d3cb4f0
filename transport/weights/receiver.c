#include "transport/weights/receiver_conn.h"

#include "base/clock.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Strangers queue in the kernel without making a publisher's connection wait for a retransmission. */
#define BACKLOG 128
#define LOGIN_NS (5 * CORRAL_NS_PER_S)
#define SILENCE_NS (10 * CORRAL_NS_PER_S)
/* After accept() failed for want of descriptors or memory. */
#define ACCEPT_PAUSE_NS (100 * CORRAL_NS_PER_MS)

static uint64_t now_ns(void)
{
    return corral_now_ns(&corral_clock_monotonic);
}

/* ---- accepting ---- */

/* A free place; when there is none, that of the connection that has waited longest to log in. Negative: none. */
static int place_for_new(struct corral_weight_receiver *r)
{
    int oldest = -1;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (r->conn[i] == NULL) {
            return i;
        }
        if (!conn_logged_in(r->conn[i]) && (oldest < 0 || r->conn[i]->heard_ns < r->conn[oldest]->heard_ns)) {
            oldest = i;
        }
    }
    if (oldest >= 0) {
        conn_close(r, r->conn[oldest]);
    }
    return oldest;
}

static void accept_one(struct corral_weight_receiver *r)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    int fd = accept4(r->listen_fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            r->accept_after_ns = now_ns() + ACCEPT_PAUSE_NS; /* the listener stays readable: do not spin */
        }
        return;
    }
    int place = place_for_new(r);
    struct conn *c = place < 0 ? NULL : calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return;
    }
    wire_tune_socket(fd);
    c->fd = fd;
    c->heard_ns = now_ns();
    wire_format_address(&address, c->peer, sizeof c->peer);
    corral_random_bytes(c->nonce_r, sizeof c->nonce_r);
    r->conn[place] = c;
}

/* ---- the thread ---- */

/* When the connection is given up if nothing more is heard; UINT64_MAX: never. */
static uint64_t conn_deadline(const struct conn *c)
{
    if (!conn_logged_in(c)) {
        return c->heard_ns + LOGIN_NS;
    }
    return c->state == CONN_IDLE && c->out_to == 0 ? UINT64_MAX : c->heard_ns + SILENCE_NS;
}

static uint64_t drop_silent(struct corral_weight_receiver *r, uint64_t now)
{
    uint64_t next = now < r->accept_after_ns ? r->accept_after_ns : UINT64_MAX;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        struct conn *c = r->conn[i];
        if (c == NULL) {
            continue;
        }
        uint64_t deadline = conn_deadline(c);
        if (now >= deadline) {
            struct corral_error why = {0};
            corral_fail(&why, CORRAL_TIMEOUT, "the publisher fell silent in the middle of %s",
                        conn_logged_in(c) ? "a version" : "the login");
            conn_drop(r, c, &why);
            continue;
        }
        next = CORRAL_MIN(next, deadline);
    }
    return next;
}

static void *run(void *arg)
{
    struct corral_weight_receiver *r = arg;
    for (;;) {
        struct pollfd fds[2 + CONNECTIONS_MAX];
        struct conn *of[CONNECTIONS_MAX];
        nfds_t n = 2;
        uint64_t now = now_ns(), next = drop_silent(r, now);
        fds[0] = (struct pollfd){.fd = r->stop_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = now < r->accept_after_ns ? -1 : r->listen_fd, .events = POLLIN};
        for (int i = 0; i < CONNECTIONS_MAX; i++) {
            struct conn *c = r->conn[i];
            if (c != NULL) {
                of[n - 2] = c;
                fds[n++] =
                    (struct pollfd){.fd = c->fd, .events = (short)(POLLIN | (c->out_to > 0 ? POLLOUT : 0))};
            }
        }
        uint64_t left = next == UINT64_MAX ? 0 : next - now;
        struct timespec t = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                             .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
        if (ppoll(fds, n, next == UINT64_MAX ? NULL : &t, NULL) <= 0) {
            continue;
        }
        if (fds[0].revents != 0) {
            return NULL;
        }
        for (nfds_t i = 2; i < n; i++) {
            bool there = false; /* a newer login may have closed it in this very round */
            for (int k = 0; k < CONNECTIONS_MAX; k++) {
                there = there || r->conn[k] == of[i - 2];
            }
            if (there && fds[i].revents != 0) {
                conn_serve(r, of[i - 2], fds[i].revents);
            }
        }
        if (fds[1].revents != 0) {
            accept_one(r);
        }
    }
}

static enum corral_status start_listening(struct corral_weight_receiver *r, const char *host, char *endpoint,
                                          size_t endpoint_bytes, struct corral_error *err)
{
    char with_port[280];
    struct sockaddr_storage address;
    socklen_t length = 0;
    bool v6 = strchr(host, ':') != NULL && host[0] != '[';
    snprintf(with_port, sizeof with_port, v6 ? "[%.255s]:0" : "%.255s:0", host);
    CORRAL_TRY(wire_resolve(with_port, &address, &length, err));
    r->listen_fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (r->listen_fd < 0 || bind(r->listen_fd, (const struct sockaddr *)&address, length) != 0 ||
        listen(r->listen_fd, BACKLOG) != 0 ||
        getsockname(r->listen_fd, (struct sockaddr *)&address, &length) != 0) {
        return corral_fail_sys(err, errno, "cannot listen for weights on %s", host);
    }
    wire_format_address(&address, endpoint, endpoint_bytes);
    return CORRAL_OK;
}

static enum corral_status start_thread(struct corral_weight_receiver *r, struct corral_error *err)
{
    sigset_t all, before;
    r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->stop_fd < 0) {
        return corral_fail_sys(err, errno, "cannot start the weight receiver");
    }
    sigfillset(&all); /* signals are the program's loop's business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int sys = pthread_create(&r->thread, NULL, run, r);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (sys != 0) {
        return corral_fail_sys(err, sys, "cannot start the weight receiver's thread");
    }
    r->started = true;
    return CORRAL_OK;
}

enum corral_status corral_weight_receiver_start(struct corral_weight_receiver **out,
                                                struct corral_weight_store *store, const char *host,
                                                uint64_t run_id, const uint8_t secret[32], char *endpoint,
                                                size_t endpoint_bytes, struct corral_error *err)
{
    struct corral_weight_receiver *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot start the weight receiver: out of memory");
    }
    r->store = store;
    r->run = run_id;
    r->listen_fd = r->stop_fd = -1;
    memcpy(r->secret, secret, sizeof r->secret);
    enum corral_status status = start_listening(r, host, endpoint, endpoint_bytes, err);
    if (status == CORRAL_OK) {
        status = start_thread(r, err);
    }
    if (status != CORRAL_OK) {
        corral_weight_receiver_stop(r);
        return status;
    }
    *out = r;
    return CORRAL_OK;
}

void corral_weight_receiver_stop(struct corral_weight_receiver *r)
{
    if (r == NULL) {
        return;
    }
    if (r->started) {
        eventfd_write(r->stop_fd, 1);
        pthread_join(r->thread, NULL);
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (r->conn[i] != NULL) {
            conn_close(r, r->conn[i]);
        }
    }
    if (r->listen_fd >= 0) {
        close(r->listen_fd);
    }
    if (r->stop_fd >= 0) {
        close(r->stop_fd);
    }
    explicit_bzero(r->secret, sizeof r->secret);
    free(r);
}
