/* The vector kernels behind gemm.h, activation.h and the policy heads, one table per instruction set. Private to model/.
 *
 * Everything works on feature-major matrices: element (feature f, row r of the batch) lies at [f * ld + r], so the batch is the
 * vector lane whatever the width of a layer. `n` (the batch) is a multiple of CORRAL_BATCH_ALIGN, and so is `ld`.
 * A product's lane depends only on its own column, in the same order of additions, so results do not change with n.
 */
#ifndef CORRAL_MODEL_KERNELS_H
#define CORRAL_MODEL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CORRAL_BATCH_ALIGN 16u

enum corral_dense_act { CORRAL_DENSE_LINEAR, CORRAL_DENSE_TANH, CORRAL_DENSE_RELU };

struct corral_kernels {
    const char *name;
    bool (*supported)(void);
    uint64_t blas_min; /* multiply-adds from which OpenBLAS was measured to be faster */
    /* y[out] = act(w[out][in] x[in] + bias[out]) */
    void (*forward)(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w, const float *bias,
                    const float *x, float *y, enum corral_dense_act act);
    /* dx[in] = (w^T dy) * act'(h), where h is what act gave; h is not read for LINEAR */
    void (*input_grad)(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w, const float *dy,
                       const float *h, float *dx, enum corral_dense_act act);
    /* dw[out][in] += dy x^T; db[out] += row sums of dy */
    void (*weight_grad)(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy, const float *x,
                        float *dw, float *db);
    /* The parts that a library product leaves over. */
    void (*bias_act)(uint32_t rows, uint32_t n, uint32_t ld, const float *bias, float *y,
                     enum corral_dense_act act);
    void (*act_grad)(uint32_t rows, uint32_t n, uint32_t ld, const float *h, float *dx,
                     enum corral_dense_act act);
    void (*row_sums)(uint32_t rows, uint32_t n, uint32_t ld, const float *dy, float *db);
    /* Any n, any alignment; y may be x. */
    void (*tanh_f32)(uint32_t n, const float *x, float *y);
    void (*exp_f32)(uint32_t n, const float *x, float *y);
    void (*log_f32)(uint32_t n, const float *x, float *y);
    /* z[choices] in: logits, out: log-probabilities; p: probabilities; entropy[n]. */
    void (*softmax)(uint32_t choices, uint32_t n, uint32_t ld, float *z, float *p, float *entropy);
    /* dz = d_log_prob * (onehot(action) - p) - d_entropy * p * (log p + entropy); dz may be p. */
    void (*softmax_grad)(uint32_t choices, uint32_t n, uint32_t ld, const int32_t *action, const float *log_p,
                         const float *p, const float *entropy, const float *d_log_prob,
                         const float *d_entropy, float *dz);
};

extern const struct corral_kernels corral_kernels_base;
#if defined(__x86_64__)
extern const struct corral_kernels corral_kernels_avx2;
extern const struct corral_kernels corral_kernels_avx512;
#endif

/* The fastest set this processor supports; the same answer every time. */
const struct corral_kernels *corral_kernels(void);
/* Every supported set, slowest first; returns the number. For tests and benchmarks. */
uint32_t corral_kernels_all(const struct corral_kernels *out[4]);

#endif
