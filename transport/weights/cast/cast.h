/* Weights of another precision on the way: f32, f16 or bf16 into fp8, f16, bf16 or f32, fp8 with scales. The exact results are defined in docs/spec/weight-delta.md, so every machine makes the same bytes and the
 * digest of a push is over the destination's bytes. The scalar code and the vector code agree bit by bit.
 *
 * A matrix of rows × columns elements, row-major and dense; leading dimensions are rows (for tiles, one matrix at a time). The quantised value is q = to(x / scale), and
 * x is about q × scale: what checkpoints call weight_scale_inv. Scales are f32, one per block in row-major order of the blocks:
 *      NONE    no scales; for f16, bf16, f32, and fp8 that is not scaled
 *      GIVEN   one for all, an input: what the ranks that hold parts of one tensor have agreed on (corral_cast_amax, the maximum of all, corral_cast_scale_of)
 *      TENSOR  one for all
 *      BLOCKS  per row and 128 columns
 *      TILES   per 128 rows and 128 columns
 * A part of a tensor can be cast on its own when its borders are borders of blocks. Any thread; allocates nothing. Rounding mode: to nearest, as every program starts.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_CAST_CAST_H
#define CORRAL_TRANSPORT_WEIGHTS_CAST_CAST_H

#include "base/hash.h"
#include "base/safetensors.h"

#define CORRAL_CAST_BLOCK 128u

enum corral_cast_scaling {
    CORRAL_CAST_NONE,
    CORRAL_CAST_GIVEN,
    CORRAL_CAST_TENSOR,
    CORRAL_CAST_BLOCKS,
    CORRAL_CAST_TILES
};

struct corral_cast {
    enum corral_dtype from; /* F32, F16, BF16 */
    enum corral_dtype to;   /* F8_E4M3, F8_E5M2, F16, BF16, F32; scales are for fp8 only */
    enum corral_cast_scaling scaling;
    uint64_t rows, columns;
};

/* 0 without scales. Of a cast that corral_cast_check accepts. */
uint64_t corral_cast_scale_count(const struct corral_cast *cast);
/* CORRAL_INVALID: dtypes, scaling, or a size that cannot be. */
enum corral_status corral_cast_check(const struct corral_cast *cast, struct corral_error *err);

/* `scales` may be NULL without scales; an input with GIVEN, where one that is not positive and finite is CORRAL_INVALID. */
enum corral_status corral_cast_run(const struct corral_cast *cast, const void *from, void *to, float *scales,
                                   struct corral_error *err);
/* The other way, to f32: q × scale, for tests and for readers without fp8. */
enum corral_status corral_cast_back(const struct corral_cast *cast, const void *to, const float *scales,
                                    float *out, struct corral_error *err);

/* The largest magnitude of the finite ones among `count` elements of dtype `from`; 0 when there is none. */
float corral_cast_amax(enum corral_dtype from, const void *data, uint64_t count);
float corral_cast_scale_of(enum corral_dtype to, float amax);

/* Of the cast's outputs: XXH3-128 over the two digests (lo, hi of the bytes, lo, hi of the scales; little-endian). */
struct corral_digest corral_cast_digest(const struct corral_cast *cast, const void *to, const float *scales);

#endif
