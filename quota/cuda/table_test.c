#include "quota/cuda/table.h"
#include "tests/check.h"
#include <pthread.h>
#include <string.h>

static struct corral_cuda_record record(uint32_t space, uint64_t name, uint64_t tie)
{
    return (struct corral_cuda_record){.name = name, .space = space, .tie = tie, .aux = ~name};
}

static int clean(void **state)
{
    (void)state;
    corral_cuda_table_forget_all();
    return 0;
}

static void keeps_spaces_apart(void **state)
{
    (void)state;
    struct corral_cuda_record out, old, a = record(0, 7, 0), b = record(1, 7, 5);
    bool had;
    assert_true(corral_cuda_table_put(&a, &old, &had));
    assert_true(corral_cuda_table_put(&b, &old, &had));
    assert_false(had);
    assert_true(corral_cuda_table_take(0, 7, &out));
    assert_false(corral_cuda_table_take(0, 7, &out));
    assert_true(corral_cuda_table_get(1, 7, &out));
    assert_int_equal(out.tie, 5);
    assert_int_equal(out.space, 1);
}

static void replacing_gives_back_what_was_there(void **state)
{
    (void)state;
    struct corral_cuda_record old, a = record(3, 9, 1), b = record(3, 9, 2);
    bool had;
    assert_true(corral_cuda_table_put(&a, &old, &had));
    assert_true(corral_cuda_table_put(&b, &old, &had));
    assert_true(had);
    assert_int_equal(old.tie, 1);
    assert_int_equal(corral_cuda_table_count(), 1);
}

/* Against a plain array as the model: every name is found exactly while it is in. */
static void finds_everything_that_is_in_and_nothing_else(void **state)
{
    (void)state;
    enum { NAMES = 20000 };
    static bool in[NAMES];
    memset(in, 0, sizeof(in));
    uint64_t random = 88172645463325252u, count = 0;
    for (int i = 0; i < 400000; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint64_t n = (random >> 20) % NAMES;
        struct corral_cuda_record out, old, r = record(2, n << 21, n);
        bool had;
        if (random & 1) {
            assert_true(corral_cuda_table_put(&r, &old, &had));
            assert_int_equal(had, in[n]);
            count += !in[n];
            in[n] = true;
        } else {
            assert_int_equal(corral_cuda_table_take(2, n << 21, &out), in[n]);
            assert_true(!in[n] || out.aux == ~(n << 21));
            count -= in[n];
            in[n] = false;
        }
    }
    assert_int_equal(corral_cuda_table_count(), count);
    for (uint64_t n = 0; n < NAMES; n++) {
        struct corral_cuda_record out;
        assert_int_equal(corral_cuda_table_get(2, n << 21, &out), in[n]);
    }
}

static void takes_all_that_are_tied(void **state)
{
    (void)state;
    struct corral_cuda_record out, old;
    bool had;
    for (uint64_t i = 0; i < 5000; i++) {
        struct corral_cuda_record r = record(0, i * 512, i % 3);
        assert_true(corral_cuda_table_put(&r, &old, &had));
    }
    uint32_t cursor = 0, count = 0;
    while (corral_cuda_table_take_tied(0, 1, UINT64_MAX, &cursor, &out)) {
        assert_int_equal(out.tie, 1);
        count++;
    }
    assert_int_equal(count, 1667);
    assert_int_equal(corral_cuda_table_count(), 5000 - 1667);
}

/* A context that is made where one was a moment ago has its address, and its memory is not the old one's. */
static void leaves_what_was_put_after_the_epoch_ended(void **state)
{
    (void)state;
    struct corral_cuda_record out, old;
    bool had;
    corral_cuda_table_forget_all();
    struct corral_cuda_record before = record(0, 512, 7), after = record(0, 1024, 7);
    assert_true(corral_cuda_table_put(&before, &old, &had));
    uint64_t epoch = corral_cuda_table_end_epoch();
    assert_true(corral_cuda_table_put(&after, &old, &had));
    uint32_t cursor = 0;
    assert_true(corral_cuda_table_take_tied(0, 7, epoch, &cursor, &out));
    assert_int_equal(out.name, 512);
    assert_false(corral_cuda_table_take_tied(0, 7, epoch, &cursor, &out));
    assert_true(corral_cuda_table_get(0, 1024, &out));
    epoch = corral_cuda_table_end_epoch();
    cursor = 0;
    assert_true(corral_cuda_table_take_tied(0, 7, epoch, &cursor, &out));
    assert_int_equal(corral_cuda_table_count(), 0);
}

static void *churn(void *argument)
{
    uint64_t base = (uint64_t)(uintptr_t)argument << 40;
    struct corral_cuda_record out, old;
    bool had;
    for (uint64_t i = 0; i < 20000; i++) {
        struct corral_cuda_record r = record(0, base + i * 64, 0);
        if (!corral_cuda_table_put(&r, &old, &had) || had) {
            return argument;
        }
        if (i % 4 != 0 && (!corral_cuda_table_take(0, base + i * 64, &out) || out.aux != ~out.name)) {
            return argument;
        }
    }
    return NULL;
}

static void threads_do_not_lose_records(void **state)
{
    (void)state;
    pthread_t thread[4];
    for (uintptr_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, churn, (void *)(i + 1)), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(thread[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(corral_cuda_table_count(), 4 * 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(keeps_spaces_apart, clean),
        cmocka_unit_test_setup(replacing_gives_back_what_was_there, clean),
        cmocka_unit_test_setup(finds_everything_that_is_in_and_nothing_else, clean),
        cmocka_unit_test_setup(takes_all_that_are_tied, clean),
        cmocka_unit_test_setup(leaves_what_was_put_after_the_epoch_ended, clean),
        cmocka_unit_test_setup(threads_do_not_lose_records, clean),
    };
    return cmocka_run_group_tests(tests, NULL, clean);
}
