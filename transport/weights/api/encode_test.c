/* <corral/weights.h>: versions that go as what has changed, and weights that become fp8 on the way. */
#include "tests/check.h"

#include "transport/weights/cast/cast.h"
#include <corral/weights.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 512u
#define COLUMNS 384u
#define ELEMENTS (ROWS * COLUMNS)
#define LONG_MS 20000u

static const uint8_t secret[32] = "encode test";
static const struct corral_weights_identity who = {
    .size = sizeof who, .run = 4, .generation = 1, .secret = secret};

/* One trainer rank, one engine. */
struct bed {
    struct corral_weights_publisher *p;
    struct corral_weights_subscriber *s;
    uint16_t weights[ELEMENTS];
    uint8_t engine[ELEMENTS * 2]; /* the engine's own memory, with `live` */
};

static struct corral_weights_layout *layout_of(enum corral_weights_dtype dtype, bool scales)
{
    struct corral_weights_layout *l = NULL;
    struct corral_error err;
    const uint64_t shape[] = {ROWS, COLUMNS}, scale_shape[] = {ROWS, COLUMNS / 128};
    uint32_t t;
    check_ok(corral_weights_layout_create(&l, 1, &err));
    check_ok(corral_weights_layout_tensor(l, "up.weight", dtype, 2, shape, &t, &err));
    check_ok(corral_weights_layout_whole(l, t, 0, 0, NULL, &err));
    if (scales) {
        check_ok(corral_weights_layout_tensor(l, "up.weight_scale_inv", CORRAL_WEIGHTS_F32, 2, scale_shape,
                                              &t, &err));
        check_ok(corral_weights_layout_whole(l, t, 0, CORRAL_WEIGHTS_NEXT, NULL, &err));
    }
    return l;
}

static void exchange_cards(struct bed *b, struct corral_weights_subscriber_options *o)
{
    struct corral_error err;
    uint64_t bytes = 0;
    check_status(corral_weights_publisher_card(b->p, NULL, &bytes, &err), CORRAL_INVALID);
    CORRAL_AUTO_FREE uint8_t *card = malloc(bytes);
    assert_non_null(card);
    check_ok(corral_weights_publisher_card(b->p, card, &bytes, &err));
    o->trainer_card = card;
    o->trainer_card_bytes = bytes;
    check_ok(corral_weights_subscriber_open(&b->s, o, &err));
    uint64_t own = 0;
    check_status(corral_weights_subscriber_card(b->s, NULL, &own, &err), CORRAL_INVALID);
    CORRAL_AUTO_FREE uint8_t *answer = malloc(own);
    assert_non_null(answer);
    check_ok(corral_weights_subscriber_card(b->s, answer, &own, &err));
    check_ok(corral_weights_publisher_add(b->p, answer, own, &err));
}

static struct bed *bed_open(struct corral_weights_publisher_options o, struct corral_weights_layout *engine,
                            bool live)
{
    struct corral_error err;
    struct bed *b = calloc(1, sizeof *b);
    assert_non_null(b);
    struct corral_weights_layout *trainer = layout_of(CORRAL_WEIGHTS_BF16, false);
    struct corral_weights_region region = {
        .size = sizeof region, .device = -1, .bytes = sizeof b->weights, .address = b->weights};
    o.size = sizeof o;
    o.identity = &who;
    o.layout = trainer;
    o.regions = &region;
    o.region_count = 1;
    o.deadline_ms = LONG_MS;
    o.bucket_bytes = 64u << 10;
    check_ok(corral_weights_publisher_open(&b->p, &o, &err));
    struct corral_weights_region own = {
        .size = sizeof own, .device = -1, .bytes = sizeof b->engine, .address = b->engine};
    struct corral_weights_subscriber_options s = {.size = sizeof s,
                                                  .identity = &who,
                                                  .layout = engine,
                                                  .name = "engine",
                                                  .regions = live ? &own : NULL,
                                                  .region_count = live,
                                                  .auto_flip = !live,
                                                  .lanes = o.lanes};
    exchange_cards(b, &s);
    corral_weights_layout_destroy(trainer);
    corral_weights_layout_destroy(engine);
    return b;
}

static void bed_close(struct bed *b)
{
    corral_weights_publisher_close(b->p);
    corral_weights_subscriber_close(b->s);
    free(b);
}

static struct corral_weights_result publish(struct bed *b, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_weights_result r = {.size = sizeof r};
    check_ok(corral_weights_publish(b->p, version, &r, &err));
    assert_int_equal(r.applied, 1);
    return r;
}

