/* The credit arithmetic alone, against simulated senders: never over the buffer, never a sender that waits for ever. */
#include "tests/check.h"

#include "base/error.h"
#include "base/rng.h"
#include "transport/trajectory/credit.h"
#include <stdlib.h>
#include <string.h>

#define WORKERS 12
#define HELD_MAX 4096

/* A sender as the protocol makes it behave: it knows the limit it was told, and messages to it may be on their way. */
struct sender {
    uint64_t sent, limit, next; /* next: bytes of the fragment it wants to send, 0 when it has none */
    uint64_t largest;           /* it ever wanted to send */
    uint64_t told_credit;       /* in flight to it: a limit, or 0 */
    bool told_reclaim;
};
struct world {
    struct corral_credit credit;
    struct sender senders[WORKERS];
    struct {
        uint32_t worker;
        uint64_t bytes;
    } held[HELD_MAX];
    uint32_t held_count;
    uint64_t fragment_max; /* sizes are below this */
};

static void check_invariant(const struct world *w)
{
    uint64_t used = 0;
    uint32_t waiting = 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        const struct corral_credit_account *a = &w->credit.accounts[i];
        assert_true(a->limit >= a->offset);
        used += a->limit - a->offset + a->held;
        waiting += a->waits;
        if (w->credit.share != 0) { /* a fragment larger than a share comes alone */
            assert_true(a->limit - a->offset + a->held <= CORRAL_MAX(w->credit.share, w->senders[i].largest));
        }
    }
    assert_int_equal(waiting, w->credit.waiting);
    assert_int_equal(used, w->credit.used);
    assert_true(used <= w->credit.buffer);
}

static void tell_all(struct world *w)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        struct corral_credit_account *a = &w->credit.accounts[i];
        struct sender *s = &w->senders[i];
        if (a->raised && (!a->reclaiming || a->reclaim_due)) { /* a grant is told before it is called back */
            a->raised = false;
            s->told_credit = a->limit;
        }
        if (a->reclaim_due) {
            a->reclaim_due = false;
            s->told_reclaim = true;
        }
    }
}

static void hear(struct world *w, uint32_t i)
{
    struct sender *s = &w->senders[i];
    s->limit = CORRAL_MAX(s->limit, s->told_credit);
    s->told_credit = 0;
    bool will_use_it = s->next != 0 && s->next <= s->limit - s->sent;
    if (s->told_reclaim && !will_use_it) {
        s->told_reclaim = false;
        s->limit = s->sent;
        assert_true(corral_credit_returned(&w->credit, i, s->limit));
        corral_credit_share(&w->credit);
    }
}

static void try_to_send(struct world *w, uint32_t i)
{
    struct sender *s = &w->senders[i];
    if (s->next == 0 || !w->credit.accounts[i].live || w->held_count == HELD_MAX) {
        return;
    }
    if (s->next > s->limit - s->sent) {
        assert_true(corral_credit_want(&w->credit, i, s->sent + s->next));
        corral_credit_share(&w->credit);
        return;
    }
    s->sent += s->next;
    assert_true(corral_credit_take(&w->credit, i, s->next));
    w->held[w->held_count].worker = i;
    w->held[w->held_count++].bytes = s->next;
    s->next = 0;
}

static void finish_one(struct world *w, uint32_t at)
{
    uint32_t worker = w->held[at].worker;
    corral_credit_finish(&w->credit, worker, w->held[at].bytes);
    w->held[at] = w->held[--w->held_count];
    if (w->credit.waiting > 0) {
        corral_credit_share(&w->credit);
    } else {
        corral_credit_top_up(&w->credit, worker);
    }
}

static void reconnect(struct world *w, uint32_t i)
{
    corral_credit_open(&w->credit, i);
    w->senders[i] = (struct sender){.next = w->senders[i].next, .largest = w->senders[i].largest};
    corral_credit_share(&w->credit);
    w->senders[i].limit = w->credit.accounts[i].limit;
    w->credit.accounts[i].raised = false;
}

static void random_step(struct world *w, struct corral_rng *rng)
{
    uint32_t i = (uint32_t)corral_rng_below(rng, WORKERS);
    switch (corral_rng_below(rng, 8)) {
    case 0:
    case 1:
        if (w->senders[i].next == 0) {
            w->senders[i].next = 1 + corral_rng_below(rng, w->fragment_max);
            w->senders[i].largest = CORRAL_MAX(w->senders[i].largest, w->senders[i].next);
        }
        break;
    case 2:
    case 3:
        try_to_send(w, i);
        break;
    case 4:
        hear(w, i);
        break;
    case 5:
        tell_all(w);
        break;
    case 6:
        if (w->held_count > 0) {
            finish_one(w, (uint32_t)corral_rng_below(rng, w->held_count));
        }
        break;
    default:
        if (corral_rng_below(rng, 8) == 0) {
            reconnect(w, i);
        } else if (corral_rng_below(rng, 8) == 0) {
            corral_credit_close(&w->credit, i); /* the connection is gone and with it what was on its way */
            w->senders[i] = (struct sender){.next = w->senders[i].next, .largest = w->senders[i].largest};
            corral_credit_share(&w->credit);
        }
    }
    check_invariant(w);
}

