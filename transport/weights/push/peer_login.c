/* A sender's way to a receiver: connecting, login, the first lane that opens at both ends. */
#include "transport/weights/push/sender_internal.h"

#include "base/log.h"
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LANE_OPEN_NS (5 * CORRAL_NS_PER_S)

static enum corral_status start(struct push_peer *p, struct corral_error *err)
{
    struct sockaddr_storage address;
    socklen_t length = 0;
    CORRAL_TRY(wire_resolve(p->endpoint, &address, &length, err));
    p->io = (struct push_io){.fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (p->io.fd < 0) {
        return corral_fail_sys(err, errno, "cannot connect to %s", p->endpoint);
    }
    wire_tune_socket(p->io.fd);
    if (connect(p->io.fd, (const struct sockaddr *)&address, length) != 0 && errno != EINPROGRESS) {
        return corral_fail(err, CORRAL_PEER, "cannot connect to %s: %s", p->endpoint, strerrordesc_np(errno));
    }
    return CORRAL_OK;
}

void peer_connect(struct corral_push_sender *s, struct push_peer *p)
{
    struct corral_error why = {0};
    p->has = p->push = 0;
    p->lane_choice = 0;
    p->lanes_tried[0] = '\0';
    p->state = PEER_CONNECT;
    p->step_ns = push_now_ns();
    if (start(p, &why) != CORRAL_OK) {
        peer_drop(s, p, true, &why);
    }
}

enum corral_status peer_connected(struct corral_push_sender *s, struct push_peer *p, struct corral_error *err)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(p->io.fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
        return corral_fail(err, CORRAL_PEER, "cannot connect to %s: %s", p->endpoint, strerrordesc_np(error));
    }
    struct push_hello hello = {.run = s->options.identity.run,
                               .generation = s->options.identity.generation,
                               .bucket_bytes = s->options.bucket_bytes,
                               .protocol = PUSH_PROTOCOL,
                               .rank = s->options.rank,
                               .ranks = s->options.ranks,
                               .leader = s->options.leader,
                               .group = s->options.identity.group,
                               .process = s->process,
                               .plan = s->options.plan->hash,
                               .link = p->cut->link->hash};
    corral_random_bytes(hello.nonce, sizeof hello.nonce);
    push_put_hello(p->hello, &hello);
    p->step_ns = push_now_ns();
    p->state = PEER_CHALLENGE;
    return peer_queue(s, p, PUSH_HELLO, 0, p->hello, PUSH_HELLO_BYTES, err);
}

