/* What every implementation promises, run over all of them. */
#include "transport/collective/test_ranks.h"

#include "base/clock.h"
#include "base/rng.h"
#include "tests/check.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LONG_MS 60000
#define SHORT_MS 300

/* Counts around the sizes of vectors, staging buffers (4 KiB here) and pieces (256 KiB). */
static const uint32_t counts[] = {0, 1, 7, 8, 1023, 1024, 1025, 2750, 70000, 131073};
#define COUNT_MAX 131073

static float part_f32(uint32_t rank, uint32_t i)
{
    uint64_t state = (uint64_t)rank << 32 | i;
    return (float)((double)(int64_t)corral_splitmix64(&state) * 0x1p-60);
}

static double part_f64(uint32_t rank, uint32_t i)
{
    uint64_t state = (uint64_t)rank << 32 | i;
    return (double)(int64_t)corral_splitmix64(&state) * 0x1p-60;
}

static int check_sums_f32(struct corral_collective *c, float *data, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        data[i] = part_f32(c->rank, i);
    }
    EXPECT(c->ops->sum_f32(c, data, count, NULL) == CORRAL_OK);
    for (uint32_t i = 0; i < count; i++) {
        float sum = part_f32(0, i);
        for (uint32_t r = 1; r < c->ranks; r++) {
            sum += part_f32(r, i);
        }
        EXPECT(memcmp(&sum, &data[i], sizeof sum) == 0);
    }
    return 0;
}

static int check_sums_f64(struct corral_collective *c, double *data, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        data[i] = part_f64(c->rank, i);
    }
    EXPECT(c->ops->sum_f64(c, data, count, NULL) == CORRAL_OK);
    for (uint32_t i = 0; i < count; i++) {
        double sum = part_f64(0, i);
        for (uint32_t r = 1; r < c->ranks; r++) {
            sum += part_f64(r, i);
        }
        EXPECT(memcmp(&sum, &data[i], sizeof sum) == 0);
    }
    return 0;
}

static int sums(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    CORRAL_AUTO_FREE double *data = malloc(COUNT_MAX * sizeof *data);
    EXPECT(data);
    for (size_t k = 0; k < CORRAL_COUNT_OF(counts); k++) {
        int line = check_sums_f32(c, (float *)data, counts[k]);
        line = line ? line : check_sums_f64(c, data, counts[k]);
        if (line) {
            return line;
        }
    }
    return 0;
}

static int gathers(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    CORRAL_AUTO_FREE unsigned char *mine = malloc(COUNT_MAX), *out = malloc((size_t)COUNT_MAX * c->ranks);
    EXPECT(mine && out);
    for (size_t k = 0; k < CORRAL_COUNT_OF(counts); k++) {
        memset(mine, (int)(c->rank + k + 1), counts[k]);
        EXPECT(c->ops->gather(c, mine, counts[k], out, NULL) == CORRAL_OK);
        for (size_t i = 0; i < (size_t)counts[k] * c->ranks; i++) {
            EXPECT(out[i] == (unsigned char)(i / counts[k] + k + 1));
        }
    }
    return 0;
}

static int broadcasts(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    CORRAL_AUTO_FREE uint32_t *data = malloc(COUNT_MAX * sizeof *data);
    EXPECT(data);
    for (size_t k = 0; k < CORRAL_COUNT_OF(counts); k++) {
        for (uint32_t i = 0; i < counts[k]; i++) {
            data[i] = c->rank == 0 ? i * 7 + (uint32_t)k : 0;
        }
        EXPECT(c->ops->broadcast(c, data, counts[k] * sizeof *data, NULL) == CORRAL_OK);
        for (uint32_t i = 0; i < counts[k]; i++) {
            EXPECT(data[i] == i * 7 + (uint32_t)k);
        }
    }
    return 0;
}

static int barriers(struct corral_collective *c, struct test_shared *shared)
{
    for (uint32_t round = 1; round <= 100; round++) {
        atomic_fetch_add(&shared->arrived, 1);
        EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
        EXPECT(atomic_load(&shared->arrived) >= round * c->ranks); /* nobody passes before all have come */
        EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    }
    return 0;
}

