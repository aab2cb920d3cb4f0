#include "tests/check.h"

#include "base/error.h"
#include "model/gemm.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* out, in, n: tiles, ragged edges, single rows, the batch blocks 16 / 32 / 64 and their remainders. */
static const uint32_t shapes[][3] = {{32, 4, 128}, {32, 32, 128}, {2, 32, 128},  {1, 32, 16},
                                     {1, 1, 16},   {3, 5, 48},    {7, 9, 112},   {17, 31, 80},
                                     {64, 64, 64}, {65, 63, 32},  {100, 20, 176}};

struct operands {
    uint32_t out, in, n, ld;
    float *w, *bias, *x, *dy, *h, *got, *dw, *db;
};

static float *numbers(size_t count, uint32_t seed)
{
    float *p = malloc(count * sizeof *p);
    assert_non_null(p);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (float)(int32_t)seed * 0x1p-31f;
    }
    return p;
}

static struct operands make(const uint32_t shape[3], uint32_t extra)
{
    struct operands o = {.out = shape[0], .in = shape[1], .n = shape[2], .ld = shape[2] + extra};
    uint32_t most = CORRAL_MAX(o.out, o.in);
    o.w = numbers((size_t)o.out * o.in, 1);
    o.bias = numbers(o.out, 2);
    o.x = numbers((size_t)o.in * o.ld, 3);
    o.dy = numbers((size_t)o.out * o.ld, 4);
    o.h = numbers((size_t)o.in * o.ld, 5);
    o.got = numbers((size_t)most * o.ld, 6);
    o.dw = numbers((size_t)o.out * o.in, 7);
    o.db = numbers(o.out, 8);
    return o;
}

static void drop(struct operands *o)
{
    float *all[] = {o->w, o->bias, o->x, o->dy, o->h, o->got, o->dw, o->db};
    for (size_t i = 0; i < CORRAL_COUNT_OF(all); i++) {
        free(all[i]);
    }
}

static double act(double v, enum corral_dense_act kind)
{
    return kind == CORRAL_DENSE_TANH ? tanh(v) : kind == CORRAL_DENSE_RELU ? fmax(v, 0) : v;
}

static double slope(double h, enum corral_dense_act kind)
{
    return kind == CORRAL_DENSE_TANH ? 1 - h * h : kind == CORRAL_DENSE_RELU ? (h > 0 ? 1.0 : 0.0) : 1;
}

#define NEAR(got, want, depth) assert_true(fabs((double)(got) - (want)) <= 4e-7 * ((depth) + 4.0))

static void check_forward(const struct operands *o, enum corral_dense_act kind)
{
    for (uint32_t i = 0; i < o->out; i++) {
        for (uint32_t b = 0; b < o->n; b++) {
            double sum = o->bias[i];
            for (uint32_t k = 0; k < o->in; k++) {
                sum += (double)o->w[i * o->in + k] * o->x[k * o->ld + b];
            }
            NEAR(o->got[i * o->ld + b], act(sum, kind), o->in);
        }
    }
}

static void check_input_grad(const struct operands *o, enum corral_dense_act kind)
{
    for (uint32_t i = 0; i < o->in; i++) {
        for (uint32_t b = 0; b < o->n; b++) {
            double sum = 0;
            for (uint32_t k = 0; k < o->out; k++) {
                sum += (double)o->w[k * o->in + i] * o->dy[k * o->ld + b];
            }
            NEAR(o->got[i * o->ld + b], sum * slope(o->h[i * o->ld + b], kind), o->out);
        }
    }
}

static void check_weight_grad(const struct operands *o, const float *dw0, const float *db0)
{
    for (uint32_t i = 0; i < o->out; i++) {
        double total = db0[i];
        for (uint32_t b = 0; b < o->n; b++) {
            total += o->dy[i * o->ld + b];
        }
        NEAR(o->db[i], total, o->n);
        for (uint32_t k = 0; k < o->in; k++) {
            double sum = dw0[i * o->in + k];
            for (uint32_t b = 0; b < o->n; b++) {
                sum += (double)o->dy[i * o->ld + b] * o->x[k * o->ld + b];
            }
            NEAR(o->dw[i * o->in + k], sum, o->n);
        }
    }
}

