/* Sizes, header encoding, and what the decoder refuses. */
#include "tests/check.h"

#include "base/rng.h"
#include "transport/trajectory/test_support.h"
#include "transport/trajectory/wire.h"
#include <string.h>

static struct corral_fragment small(void)
{
    return (struct corral_fragment){.steps = 2,
                                    .rows = 3,
                                    .obs_dim = 4,
                                    .action_components = 1,
                                    .mask_bytes = 5,
                                    .boundary_count = 1,
                                    .episode_count = 2};
}

static void sizes_follow_the_shapes(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_fragment f = small();
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES];
    check_ok(corral_fragment_sizes(&f, bytes, &err));
    const uint64_t expected[CORRAL_FRAGMENT_FRAMES] = {96, 24, 24, 24, 6, 6, 6, 16, 30, 48, 4, 16, 16};
    assert_memory_equal(bytes, expected, sizeof expected);
    assert_int_equal(corral_fragment_bytes(&f), CORRAL_FRAGMENT_HEADER_BYTES + 316);
}

static void refuses_shapes_out_of_range(void **state)
{
    (void)state;
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES] = {77};
    struct corral_fragment bad[] = {small(), small(), small(), small(), small(), small(), small(), small()};
    bad[0].steps = 0;
    bad[1].rows = CORRAL_FRAGMENT_ROWS_MAX + 1;
    bad[2].obs_dim = UINT32_MAX;
    bad[3].action_components = 0;
    bad[4].boundary_count = 7;
    bad[5].episode_count = 7;
    bad[6].steps = bad[6].rows = 65536; /* too large in total */
    bad[6].obs_dim = 1u << 24;
    bad[7].mask_bytes = UINT32_MAX;
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        check_status(corral_fragment_sizes(&bad[i], bytes, NULL), CORRAL_INVALID);
        assert_int_equal(corral_fragment_bytes(&bad[i]), 0);
    }
    assert_int_equal(bytes[0], 77); /* outputs are written only on success */
}

static void every_message_decodes_to_itself(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    for (enum corral_traj_type type = 0; type < CORRAL_TRAJ_TYPES; type++) {
        struct corral_traj_message m, out;
        memset(&m, 0, sizeof m);
        m.type = type;
        m.session = UINT64_MAX;
        m.fragment = small();
        m.fragment.sequence = 1ull << 40;
        const void *data;
        size_t bytes;
        uint8_t area[CORRAL_TRAJ_AREA_BYTES];
        corral_traj_encode(w, &m);
        check_ok(corral_mpack_finish(w, &data, &bytes, &err));
        if (type == CORRAL_TRAJ_FRAGMENT) {
            check_status(corral_traj_decode(data, bytes, &out, &err),
                         CORRAL_PROTOCOL); /* not without its area */
            m.fragment.steps = m.fragment.rows = m.fragment.obs_dim =
                UINT32_MAX; /* the longest header fits */
            m.fragment.run = m.fragment.sequence = m.format = UINT64_MAX;
            check_ok(corral_traj_encode_area(w, &m, area, &err));
            data = area;
            bytes = sizeof area;
        }
        check_ok(corral_traj_decode(data, bytes, &out, &err));
        assert_int_equal(out.type, type);
        assert_true(out.session == UINT64_MAX);
        if (type == CORRAL_TRAJ_FRAGMENT) {
            assert_memory_equal(&out.fragment, &m.fragment, sizeof m.fragment);
        }
    }
    corral_mpack_writer_destroy(w);
}

