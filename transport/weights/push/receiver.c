/* The receiver's control thread: listening, polling, who is let in. */
#include "transport/weights/push/receiver_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BACKLOG 128
#define SILENCE_DEFAULT_NS (10 * CORRAL_NS_PER_S)
#define ACCEPT_PAUSE_NS (100 * CORRAL_NS_PER_MS) /* after accept() failed for want of descriptors or memory */
#define CLOSING_LOOK_NS (50 * CORRAL_NS_PER_MS)

/* ---- accepting ---- */

/* A free place. When too many have not logged in, the one that has waited longest makes room. Negative: none. */
static int place_for_new(struct corral_push_receiver *r)
{
    int place = -1, oldest = -1;
    uint32_t strangers = 0;
    for (int i = 0; i < CONNS_MAX; i++) {
        const struct push_conn *c = r->conn[i];
        if (c == NULL) {
            place = i;
            continue;
        }
        if (c->state < CONN_LANE) {
            strangers++;
            oldest = oldest < 0 || c->heard_ns < r->conn[oldest]->heard_ns ? i : oldest;
        }
    }
    if (oldest >= 0 && (place < 0 || strangers >= STRANGERS_MAX)) {
        close(r->conn[oldest]->io.fd);
        free(r->conn[oldest]);
        r->conn[oldest] = NULL;
        return oldest;
    }
    return place;
}

static void accept_one(struct corral_push_receiver *r)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    int fd = accept4(r->listen_fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            r->accept_after_ns =
                push_now_ns() + ACCEPT_PAUSE_NS; /* the listener stays readable: do not spin */
        }
        return;
    }
    int place = place_for_new(r);
    struct push_conn *c = place < 0 ? NULL : calloc(1, sizeof *c);
    if (c == NULL) {
        close(fd);
        return;
    }
    wire_tune_socket(fd);
    c->io.fd = fd;
    c->heard_ns = push_now_ns();
    wire_format_address(&address, c->peer, sizeof c->peer);
    corral_random_bytes(c->nonce, sizeof c->nonce);
    r->conn[place] = c;
}

/* ---- the thread ---- */

static uint64_t tick(struct corral_push_receiver *r)
{
    uint64_t now = push_now_ns(), next = receiving_tick(r, now);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->state == CONN_CLOSING && !conn_finish(r, c)) {
            next = CORRAL_MIN(next, now + CLOSING_LOOK_NS);
        }
    }
    return now < r->accept_after_ns ? CORRAL_MIN(next, r->accept_after_ns) : next;
}

static int wait_until(struct pollfd *fds, nfds_t n, uint64_t next)
{
    uint64_t now = push_now_ns(), left = next == UINT64_MAX || next <= now ? 0 : next - now;
    struct timespec t = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                         .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
    return ppoll(fds, n, next == UINT64_MAX ? NULL : &t, NULL);
}

static void look_at_workers(struct corral_push_receiver *r)
{
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL && c->worker != NULL) {
            conn_report(r, c);
        }
        if (c != NULL && c->io.out_to > 0 && c->state < CONN_CLOSING) {
            conn_serve(r, c, 0);
        }
    }
    receiving_settle(r);
}

static void *run(void *arg)
{
    struct corral_push_receiver *r = arg;
    for (;;) {
        struct pollfd fds[3 + CONNS_MAX];
        struct push_conn *of[CONNS_MAX];
        nfds_t n = 3;
        pulling_advance(r);
        visitors_advance(r);
        uint64_t next = tick(r);
        bool accepting = push_now_ns() >= r->accept_after_ns;
        fds[0] = (struct pollfd){.fd = r->stop_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = accepting ? r->listen_fd : -1, .events = POLLIN};
        fds[2] = (struct pollfd){.fd = r->report_fd, .events = POLLIN};
        for (uint32_t i = 0; i < CONNS_MAX; i++) {
            struct push_conn *c = r->conn[i];
            if (c == NULL || c->io.fd < 0) {
                continue;
            }
            short events = (short)((c->state < CONN_CLOSING ? POLLIN : 0) | (c->io.out_to > 0 ? POLLOUT : 0));
            of[n - 3] = c;
            fds[n++] = (struct pollfd){.fd = c->state < CONN_CLOSING || c->io.out_to > 0 ? c->io.fd : -1,
                                       .events = events};
        }
        if (wait_until(fds, n, next) <= 0) {
            continue;
        }
        if (fds[0].revents != 0) {
            return NULL;
        }
        eventfd_t ignored;
        (void)eventfd_read(r->report_fd, &ignored);
        for (nfds_t i = 3; i < n; i++) { /* nobody is freed before the next tick() */
            if (fds[i].revents != 0 && of[i - 3]->state < CONN_CLOSING) {
                conn_serve(r, of[i - 3], fds[i].revents);
            }
        }
        look_at_workers(r);
        if (fds[1].revents != 0) {
            accept_one(r);
        }
    }
}

