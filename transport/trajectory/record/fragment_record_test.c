/* Fragments as records and back, and records that claim to be fragments. */
#include "tests/check.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/record/test_records.h"
#include "transport/trajectory/test_support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct corral_error err;
static struct corral_traj_view view;

static void a_fragment_comes_back_from_its_record(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct test_fragment t;
        struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
        struct corral_traj_record r;
        struct corral_fragment back;
        uint64_t bytes;
        test_fragment_make(&t, seed, 12);
        struct corral_fragment *f = &t.fragment;
        f->run = seed, f->worker = 3, f->epoch = 2, f->sequence = seed + 1;
        check_ok(corral_fragment_record(f, &r, tensors, &err));
        r.env = "CartPole-v1";
        void *memory = test_record_encode(&r, &bytes);
        assert_true(bytes <= corral_fragment_bytes(f));
        check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
        check_ok(corral_fragment_of(&view.record, &back, &err));
        assert_true(test_fragment_equal(f, &back));
        assert_true(back.run == f->run && back.worker == 3 && back.epoch == 2 &&
                    back.sequence == f->sequence);
        assert_int_equal(view.record.tokens, (uint64_t)f->steps * f->rows);
        free(memory);
        test_fragment_free(&t);
    }
}

/* The header of a fragment is longest with the longest environment name and the largest numbers. */
static void a_record_never_exceeds_what_credit_counts(void **state)
{
    (void)state;
    char env[CORRAL_TRAJ_TEXT_MAX + 1];
    memset(env, 'e', CORRAL_TRAJ_TEXT_MAX);
    env[CORRAL_TRAJ_TEXT_MAX] = 0;
    for (uint32_t steps = 60000; steps < 60064; steps += 9) {
        struct test_fragment t = {.fragment = {.steps = steps,
                                               .rows = 1,
                                               .obs_dim = 1,
                                               .action_components = 1,
                                               .mask_bytes = 1,
                                               .boundary_count = steps,
                                               .episode_count = steps}};
        struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
        struct corral_traj_record r;
        uint64_t bytes, sizes[CORRAL_FRAGMENT_FRAMES];
        check_ok(corral_fragment_sizes(&t.fragment, sizes, &err));
        for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
            t.tensors[i] = calloc(1, sizes[i]);
        }
        for (uint32_t i = 0; i < steps; i++) {
            ((uint32_t *)t.tensors[10])[i] = i;
            ((uint64_t *)t.tensors[7])[i] = UINT64_MAX;
        }
        struct corral_fragment *f = &t.fragment;
        f->obs = t.tensors[0], f->action = t.tensors[1], f->log_prob = t.tensors[2], f->reward = t.tensors[3];
        f->terminated = t.tensors[4], f->truncated = t.tensors[5], f->valid = t.tensors[6],
        f->version = t.tensors[7];
        f->mask = t.tensors[8], f->last_obs = t.tensors[9], f->boundary_at = t.tensors[10];
        f->boundary_obs = t.tensors[11], f->episode = t.tensors[12];
        check_ok(corral_fragment_record(f, &r, tensors, &err));
        r.env = env;
        check_ok(corral_traj_record_bytes(&r, &bytes, &err));
        assert_true(bytes <= corral_fragment_bytes(f));
        test_fragment_free(&t);
    }
}

/* ---- records that are no fragments ---- */

struct rig {
    struct test_fragment t;
    struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES + 1];
    struct corral_traj_record r;
};

/* A fragment with every one of the 13 tensors. */
static void rig_open(struct rig *g)
{
    uint64_t seed = 0;
    for (;; seed++) {
        test_fragment_make(&g->t, seed, 8);
        const struct corral_fragment *f = &g->t.fragment;
        if (f->boundary_count > 2 && f->episode_count > 0 && f->mask_bytes > 0 && f->steps > 2 &&
            f->rows > 1 && f->steps != f->rows && !f->action_continuous) {
            break;
        }
        test_fragment_free(&g->t);
    }
    check_ok(corral_fragment_record(&g->t.fragment, &g->r, g->tensors, &err));
    assert_int_equal(g->r.tensor_count, CORRAL_FRAGMENT_FRAMES);
}

static void refuse(const struct corral_traj_record *r, const char *named)
{
    struct corral_fragment f = {.steps = 77};
    check_status(corral_fragment_of(r, &f, &err), CORRAL_PROTOCOL);
    assert_int_equal(err.status, CORRAL_PROTOCOL);
    assert_int_equal(f.steps, 77); /* untouched */
    if (strstr(err.text, named) == NULL) {
        fail_msg("`%s` does not name `%s`", err.text, named);
    }
}