static void refuses_damaged_headers(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    struct corral_error err;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    struct corral_traj_message m = {.type = CORRAL_TRAJ_FRAGMENT, .fragment = small()}, out;
    uint8_t data[CORRAL_TRAJ_AREA_BYTES];
    size_t bytes = sizeof data;
    check_ok(corral_traj_encode_area(w, &m, data, &err));
    uint8_t copy[CORRAL_TRAJ_CONTROL_BYTES_MAX + 1] = {0};
    check_status(corral_traj_decode(copy, sizeof copy, &out, &err), CORRAL_PROTOCOL);
    for (size_t cut = 0; cut < bytes; cut++) {
        memcpy(copy, data, bytes);
        check_status(corral_traj_decode(copy, cut, &out, &err), CORRAL_PROTOCOL);
    }
    for (uint32_t length = CORRAL_TRAJ_AREA_BYTES - 7; length != 0;
         length <<= 1) { /* header lengths beyond the area */
        memcpy(copy + 4, &length, sizeof length);
        check_status(corral_traj_decode(copy, bytes, &out, &err), CORRAL_PROTOCOL);
    }
    for (int i = 0; i < 20000; i++) { /* must not crash; what passes has a known type */
        memcpy(copy, data, bytes);
        for (uint64_t n = 1 + corral_rng_below(&rng, 4); n > 0; n--) {
            copy[corral_rng_below(&rng, bytes)] = (uint8_t)corral_rng_next(&rng);
        }
        if (corral_traj_decode(copy, bytes, &out, &err) == CORRAL_OK) {
            assert_true(out.type < CORRAL_TRAJ_TYPES);
        }
    }
    corral_mpack_writer_destroy(w);
}

static void a_frame_must_have_the_size_of_its_shapes(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_traj_message m = {
        .type = CORRAL_TRAJ_FRAGMENT, .format = CORRAL_FRAGMENT_FORMAT, .fragment = small()};
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES], at[CORRAL_FRAGMENT_FRAMES], total;
    check_ok(corral_fragment_sizes(&m.fragment, bytes, &err));
    size_t right = CORRAL_TRAJ_AREA_BYTES + corral_fragment_offsets(bytes, at);
    m.fragment.sequence = 1;
    check_ok(corral_traj_check_frame(&m, right, bytes, at, &total, &err));
    assert_int_equal(total, right - CORRAL_TRAJ_AREA_BYTES);
    check_status(corral_traj_check_frame(&m, right - 1, bytes, at, &total, &err), CORRAL_PROTOCOL);
    check_status(corral_traj_check_frame(&m, right + 1, bytes, at, &total, &err), CORRAL_PROTOCOL);
    m.fragment.sequence = 0;
    check_status(corral_traj_check_frame(&m, right, bytes, at, &total, &err), CORRAL_PROTOCOL);
    m.fragment.sequence = 1;
    m.format++;
    check_status(corral_traj_check_frame(&m, right, bytes, at, &total, &err), CORRAL_PROTOCOL);
}

static void boundaries_must_ascend_inside(void **state)
{
    (void)state;
    struct corral_fragment f = small();
    f.boundary_count = 2;
    const uint32_t good[2] = {0, 5}, repeated[2] = {3, 3}, outside[2] = {0, 6};
    f.boundary_at = good;
    assert_true(corral_fragment_boundaries_valid(&f));
    f.boundary_at = repeated;
    assert_false(corral_fragment_boundaries_valid(&f));
    f.boundary_at = outside;
    assert_false(corral_fragment_boundaries_valid(&f));
}

static void a_block_is_never_larger_than_its_credit(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 500; seed++) {
        struct test_fragment t;
        uint64_t bytes[CORRAL_FRAGMENT_FRAMES], at[CORRAL_FRAGMENT_FRAMES];
        test_fragment_make(&t, seed, 6);
        assert_int_equal(corral_fragment_sizes(&t.fragment, bytes, NULL), CORRAL_OK);
        assert_true(CORRAL_TRAJ_AREA_BYTES + corral_fragment_offsets(bytes, at) <=
                    corral_fragment_bytes(&t.fragment));
        for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
            assert_int_equal(at[i] % 64, 0);
        }
        test_fragment_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_follow_the_shapes),
        cmocka_unit_test(refuses_shapes_out_of_range),
        cmocka_unit_test(every_message_decodes_to_itself),
        cmocka_unit_test(refuses_damaged_headers),
        cmocka_unit_test(a_frame_must_have_the_size_of_its_shapes),
        cmocka_unit_test(boundaries_must_ascend_inside),
        cmocka_unit_test(a_block_is_never_larger_than_its_credit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