/* The same random sequence of calls on every rank; what changes hands tells a missed or repeated one. */
static int mixtures(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    struct corral_rng rng;
    corral_rng_seed(&rng, 11);
    CORRAL_AUTO_FREE float *data = malloc(6000 * sizeof *data);
    EXPECT(data);
    uint32_t all[CORRAL_COLLECTIVE_RANKS_MAX];
    for (uint32_t k = 0; k < 400; k++) {
        uint32_t count = (uint32_t)corral_rng_below(&rng, 6000), mine = k * 1000 + c->rank;
        switch (corral_rng_below(&rng, 4)) {
        case 0: {
            int line = check_sums_f32(c, data, count);
            if (line) {
                return line;
            }
            break;
        }
        case 1:
            EXPECT(c->ops->gather(c, &mine, sizeof mine, all, NULL) == CORRAL_OK);
            for (uint32_t r = 0; r < c->ranks; r++) {
                EXPECT(all[r] == k * 1000 + r);
            }
            break;
        case 2:
            EXPECT(c->ops->broadcast(c, &mine, sizeof mine, NULL) == CORRAL_OK);
            EXPECT(mine == k * 1000);
            break;
        default:
            EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
        }
    }
    return 0;
}

static bool names_rank(const struct corral_error *err, uint32_t rank)
{
    char text[32];
    snprintf(text, sizeof text, "rank %u ", rank);
    const char *end = err->text + strlen(err->text);
    size_t length = strlen(text);
    return strstr(err->text, text) ||
           ((size_t)(end - err->text) >= length - 1 && strncmp(end - (length - 1), text, length - 1) == 0);
}

static int expect_broken(struct corral_collective *c)
{
    float x = 1;
    EXPECT(c->ops->sum_f32(c, &x, 1, NULL) == CORRAL_STATE);
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_STATE);
    return 0;
}

/* The last rank calls something else. */
static int mismatches_in_call(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    struct corral_error err = {0};
    float data[100] = {0}, all[100 * 8];
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    bool odd = c->rank == c->ranks - 1;
    enum corral_status status =
        odd ? c->ops->gather(c, data, 100, all, &err) : c->ops->sum_f32(c, data, 100, &err);
    EXPECT(status == CORRAL_PROTOCOL);
    EXPECT(odd || names_rank(&err, c->ranks - 1));
    return expect_broken(c);
}

static int mismatches_in_length(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    struct corral_error err = {0};
    float data[101] = {0};
    bool odd = c->rank == c->ranks - 1;
    EXPECT(c->ops->sum_f32(c, data, odd ? 101 : 100, &err) == CORRAL_PROTOCOL);
    EXPECT(odd || names_rank(&err, c->ranks - 1));
    return expect_broken(c);
}

/* The last rank joins, takes part once, and then does not come until the others have given up. */
static int never_comes(struct corral_collective *c, struct test_shared *shared)
{
    struct corral_error err = {0};
    float data[100] = {0};
    EXPECT(c->ops->sum_f32(c, data, 100, NULL) == CORRAL_OK);
    if (c->rank == c->ranks - 1) {
        while (atomic_load(&shared->finished) < c->ranks - 1) {
            sched_yield();
        }
        EXPECT(c->ops->sum_f32(c, data, 100, NULL) != CORRAL_OK);
        return expect_broken(c);
    }
    enum corral_status status = c->ops->sum_f32(c, data, 100, &err);
    bool named = names_rank(&err, c->ranks - 1);
    int line = expect_broken(c);
    atomic_fetch_add(&shared->finished, 1);
    EXPECT(status == CORRAL_TIMEOUT);
    EXPECT(named);
    return line;
}

static int expect_peer_gone(struct corral_collective *c)
{
    struct corral_error err = {0};
    CORRAL_AUTO_FREE float *data = calloc(100000, sizeof *data);
    EXPECT(c->ops->sum_f32(c, data, 100000, &err) == CORRAL_PEER);
    EXPECT(names_rank(&err, c->ranks - 1));
    return expect_broken(c);
}

static int leaves(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    return c->rank == c->ranks - 1 ? 0 : expect_peer_gone(c);
}

static int dies(struct corral_collective *c, struct test_shared *shared)
{
    (void)shared;
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    if (c->rank == c->ranks - 1) {
        kill(getpid(), SIGKILL);
    }
    return expect_peer_gone(c);
}

/* ---- waiting with something else to do ---- */