static enum corral_status on_challenge(struct corral_push_sender *s, struct push_peer *p,
                                       const uint8_t *payload, struct corral_error *err)
{
    uint8_t mac[WIRE_MAC_BYTES];
    const uint8_t *secret = s->options.identity.secret;
    push_mac(secret, PUSH_LABEL_RECEIVER, p->hello, payload, mac);
    if (!corral_bytes_equal(mac, payload + WIRE_NONCE_BYTES, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s does not know this run's secret", p->endpoint);
    }
    push_mac(secret, PUSH_LABEL_SENDER, p->hello, payload, mac);
    p->state = PEER_WELCOME;
    return peer_queue(s, p, PUSH_PROOF, 0, mac, sizeof mac, err);
}

/* ---- the lane ---- */

static const struct corral_lane_ops *lane_named(const struct corral_push_sender *s, const char *name)
{
    for (const struct corral_lane_ops *const *l = s->options.more_lanes; l != NULL && *l != NULL; l++) {
        if (strcmp((*l)->name, name) == 0) {
            return *l;
        }
    }
    return corral_lane_named(name);
}

static void note_failed_lane(struct push_peer *p, const char *name, const struct corral_error *why)
{
    size_t n = strlen(p->lanes_tried);
    snprintf(p->lanes_tried + n, sizeof p->lanes_tried - n, "%s%s: %.90s", n > 0 ? "; " : "", name,
             why->text);
    corral_log_warn("weight lane does not open, the next one is tried", LOG_STR("receiver", p->name),
                    LOG_STR("lane", name), LOG_ERR(why));
}

static bool chosen(const struct corral_push_sender *s, const struct push_peer *p,
                   char name[PUSH_LANE_NAME_MAX])
{
    return push_common_lane(s->lanes, p->their_lanes, p->lane_choice, name);
}

/* Ask for the next lane that both list and that this end can use. */
static enum corral_status ask_lane(struct corral_push_sender *s, struct push_peer *p,
                                   struct corral_error *err)
{
    char name[PUSH_LANE_NAME_MAX];
    if (p->cut->link->buckets == 0) {
        p->state = PEER_READING;
        return peer_queue(s, p, PUSH_LANE, 0, NULL, 0, err);
    }
    for (; chosen(s, p, name); p->lane_choice++) {
        struct corral_error why = {0};
        const struct corral_lane_ops *ops = lane_named(s, name);
        enum corral_status status = ops == NULL ? corral_fail(&why, CORRAL_UNSUPPORTED, "not in this build")
                                                : ops->available(&s->options.lane, &why);
        if (status == CORRAL_OK) {
            p->state = PEER_OFFER;
            return peer_queue(s, p, PUSH_LANE, 0, name, (uint32_t)strlen(name), err);
        }
        note_failed_lane(p, name, &why);
    }
    return corral_fail(err, CORRAL_UNSUPPORTED, "no lane to %s opens (ours %s, theirs %s): %s", p->name,
                       s->lanes, p->their_lanes,
                       p->lanes_tried[0] == '\0' ? "none in common" : p->lanes_tried);
}

static enum corral_status next_lane(struct corral_push_sender *s, struct push_peer *p,
                                    const struct corral_error *why, struct corral_error *err)
{
    char name[PUSH_LANE_NAME_MAX] = "?";
    (void)chosen(s, p, name);
    note_failed_lane(p, name, why);
    p->lane_choice++;
    return ask_lane(s, p, err);
}

static enum corral_status on_welcome(struct corral_push_sender *s, struct push_peer *p,
                                     const struct push_frame *f, const uint8_t *payload,
                                     struct corral_error *err)
{
    if (wire_get_u32(payload + 16) != p->rank) {
        return corral_fail(err, CORRAL_INVALID, "%s is rank %u, not %u", p->name, wire_get_u32(payload + 16),
                           p->rank);
    }
    p->digest = wire_get_digest(payload);
    p->at = (struct corral_delta_version){f->version, p->digest};
    memcpy(p->their_lanes, payload + 20, f->bytes - 20);
    p->their_lanes[f->bytes - 20] = '\0';
    for (char *c = p->their_lanes; *c != '\0'; c++) {
        *c = *c > ' ' && *c < 0x7f ? *c : '?';
    }
    return ask_lane(s, p, err);
}

static enum corral_status on_offer(struct corral_push_sender *s, struct push_peer *p,
                                   const struct push_frame *f, const uint8_t *payload,
                                   struct corral_error *err)
{
    char name[PUSH_LANE_NAME_MAX];
    struct corral_lane_blob offer = {.bytes = f->bytes}, answer = {0};
    memcpy(offer.data, payload, f->bytes);
    if (!chosen(s, p, name)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s offers a lane that nobody asked for", p->name);
    }
    uint64_t now = push_now_ns(), left = s->deadline_ns > now ? s->deadline_ns - now : 1;
    struct corral_lane_options options = s->options.lane;
    uint64_t most = options.open_timeout_ns == 0 ? LANE_OPEN_NS : options.open_timeout_ns;
    options.open_timeout_ns = CORRAL_MIN(most, left);
    struct corral_error why = {0};
    if (lane_named(s, name)->tx_open(&p->lane, p->cut->link, &options, &offer, &answer, &why) != CORRAL_OK) {
        return next_lane(s, p, &why, err);
    }
    if (peer_account(s, p, &why) != CORRAL_OK) {
        p->lane->ops->tx_close(p->lane);
        p->lane = NULL;
        return next_lane(s, p, &why, err);
    }
    p->state = PEER_READING;
    return peer_queue(s, p, PUSH_ANSWER, 0, answer.data, answer.bytes, err);
}

static enum corral_status on_nolane(struct corral_push_sender *s, struct push_peer *p,
                                    const struct push_frame *f, const uint8_t *payload,
                                    struct corral_error *err)
{
    struct corral_error why = {0};
    (void)push_get_error(payload, f->bytes, p->name, &why);
    if (p->lane != NULL) {
        p->lane->ops->tx_close(p->lane);
        p->lane = NULL;
        push_account_drop(&s->account, &p->held);
    }
    return next_lane(s, p, &why, err);
}

enum corral_status peer_login_frame(struct corral_push_sender *s, struct push_peer *p,
                                    const struct push_frame *f, const uint8_t *payload,
                                    struct corral_error *err)
{
    p->step_ns = push_now_ns();
    if (f->type == PUSH_CHALLENGE && p->state == PEER_CHALLENGE) {
        return on_challenge(s, p, payload, err);
    }
    if (f->type == PUSH_WELCOME && p->state == PEER_WELCOME) {
        return on_welcome(s, p, f, payload, err);
    }
    if (f->type == PUSH_OFFER && p->state == PEER_OFFER) {
        return on_offer(s, p, f, payload, err);
    }
    if (f->type == PUSH_NOLANE && (p->state == PEER_OFFER || (p->state == PEER_READING && p->lane != NULL))) {
        return on_nolane(s, p, f, payload, err);
    }
    if (f->type == PUSH_READY && p->state == PEER_READING) {
        p->state = PEER_READY;
        return peer_ready(s, p, err);
    }
    return corral_fail(err, CORRAL_PROTOCOL, "%s from %s is not due", push_type_name(f->type), p->name);
}
