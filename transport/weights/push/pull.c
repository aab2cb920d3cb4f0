/* The puller: a thread that goes through its peers. While it runs, the target is its own (RECEIVING_PULL). */
#include "transport/weights/push/pull_internal.h"

#include "base/log.h"
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PAUSE_MS 10u
#define ROUNDS_MAX 16u /* times that an overtaken pull begins again */

static bool cancelled(const struct puller *p, int within_ms)
{
    struct pollfd fd = {.fd = p->cancel_fd, .events = POLLIN};
    return poll(&fd, 1, within_ms) > 0;
}

static void *run(void *arg)
{
    struct puller *p = arg;
    for (uint32_t round = 0, again = 1; again && round < ROUNDS_MAX; round++) {
        again = 0;
        for (uint32_t i = 0;
             i < p->count && !p->applied && push_now_ns() < p->deadline_ns && !cancelled(p, 0); i++) {
            struct corral_error why = {0};
            enum corral_status status = pull_from(p, p->peer[i], &why);
            if (status != CORRAL_OK) {
                corral_log_info("pull of weights failed at a peer", LOG_STR("receiver", p->r->name),
                                LOG_STR("peer", p->peer[i]), LOG_ERR(&why));
                p->error = why;
                again |= status == CORRAL_STATE; /* overtaken, or busy */
            }
        }
        /* A little later each time: a peer that is overtaken by every push, or has too many visitors, is not helped by more haste. */
        again =
            again && !p->applied && !cancelled(p, (int)(PAUSE_MS * round)) && push_now_ns() < p->deadline_ns;
    }
    atomic_store_explicit(&p->ended, true, memory_order_release);
    eventfd_write(p->r->report_fd, 1);
    return NULL;
}

/* ---- the control thread's side ---- */

static void puller_free(struct puller *p)
{
    if (p) {
        close(p->cancel_fd);
        free(p);
    }
}

void pulling_cancel(struct corral_push_receiver *r)
{
    if (r->puller) {
        eventfd_write(r->puller->cancel_fd, 1);
    }
}

static void over(struct corral_push_receiver *r)
{
    struct puller *p = r->puller;
    pthread_join(p->thread, NULL);
    r->puller = NULL;
    pthread_mutex_lock(&r->status_lock);
    struct corral_push_receiver_status *s = &r->status;
    s->pulling = false;
    s->resent_buckets += p->resent;
    if (p->applied) {
        s->pulls++;
        s->version = p->version;
        s->digest = p->digest;
        s->wire_ns = p->last_ns - p->first_ns;
        s->apply_ns = p->hash_ns;
        s->flip_ns = p->flip_ns;
        s->bytes = r->copy.link->bytes;
        snprintf(s->lane, sizeof s->lane, "%s", p->lane);
    } else if (p->error.status != CORRAL_OK) {
        snprintf(s->last_error, sizeof s->last_error, "pull: %.190s", p->error.text);
    }
    pthread_mutex_unlock(&r->status_lock);
    if (p->applied) {
        corral_log_info("weights pulled from a peer", LOG_STR("receiver", r->name),
                        LOG_U64("version", p->version), LOG_STR("lane", p->lane));
    }
    puller_free(p);
}

static void start(struct corral_push_receiver *r, struct puller *p)
{
    sigset_t all, before;
    p->deadline_ns = push_now_ns() + p->timeout_ns;
    r->puller = p;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int sys = pthread_create(&p->thread, NULL, run, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (sys == 0) {
        receiving_pull_begins(r);
        return;
    }
    struct corral_error why;
    (void)corral_fail_sys(&why, sys, "pull: cannot start a thread");
    r->puller = NULL;
    receiver_note_error(r, &why);
    pthread_mutex_lock(&r->status_lock);
    r->status.pulling = false;
    pthread_mutex_unlock(&r->status_lock);
    puller_free(p);
}

void pulling_advance(struct corral_push_receiver *r)
{
    if (r->puller && atomic_load_explicit(&r->puller->ended, memory_order_acquire)) {
        over(r);
        receiving_over(r);
    }
    if (r->puller || r->state != RECEIVING_NONE) {
        return;
    }
    pthread_mutex_lock(&r->status_lock);
    struct puller *p = r->pull_wanted;
    r->pull_wanted = NULL;
    pthread_mutex_unlock(&r->status_lock);
    if (p) {
        start(r, p);
    }
}

void pulling_stop(struct corral_push_receiver *r)
{
    if (r->puller) {
        pulling_cancel(r);
        over(r);
        r->state = RECEIVING_NONE;
    }
    puller_free(r->pull_wanted);
    r->pull_wanted = NULL;
}

/* ---- asking for it ---- */

static enum corral_status make_puller(struct corral_push_receiver *r, const char *const *peers,
                                      uint32_t count, uint64_t timeout_ns, struct puller **out,
                                      struct corral_error *err)
{
    if (count == 0 || count > CORRAL_PULL_PEERS_MAX || !r->copy.link) {
        return corral_fail(err, CORRAL_INVALID, "%s",
                           r->copy.link ? "a pull needs 1 to 64 peers"
                                        : "there is nothing to pull at this rank");
    }
    struct puller *p = calloc(1, sizeof *p);
    if (!p) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to pull weights");
    }
    p->r = r;
    p->count = count;
    p->timeout_ns = timeout_ns;
    p->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (uint32_t i = 0; i < count && p->cancel_fd >= 0; i++) {
        if (strlen(peers[i]) >= CORRAL_PULL_ENDPOINT_MAX) {
            puller_free(p);
            return corral_fail(err, CORRAL_INVALID, "endpoint of a peer is too long: %.96s", peers[i]);
        }
        snprintf(p->peer[i], sizeof p->peer[i], "%s", peers[i]);
    }
    if (p->cancel_fd < 0) {
        free(p);
        return corral_fail(err, CORRAL_NOMEM, "no descriptor to pull weights");
    }
    *out = p;
    return CORRAL_OK;
}

enum corral_status corral_push_receiver_pull(struct corral_push_receiver *r, const char *const *peers,
                                             uint32_t count, uint64_t timeout_ns, struct corral_error *err)
{
    struct puller *p = NULL;
    CORRAL_TRY(make_puller(r, peers, count, timeout_ns, &p, err));
    pthread_mutex_lock(&r->status_lock);
    bool busy = r->status.pulling;
    if (!busy) {
        r->status.pulling = true;
        r->pull_wanted = p;
    }
    pthread_mutex_unlock(&r->status_lock);
    if (busy) {
        puller_free(p);
        return corral_fail(err, CORRAL_EXISTS, "a pull is under way");
    }
    eventfd_write(r->report_fd, 1);
    return CORRAL_OK;
}
