/* The receiver's visitors: who pulls its version, and who measures a lane to it. Each on a thread of its own, which touches nothing of the receiver but what does not change, and the target's source. */
#include "transport/weights/push/pull.h"
#include "transport/weights/push/receiver_internal.h"
#include "transport/weights/push/visit.h"

#include "base/log.h"
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define BURST 4u
#define SLICE_NS CORRAL_NS_PER_MS
#define PULL_NS_MAX (UINT64_C(3600) * CORRAL_NS_PER_S) /* silence ends it much sooner */
#define PROBE_BYTES_SERVED_MAX (UINT64_C(1) << 30)
#define PROBE_NS_MAX (60 * CORRAL_NS_PER_S)

struct visitor {
    struct corral_push_receiver *r;
    pthread_t thread;
    atomic_bool ended;
    bool probes, handed_over;                 /* the connection speaks another protocol now */
    char name[80], lanes[PUSH_LANES_MAX + 1]; /* lanes: the puller's, or the one to be measured */
    uint64_t has, bytes, bucket_bytes;
    struct visit visit;
    /* A pull. */
    const struct corral_link *link;
    const struct corral_lane_ops *ops;
    struct corral_lane *lane;
    uint64_t held; /* of the receiver's account */
    struct corral_push_source source;
    bool opened, sending;
    uint8_t *attempt;  /* per bucket */
    bool *open_bucket; /* per bucket: sent and not judged */
    uint32_t *again;   /* ring */
    uint32_t again_from, again_count, next, taken;
    uint64_t in_lane, left;
};

/* ---- pulling: the lane ---- */

static enum corral_status account(struct visitor *v, struct corral_error *err)
{
    return push_account_hold(&v->r->account, &v->held, v->lane->memory_bytes,
                             "staging to serve a weight pull", err);
}

static void close_lane(struct visitor *v)
{
    v->ops->tx_close(v->lane);
    v->lane = NULL;
    push_account_drop(&v->r->account, &v->held);
}

static enum corral_status try_lane(struct visitor *v, const char *name, bool *open, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *payload;
    struct corral_error why = {0};
    v->ops = receiver_lane_named(v->r, name);
    if (!v->ops || v->ops->available(&v->r->options.lane, &why) != CORRAL_OK) {
        return CORRAL_OK;
    }
    CORRAL_TRY(visit_say(&v->visit, PUSH_LANE, 0, name, (uint32_t)strlen(name), err));
    CORRAL_TRY(visit_expect(&v->visit, 1u << PUSH_OFFER | 1u << PUSH_NOLANE, &f, &payload, err));
    if (f.type == PUSH_NOLANE) {
        return CORRAL_OK;
    }
    CORRAL_AUTO_FREE struct corral_lane_blob *blob = calloc(2, sizeof *blob);
    if (!blob) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to serve a pull");
    }
    blob[0].bytes = f.bytes;
    memcpy(blob[0].data, payload, f.bytes);
    struct corral_lane_options options = v->r->options.lane;
    options.open_timeout_ns = options.open_timeout_ns ? options.open_timeout_ns : 5 * CORRAL_NS_PER_S;
    if (v->ops->tx_open(&v->lane, v->link, &options, &blob[0], &blob[1], &why) != CORRAL_OK) {
        visit_say_why(&v->visit, PUSH_NOLANE, &why);
        return CORRAL_OK;
    }
    if (account(v, &why) != CORRAL_OK) {
        close_lane(v);
        visit_say_why(&v->visit, PUSH_NOLANE, &why);
        return CORRAL_OK;
    }
    CORRAL_TRY(visit_say(&v->visit, PUSH_ANSWER, 0, blob[1].data, blob[1].bytes, err));
    CORRAL_TRY(visit_expect(&v->visit, 1u << PUSH_READY | 1u << PUSH_NOLANE, &f, &payload, err));
    *open = f.type == PUSH_READY;
    if (!*open) {
        close_lane(v);
    }
    return CORRAL_OK;
}

static enum corral_status find_lane(struct visitor *v, struct corral_error *err)
{
    char ours[PUSH_LANES_MAX + 1], name[PUSH_LANE_NAME_MAX];
    bool open = false;
    receiver_lanes(v->r, ours);
    for (uint32_t i = 0; !open && push_common_lane(ours, v->lanes, i, name); i++) {
        CORRAL_TRY(try_lane(v, name, &open, err));
    }
    return open ? CORRAL_OK
                : corral_fail(err, CORRAL_UNSUPPORTED, "no lane to the puller opens (ours %s, its %s)", ours,
                              v->lanes);
}

