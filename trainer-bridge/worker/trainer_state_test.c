#include "tests/check.h"

#include "trainer-bridge/learners/test_batch.h"
#include "trainer-bridge/worker/trainer_state.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A learner that has taken some steps, and a trainer's state beside it. */
struct saved {
    struct corral_policy_layout layout;
    struct corral_ppo *ppo;
    struct corral_trainer_state *state;
    uint8_t *block;
    uint64_t bytes;
};

static struct corral_ppo *learner(const struct corral_policy_layout *layout, uint32_t steps)
{
    struct corral_error err = {0};
    struct corral_ppo *ppo = NULL;
    struct corral_ppo_config config = test_config();
    check_ok(corral_ppo_create(&ppo, layout, &config, TEST_CELLS_MAX, NULL, &corral_allocator_heap, &err));
    struct test_batch *batch = calloc(1, sizeof *batch);
    assert_non_null(batch);
    for (uint32_t i = 0; i < steps; i++) {
        struct corral_ppo_stats stats;
        test_batch_fill(batch, layout, corral_ppo_weights(ppo),
                        (struct test_shape){.steps = 16, .rows = 8, .seed = i});
        const struct corral_fragment *fragment = &batch->fragment;
        check_ok(corral_ppo_step(ppo, &fragment, 1, 0, &stats, &err));
    }
    free(batch);
    return ppo;
}

static struct saved save(void)
{
    struct saved s = {.layout = test_layout(CORRAL_ACTION_DISCRETE)};
    s.ppo = learner(&s.layout, 2);
    s.state = calloc(1, sizeof *s.state);
    s.bytes = corral_trainer_state_bytes(s.ppo);
    s.block = aligned_alloc(64, (s.bytes + 63) / 64 * 64);
    assert_non_null(s.state);
    assert_non_null(s.block);
    s.state->counters = (struct corral_trainer_counters){
        .step = 2, .version = 9, .pushes = 3, .env_steps = 256, .episodes = 11};
    s.state->log_low = 41;
    for (uint64_t i = 0; i < CORRAL_REBASES_MAX + 3; i++) { /* the newest stay */
        corral_trainer_state_add_rebase(s.state, i, 100 + i);
    }
    s.state->cursor_count = 2;
    s.state->cursor[0] = (struct corral_traj_cursor){.worker = 0, .epoch = 65536, .sequence = 12};
    s.state->cursor[1] = (struct corral_traj_cursor){.worker = 5, .epoch = 65537, .sequence = 4};
    memset(s.block, 0xaa, s.bytes);
    corral_trainer_state_pack(s.state, s.ppo, s.block);
    return s;
}

static void saved_free(struct saved *s)
{
    corral_ppo_destroy(s->ppo);
    free(s->state);
    free(s->block);
}

static void a_packed_state_comes_back_whole(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct saved s = save();
    struct corral_ppo *fresh = learner(&s.layout, 0);
    struct corral_trainer_state *back = calloc(1, sizeof *back);
    assert_non_null(back);
    check_ok(corral_trainer_state_unpack(back, fresh, s.block, s.bytes, &err));
    assert_memory_equal(&back->counters, &s.state->counters, sizeof back->counters);
    assert_int_equal(back->cursor_count, 2);
    assert_int_equal(back->log_low, 41);
    assert_int_equal(back->rebase_count, CORRAL_REBASES_MAX);
    assert_int_equal(back->rebase[0].from, 3);
    assert_int_equal(back->rebase[CORRAL_REBASES_MAX - 1].to, 100 + CORRAL_REBASES_MAX + 2);
    assert_memory_equal(back->cursor, s.state->cursor, sizeof back->cursor);
    assert_int_equal(corral_ppo_step_count(fresh), 2);
    assert_memory_equal(corral_ppo_weights(fresh), corral_ppo_weights(s.ppo),
                        s.layout.floats * sizeof(float));
    uint8_t *again = malloc(s.bytes);
    assert_non_null(again);
    memset(again, 0x55, s.bytes);
    corral_trainer_state_pack(back, fresh, again);
    assert_memory_equal(again, s.block, s.bytes);
    free(again);
    free(back);
    corral_ppo_destroy(fresh);
    saved_free(&s);
}

