/* The receiving end of one link's lane, on a thread of its own. */
#include "transport/weights/push/receiver_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ARRIVED 1u                /* the lane has reported it */
#define ANNOUNCED 2u              /* SENT has come */
#define TAKEN 4u                  /* its digest is right */
#define ROOM 32u                  /* buckets per call of rx_progress */
#define SLICE_NS CORRAL_NS_PER_MS /* how long a lane without a descriptor is waited for at once */

static void post(struct worker *w, enum worker_event event)
{
    pthread_mutex_lock(&w->lock);
    w->events |= (uint32_t)event;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->report_fd, 1);
}

static void fail(struct worker *w, const struct corral_error *why)
{
    pthread_mutex_lock(&w->lock);
    w->error = *why;
    w->events |= WORKER_FAILED;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->report_fd, 1);
}

/* ---- buckets ---- */

static enum corral_status finish(struct worker *w, struct corral_error *err)
{
    CORRAL_TRY(w->ops->rx_end(w->lane, true, err));
    w->receiving = false;
    /* `sent` does not change any more: every bucket is taken. */
    struct corral_digest digest = push_link_digest(w->link, w->sent);
    pthread_mutex_lock(&w->lock);
    w->digest = digest;
    w->events |= WORKER_COMPLETE;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->report_fd, 1);
    return CORRAL_OK;
}

/* It has arrived and its digest is known: compare with what is in final memory now. */
static enum corral_status judge(struct worker *w, uint32_t bucket, struct corral_error *err)
{
    uint64_t start = push_now_ns();
    struct corral_digest have;
    CORRAL_TRY(w->shadow.ops->digest(&w->shadow, w->link, CORRAL_LINK_DESTINATION, bucket, &have, err));
    CORRAL_TRY(w->ops->rx_taken(w->lane, bucket, err));
    uint64_t now = push_now_ns();
    pthread_mutex_lock(&w->lock);
    bool ok = corral_digest_equal(have, w->sent[bucket]), fits = w->verdict_count < w->link->buckets;
    if (fits) {
        w->verdict[(w->verdict_from + w->verdict_count++) % w->link->buckets] = (struct verdict){bucket, ok};
    }
    w->announced[bucket] = ok;
    w->hash_ns += now - start;
    w->last_ns = w->heard_ns = now;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->report_fd, 1);
    w->flags[bucket] = ok ? TAKEN : 0;
    if (!fits || (!ok && ++w->damaged[bucket] == PUSH_ATTEMPTS_MAX)) {
        return corral_fail(err, CORRAL_PROTOCOL, "bucket %u from rank %u arrived damaged %u times", bucket,
                           w->link->source, w->damaged[bucket]);
    }
    w->taken += ok;
    return w->taken == w->link->buckets ? finish(w, err) : CORRAL_OK;
}

static enum corral_status note(struct worker *w, uint32_t bucket, uint8_t flag, struct corral_error *err)
{
    if (bucket >= w->link->buckets) {
        return corral_fail(err, CORRAL_PROTOCOL, "the %s lane reports bucket %u of %u", w->ops->name, bucket,
                           w->link->buckets);
    }
    if (w->flags[bucket] == TAKEN) { /* reported twice */
        return w->ops->rx_taken(w->lane, bucket, err);
    }
    w->flags[bucket] |= flag;
    return w->flags[bucket] == (ARRIVED | ANNOUNCED) ? judge(w, bucket, err) : CORRAL_OK;
}

static enum corral_status take_fresh(struct worker *w, struct corral_error *err)
{
    while (w->receiving) {
        pthread_mutex_lock(&w->lock);
        bool any = w->fresh_count > 0;
        uint32_t bucket = any ? w->fresh[w->fresh_from] : 0;
        if (any) {
            w->fresh_from = (w->fresh_from + 1) % w->link->buckets;
            w->fresh_count--;
        }
        pthread_mutex_unlock(&w->lock);
        if (!any) {
            return CORRAL_OK;
        }
        CORRAL_TRY(note(w, bucket, ANNOUNCED, err));
    }
    return CORRAL_OK;
}

