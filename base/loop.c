#include "base/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <zmq.h>

/* After this many messages of one socket the others get their turn. */
#define ZMQ_CALLBACKS_MAX 64

enum watch_kind { WATCH_FD, WATCH_TIMER, WATCH_SIGNAL, WATCH_ZMQ };

struct corral_loop_watch {
    struct corral_loop *loop;
    LIST_ENTRY(corral_loop_watch) link;
    enum watch_kind kind;
    struct event *event;
    struct event
        *again; /* zmq: a timer of zero; runs the watcher once more after the other descriptors had a look */
    union {
        corral_loop_fd_fn fd;
        corral_loop_timer_fn timer;
        corral_loop_signal_fn signal;
        corral_loop_zmq_fn zmq;
    } fn;
    void *ctx;
    void *zmq_socket;
    struct timeval period; /* timers */
    bool periodic;
    bool running; /* its callback is on the stack: removal is left to the dispatcher */
    bool removed;
};

struct corral_loop {
    struct event_base *base;
    struct event *tick; /* the timeout of corral_loop_once() */
    LIST_HEAD(watch_list, corral_loop_watch) watches;
    bool stopping;
};

static void watch_free(struct corral_loop_watch *w)
{
    if (w->event != NULL) {
        event_free(w->event);
    }
    if (w->again != NULL) {
        event_free(w->again);
    }
    LIST_REMOVE(w, link);
    free(w);
}

/* True when the watch is still there after its callback. */
static bool watch_leave(struct corral_loop_watch *w)
{
    w->running = false;
    if (w->removed) {
        watch_free(w);
        return false;
    }
    return true;
}

static bool zmq_readable(void *zmq_socket)
{
    int events = 0;
    size_t size = sizeof events;
    if (zmq_getsockopt(zmq_socket, ZMQ_EVENTS, &events, &size) != 0) {
        return false; /* the context is going down; its owner sees ETERM on its own calls */
    }
    return (events & ZMQ_POLLIN) != 0;
}

static void zmq_again(struct corral_loop_watch *w)
{
    const struct timeval now = {0, 0};
    if (!evtimer_pending(w->again, NULL)) {
        evtimer_add(w->again, &now);
    }
}

/* Reading ZMQ_EVENTS is what re-arms ZeroMQ's edge-triggered descriptor, so the last thing done here is either to see
 * no POLLIN or to ask to be called again. Asking through a timer and not event_active() lets other descriptors be
 * polled in between: libevent runs events activated from a callback before it polls. */
static void run_zmq(struct corral_loop_watch *w)
{
    w->running = true;
    for (int i = 0; i < ZMQ_CALLBACKS_MAX; i++) {
        if (!zmq_readable(w->zmq_socket)) {
            watch_leave(w);
            return;
        }
        w->fn.zmq(w->ctx, w->zmq_socket);
        if (w->removed) {
            watch_leave(w);
            return;
        }
    }
    w->running = false;
    zmq_again(w);
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    struct corral_loop_watch *w = arg;
    if (w->kind == WATCH_ZMQ) {
        run_zmq(w);
        return;
    }
    w->running = true;
    switch (w->kind) {
    case WATCH_FD:
        w->fn.fd(w->ctx, (int)fd, (what & EV_READ) != 0, (what & EV_WRITE) != 0);
        break;
    case WATCH_TIMER:
        if (w->periodic) {
            event_add(w->event, &w->period); /* re-used memory: cannot fail for want of it */
        }
        w->fn.timer(w->ctx);
        break;
    case WATCH_SIGNAL:
        w->fn.signal(w->ctx, (int)fd);
        break;
    case WATCH_ZMQ:
        break;
    }
    watch_leave(w);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what, (void)arg; /* waking up is all it is for */
}

static void discard_log(int severity, const char *text)
{
    (void)severity, (void)text;
}

enum corral_status corral_loop_create(struct corral_loop **out, struct corral_error *err)
{
    struct corral_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot create an event loop: out of memory");
    }
    LIST_INIT(&loop->watches);
    event_set_log_callback(discard_log); /* libevent would print; what fails is returned here */
    struct event_config *config = event_config_new();
    if (config != NULL) {
        /* Without it libevent reads a clock that moves in steps of 4 ms. */
        event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
        loop->base = event_base_new_with_config(config);
        event_config_free(config);
    }
    if (loop->base != NULL) {
        loop->tick = evtimer_new(loop->base, on_tick, NULL);
    }
    if (loop->tick == NULL) {
        corral_loop_destroy(loop);
        return corral_fail(err, CORRAL_IO, "cannot create an event loop: no memory or no descriptors left");
    }
    *out = loop;
    return CORRAL_OK;
}

void corral_loop_destroy(struct corral_loop *loop)
{
    if (loop == NULL) {
        return;
    }
    while (!LIST_EMPTY(&loop->watches)) {
        watch_free(LIST_FIRST(&loop->watches));
    }
    if (loop->tick != NULL) {
        event_free(loop->tick);
    }
    if (loop->base != NULL) {
        event_base_free(loop->base);
    }
    free(loop);
}

enum corral_status corral_loop_run(struct corral_loop *loop, struct corral_error *err)
{
    while (!loop->stopping) {
        if (event_base_loop(loop->base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY) < 0) {
            return corral_fail_sys(err, errno, "the event loop failed");
        }
    }
    loop->stopping = false;
    return CORRAL_OK;
}

