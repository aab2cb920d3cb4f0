#include "tests/check.h"

#include "trainer-bridge/learners/test_batch.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 4u
#define FRAGMENTS_MAX 3u
#define EXCHANGE_BYTES (1u << 16)

/* A collective between threads: everyone puts its part down, waits, and adds all parts in rank order. */
struct table {
    pthread_barrier_t barrier;
    uint8_t part[RANKS][EXCHANGE_BYTES];
};
struct seat {
    struct corral_collective base;
    struct table *table;
    int64_t calls_left; /* then every call fails, on every rank alike */
};

static struct table *exchange(struct corral_collective *c, const void *mine, size_t bytes,
                              struct corral_error *err)
{
    struct seat *s = (struct seat *)c;
    if (s->calls_left-- <= 0 || bytes > EXCHANGE_BYTES) {
        corral_fail(err, CORRAL_PEER, "the group is broken");
        return NULL;
    }
    memcpy(s->table->part[c->rank], mine, bytes);
    pthread_barrier_wait(&s->table->barrier);
    return s->table;
}

static enum corral_status sum_f32(struct corral_collective *c, float *data, uint32_t count,
                                  struct corral_error *err)
{
    struct table *t = exchange(c, data, count * sizeof *data, err);
    if (!t) {
        return CORRAL_PEER;
    }
    for (uint32_t i = 0; i < count; i++) {
        float sum = 0, x;
        for (uint32_t r = 0; r < c->ranks; r++) {
            memcpy(&x, t->part[r] + i * sizeof x, sizeof x);
            sum += x;
        }
        data[i] = sum;
    }
    pthread_barrier_wait(&t->barrier);
    return CORRAL_OK;
}

static enum corral_status sum_f64(struct corral_collective *c, double *data, uint32_t count,
                                  struct corral_error *err)
{
    struct table *t = exchange(c, data, count * sizeof *data, err);
    if (!t) {
        return CORRAL_PEER;
    }
    for (uint32_t i = 0; i < count; i++) {
        double sum = 0, x;
        for (uint32_t r = 0; r < c->ranks; r++) {
            memcpy(&x, t->part[r] + i * sizeof x, sizeof x);
            sum += x;
        }
        data[i] = sum;
    }
    pthread_barrier_wait(&t->barrier);
    return CORRAL_OK;
}

static enum corral_status gather(struct corral_collective *c, const void *mine, uint32_t bytes, void *out,
                                 struct corral_error *err)
{
    struct table *t = exchange(c, mine, bytes, err);
    if (!t) {
        return CORRAL_PEER;
    }
    for (uint32_t r = 0; r < c->ranks; r++) {
        memcpy((uint8_t *)out + (size_t)r * bytes, t->part[r], bytes);
    }
    pthread_barrier_wait(&t->barrier);
    return CORRAL_OK;
}

static const struct corral_collective_ops thread_ops = {
    .name = "threads", .sum_f32 = sum_f32, .sum_f64 = sum_f64, .gather = gather};

struct group {
    struct table table;
    struct seat seat[RANKS];
    struct corral_ppo *learner[RANKS];
    struct test_batch batch[RANKS][FRAGMENTS_MAX];
    uint32_t count[RANKS];
    enum corral_status status[RANKS];
    struct corral_error err[RANKS];
    struct corral_ppo_stats stats[RANKS];
};

struct job {
    struct group *g;
    uint32_t rank;
};

static void *one_rank(void *arg)
{
    struct job *j = arg;
    struct group *g = j->g;
    const struct corral_fragment *f[FRAGMENTS_MAX];
    for (uint32_t i = 0; i < g->count[j->rank]; i++) {
        f[i] = &g->batch[j->rank][i].fragment;
    }
    g->status[j->rank] =
        corral_ppo_step(g->learner[j->rank], f, g->count[j->rank], 0.3, &g->stats[j->rank], &g->err[j->rank]);
    return NULL;
}

