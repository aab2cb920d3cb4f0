#include "tests/check.h"

#include "model/kernels.h"
#include <math.h>
#include <string.h>

#define STRIDE 127u /* every 127th float: about 34 million, each sign, all exponents */
#define BATCH 4096u

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Distance from the correctly rounded result in units of its last place. */
static double ulps(float got, double want)
{
    if (isnan(want)) {
        return isnan(got) ? 0 : INFINITY;
    }
    if (isinf(want) || isinf(got)) {
        return (double)got == want ? 0 : INFINITY;
    }
    double unit = ldexp(1.0, (want == 0 ? -126 : ilogb(want)) - 23);
    return fabs((double)got - want) / fmax(unit, ldexp(1.0, -149));
}

typedef void (*map_fn)(uint32_t n, const float *x, float *y);

static double worst(map_fn fn, double (*reference)(double), uint32_t first, uint32_t last, uint32_t step)
{
    static float x[BATCH], y[BATCH];
    double most = 0;
    uint64_t bits = first;
    while (bits <= last) {
        uint32_t n = 0;
        for (; n < BATCH && bits <= last; bits += step) {
            x[n++] = from_bits((uint32_t)bits);
        }
        fn(n, x, y);
        for (uint32_t i = 0; i < n; i++) {
            double e = ulps(y[i], reference((double)x[i]));
            most = e > most ? e : most;
        }
    }
    return most;
}

static double exp_as_float(double x)
{
    double y = exp(x);
    if (y < 1.1754943508222875e-38) {
        return 0; /* documented: nothing below the smallest normal */
    }
    return y > 3.4028235e38 ? INFINITY : y;
}

static void tanh_is_within_six_ulp_of_libm(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    for (uint32_t k = 0; k < count; k++) {
        double positive = worst(all[k]->tanh_f32, tanh, 0, 0x7f800000, STRIDE * 40);
        double middle = worst(all[k]->tanh_f32, tanh, 0x3c000000, 0x41200000, STRIDE);
        double negative = worst(all[k]->tanh_f32, tanh, 0x80000000, 0xff800000, STRIDE * 40);
        print_message("%s: tanh %.2f %.2f %.2f ulp\n", all[k]->name, positive, middle, negative);
        assert_true(positive <= 6 && middle <= 6 && negative <= 6);
    }
}

static void tanh_never_leaves_the_unit_interval(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    static float x[BATCH], y[BATCH];
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t base = 0x40000000; base < 0x41400000; base += BATCH) {
            for (uint32_t i = 0; i < BATCH; i++) {
                x[i] = from_bits(base + i);
            }
            all[k]->tanh_f32(BATCH, x, y);
            for (uint32_t i = 0; i < BATCH; i++) {
                assert_true(y[i] <= 1.0f);
            }
        }
    }
}

static void exp_and_log_are_within_two_ulp_of_libm(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    for (uint32_t k = 0; k < count; k++) {
        double up = worst(all[k]->exp_f32, exp_as_float, 0x30000000, 0x42b17217, STRIDE);
        double down = worst(all[k]->exp_f32, exp_as_float, 0xb0000000, 0xc2aeac4f, STRIDE);
        double log_error = worst(all[k]->log_f32, log, 0x00800000, 0x7f7fffff, STRIDE);
        double log_near_one = worst(all[k]->log_f32, log, 0x3f700000, 0x3f900000, 1);
        print_message("%s: exp %.2f %.2f log %.2f %.2f ulp\n", all[k]->name, up, down, log_error,
                      log_near_one);
        assert_true(up <= 2 && down <= 2 && log_error <= 2 && log_near_one <= 2);
    }
}

static void special_values_come_out_right(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    const float x[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 89.0f, -88.0f, -1e30f};
    for (uint32_t k = 0; k < count; k++) {
        float t[8], e[8];
        all[k]->tanh_f32(8, x, t);
        all[k]->exp_f32(8, x, e);
        assert_true(isnan(t[0]) && t[1] > 0.9999998f && t[2] < -0.9999998f && t[3] == 0 && t[4] == 0 &&
                    signbit(t[4]));
        assert_true(isnan(e[0]) && isinf(e[1]) && e[2] == 0 && e[3] == 1 && e[4] == 1 && isinf(e[5]) &&
                    e[6] == 0 && e[7] == 0);
    }
}

static void short_and_unaligned_arrays_are_not_overrun(void **state)
{
    (void)state;
    const struct corral_kernels *all[4];
    uint32_t count = corral_kernels_all(all);
    for (uint32_t k = 0; k < count; k++) {
        for (uint32_t n = 0; n < 40; n++) {
            float buffer[48], x[48];
            for (uint32_t i = 0; i < 48; i++) {
                buffer[i] = -7;
                x[i] = 0.1f * (float)i;
            }
            all[k]->exp_f32(n, x + 1, buffer + 1);
            assert_true(buffer[0] == -7 && buffer[n + 1] == -7);
            for (uint32_t i = 1; i <= n; i++) {
                assert_true(fabs((double)buffer[i] / exp((double)x[i]) - 1) < 1e-6);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tanh_is_within_six_ulp_of_libm),
        cmocka_unit_test(tanh_never_leaves_the_unit_interval),
        cmocka_unit_test(exp_and_log_are_within_two_ulp_of_libm),
        cmocka_unit_test(special_values_come_out_right),
        cmocka_unit_test(short_and_unaligned_arrays_are_not_overrun),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
