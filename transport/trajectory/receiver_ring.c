/* Workers of the same node: their rings come in at the door (local/) and are read in place. A record is taken in like one over ZeroMQ, but nothing is copied and no credit is counted: it stays in the
 * ring, which its worker has charged, until it is finished. Sessions are ZeroMQ's. */
#include "base/clock.h"
#include "base/log.h"
#include "transport/trajectory/receiver_private.h"
#include "transport/trajectory/ring/ring.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#define FEEDS_MAX (4 * CORRAL_TRAJ_WORKERS_MAX)
#define IN_A_ROW 16 /* records of one ring, before the next ring's turn */
#define EVENTS 64
#define AGAIN_NS (50 * CORRAL_NS_PER_MS) /* after the log or the system had no room for a record */
#define LINK_TAG UINT64_C(1)             /* in an event: about the link, not the bell */

struct corral_traj_feed {
    struct corral_ring *ring;
    uint32_t worker, epoch;
    uint64_t first; /* sequence of its record number 0 */
    int link;       /* -1: it has ended */
    dev_t device;
    ino_t inode;
    uint32_t held;
    bool retired; /* nothing is read from it any more */
    bool armed;
    bool waits; /* `item` is the next record, for which there was no room */
    uint64_t again_ns;
    struct corral_ring_item item;
    bool called; /* a later epoch's ring waits until this one is read to its end */
    struct corral_local_caller caller;
};

/* ---- rings ---- */

static void hang_up(const struct corral_traj_receiver *r, struct corral_traj_feed *f)
{
    if (f->link >= 0) {
        (void)epoll_ctl(r->epoll, EPOLL_CTL_DEL, f->link, NULL);
        close(f->link);
        f->link = -1;
    }
}

static void turn_away(struct corral_local_caller *c)
{
    close(c->link);
    for (int i = 0; i < 3; i++) {
        close(c->fd[i]);
    }
}

static void feed_free(struct corral_traj_receiver *r, struct corral_traj_feed *f)
{
    hang_up(r, f);
    if (f->called) {
        turn_away(&f->caller);
    }
    if (f->ring != NULL) {
        (void)epoll_ctl(r->epoll, EPOLL_CTL_DEL, corral_ring_bell(f->ring), NULL);
        corral_ring_close(f->ring);
    }
    for (uint32_t i = 0; i < r->feed_count; i++) {
        if (r->feeds[i] == f) {
            r->feeds[i] = r->feeds[--r->feed_count];
            break;
        }
    }
    free(f);
}

/* What is handed out of it stays valid. */
static void retire(struct corral_traj_receiver *r, struct corral_traj_feed *f)
{
    f->retired = true;
    hang_up(r, f);
    (void)epoll_ctl(r->epoll, EPOLL_CTL_DEL, corral_ring_bell(f->ring), NULL);
    if (f->held == 0) {
        feed_free(r, f);
    }
}

static struct corral_traj_feed *feed_of(const struct corral_traj_receiver *r, uint32_t worker)
{
    for (uint32_t i = 0; i < r->feed_count; i++) {
        if (r->feeds[i]->worker == worker && !r->feeds[i]->retired) {
            return r->feeds[i];
        }
    }
    return NULL;
}

/* The worker that wrote this is broken: its epoch is not let in again. */
static void broken(struct corral_traj_receiver *r, struct corral_traj_feed *f, const char *why)
{
    struct corral_traj_stream *st = &r->streams[f->worker];
    r->stats.malformed++;
    corral_log_warn("the ring of a rollout worker is not read on", LOG_U64("worker", f->worker),
                    LOG_U64("epoch", f->epoch), LOG_STR("why", why));
    st->ring_broken = true;
    st->ring_epoch = f->epoch;
    if (st->epoch == f->epoch) {
        corral_traj_receiver_hello_again(r, st);
    }
    retire(r, f);
}

/* ---- the door ---- */

enum corral_status corral_traj_receiver_door_open(struct corral_traj_receiver *r, const char *endpoint,
                                                  struct corral_error *err)
{
    char path[CORRAL_LOCAL_PATH_MAX];
    CORRAL_TRY(corral_local_path(endpoint, path, err));
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (r->epoll < 0) {
        return corral_fail_sys(err, errno, "watch a trajectory door");
    }
    CORRAL_TRY(corral_local_door_open(&r->door, path, r->run, r->token, err));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, corral_local_door_fd(r->door), &event) != 0) {
        return corral_fail_sys(err, errno, "watch a trajectory door");
    }
    return CORRAL_OK;
}

