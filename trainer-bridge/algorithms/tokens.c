#include "trainer-bridge/algorithms/tokens.h"
#include <math.h>

enum corral_status corral_tokens_check(const struct corral_tokens *t, uint32_t tokens,
                                       struct corral_error *err)
{
    if (t->sequences == 0) {
        return CORRAL_OK;
    }
    for (uint32_t s = 0; s < t->sequences; s++) {
        if (t->offsets[s + 1] < t->offsets[s]) {
            return corral_fail(err, CORRAL_INVALID,
                               "token batch: sequence %u ends at token %u, before its start at %u", s,
                               t->offsets[s + 1], t->offsets[s]);
        }
    }
    if (t->offsets[t->sequences] > tokens) {
        return corral_fail(err, CORRAL_INVALID, "token batch: sequences end at token %u, but there are %u",
                           t->offsets[t->sequences], tokens);
    }
    return CORRAL_OK;
}

uint32_t corral_tokens_trained(const struct corral_tokens *t, uint32_t sequence)
{
    uint32_t count = 0;
    for (uint32_t i = t->offsets[sequence]; i < t->offsets[sequence + 1]; i++) {
        count += t->mask[i] != 0;
    }
    return count;
}

void corral_tokens_broadcast(const struct corral_tokens *t, const float *per_sequence, float *out)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        float x = per_sequence[s];
        for (uint32_t i = t->offsets[s]; i < t->offsets[s + 1]; i++) {
            out[i] = t->mask[i] ? x : 0.0f;
        }
    }
}

struct corral_moments corral_tokens_moments(const struct corral_tokens *t, const float *x)
{
    struct corral_moments m = {0};
    uint32_t first = t->sequences ? t->offsets[0] : 0, end = t->sequences ? t->offsets[t->sequences] : 0;
    double sum = 0, count = 0;
    for (uint32_t i = first; i < end; i++) {
        sum += t->mask[i] ? (double)x[i] : 0;
        count += t->mask[i] ? 1 : 0;
    }
    if (!(count > 0)) {
        return m;
    }
    m.count = count;
    m.mean = sum / count;
    for (uint32_t i = first; i < end; i++) {
        double off = t->mask[i] ? (double)x[i] - m.mean : 0;
        m.m2 += off * off;
    }
    return m;
}

void corral_tokens_whiten(const struct corral_tokens *t, const struct corral_moments *global, const float *x,
                          float *out)
{
    uint32_t first = t->sequences ? t->offsets[0] : 0, end = t->sequences ? t->offsets[t->sequences] : 0;
    double variance = global->count > 1 ? global->m2 / (global->count - 1) : 0;
    double mean = global->mean, inverse = 1.0 / sqrt(variance + 1e-8);
    for (uint32_t i = first; i < end; i++) {
        out[i] = t->mask[i] ? (float)(((double)x[i] - mean) * inverse) : 0.0f;
    }
}
