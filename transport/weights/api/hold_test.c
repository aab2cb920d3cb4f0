/* <corral/weights.h> asks before it keeps memory: a trainer whose weights are on a device (of the fake driver), staged in host memory. */
#include "tests/check.h"

#include "base/cuda_driver.h"
#include <corral/weights.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ELEMENTS 40000u
#define LONG_MS 20000u

static const struct corral_cuda *cuda;
static const uint8_t secret[32] = "hold test";
static const struct corral_weights_identity who = {
    .size = sizeof who, .run = 3, .generation = 1, .secret = secret};

struct budget {
    _Atomic uint64_t limit, held, calls;
};

static enum corral_status hold(void *ctx, uint64_t bytes, const char *what, struct corral_error *err)
{
    struct budget *b = ctx;
    b->calls++;
    if (bytes > b->limit && bytes > b->held) {
        err->status = CORRAL_DENIED;
        snprintf(err->text, sizeof err->text, "%s: above the quota", what);
        return CORRAL_DENIED;
    }
    b->held = bytes;
    return CORRAL_OK;
}

static struct corral_weights_layout *make_layout(void)
{
    struct corral_error err;
    struct corral_weights_layout *l;
    uint64_t shape[1] = {ELEMENTS};
    uint32_t t;
    check_ok(corral_weights_layout_create(&l, 1, &err));
    check_ok(corral_weights_layout_tensor(l, "w", CORRAL_WEIGHTS_F32, 1, shape, &t, &err));
    check_ok(corral_weights_layout_whole(l, t, 0, CORRAL_WEIGHTS_NEXT, NULL, &err));
    return l;
}

struct pair {
    uint64_t address;
    float *weights;
    struct budget trainer, engine;
    struct corral_weights_publisher *p;
    struct corral_weights_subscriber *s;
};

static void open_pair(struct pair *a)
{
    static uint8_t card[1 << 16];
    struct corral_error err;
    struct corral_weights_layout *l = make_layout();
    uint64_t bytes = sizeof card;
    assert_int_equal(cuda->cuMemAlloc(&a->address, ELEMENTS * sizeof(float)), CORRAL_CUDA_SUCCESS);
    struct corral_weights_region region = {.size = sizeof region,
                                           .device = 0,
                                           .bytes = ELEMENTS * sizeof(float),
                                           .address = (void *)(uintptr_t)a->address};
    struct corral_weights_publisher_options o = {.size = sizeof o,
                                                 .identity = &who,
                                                 .layout = l,
                                                 .regions = &region,
                                                 .region_count = 1,
                                                 .deadline_ms = LONG_MS,
                                                 .bucket_bytes = 64u << 10,
                                                 .lanes = "tcp",
                                                 .hold = hold,
                                                 .hold_ctx = &a->trainer};
    check_ok(corral_weights_publisher_open(&a->p, &o, &err));
    check_ok(corral_weights_publisher_card(a->p, card, &bytes, &err));
    struct corral_weights_subscriber_options so = {.size = sizeof so,
                                                   .identity = &who,
                                                   .layout = l,
                                                   .trainer_card = card,
                                                   .trainer_card_bytes = bytes,
                                                   .name = "engine",
                                                   .lanes = "tcp",
                                                   .auto_flip = 1,
                                                   .hold = hold,
                                                   .hold_ctx = &a->engine};
    check_ok(corral_weights_subscriber_open(&a->s, &so, &err));
    bytes = sizeof card;
    check_ok(corral_weights_subscriber_card(a->s, card, &bytes, &err));
    check_ok(corral_weights_publisher_add(a->p, card, bytes, &err));
    corral_weights_layout_destroy(l);
    a->weights = calloc(ELEMENTS, sizeof(float));
    assert_non_null(a->weights);
    for (uint32_t i = 0; i < ELEMENTS; i++) {
        a->weights[i] = (float)i;
    }
    assert_int_equal(cuda->cuMemcpyHtoD(a->address, a->weights, ELEMENTS * sizeof(float)),
                     CORRAL_CUDA_SUCCESS);
}

static void close_pair(struct pair *a)
{
    corral_weights_subscriber_close(a->s);
    corral_weights_publisher_close(a->p);
    free(a->weights);
    assert_int_equal(cuda->cuMemFree(a->address), CORRAL_CUDA_SUCCESS);
    assert_int_equal(a->trainer.held, 0);
    assert_int_equal(a->engine.held, 0);
}

static void check_arrived(struct pair *a, uint64_t version)
{
    struct corral_error err;
    struct corral_weights_view view = {.size = sizeof view};
    uint64_t ready = 0;
    check_ok(corral_weights_wait(a->s, version, LONG_MS, &ready, &err));
    check_ok(corral_weights_acquire(a->s, &view, &err));
    assert_int_equal(view.version, version);
    assert_memory_equal(view.base, a->weights, ELEMENTS * sizeof(float));
    corral_weights_release(a->s, &view);
}

static void staging_of_a_device_is_held_and_given_back(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_weights_result r = {.size = sizeof r};
    struct pair a = {.trainer = {.limit = UINT64_MAX}, .engine = {.limit = UINT64_MAX}};
    open_pair(&a);
    check_ok(corral_weights_publish(a.p, 1, &r, &err));
    check_arrived(&a, 1);
    assert_true(r.memory > 0);
    assert_int_equal(r.memory, a.trainer.held);
    assert_int_equal(r.slow_rank, UINT32_MAX);
    assert_true(a.trainer.calls > 0);
    close_pair(&a);
}

static void a_version_whose_staging_is_refused_fails_with_the_reason(void **state)
{
    (void)state;
    struct corral_error err;
    struct pair a = {.trainer = {.limit = 1024}, .engine = {.limit = UINT64_MAX}};
    open_pair(&a);
    check_status(corral_weights_publish(a.p, 1, NULL, &err), CORRAL_DENIED);
    assert_non_null(strstr(err.text, "staging of weights on a device: above the quota"));
    assert_int_equal(corral_weights_version(a.s), 0);
    a.trainer.limit = UINT64_MAX;
    check_ok(corral_weights_publish(a.p, 1, NULL, &err));
    check_arrived(&a, 1);
    close_pair(&a);
}

int main(void)
{
    struct corral_error err;
    corral_cuda_context context;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(staging_of_a_device_is_held_and_given_back),
        cmocka_unit_test(a_version_whose_staging_is_refused_fails_with_the_reason),
    };
    if (corral_cuda_open(&cuda, &err) != CORRAL_OK) {
        printf("skipped: %s\n", err.text);
        return CORRAL_TEST_SKIPPED;
    }
    if (corral_cuda_primary(cuda, 0, &context, &err) != CORRAL_OK || cuda->cuCtxPushCurrent(context) != 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