static void all_step(struct group *g)
{
    pthread_t thread[RANKS];
    struct job job[RANKS];
    for (uint32_t r = 0; r < RANKS; r++) {
        job[r] = (struct job){.g = g, .rank = r};
        assert_int_equal(pthread_create(&thread[r], NULL, one_rank, &job[r]), 0);
    }
    for (uint32_t r = 0; r < RANKS; r++) {
        pthread_join(thread[r], NULL);
    }
}

static struct group *make(const struct corral_policy_layout *layout, const struct corral_ppo_config *config)
{
    struct corral_error err;
    struct group *g = calloc(1, sizeof *g);
    assert_non_null(g);
    pthread_barrier_init(&g->table.barrier, NULL, RANKS);
    for (uint32_t r = 0; r < RANKS; r++) {
        g->seat[r] =
            (struct seat){.base = {.ops = &thread_ops, .rank = r, .ranks = RANKS}, .table = &g->table};
        g->seat[r].calls_left = INT64_MAX;
        check_ok(corral_ppo_create(&g->learner[r], layout, config, TEST_CELLS_MAX, &g->seat[r].base,
                                   &corral_allocator_heap, &err));
    }
    return g;
}

static void drop(struct group *g)
{
    for (uint32_t r = 0; r < RANKS; r++) {
        corral_ppo_destroy(g->learner[r]);
    }
    pthread_barrier_destroy(&g->table.barrier);
    free(g);
}

/* Rank r gets counts[r] fragments of differing shapes, from the given weights. */
static void deal(struct group *g, const struct corral_policy_layout *layout, const float *weights,
                 const uint32_t counts[RANKS], uint64_t seed)
{
    for (uint32_t r = 0; r < RANKS; r++) {
        g->count[r] = counts[r];
        for (uint32_t i = 0; i < counts[r]; i++) {
            struct test_shape shape = {
                .worker = r * 10 + i, .steps = 12 + 2 * i, .rows = 5 + r, .seed = seed * 100 + r * 10 + i};
            test_batch_fill(&g->batch[r][i], layout, weights, shape);
        }
    }
}

static void check_equals_one(enum corral_action_kind kind, const uint32_t counts[RANKS],
                             enum corral_advantage_kind advantage)
{
    struct corral_error err;
    struct corral_policy_layout layout = test_layout(kind);
    struct corral_ppo_config config = test_config();
    config.normalise_reward = true;
    config.advantage = advantage;
    struct group *g = make(&layout, &config);
    struct corral_ppo *alone = NULL;
    check_ok(corral_ppo_create(&alone, &layout, &config, RANKS * TEST_CELLS_MAX, NULL, &corral_allocator_heap,
                               &err));
    for (uint64_t s = 0; s < 4; s++) {
        deal(g, &layout, corral_ppo_weights(alone), counts, s);
        const struct corral_fragment *all[RANKS * FRAGMENTS_MAX];
        uint32_t n = 0;
        for (uint32_t r = 0; r < RANKS; r++) {
            for (uint32_t i = 0; i < counts[r]; i++) {
                all[n++] = &g->batch[r][i].fragment;
            }
        }
        struct corral_ppo_stats stats;
        check_ok(corral_ppo_step(alone, all, n, 0.3, &stats, &err));
        all_step(g);
        for (uint32_t r = 0; r < RANKS; r++) {
            if (g->status[r] != CORRAL_OK) {
                fail_msg("rank %u: %s", r, g->err[r].text);
            }
            assert_memory_equal(corral_ppo_weights(g->learner[r]), corral_ppo_weights(g->learner[0]),
                                layout.floats * sizeof(float));
            assert_int_equal(g->stats[r].transitions, stats.transitions);
            assert_true(fabs(g->stats[r].policy_loss - stats.policy_loss) < 1e-5);
            assert_true(fabs(g->stats[r].explained_variance - stats.explained_variance) < 1e-5);
            assert_true(fabs(g->stats[r].ratio_max - stats.ratio_max) < 1e-4);
        }
    }
    double most = 0;
    for (uint64_t i = 0; i < layout.floats; i++) {
        double a = corral_ppo_weights(g->learner[0])[i], b = corral_ppo_weights(alone)[i];
        most = fmax(most, fabs(a - b) / fmax(1, fabs(b)));
    }
    print_message("kind %d: largest difference %.2g\n", (int)kind, most);
    assert_true(most < 1e-5);
    corral_ppo_destroy(alone);
    drop(g);
}

