#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/lease.h"
#include "trainer-bridge/batching/length_bias.h"
#include <string.h>

static void grants_what_the_bound_allows_and_says_why_not(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_leases *l;
    uint64_t a, b, c;
    check_ok(corral_leases_create(
        &l, &(struct corral_lease_config){.per_version = 10, .max_staleness = 1, .leases_max = 8}, &err));
    check_ok(corral_lease_grant(l, 0, 12, 1, 0, &a, &err));
    check_ok(corral_lease_grant(l, 1, 8, 1, 0, &b, &err));
    check_status(corral_lease_grant(l, 1, 1, 1, 0, &c, &err), CORRAL_AGAIN);
    assert_non_null(strstr(err.text, "20 tokens run and 0 wait"));
    assert_true(corral_lease_arrived(l, a, 15)); /* longer than thought */
    check_status(corral_lease_grant(l, 1, 1, 1, 0, &c, &err), CORRAL_AGAIN);
    corral_lease_consumed(l, 15);
    check_ok(corral_lease_grant(l, 1, 12, 2, 0, &c, &err));
    assert_true(corral_lease_void(l, c));
    assert_false(corral_lease_void(l, c));
    assert_false(corral_lease_arrived(l, a, 1));
    assert_true(corral_lease_arrived(l, b, 8));
    check_status(corral_lease_grant(l, 1, 1, 1, 0, &c, &err), CORRAL_INVALID); /* versions only grow */
    corral_leases_destroy(l);
}

static void grants_one_that_is_larger_than_everything_when_there_is_nothing_else(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_leases *l;
    uint64_t a;
    check_ok(corral_leases_create(
        &l, &(struct corral_lease_config){.per_version = 10, .max_staleness = 0, .leases_max = 2}, &err));
    check_ok(corral_lease_grant(l, 0, 1000, 1, 0, &a, &err));
    check_status(corral_lease_grant(l, 0, 1, 1, 0, &a, &err), CORRAL_AGAIN);
    corral_leases_destroy(l);
}

static void a_dead_worker_s_leases_expire_and_nobody_else_s(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_leases *l;
    uint64_t id[4];
    struct corral_lease_stats s;
    check_ok(corral_leases_create(
        &l,
        &(struct corral_lease_config){.per_version = 4, .max_staleness = 0, .leases_max = 4, .ttl_ns = 100},
        &err));
    for (uint32_t i = 0; i < 4; i++) {
        check_ok(corral_lease_grant(l, i % 2, 1, 1, 10, &id[i], &err));
    }
    corral_lease_seen(l, 1, 90);
    assert_int_equal(corral_lease_expire(l, 109), 0);
    assert_int_equal(corral_lease_expire(l, 110), 2);
    assert_false(corral_lease_arrived(l, id[0], 1)); /* it counts as queued all the same */
    corral_lease_stats(l, &s);
    assert_int_equal(s.running, 2);
    assert_int_equal(s.queued_tokens, 1);
    assert_int_equal(corral_lease_end_worker(l, 1), 2);
    corral_lease_stats(l, &s);
    assert_int_equal(s.running_tokens, 0);
    assert_int_equal(s.expired, 4);
    corral_leases_destroy(l);
}

/* ---- a whole loop, simulated ---- */

#define QUEUE_MAX 4096
struct rollout {
    uint64_t lease, version, length, ends_at;
};
struct loop {
    struct corral_leases *l;
    struct rollout running[QUEUE_MAX], queued[QUEUE_MAX];
    uint32_t running_count, queued_count, max_staleness;
    uint64_t version, now, worst, too_old, trained;
    struct corral_length_bias bias;
    bool wait_for_late;
};

static void start_what_is_granted(struct loop *s, struct corral_rng *rng, uint64_t longest)
{
    struct corral_error err;
    struct rollout r = {.version = s->version};
    while (s->running_count < QUEUE_MAX &&
           corral_lease_grant(s->l, 0, 1, s->version, s->now, &r.lease, &err) == CORRAL_OK) {
        r.length = longest > 1 && corral_rng_below(rng, 8) == 0 ? longest : 10;
        r.ends_at = s->now + r.length;
        s->running[s->running_count++] = r;
    }
}

static void finish_what_is_done(struct loop *s)
{
    for (uint32_t i = 0; i < s->running_count;) {
        if (s->running[i].ends_at > s->now) {
            i++;
            continue;
        }
        assert_true(corral_lease_arrived(s->l, s->running[i].lease, 1));
        s->queued[s->queued_count++] = s->running[i];
        s->running[i] = s->running[--s->running_count];
    }
}