/* ---- making ---- */

static enum corral_status start_listening(struct corral_push_receiver *r, const char *host,
                                          struct corral_error *err)
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
    wire_format_address(&address, r->endpoint, sizeof r->endpoint);
    return CORRAL_OK;
}

static enum corral_status start_thread(struct corral_push_receiver *r, struct corral_error *err)
{
    sigset_t all, before;
    r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->report_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->stop_fd < 0 || r->report_fd < 0) {
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

static enum corral_status make_links(struct corral_push_receiver *r, struct corral_error *err)
{
    uint32_t sources = r->options.plan->sources;
    if (sources > CORRAL_PUSH_SENDERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%u source ranks; a receiver takes %u", sources,
                           CORRAL_PUSH_SENDERS_MAX);
    }
    r->link = calloc(sources, sizeof *r->link);
    r->complete = calloc(sources, sizeof *r->complete);
    r->link_digest = calloc(sources, sizeof *r->link_digest);
    if (r->link == NULL || r->complete == NULL || r->link_digest == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot start the weight receiver: out of memory");
    }
    for (uint32_t rank = 0; rank < sources; rank++) {
        CORRAL_TRY(corral_link_create(&r->link[rank], r->options.plan, rank, r->options.rank,
                                      r->options.bucket_bytes, err));
    }
    return CORRAL_OK;
}

/* From rank 0 of one rank to rank 0 of one rank, as much as is ever written here. */
static enum corral_status make_copy(struct corral_push_receiver *r, struct corral_error *err)
{
    struct copy *c = &r->copy;
    uint64_t bytes = 0;
    uint32_t tensor;
    for (uint32_t rank = 0; rank < r->options.plan->sources; rank++) {
        bytes = CORRAL_MAX(bytes, r->link[rank]->destination_extent);
    }
    if (bytes == 0) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_layout_create(&c->layout, 1, err));
    CORRAL_TRY(corral_layout_add_tensor(c->layout, "version", CORRAL_DTYPE_U8, 1, &bytes, &tensor, err));
    CORRAL_TRY(corral_layout_add_whole(c->layout, tensor, 0, 0, err));
    CORRAL_TRY(corral_reshard_plan_build(c->layout, c->layout, &c->plan, err));
    return corral_link_create(&c->link, c->plan, 0, 0, r->options.bucket_bytes, err);
}

static enum corral_status check_options(const struct corral_push_receiver_options *o,
                                        struct corral_error *err)
{
    if (o->name == NULL || o->host == NULL || o->lanes == NULL || o->plan == NULL || o->target == NULL) {
        return corral_fail(err, CORRAL_INVALID,
                           "a weight receiver needs a name, host, lanes, plan and target");
    }
    if (strlen(o->name) >= CORRAL_PUSH_NAME_MAX || strlen(o->lanes) > PUSH_LANES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "weight receiver '%.80s': name or list of lanes too long",
                           o->name);
    }
    return CORRAL_OK;
}

static void own_options(struct corral_push_receiver *r, const struct corral_push_receiver_options *o)
{
    r->options = *o;
    r->options.silence_ns = o->silence_ns == 0 ? SILENCE_DEFAULT_NS : CORRAL_MIN(o->silence_ns, PUSH_NS_MAX);
    snprintf(r->name, sizeof r->name, "%s", o->name);
    snprintf(r->lanes, sizeof r->lanes, "%s", o->lanes);
    snprintf(r->lane_host, sizeof r->lane_host, "%s",
             o->lane.local_host == NULL ? o->host : o->lane.local_host);
    r->options.lane.local_host = r->lane_host;
    if (o->lane.device != NULL) {
        snprintf(r->lane_device, sizeof r->lane_device, "%s", o->lane.device);
        r->options.lane.device = r->lane_device;
    }
    r->options.name = r->name;
    r->options.lanes = r->lanes;
    r->options.host = r->options.replica = NULL;
    r->generation = o->identity.generation;
    r->status.generation = o->identity.generation;
    o->target->current(o->target_ctx, &r->status.version, &r->status.digest);
}

