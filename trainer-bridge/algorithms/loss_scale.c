#include "trainer-bridge/algorithms/loss_scale.h"

void corral_loss_count(const struct corral_tokens *t, struct corral_loss_counts *counts)
{
    for (uint32_t s = 0; s < t->sequences; s++) {
        uint32_t length = corral_tokens_trained(t, s);
        counts->tokens += length;
        counts->sequences += length > 0;
    }
}

static double scale_of(enum corral_loss_mean mean, const struct corral_loss_counts *global,
                       uint32_t length_max, uint32_t length)
{
    double sequences = (double)global->sequences;
    switch (mean) {
    case CORRAL_LOSS_TOKEN_MEAN:
        return 1.0 / (double)global->tokens;
    case CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM:
        return 1.0 / sequences;
    case CORRAL_LOSS_SEQ_MEAN_TOKEN_MEAN:
        return 1.0 / (sequences * length);
    case CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM:
        return 1.0 / (sequences * length_max);
    }
    return 0;
}

enum corral_status corral_loss_scale(enum corral_loss_mean mean, const struct corral_loss_counts *global,
                                     uint32_t length_max, const struct corral_tokens *t, double *scale,
                                     struct corral_error *err)
{
    if (mean < CORRAL_LOSS_TOKEN_MEAN || mean > CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM) {
        return corral_fail(err, CORRAL_INVALID, "loss: there is no mean %d", (int)mean);
    }
    if (mean == CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM && length_max == 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "loss: seq-mean-token-sum-norm needs the length it divides by");
    }
    struct corral_loss_counts mine = {0};
    corral_loss_count(t, &mine);
    if (mine.tokens > global->tokens || mine.sequences > global->sequences) {
        return corral_fail(
            err, CORRAL_INVALID,
            "loss: this micro-batch has %llu tokens in %llu sequences, the whole batch only %llu in %llu",
            (unsigned long long)mine.tokens, (unsigned long long)mine.sequences,
            (unsigned long long)global->tokens, (unsigned long long)global->sequences);
    }
    for (uint32_t s = 0; s < t->sequences; s++) {
        uint32_t length = corral_tokens_trained(t, s);
        scale[s] = length ? scale_of(mean, global, length_max, length) : 0;
    }
    return CORRAL_OK;
}