/* From any state: once everything held is finished and everybody listens, everybody who has a fragment gets to send it. */
static void check_nobody_starves(struct world *w)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        if (!w->credit.accounts[i].live) {
            reconnect(w, i);
        }
        w->senders[i].next = CORRAL_MAX(w->senders[i].next, 1);
        w->senders[i].largest = CORRAL_MAX(w->senders[i].largest, 1);
    }
    for (int round = 0; round < 4 * WORKERS; round++) {
        for (uint32_t i = 0; i < WORKERS; i++) {
            try_to_send(w, i);
            tell_all(w);
            hear(w, i);
        }
        while (w->held_count > 0) {
            finish_one(w, 0);
        }
        check_invariant(w);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        assert_int_equal(w->senders[i].next, 0);
    }
}

static void random_world(struct world *w, struct corral_rng *rng, uint64_t seed, bool shared, bool small)
{
    corral_rng_seed(rng, seed);
    memset(w, 0, sizeof *w);
    uint64_t buffer = WORKERS + corral_rng_below(rng, 100000), share = buffer / WORKERS;
    assert_true(corral_credit_init(&w->credit, buffer, shared ? share : 0, WORKERS));
    w->fragment_max = small ? 1 + corral_rng_below(rng, share) : buffer;
}

static void never_exceeds_the_buffer_and_starves_nobody(void **state)
{
    (void)state;
    struct world *w = malloc(sizeof *w);
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct corral_rng rng;
        random_world(w, &rng, seed, seed % 2 == 0, seed % 4 < 2);
        for (int step = 0; step < 2000; step++) {
            random_step(w, &rng);
        }
        check_nobody_starves(w);
        corral_credit_free(&w->credit);
    }
    free(w);
}

/* From any state, and although nothing is ever finished again: each can send until its own share is full, whatever the others hold. */
static void check_everyone_gets_its_share(struct world *w)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        if (!w->credit.accounts[i].live) {
            reconnect(w, i);
        }
        for (;;) {
            struct sender *s = &w->senders[i];
            s->next = w->fragment_max;
            s->largest = w->fragment_max;
            for (int round = 0; round < 3 && s->next != 0; round++) {
                try_to_send(w, i);
                tell_all(w);
                hear(w, i);
            }
            check_invariant(w);
            if (s->next != 0) {
                break;
            }
        }
        assert_true(w->held_count < HELD_MAX);
        assert_true(w->credit.accounts[i].held > w->credit.share - w->fragment_max);
    }
}

static void what_others_hold_takes_nothing_from_ones_share(void **state)
{
    (void)state;
    struct world *w = malloc(sizeof *w);
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct corral_rng rng;
        random_world(w, &rng, seed, true, true);
        w->fragment_max =
            CORRAL_MAX(w->fragment_max, w->credit.share / 64 + 1); /* so that `held` has room for all */
        for (int step = 0; step < 1000; step++) {
            random_step(w, &rng);
        }
        check_everyone_gets_its_share(w);
        check_nobody_starves(w);
        corral_credit_free(&w->credit);
    }
    free(w);
}

static void a_worker_that_has_its_share_holds_up_nobody(void **state)
{
    (void)state;
    struct corral_credit c;
    assert_true(corral_credit_init(&c, 1000, 500, 2));
    corral_credit_open(&c, 0);
    corral_credit_open(&c, 1);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 500);
    assert_int_equal(c.accounts[1].limit, 500);
    assert_true(corral_credit_take(&c, 0, 400));
    assert_true(corral_credit_want(&c, 0, 800));
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 500); /* 400 held and 400 more: not before some is finished */
    assert_false(c.accounts[1].reclaim_due);
    assert_true(corral_credit_take(&c, 1, 300));
    corral_credit_finish(&c, 1, 300);
    assert_int_equal(c.waiting, 0);
    corral_credit_top_up(&c, 1);
    assert_int_equal(c.accounts[1].limit, 800);
    corral_credit_close(&c, 0); /* a new epoch: what the old one left counts */
    corral_credit_open(&c, 0);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 100);
    assert_true(corral_credit_want(&c, 0, 400));
    corral_credit_finish(&c, 0, 400);
    assert_int_equal(c.waiting, 1);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 500);
    corral_credit_free(&c);
}