static uint32_t oldest_queued(const struct loop *s)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < s->queued_count; i++) {
        best = s->queued[i].version < s->queued[best].version ? i : best;
    }
    return best;
}

static void step_if_ready(struct loop *s, uint32_t batch)
{
    if (s->queued_count < batch || (s->wait_for_late && corral_lease_late(s->l, s->version) > 0)) {
        return;
    }
    for (uint32_t k = 0; k < batch && s->queued_count > 0;) {
        uint32_t i = oldest_queued(s);
        uint64_t staleness = s->version - s->queued[i].version;
        bool kept = staleness <= s->max_staleness;
        corral_length_bias_add(&s->bias, s->queued[i].length, kept);
        s->too_old += !kept;
        k += kept;
        s->trained += kept;
        s->worst = staleness > s->worst ? staleness : s->worst;
        corral_lease_consumed(s->l, 1);
        s->queued[i] = s->queued[--s->queued_count];
    }
    s->version++;
}

static struct loop *simulate(uint32_t max_staleness, uint64_t longest, bool wait_for_late, uint64_t seed)
{
    static struct loop s;
    struct corral_error err;
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    memset(&s, 0, sizeof s);
    s.max_staleness = max_staleness;
    s.wait_for_late = wait_for_late;
    check_ok(corral_leases_create(
        &s.l,
        &(struct corral_lease_config){.per_version = 16, .max_staleness = max_staleness, .leases_max = 1000},
        &err));
    for (s.now = 0; s.now < 4000; s.now++) {
        start_what_is_granted(&s, &rng, longest);
        finish_what_is_done(&s);
        step_if_ready(&s, 16);
    }
    corral_leases_destroy(s.l);
    return &s;
}

static void rollouts_of_one_length_are_never_too_old(void **state)
{
    (void)state;
    for (uint32_t bound = 0; bound < 5; bound++) {
        struct loop *s = simulate(bound, 1, false, bound);
        assert_int_equal(s->too_old, 0);
        assert_true(s->version > 100 && s->worst <= bound);
    }
}

static void waiting_for_late_ones_keeps_them_within_a_bound_of_one(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        for (uint32_t bound = 0; bound < 2; bound++) {
            struct loop *s = simulate(bound, 95, true, seed);
            assert_int_equal(s->too_old, 0);
            assert_true(s->version > 10 && s->worst <= bound);
        }
    }
}

static void not_waiting_drops_the_long_ones_and_the_report_shows_it(void **state)
{
    (void)state;
    struct loop *s = simulate(1, 400, false, 1);
    struct corral_length_report r = corral_length_bias_report(&s->bias);
    assert_true(s->too_old > 0);
    assert_true(r.mean_dropped > r.mean_kept);
    assert_true(r.ratio < 1);
}

static void refuses_nonsense(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_leases *l;
    uint64_t a;
    check_status(corral_leases_create(&l, &(struct corral_lease_config){.leases_max = 1}, &err),
                 CORRAL_INVALID);
    check_status(
        corral_leases_create(
            &l, &(struct corral_lease_config){.per_version = UINT64_MAX, .max_staleness = 1, .leases_max = 1},
            &err),
        CORRAL_INVALID);
    check_ok(
        corral_leases_create(&l, &(struct corral_lease_config){.per_version = 9, .leases_max = 1}, &err));
    check_status(corral_lease_grant(l, CORRAL_LEASE_WORKERS_MAX, 1, 1, 0, &a, &err), CORRAL_INVALID);
    check_status(corral_lease_grant(l, 0, 0, 1, 0, &a, &err), CORRAL_INVALID);
    check_ok(corral_lease_grant(l, 0, 1, 1, 0, &a, &err));
    check_status(corral_lease_grant(l, 0, UINT64_MAX, 1, 0, &a, &err), CORRAL_AGAIN);
    check_status(corral_lease_grant(l, 0, 1, 1, 0, &a, &err), CORRAL_AGAIN); /* one lease at a time */
    assert_false(corral_lease_arrived(l, UINT64_MAX, 0));
    corral_leases_destroy(l);
    corral_leases_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grants_what_the_bound_allows_and_says_why_not),
        cmocka_unit_test(grants_one_that_is_larger_than_everything_when_there_is_nothing_else),
        cmocka_unit_test(a_dead_worker_s_leases_expire_and_nobody_else_s),
        cmocka_unit_test(rollouts_of_one_length_are_never_too_old),
        cmocka_unit_test(waiting_for_late_ones_keeps_them_within_a_bound_of_one),
        cmocka_unit_test(not_waiting_drops_the_long_ones_and_the_report_shows_it),
        cmocka_unit_test(refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
