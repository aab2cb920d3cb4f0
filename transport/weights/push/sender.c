/* A sender: what it is made of, and its receivers. */
#include "transport/weights/push/sender_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- making ---- */

static enum corral_status check_options(const struct corral_push_sender_options *o, struct corral_error *err)
{
    if (o->plan == NULL || o->lanes == NULL || strlen(o->lanes) > PUSH_LANES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "a weight sender needs a plan and a list of at most %u bytes of lanes",
                           PUSH_LANES_MAX);
    }
    if (o->rank >= o->ranks || o->ranks != o->plan->sources || o->ranks > CORRAL_PUSH_SENDERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "weight sender %u of %u, in a plan for %u ranks (at most %u)",
                           o->rank, o->ranks, o->plan->sources, CORRAL_PUSH_SENDERS_MAX);
    }
    if (o->deadline_ns == 0) {
        return corral_fail(err, CORRAL_INVALID, "a weight sender needs a deadline");
    }
    return CORRAL_OK;
}

enum corral_status corral_push_sender_create(struct corral_push_sender **out,
                                             const struct corral_push_sender_options *options,
                                             struct corral_error *err)
{
    CORRAL_TRY(check_options(options, err));
    struct corral_push_sender *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot create a weight sender: out of memory");
    }
    s->options = *options;
    corral_random_bytes(&s->process, sizeof s->process);
    push_account_make(&s->account, &options->budget);
    snprintf(s->lanes, sizeof s->lanes, "%s", options->lanes);
    s->options.lanes = s->lanes;
    if (options->lane.local_host != NULL) {
        snprintf(s->lane_host, sizeof s->lane_host, "%s", options->lane.local_host);
        s->options.lane.local_host = s->lane_host;
    }
    if (options->lane.device != NULL) {
        snprintf(s->lane_device, sizeof s->lane_device, "%s", options->lane.device);
        s->options.lane.device = s->lane_device;
    }
    *out = s;
    return CORRAL_OK;
}

static void cut_destroy(struct cut *cut)
{
    if (cut != NULL) {
        corral_base_destroy(cut->base);
        corral_link_destroy(cut->link);
        free(cut->digest);
        free(cut->known);
        free(cut);
    }
}
CORRAL_DEFINE_CLEANUP(struct cut, cut_destroy)

static void peer_close(struct corral_push_sender *s, struct push_peer *p)
{
    if (p->lane != NULL) {
        p->lane->ops->tx_close(p->lane);
        push_account_drop(&s->account, &p->held);
    }
    if (p->io.fd >= 0) {
        close(p->io.fd);
    }
    free(p->again);
    free(p->attempt);
    free(p);
}

void corral_push_sender_destroy(struct corral_push_sender *s)
{
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; i < s->peers; i++) {
        peer_close(s, s->peer[i]);
    }
    for (uint32_t i = 0; i < s->cuts; i++) {
        push_account_drop(&s->account, &s->cut[i]->held);
        cut_destroy(s->cut[i]);
    }
    push_account_end(&s->account);
    explicit_bzero(&s->options.identity, sizeof s->options.identity);
    free(s);
}

static enum corral_status cut_for(struct corral_push_sender *s, uint32_t rank, struct cut **out,
                                  struct corral_error *err)
{
    for (uint32_t i = 0; i < s->cuts; i++) {
        if (s->cut[i]->link->destination == rank) {
            *out = s->cut[i];
            return CORRAL_OK;
        }
    }
    if (s->cuts == CORRAL_PUSH_RECEIVERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %u destination ranks", CORRAL_PUSH_RECEIVERS_MAX);
    }
    CORRAL_CLEANUP(cut_destroyp) struct cut *cut = calloc(1, sizeof *cut);
    if (cut == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot add a weight receiver: out of memory");
    }
    CORRAL_TRY(
        corral_link_create(&cut->link, s->options.plan, s->options.rank, rank, s->options.bucket_bytes, err));
    cut->digest = calloc((size_t)cut->link->buckets + 1, sizeof *cut->digest);
    cut->known = calloc((size_t)cut->link->buckets + 1, sizeof *cut->known);
    if (cut->digest == NULL || cut->known == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot add a weight receiver: out of memory");
    }
    if (s->options.delta && cut->link->buckets > 0) {
        struct corral_base_options o = {.element_bytes = s->options.delta_element_bytes,
                                        .memory = s->options.base};
        CORRAL_TRY(corral_base_create(&cut->base, cut->link, &o, err));
    }
    *out = s->cut[s->cuts++] = CORRAL_STEAL(cut);
    return CORRAL_OK;
}

