#include "tests/check.h"

#include "base/file.h"
#include "rollout/worker/env_snapshot.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENVS 5
#define STEPS 7

/* What a rollout worker snapshots: environments, where their episodes stand, and the dice. */
struct rig {
    struct corral_vec *vec;
    const struct corral_vec_view *view;
    struct corral_fragment_builder builder;
    struct corral_rng rng;
};

static char folder[64], path[96];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/corral-snapshot-XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/env-0.bin", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static void rig_open(struct rig *r, const char *id, uint32_t envs, uint64_t seed)
{
    struct corral_error err = {0};
    struct corral_vec_config config = {.id = id, .library = WALK_PLUGIN, .envs = envs, .seed = seed};
    *r = (struct rig){0};
    check_ok(corral_vec_create(&r->vec, &config, &err));
    r->view = corral_vec_view(r->vec);
    check_ok(corral_fragment_builder_open(&r->builder, r->view, false, STEPS, &corral_allocator_heap, &err));
    corral_rng_seed(&r->rng, seed);
    check_ok(corral_vec_reset(r->vec, &err));
}

static void rig_close(struct rig *r)
{
    corral_fragment_builder_close(&r->builder);
    corral_vec_destroy(r->vec);
}

static void fill_fragment(struct rig *r)
{
    struct corral_error err = {0};
    corral_fragment_builder_next(&r->builder);
    while (!corral_fragment_builder_full(&r->builder)) {
        for (uint32_t row = 0; row < r->view->rows; row++) {
            ((int32_t *)r->view->action)[row] = (int32_t)corral_rng_below(&r->rng, 3);
        }
        corral_fragment_builder_before_step(&r->builder, r->view, 1);
        check_ok(corral_vec_step(r->vec, &err));
        corral_fragment_builder_after_step(&r->builder, r->view);
    }
}

static void expect_equal_fragments(const struct corral_fragment *a, const struct corral_fragment *b)
{
    size_t cells = (size_t)a->steps * a->rows;
    assert_memory_equal(a->obs, b->obs, cells * a->obs_dim * sizeof(float));
    assert_memory_equal(a->action, b->action, cells * sizeof(int32_t));
    assert_memory_equal(a->reward, b->reward, cells * sizeof(float));
    assert_memory_equal(a->valid, b->valid, cells);
    assert_int_equal(a->episode_count, b->episode_count);
    assert_memory_equal(a->episode, b->episode, a->episode_count * 2 * sizeof(float));
}

static void write_snapshot(struct rig *r)
{
    struct corral_error err = {0};
    check_ok(corral_env_snapshot_write(path, r->vec, &r->rng, &r->builder, &err));
}

static enum corral_status read_snapshot(struct rig *r, struct corral_error *err)
{
    return corral_env_snapshot_read(path, r->vec, &r->rng, &r->builder, err);
}

static void goes_on_as_if_nothing_had_happened(void **state)
{
    (void)state;
    static const char *const ids[] = {"walk/Same-v0", "walk/Next-v0", "walk/Off-v0", "walk/Team-v0"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(ids); i++) {
        struct corral_error err = {0};
        struct rig a, b;
        rig_open(&a, ids[i], ENVS, 1);
        rig_open(&b, ids[i], ENVS, 1);
        for (uint32_t k = 0; k < 5; k++) {
            fill_fragment(&a);
        }
        fill_fragment(&b);
        a.builder.rows_done[1] = 1;
        a.builder.episode_return[2] = 0.25;
        write_snapshot(&a);
        check_ok(read_snapshot(&b, &err));
        assert_memory_equal(&a.rng, &b.rng, sizeof a.rng);
        assert_memory_equal(a.builder.rows_done, b.builder.rows_done, ENVS * sizeof(uint32_t));
        assert_memory_equal(a.builder.episode_return, b.builder.episode_return,
                            a.view->rows * sizeof(double));
        for (uint32_t k = 0; k < 6; k++) {
            fill_fragment(&a);
            fill_fragment(&b);
            expect_equal_fragments(&a.builder.fragment, &b.builder.fragment);
        }
        rig_close(&a);
        rig_close(&b);
    }
}

static void an_environment_without_snapshots_writes_no_file(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct rig r;
    char other[128];
    snprintf(other, sizeof other, "%s/none.bin", folder);
    rig_open(&r, "walk/Bytes-v0", ENVS, 1);
    check_status(corral_env_snapshot_write(other, r.vec, &r.rng, &r.builder, &err), CORRAL_UNSUPPORTED);
    assert_int_not_equal(access(other, F_OK), 0);
    rig_close(&r);
}

/* Refused, and the rig goes on from where it stood. */
static void expect_refused(const char *data, size_t bytes)
{
    struct corral_error err = {0};
    struct rig r, twin;
    check_ok(corral_file_write_atomic(path, data, bytes, 0644, false, &err));
    rig_open(&r, "walk/Same-v0", ENVS, 3);
    rig_open(&twin, "walk/Same-v0", ENVS, 3);
    check_status(read_snapshot(&r, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, path));
    fill_fragment(&r);
    fill_fragment(&twin);
    expect_equal_fragments(&r.builder.fragment, &twin.builder.fragment);
    rig_close(&r);
    rig_close(&twin);
}

static char *snapshot_bytes(size_t *bytes)
{
    struct corral_error err = {0};
    char *data = NULL;
    struct rig r;
    rig_open(&r, "walk/Same-v0", ENVS, 1);
    fill_fragment(&r);
    write_snapshot(&r);
    rig_close(&r);
    check_ok(corral_file_read(path, 1u << 20, &data, bytes, &err));
    return data;
}

static void refuses_a_truncated_file(void **state)
{
    (void)state;
    size_t bytes;
    char *data = snapshot_bytes(&bytes);
    for (size_t n = 0; n < bytes; n += n < 200 ? 1 : 13) {
        expect_refused(data, n);
    }
    char *longer = calloc(1, bytes + 8);
    assert_non_null(longer);
    memcpy(longer, data, bytes);
    expect_refused(longer, bytes + 8);
    free(longer);
    free(data);
}

static void refuses_a_flipped_bit_anywhere(void **state)
{
    (void)state;
    size_t bytes;
    char *data = snapshot_bytes(&bytes);
    for (size_t at = 0; at < bytes; at += at < 200 ? 1 : 11) {
        data[at] ^= 0x20;
        expect_refused(data, bytes);
        data[at] ^= 0x20;
    }
    free(data);
}

static void refuses_a_snapshot_of_another_size_or_environment(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct rig r;
    size_t bytes;
    free(snapshot_bytes(&bytes));
    rig_open(&r, "walk/Same-v0", ENVS + 1, 1);
    check_status(read_snapshot(&r, &err), CORRAL_PROTOCOL);
    rig_close(&r);
    rig_open(&r, "walk/Off-v0", ENVS, 1);
    assert_int_not_equal(read_snapshot(&r, &err), CORRAL_OK);
    rig_close(&r);
    assert_int_equal(unlink(path), 0);
    rig_open(&r, "walk/Same-v0", ENVS, 1);
    assert_int_not_equal(read_snapshot(&r, &err), CORRAL_OK);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_as_if_nothing_had_happened),
        cmocka_unit_test(an_environment_without_snapshots_writes_no_file),
        cmocka_unit_test(refuses_a_truncated_file),
        cmocka_unit_test(refuses_a_flipped_bit_anywhere),
        cmocka_unit_test(refuses_a_snapshot_of_another_size_or_environment),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