static void changes_go_as_deltas(const char *lanes, bool live)
{
    struct corral_error err;
    struct bed *b =
        bed_open((struct corral_weights_publisher_options){.lanes = lanes, .delta = 1, .anchor_every = 4},
                 layout_of(CORRAL_WEIGHTS_BF16, false), live);
    for (uint64_t version = 1; version <= 9; version++) {
        for (uint32_t i = 0; i < ELEMENTS / 200; i++) {
            b->weights[(i * 7919 + version * 104729) % ELEMENTS] = (uint16_t)(version * 31 + i);
        }
        struct corral_weights_result r = publish(b, version);
        assert_int_equal(r.deltas, version % 4 != 1);
        assert_int_equal(r.bytes, sizeof b->weights);
        assert_true(version % 4 == 1 ? r.moved == r.bytes : r.moved < r.bytes / 20);
        assert_true(r.delta_memory >= sizeof b->weights);
        if (live) {
            check_ok(corral_weights_flip(b->s, version, LONG_MS, NULL, &err));
            assert_memory_equal(b->engine, b->weights, sizeof b->weights);
            continue;
        }
        struct corral_weights_view view = {.size = sizeof view};
        check_ok(corral_weights_acquire(b->s, &view, &err));
        assert_int_equal(view.version, version);
        assert_memory_equal(view.base, b->weights, sizeof b->weights);
        corral_weights_release(b->s, &view);
    }
    bed_close(b);
}

static void subscribers_get_what_has_changed(void **state)
{
    (void)state;
    changes_go_as_deltas("tcp", false);
    changes_go_as_deltas("shm", false);
}

static void so_do_engines_with_memory_of_their_own(void **state)
{
    (void)state;
    changes_go_as_deltas("tcp", true);
    changes_go_as_deltas("shm", true);
}

static void bf16_becomes_fp8_with_scales(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_weights_cast cast = {
        .size = sizeof cast, .to = CORRAL_WEIGHTS_F8_E4M3, .scaling = CORRAL_WEIGHTS_BLOCKS};
    struct bed *b = bed_open(
        (struct corral_weights_publisher_options){
            .lanes = "tcp", .casts = &cast, .cast_count = 1, .delta = 1, .delta_element_bytes = 1},
        layout_of(CORRAL_WEIGHTS_F8_E4M3, true), false);
    struct corral_cast c = {.from = CORRAL_DTYPE_BF16,
                            .to = CORRAL_DTYPE_F8_E4M3,
                            .scaling = CORRAL_CAST_BLOCKS,
                            .rows = ROWS,
                            .columns = COLUMNS};
    CORRAL_AUTO_FREE uint8_t *want = malloc(ELEMENTS);
    CORRAL_AUTO_FREE float *scales = malloc(ELEMENTS / 128 * sizeof *scales);
    assert_true(want != NULL && scales != NULL);
    for (uint64_t version = 1; version <= 3; version++) {
        for (uint32_t i = 0; i < ELEMENTS; i += version == 1 ? 1 : 400) {
            b->weights[i] = (uint16_t)(0x3c00 + ((i * 2654435761u + (uint32_t)version) >> 20) % 0x400);
        }
        struct corral_weights_result r = publish(b, version);
        assert_int_equal(r.bytes, ELEMENTS + ELEMENTS / 128 * 4);
        assert_true(version == 1 || r.moved < r.bytes / 4);
        check_ok(corral_cast_run(&c, b->weights, want, scales, &err));
        struct corral_weights_view view = {.size = sizeof view};
        check_ok(corral_weights_acquire(b->s, &view, &err));
        assert_memory_equal(view.base, want, ELEMENTS);
        assert_memory_equal((const uint8_t *)view.base + ELEMENTS, scales, ELEMENTS / 128 * sizeof *scales);
        corral_weights_release(b->s, &view);
    }
    bed_close(b);
}

static void casts_that_cannot_be_are_refused_by_name(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_weights_publisher *p = NULL;
    struct corral_weights_layout *trainer = layout_of(CORRAL_WEIGHTS_BF16, false);
    uint16_t *memory = calloc(ELEMENTS, sizeof *memory);
    struct corral_weights_region region = {
        .size = sizeof region, .device = -1, .bytes = ELEMENTS * sizeof *memory, .address = memory};
    struct corral_weights_cast cast = {.size = sizeof cast, .to = CORRAL_WEIGHTS_I32};
    struct corral_weights_publisher_options o = {.size = sizeof o,
                                                 .identity = &who,
                                                 .layout = trainer,
                                                 .regions = &region,
                                                 .region_count = 1,
                                                 .casts = &cast,
                                                 .cast_count = 1};
    check_status(corral_weights_publisher_open(&p, &o, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "up.weight"));
    o.casts = NULL;
    check_status(corral_weights_publisher_open(&p, &o, &err), CORRAL_INVALID);
    corral_weights_layout_destroy(trainer);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(subscribers_get_what_has_changed),
        cmocka_unit_test(so_do_engines_with_memory_of_their_own),
        cmocka_unit_test(bf16_becomes_fp8_with_scales),
        cmocka_unit_test(casts_that_cannot_be_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
