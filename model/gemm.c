#include "model/gemm.h"
#include <cblas.h>
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static const struct corral_kernels *kernels; /* written once, before pthread_once returns */

/* OpenBLAS is loaded when a product is first large enough for it: a worker with a small policy starts faster without its relocations, threads and buffers. */
static pthread_once_t blas_prepared = PTHREAD_ONCE_INIT;
static bool blas_works; /* written once, before pthread_once returns */
static __typeof__(&cblas_sgemm) sgemm;

/* Shapes of the check: multiples of the tile, ragged ones, deep and flat ones. */
#define CHECK_SIDE 96u
static const struct {
    uint32_t out, in, n;
} check_shapes[] = {{64, 64, 64}, {33, 70, 48}, {96, 17, 96}, {7, 96, 80}};

static bool close_enough(const float *a, const float *b, uint32_t rows, uint32_t n, uint32_t ld,
                         uint32_t depth)
{
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < n; j++) {
            float x = a[(size_t)i * ld + j], y = b[(size_t)i * ld + j];
            if (!(fabsf(x - y) <= 1e-6f * (float)depth)) {
                return false;
            }
        }
    }
    return true;
}

/* Entries in [-1, 1) from a fixed sequence. */
static void fill(float *p, size_t count, uint32_t seed)
{
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (float)(int32_t)seed * 0x1p-31f;
    }
}

static bool blas_agrees(uint32_t out, uint32_t in, uint32_t n)
{
    static float w[CHECK_SIDE * CHECK_SIDE], x[CHECK_SIDE * CHECK_SIDE], dy[CHECK_SIDE * CHECK_SIDE];
    static float mine[CHECK_SIDE * CHECK_SIDE], theirs[CHECK_SIDE * CHECK_SIDE];
    float bias[CHECK_SIDE], db[CHECK_SIDE] = {0};
    const uint32_t ld = CHECK_SIDE;
    const struct corral_kernels *plain = &corral_kernels_base;
    fill(w, CHECK_SIDE * CHECK_SIDE, 1);
    fill(x, CHECK_SIDE * CHECK_SIDE, 2);
    fill(dy, CHECK_SIDE * CHECK_SIDE, 3);
    fill(bias, CHECK_SIDE, 4);
    plain->forward(out, in, n, ld, w, bias, x, mine, CORRAL_DENSE_LINEAR);
    corral_blas_forward(out, in, n, ld, w, bias, x, theirs, CORRAL_DENSE_LINEAR);
    if (!close_enough(mine, theirs, out, n, ld, in)) {
        return false;
    }
    plain->input_grad(out, in, n, ld, w, dy, NULL, mine, CORRAL_DENSE_LINEAR);
    corral_blas_input_grad(out, in, n, ld, w, dy, NULL, theirs, CORRAL_DENSE_LINEAR);
    if (!close_enough(mine, theirs, in, n, ld, out)) {
        return false;
    }
    fill(mine, (size_t)out * in, 5);
    memcpy(theirs, mine, (size_t)out * in * sizeof *mine);
    plain->weight_grad(out, in, n, ld, dy, x, mine, db);
    corral_blas_weight_grad(out, in, n, ld, dy, x, theirs, db);
    return close_enough(mine, theirs, out, in, in, n);
}

static void prepare(void)
{
    kernels = corral_kernels();
}

static void load_blas(void)
{
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        return; /* the own kernels do everything */
    }
    /* POSIX has functions come out of dlsym as objects; a copy says so without a cast. */
    void *found = dlsym(library, "cblas_sgemm"), *threads = dlsym(library, "openblas_set_num_threads");
    __typeof__(&openblas_set_num_threads) set_threads = NULL;
    memcpy(&sgemm, &found, sizeof sgemm);
    memcpy(&set_threads, &threads, sizeof set_threads);
    if (!sgemm || !set_threads) {
        return;
    }
    set_threads(1);
    blas_works = true;
    for (size_t i = 0; i < sizeof check_shapes / sizeof check_shapes[0] && blas_works; i++) {
        blas_works = blas_agrees(check_shapes[i].out, check_shapes[i].in, check_shapes[i].n);
    }
}

void corral_gemm_prepare(void)
{
    pthread_once(&prepared, prepare);
}

bool corral_gemm_uses_blas(void)
{
    corral_gemm_prepare();
    pthread_once(&blas_prepared, load_blas);
    return blas_works;
}

static bool large(uint32_t out, uint32_t in, uint32_t n)
{
    return (uint64_t)out * in * n >= kernels->blas_min && out >= CORRAL_GEMM_BLAS_SIDE_MIN &&
           in >= CORRAL_GEMM_BLAS_SIDE_MIN && n >= CORRAL_GEMM_BLAS_SIDE_MIN && corral_gemm_uses_blas();
}

void corral_gemm_prepare_for(uint32_t out, uint32_t in, uint32_t n)
{
    corral_gemm_prepare();
    (void)large(out, in, n);
}

void corral_blas_forward(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                         const float *bias, const float *x, float *y, enum corral_dense_act act)
{
    sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)out, (blasint)n, (blasint)in, 1.0f, w,
          (blasint)in, x, (blasint)ld, 0.0f, y, (blasint)ld);
    kernels->bias_act(out, n, ld, bias, y, act);
}

void corral_blas_input_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                            const float *dy, const float *h, float *dx, enum corral_dense_act act)
{
    sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)in, (blasint)n, (blasint)out, 1.0f, w,
          (blasint)in, dy, (blasint)ld, 0.0f, dx, (blasint)ld);
    kernels->act_grad(in, n, ld, h, dx, act);
}

void corral_blas_weight_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy,
                             const float *x, float *dw, float *db)
{
    sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)out, (blasint)in, (blasint)n, 1.0f, dy,
          (blasint)ld, x, (blasint)ld, 1.0f, dw, (blasint)in);
    kernels->row_sums(out, n, ld, dy, db);
}

void corral_dense_forward(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                          const float *bias, const float *x, float *y, enum corral_dense_act act)
{
    (large(out, in, n) ? corral_blas_forward : kernels->forward)(out, in, n, ld, w, bias, x, y, act);
}

void corral_dense_input_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w,
                             const float *dy, const float *h, float *dx, enum corral_dense_act act)
{
    (large(out, in, n) ? corral_blas_input_grad : kernels->input_grad)(out, in, n, ld, w, dy, h, dx, act);
}

void corral_dense_weight_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy,
                              const float *x, float *dw, float *db)
{
    (large(out, in, n) ? corral_blas_weight_grad : kernels->weight_grad)(out, in, n, ld, dy, x, dw, db);
}