static void every_tensor_must_fit_the_others(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    struct corral_traj_tensor good[CORRAL_FRAGMENT_FRAMES];
    memcpy(good, g.tensors, sizeof good);
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        g.tensors[i].dtype = CORRAL_TRAJ_F64;
        refuse(&g.r, good[i].name);
        g.tensors[i] = good[i];
        g.tensors[i].dims++;
        g.tensors[i].shape[good[i].dims] = 1;
        refuse(&g.r, good[i].name);
        g.tensors[i] = good[i];
        for (uint32_t d = 0; d < good[i].dims; d++) {
            g.tensors[i].shape[d]++;
            struct corral_fragment f;
            /* Extents that no other tensor shares may be anything: the data is what they say. */
            const bool alone = (i == 1 || i == 8) ? d == 2 : i == 12 && d == 0;
            check_status(corral_fragment_of(&g.r, &f, &err), alone ? CORRAL_OK : CORRAL_PROTOCOL);
            g.tensors[i] = good[i];
        }
    }
    test_fragment_free(&g.t);
}

static void every_required_tensor_is_missed(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        const struct corral_traj_tensor kept = g.tensors[i];
        g.tensors[i].name = "something_else";
        struct corral_fragment f;
        const enum corral_status status = corral_fragment_of(&g.r, &f, &err);
        const bool may_go = i == 8 || i == 12; /* mask, episode */
        check_status(status, may_go ? CORRAL_OK : CORRAL_PROTOCOL);
        g.tensors[i] = kept;
    }
    g.tensors[10].name = g.tensors[11].name = "other";
    g.tensors[11].name = "another";
    struct corral_fragment f;
    check_ok(corral_fragment_of(&g.r, &f, &err));
    assert_int_equal(f.boundary_count, 0);
    assert_null(f.boundary_at);
    g.tensors[11].name = "boundary_obs"; /* without boundary_at */
    refuse(&g.r, "boundary_obs");
    test_fragment_free(&g.t);
}

static void indices_and_versions_are_looked_at(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    uint32_t *boundary = g.t.tensors[10];
    boundary[1] = boundary[0];
    refuse(&g.r, "ascend");
    boundary[1] = 1;
    boundary[g.t.fragment.boundary_count - 1] = g.t.fragment.steps * g.t.fragment.rows;
    refuse(&g.r, "ascend");
    boundary[g.t.fragment.boundary_count - 1] = g.t.fragment.boundary_count - 1;
    g.r.version_max++;
    refuse(&g.r, "versions");
    g.r.version_max--;
    g.r.tokens++;
    refuse(&g.r, "tokens");
    g.r.tokens--;
    g.r.kind = CORRAL_TRAJ_EPISODE;
    refuse(&g.r, "kind 0");
    g.r.kind = CORRAL_TRAJ_FRAGMENT;
    struct corral_fragment f;
    check_ok(corral_fragment_of(&g.r, &f, &err));
    test_fragment_free(&g.t);
}

static void sizes_are_limited(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    struct corral_traj_tensor good[CORRAL_FRAGMENT_FRAMES];
    memcpy(good, g.tensors, sizeof good);
    static const uint64_t extents[] = {65537, UINT32_MAX, UINT64_C(1) << 32, UINT64_MAX};
    for (uint32_t d = 0; d < 3; d++) {
        for (uint32_t i = 0; i < 4; i++) {
            g.tensors[0].shape[d] = extents[i];
            refuse(&g.r, "fragment");
            g.tensors[0] = good[0];
        }
    }
    g.tensors[10].shape[0] = g.tensors[11].shape[0] = UINT32_MAX; /* more boundaries than cells */
    refuse(&g.r, "boundaries");
    test_fragment_free(&g.t);
}

static void order_and_further_tensors_do_not_matter(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    for (uint32_t i = 0; i < CORRAL_FRAGMENT_FRAMES / 2; i++) {
        const struct corral_traj_tensor t = g.tensors[i];
        g.tensors[i] = g.tensors[CORRAL_FRAGMENT_FRAMES - 1 - i];
        g.tensors[CORRAL_FRAGMENT_FRAMES - 1 - i] = t;
    }
    g.tensors[g.r.tensor_count++] = (struct corral_traj_tensor){
        .name = "value", .dtype = CORRAL_TRAJ_F32, .dims = 2, .shape = {1, 1}, .data = "1234"};
    struct corral_fragment f;
    uint64_t bytes;
    void *memory = test_record_encode(&g.r, &bytes);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    check_ok(corral_fragment_of(&view.record, &f, &err));
    assert_true(test_fragment_equal(&g.t.fragment, &f));
    free(memory);
    test_fragment_free(&g.t);
}

static void a_writer_without_a_tensor_is_told(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g);
    g.t.fragment.reward = NULL;
    check_status(corral_fragment_record(&g.t.fragment, &g.r, g.tensors, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "reward"));
    g.t.fragment.reward = g.t.tensors[3];
    ((uint32_t *)g.t.tensors[10])[0] = UINT32_MAX;
    check_status(corral_fragment_record(&g.t.fragment, &g.r, g.tensors, &err), CORRAL_INVALID);
    test_fragment_free(&g.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fragment_comes_back_from_its_record),
        cmocka_unit_test(a_record_never_exceeds_what_credit_counts),
        cmocka_unit_test(every_tensor_must_fit_the_others),
        cmocka_unit_test(every_required_tensor_is_missed),
        cmocka_unit_test(indices_and_versions_are_looked_at),
        cmocka_unit_test(sizes_are_limited),
        cmocka_unit_test(order_and_further_tensors_do_not_matter),
        cmocka_unit_test(a_writer_without_a_tensor_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