enum corral_status corral_loop_once(struct corral_loop *loop, int timeout_ms, struct corral_error *err)
{
    int flags = EVLOOP_ONCE;
    if (timeout_ms <= 0) {
        flags |= EVLOOP_NONBLOCK;
    } else {
        struct timeval t = {timeout_ms / 1000, (timeout_ms % 1000) * 1000};
        if (evtimer_add(loop->tick, &t) != 0) {
            return corral_fail(err, CORRAL_NOMEM, "cannot wait for events: out of memory");
        }
    }
    int rc = event_base_loop(loop->base, flags);
    int sys = errno;
    evtimer_del(loop->tick);
    if (rc < 0) {
        return corral_fail_sys(err, sys, "the event loop failed");
    }
    return CORRAL_OK;
}

void corral_loop_stop(struct corral_loop *loop)
{
    loop->stopping = true;
}

static struct corral_loop_watch *watch_new(struct corral_loop *loop, enum watch_kind kind, void *ctx)
{
    struct corral_loop_watch *w = calloc(1, sizeof *w);
    if (w != NULL) {
        w->loop = loop;
        w->kind = kind;
        w->ctx = ctx;
        LIST_INSERT_HEAD(&loop->watches, w, link);
    }
    return w;
}

static enum corral_status watch_start(struct corral_loop_watch *w, int fd, short what,
                                      const struct timeval *after, const char *name,
                                      struct corral_loop_watch **out, struct corral_error *err)
{
    if (w == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot watch %s: out of memory", name);
    }
    w->event = event_new(w->loop->base, fd, what, on_event, w);
    errno = 0;
    if (w->event == NULL || event_add(w->event, after) != 0) {
        int sys = errno != 0 ? errno : ENOMEM;
        watch_free(w);
        return corral_fail_sys(err, sys, "cannot watch %s (descriptor or signal %d)", name, fd);
    }
    *out = w;
    return CORRAL_OK;
}

enum corral_status corral_loop_watch_fd(struct corral_loop *loop, int fd, bool read, bool write,
                                        corral_loop_fd_fn fn, void *ctx, struct corral_loop_watch **out,
                                        struct corral_error *err)
{
    struct corral_loop_watch *w = watch_new(loop, WATCH_FD, ctx);
    if (w != NULL) {
        w->fn.fd = fn;
    }
    short what = (short)(EV_PERSIST | (read ? EV_READ : 0) | (write ? EV_WRITE : 0));
    return watch_start(w, fd, what, NULL, "a descriptor", out, err);
}

static struct timeval timeval_of_ms(uint32_t ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = (suseconds_t)(ms % 1000) * 1000};
}

enum corral_status corral_loop_timer(struct corral_loop *loop, uint32_t first_ms, uint32_t period_ms,
                                     corral_loop_timer_fn fn, void *ctx, struct corral_loop_watch **out,
                                     struct corral_error *err)
{
    struct corral_loop_watch *w = watch_new(loop, WATCH_TIMER, ctx);
    if (w != NULL) {
        w->fn.timer = fn;
        w->period = timeval_of_ms(period_ms);
        w->periodic = period_ms > 0;
    }
    struct timeval first = timeval_of_ms(first_ms);
    return watch_start(w, -1, 0, &first, "a timer", out, err);
}

enum corral_status corral_loop_signal(struct corral_loop *loop, int signo, corral_loop_signal_fn fn,
                                      void *ctx, struct corral_loop_watch **out, struct corral_error *err)
{
    struct corral_loop_watch *w = watch_new(loop, WATCH_SIGNAL, ctx);
    if (w != NULL) {
        w->fn.signal = fn;
    }
    return watch_start(w, signo, EV_SIGNAL | EV_PERSIST, NULL, "a signal", out, err);
}

enum corral_status corral_loop_zmq(struct corral_loop *loop, void *zmq_socket, corral_loop_zmq_fn fn,
                                   void *ctx, struct corral_loop_watch **out, struct corral_error *err)
{
    int fd = -1;
    size_t size = sizeof fd;
    if (zmq_getsockopt(zmq_socket, ZMQ_FD, &fd, &size) != 0) {
        return corral_fail(err, CORRAL_INVALID, "cannot watch a ZeroMQ socket: %s",
                           zmq_strerror(zmq_errno()));
    }
    struct corral_loop_watch *w = watch_new(loop, WATCH_ZMQ, ctx);
    if (w != NULL) {
        w->fn.zmq = fn;
        w->zmq_socket = zmq_socket;
        w->again = evtimer_new(loop->base, on_event, w);
        if (w->again == NULL) {
            watch_free(w);
            w = NULL;
        }
    }
    struct corral_loop_watch *started = NULL;
    CORRAL_TRY(watch_start(w, fd, EV_READ | EV_PERSIST, NULL, "a ZeroMQ socket", &started, err));
    zmq_again(started); /* messages that came before the watch raise no edge */
    *out = started;
    return CORRAL_OK;
}

void corral_loop_zmq_kick(struct corral_loop_watch *w)
{
    if (w != NULL && !w->running && !w->removed) {
        zmq_again(w);
    }
}

void corral_loop_remove(struct corral_loop_watch *w)
{
    if (w == NULL || w->removed) {
        return;
    }
    if (!w->running) {
        watch_free(w);
        return;
    }
    w->removed = true;
    event_del(w->event);
    if (w->again != NULL) {
        event_del(w->again);
    }
}

void *corral_loop_event_base(struct corral_loop *loop)
{
    return loop->base;
}
