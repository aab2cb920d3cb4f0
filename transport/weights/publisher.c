#include "transport/weights/publisher_private.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sent to one target before the clock and the others are looked at: well below a millisecond. */
#define CATCH_UP_BURST_BYTES (UINT64_C(1) << 20)

enum corral_status corral_weight_publisher_create(struct corral_weight_publisher **out,
                                                  const struct corral_manifest *manifest, uint64_t run,
                                                  const uint8_t secret[32], uint32_t deadline_ms,
                                                  struct corral_error *err)
{
    if (manifest->bytes == 0 || deadline_ms == 0) {
        return corral_fail(err, CORRAL_INVALID, "a weight publisher needs weights and a deadline above 0 ms");
    }
    struct corral_weight_publisher *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot create a weight publisher: out of memory");
    }
    p->manifest = corral_manifest_hash(manifest);
    p->bytes = manifest->bytes;
    p->run = run;
    p->deadline_ns = deadline_ms * CORRAL_NS_PER_MS;
    memcpy(p->secret, secret, sizeof p->secret);
    *out = p;
    return CORRAL_OK;
}

void corral_weight_publisher_destroy(struct corral_weight_publisher *p)
{
    if (p == NULL) {
        return;
    }
    for (uint32_t i = 0; i < p->count; i++) {
        target_close(&p->target[i]);
    }
    explicit_bzero(p->secret, sizeof p->secret);
    free(p);
}

static enum corral_status target_new(struct corral_weight_publisher *p, const char *node,
                                     const char *endpoint, struct target **out, struct corral_error *err)
{
    if (p->count == CORRAL_PUBLISHER_TARGETS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "weight target '%.64s' is one more than %d", node,
                           CORRAL_PUBLISHER_TARGETS_MAX);
    }
    if (strlen(node) >= TARGET_NAME_BYTES || strlen(endpoint) >= TARGET_NAME_BYTES) {
        return corral_fail(err, CORRAL_INVALID, "weight target '%.64s' at '%.128s': too long", node,
                           endpoint);
    }
    struct target *t = &p->target[p->count];
    target_init(t);
    strcpy(t->node, node);
    strcpy(t->endpoint, endpoint);
    *out = t;
    return CORRAL_OK;
}

enum corral_status corral_weight_publisher_add_shm(struct corral_weight_publisher *p,
                                                   struct corral_weight_store *store,
                                                   struct corral_error *err)
{
    struct target *t = NULL;
    CORRAL_TRY(target_new(p, "local", "", &t, err));
    CORRAL_TRY(corral_weight_lane_shm(store, &t->lane, err));
    t->store = store;
    p->count++;
    return CORRAL_OK;
}

enum corral_status corral_weight_publisher_add_tcp(struct corral_weight_publisher *p, const char *node,
                                                   const char *endpoint, struct corral_error *err)
{
    for (uint32_t i = 0; i < p->count; i++) {
        if (strcmp(p->target[i].endpoint, endpoint) == 0) {
            return corral_fail(err, CORRAL_EXISTS, "weight endpoint %s is already a target (node %s)",
                               endpoint, p->target[i].node);
        }
    }
    if (strchr(endpoint, ':') == NULL) {
        return corral_fail(err, CORRAL_INVALID, "weight endpoint '%.128s' of node %.64s is not HOST:PORT",
                           endpoint, node);
    }
    struct target *t = NULL;
    CORRAL_TRY(target_new(p, node, endpoint, &t, err));
    p->count++;
    return CORRAL_OK;
}

void corral_weight_publisher_remove(struct corral_weight_publisher *p, const char *node)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        if (target_is_tcp(t) && strcmp(t->node, node) == 0) {
            target_close(t);
            continue;
        }
        p->target[kept++] = *t;
    }
    p->count = kept;
}

/* ---- the push ---- */

/* True when the push may not end before this target does. */
static bool waited_for(const struct target *t, bool alone)
{
    switch (t->phase) {
    case PHASE_OUT:
    case PHASE_DONE:
        return false;
    case PHASE_CONNECT:
        return !t->down || alone;
    default:
        return true;
    }
}

static bool somebody_else(const struct corral_weight_publisher *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        enum target_phase phase = p->target[i].phase;
        if (phase > PHASE_CONNECT || (phase == PHASE_CONNECT && !p->target[i].down)) {
            return true;
        }
    }
    return false;
}