void corral_traj_receiver_door_close(struct corral_traj_receiver *r)
{
    while (r->feed_count > 0) {
        feed_free(r, r->feeds[0]);
    }
    free(r->feeds);
    r->feeds = NULL;
    corral_local_door_close(r->door);
    r->door = NULL;
    corral_cleanup_close(&r->epoll);
    r->epoll = -1;
}

static bool watch(const struct corral_traj_receiver *r, int fd, uint32_t events, uint64_t tag)
{
    struct epoll_event event = {.events = events, .data.u64 = tag};
    return epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* The link and its answer; when the worker has gone meanwhile, its ring is read all the same. */
static void answer(struct corral_traj_receiver *r, struct corral_traj_feed *f, int link)
{
    const struct corral_traj_stream *st = &r->streams[f->worker];
    hang_up(r, f);
    if (corral_local_welcome(link, corral_traj_stream_acked(r, st), st->received, NULL) != CORRAL_OK ||
        !watch(r, link, EPOLLRDHUP, (uint64_t)(uintptr_t)f | LINK_TAG)) {
        close(link);
        return;
    }
    f->link = link;
}

/* It has more, and nobody who could add to it. */
static bool left_behind(struct corral_traj_feed *f)
{
    bool unread = f->waits || corral_ring_arm(f->ring, 0) == false;
    if (!unread) {
        corral_ring_disarm(f->ring);
        f->armed = false;
    }
    return unread && !corral_ring_peer_alive(f->ring);
}

static struct corral_traj_feed *new_feed(struct corral_traj_receiver *r, const struct corral_local_caller *c)
{
    struct corral_traj_feed **grown =
        r->feed_count < FEEDS_MAX ? realloc(r->feeds, (r->feed_count + 1) * sizeof(void *)) : NULL;
    struct corral_traj_feed *f = NULL;
    if (grown != NULL) {
        r->feeds = grown;
        f = calloc(1, sizeof *f);
    }
    if (f != NULL) {
        *f = (struct corral_traj_feed){
            .worker = c->hello.worker, .epoch = c->hello.epoch, .first = c->hello.first, .link = -1};
        r->feeds[r->feed_count++] = f;
    }
    return f;
}

/* Attaches and puts it into the place of the one before. False: not now. */
static bool take_ring(struct corral_traj_receiver *r, struct corral_local_caller *c, const struct stat *st,
                      struct corral_error *err)
{
    struct corral_traj_feed *before = feed_of(r, c->hello.worker), *f = new_feed(r, c);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for one more ring");
    }
    f->device = st->st_dev;
    f->inode = st->st_ino;
    enum corral_status status = corral_ring_attach(&f->ring, CORRAL_RING_CONSUMER, c->fd, err);
    if (status == CORRAL_OK && !watch(r, corral_ring_bell(f->ring), EPOLLIN, (uint64_t)(uintptr_t)f)) {
        status = corral_fail(err, CORRAL_NOMEM, "no room to watch one more ring");
    }
    if (status != CORRAL_OK) {
        feed_free(r, f);
        return status;
    }
    if (before != NULL) {
        retire(r, before);
    }
    return CORRAL_OK;
}

static void refuse(struct corral_traj_receiver *r, struct corral_local_caller *c, const char *why)
{
    r->stats.refused++;
    corral_log_warn("trajectory sender refused", LOG_U64("worker", c->hello.worker), LOG_STR("why", why));
    corral_local_refuse(c->link, why);
    for (int i = 0; i < 3; i++) {
        close(c->fd[i]);
    }
}

static const char *check_caller(const struct corral_traj_receiver *r, const struct corral_local_hello *h)
{
    if (h->worker < r->workers && r->streams[h->worker].ring_broken &&
        r->streams[h->worker].ring_epoch == h->epoch) {
        return "its ring is damaged or holds what is no record of this worker";
    }
    const struct corral_traj_message m = {.protocol = CORRAL_TRAJ_PROTOCOL,
                                          .run = h->run,
                                          .worker = h->worker,
                                          .epoch = h->epoch,
                                          .first = h->first};
    return corral_traj_receiver_check_stream(r, &m);
}

