/* The log behind a receiver's hook: what comes again after a death, and what may be trimmed. */
#include "base/rng.h"
#include "tests/check.h"
#include "transport/trajectory/record/prologue.h"
#include "transport/trajectory/wal/stream_log.h"
#include "transport/trajectory/wal/test_wal.h"
#include <string.h>

#define RECORDS 3000

static char folder[TEST_FOLDER_BYTES];

static int set_up(void **state)
{
    (void)state;
    test_folder(folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    test_remove(folder);
    return 0;
}

static struct corral_stream_log *open_log(void)
{
    struct corral_error err;
    struct corral_stream_log *l = NULL;
    struct corral_wal_options o = {
        .folder = folder, .run = TEST_RUN, .segment_bytes = 16384, .sync = CORRAL_WAL_SYNC_NEVER};
    check_ok(corral_stream_log_open(&l, &o, &err));
    return l;
}

static void append(struct corral_stream_log *l, uint32_t worker, uint64_t sequence, uint64_t expected)
{
    struct corral_error err;
    _Alignas(64) uint8_t record[128] = {0};
    struct corral_traj_prologue *p = (void *)record;
    *p = (struct corral_traj_prologue){.worker = worker, .epoch = 3, .sequence = sequence};
    struct corral_traj_item item = {
        .worker = worker, .epoch = 3, .sequence = sequence, .data = record, .bytes = sizeof record};
    const struct corral_traj_log *hook = corral_stream_log_hook(l);
    uint64_t position = 0, durable = 0;
    check_ok(hook->append(hook->ctx, &item, &position, &err));
    assert_int_equal(position, expected);
    check_ok(hook->durable(hook->ctx, &durable, &err));
    assert_int_equal(durable, expected);
}

static void what_was_logged_comes_again_in_order(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_stream_log *l = open_log();
    const struct corral_traj_log *hook = corral_stream_log_hook(l);
    struct corral_traj_item item;
    uint64_t position;
    check_status(hook->next(hook->ctx, &item, &position, &err), CORRAL_AGAIN);
    for (uint64_t i = 1; i <= 500; i++) {
        append(l, i % 3, i, i);
    }
    check_ok(corral_stream_log_close(l, &err));
    l = open_log();
    hook = corral_stream_log_hook(l);
    for (uint64_t i = 1; i <= 500; i++) {
        check_ok(hook->next(hook->ctx, &item, &position, &err));
        assert_int_equal(position, i);
        assert_int_equal(item.worker, i % 3);
        assert_int_equal(item.epoch, 3);
        assert_int_equal(item.sequence, i);
        assert_int_equal(item.bytes, 128);
    }
    check_status(hook->next(hook->ctx, &item, &position, &err), CORRAL_AGAIN);
    append(l, 0, 501, 501);
    check_status(hook->next(hook->ctx, &item, &position, &err),
                 CORRAL_AGAIN); /* only what was there at start */
    check_ok(corral_stream_log_close(l, &err));
}

static void the_mark_is_behind_everything_unfinished(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    static bool done[RECORDS + 2];
    static uint32_t order[RECORDS];
    corral_rng_seed(&rng, 9);
    memset(done, 0, sizeof done);
    struct corral_stream_log *l = open_log();
    const struct corral_traj_log *hook = corral_stream_log_hook(l);
    for (uint64_t i = 1; i <= RECORDS; i++) {
        append(l, 0, i, i);
    }
    corral_rng_permutation(&rng, order, RECORDS);
    uint64_t low = 0;
    for (uint32_t i = 0; i < RECORDS; i++) {
        hook->finished(hook->ctx, order[i] + 1);
        done[order[i] + 1] = true;
        while (done[low + 1]) {
            low++;
        }
        assert_int_equal(corral_stream_log_low(l), low);
    }
    assert_int_equal(low, RECORDS);
    for (uint64_t i = RECORDS + 1; i <= RECORDS + 20000; i++) { /* round the ring */
        append(l, 0, i, i);
        hook->finished(hook->ctx, i);
        assert_int_equal(corral_stream_log_low(l), i);
    }
    check_ok(corral_stream_log_close(l, &err));
}

static void nothing_unfinished_is_trimmed(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_stream_log *l = open_log();
    const struct corral_traj_log *hook = corral_stream_log_hook(l);
    for (uint64_t i = 1; i <= 1000; i++) {
        append(l, 0, i, i);
        if (i != 400) {
            hook->finished(hook->ctx, i);
        }
    }
    check_ok(corral_stream_log_trim(l, 1000, &err));
    check_ok(corral_stream_log_close(l, &err));
    l = open_log();
    hook = corral_stream_log_hook(l);
    struct corral_traj_item item;
    uint64_t first = 0, position = 0;
    while (hook->next(hook->ctx, &item, &position, &err) == CORRAL_OK) {
        first = first == 0 ? position : first;
    }
    assert_int_equal(position, 1000);
    assert_true(first <= 400);
    check_ok(corral_stream_log_close(l, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_logged_comes_again_in_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_mark_is_behind_everything_unfinished, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nothing_unfinished_is_trimmed, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