enum corral_status corral_push_receiver_start(struct corral_push_receiver **out,
                                              const struct corral_push_receiver_options *options,
                                              struct corral_error *err)
{
    CORRAL_TRY(check_options(options, err));
    struct corral_push_receiver *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot start the weight receiver: out of memory");
    }
    pthread_mutex_init(&r->status_lock, NULL);
    push_account_make(&r->account, &options->budget);
    r->listen_fd = r->stop_fd = r->report_fd = -1;
    own_options(r, options);
    enum corral_status status = make_links(r, err);
    if (status == CORRAL_OK) {
        status = make_copy(r, err);
    }
    if (status == CORRAL_OK) {
        status = start_listening(r, options->host, err);
    }
    if (status == CORRAL_OK) {
        status = start_thread(r, err);
    }
    if (status != CORRAL_OK) {
        corral_push_receiver_stop(r);
        return status;
    }
    *out = r;
    return CORRAL_OK;
}

/* The thread is gone: what it left half-done is given up in the same order as ever, lanes before shadow. */
static void stop_conns(struct corral_push_receiver *r)
{
    struct corral_error why = {0};
    corral_fail(&why, CORRAL_STATE, "%s stops", r->name);
    visitors_stop(r);
    pulling_stop(r);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        if (r->conn[i] != NULL) {
            r->conn[i]->waiting = false; /* nothing begins any more */
        }
        if (r->conn[i] != NULL && r->conn[i]->worker != NULL) {
            worker_stop(r->conn[i]->worker);
        }
    }
    receiving_abort(r, &why);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c == NULL) {
            continue;
        }
        if (c->worker != NULL) {
            int32_t tainted = worker_destroy(c->worker);
            c->worker = NULL;
            receiving_taint(r, c->placed ? tainted : 0);
        }
    }
    receiving_settle(r);
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *c = r->conn[i];
        if (c != NULL) {
            struct corral_error ignored;
            if (c->io.fd >= 0) {
                (void)push_io_flush(&c->io, &ignored);
                close(c->io.fd);
            }
            free(c);
            r->conn[i] = NULL;
        }
    }
}

void corral_push_receiver_stop(struct corral_push_receiver *r)
{
    if (r == NULL) {
        return;
    }
    if (r->started) {
        eventfd_write(r->stop_fd, 1);
        pthread_join(r->thread, NULL);
        stop_conns(r);
    }
    const int fds[] = {r->listen_fd, r->stop_fd, r->report_fd};
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    for (uint32_t rank = 0; r->link != NULL && rank < r->options.plan->sources; rank++) {
        corral_link_destroy(r->link[rank]);
    }
    corral_link_destroy(r->copy.link);
    corral_reshard_plan_destroy(r->copy.plan);
    corral_layout_destroy(r->copy.layout);
    free(r->link);
    free(r->complete);
    free(r->link_digest);
    pthread_mutex_destroy(&r->status_lock);
    push_account_end(&r->account);
    explicit_bzero(&r->options.identity, sizeof r->options.identity);
    free(r);
}

const char *corral_push_receiver_endpoint(const struct corral_push_receiver *r)
{
    return r->endpoint;
}

void corral_push_receiver_status(struct corral_push_receiver *r, struct corral_push_receiver_status *out)
{
    pthread_mutex_lock(&r->status_lock);
    *out = r->status;
    out->memory = push_account_total(&r->account);
    pthread_mutex_unlock(&r->status_lock);
}

void receiver_lanes(struct corral_push_receiver *r, char out[PUSH_LANES_MAX + 1])
{
    pthread_mutex_lock(&r->status_lock);
    memcpy(out, r->lanes, PUSH_LANES_MAX + 1);
    pthread_mutex_unlock(&r->status_lock);
}

enum corral_status corral_push_receiver_set_lanes(struct corral_push_receiver *r, const char *lanes,
                                                  struct corral_error *err)
{
    if (strlen(lanes) > PUSH_LANES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "list of lanes is too long: %.80s", lanes);
    }
    pthread_mutex_lock(&r->status_lock);
    snprintf(r->lanes, sizeof r->lanes, "%s", lanes);
    pthread_mutex_unlock(&r->status_lock);
    return CORRAL_OK;
}