/* ---- pulling: buckets ---- */

static enum corral_status check_source(struct visitor *v, struct corral_error *err)
{
    const struct corral_push_receiver_options *o = &v->r->options;
    return o->target->source_intact(o->target_ctx, &v->source)
               ? CORRAL_OK
               : corral_fail(err, CORRAL_STATE, "version %" PRIu64 " was overtaken while it was read",
                             v->source.version);
}

/* CORRAL_AGAIN: as many are in flight as fit. */
static enum corral_status send_bucket(struct visitor *v, uint32_t bucket, struct corral_error *err)
{
    uint8_t payload[24];
    struct corral_digest digest;
    CORRAL_TRY(v->ops->tx_send(v->lane, bucket, err));
    CORRAL_TRY(
        v->source.shard.ops->digest(&v->source.shard, v->link, CORRAL_LINK_SOURCE, bucket, &digest, err));
    v->in_lane++;
    v->attempt[bucket]++;
    v->open_bucket[bucket] = true;
    wire_put_u32(payload, bucket);
    wire_put_u32(payload + 4, v->attempt[bucket]);
    wire_put_digest(payload + 8, digest);
    return visit_say(&v->visit, PUSH_SENT, v->source.version, payload, sizeof payload, err);
}

static enum corral_status send_some(struct visitor *v, bool *moved, struct corral_error *err)
{
    for (uint32_t i = 0; i < BURST && (v->again_count > 0 || v->next < v->link->buckets); i++) {
        bool again = v->again_count > 0;
        enum corral_status status = send_bucket(v, again ? v->again[v->again_from] : v->next, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        *moved = true;
        if (again) {
            v->again_from = (v->again_from + 1) % v->link->buckets;
            v->again_count--;
        } else {
            v->next++;
        }
    }
    return CORRAL_OK;
}

static enum corral_status hear_taken(struct visitor *v, uint64_t until_ns, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *payload;
    enum corral_status status = visit_hear(&v->visit, v->lane->fd, until_ns, &f, &payload, err);
    if (status != CORRAL_OK) {
        return status == CORRAL_AGAIN ? CORRAL_OK : status;
    }
    uint32_t bucket = wire_get_u32(payload), ok = wire_get_u32(payload + 4);
    if (f.type != PUSH_TAKEN || bucket >= v->link->buckets || !v->open_bucket[bucket] || ok > 1) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %s is not due", v->name, push_type_name(f.type));
    }
    v->open_bucket[bucket] = false;
    v->taken += ok;
    if (ok == 0) {
        CORRAL_TRY(check_source(v, err)); /* the likely reason */
        if (v->attempt[bucket] >= PUSH_ATTEMPTS_MAX) {
            return corral_fail(err, CORRAL_PROTOCOL, "bucket %u arrived damaged at %s %u times", bucket,
                               v->name, v->attempt[bucket]);
        }
        v->again[(v->again_from + v->again_count++) % v->link->buckets] = bucket;
    }
    return CORRAL_OK;
}

static enum corral_status send_all(struct visitor *v, struct corral_error *err)
{
    while (v->taken < v->link->buckets || v->left < v->in_lane) {
        bool moved = false;
        uint64_t left = v->left;
        CORRAL_TRY(v->ops->tx_progress(v->lane, 0, &v->left, err));
        moved = v->left != left;
        CORRAL_TRY(send_some(v, &moved, err));
        if (moved) {
            v->visit.heard_ns = push_now_ns(); /* it reads */
        }
        CORRAL_TRY(hear_taken(v, moved ? 0 : push_now_ns() + SLICE_NS, err));
    }
    v->sending = false;
    return v->ops->tx_end(v->lane, true, err);
}

/* ---- pulling ---- */