/* One look at the lane. */
static enum corral_status receive(struct worker *w, uint64_t timeout_ns, struct corral_error *err)
{
    uint32_t bucket[ROOM], count = 0;
    CORRAL_TRY(w->ops->rx_progress(w->lane, timeout_ns, bucket, ROOM, &count, err));
    if (count > 0) {
        uint64_t now = push_now_ns();
        pthread_mutex_lock(&w->lock);
        w->heard_ns = now;
        w->first_ns = w->first_ns == 0 ? now : w->first_ns;
        pthread_mutex_unlock(&w->lock);
    }
    for (uint32_t i = 0; i < count && w->receiving; i++) {
        CORRAL_TRY(note(w, bucket[i], ARRIVED, err));
    }
    return take_fresh(w, err);
}

/* ---- the thread ---- */

/* What the lane, and the buffers for deltas, have come to hold. */
static enum corral_status account(struct worker *w, struct corral_error *err)
{
    return push_account_hold(w->account, &w->held, w->lane->memory_bytes + corral_onto_memory(&w->onto),
                             "staging of a weight lane", err);
}

static enum corral_status open_lane(struct worker *w, struct corral_error *err)
{
    struct corral_lane_blob offer = {0};
    CORRAL_TRY(w->ops->rx_open(&w->lane, w->link, &w->options, &offer, err));
    CORRAL_TRY(account(w, err));
    pthread_mutex_lock(&w->lock);
    w->blob = offer;
    pthread_mutex_unlock(&w->lock);
    post(w, WORKER_OFFERED);
    return CORRAL_OK;
}

static enum corral_status begin(struct worker *w, uint64_t number, struct corral_error *err)
{
    struct corral_lane_blob place = {0};
    memset(w->flags, 0, w->link->buckets);
    memset(w->damaged, 0, w->link->buckets);
    w->taken = 0;
    struct corral_shard *destination = &w->shadow;
    if (w->base.ops != NULL) {
        CORRAL_TRY(corral_onto_begin(&w->onto, w->link, &w->shadow, &w->base, w->holds, w->next, err));
        destination = &w->onto.shard;
    }
    CORRAL_TRY(w->ops->rx_begin(w->lane, number, destination, &place, err));
    w->receiving = true;
    CORRAL_TRY(account(w, err));
    pthread_mutex_lock(&w->lock);
    w->blob = place;
    pthread_mutex_unlock(&w->lock);
    post(w, WORKER_PLACED);
    return CORRAL_OK;
}

static enum corral_status obey(struct worker *w, enum worker_command command,
                               const struct corral_lane_blob *blob, uint64_t number, struct corral_error *err)
{
    switch (command) {
    case WORKER_OPEN:
        return open_lane(w, err);
    case WORKER_CONNECT:
        CORRAL_TRY(w->ops->rx_connect(w->lane, blob, err));
        CORRAL_TRY(account(w, err));
        post(w, WORKER_CONNECTED);
        return CORRAL_OK;
    case WORKER_BEGIN:
        return begin(w, number, err);
    case WORKER_NOTHING:
        break;
    }
    return CORRAL_OK;
}

static void wait_wake(struct worker *w, int lane_fd)
{
    struct pollfd fds[2] = {{.fd = w->wake_fd, .events = POLLIN}, {.fd = lane_fd, .events = POLLIN}};
    eventfd_t ignored;
    if (poll(fds, 2, -1) > 0 && fds[0].revents != 0) {
        eventfd_read(w->wake_fd, &ignored);
    }
}

static void close_lane(struct worker *w)
{
    int32_t tainted = 0;
    struct corral_error ignored;
    if (w->lane != NULL) {
        if (w->receiving) {
            (void)w->ops->rx_end(w->lane, false, &ignored);
        }
        w->ops->rx_close(w->lane, &tainted);
        w->lane = NULL;
        corral_onto_clear(&w->onto);
        push_account_drop(w->account, &w->held);
    }
    pthread_mutex_lock(&w->lock);
    w->tainted = tainted;
    pthread_mutex_unlock(&w->lock);
    post(w, WORKER_CLOSED);
}

static void *run(void *arg)
{
    struct worker *w = arg;
    bool failed = false;
    for (;;) {
        struct corral_lane_blob blob;
        pthread_mutex_lock(&w->lock);
        bool stop = w->stop;
        enum worker_command command = w->command;
        uint64_t number = w->push;
        blob.bytes = 0;
        if (command == WORKER_CONNECT) {
            blob = w->blob;
        }
        w->command = WORKER_NOTHING;
        pthread_mutex_unlock(&w->lock);
        if (stop) {
            break;
        }
        struct corral_error why = {0};
        enum corral_status status = failed ? CORRAL_OK : obey(w, command, &blob, number, &why);
        if (status == CORRAL_OK && w->receiving && !failed) {
            int fd = w->lane->fd;
            if (fd >= 0) {
                wait_wake(w, fd);
            }
            status = receive(w, fd >= 0 ? 0 : SLICE_NS, &why);
        } else if (status == CORRAL_OK) {
            wait_wake(w, -1);
        }
        if (status != CORRAL_OK) {
            fail(w, &why);
            failed = true;
        }
    }
    close_lane(w);
    return NULL;
}

