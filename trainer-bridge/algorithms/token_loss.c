#include "trainer-bridge/algorithms/token_loss.h"
#include "model/activation.h"
#include "trainer-bridge/algorithms/token_math.h"
#include <math.h>

/* Some tokens of one sequence. */
struct block {
    uint32_t first, n;
    double scale;
    float weight[TOKEN_BLOCK];    /* 0: not trained, or rejected */
    float log_ratio[TOKEN_BLOCK]; /* not held */
    float ratio[TOKEN_BLOCK];
    float term[TOKEN_BLOCK]; /* the loss, not scaled */
    double kl[TOKEN_BLOCK];
    uint8_t live[TOKEN_BLOCK], low[TOKEN_BLOCK], high[TOKEN_BLOCK], dual[TOKEN_BLOCK];
};

enum corral_status corral_token_loss_check(const struct corral_token_loss_config *config,
                                           struct corral_error *err)
{
    if (config->objective < CORRAL_TOKEN_CLIP || config->objective > CORRAL_TOKEN_REINFORCE) {
        return corral_fail(err, CORRAL_INVALID, "policy loss: there is no objective %d",
                           (int)config->objective);
    }
    if (!(config->clip_low >= 0 && config->clip_low <= 1)) {
        return corral_fail(err, CORRAL_INVALID, "policy loss: the lower clip %g is not from 0 to 1",
                           (double)config->clip_low);
    }
    if (!(config->clip_high >= 0 && isfinite(config->clip_high))) {
        return corral_fail(err, CORRAL_INVALID, "policy loss: the upper clip is %g",
                           (double)config->clip_high);
    }
    if (config->dual_clip == 0) {
        return CORRAL_OK;
    }
    if (config->objective != CORRAL_TOKEN_CLIP) {
        return corral_fail(err, CORRAL_INVALID, "policy loss: only the clipped objective has a dual clip");
    }
    if (!(config->dual_clip > 1 && isfinite(config->dual_clip))) {
        return corral_fail(err, CORRAL_INVALID, "policy loss: the dual clip %g is not over 1",
                           (double)config->dual_clip);
    }
    return CORRAL_OK;
}

static void load(const struct corral_token_loss_batch *batch, struct block *b)
{
    const uint8_t *mask = batch->tokens.mask + b->first;
    const float *log_prob = batch->log_prob + b->first;
    const float *old = (batch->old_log_prob ? batch->old_log_prob : batch->log_prob) + b->first;
    if (batch->weight) {
        const float *weight = batch->weight + b->first;
        for (uint32_t j = 0; j < b->n; j++) {
            float w = weight[j];
            b->weight[j] = mask[j] ? w : 0.0f;
        }
    } else {
        for (uint32_t j = 0; j < b->n; j++) {
            b->weight[j] = mask[j] ? 1.0f : 0.0f;
        }
    }
    for (uint32_t j = 0; j < b->n; j++) {
        float moved = log_prob[j] - old[j];
        b->log_ratio[j] = b->weight[j] != 0 ? moved : 0.0f;
    }
}

static void token_ratios(struct block *b)
{
    for (uint32_t j = 0; j < b->n; j++) {
        b->ratio[j] = token_hold_log_ratio(b->log_ratio[j]);
    }
    corral_exp_f32(b->n, b->ratio, b->ratio);
}

static void sequence_ratios(struct block *b, float mean)
{
    float ratio = token_hold_log_ratio(mean);
    corral_exp_f32(1, &ratio, &ratio);
    for (uint32_t j = 0; j < b->n; j++) {
        b->log_ratio[j] = b->weight[j] != 0 ? mean : 0.0f;
        b->ratio[j] = b->weight[j] != 0 ? ratio : 1.0f;
    }
}

/* The mean log-ratio of a sequence's live tokens. */
static float sequence_mean(const struct corral_token_loss_batch *batch, uint32_t s, struct block *b)
{
    double sum = 0, count = 0;
    uint32_t end = batch->tokens.offsets[s + 1];
    for (b->first = batch->tokens.offsets[s]; b->first < end; b->first += b->n) {
        b->n = CORRAL_MIN(end - b->first, TOKEN_BLOCK);
        load(batch, b);
        for (uint32_t j = 0; j < b->n; j++) {
            sum += token_summand(b->log_ratio[j]);
            count += b->weight[j] != 0 ? 1 : 0;
        }
    }
    return count > 0 ? (float)(sum / count) : 0.0f;
}