static enum corral_status offer_version(struct visitor *v, struct corral_error *err)
{
    const struct corral_push_receiver_options *o = &v->r->options;
    uint8_t payload[PUSH_PREPARE_BYTES];
    struct push_frame f;
    const uint8_t *answer;
    enum corral_status status = o->target->source_open(o->target_ctx, &v->source, err);
    if (status != CORRAL_OK) {
        return status == CORRAL_AGAIN ? corral_fail(err, CORRAL_STATE, "there is no version here") : status;
    }
    v->opened = true;
    if (v->source.version <= v->has) {
        return corral_fail(err, CORRAL_STATE, "version %" PRIu64 " is the newest here", v->source.version);
    }
    struct push_prepare prepare = {.push = 1, .bytes = v->link->bytes, .known = v->source.digest};
    push_put_prepare(payload, &prepare);
    CORRAL_TRY(visit_say(&v->visit, PUSH_PREPARE, v->source.version, payload, sizeof payload, err));
    CORRAL_TRY(visit_expect(&v->visit, 1u << PUSH_PLACE, &f, &answer, err));
    if (f.bytes > PUSH_PAYLOAD_MAX || wire_get_u64(answer) != 0) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: a place of %u bytes", v->name, f.bytes);
    }
    CORRAL_AUTO_FREE struct corral_lane_blob *place = calloc(1, sizeof *place);
    if (!place) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to serve a pull");
    }
    place->bytes = f.bytes - PUSH_PLACE_HEAD;
    memcpy(place->data, answer + PUSH_PLACE_HEAD, place->bytes);
    CORRAL_TRY(v->ops->tx_begin(v->lane, prepare.push, &v->source.shard, place, err));
    v->sending = true;
    return account(v, err);
}

static enum corral_status serve_pull(struct visitor *v, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *answer;
    uint8_t payload[16];
    v->attempt = calloc(v->link->buckets, 1);
    v->open_bucket = calloc(v->link->buckets, sizeof *v->open_bucket);
    v->again = calloc(v->link->buckets, sizeof *v->again);
    if (!v->attempt || !v->open_bucket || !v->again) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to serve a pull of %u buckets", v->link->buckets);
    }
    CORRAL_TRY(find_lane(v, err));
    CORRAL_TRY(offer_version(v, err));
    CORRAL_TRY(send_all(v, err));
    CORRAL_TRY(check_source(v, err));
    wire_put_digest(payload, v->source.digest);
    CORRAL_TRY(visit_say(&v->visit, PUSH_COMMIT, v->source.version, payload, sizeof payload, err));
    v->r->options.target->source_close(v->r->options.target_ctx, &v->source);
    v->opened = false;
    return visit_expect(&v->visit, 1u << PUSH_APPLIED, &f, &answer, err);
}

static void end_pull(struct visitor *v)
{
    const struct corral_push_receiver_options *o = &v->r->options;
    struct corral_error ignored;
    if (v->lane) { /* before the source may be given to others */
        if (v->sending) {
            (void)v->ops->tx_end(v->lane, false, &ignored);
        }
        close_lane(v);
    }
    if (v->opened) {
        o->target->source_close(o->target_ctx, &v->source);
    }
    free(v->attempt);
    free(v->open_bucket);
    free(v->again);
}

/* ---- probing ---- */

static enum corral_status serve_probe(struct visitor *v, struct corral_error *err)
{
    struct push_frame f;
    const uint8_t *payload;
    struct corral_lane_probe_options options = {.bytes = v->bytes,
                                                .bucket_bytes = v->bucket_bytes,
                                                .timeout_ns = PROBE_NS_MAX,
                                                .lane = v->r->options.lane};
    const struct corral_lane_ops *ops = receiver_lane_named(v->r, v->lanes);
    if (!ops) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no lane %s in this build", v->lanes);
    }
    CORRAL_TRY(visit_say(&v->visit, PUSH_READY, 0, NULL, 0, err));
    CORRAL_TRY(visit_expect(&v->visit, 1u << PUSH_READY, &f, &payload, err));
    v->handed_over = true;
    return corral_lane_probe_receive(v->visit.io.fd, ops, &options, err);
}

/* ---- threads ---- */

static void *run(void *arg)
{
    struct visitor *v = arg;
    struct corral_error why = {0};
    enum corral_status status = v->probes ? serve_probe(v, &why) : serve_pull(v, &why);
    if (status != CORRAL_OK) {
        corral_log_info("visitor not served to the end", LOG_STR("receiver", v->r->name),
                        LOG_STR("peer", v->name), LOG_ERR(&why));
        if (status != CORRAL_PEER && !v->handed_over) {
            visit_say_why(&v->visit, PUSH_ABORT, &why);
        }
    }
    if (!v->probes) {
        end_pull(v);
    }
    atomic_store_explicit(&v->ended, true, memory_order_release); /* pairs with visitors_advance */
    eventfd_write(v->r->report_fd, 1);
    return NULL;
}

