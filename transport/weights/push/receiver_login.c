/* Who is let in at a receiver, and whose place it takes. */
#include "transport/weights/push/receiver_internal.h"

#include <inttypes.h>
#include <string.h>

enum corral_status login_hello(struct corral_push_receiver *r, struct push_conn *c, const uint8_t *payload,
                               struct corral_error *err)
{
    uint8_t answer[WIRE_NONCE_BYTES + WIRE_MAC_BYTES];
    memcpy(c->hello_bytes, payload, PUSH_HELLO_BYTES);
    push_get_hello(payload, &c->hello);
    if (c->hello.protocol != PUSH_PROTOCOL) {
        return corral_fail(err, CORRAL_PROTOCOL, "push protocol %u; this receiver speaks %u",
                           c->hello.protocol, PUSH_PROTOCOL);
    }
    if (c->hello.role >= PUSH_ROLES) {
        return corral_fail(err, CORRAL_PROTOCOL, "a login in role %" PRIu64 "; this receiver knows %d",
                           c->hello.role, PUSH_ROLES);
    }
    if (c->hello.run != r->options.identity.run) {
        return corral_fail(err, CORRAL_PROTOCOL, "the sender belongs to another run");
    }
    memcpy(answer, c->nonce, WIRE_NONCE_BYTES);
    push_mac(r->options.identity.secret, PUSH_LABEL_RECEIVER, c->hello_bytes, c->nonce,
             answer + WIRE_NONCE_BYTES);
    c->state = CONN_PROOF;
    conn_send(r, c, PUSH_CHALLENGE, 0, answer, sizeof answer);
    return CORRAL_OK;
}

static enum corral_status check_hello(const struct corral_push_receiver *r, const struct push_hello *h,
                                      struct corral_error *err)
{
    const struct corral_reshard_plan *plan = r->options.plan;
    if (h->generation < r->generation) {
        return corral_fail(err, CORRAL_STATE,
                           "generation %" PRIu64 " is fenced: generation %" PRIu64 " has been here",
                           h->generation, r->generation);
    }
    if (!corral_digest_equal(h->plan, plan->hash) || h->ranks != plan->sources || h->rank >= plan->sources) {
        return corral_fail(err, CORRAL_INVALID,
                           "rank %u of %u has another reshard plan than %s (%u ranks): the layouts differ",
                           h->rank, h->ranks, r->name, plan->sources);
    }
    if (h->bucket_bytes != r->options.bucket_bytes || !corral_digest_equal(h->link, r->link[h->rank]->hash)) {
        return corral_fail(err, CORRAL_INVALID,
                           "rank %u sends buckets of %" PRIu64 " bytes to another rank or cut than %s's "
                           "(rank %u, %" PRIu64 " bytes)",
                           h->rank, h->bucket_bytes, r->name, r->options.rank, r->options.bucket_bytes);
    }
    return CORRAL_OK;
}

/* Two trainer groups with one run and generation would take turns in one version: who comes second is refused as long as the first is there. A rank that logs in once more is known by its process; one that was started again
 * within its group, by the group's number. */
static enum corral_status check_group(const struct corral_push_receiver *r, const struct push_conn *c,
                                      struct corral_error *err)
{
    const struct push_hello *h = &c->hello;
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        const struct push_conn *old = r->conn[i];
        if (old == NULL || old == c || !conn_is_member(old) || old->hello.generation != h->generation) {
            continue;
        }
        bool same_place = old->hello.rank == h->rank || (old->hello.leader != 0 && h->leader != 0);
        bool other_process = old->hello.process != h->process;
        if (old->hello.group != h->group || (same_place && other_process && h->group == 0)) {
            return corral_fail(err, CORRAL_STATE,
                               "rank %u is of a second trainer group with run %" PRIu64
                               " and generation %" PRIu64
                               ": rank %u of the first is connected to %s; a group "
                               "that is started again takes a larger generation",
                               h->rank, h->run, h->generation, old->hello.rank, r->name);
        }
    }
    return CORRAL_OK;
}

/* A newer generation, or a newer login of the same rank, takes the place of what was there. */
static void supersede(struct corral_push_receiver *r, const struct push_conn *c)
{
    struct corral_error why = {0};
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        struct push_conn *old = r->conn[i];
        if (old == NULL || old == c || !conn_is_member(old)) {
            continue;
        }
        if (old->hello.generation < c->hello.generation) {
            corral_fail(&why, CORRAL_STATE, "generation %" PRIu64 " has come", c->hello.generation);
            conn_drop(r, old, &why);
        } else if (old->hello.rank == c->hello.rank || (old->hello.leader && c->hello.leader)) {
            corral_fail(&why, CORRAL_STATE, "a newer login as %s %u has come",
                        old->hello.rank == c->hello.rank ? "rank" : "leader, by rank", c->hello.rank);
            conn_drop(r, old, &why);
        }
    }
}

static void send_welcome(struct corral_push_receiver *r, struct push_conn *c)
{
    uint8_t welcome[20 + PUSH_LANES_MAX];
    char lanes[PUSH_LANES_MAX + 1];
    uint64_t version = 0;
    struct corral_digest digest = {0};
    receiver_lanes(r, lanes);
    uint32_t n = (uint32_t)strlen(lanes);
    r->options.target->current(r->options.target_ctx, &version, &digest);
    wire_put_digest(welcome, digest);
    wire_put_u32(welcome + 16, r->options.rank);
    memcpy(welcome + 20, lanes, n);
    conn_send(r, c, PUSH_WELCOME, version, welcome, 20 + n);
}

static enum corral_status check_puller(const struct corral_push_receiver *r, const struct push_hello *h,
                                       struct corral_error *err)
{
    if (!corral_digest_equal(h->plan, r->options.plan->hash) || h->rank != r->options.rank ||
        h->bucket_bytes != r->options.bucket_bytes || r->copy.link == NULL ||
        !corral_digest_equal(h->link, r->copy.link->hash)) {
        return corral_fail(err, CORRAL_INVALID,
                           "rank %u cannot pull from %s, which is rank %u: the plan, the rank or the size of "
                           "buckets is another",
                           h->rank, r->name, r->options.rank);
    }
    return CORRAL_OK;
}

static enum corral_status admit_visitor(struct corral_push_receiver *r, struct push_conn *c,
                                        struct corral_error *err)
{
    if (c->hello.role == PUSH_ROLE_PULLER) {
        CORRAL_TRY(check_puller(r, &c->hello, err));
    }
    c->state = CONN_VISIT;
    send_welcome(r, c);
    return CORRAL_OK;
}

enum corral_status login_proof(struct corral_push_receiver *r, struct push_conn *c, const uint8_t *payload,
                               struct corral_error *err)
{
    uint8_t mac[WIRE_MAC_BYTES];
    bool visits = c->hello.role != PUSH_ROLE_SENDER;
    push_mac(r->options.identity.secret, visits ? PUSH_LABEL_VISITOR : PUSH_LABEL_SENDER, c->hello_bytes,
             c->nonce, mac);
    if (!corral_bytes_equal(mac, payload, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL, "the sender does not know this run's secret");
    }
    if (visits) {
        return admit_visitor(r, c, err);
    }
    CORRAL_TRY(check_hello(r, &c->hello, err));
    CORRAL_TRY(check_group(r, c, err));
    supersede(r, c);
    r->generation = c->hello.generation;
    pthread_mutex_lock(&r->status_lock);
    r->status.generation = r->generation;
    pthread_mutex_unlock(&r->status_lock);
    c->state = CONN_LANE;
    send_welcome(r, c);
    return CORRAL_OK;
}
