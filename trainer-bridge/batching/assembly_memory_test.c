/* Memory that runs out at every single allocation in turn: no record is lost, none is used twice, and no saved position covers one that was not used. Linked with --wrap, so that every allocation of the library is seen. */
#include "tests/check.h"

#include "trainer-bridge/batching/assembly.h"
#include <stdlib.h>
#include <string.h>

#define RECORDS 80u
#define RUN 9

static uint64_t allowed = UINT64_MAX; /* allocations until one fails */
static bool failed;

static bool may_allocate(void)
{
    if (allowed == 0) {
        allowed = UINT64_MAX;
        failed = true;
        return false;
    }
    allowed -= allowed != UINT64_MAX;
    return true;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_reallocarray(void *p, size_t count, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_reallocarray(void *p, size_t count, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return may_allocate() ? __real_malloc(bytes) : NULL;
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return may_allocate() ? __real_calloc(count, bytes) : NULL;
}

void *__wrap_reallocarray(void *p, size_t count, size_t bytes)
{
    return may_allocate() ? __real_reallocarray(p, count, bytes) : NULL;
}

struct ledger {
    uint8_t used[RECORDS + 1], finished[RECORDS + 1];
};

static void on_finish(void *ctx, const void *item)
{
    struct ledger *l = ctx;
    l->finished[(uintptr_t)item]++;
}

static enum corral_status add(struct corral_assembly *a, uint32_t n, struct corral_error *err)
{
    static const uint8_t payload[64];
    const uint32_t mixed =
        (n - 1) / 16 * 16 + (n - 1) * 7 % 16; /* completions of four groups at a time, shuffled */
    const struct corral_trainer_record r = {.data = payload,
                                            .bytes = sizeof payload,
                                            .epoch = 1,
                                            .sequence = n,
                                            .tokens = n,
                                            .group = mixed / 4,
                                            .group_index = mixed % 4,
                                            .group_size = 4,
                                            .score = mixed % 4};
    return corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, (const void *)(uintptr_t)n, 0,
                               err); /* NOLINT */
}

static void use(struct corral_assembly *a, const struct corral_trainer_batch *b, struct ledger *l)
{
    struct corral_error err;
    uint8_t saved[4096];
    uint64_t bytes = sizeof saved;
    for (uint32_t i = 0; i < b->count; i++) {
        l->used[b->records[i].sequence]++;
    }
    if (corral_assembly_save(a, b, RUN, saved, &bytes, &err) != CORRAL_OK) {
        check_ok(corral_assembly_save(a, b, RUN, saved, &bytes, &err));
    }
    uint64_t covered; /* cursor of the only worker */
    memcpy(&covered, saved + 56, sizeof covered);
    for (uint64_t n = 1; n <= covered; n++) {
        assert_int_equal(l->used[n], 1);
    }
    corral_assembly_done(a, b, 1);
}

/* True when allocation number `nth` was asked for, and failed. */
static bool run(struct corral_trainer_options o, uint64_t nth)
{
    struct corral_error err;
    struct corral_assembly *a;
    struct ledger l = {.used = {0}};
    const struct corral_trainer_batch *b;
    o.size = sizeof o;
    check_ok(corral_assembly_check(&o, &err));
    check_ok(corral_assembly_create(&a, &o, on_finish, &l, &err));
    failed = false;
    allowed = nth;
    for (uint32_t n = 1; n <= RECORDS;) {
        enum corral_status status = add(a, n, &err);
        assert_true(status == CORRAL_OK || status == CORRAL_NOMEM);
        n += status == CORRAL_OK; /* it failed: nothing has happened, and it is added again */
        if (n % 13 == 0 || n > RECORDS) {
            while ((status = corral_assembly_next(a, 0, &b, &err)) != CORRAL_AGAIN) {
                assert_true(status == CORRAL_OK || status == CORRAL_NOMEM);
                if (status == CORRAL_OK) {
                    use(a, b, &l);
                }
            }
        }
    }
    allowed = UINT64_MAX;
    corral_assembly_destroy(a);
    for (uint32_t n = 1; n <= RECORDS; n++) {
        assert_int_equal(l.used[n], 1);
        assert_int_equal(l.finished[n], 1);
    }
    return failed;
}

static void all_are_used_once(struct corral_trainer_options o)
{
    uint64_t nth = 0;
    while (run(o, nth)) {
        nth++;
    }
    assert_true(nth > 10);
}

static void a_stream_loses_nothing_when_memory_runs_out(void **state)
{
    (void)state;
    all_are_used_once((struct corral_trainer_options){.batch = 5});
}

static void fragments_are_not_lost_when_memory_runs_out(void **state)
{
    (void)state;
    all_are_used_once(
        (struct corral_trainer_options){.mode = CORRAL_TRAINER_FRAGMENTS, .batch = 20, .workers = 1});
}

static void groups_are_not_lost_when_memory_runs_out(void **state)
{
    (void)state;
    for (uint32_t ordered = 0; ordered < 2; ordered++) { /* the window is too small: some are held back */
        all_are_used_once((struct corral_trainer_options){.mode = CORRAL_TRAINER_GROUPS,
                                                          .batch = 2,
                                                          .group_size = 4,
                                                          .groups_max = 2,
                                                          .group_ordered = ordered});
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_loses_nothing_when_memory_runs_out),
        cmocka_unit_test(fragments_are_not_lost_when_memory_runs_out),
        cmocka_unit_test(groups_are_not_lost_when_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