static void expect_refused(struct saved *s, const void *block, uint64_t bytes, struct corral_ppo *into)
{
    struct corral_error err = {0};
    static struct corral_trainer_state untouched, back;
    memset(&back, 0x11, sizeof back);
    memset(&untouched, 0x11, sizeof untouched);
    enum corral_status status = corral_trainer_state_unpack(&back, into, block, bytes, &err);
    assert_true(status == CORRAL_PROTOCOL || status == CORRAL_INVALID);
    assert_true(err.text[0] != 0);
    assert_memory_equal(&back, &untouched, sizeof back);
    assert_memory_equal(corral_ppo_weights(into), corral_ppo_weights(s->ppo),
                        s->layout.floats * sizeof(float));
}

static void refuses_another_size(void **state)
{
    (void)state;
    struct saved s = save();
    const uint64_t sizes[] = {0, 1, 8, 64, s.bytes / 2, s.bytes - 1, s.bytes + 1};
    for (size_t i = 0; i < CORRAL_COUNT_OF(sizes); i++) {
        /* A copy of exactly that size, so that reading past it is seen. */
        uint8_t *copy = calloc(1, sizes[i] ? sizes[i] : 1);
        assert_non_null(copy);
        memcpy(copy, s.block, CORRAL_MIN(sizes[i], s.bytes));
        expect_refused(&s, copy, sizes[i], s.ppo);
        free(copy);
    }
    saved_free(&s);
}

static void refuses_the_state_of_another_learner(void **state)
{
    (void)state;
    struct saved s = save();
    struct corral_policy_layout other = test_layout(CORRAL_ACTION_CONTINUOUS);
    struct corral_ppo *ppo = learner(&other, 0);
    struct corral_error err = {0};
    static struct corral_trainer_state back;
    assert_int_not_equal(corral_trainer_state_unpack(&back, ppo, s.block, s.bytes, &err), CORRAL_OK);
    corral_ppo_destroy(ppo);
    saved_free(&s);
}

static void refuses_a_flipped_bit_anywhere(void **state)
{
    (void)state;
    struct saved s = save();
    uint64_t head = sizeof *s.state + 64; /* every byte of the head, then a sample of the learner's part */
    for (uint64_t at = 0; at < s.bytes; at += at < head ? 1 : 997) {
        s.block[at] ^= 0x10;
        expect_refused(&s, s.block, s.bytes, s.ppo);
        s.block[at] ^= 0x10;
    }
    saved_free(&s);
}

static void the_mark_can_be_read_from_a_file_alone(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct saved s = save();
    char path[] = "/tmp/corral-state-XXXXXX";
    int fd = mkstemp(path);
    uint64_t low = 0;
    assert_int_equal(write(fd, s.block, s.bytes), s.bytes);
    check_ok(corral_trainer_state_log_low(path, &low, &err));
    assert_int_equal(low, 41);
    s.block[72] ^= 1;
    assert_int_equal(pwrite(fd, s.block, s.bytes, 0), s.bytes);
    check_status(corral_trainer_state_log_low(path, &low, &err), CORRAL_PROTOCOL);
    assert_int_equal(ftruncate(fd, 100), 0);
    check_status(corral_trainer_state_log_low(path, &low, &err), CORRAL_PROTOCOL);
    close(fd);
    unlink(path);
    check_status(corral_trainer_state_log_low(path, &low, &err), CORRAL_IO);
    saved_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_packed_state_comes_back_whole),
        cmocka_unit_test(the_mark_can_be_read_from_a_file_alone),
        cmocka_unit_test(refuses_another_size),
        cmocka_unit_test(refuses_the_state_of_another_learner),
        cmocka_unit_test(refuses_a_flipped_bit_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
