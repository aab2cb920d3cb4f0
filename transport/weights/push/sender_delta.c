/* What a sender keeps so that the next version can go as what has changed, and who may get it so. */
#include "transport/weights/push/sender_internal.h"

#include "base/log.h"

#define ANCHOR_EVERY 25u

struct corral_delta_version sender_offer_base(const struct corral_push_sender *s, const struct push_peer *p)
{
    static const struct corral_delta_version none;
    uint32_t every = s->options.anchor_every == 0 ? ANCHOR_EVERY : s->options.anchor_every;
    if (p->cut->base == NULL || p->cut->denied || s->catching || p->lane == NULL ||
        p->lane->ops->tx_send_encoded == NULL || p->whole_next || p->since_whole + 1 >= every) {
        return none;
    }
    struct corral_delta_version base = corral_base_version(p->cut->base);
    bool good = base.version != 0 && base.version < s->version && base.version == p->at.version &&
                corral_digest_equal(base.digest, p->at.digest) &&
                (s->options.base == NULL || s->base == base.version);
    return good ? base : none;
}

/* Before anything is kept or encoded: all that it may come to. Afterwards it is what it is. */
static bool may_hold(struct corral_push_sender *s, struct cut *cut)
{
    struct corral_error why = {0};
    uint64_t most = corral_base_memory_max(cut->base);
    if (push_account_hold(&s->account, &cut->held, most, "what weight deltas start from", &why) ==
        CORRAL_OK) {
        return true;
    }
    corral_log_warn("no memory for weight deltas, versions go whole", LOG_U64("version", s->version),
                    LOG_U64("bytes", most), LOG_ERR(&why));
    return false;
}

void sender_ask_for_bases(struct corral_push_sender *s)
{
    for (uint32_t i = 0; i < s->cuts; i++) {
        struct cut *cut = s->cut[i];
        cut->denied = cut->base != NULL && !may_hold(s, cut);
    }
}

/* The version that somebody has now is what the next delta starts from; one that nobody took leaves the base as it was. */
static void keep_base(struct corral_push_sender *s, struct cut *cut)
{
    const struct push_peer *who = NULL;
    struct corral_error why = {0};
    for (uint32_t i = 0; i < s->peers && cut->base != NULL; i++) {
        const struct push_peer *p = s->peer[i];
        who = p->cut == cut && p->has == s->version && p->at.version == s->version ? p : who;
    }
    if (cut->base == NULL) {
        return;
    }
    who = cut->denied ? NULL : who;
    struct corral_delta_version held = corral_base_version(cut->base);
    if (who == NULL || (held.version == s->version && corral_digest_equal(held.digest, who->at.digest))) {
        corral_base_end(cut->base);
    } else if (!may_hold(s, cut)) {
        corral_base_end(cut->base);
    } else if (corral_base_keep(cut->base, &s->source, s->version, who->at.digest, &why) != CORRAL_OK) {
        corral_log_warn("weight version not kept for deltas, the next one goes whole",
                        LOG_U64("version", s->version), LOG_ERR(&why));
    }
}

void sender_keep_bases(struct corral_push_sender *s)
{
    for (uint32_t i = 0; i < s->cuts; i++) {
        struct cut *cut = s->cut[i];
        struct corral_error never;
        keep_base(s, cut);
        if (cut->base != NULL) {
            (void)push_account_hold(&s->account, &cut->held,
                                    CORRAL_MIN(cut->held, corral_base_memory(cut->base)), "", &never);
        }
    }
}

uint64_t corral_push_sender_delta_memory(const struct corral_push_sender *s)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < s->cuts; i++) {
        bytes += s->cut[i]->base != NULL ? corral_base_memory(s->cut[i]->base) : 0;
    }
    return bytes;
}
