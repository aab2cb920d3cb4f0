/* Clipping a gradient by its Euclidean norm. Pure; any thread; same bits on every machine. */
#ifndef CORRAL_TRAINER_ALGORITHMS_CLIP_NORM_H
#define CORRAL_TRAINER_ALGORITHMS_CLIP_NORM_H

#include <stdint.h>

/* Not a number or infinite when an entry is. */
double corral_norm(const float *x, uint64_t n);
/* What to multiply by so that the norm is at most `norm_max` (0: no limit). */
double corral_clip_scale(double norm, double norm_max);

#endif
