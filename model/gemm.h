/* The three products of a dense layer, on feature-major batches (see kernels.h: element (f, r) at [f * ld + r]; the batch
 * n and ld are multiples of 16, weights are [out][in] row-major).
 *
 *   forward      Y = act(W X + b)
 *   input grad   dX = (W^T dY) * act'(H)
 *   weight grad  dW += dY X^T, db += sum over the batch of dY
 *
 * Small layers use own vector kernels; large ones OpenBLAS (one thread). Which, is decided by the shape alone, so equal shapes give
 * equal bits. Old OpenBLAS builds compute wrong results on some newer processors: it is compared
 * with the plain kernels when it is loaded, and when it is wrong, or not there, it is not used. Any thread after corral_gemm_prepare().
 */
#ifndef CORRAL_MODEL_GEMM_H
#define CORRAL_MODEL_GEMM_H

#include "model/kernels.h"

/* Products with a side shorter than this stay with the own kernels; so do those below the kernels' blas_min. */
#define CORRAL_GEMM_BLAS_SIDE_MIN 64u

/* Choose the kernels; idempotent, any thread. Policy workspaces call it. */
void corral_gemm_prepare(void);
/* The same for products of this shape: loads and checks OpenBLAS now when they will need it, so that the first one is not held up. */
void corral_gemm_prepare_for(uint32_t out, uint32_t in, uint32_t n);
/* Loads OpenBLAS if that was not done yet. True when it is there, passed the check, and is used for large shapes. */
bool corral_gemm_uses_blas(void);

void corral_dense_forward(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                          const float *bias, const float *x, float *y, enum corral_dense_act act);
void corral_dense_input_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                             const float *dy, const float *h, float *dx, enum corral_dense_act act);
void corral_dense_weight_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy,
                              const float *x, float *dw, float *db);

/* The same through OpenBLAS whatever the shape: for tests and benchmarks. */
void corral_blas_forward(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                         const float *bias, const float *x, float *y, enum corral_dense_act act);
void corral_blas_input_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                            const float *dy, const float *h, float *dx, enum corral_dense_act act);
void corral_blas_weight_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy,
                             const float *x, float *dw, float *db);

#endif