static void clipped(const struct corral_token_loss_config *c, const float *advantage, struct block *b,
                    float *d_log_prob)
{
    float low = 1.0f - c->clip_low, high = 1.0f + c->clip_high;
    float most = c->dual_clip > 0 ? c->dual_clip : INFINITY;
    for (uint32_t j = 0; j < b->n; j++) {
        float a = advantage[j], r = b->ratio[j], w = b->weight[j];
        float plain = -a * r, held = -a * token_hold(r, low, high);
        /* Inside the clip both are equal; outside only the plain one has a slope. */
        bool cut = held > plain, dual = (a < 0) & !cut & (r > most);
        float loss = dual ? -a * most : cut ? held : plain;
        bool still = cut | dual | token_is_held(b->log_ratio[j]);
        float slope = still ? 0.0f : plain;
        b->term[j] = w != 0 ? w * loss : 0.0f;
        d_log_prob[j] = w != 0 ? (float)(b->scale * (double)(w * slope)) : 0.0f;
        b->low[j] = (w != 0) & cut & (r < low);
        b->high[j] = (w != 0) & cut & (r > high);
        b->dual[j] = (w != 0) & dual;
    }
}

static void weighted(const struct corral_token_loss_config *c, const float *advantage, const float *log_prob,
                     struct block *b, float *d_log_prob)
{
    bool plain = c->objective == CORRAL_TOKEN_REINFORCE;
    float low = plain ? -INFINITY : 1.0f - c->clip_low, high = plain ? INFINITY : 1.0f + c->clip_high;
    for (uint32_t j = 0; j < b->n; j++) {
        float r = b->ratio[j], w = b->weight[j], l = log_prob[j];
        float factor = plain ? 1.0f : token_hold(r, low, high);
        float slope = -factor * advantage[j] * w;
        b->term[j] = w != 0 ? slope * l : 0.0f;
        d_log_prob[j] = w != 0 ? (float)(b->scale * (double)slope) : 0.0f;
        b->low[j] = (w != 0) & (r < low);
        b->high[j] = (w != 0) & (r > high);
        b->dual[j] = 0;
    }
}

static void add_up(struct block *b, struct corral_token_loss_sums *sums)
{
    /* Element by element first: that part takes vectors, the sums keep their order. A token that is not live has ratio 1, so kl 0. */
    for (uint32_t j = 0; j < b->n; j++) {
        b->kl[j] = token_k3(token_hold_log_ratio(b->log_ratio[j]), b->ratio[j]);
        b->ratio[j] = b->weight[j] != 0 ? b->ratio[j] : 0.0f;
        b->live[j] = b->weight[j] != 0;
    }
    double loss = 0, ratio = 0, kl = 0, most = sums->ratio_max;
    uint32_t tokens = 0, low = 0, high = 0, dual = 0;
    for (uint32_t j = 0; j < b->n; j++) {
        double r = (double)b->ratio[j];
        loss += (double)b->term[j];
        ratio += r;
        most = r > most ? r : most;
        kl += b->kl[j];
    }
    for (uint32_t j = 0; j < b->n; j++) {
        tokens += b->live[j];
        low += b->low[j];
        high += b->high[j];
        dual += b->dual[j];
    }
    sums->loss += b->scale * loss;
    sums->tokens += tokens;
    sums->ratio += ratio;
    sums->kl += kl;
    sums->ratio_max = most;
    sums->clipped_low += low;
    sums->clipped_high += high;
    sums->dual_clip += dual;
}

void corral_token_loss(const struct corral_token_loss_config *config,
                       const struct corral_token_loss_batch *batch, float *d_log_prob,
                       struct corral_token_loss_sums *sums)
{
    struct block b;
    for (uint32_t s = 0; s < batch->tokens.sequences; s++) {
        bool whole = config->objective == CORRAL_TOKEN_SEQUENCE_CLIP;
        float mean = whole ? sequence_mean(batch, s, &b) : 0.0f;
        uint32_t end = batch->tokens.offsets[s + 1];
        b.scale = batch->scale[s];
        for (b.first = batch->tokens.offsets[s]; b.first < end; b.first += b.n) {
            b.n = CORRAL_MIN(end - b.first, TOKEN_BLOCK);
            load(batch, &b);
            if (whole) {
                sequence_ratios(&b, mean);
            } else {
                token_ratios(&b);
            }
            if (config->objective == CORRAL_TOKEN_CLIP || whole) {
                clipped(config, batch->advantage + b.first, &b, d_log_prob + b.first);
            } else {
                weighted(config, batch->advantage + b.first, batch->log_prob + b.first, &b,
                         d_log_prob + b.first);
            }
            add_up(&b, sums);
        }
    }
}

void corral_token_loss_sums_merge(struct corral_token_loss_sums *into,
                                  const struct corral_token_loss_sums *other)
{
    into->loss += other->loss;
    into->tokens += other->tokens;
    into->ratio += other->ratio;
    into->kl += other->kl;
    into->clipped_low += other->clipped_low;
    into->clipped_high += other->clipped_high;
    into->dual_clip += other->dual_clip;
    into->ratio_max = CORRAL_MAX(into->ratio_max, other->ratio_max);
}