/* ---- receivers ---- */

static uint32_t find(const struct corral_push_sender *s, const char *name)
{
    uint32_t i = 0;
    while (i < s->peers && strcmp(s->peer[i]->name, name) != 0) {
        i++;
    }
    return i;
}

enum corral_status corral_push_sender_add(struct corral_push_sender *s, const char *name,
                                          const char *endpoint, uint32_t rank, const char *replica,
                                          struct corral_error *err)
{
    replica = replica == NULL ? "" : replica;
    if (name[0] == '\0' || strlen(name) >= CORRAL_PUSH_NAME_MAX || strlen(replica) >= CORRAL_PUSH_NAME_MAX ||
        strlen(endpoint) >= PEER_ENDPOINT_MAX) {
        return corral_fail(err, CORRAL_INVALID, "weight receiver '%.80s' at '%.120s': empty or too long",
                           name, endpoint);
    }
    uint32_t at = find(s, name);
    if (at == CORRAL_PUSH_RECEIVERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %u weight receivers", CORRAL_PUSH_RECEIVERS_MAX);
    }
    struct cut *cut = NULL;
    CORRAL_TRY(cut_for(s, rank, &cut, err));
    struct push_peer *p = calloc(1, sizeof *p);
    if (p == NULL || (p->again = calloc((size_t)cut->link->buckets + 1, sizeof *p->again)) == NULL ||
        (p->attempt = calloc((size_t)cut->link->buckets + 1, sizeof *p->attempt)) == NULL) {
        if (p != NULL) {
            free(p->again);
        }
        free(p);
        return corral_fail(err, CORRAL_NOMEM, "cannot add a weight receiver: out of memory");
    }
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->endpoint, sizeof p->endpoint, "%s", endpoint);
    snprintf(p->replica, sizeof p->replica, "%s", replica);
    p->rank = rank;
    p->cut = cut;
    p->io.fd = -1;
    p->fresh = true;
    if (at < s->peers) {
        peer_close(s, s->peer[at]);
    } else {
        s->peers++;
    }
    s->peer[at] = p;
    return CORRAL_OK;
}

void corral_push_sender_remove(struct corral_push_sender *s, const char *name)
{
    uint32_t at = find(s, name);
    if (at < s->peers) {
        peer_close(s, s->peer[at]);
        s->peer[at] = s->peer[--s->peers];
    }
}

bool corral_push_sender_has(const struct corral_push_sender *s, const char *name, const char *endpoint)
{
    uint32_t at = find(s, name);
    return at < s->peers && strcmp(s->peer[at]->endpoint, endpoint) == 0;
}

uint32_t corral_push_sender_receivers(const struct corral_push_sender *s)
{
    return s->peers;
}

void corral_push_sender_set_generation(struct corral_push_sender *s, uint64_t generation)
{
    struct corral_error why = {0};
    if (generation == s->options.identity.generation) {
        return;
    }
    corral_fail(&why, CORRAL_STATE, "generation %" PRIu64 " begins", generation);
    for (uint32_t i = 0; i < s->peers; i++) {
        if (s->peer[i]->state != PEER_OUT) {
            peer_drop(s, s->peer[i], false, &why);
        }
        s->peer[i]->fresh = true;
    }
    s->options.identity.generation = generation;
}

uint32_t corral_push_sender_behind(const struct corral_push_sender *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->peers; i++) {
        n += s->peer[i]->has != s->last && s->peer[i]->refused != s->last;
    }
    return n;
}
