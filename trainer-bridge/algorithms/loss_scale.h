/* How token losses become one number: what each sequence's tokens are multiplied by.
 *   token-mean              1 / T             Yu et al. 2025, DAPO, arXiv 2503.14476
 *   seq-mean-token-sum      1 / S
 *   seq-mean-token-mean     1 / (S len)       Shao et al. 2024, GRPO, arXiv 2402.03300 (biased by length)
 *   seq-mean-token-sum-norm 1 / (S L)         Liu et al. 2025, Dr.GRPO, arXiv 2503.20783; L a constant of the run
 * T and S count the trained tokens, and the sequences that have one, of the *whole* batch: all micro-batches of all ranks. So the scaled
 * losses and gradients of any cut of the batch add up to those of the whole: add them, do not average them.
 * Count before tokens are rejected (token_weight.h): a rejected token still counts. Pure; any thread.
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_LOSS_SCALE_H
#define CORRAL_TRAINER_ALGORITHMS_LOSS_SCALE_H

#include "trainer-bridge/algorithms/tokens.h"

enum corral_loss_mean {
    CORRAL_LOSS_TOKEN_MEAN,
    CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM,
    CORRAL_LOSS_SEQ_MEAN_TOKEN_MEAN,
    CORRAL_LOSS_SEQ_MEAN_TOKEN_SUM_NORM,
};

/* Integers: their sums over ranks are exact. */
struct corral_loss_counts {
    uint64_t tokens, sequences;
};

/* Adds t's to *counts. */
void corral_loss_count(const struct corral_tokens *t, struct corral_loss_counts *counts);

/* scale: [sequences]; 0 for a sequence without trained tokens, so an empty or wholly masked batch has loss and gradient 0.
 * CORRAL_INVALID: fewer counted than t has (they are not the whole batch's), no such mean, or length_max 0 with ..._NORM. */
enum corral_status corral_loss_scale(enum corral_loss_mean mean, const struct corral_loss_counts *global,
                                     uint32_t length_max, const struct corral_tokens *t, double *scale,
                                     struct corral_error *err);

#endif