/* ---- the control thread's side ---- */

static void command(struct worker *w, enum worker_command what)
{
    w->command = what;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->wake_fd, 1);
}

void worker_connect(struct worker *w, const struct corral_lane_blob *answer)
{
    pthread_mutex_lock(&w->lock);
    w->blob = *answer;
    command(w, WORKER_CONNECT);
}

void worker_begin(struct worker *w, uint64_t push, const struct corral_shard *shadow,
                  const struct corral_push_source *base, uint64_t version)
{
    pthread_mutex_lock(&w->lock);
    w->push = push;
    w->shadow = *shadow;
    w->base = base == NULL ? (struct corral_shard){0} : base->shard;
    w->holds = base == NULL ? (struct corral_delta_version){0}
                            : (struct corral_delta_version){base->version, base->digest};
    w->next = version;
    w->fresh_count = w->verdict_count = 0;
    memset(w->announced, 0, w->link->buckets);
    w->first_ns = w->last_ns = w->hash_ns = 0;
    w->heard_ns = push_now_ns();
    command(w, WORKER_BEGIN);
}

bool worker_sent(struct worker *w, uint32_t bucket, struct corral_digest digest)
{
    pthread_mutex_lock(&w->lock);
    bool fits =
        !w->announced[bucket]; /* so each is in the ring once at most, and `sent` of a taken one stays */
    if (fits) {
        w->announced[bucket] = true;
        w->sent[bucket] = digest;
        w->fresh[(w->fresh_from + w->fresh_count++) % w->link->buckets] = bucket;
    }
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->wake_fd, 1);
    return fits;
}

void worker_stop(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_mutex_unlock(&w->lock);
    eventfd_write(w->wake_fd, 1);
}

static void worker_free(struct worker *w)
{
    if (w->wake_fd >= 0) {
        close(w->wake_fd);
    }
    pthread_mutex_destroy(&w->lock);
    free(w->fresh);
    free(w->verdict);
    free(w->sent);
    free(w->flags);
    free(w->damaged);
    free(w->announced);
    corral_onto_clear(&w->onto);
    free(w);
}

int32_t worker_destroy(struct worker *w)
{
    if (w == NULL) {
        return 0;
    }
    worker_stop(w);
    pthread_join(w->thread, NULL);
    int32_t tainted = w->tainted;
    worker_free(w);
    return tainted;
}

enum corral_status worker_start(struct worker **out, const struct corral_link *link,
                                const struct corral_lane_ops *ops, const struct corral_lane_options *options,
                                int report_fd, struct push_account *account, struct corral_error *err)
{
    struct worker *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot receive weights: out of memory");
    }
    pthread_mutex_init(&w->lock, NULL);
    w->link = link;
    w->ops = ops;
    w->options = *options;
    w->report_fd = report_fd;
    w->account = account;
    w->command = WORKER_OPEN;
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->fresh = calloc(link->buckets, sizeof *w->fresh);
    w->verdict = calloc(link->buckets, sizeof *w->verdict);
    w->sent = calloc(link->buckets, sizeof *w->sent);
    w->flags = calloc(link->buckets, sizeof *w->flags);
    w->damaged = calloc(link->buckets, sizeof *w->damaged);
    w->announced = calloc(link->buckets, sizeof *w->announced);
    if (w->wake_fd < 0 || w->fresh == NULL || w->verdict == NULL || w->sent == NULL || w->flags == NULL ||
        w->damaged == NULL || w->announced == NULL) {
        worker_free(w);
        return corral_fail(err, CORRAL_NOMEM, "cannot receive %u buckets: out of memory or descriptors",
                           link->buckets);
    }
    sigset_t all, before;
    sigfillset(&all); /* signals are the program's business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int sys = pthread_create(&w->thread, NULL, run, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (sys != 0) {
        worker_free(w);
        return corral_fail_sys(err, sys, "cannot start a thread for a link");
    }
    *out = w;
    return CORRAL_OK;
}