static void four_ranks_equal_one_learner_with_all_fragments(void **state)
{
    (void)state;
    const uint32_t even[RANKS] = {1, 1, 1, 1};
    check_equals_one(CORRAL_ACTION_DISCRETE, even, CORRAL_ADVANTAGE_GAE);
    check_equals_one(CORRAL_ACTION_CONTINUOUS, even, CORRAL_ADVANTAGE_GAE);
    check_equals_one(CORRAL_ACTION_MULTI_DISCRETE, even, CORRAL_ADVANTAGE_VTRACE);
}

static void ranks_may_hold_different_numbers_of_fragments_even_none(void **state)
{
    (void)state;
    const uint32_t uneven[RANKS] = {2, 0, 3, 1};
    check_equals_one(CORRAL_ACTION_MULTI_DISCRETE, uneven, CORRAL_ADVANTAGE_GAE);
}

static void *state_of(const struct corral_ppo *p)
{
    void *state = malloc(corral_ppo_state_bytes(p));
    assert_non_null(state);
    corral_ppo_state_save(p, state);
    return state;
}

static void one_ranks_bad_fragment_fails_all_and_changes_none(void **state)
{
    (void)state;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    struct group *g = make(&layout, &config);
    const uint32_t even[RANKS] = {1, 1, 1, 1};
    deal(g, &layout, corral_ppo_weights(g->learner[0]), even, 1);
    void *before = state_of(g->learner[3]);
    g->batch[2][0].reward[0] = NAN;
    all_step(g);
    for (uint32_t r = 0; r < RANKS; r++) {
        assert_int_equal(g->status[r], CORRAL_INVALID);
        assert_non_null(strstr(g->err[r].text, r == 2 ? "reward" : "rank 2"));
    }
    void *after = state_of(g->learner[3]);
    assert_memory_equal(before, after, corral_ppo_state_bytes(g->learner[3]));
    free(before);
    free(after);
    g->batch[2][0].reward[0] = 0;
    all_step(g);
    assert_int_equal(g->status[0], CORRAL_OK);
    drop(g);
}

static void a_group_that_breaks_anywhere_leaves_every_learner_as_it_was(void **state)
{
    (void)state;
    struct corral_policy_layout layout = test_layout(CORRAL_ACTION_DISCRETE);
    struct corral_ppo_config config = test_config();
    config.normalise_reward = true;
    config.epochs = 2;
    struct group *g = make(&layout, &config);
    const uint32_t even[RANKS] = {1, 1, 1, 1};
    deal(g, &layout, corral_ppo_weights(g->learner[0]), even, 1);
    void *before = state_of(g->learner[1]);
    uint32_t calls = 0;
    for (;; calls++) {
        for (uint32_t r = 0; r < RANKS; r++) {
            g->seat[r].calls_left = calls;
        }
        all_step(g);
        if (g->status[0] == CORRAL_OK) {
            break;
        }
        assert_int_equal(g->status[1], CORRAL_PEER);
        void *after = state_of(g->learner[1]);
        assert_memory_equal(before, after, corral_ppo_state_bytes(g->learner[1]));
        free(after);
    }
    assert_true(calls > 10);
    free(before);
    drop(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(four_ranks_equal_one_learner_with_all_fragments),
        cmocka_unit_test(ranks_may_hold_different_numbers_of_fragments_even_none),
        cmocka_unit_test(one_ranks_bad_fragment_fails_all_and_changes_none),
        cmocka_unit_test(a_group_that_breaks_anywhere_leaves_every_learner_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