#define LATE_CALLS 25 /* 25 × 4 ms: the late rank does 100 ms of other work */
#define PROGRESS_MS_MIN 4

struct beat {
    struct corral_collective *c;
    struct test_shared *shared;
    uint32_t calls, depth, failed_line;
};

static int beat_once(struct beat *b)
{
    float x = 1;
    EXPECT(b->depth == 1); /* never from within itself */
    EXPECT(b->c->ops->sum_f32(b->c, &x, 1, NULL) == CORRAL_STATE);
    EXPECT(b->c->ops->barrier(b->c, NULL) == CORRAL_STATE);
    EXPECT(x == 1);
    return 0;
}

static void on_progress(void *ctx)
{
    struct beat *b = ctx;
    b->depth++;
    int line = beat_once(b);
    b->failed_line = line ? (uint32_t)line : b->failed_line;
    b->depth--;
    if (++b->calls == LATE_CALLS) {
        atomic_fetch_add(&b->shared->arrived, 1);
    }
}

static int check_beats(const struct beat *b, uint64_t took_ns)
{
    EXPECT(b->failed_line == 0);
    if (b->c->rank == 0) {
        EXPECT(b->calls == 0); /* everyone was there when it came: it has not waited */
        return 0;
    }
    EXPECT(b->calls >= LATE_CALLS);
    EXPECT(b->calls <= took_ns / (PROGRESS_MS_MIN * CORRAL_NS_PER_MS));
    return 0;
}

/* Rank 0 does not come before every other rank has been called back often enough. */
static int comes_late(struct corral_collective *c, struct test_shared *shared)
{
    struct beat b = {.c = c, .shared = shared};
    float x = (float)c->rank + 1;
    corral_collective_set_progress(c, on_progress, &b);
    while (c->rank == 0 && atomic_load(&shared->arrived) < c->ranks - 1) {
        sched_yield();
    }
    EXPECT(b.calls == 0); /* nothing has waited yet */
    uint64_t start_ns = corral_now_ns(&corral_clock_monotonic);
    EXPECT(c->ops->sum_f32(c, &x, 1, NULL) == CORRAL_OK);
    uint64_t took_ns = corral_now_ns(&corral_clock_monotonic) - start_ns;
    EXPECT(x == (float)(c->ranks * (c->ranks + 1)) / 2);
    int line = check_beats(&b, took_ns);
    corral_collective_set_progress(c, NULL, NULL);
    EXPECT(line == 0);
    EXPECT(c->ops->barrier(c, NULL) ==
           CORRAL_OK); /* what the function tried has not put anyone out of step */
    return 0;
}

static void on_progress_spend_time(void *ctx)
{
    struct beat *b = ctx;
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + (2 * SHORT_MS + 100) * CORRAL_NS_PER_MS;
    if (b->calls++ > 0) {
        return;
    }
    atomic_fetch_add(&b->shared->arrived, 1); /* now the late rank may come */
    while (corral_now_ns(&corral_clock_monotonic) < until) {
        sched_yield();
    }
}

/* The function takes longer than the deadline, and meanwhile rank 0 comes: that is not a time-out. */
static int comes_during_a_long_callback(struct corral_collective *c, struct test_shared *shared)
{
    struct beat b = {.c = c, .shared = shared};
    corral_collective_set_progress(c, c->rank == 1 ? on_progress_spend_time : NULL, &b);
    while (c->rank == 0 && atomic_load(&shared->arrived) < 1) {
        sched_yield();
    }
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    return 0;
}

static int dies_while_others_beat(struct corral_collective *c, struct test_shared *shared)
{
    struct beat b = {.c = c, .shared = shared};
    EXPECT(c->ops->barrier(c, NULL) == CORRAL_OK);
    corral_collective_set_progress(c, on_progress, &b);
    if (c->rank == c->ranks - 1) {
        while (atomic_load(&shared->arrived) < c->ranks - 1) {
            sched_yield();
        }
        kill(getpid(), SIGKILL);
    }
    return expect_peer_gone(c);
}