static void visitor_end(struct corral_push_receiver *r, uint32_t i)
{
    struct visitor *v = r->visitor[i];
    pthread_join(v->thread, NULL);
    close(v->visit.io.fd);
    free(v);
    r->visitor[i] = NULL;
}

void visitors_advance(struct corral_push_receiver *r)
{
    for (uint32_t i = 0; i < CORRAL_PUSH_VISITORS_MAX; i++) {
        if (r->visitor[i] && atomic_load_explicit(&r->visitor[i]->ended, memory_order_acquire)) {
            visitor_end(r, i);
        }
    }
}

void visitors_stop(struct corral_push_receiver *r)
{
    for (uint32_t i = 0; i < CORRAL_PUSH_VISITORS_MAX; i++) {
        if (r->visitor[i]) {
            shutdown(r->visitor[i]->visit.io.fd, SHUT_RDWR); /* a probe does not look at stop_fd */
            visitor_end(r, i);
        }
    }
}

static enum corral_status make_visitor(struct corral_push_receiver *r, struct push_conn *c,
                                       const struct push_frame *f, const uint8_t *payload,
                                       struct visitor **out, struct corral_error *err)
{
    struct visitor *v = calloc(1, sizeof *v);
    if (!v) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a visitor");
    }
    uint32_t head = f->type == PUSH_PROBE ? 16 : 0;
    v->r = r;
    v->probes = f->type == PUSH_PROBE;
    v->has = f->version;
    v->link = r->copy.link;
    if (v->probes) {
        v->bytes = wire_get_u64(payload);
        v->bucket_bytes = wire_get_u64(payload + 8);
    }
    memcpy(v->lanes, payload + head, f->bytes - head);
    memcpy(v->name, c->peer, sizeof v->name);
    v->visit = (struct visit){.io = {.fd = c->io.fd},
                              .peer = v->name,
                              .stop_fd = r->stop_fd,
                              .generation = c->hello.generation,
                              .deadline_ns = push_now_ns() + PULL_NS_MAX,
                              .silence_ns = r->options.silence_ns,
                              .heard_ns = push_now_ns()};
    *out = v;
    return CORRAL_OK;
}

static enum corral_status check_wish(const struct corral_push_receiver *r, const struct push_conn *c,
                                     const struct push_frame *f, const uint8_t *payload,
                                     struct corral_error *err)
{
    if (f->type != (c->hello.role == PUSH_ROLE_PULLER ? PUSH_PULL : PUSH_PROBE) || c->io.out_to > 0 ||
        c->io.in_from != c->io.in_to) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s is not due", push_type_name(f->type));
    }
    if (f->type == PUSH_PROBE) {
        return wire_get_u64(payload) <= PROBE_BYTES_SERVED_MAX
                   ? CORRAL_OK
                   : corral_fail(err, CORRAL_INVALID, "a probe moves 1 GiB at most");
    }
    return r->copy.link && r->options.target->source_open
               ? CORRAL_OK
               : corral_fail(err, CORRAL_UNSUPPORTED, "nobody can pull from %s", r->name);
}

enum corral_status visitors_admit(struct corral_push_receiver *r, struct push_conn *c,
                                  const struct push_frame *f, const uint8_t *payload,
                                  struct corral_error *err)
{
    struct visitor *v = NULL;
    uint32_t place = 0;
    CORRAL_TRY(check_wish(r, c, f, payload, err));
    while (place < CORRAL_PUSH_VISITORS_MAX && r->visitor[place]) {
        place++;
    }
    if (place == CORRAL_PUSH_VISITORS_MAX) {
        return corral_fail(err, CORRAL_STATE, "%s has %u visitors already", r->name, place);
    }
    CORRAL_TRY(make_visitor(r, c, f, payload, &v, err));
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int sys = pthread_create(&v->thread, NULL, run, v);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (sys != 0) {
        free(v);
        return corral_fail_sys(err, sys, "cannot start a thread for a visitor");
    }
    r->visitor[place] = v;
    c->io.fd = -1; /* the thread's now */
    c->state = CONN_CLOSING;
    return CORRAL_OK;
}
