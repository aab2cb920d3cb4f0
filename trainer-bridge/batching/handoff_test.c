#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/handoff.h"
#include "trainer-bridge/batching/share.h"
#include <stdlib.h>
#include <string.h>

#define WORKERS 4
#define RECORDS 120 /* per worker and epoch */
#define EPOCHS 2

struct told { /* what finish was told */
    uint8_t finished[WORKERS][(EPOCHS + 1) * 1000];
    uint32_t count;
};

/* A record as one number that grows along its worker's stream. */
static uint64_t rank_of(uint32_t epoch, uint64_t sequence)
{
    return (uint64_t)epoch * 1000 + sequence;
}

static void on_finish(void *ctx, void *user)
{
    struct told *t = ctx;
    uint64_t id = (uint64_t)(uintptr_t)user;
    assert_int_equal(t->finished[id / 100000][id % 100000]++, 0);
    t->count++;
}

static void *user_of(uint32_t worker, uint32_t epoch, uint64_t sequence)
{
    return (void *)(uintptr_t)(worker * UINT64_C(100000) + rank_of(epoch, sequence)); /* NOLINT */
}

/* One life of a trainer: records come, are put into batches and used up in random order; states are saved "as of" batches; then it dies. */
struct life {
    struct corral_handoff *h;
    struct told told;
    struct corral_handoff_record *held[WORKERS * RECORDS * EPOCHS];
    uint32_t held_count;
    uint64_t batch;
};

/* trained[w][e][s]: by the saved state's history. */
struct history {
    uint8_t trained[WORKERS][EPOCHS + 1][RECORDS + 1];
};

static void deliver(struct life *life, uint32_t worker, uint32_t epoch, uint64_t sequence,
                    const struct history *saved)
{
    struct corral_error err;
    struct corral_handoff_record *r = NULL;
    bool fresh;
    check_ok(corral_handoff_add(life->h, worker, epoch, sequence, user_of(worker, epoch, sequence), &fresh,
                                &r, &err));
    assert_int_equal(fresh, saved->trained[worker][epoch][sequence] == 0);
    if (fresh) {
        life->held[life->held_count++] = r;
    }
}

static struct corral_handoff_record *take(struct life *life, uint32_t i)
{
    struct corral_handoff_record *r = life->held[i];
    life->held[i] = life->held[--life->held_count];
    return r;
}

/* The state says "used" of exactly what history says. */
static void check_covers(const struct corral_handoff_state *s, const struct history *want)
{
    for (uint32_t w = 0; w < WORKERS; w++) {
        for (uint32_t e = 1; e <= EPOCHS; e++) {
            for (uint64_t q = 1; q <= RECORDS; q++) {
                assert_int_equal(corral_handoff_covers(s, w, e, q), want->trained[w][e][q]);
            }
        }
    }
}

static void live_once(struct corral_handoff_state *state, struct history *history, struct corral_rng *rng)
{
    struct corral_error err;
    static struct life life;
    memset(&life, 0, sizeof life);
    check_ok(corral_handoff_create(&life.h, on_finish, &life.told, &err));
    check_ok(corral_handoff_restore(life.h, state, &err));
    struct history now = *history;
    uint32_t epoch[WORKERS];
    uint64_t next[WORKERS];
    for (uint32_t w = 0; w < WORKERS; w++) { /* what the receiver lets through: from the cursor on */
        epoch[w] = 1;
        next[w] = 1;
        for (uint32_t i = 0; i < state->cursor_count; i++) {
            if (state->cursor[i].worker == w) {
                epoch[w] = state->cursor[i].epoch;
                next[w] = state->cursor[i].sequence + 1;
            }
        }
    }
    uint32_t steps = 20 + (uint32_t)corral_rng_below(rng, 200);
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t w = (uint32_t)corral_rng_below(rng, WORKERS);
        if (next[w] > RECORDS && epoch[w] < EPOCHS) {
            epoch[w]++;
            next[w] = 1;
        }
        if (next[w] <= RECORDS) {
            deliver(&life, w, epoch[w], next[w]++, history);
        }
        if (life.held_count < 10 || corral_rng_below(rng, 3) > 0) {
            continue;
        }
        struct corral_handoff_record *batch[4];
        life.batch++;
        for (uint32_t k = 0; k < 4; k++) {
            batch[k] = take(&life, (uint32_t)corral_rng_below(rng, life.held_count));
            corral_handoff_batch(batch[k], life.batch);
            now.trained[batch[k]->worker][batch[k]->epoch][batch[k]->sequence]++;
        }
        corral_handoff_state_free(state);
        check_ok(corral_handoff_save(life.h, life.batch, state, &err));
        *history = now;
        check_covers(state, history);
        for (uint32_t k = 0; k < 4; k++) {
            corral_handoff_use(life.h, batch[k]);
        }
        assert_int_equal(corral_handoff_held(life.h), life.held_count);
    }
    corral_handoff_destroy(life.h);
}

