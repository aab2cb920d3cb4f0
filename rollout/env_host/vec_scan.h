/* The loops over rows that every step pays for. No branch inside them, so that the compiler makes vector code of them. */
#ifndef CORRAL_ROLLOUT_VEC_SCAN_H
#define CORRAL_ROLLOUT_VEC_SCAN_H

#include <corral/env.h>
#include <stdbool.h>

/* Whether any of n is a NaN or an infinity. */
bool corral_scan_nonfinite(const float *x, size_t n);
/* out[i] = in[i] as float32; true when any of them is not finite. */
bool corral_scan_convert(enum corral_env_dtype from, const void *in, float *out, size_t n);
bool corral_scan_any_i32(const int32_t *x, size_t n);
/* Indices where a or b is not 0, in order; returns how many. */
size_t corral_scan_flagged(const uint8_t *a, const uint8_t *b, size_t n, uint32_t *out);
/* Whether any action is outside [0, choices). */
bool corral_scan_out_of_range(const int32_t *action, size_t n, uint32_t choices);
/* Rows of `components`: out = in clipped to [low, high] per component; true when any input is not finite. */
bool corral_scan_clip(const float *in, float *out, size_t rows, uint32_t components, const float *low,
                      const float *high);
void corral_scan_increment(uint32_t *x, size_t n);
/* out = active and not done. */
void corral_scan_active(const uint8_t *active, const uint8_t *done, uint8_t *out, size_t n);

#endif