static void one_fragment_larger_than_a_share_comes_in_alone(void **state)
{
    (void)state;
    struct corral_credit c;
    assert_true(corral_credit_init(&c, 1000, 500, 2));
    corral_credit_open(&c, 0);
    corral_credit_share(&c);
    assert_true(corral_credit_want(&c, 0, 900));
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 900);
    assert_true(corral_credit_take(&c, 0, 900));
    assert_true(corral_credit_want(&c, 0, 1800));
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 900);
    corral_credit_finish(&c, 0, 900);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 1800);
    corral_credit_free(&c);
}

static void shares_the_window_among_sessions(void **state)
{
    (void)state;
    struct corral_credit c;
    assert_true(corral_credit_init(&c, 1000, 0, 4));
    corral_credit_open(&c, 0);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 1000);
    corral_credit_open(&c, 1);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[1].limit, 0); /* all is lent to the first … */
    assert_true(corral_credit_want(&c, 1, 300));
    corral_credit_share(&c);
    assert_true(c.accounts[0].reclaim_due); /* … and called back once the second has something to send */
    assert_true(corral_credit_returned(&c, 0, 0));
    corral_credit_share(&c);
    assert_true(c.accounts[1].limit >= 300);
    assert_int_equal(c.accounts[0].limit, 500);
    assert_true(c.used <= 1000);
    corral_credit_free(&c);
}

/* A worker whose records are not let in (a full log, a quota) has nothing held, and goes on wanting. */
static void what_is_not_let_in_counts_in_the_share(void **state)
{
    (void)state;
    for (int all_fit = 0; all_fit < 2; all_fit++) {
        struct corral_credit c;
        assert_true(corral_credit_init(&c, 1000, 500, 2));
        c.all_fit = all_fit != 0;
        corral_credit_open(&c, 0);
        corral_credit_share(&c);
        assert_int_equal(c.accounts[0].limit, 500);
        for (int i = 0; i < 8; i++) {
            assert_true(corral_credit_want(&c, 0, c.accounts[0].limit + 100));
            corral_credit_share(&c);
        }
        assert_int_equal(c.accounts[0].limit,
                         c.all_fit ? 500 : 600); /* one larger than a share may come alone */
        assert_int_equal(c.waiting, 0);          /* it holds up nobody */
        corral_credit_open(&c, 1);
        assert_true(corral_credit_want(&c, 1, 400));
        corral_credit_share(&c);
        assert_true(c.accounts[1].limit >= 400);
        assert_true(corral_credit_take(&c, 0, 300)); /* they are let in, trained on, and room is given */
        corral_credit_finish(&c, 0, 300);
        corral_credit_share(&c);
        assert_true(c.accounts[0].limit >= 600);
        corral_credit_free(&c);
    }
}

/* Without shares a worker may have sent all of the buffer, and want more before any of it is let in. */
static void a_want_behind_what_is_under_way_waits(void **state)
{
    (void)state;
    struct corral_credit c;
    assert_true(corral_credit_init(&c, 1000, 0, 2));
    corral_credit_open(&c, 0);
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 1000);
    assert_true(corral_credit_want(&c, 0, 1100));
    corral_credit_share(&c);
    assert_int_equal(c.accounts[0].limit, 1000);
    assert_true(corral_credit_take(&c, 0, 200));
    corral_credit_finish(&c, 0, 200);
    corral_credit_share(&c);
    assert_true(c.accounts[0].limit >= 1100);
    corral_credit_free(&c);
}

static void refuses_what_does_not_add_up(void **state)
{
    (void)state;
    struct corral_credit c;
    assert_true(corral_credit_init(&c, 1000, 0, 2));
    assert_false(corral_credit_want(&c, 0, 10)); /* no session */
    assert_false(corral_credit_take(&c, 0, 1));
    corral_credit_open(&c, 0);
    corral_credit_share(&c);
    assert_false(corral_credit_want(&c, 0, 2001));     /* could never be let in */
    assert_false(corral_credit_take(&c, 0, 1001));     /* beyond the limit */
    assert_false(corral_credit_returned(&c, 0, 1001)); /* more than it had */
    assert_true(corral_credit_take(&c, 0, 600));
    assert_false(corral_credit_returned(&c, 0, 599)); /* less than what arrived */
    assert_int_equal(c.used, 1000);
    corral_credit_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_exceeds_the_buffer_and_starves_nobody),
        cmocka_unit_test(what_others_hold_takes_nothing_from_ones_share),
        cmocka_unit_test(a_worker_that_has_its_share_holds_up_nobody),
        cmocka_unit_test(one_fragment_larger_than_a_share_comes_in_alone),
        cmocka_unit_test(shares_the_window_among_sessions),
        cmocka_unit_test(what_is_not_let_in_counts_in_the_share),
        cmocka_unit_test(a_want_behind_what_is_under_way_waits),
        cmocka_unit_test(refuses_what_does_not_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
