#include "transport/weights/publisher_private.h"

#include "base/log.h"
#include <inttypes.h>

/* Up to here hashing first costs less than the round trip it saves. */
#define EARLY_COMMIT_BYTES_MAX (128u << 10)
#define BACKOFF_FIRST_NS (10 * CORRAL_NS_PER_MS)
#define BACKOFF_MAX_NS (2 * CORRAL_NS_PER_S)
/* Between lines about one target: a new drop, and one that goes on. */
#define LOG_PAUSE_NS (5 * CORRAL_NS_PER_S)
#define LOG_AGAIN_NS (60 * CORRAL_NS_PER_S)

void target_init(struct target *t)
{
    *t = (struct target){.backoff_ns = BACKOFF_FIRST_NS};
}

void target_close(struct target *t)
{
    if (t->lane != NULL) {
        t->lane->ops->close(t->lane);
        t->lane = NULL;
    }
}

static enum corral_status target_connect(struct corral_weight_publisher *p, struct target *t,
                                         struct corral_error *err)
{
    t->phase = PHASE_CONNECT;
    t->reused = false;
    t->moved_ns = publisher_now_ns();
    return corral_weight_lane_tcp(t->endpoint, p->run, p->secret, 0, &t->lane, err);
}

/* A target that comes and goes, or is tried over and over, gets a line now and then. */
static bool worth_a_line(struct target *t, bool refused, uint64_t now)
{
    if (t->logged_ns == 0 || now - t->logged_ns >= LOG_AGAIN_NS || (refused && !t->told_refused)) {
        return true;
    }
    return !t->down && now - t->logged_ns >= LOG_PAUSE_NS;
}

static void log_drop(struct target *t, const struct push *push, bool refused, const struct corral_error *why)
{
    uint64_t now = publisher_now_ns();
    if (!worth_a_line(t, refused, now)) {
        t->unlogged++;
        return;
    }
    corral_log_warn(refused ? "weight target refused this version, higher ones are still offered"
                            : "weight target dropped, it is tried again in the background",
                    LOG_STR("node", t->node), LOG_STR("endpoint", target_is_tcp(t) ? t->endpoint : "shm"),
                    LOG_U64("version", push->version), LOG_U64("drops_not_logged", t->unlogged),
                    LOG_ERR(why));
    t->logged_ns = now;
    t->unlogged = 0;
    t->told_down = true;
    t->told_refused = t->told_refused || refused;
}

void target_drop(struct target *t, struct push *push, const struct corral_error *why)
{
    /* Over TCP, what is INVALID before the version was offered is about the endpoint, and may pass. */
    bool refused = why->status == CORRAL_INVALID && (t->phase > PHASE_CONNECT || !target_is_tcp(t));
    push->last = *why;
    t->phase = PHASE_OUT;
    if (refused) {
        t->refused = push->version;
    }
    if (target_is_tcp(t)) {
        target_close(t);
    } else {
        corral_weight_store_abort(t->store);
    }
    t->retry_ns = publisher_now_ns() + t->backoff_ns;
    t->backoff_ns = CORRAL_MIN(2 * t->backoff_ns, BACKOFF_MAX_NS);
    log_drop(t, push, refused, why);
    t->down = true;
}

void target_drop_late(const struct corral_weight_publisher *p, struct target *t, struct push *push)
{
    static const char *const doing[] = {[PHASE_CONNECT] = "log in",
                                        [PHASE_WRITE] = "take the weights",
                                        [PHASE_STAGE] = "stage the weights",
                                        [PHASE_COMMIT] = "apply the weights"};
    struct corral_error why = {0};
    corral_fail(&why, CORRAL_TIMEOUT, "did not %s within %" PRIu64 " ms", doing[t->phase],
                p->deadline_ns / CORRAL_NS_PER_MS);
    target_drop(t, push, &why);
}

void publisher_hash(const struct corral_weight_publisher *p, struct push *push)
{
    if (!push->digest_known) {
        push->digest = corral_digest_of(push->weights, p->bytes);
        push->digest_known = true;
    }
}

