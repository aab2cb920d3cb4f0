#include "tests/check.h"

#include "trainer-bridge/batching/replay.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define USERS 100000
#define NAIVE_MAX 64

/* What was inserted, by number, as a plain list. */
struct naive {
    uint32_t released[USERS];
    enum corral_replay_reason reason[USERS];
    struct {
        uint32_t user, times, lent;
        uint64_t key, bytes;
        double p;
    } in[NAIVE_MAX]; /* oldest first */
    uint32_t count;
};

static void on_released(void *ctx, void *user, enum corral_replay_reason reason)
{
    struct naive *n = ctx;
    uint32_t i = (uint32_t)(uintptr_t)user;
    assert_int_equal(n->released[i], 0);
    n->released[i]++;
    n->reason[i] = reason;
}

static void *user_of(uint32_t i)
{
    return (void *)(uintptr_t)i; /* NOLINT */
}

static void drop_at(struct naive *n, uint32_t i)
{
    n->count--;
    memmove(&n->in[i], &n->in[i + 1], (n->count - i) * sizeof n->in[0]);
}

struct lent {
    uint64_t key;
    uint32_t user;
};

static uint64_t naive_bytes(const struct naive *n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n->count; i++) {
        bytes += n->in[i].bytes;
    }
    return bytes;
}

static void naive_insert(struct naive *n, const struct corral_replay_config *c, uint32_t user, uint64_t bytes,
                         double p, uint64_t key)
{
    while (n->count >= c->items_max || naive_bytes(n) + bytes > c->bytes_max) {
        assert_int_equal(n->released[n->in[0].user], n->in[0].lent == 0);
        drop_at(n, 0);
    }
    n->in[n->count].user = user;
    n->in[n->count].times = n->in[n->count].lent = 0;
    n->in[n->count].key = key;
    n->in[n->count].bytes = bytes;
    n->in[n->count++].p = p;
}

static uint32_t naive_find(const struct naive *n, uint32_t user)
{
    for (uint32_t i = 0; i < n->count; i++) {
        if (n->in[i].user == user) {
            return i;
        }
    }
    fail_msg("item %u was sampled and should be gone", user);
    return 0;
}

static void sample_some(struct corral_replay *r, struct naive *n, const struct corral_replay_config *c,
                        struct corral_rng *rng)
{
    struct corral_replay_sample s[4];
    struct corral_error err;
    uint32_t taken = 0;
    for (; taken < 4 && corral_replay_take(r, rng, 0.5, &s[taken], &err) == CORRAL_OK; taken++) {
        uint32_t user = (uint32_t)(uintptr_t)s[taken].user, i = naive_find(n, user);
        double sum = 0, least = INFINITY;
        for (uint32_t k = 0; k < n->count; k++) {
            sum += n->in[k].p;
            least = fmin(least, n->in[k].p);
        }
        if (c->order == CORRAL_REPLAY_FIFO) {
            assert_int_equal(i, 0);
        } else if (c->order == CORRAL_REPLAY_PRIORITISED) {
            assert_true(fabs(s[taken].probability - n->in[i].p / sum) < 1e-12);
            assert_true(fabs(s[taken].weight - pow(n->in[i].p / least, -0.5)) < 1e-9 && s[taken].weight <= 1);
        }
        assert_int_equal(s[taken].times, ++n->in[i].times);
        assert_true(s[taken].key == n->in[i].key);
        assert_int_equal(n->released[user], 0);
        if (c->max_times > 0 && n->in[i].times == c->max_times) {
            drop_at(n, i);
        }
    }
    for (uint32_t k = 0; k < taken; k++) { /* readable until the last of its samples is given back */
        assert_int_equal(n->released[(uint32_t)(uintptr_t)s[k].user], 0);
        corral_replay_give_back(r, s[k].key);
    }
}

static void does_what_a_plain_list_does(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    static struct naive n;
    for (int round = 0; round < 60; round++) {
        memset(&n, 0, sizeof n);
        struct corral_replay_config c = {.order = (enum corral_replay_order)(round % 3),
                                         .items_max = 1 + (uint32_t)corral_rng_below(&rng, NAIVE_MAX),
                                         .bytes_max = 20 + corral_rng_below(&rng, 300),
                                         .max_times = 1 + (uint32_t)corral_rng_below(&rng, 5),
                                         .alpha = 0.6,
                                         .released = on_released,
                                         .ctx = &n};
        struct corral_replay *r;
        check_ok(corral_replay_create(&r, &c, &err));
        uint32_t next = 0;
        for (int step = 0; step < 500; step++) {
            uint64_t key, bytes = 1 + corral_rng_below(&rng, 20);
            double priority = 0.01 + corral_rng_uniform(&rng);
            check_ok(corral_replay_insert(r, bytes, priority, user_of(next), &key, &err));
            naive_insert(&n, &c, next++, bytes, pow(priority, 0.6), key);
            uint32_t i = (uint32_t)corral_rng_below(&rng, n.count);
            if (corral_rng_below(&rng, 3) == 0) {
                n.in[i].p = pow(priority / 2, 0.6);
                assert_true(corral_replay_set_priority(r, n.in[i].key, priority / 2));
            } else if (corral_rng_below(&rng, 9) == 0) {
                key = n.in[i].key;
                assert_true(corral_replay_remove(r, key));
                assert_false(corral_replay_remove(r, key));
                assert_false(corral_replay_set_priority(r, key, 1));
                drop_at(&n, i);
            }
            if (corral_rng_below(&rng, 2) == 0) {
                sample_some(r, &n, &c, &rng);
            }
            struct corral_replay_stats s;
            corral_replay_stats(r, &s);
            assert_int_equal(corral_replay_size(r), n.count);
            assert_int_equal(s.bytes, naive_bytes(&n));
            assert_int_equal(s.inserted - s.evicted - s.sampled_out - s.removed, n.count);
        }
        corral_replay_destroy(r);
        for (uint32_t i = 0; i < next; i++) {
            assert_int_equal(n.released[i], 1);
        }
    }
}