/* Poll once over every target under way and move those that are ready. False when none is worth waiting for. */
static bool poll_targets(struct corral_weight_publisher *p, struct push *push)
{
    struct pollfd fds[CORRAL_PUBLISHER_TARGETS_MAX];
    struct target *of[CORRAL_PUBLISHER_TARGETS_MAX];
    nfds_t n = 0;
    bool alone = !somebody_else(p), waiting = false;
    for (uint32_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        if (!target_under_way(t)) {
            continue;
        }
        waiting = waiting || waited_for(t, alone);
        fds[n] = (struct pollfd){.fd = t->lane->fd, .events = t->lane->events};
        of[n++] = t;
    }
    uint64_t now = publisher_now_ns();
    if (!waiting || now >= push->deadline_ns) {
        return false;
    }
    uint64_t left = push->deadline_ns - now;
    struct timespec timeout = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                               .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
    if (ppoll(fds, n, &timeout, NULL) > 0) {
        for (nfds_t i = 0; i < n; i++) {
            if (fds[i].revents != 0) {
                of[i]->moved_ns = publisher_now_ns();
                target_advance(p, of[i], push);
            }
        }
    }
    return true;
}

/* Whoever is not done at the end is dropped, except a background connection that still has time. */
static void drop_late(struct corral_weight_publisher *p, struct push *push)
{
    for (uint32_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        bool has_time =
            t->phase == PHASE_CONNECT && t->down && publisher_now_ns() - t->moved_ns < p->deadline_ns;
        if (target_under_way(t) && !has_time) {
            target_drop_late(p, t, push);
        }
    }
}

static void count(const struct corral_weight_publisher *p, const struct push *push,
                  struct corral_publish_stats *out)
{
    *out = (struct corral_publish_stats){.version = push->version, .bytes = p->bytes, .digest = push->digest};
    for (uint32_t i = 0; i < p->count; i++) {
        const struct target *t = &p->target[i];
        if (t->phase != PHASE_DONE) {
            out->dropped++;
            continue;
        }
        out->targets++;
        out->wire_ns = CORRAL_MAX(out->wire_ns, t->staged_ns - push->start_ns);
        out->apply_ns = CORRAL_MAX(out->apply_ns, t->applied_ns - t->staged_ns);
    }
}

static void start_all(struct corral_weight_publisher *p, struct push *push)
{
    bool tried = false;
    for (int tcp = 1; tcp >= 0; tcp--) { /* the wire first: it works while the local copy is made */
        for (uint32_t i = 0; i < p->count; i++) {
            struct target *t = &p->target[i];
            if (target_is_tcp(t) == (tcp == 1)) {
                tried = tried || !target_is_tcp(t) || t->lane != NULL || push->start_ns >= t->retry_ns;
                target_start(p, t, false, push);
            }
        }
    }
    for (uint32_t i = 0; i < p->count && !tried; i++) { /* better early than not at all */
        target_start(p, &p->target[i], true, push);
    }
}

static enum corral_status check_bytes(const struct corral_weight_publisher *p, uint64_t bytes,
                                      struct corral_error *err)
{
    if (bytes != p->bytes) {
        return corral_fail(err, CORRAL_INVALID, "%" PRIu64 " bytes of weights; the manifest has %" PRIu64,
                           bytes, p->bytes);
    }
    return CORRAL_OK;
}

/* What has been learnt about the version on offer. */
static void remember(struct corral_weight_publisher *p, const struct push *push)
{
    p->offered = push->version;
    p->digest = push->digest;
    p->digest_known = push->digest_known;
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->target[i].has == push->version) {
            p->last = push->version;
            p->last_digest = push->digest;
        }
    }
}

/* A version may be pushed again, but only the same bytes. */
static enum corral_status check_version(const struct corral_weight_publisher *p, struct push *push,
                                        struct corral_error *err)
{
    if (push->version < p->last || push->version == 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " is below %" PRIu64 ": versions only grow",
                           push->version, p->last);
    }
    if (push->version > p->last) {
        return CORRAL_OK;
    }
    publisher_hash(p, push);
    if (!corral_digest_equal(push->digest, p->last_digest)) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " has been pushed before with other bytes",
                           push->version);
    }
    return CORRAL_OK;
}