/* Takes over the caller's link and descriptors. */
static void welcome(struct corral_traj_receiver *r, struct corral_local_caller *c)
{
    struct corral_error err = {.status = CORRAL_OK};
    const char *why = check_caller(r, &c->hello);
    struct stat st;
    if (why == NULL && fstat(c->fd[0], &st) != 0) {
        why = "its descriptors are not a ring's";
    }
    if (why != NULL) {
        refuse(r, c, why);
        return;
    }
    struct corral_traj_feed *f = feed_of(r, c->hello.worker);
    bool same = f != NULL && f->epoch == c->hello.epoch && f->device == st.st_dev && f->inode == st.st_ino &&
                f->first == c->hello.first;
    if (!same && f != NULL && c->hello.epoch > f->epoch && left_behind(f)) {
        if (f->called) {
            turn_away(&f->caller);
        }
        f->called = true;
        f->caller = *c;
        return;
    }
    if (!same) {
        enum corral_status status = take_ring(r, c, &st, &err);
        if (status == CORRAL_PROTOCOL || status == CORRAL_INVALID) {
            refuse(r, c, err.text);
            return;
        }
        if (status != CORRAL_OK) { /* another trainer still has it, or there is no memory: it calls again */
            corral_log_info("the ring of a rollout worker can't be taken now",
                            LOG_U64("worker", c->hello.worker), LOG_STR("why", err.text));
            turn_away(c);
            return;
        }
        f = feed_of(r, c->hello.worker);
    }
    const struct corral_traj_message m = {.epoch = c->hello.epoch, .first = c->hello.first};
    corral_traj_receiver_adopt(r, &r->streams[c->hello.worker], &m);
    for (int i = 0; i < 3; i++) {
        close(c->fd[i]);
    }
    answer(r, f, c->link);
}

static bool known(const struct corral_traj_receiver *r, const struct corral_traj_feed *f)
{
    for (uint32_t i = 0; i < r->feed_count; i++) {
        if (r->feeds[i] == f) {
            return true;
        }
    }
    return false;
}

void corral_traj_receiver_ring_events(struct corral_traj_receiver *r)
{
    struct epoll_event events[EVENTS];
    struct corral_local_caller c;
    int count = r->door != NULL ? epoll_wait(r->epoll, events, EVENTS, 0) : 0;
    for (int i = 0; i < count; i++) {
        uint64_t tag = events[i].data.u64, rings;
        struct corral_traj_feed *f = (struct corral_traj_feed *)(uintptr_t)(tag & ~LINK_TAG);
        if (tag == 0 || !known(r, f)) {
            continue; /* the door is looked at below */
        }
        if ((tag & LINK_TAG) != 0) {
            hang_up(r, f);
        } else {
            (void)!read(corral_ring_bell(f->ring), &rings, sizeof rings);
            corral_ring_disarm(f->ring);
            f->armed = false;
        }
    }
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    while (r->door != NULL && corral_local_door_next(r->door, now, &c, NULL) == CORRAL_OK) {
        welcome(r, &c);
    }
}

/* ---- records ---- */

static enum corral_status check_record(const struct corral_traj_receiver *r, const struct corral_traj_feed *f,
                                       const struct corral_ring_item *item, struct corral_error *err)
{
    uint64_t bytes;
    CORRAL_TRY(corral_traj_prologue_check(item->data, item->bytes, &bytes, err));
    const struct corral_traj_prologue *p = item->data;
    if (bytes != item->bytes || p->run != r->run || p->worker != f->worker || p->epoch != f->epoch ||
        p->sequence != f->first + item->number) {
        return corral_fail(err, CORRAL_PROTOCOL, "a record of another stream than the hello said");
    }
    if (corral_traj_cost(bytes) > r->record_max) {
        return corral_fail(err, CORRAL_PROTOCOL, "a record of %llu bytes is larger than is let in",
                           (unsigned long long)bytes);
    }
    return CORRAL_OK;
}

static bool drop_duplicate(struct corral_traj_receiver *r, struct corral_traj_feed *f,
                           struct corral_traj_stream *st)
{
    r->stats.duplicates++;
    st->credit_due = st->live;
    corral_traj_receiver_mark(r, st);
    return corral_ring_release(f->ring, f->item.position, NULL) == CORRAL_OK;
}

/* f->item is a good record that is new. False: no room for it now. */
static bool keep(struct corral_traj_receiver *r, struct corral_traj_feed *f, struct corral_traj_stream *st,
                 struct corral_traj_held **out)
{
    struct corral_traj_held *h;
    if (corral_traj_receiver_hold_in_place(r, f->item.data, f->item.bytes, &h, NULL) != CORRAL_OK) {
        r->stats.denied++;
        return false;
    }
    h->item.worker = f->worker;
    h->item.epoch = f->epoch;
    h->item.sequence = f->first + f->item.number;
    h->feed = f;
    h->in_ring = f->item.position;
    if (r->log != NULL && corral_traj_receiver_append(r, h, NULL) != CORRAL_OK) {
        corral_traj_receiver_unhold(r, h);
        r->stats.unlogged++;
        return false;
    }
    f->held++;
    corral_traj_receiver_pass_over(r, st, h->item.sequence - 1);
    st->received = h->item.sequence;
    corral_traj_receiver_enlist(r, st, h);
    *out = h;
    return true;
}