static void every_record_is_used_once_however_often_the_trainer_dies(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    for (int round = 0; round < 30; round++) {
        struct corral_handoff_state saved = {.cursor_count = 0};
        static struct history history;
        memset(&history, 0, sizeof history);
        for (int life = 0; life < 30; life++) {
            live_once(&saved, &history, &rng);
        }
        uint32_t total = 0;
        for (uint32_t w = 0; w < WORKERS; w++) {
            for (uint32_t e = 1; e <= EPOCHS; e++) {
                for (uint32_t q = 1; q <= RECORDS; q++) {
                    assert_true(history.trained[w][e][q] <= 1);
                    total += history.trained[w][e][q];
                }
            }
        }
        assert_true(total > 500);
        corral_handoff_state_free(&saved);
    }
}

static void a_state_as_of_a_batch_leaves_later_batches_out(void **state)
{
    (void)state;
    struct corral_error err;
    static struct told told;
    memset(&told, 0, sizeof told);
    struct corral_handoff *h;
    struct corral_handoff_record *r[6];
    struct corral_handoff_state s;
    bool fresh;
    check_ok(corral_handoff_create(&h, on_finish, &told, &err));
    for (uint64_t i = 0; i < 6; i++) {
        check_ok(corral_handoff_add(h, 1, 1, i + 1, user_of(1, 1, i + 1), &fresh, &r[i], &err));
    }
    corral_handoff_batch(r[1], 1);
    corral_handoff_batch(r[0], 2);
    corral_handoff_batch(r[2], 2);
    corral_handoff_use(h, r[4]); /* dropped: in no batch */
    check_ok(corral_handoff_save(h, 1, &s, &err));
    assert_int_equal(s.cursor[0].sequence, 0);
    assert_int_equal(s.range_count, 2);
    assert_int_equal(s.range[0].first, 2);
    assert_int_equal(s.range[1].first, 5);
    corral_handoff_state_free(&s);
    check_ok(corral_handoff_save(h, 2, &s, &err));
    assert_int_equal(s.cursor[0].sequence, 3);
    assert_int_equal(s.range_count, 1);
    corral_handoff_state_free(&s);
    corral_handoff_use(h, r[1]);
    corral_handoff_use(h, r[2]);
    assert_int_equal(told.count, 3);
    assert_int_equal(corral_handoff_beyond(h), 3);
    corral_handoff_use(h, r[0]);
    assert_int_equal(told.count, 4);
    assert_int_equal(corral_handoff_beyond(h), 1);
    corral_handoff_destroy(h);
}

static void refuses_records_and_states_out_of_order(void **state)
{
    (void)state;
    struct corral_error err;
    static struct told told;
    memset(&told, 0, sizeof told);
    struct corral_handoff *h;
    struct corral_handoff_record *r;
    bool fresh;
    check_ok(corral_handoff_create(&h, on_finish, &told, &err));
    struct corral_handoff_cursor c[2] = {{.worker = 1, .epoch = 2, .sequence = 5}, {.worker = 1}};
    struct corral_handoff_range g[2] = {{1, 2, 8, 9}, {1, 2, 9, 12}};
    struct corral_handoff_state s = {.cursor = c, .cursor_count = 2};
    check_status(corral_handoff_restore(h, &s, &err), CORRAL_INVALID); /* worker 1 twice */
    s = (struct corral_handoff_state){.cursor = c, .cursor_count = 1, .range = g, .range_count = 2};
    check_status(corral_handoff_restore(h, &s, &err), CORRAL_INVALID); /* they overlap */
    g[0].last = 7;
    s.range_count = 1;
    check_status(corral_handoff_restore(h, &s, &err), CORRAL_INVALID); /* backwards */
    g[0] = (struct corral_handoff_range){1, 2, 4, 8};
    check_status(corral_handoff_restore(h, &s, &err), CORRAL_INVALID); /* the cursor covers it */
    g[0] = (struct corral_handoff_range){1, 1, 9, 9};
    check_status(corral_handoff_restore(h, &s, &err), CORRAL_INVALID); /* of an epoch that is over */
    g[0] = (struct corral_handoff_range){1, 2, 7, 8};
    check_ok(corral_handoff_restore(h, &s, &err));
    check_status(corral_handoff_add(h, 1, 2, 5, NULL, &fresh, &r, &err), CORRAL_PROTOCOL);
    check_status(corral_handoff_add(h, 1, 1, 9, NULL, &fresh, &r, &err), CORRAL_PROTOCOL);
    check_status(corral_handoff_add(h, 1, 2, 0, NULL, &fresh, &r, &err), CORRAL_PROTOCOL);
    check_status(corral_handoff_add(h, CORRAL_HANDOFF_WORKERS_MAX, 2, 1, NULL, &fresh, &r, &err),
                 CORRAL_PROTOCOL);
    check_ok(corral_handoff_add(h, 1, 2, 6, user_of(1, 2, 6), &fresh, &r, &err));
    assert_true(fresh);
    corral_handoff_destroy(h);
}