enum corral_status corral_weight_publisher_push(struct corral_weight_publisher *p, uint64_t version,
                                                const void *weights, uint64_t bytes,
                                                struct corral_publish_stats *stats, struct corral_error *err)
{
    struct push push = {.version = version, .weights = weights, .start_ns = publisher_now_ns()};
    push.deadline_ns = push.start_ns + p->deadline_ns;
    CORRAL_TRY(check_bytes(p, bytes, err));
    CORRAL_TRY(check_version(p, &push, err));
    snprintf(push.last.text, sizeof push.last.text, "%s",
             p->count == 0 ? "there is no target" : "none was tried");
    start_all(p, &push);
    while (poll_targets(p, &push)) {
    }
    drop_late(p, &push);
    remember(p, &push);
    struct corral_publish_stats result;
    count(p, &push, &result);
    if (result.targets == 0) {
        return corral_fail(err, push.last.status == CORRAL_OK ? CORRAL_PEER : push.last.status,
                           "no target has weight version %" PRIu64 "; the last reason: %.300s", version,
                           push.last.text);
    }
    if (stats != NULL) {
        *stats = result;
    }
    return CORRAL_OK;
}

/* ---- catching up ---- */

bool corral_weight_publisher_behind(const struct corral_weight_publisher *p)
{
    for (uint32_t i = 0; i < p->count; i++) {
        if (target_lacks(&p->target[i], p->offered)) {
            return true;
        }
    }
    return false;
}

/* Sleep at most until `until_ns` for those under way; move the ones that can, drop the ones that have not moved for too long. */
static void move_late_ones(struct corral_weight_publisher *p, struct push *push, uint64_t until_ns)
{
    struct pollfd fds[CORRAL_PUBLISHER_TARGETS_MAX];
    struct target *of[CORRAL_PUBLISHER_TARGETS_MAX];
    nfds_t n = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        if (target_under_way(t)) {
            fds[n] = (struct pollfd){.fd = t->lane->fd, .events = t->lane->events};
            of[n++] = t;
            until_ns = CORRAL_MIN(until_ns, t->moved_ns + p->deadline_ns);
        }
    }
    uint64_t now = publisher_now_ns(), left = until_ns > now ? until_ns - now : 0;
    if (n == 0 && left == 0) {
        return;
    }
    struct timespec timeout = {.tv_sec = (time_t)(left / CORRAL_NS_PER_S),
                               .tv_nsec = (long)(left % CORRAL_NS_PER_S)};
    if (ppoll(fds, n, &timeout, NULL) < 0) {
        return; /* interrupted */
    }
    now = publisher_now_ns();
    for (nfds_t i = 0; i < n; i++) {
        if (fds[i].revents != 0) {
            of[i]->moved_ns = now;
            target_advance(p, of[i], push);
        } else if (now - of[i]->moved_ns >= p->deadline_ns) {
            target_drop_late(p, of[i], push);
        }
    }
}

/* Start what may be started. Returns when the next one may be, at most the call's deadline. */
static uint64_t start_late_ones(struct corral_weight_publisher *p, struct push *push)
{
    uint64_t now = publisher_now_ns(), next = push->deadline_ns;
    for (uint32_t i = 0; i < p->count; i++) {
        struct target *t = &p->target[i];
        if (!target_lacks(t, push->version) || target_under_way(t)) {
            continue;
        }
        if (now >= t->retry_ns) {
            target_start(p, t, true, push);
        } else {
            next = CORRAL_MIN(next, t->retry_ns);
        }
    }
    return next;
}

enum corral_status corral_weight_publisher_catch_up(struct corral_weight_publisher *p, const void *weights,
                                                    uint64_t bytes, uint64_t version, uint32_t timeout_ms,
                                                    struct corral_error *err)
{
    CORRAL_TRY(check_bytes(p, bytes, err));
    if (version == 0 || version != p->offered) {
        return corral_fail(err, CORRAL_INVALID,
                           "cannot catch up with weight version %" PRIu64 ": the last one pushed is %" PRIu64,
                           version, p->offered);
    }
    if (!corral_weight_publisher_behind(p)) {
        return CORRAL_OK;
    }
    struct push push = {.version = version,
                        .weights = weights,
                        .start_ns = publisher_now_ns(),
                        .burst_bytes = CATCH_UP_BURST_BYTES,
                        .digest = p->digest,
                        .digest_known = p->digest_known};
    push.deadline_ns = push.start_ns + timeout_ms * CORRAL_NS_PER_MS;
    do {
        uint64_t next = start_late_ones(p, &push);
        if (corral_weight_publisher_behind(p)) {
            move_late_ones(p, &push, next);
        }
    } while (corral_weight_publisher_behind(p) && publisher_now_ns() < push.deadline_ns);
    remember(p, &push);
    return CORRAL_OK;
}