enum taken { TAKEN, DROPPED, NOTHING };

static enum taken take_one(struct corral_traj_receiver *r, struct corral_traj_feed *f,
                           struct corral_traj_held **out)
{
    struct corral_error err = {.status = CORRAL_OK};
    struct corral_traj_stream *st = &r->streams[f->worker];
    if (f->waits && corral_now_ns(&corral_clock_monotonic) < f->again_ns) {
        return NOTHING;
    }
    enum corral_status status = f->waits ? CORRAL_OK : corral_ring_next(f->ring, &f->item, &err);
    if (status == CORRAL_AGAIN) {
        /* What an earlier trainer released does not come again. */
        uint64_t before = f->first + corral_ring_reached(f->ring) - 1;
        if (st->epoch == f->epoch && st->received < before) {
            corral_traj_receiver_pass_over(r, st, before);
        }
        return NOTHING;
    }
    if (status == CORRAL_OK) {
        status = check_record(r, f, &f->item, &err);
    }
    if (status != CORRAL_OK) {
        broken(r, f, err.text);
        return DROPPED;
    }
    f->waits = false;
    if (st->epoch != f->epoch || f->first + f->item.number <= st->received) {
        if (!drop_duplicate(r, f, st)) {
            broken(r, f, "a record can't be released");
        }
        return DROPPED;
    }
    if (!keep(r, f, st, out)) {
        f->waits = true;
        f->again_ns = corral_now_ns(&corral_clock_monotonic) + AGAIN_NS;
        return NOTHING;
    }
    if (r->span_count > 0 && corral_traj_receiver_spanned(r, f->worker, f->epoch, (*out)->item.sequence)) {
        corral_traj_receiver_finish(r, &(*out)->item);
        return DROPPED;
    }
    return TAKEN;
}

/* Read to its end: a later epoch's ring takes its place, or it goes with the worker. True: something changed. */
static bool end_of(struct corral_traj_receiver *r, struct corral_traj_feed *f)
{
    if (f->waits) {
        return false;
    }
    if (f->called) {
        struct corral_local_caller c = f->caller;
        f->called = false;
        retire(r, f);
        welcome(r, &c);
        return true;
    }
    if (f->link < 0 && f->held == 0 && !corral_ring_peer_alive(f->ring)) {
        retire(r, f);
        return true;
    }
    return false;
}

struct corral_traj_held *corral_traj_receiver_take_ring(struct corral_traj_receiver *r)
{
    for (uint32_t idle = 0; idle < r->feed_count;) {
        if (r->feed_at >= r->feed_count || r->feed_row >= IN_A_ROW) {
            r->feed_at = r->feed_at + 1 < r->feed_count ? r->feed_at + 1 : 0;
            r->feed_row = 0;
        }
        struct corral_traj_feed *f = r->feeds[r->feed_at];
        struct corral_traj_held *h = NULL;
        enum taken taken = f->retired ? NOTHING : take_one(r, f, &h);
        if (taken == TAKEN) {
            r->feed_row++;
            return h;
        }
        if (taken == DROPPED || (!f->retired && end_of(r, f))) {
            idle = 0;
            continue;
        }
        idle++;
        r->feed_row = IN_A_ROW;
    }
    return NULL;
}

void corral_traj_receiver_ring_finish(struct corral_traj_receiver *r, struct corral_traj_held *h)
{
    struct corral_traj_feed *f = h->feed;
    struct corral_error err = {.status = CORRAL_OK};
    h->feed = NULL;
    f->held--;
    if (corral_ring_release(f->ring, h->in_ring, &err) != CORRAL_OK && !f->retired) {
        broken(r, f, err.text);
    } else if (f->retired && f->held == 0) {
        feed_free(r, f);
    }
}

bool corral_traj_receiver_ring_arm(struct corral_traj_receiver *r, bool *soon)
{
    for (uint32_t i = 0; i < r->feed_count; i++) {
        struct corral_traj_feed *f = r->feeds[i];
        *soon |= f->waits;
        if (f->retired || f->waits || f->armed) {
            continue;
        }
        f->armed = corral_ring_arm(f->ring, 0);
        if (!f->armed) {
            return false;
        }
    }
    return true;
}
