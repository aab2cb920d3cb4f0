/* One element at a time, as the specification has it, and rows of them in versions for what the processor has. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_CAST_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_CAST_INTERNAL_H

#include "transport/weights/cast/cast.h"
#include <string.h>

#define CAST_INF 0x7F800000u
#define CAST_E4M3_MAX 0x43E00000u /* 448 */
#define CAST_E5M2_MAX 0x47600000u /* 57344 */

static inline uint32_t cast_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float cast_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

struct corral_cast_kernels {
    const char *name;
    bool (*supported)(void);
    /* Bits of the largest finite magnitude of the row, and at least `least`. */
    uint32_t (*amax)(enum corral_dtype from, const void *row, uint64_t count, uint32_t least);
    /* to[i] = to(from[i] / scale); scale is 1 without scales. */
    void (*row)(enum corral_dtype from, enum corral_dtype to, const void *in, void *out, uint64_t count,
                float scale);
};
extern const struct corral_cast_kernels corral_cast_kernels_plain, corral_cast_kernels_avx2;
#define CAST_KERNELS_MAX 2
uint32_t corral_cast_kernels_all(const struct corral_cast_kernels *out[CAST_KERNELS_MAX]);

enum corral_status corral_cast_run_with(const struct corral_cast_kernels *kernels,
                                        const struct corral_cast *cast, const void *from, void *to,
                                        float *scales, struct corral_error *err);

/* Single elements. */
float corral_cast_read(enum corral_dtype from, const void *data, uint64_t i);
void corral_cast_write(enum corral_dtype to, void *data, uint64_t i, float value);

#endif
