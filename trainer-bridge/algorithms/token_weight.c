#include "trainer-bridge/algorithms/token_weight.h"
#include "model/activation.h"
#include "trainer-bridge/algorithms/token_math.h"
#include <math.h>

enum corral_status corral_token_weight_check(const struct corral_token_weight_config *c,
                                             struct corral_error *err)
{
    if (c->level < CORRAL_WEIGHT_NONE || c->level > CORRAL_WEIGHT_GEOMETRIC ||
        c->reject < CORRAL_WEIGHT_NONE || c->reject > CORRAL_WEIGHT_SEQUENCE) {
        return corral_fail(err, CORRAL_INVALID,
                           "importance weights: there is no level %d, or rejection level %d", (int)c->level,
                           (int)c->reject);
    }
    if (c->level != CORRAL_WEIGHT_NONE) {
        if (c->outside != CORRAL_WEIGHT_CLAMP && c->outside != CORRAL_WEIGHT_ZERO) {
            return corral_fail(err, CORRAL_INVALID,
                               "importance weights: there is no rule %d for weights outside",
                               (int)c->outside);
        }
        if (!(c->low >= 0 && c->high >= c->low && isfinite(c->high))) {
            return corral_fail(err, CORRAL_INVALID, "importance weights: the bounds are %g and %g",
                               (double)c->low, (double)c->high);
        }
    }
    if (c->reject != CORRAL_WEIGHT_NONE) {
        if (c->measure < CORRAL_MEASURE_RATIO || c->measure > CORRAL_MEASURE_K3) {
            return corral_fail(err, CORRAL_INVALID, "importance weights: there is no measure %d",
                               (int)c->measure);
        }
        if (!(c->reject_high >= c->reject_low)) {
            return corral_fail(err, CORRAL_INVALID, "importance weights: the rejection bounds are %g and %g",
                               (double)c->reject_low, (double)c->reject_high);
        }
    }
    return CORRAL_OK;
}

struct block {
    float x[TOKEN_BLOCK];     /* 0 on untrained and broken tokens */
    float ratio[TOKEN_BLOCK]; /* exp of x, held */
    uint8_t broken[TOKEN_BLOCK];
};

/* Of one sequence. */
struct whole {
    double sum, count, measure; /* measure: its mean; RATIO: of log-ratios until finished */
    uint32_t broken;
    bool rejected;
    float ratio; /* by SEQUENCE or GEOMETRIC */
};

static void load(uint32_t n, const uint8_t *mask, const float *proximal, const float *behave, struct block *b)
{
    for (uint32_t j = 0; j < n; j++) {
        float x = proximal[j] - behave[j];
        b->broken[j] = mask[j] && isnan(x);
        b->x[j] = mask[j] && !isnan(x) ? x : 0.0f;
        b->ratio[j] = token_hold_log_ratio(b->x[j]);
    }
    corral_exp_f32(n, b->ratio, b->ratio);
}

static double measure_of(enum corral_weight_measure measure, float x, float ratio)
{
    double held = (double)token_hold_log_ratio(x);
    switch (measure) {
    case CORRAL_MEASURE_K1:
        return -held;
    case CORRAL_MEASURE_K2:
        return 0.5 * held * held;
    case CORRAL_MEASURE_K3:
        return token_k3(token_hold_log_ratio(x), ratio);
    case CORRAL_MEASURE_RATIO:
        break;
    }
    return (double)ratio;
}

static float exp_held(double x)
{
    float ratio =
        (float)CORRAL_MAX(CORRAL_MIN(x, (double)CORRAL_LOG_RATIO_MAX), -(double)CORRAL_LOG_RATIO_MAX);
    corral_exp_f32(1, &ratio, &ratio);
    return ratio;
}

static bool is_outside(double x, float low, float high)
{
    return x < (double)low || x > (double)high;
}