typedef void (*forward_fn)(uint32_t, uint32_t, uint32_t, uint32_t, const float *, const float *,
                           const float *, float *, enum corral_dense_act);
typedef void (*input_fn)(uint32_t, uint32_t, uint32_t, uint32_t, const float *, const float *, const float *,
                         float *, enum corral_dense_act);
typedef void (*weight_fn)(uint32_t, uint32_t, uint32_t, uint32_t, const float *, const float *, float *,
                          float *);

static void check_all(forward_fn forward, input_fn input_grad, weight_fn weight_grad)
{
    for (size_t s = 0; s < CORRAL_COUNT_OF(shapes); s++) {
        struct operands o = make(shapes[s], s % 2 ? 16 : 0);
        for (int kind = CORRAL_DENSE_LINEAR; kind <= CORRAL_DENSE_RELU; kind++) {
            forward(o.out, o.in, o.n, o.ld, o.w, o.bias, o.x, o.got, (enum corral_dense_act)kind);
            check_forward(&o, (enum corral_dense_act)kind);
            input_grad(o.out, o.in, o.n, o.ld, o.w, o.dy, o.h, o.got, (enum corral_dense_act)kind);
            check_input_grad(&o, (enum corral_dense_act)kind);
        }
        float *dw0 = numbers((size_t)o.out * o.in, 7), *db0 = numbers(o.out, 8);
        weight_grad(o.out, o.in, o.n, o.ld, o.dy, o.x, o.dw, o.db);
        check_weight_grad(&o, dw0, db0);
        free(dw0);
        free(db0);
        drop(&o);
    }
}

static void every_kernel_set_gives_the_three_products(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    for (uint32_t k = 0; k < count; k++) {
        print_message("%s\n", all[k]->name);
        check_all(all[k]->forward, all[k]->input_grad, all[k]->weight_grad);
    }
}

static void blas_gives_the_three_products_or_is_not_used(void **state)
{
    (void)state;
    if (!corral_gemm_uses_blas()) {
        print_message("OpenBLAS failed its check on this processor: own kernels only\n");
        return;
    }
    check_all(corral_blas_forward, corral_blas_input_grad, corral_blas_weight_grad);
}

static void large_shapes_agree_with_the_plain_kernels(void **state)
{
    (void)state;
    corral_gemm_prepare();
    const uint32_t shape[3] = {256, 192, 256};
    struct operands o = make(shape, 0);
    float *plain = numbers((size_t)256 * o.ld, 9);
    corral_dense_forward(o.out, o.in, o.n, o.ld, o.w, o.bias, o.x, o.got, CORRAL_DENSE_TANH);
    corral_kernels_base.forward(o.out, o.in, o.n, o.ld, o.w, o.bias, o.x, plain, CORRAL_DENSE_TANH);
    for (size_t i = 0; i < (size_t)o.out * o.ld; i++) {
        assert_true(fabsf(o.got[i] - plain[i]) < 1e-4f);
    }
    free(plain);
    drop(&o);
}

static void a_row_does_not_depend_on_the_rows_beside_it(void **state)
{
    (void)state;
    const uint32_t wide[3] = {33, 20, 112}, narrow[3] = {33, 20, 16};
    const struct corral_kernels *k = corral_kernels();
    struct operands a = make(wide, 0), b = make(narrow, 0);
    for (uint32_t f = 0; f < 20; f++) {
        memcpy(b.x + (size_t)f * b.ld, a.x + (size_t)f * a.ld + 96, 16 * sizeof(float));
    }
    k->forward(33, 20, 112, a.ld, a.w, a.bias, a.x, a.got, CORRAL_DENSE_TANH);
    k->forward(33, 20, 16, b.ld, b.w, b.bias, b.x, b.got, CORRAL_DENSE_TANH);
    for (uint32_t f = 0; f < 33; f++) {
        assert_memory_equal(b.got + (size_t)f * b.ld, a.got + (size_t)f * a.ld + 96, 16 * sizeof(float));
    }
    drop(&a);
    drop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kernel_set_gives_the_three_products),
        cmocka_unit_test(blas_gives_the_three_products_or_is_not_used),
        cmocka_unit_test(large_shapes_agree_with_the_plain_kernels),
        cmocka_unit_test(a_row_does_not_depend_on_the_rows_beside_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
