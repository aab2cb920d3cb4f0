/* The instruction-set variants of a kernel agree bit for bit, and the polynomials agree with the library. Built once per environment: KERNEL_SOURCE is the
 * plug-in's source, KERNEL its kernel. */
#include KERNEL_SOURCE
#include "envs/sincos.h"
#include "tests/check.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define ENVS 77u

struct buffers {
    float obs[ENVS * 6], final_obs[ENVS * 6], reward[ENVS];
    int32_t action[ENVS], status[ENVS];
    uint8_t terminated[ENVS], truncated[ENVS], active[ENVS];
};

static struct corral_env *open_batch(struct buffers *at, kernel_fn kernel)
{
    struct corral_env_spec spec = {.size = sizeof spec};
    char error[200];
    uint64_t seeds[ENVS];
    struct corral_env *env = NULL;
    memset(at, 0, sizeof *at);
    assert_int_equal(ops.describe("{}", &spec, error, sizeof error), CORRAL_ENV_OK);
    struct corral_env_buffers io = {.size = sizeof io,
                                    .envs = ENVS,
                                    .agents = 1,
                                    .obs = at->obs,
                                    .obs_stride = 4 * spec.obs_shape[0],
                                    .action = at->action,
                                    .action_stride = 4,
                                    .reward = at->reward,
                                    .terminated = at->terminated,
                                    .truncated = at->truncated,
                                    .active = at->active,
                                    .final_obs = at->final_obs,
                                    .status = at->status};
    assert_int_equal(ops.create("{}", &io, NULL, &env, error, sizeof error), CORRAL_ENV_OK);
    for (uint32_t i = 0; i < ENVS; i++) {
        seeds[i] = i;
    }
    assert_int_equal(ops.reset(env, NULL, ENVS, seeds), CORRAL_ENV_OK);
    env->advance = kernel;
    return env;
}

static void act(struct buffers *at, const struct corral_env *env, struct corral_env_rng *rng)
{
    const struct corral_env_spec *spec = &env->kind->spec;
    for (uint32_t i = 0; i < ENVS; i++) {
        if (spec->action_kind == CORRAL_ENV_DISCRETE) {
            at->action[i] = (int32_t)corral_env_rng_below(rng, spec->choices[0]);
        } else {
            float number = (float)corral_env_rng_uniform(rng, -2.5, 2.5);
            memcpy(&at->action[i], &number, sizeof number);
        }
    }
}

static void check_against_plain(kernel_fn kernel)
{
    static struct buffers plain, other;
    struct corral_env *a = open_batch(&plain, JOIN(KERNEL, _plain)), *b = open_batch(&other, kernel);
    struct corral_env_rng one = {1}, two = {1};
    for (uint32_t step = 0; step < 1500; step++) {
        act(&plain, a, &one);
        act(&other, b, &two);
        assert_int_equal(ops.step(a, NULL, ENVS), CORRAL_ENV_OK);
        assert_int_equal(ops.step(b, NULL, ENVS), CORRAL_ENV_OK);
        assert_memory_equal(&plain, &other, sizeof plain);
        for (uint32_t k = 0; k < a->kind->state_count; k++) {
            assert_memory_equal(a->state[k], b->state[k], ENVS * sizeof(double));
        }
    }
    ops.destroy(a);
    ops.destroy(b);
}

static void every_instruction_set_gives_the_same_bits(void **state)
{
    (void)state;
    check_against_plain(JOIN(KERNEL, _pick)());
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        check_against_plain(JOIN(KERNEL, _v3));
    }
#endif
}

static void small_angles_agree_with_the_library(void **state)
{
    (void)state;
    for (int i = -21000; i <= 21000; i++) {
        double x = i * 1e-5, sine, cosine;
        sincos_small(x, &sine, &cosine);
        assert_true(fabs(sine - sin(x)) < 1e-16);
        assert_true(fabs(cosine - cos(x)) < 3e-16);
    }
}

static void wide_angles_agree_with_the_library(void **state)
{
    (void)state;
    struct corral_env_rng rng = {8};
    const double ranges[] = {1.0, 10.0, 100.0, 1e4, SINCOS_MAX};
    for (int i = 0; i < 500000; i++) {
        double range = ranges[i % 5], x = corral_env_rng_uniform(&rng, -range, range), sine, cosine;
        x = i % 11 == 0 ? nearbyint(x) * 1.5707963267948966 : x; /* where the quadrants meet */
        x = fabs(x) > SINCOS_MAX ? 0.0 : x;
        sincos_wide(x, &sine, &cosine);
        assert_true(fabs(sine - sin(x)) < 1e-15);
        assert_true(fabs(cosine - cos(x)) < 1e-15);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_instruction_set_gives_the_same_bits),
        cmocka_unit_test(small_angles_agree_with_the_library),
        cmocka_unit_test(wide_angles_agree_with_the_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