static struct whole survey(const struct corral_token_weight_config *c, const struct corral_tokens *t,
                           uint32_t s, const float *proximal, const float *behave, struct block *b)
{
    struct whole w = {.ratio = 1.0f};
    uint32_t n, end = t->offsets[s + 1];
    for (uint32_t i = t->offsets[s]; i < end; i += n) {
        n = CORRAL_MIN(end - i, TOKEN_BLOCK);
        load(n, t->mask + i, proximal + i, behave + i, b);
        for (uint32_t j = 0; j < n; j++) {
            bool counts = t->mask[i + j] && !b->broken[j];
            w.sum += token_summand(b->x[j]);
            w.count += counts ? 1 : 0;
            w.broken += b->broken[j];
            w.measure += counts ? measure_of(c->measure, b->x[j], b->ratio[j]) : 0;
        }
    }
    if (!(w.count > 0)) {
        return w;
    }
    w.ratio = exp_held(c->level == CORRAL_WEIGHT_SEQUENCE ? w.sum : w.sum / w.count);
    w.measure = c->measure == CORRAL_MEASURE_RATIO ? (double)exp_held(w.sum / w.count) : w.measure / w.count;
    w.rejected = c->reject == CORRAL_WEIGHT_SEQUENCE && is_outside(w.measure, c->reject_low, c->reject_high);
    return w;
}

static void weigh(const struct corral_token_weight_config *c, uint32_t n, const uint8_t *mask,
                  const struct whole *w, const struct block *b, float *weight,
                  struct corral_token_weight_sums *into)
{
    struct corral_token_weight_sums sums = *into;
    bool by_whole = c->level == CORRAL_WEIGHT_SEQUENCE || c->level == CORRAL_WEIGHT_GEOMETRIC;
    bool all_broken = w->broken > 0 && (by_whole || c->reject == CORRAL_WEIGHT_SEQUENCE);
    for (uint32_t j = 0; j < n; j++) {
        if (!mask[j]) {
            weight[j] = 0.0f;
            continue;
        }
        sums.tokens += 1;
        if (b->broken[j] || all_broken) {
            weight[j] = 0.0f;
            sums.broken += 1;
            continue;
        }
        float x = by_whole ? w->ratio : c->level == CORRAL_WEIGHT_TOKEN ? b->ratio[j] : 1.0f;
        sums.weight_max = CORRAL_MAX(sums.weight_max, (double)x);
        bool rejected = w->rejected || (c->reject == CORRAL_WEIGHT_TOKEN &&
                                        is_outside(measure_of(c->measure, b->x[j], b->ratio[j]),
                                                   c->reject_low, c->reject_high));
        if (c->level != CORRAL_WEIGHT_NONE && is_outside((double)x, c->low, c->high)) {
            sums.bounded += 1;
            x = c->outside == CORRAL_WEIGHT_ZERO ? 0.0f : token_hold(x, c->low, c->high);
        }
        weight[j] = rejected ? 0.0f : x;
        sums.rejected += rejected ? 1 : 0;
        sums.weight += (double)weight[j];
        sums.weight_squares += (double)weight[j] * (double)weight[j];
    }
    *into = sums;
}

void corral_token_weight(const struct corral_token_weight_config *config, const struct corral_tokens *t,
                         const float *proximal_log_prob, const float *behave_log_prob, float *weight,
                         struct corral_token_weight_sums *sums)
{
    struct block b;
    bool needs_whole = config->level >= CORRAL_WEIGHT_SEQUENCE || config->reject == CORRAL_WEIGHT_SEQUENCE;
    for (uint32_t s = 0; s < t->sequences; s++) {
        struct whole w = {.ratio = 1.0f};
        if (needs_whole) {
            w = survey(config, t, s, proximal_log_prob, behave_log_prob, &b);
        }
        uint32_t n, end = t->offsets[s + 1];
        for (uint32_t i = t->offsets[s]; i < end; i += n) {
            n = CORRAL_MIN(end - i, TOKEN_BLOCK);
            load(n, t->mask + i, proximal_log_prob + i, behave_log_prob + i, &b);
            weigh(config, n, t->mask + i, &w, &b, weight + i, sums);
        }
    }
}

void corral_token_proximal(const struct corral_tokens *t, const float *log_prob, const float *behave_log_prob,
                           const uint64_t *behave_version, uint64_t proximal_version,
                           uint64_t current_version, float *out)
{
    uint32_t end = t->sequences ? t->offsets[t->sequences] : 0;
    for (uint32_t i = t->sequences ? t->offsets[0] : 0; i < end; i++) {
        uint64_t from = behave_version[i];
        double a = 0;
        if (current_version > from && proximal_version > from) {
            a = (double)(proximal_version - from) / (double)(current_version - from);
        }
        double behave = (double)behave_log_prob[i], moved = (double)log_prob[i] - behave;
        out[i] = t->mask[i] ? (float)(behave + CORRAL_MIN(a, 1.0) * moved) : 0.0f;
    }
}