static const struct test_lane lanes[] = {
    {TEST_SELF, false, 1, LONG_MS}, {TEST_SHM, false, 1, LONG_MS}, {TEST_SHM, false, 2, LONG_MS},
    {TEST_SHM, false, 5, LONG_MS},  {TEST_SHM, true, 2, LONG_MS},  {TEST_SHM, true, 3, LONG_MS},
    {TEST_TCP, false, 1, LONG_MS},  {TEST_TCP, false, 2, LONG_MS}, {TEST_TCP, false, 5, LONG_MS},
    {TEST_TCP, true, 2, LONG_MS},   {TEST_TCP, true, 3, LONG_MS},
};

static void on_every_lane(test_body_fn body)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        test_all_ranks(&lanes[i], body);
    }
}

static void on_every_group(test_body_fn body, uint32_t timeout_ms)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        struct test_lane lane = lanes[i];
        lane.timeout_ms = timeout_ms;
        if (lane.ranks > 1) {
            test_all_ranks(&lane, body);
        }
    }
}

static void sums_have_the_same_bits_on_every_rank(void **state)
{
    (void)state;
    on_every_lane(sums);
}

static void gather_brings_every_part_to_every_rank(void **state)
{
    (void)state;
    on_every_lane(gathers);
}

static void broadcast_copies_rank_0(void **state)
{
    (void)state;
    on_every_lane(broadcasts);
}

static void nobody_passes_a_barrier_before_all_have_come(void **state)
{
    (void)state;
    on_every_lane(barriers);
}

static void calls_of_all_kinds_follow_each_other(void **state)
{
    (void)state;
    on_every_lane(mixtures);
}

static void a_different_call_is_an_error_that_names_the_rank(void **state)
{
    (void)state;
    on_every_group(mismatches_in_call, LONG_MS);
    on_every_group(mismatches_in_length, LONG_MS);
}

static void a_rank_that_never_comes_is_named_when_the_deadline_passes(void **state)
{
    (void)state;
    on_every_group(never_comes, SHORT_MS);
}

static void a_rank_that_leaves_is_noticed_before_the_deadline(void **state)
{
    (void)state;
    on_every_group(leaves, LONG_MS);
}

static void last_rank_dies(test_body_fn body)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        if (!lanes[i].forked || lanes[i].ranks < 2) {
            continue;
        }
        int result[CORRAL_COLLECTIVE_RANKS_MAX];
        test_run_ranks(&lanes[i], body, result);
        for (uint32_t r = 0; r + 1 < lanes[i].ranks; r++) {
            assert_int_equal(result[r], 0);
        }
        assert_int_equal(result[lanes[i].ranks - 1], TEST_DIED);
    }
}

static void a_rank_that_dies_is_noticed_before_the_deadline(void **state)
{
    (void)state;
    last_rank_dies(dies);
}

static void a_waiting_rank_makes_progress_elsewhere_and_a_prompt_one_is_left_alone(void **state)
{
    (void)state;
    on_every_lane(comes_late);
}

static void what_comes_during_a_long_callback_is_in_time(void **state)
{
    (void)state;
    for (size_t i = 0; i < CORRAL_COUNT_OF(lanes); i++) {
        struct test_lane lane = lanes[i];
        if (lane.ranks == 2) { /* only rank 1's deadline is at stake */
            lane.timeout_ms = SHORT_MS;
            test_all_ranks(&lane, comes_during_a_long_callback);
        }
    }
}

static void a_rank_that_dies_is_noticed_while_others_make_progress(void **state)
{
    (void)state;
    last_rank_dies(dies_while_others_beat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_have_the_same_bits_on_every_rank),
        cmocka_unit_test(gather_brings_every_part_to_every_rank),
        cmocka_unit_test(broadcast_copies_rank_0),
        cmocka_unit_test(nobody_passes_a_barrier_before_all_have_come),
        cmocka_unit_test(calls_of_all_kinds_follow_each_other),
        cmocka_unit_test(a_different_call_is_an_error_that_names_the_rank),
        cmocka_unit_test(a_rank_that_never_comes_is_named_when_the_deadline_passes),
        cmocka_unit_test(a_rank_that_leaves_is_noticed_before_the_deadline),
        cmocka_unit_test(a_rank_that_dies_is_noticed_before_the_deadline),
        cmocka_unit_test(a_waiting_rank_makes_progress_elsewhere_and_a_prompt_one_is_left_alone),
        cmocka_unit_test(what_comes_during_a_long_callback_is_in_time),
        cmocka_unit_test(a_rank_that_dies_is_noticed_while_others_make_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
