/* A ragged batch of token sequences, as all token_*.h functions read it.
 *
 * Sequence s owns the tokens offsets[s] .. offsets[s + 1] - 1 of every flat array; mask is 1 on the tokens that the policy chose and
 * that are trained, 0 on prompts, tool results and padding. What stands in the other arrays under mask 0 is never used: it may be NaN.
 * Outputs are 0 there. offsets[0] need not be 0: {2, offsets + 4, mask} is the micro-batch of sequences 4 and 5 over the same
 * flat arrays. Arrays over sequences start at the view's first one. A sequence is never split.
 *
 * Data are f32, sums f64 in the order of the tokens. What is given per token does not depend on how a batch was cut into
 * micro-batches and ranks, to the bit; sums over cuts add up to rounding in f64.
 * Log-ratios are held to +-CORRAL_LOG_RATIO_MAX before exp: every ratio is a finite number. NaN stays NaN unless a header says
 * otherwise: a broken number must reach the caller's check.
 * All functions are pure: no state, no allocation. Any thread. Hot path (not the checks).
 */
#ifndef CORRAL_TRAINER_ALGORITHMS_TOKENS_H
#define CORRAL_TRAINER_ALGORITHMS_TOKENS_H

#include "base/error.h"
#include "trainer-bridge/algorithms/normalise.h"
#include <stdint.h>

#define CORRAL_LOG_RATIO_MAX 20.0f

struct corral_tokens {
    uint32_t sequences;
    const uint32_t *offsets; /* [sequences + 1], never falling; may be NULL when sequences is 0 */
    const uint8_t *mask;
};

/* CORRAL_INVALID unless the offsets never fall and stay within `tokens`, the length of the flat arrays. The other functions rely on it. */
enum corral_status corral_tokens_check(const struct corral_tokens *t, uint32_t tokens,
                                       struct corral_error *err);

/* Trained tokens of one sequence. */
uint32_t corral_tokens_trained(const struct corral_tokens *t, uint32_t sequence);

/* One number per sequence onto its trained tokens. */
void corral_tokens_broadcast(const struct corral_tokens *t, const float *per_sequence, float *out);

/* Moments of x over the trained tokens. Merge those of all micro-batches and ranks, in one order, before whitening. */
struct corral_moments corral_tokens_moments(const struct corral_tokens *t, const float *x);

/* (x - mean) / sqrt(sample variance + 1e-8) on trained tokens, by the moments of the whole batch. One token, or none that differ: 0.
 * out may be x. */
void corral_tokens_whiten(const struct corral_tokens *t, const struct corral_moments *global, const float *x,
                          float *out);

#endif