/* ---- shares ---- */

static void a_record_belongs_to_exactly_one_live_rank_and_only_the_dead_one_s_move(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct corral_record_share all = {.seed = seed, .live = 0x3f};
        uint32_t owned[6] = {0};
        for (uint64_t key = 0; key < 3000; key++) {
            uint32_t rank = corral_record_rank(&all, key);
            assert_true(rank < 6);
            owned[rank]++;
            for (uint32_t dead = 0; dead < 6; dead++) {
                struct corral_record_share after = {.seed = seed, .live = 0x3f & ~(1u << dead)};
                uint32_t heir = corral_record_rank(&after, key);
                assert_true(heir < 6 && heir != dead);
                assert_true(rank == dead || heir == rank); /* minimal movement */
            }
        }
        for (uint32_t r = 0; r < 6; r++) {
            assert_in_range(owned[r], 400, 600); /* 500 each, 5 sigma is 102 */
        }
    }
    struct corral_record_share nobody = {.seed = 1};
    assert_int_equal(corral_record_rank(&nobody, 7), CORRAL_SHARE_NOBODY);
}

static void what_a_dead_rank_has_committed_is_nobody_s_and_the_rest_is_somebody_s(void **state)
{
    (void)state;
    struct corral_record_share after = {.seed = 9, .live = 0xb};
    struct corral_handoff_cursor c[] = {{0, 1, 10}, {2, 3, 4}};
    struct corral_handoff_range g[] = {{0, 1, 12, 13}, {0, 2, 2, 2}};
    struct corral_handoff_state committed = {.cursor = c, .cursor_count = 2, .range = g, .range_count = 2};
    struct corral_share_record r = {.worker = 0, .epoch = 1, .sequence = 10, .key = 5};
    assert_int_equal(corral_share_heir(&after, &committed, &r), CORRAL_SHARE_NOBODY);
    for (uint64_t q = 11; q <= 15; q++) {
        r.sequence = q;
        uint32_t heir = corral_share_heir(&after, &committed, &r);
        bool used = q == 12 || q == 13;
        assert_int_equal(heir, used ? CORRAL_SHARE_NOBODY : corral_record_rank(&after, 5));
        assert_true(used || (after.live >> heir & 1) == 1);
    }
    r = (struct corral_share_record){.worker = 0, .epoch = 2, .sequence = 2};
    assert_int_equal(corral_share_heir(&after, &committed, &r), CORRAL_SHARE_NOBODY);
    r.sequence = 1;
    assert_int_not_equal(corral_share_heir(&after, &committed, &r), CORRAL_SHARE_NOBODY);
    r = (struct corral_share_record){.worker = 1, .epoch = 1, .sequence = 1};
    assert_int_not_equal(corral_share_heir(&after, &committed, &r), CORRAL_SHARE_NOBODY);
}

static void completions_of_a_group_stay_together(void **state)
{
    (void)state;
    assert_true(corral_record_key(1, 8, 77, 3) == corral_record_key(2, 8, 77, 4));
    assert_true(corral_record_key(1, 0, 77, 3) != corral_record_key(2, 0, 77, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_record_is_used_once_however_often_the_trainer_dies),
        cmocka_unit_test(a_state_as_of_a_batch_leaves_later_batches_out),
        cmocka_unit_test(refuses_records_and_states_out_of_order),
        cmocka_unit_test(a_record_belongs_to_exactly_one_live_rank_and_only_the_dead_one_s_move),
        cmocka_unit_test(what_a_dead_rank_has_committed_is_nobody_s_and_the_rest_is_somebody_s),
        cmocka_unit_test(completions_of_a_group_stay_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