static enum corral_status check_digest(const struct corral_weight_publisher *p, struct push *push,
                                       struct corral_digest theirs, struct corral_error *err)
{
    publisher_hash(p, push); /* while the data is on the wire */
    if (!corral_digest_equal(theirs, push->digest)) {
        char ours[CORRAL_DIGEST_TEXT], there[CORRAL_DIGEST_TEXT];
        corral_digest_format(push->digest, ours);
        corral_digest_format(theirs, there);
        return corral_fail(err, CORRAL_PROTOCOL, "the weights arrived damaged: digest %s, sent %s", there,
                           ours);
    }
    return CORRAL_OK;
}

static enum corral_status step(struct corral_weight_publisher *p, struct target *t, struct push *push,
                               struct corral_error *err)
{
    struct corral_weight_lane *lane = t->lane;
    struct corral_digest theirs;
    switch (t->phase) {
    case PHASE_CONNECT:
        CORRAL_TRY(lane->ops->ready(lane, 0, err));
        lane->burst_bytes = push->burst_bytes;
        lane->digest_known = p->bytes <= EARLY_COMMIT_BYTES_MAX;
        if (lane->digest_known) {
            publisher_hash(p, push);
            lane->digest = push->digest;
        }
        CORRAL_TRY(lane->ops->prepare(lane, push->version, p->manifest, p->bytes, 0, err));
        t->phase = PHASE_WRITE;
        return CORRAL_OK;
    case PHASE_WRITE:
        CORRAL_TRY(lane->ops->write(lane, push->weights, p->bytes, 0, err));
        t->phase = PHASE_STAGE;
        return CORRAL_OK;
    case PHASE_STAGE:
        CORRAL_TRY(lane->ops->staged(lane, &theirs, 0, err));
        CORRAL_TRY(check_digest(p, push, theirs, err));
        t->staged_ns = publisher_now_ns();
        t->phase = PHASE_COMMIT;
        return CORRAL_OK;
    case PHASE_COMMIT:
        CORRAL_TRY(lane->ops->commit(lane, 0, err));
        t->applied_ns = publisher_now_ns();
        t->phase = PHASE_DONE;
        return CORRAL_OK;
    case PHASE_OUT:
    case PHASE_DONE:
        break;
    }
    return CORRAL_OK;
}

static void target_done(struct target *t, const struct push *push)
{
    t->has = push->version;
    t->backoff_ns = BACKOFF_FIRST_NS;
    t->down = false;
    t->told_refused = false;
    if (t->told_down) {
        t->told_down = false;
        corral_log_info("weight target is back", LOG_STR("node", t->node), LOG_U64("version", push->version));
    }
}

void target_advance(struct corral_weight_publisher *p, struct target *t, struct push *push)
{
    while (target_under_way(t)) {
        struct corral_error why = {0};
        enum corral_status status = step(p, t, push, &why);
        if (status == CORRAL_AGAIN) {
            return;
        }
        if (status == CORRAL_PEER && t->reused) { /* it went away since the last push: it may be back */
            target_close(t);
            status = target_connect(p, t, &why);
        }
        if (status != CORRAL_OK) {
            target_drop(t, push, &why);
        }
    }
    if (t->phase == PHASE_DONE) {
        target_done(t, push);
    }
}

void target_start(struct corral_weight_publisher *p, struct target *t, bool now, struct push *push)
{
    t->staged_ns = t->applied_ns = push->start_ns;
    if (t->has == push->version) {
        t->phase = PHASE_DONE;
        return;
    }
    if (t->phase > PHASE_CONNECT && t->phase != PHASE_DONE && target_is_tcp(t)) {
        target_close(t); /* in the middle of an older version, whose bytes are no longer to be had */
    }
    if (t->lane == NULL) {
        if (!now && push->start_ns < t->retry_ns) {
            t->phase = PHASE_OUT;
            return;
        }
        struct corral_error why = {0};
        if (target_connect(p, t, &why) != CORRAL_OK) {
            target_drop(t, push, &why);
            return;
        }
    } else if (t->phase != PHASE_CONNECT) {
        t->phase = PHASE_CONNECT; /* ready() is immediate on an open lane */
        t->reused = target_is_tcp(t);
        t->moved_ns = push->start_ns;
    }
    target_advance(p, t, push);
}