/* Chi-square of draws against the priorities. */
static void samples_in_proportion_to_priority(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 7);
    struct corral_replay *r;
    struct corral_replay_config c = {
        .order = CORRAL_REPLAY_PRIORITISED, .items_max = 10, .bytes_max = 1000, .alpha = 1};
    check_ok(corral_replay_create(&r, &c, &err));
    uint64_t key[10];
    double count[10] = {0}, chi = 0;
    for (uint32_t i = 0; i < 10; i++) {
        check_ok(corral_replay_insert(r, 1, i, user_of(i), &key[i], &err)); /* item 0 never */
    }
    for (int i = 0; i < 45000; i++) {
        struct corral_replay_sample s;
        check_ok(corral_replay_take(r, &rng, 1, &s, &err));
        count[(uintptr_t)s.user]++;
        corral_replay_give_back(r, s.key);
    }
    assert_true(count[0] == 0);
    for (uint32_t i = 1; i < 10; i++) {
        chi += pow(count[i] - 1000.0 * i, 2) / (1000.0 * i);
    }
    assert_true(chi < 26.1); /* 8 degrees of freedom, one in a thousand; the seed is fixed */
    for (uint32_t i = 1; i < 10; i++) {
        assert_true(corral_replay_set_priority(r, key[i], 0));
    }
    struct corral_replay_sample s;
    check_status(corral_replay_take(r, &rng, 1, &s, &err), CORRAL_AGAIN);
    corral_replay_destroy(r);
}

static void what_is_lent_stays_readable_after_it_is_evicted(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    static struct naive n;
    memset(&n, 0, sizeof n);
    struct corral_replay *r;
    struct corral_replay_sample a, b;
    uint64_t key;
    struct corral_replay_config c = {
        .order = CORRAL_REPLAY_UNIFORM, .items_max = 2, .bytes_max = 10, .released = on_released, .ctx = &n};
    check_ok(corral_replay_create(&r, &c, &err));
    check_status(corral_replay_take(r, &rng, 0, &a, &err), CORRAL_AGAIN);
    check_ok(corral_replay_insert(r, 8, CORRAL_REPLAY_NEWEST, user_of(1), &key, &err));
    check_ok(corral_replay_take(r, &rng, 0, &a, &err));
    check_ok(corral_replay_take(r, &rng, 0, &b, &err));
    check_status(corral_replay_insert(r, 8, CORRAL_REPLAY_NEWEST, user_of(2), &key, &err), CORRAL_AGAIN);
    assert_int_equal(n.released[1], 0);
    corral_replay_give_back(r, a.key);
    assert_int_equal(n.released[1], 0);
    corral_replay_give_back(r, b.key);
    assert_int_equal(n.released[1], 1);
    assert_int_equal(n.reason[1], CORRAL_REPLAY_EVICTED);
    check_ok(corral_replay_insert(r, 8, CORRAL_REPLAY_NEWEST, user_of(2), &key, &err));
    corral_replay_destroy(r);
    assert_int_equal(n.reason[2], CORRAL_REPLAY_CLOSED);
}

static void refuses_what_makes_no_sense(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_replay *r;
    uint64_t key;
    struct corral_replay_config c = {.order = CORRAL_REPLAY_FIFO, .items_max = 2, .bytes_max = 10};
    check_status(corral_replay_create(&r, &c, &err), CORRAL_INVALID);
    c.max_times = 1;
    c.items_max = 0;
    check_status(corral_replay_create(&r, &c, &err), CORRAL_INVALID);
    c = (struct corral_replay_config){
        .order = CORRAL_REPLAY_PRIORITISED, .items_max = 2, .bytes_max = 10, .alpha = NAN};
    check_status(corral_replay_create(&r, &c, &err), CORRAL_INVALID);
    c.alpha = 1;
    check_ok(corral_replay_create(&r, &c, &err));
    check_status(corral_replay_insert(r, 11, 1, NULL, &key, &err), CORRAL_INVALID);
    check_status(corral_replay_insert(r, 1, -2, NULL, &key, &err), CORRAL_INVALID);
    check_status(corral_replay_insert(r, 1, NAN, NULL, &key, &err), CORRAL_INVALID);
    check_status(corral_replay_insert(r, 1, INFINITY, NULL, &key, &err), CORRAL_INVALID);
    corral_replay_destroy(r);
    corral_replay_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(does_what_a_plain_list_does),
        cmocka_unit_test(samples_in_proportion_to_priority),
        cmocka_unit_test(what_is_lent_stays_readable_after_it_is_evicted),
        cmocka_unit_test(refuses_what_makes_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
