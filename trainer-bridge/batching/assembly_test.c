/* The reader without its sockets: workers that keep what is not acknowledged and send it again, a trainer that is killed anywhere and goes on from what it saved. */
#include "tests/check.h"

#include "base/rng.h"
#include "trainer-bridge/batching/assembly.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS 3
#define RECORDS 240 /* of each worker */
#define GROUP_SIZE 4
#define RUN 77
#define SAVED_MAX 65536

struct source {
    uint32_t acked[WORKERS];             /* what each worker may forget */
    bool finished[WORKERS][RECORDS + 2]; /* in this life of the trainer */
    uint32_t sent[WORKERS];              /* in this life of the trainer */
};

struct log { /* of a trainer, as its checkpoint has it */
    uint8_t used[WORKERS][RECORDS + 1], settled;
    uint64_t group[WORKERS * RECORDS];
    uint32_t groups, batches, trained;
    uint8_t saved[SAVED_MAX];
    uint64_t saved_bytes;
};

struct life {
    struct corral_trainer_options o;
    struct corral_assembly *a;
    struct source *source;
    struct log *log;
    struct corral_rng *rng;
    uint64_t now, version;
};

/* Worker w's record q is completion (w + 3 q) of all, shuffled a little, so that groups are spread over workers and over time. */
static struct corral_trainer_record make_record(uint32_t worker, uint32_t sequence)
{
    static const uint8_t payload[64];
    uint32_t n = (sequence - 1) * WORKERS + worker, block = n / (5 * GROUP_SIZE), in = n % (5 * GROUP_SIZE);
    uint32_t mixed = block * 5 * GROUP_SIZE + in * 7 % (5 * GROUP_SIZE);
    struct corral_trainer_record r = {.data = payload,
                                      .bytes = sizeof payload,
                                      .worker = worker,
                                      .epoch = 1,
                                      .sequence = sequence,
                                      .tokens = 1 + n % 100,
                                      .version_min = 1,
                                      .group = mixed / GROUP_SIZE,
                                      .group_index = mixed % GROUP_SIZE,
                                      .group_size = GROUP_SIZE,
                                      .score = mixed / GROUP_SIZE % 5 == 0 ? 1 : mixed % GROUP_SIZE};
    return r;
}

static void on_finish(void *ctx, const void *item)
{
    struct source *s = ctx;
    uint32_t id = (uint32_t)(uintptr_t)item;
    assert_false(s->finished[id / 1000][id % 1000]);
    s->finished[id / 1000][id % 1000] = true;
    while (s->finished[id / 1000][s->acked[id / 1000] + 1]) {
        s->acked[id / 1000]++;
    }
}

static void come_up(struct life *l)
{
    struct corral_error err;
    static struct corral_handoff_cursor cursor[CORRAL_HANDOFF_WORKERS_MAX];
    uint32_t count = 0;
    check_ok(corral_assembly_check(&l->o, &err));
    check_ok(corral_assembly_create(&l->a, &l->o, on_finish, l->source, &err));
    memcpy(l->source->sent, l->source->acked, sizeof l->source->sent);
    memset(l->source->finished, 0, sizeof l->source->finished);
    if (l->log->saved_bytes > 0) {
        check_ok(
            corral_assembly_restore(l->a, RUN, l->log->saved, l->log->saved_bytes, cursor, &count, &err));
    }
    for (uint32_t i = 0; i < count; i++) {
        /* The receiver says what it has: nothing acknowledged may be unknown to the restored state. */
        assert_true(cursor[i].sequence >= l->source->acked[cursor[i].worker]);
        l->source->sent[cursor[i].worker] = (uint32_t)cursor[i].sequence;
        l->source->acked[cursor[i].worker] = (uint32_t)cursor[i].sequence;
    }
}

static bool deliver_one(struct life *l)
{
    struct corral_error err;
    uint32_t w = (uint32_t)corral_rng_below(l->rng, WORKERS);
    for (uint32_t i = 0; i < WORKERS && l->source->sent[w] == RECORDS; i++) {
        w = (w + 1) % WORKERS;
    }
    if (l->source->sent[w] == RECORDS || !corral_assembly_wants(l->a)) {
        return false;
    }
    struct corral_trainer_record r = make_record(w, ++l->source->sent[w]);
    const void *item = (const void *)(uintptr_t)(w * 1000 + r.sequence); /* NOLINT */
    check_ok(corral_assembly_add(l->a, &r, CORRAL_ASSEMBLY_USABLE, NULL, item, l->now, &err));
    return true;
}

static void save(struct life *l, const struct corral_trainer_batch *b)
{
    struct corral_error err;
    struct log *log = l->log;
    uint64_t need = 0;
    check_ok(corral_assembly_save(l->a, b, RUN, NULL, &need, &err));
    assert_true(need <= SAVED_MAX);
    log->saved_bytes = need - 1;
    check_status(corral_assembly_save(l->a, b, RUN, log->saved, &log->saved_bytes, &err), CORRAL_INVALID);
    log->saved_bytes = SAVED_MAX;
    check_ok(corral_assembly_save(l->a, b, RUN, log->saved, &log->saved_bytes, &err));
    assert_int_equal(log->saved_bytes, need);
    log->batches++;
    assert_int_equal(b->number, log->batches);
    for (uint32_t i = 0; i < b->count; i++) {
        const struct corral_trainer_record *r = &b->records[i];
        log->used[r->worker][r->sequence]++;
        log->trained++;
    }
    for (uint32_t g = 0; g < b->group_count; g++) {
        log->group[log->groups++] = b->groups[g].id;
        for (uint32_t i = 0; i < b->groups[g].count; i++) {
            const struct corral_trainer_record *r = &b->records[b->groups[g].first + i];
            assert_true(r->group == b->groups[g].id && r->group_index == i);
        }
    }
}

/* Until nothing comes any more, or death. True: the end was reached. */
static bool live(struct life *l, uint32_t deaths_in)
{
    struct corral_error err;
    const struct corral_trainer_batch *out[2];
    uint32_t held = 0;
    come_up(l);
    bool alive = true, more = true;
    while (alive && more) {
        more = deliver_one(l);
        l->now++;
        enum corral_status status =
            held < 2 ? corral_assembly_next(l->a, l->now, &out[held], &err) : CORRAL_AGAIN;
        if (status == CORRAL_AGAIN && held < 2 && (!more || corral_assembly_unsettled(l->a) > 40)) {
            status = corral_assembly_settle(l->a, &out[held], &err);
        }
        assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
        held += status == CORRAL_OK;
        more = more || status == CORRAL_OK || held > 0;
        if (held == 2 || (held > 0 && (status == CORRAL_AGAIN || corral_rng_below(l->rng, 2) == 0))) {
            alive = deaths_in == 0 || corral_rng_below(l->rng, deaths_in) > 0;
            if (alive) {
                save(l, out[0]);
                alive = deaths_in == 0 || corral_rng_below(l->rng, deaths_in) > 0;
            }
            if (alive) {
                corral_assembly_done(l->a, out[0], ++l->version);
                out[0] = out[1];
                held--;
            }
        }
    }
    corral_assembly_destroy(l->a);
    return alive;
}

static void run_to_the_end(struct life *l, uint32_t deaths_in)
{
    for (uint32_t lives = 0; lives < 200 && !live(l, lives < 100 ? deaths_in : 0); lives++) {
    }
}

static struct life begin(struct corral_rng *rng)
{
    static struct source source;
    static struct log log;
    memset(&source, 0, sizeof source);
    memset(&log, 0, sizeof log);
    struct life l = {.source = &source, .log = &log, .rng = rng, .version = 1};
    l.o = (struct corral_trainer_options){.size = sizeof l.o, .run = RUN, .batch = 5, .workers = WORKERS};
    return l;
}

static void check_each_once(const struct log *log, uint32_t trained)
{
    for (uint32_t w = 0; w < WORKERS; w++) {
        for (uint32_t q = 1; q <= RECORDS; q++) {
            assert_true(log->used[w][q] <= 1);
        }
    }
    assert_int_equal(log->trained, trained);
}

static void each_record_is_in_one_batch_however_often_the_trainer_dies(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    for (int round = 0; round < 40; round++) {
        struct life l = begin(&rng);
        l.o.mode = round % 2 == 0 ? CORRAL_TRAINER_STREAM : CORRAL_TRAINER_FRAGMENTS;
        l.o.shuffle = round % 4 > 1;
        run_to_the_end(&l, 6);
        check_each_once(l.log, WORKERS * RECORDS);
        for (uint32_t w = 0; w < WORKERS; w++) {
            assert_int_equal(l.source->acked[w], RECORDS);
        }
    }
}

static void groups_come_once_and_in_order_however_often_the_trainer_dies(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    for (int round = 0; round < 40; round++) {
        struct life l = begin(&rng);
        l.o.mode = CORRAL_TRAINER_GROUPS;
        l.o.group_size = GROUP_SIZE;
        l.o.batch = 3;
        l.o.group_ordered = round % 2 == 0;
        l.o.drop_flat = round % 4 < 2;
        l.o.groups_max = round % 3 == 0 ? 6 : 0;
        run_to_the_end(&l, 6);
        uint32_t all = WORKERS * RECORDS / GROUP_SIZE, wanted = l.o.drop_flat ? all / 5 * 4 : all;
        wanted = wanted / 3 * 3; /* whole batches */
        assert_int_equal(l.log->groups, wanted);
        check_each_once(l.log, wanted * GROUP_SIZE);
        uint64_t next = 0;
        for (uint32_t g = 0; l.o.group_ordered && g < wanted; g++, next++) {
            next += l.o.drop_flat && next % 5 == 0;
            assert_int_equal(l.log->group[g], next);
        }
    }
}

static void the_same_records_give_the_same_batches(void **state)
{
    (void)state;
    struct corral_rng rng;
    static struct log first;
    for (uint64_t seed = 0; seed < 10; seed++) {
        corral_rng_seed(&rng, seed);
        struct life l = begin(&rng);
        l.o.mode = CORRAL_TRAINER_GROUPS;
        l.o.group_size = GROUP_SIZE;
        l.o.batch = 4;
        l.o.group_ordered = l.o.shuffle = 1;
        l.o.seed = 9;
        run_to_the_end(&l, seed);
        if (seed == 0) {
            first = *l.log;
            bool shuffled = false;
            for (uint32_t g = 1; g < first.groups; g++) {
                shuffled = shuffled || first.group[g] < first.group[g - 1];
            }
            assert_true(shuffled);
        }
        assert_memory_equal(l.log->group, first.group, sizeof first.group);
    }
}

/* ---- one thing at a time ---- */

static void nothing(void *ctx, const void *item)
{
    (void)item;
    ++*(uint32_t *)ctx;
}

static struct corral_assembly *open_with(struct corral_trainer_options o, uint32_t *finished)
{
    struct corral_error err;
    struct corral_assembly *a;
    o.size = sizeof o;
    check_ok(corral_assembly_check(&o, &err));
    check_ok(corral_assembly_create(&a, &o, nothing, finished, &err));
    return a;
}

static void add(struct corral_assembly *a, uint64_t sequence, uint64_t tokens, uint64_t version)
{
    struct corral_error err;
    struct corral_trainer_record r = make_record(0, 1);
    r.sequence = sequence;
    r.tokens = tokens;
    r.version_min = version;
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, NULL, 0, &err));
}

static void what_is_too_old_is_dropped_counted_and_shows_in_the_lengths(void **state)
{
    (void)state;
    struct corral_error err;
    uint32_t finished = 0;
    struct corral_assembly *a = open_with(
        (struct corral_trainer_options){.batch = 2, .staleness_bounded = 1, .max_staleness = 1, .version = 4},
        &finished);
    const struct corral_trainer_batch *b;
    struct corral_trainer_stats s = {.size = sizeof s};
    add(a, 1, 10, 4);
    add(a, 2, 90, 2); /* too old on arrival */
    add(a, 3, 10, 3);
    check_ok(corral_assembly_next(a, 0, &b, &err));
    assert_int_equal(b->settled, 1);
    assert_true(b->staleness_mean == 0.5 && b->staleness_max == 1);
    add(a, 4, 70, 3); /* becomes too old while it waits */
    add(a, 5, 30, 5);
    assert_int_equal(finished, 0);
    corral_assembly_done(a, b, 5);
    assert_int_equal(finished, 3);
    check_status(corral_assembly_next(a, 0, &b, &err), CORRAL_AGAIN);
    assert_non_null(strstr(err.text, "1 of 2 records are here"));
    check_ok(corral_assembly_settle(a, &b, &err));
    assert_int_equal(b->count, 0);
    assert_int_equal(b->settled, 1);
    corral_assembly_done(a, b, 5);
    assert_int_equal(finished, 4);
    corral_assembly_stats(a, &s);
    assert_int_equal(s.stale, 2);
    assert_true(s.mean_kept == 10 && s.mean_dropped == 80);
    assert_true(fabs(s.length_ratio - 10 / 45.0) < 1e-12);
    assert_non_null(strstr(s.waiting, "waits for rollouts"));
    corral_assembly_destroy(a);
}

static void malformed_records_are_acknowledged_and_named(void **state)
{
    (void)state;
    struct corral_error err;
    uint32_t finished = 0;
    struct corral_assembly *a =
        open_with((struct corral_trainer_options){.batch = 1, .pack_tokens = 50}, &finished);
    const struct corral_trainer_batch *b;
    struct corral_trainer_stats s = {.size = sizeof s};
    struct corral_trainer_record r = make_record(0, 1);
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_MALFORMED, "the map is cut off", NULL, 0, &err));
    corral_assembly_stats(a, &s);
    assert_string_equal(s.last_error, "worker 0, record 1/1: the map is cut off");
    add(a, 2, 51, 0);
    corral_assembly_stats(a, &s);
    assert_non_null(strstr(s.last_error, "more than a bin"));
    add(a, 3, 50, 0);
    check_ok(corral_assembly_next(a, 0, &b, &err));
    assert_true(b->count == 1 && b->settled == 2 && b->bins == 1 && b->padding == 0);
    corral_assembly_done(a, b, 0);
    assert_int_equal(finished, 3);
    corral_assembly_stats(a, &s);
    assert_int_equal(s.malformed, 2);
    check_status(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, NULL, 0, &err), CORRAL_PROTOCOL);
    corral_assembly_destroy(a);
}

static void a_failed_completion_is_asked_for_again(void **state)
{
    (void)state;
    struct corral_error err;
    uint32_t finished = 0, index;
    uint64_t group;
    struct corral_assembly *a = open_with((struct corral_trainer_options){.mode = CORRAL_TRAINER_GROUPS,
                                                                          .batch = 1,
                                                                          .group_size = 2,
                                                                          .group_min = 1,
                                                                          .group_deadline_ms = 1,
                                                                          .group_replacements = 1},
                                          &finished);
    const struct corral_trainer_batch *b;
    struct corral_trainer_record r = {.worker = 1, .epoch = 1, .sequence = 1, .group = 9, .group_size = 2};
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_FAILED, NULL, NULL, 0, &err));
    assert_true(corral_assembly_replacement(a, &group, &index) && group == 9 && index == 0);
    r.sequence = 2;
    r.group_index = 1;
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, NULL, 0, &err));
    check_status(corral_assembly_next(a, 999999, &b, &err), CORRAL_AGAIN);
    assert_non_null(strstr(err.text, "group 9: 1 of 2 completions are here"));
    assert_true(corral_assembly_deadline(a) == 1000000);
    check_ok(corral_assembly_next(a, 1000000, &b, &err));
    assert_true(b->count == 1 && b->groups[0].count == 1 && b->settled == 1);
    r.sequence = 3; /* the wrong size */
    r.group_size = 3;
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, NULL, 0, &err));
    corral_assembly_done(a, b, 0);
    struct corral_trainer_stats s = {.size = sizeof s};
    corral_assembly_stats(a, &s);
    assert_true(s.failed == 1 && s.malformed == 1 && s.groups_shortened == 1);
    corral_assembly_destroy(a);
}

static void replay_takes_each_record_in_once_and_keeps_the_ratio(void **state)
{
    (void)state;
    struct corral_error err;
    for (uint32_t kind = CORRAL_TRAINER_FIFO; kind <= CORRAL_TRAINER_PRIORITISED; kind++) {
        uint32_t finished = 0, batches = 0;
        struct corral_assembly *a =
            open_with((struct corral_trainer_options){.batch = 4,
                                                      .replay = kind,
                                                      .replay_items = 50,
                                                      .replay_times = kind == CORRAL_TRAINER_FIFO ? 2 : 0,
                                                      .replay_min = 10,
                                                      .replay_alpha = 0.6,
                                                      .replay_beta = 0.4,
                                                      .samples_per_insert = 2},
                      &finished);
        const struct corral_trainer_batch *b;
        uint64_t sequence = 0;
        for (uint32_t i = 0; i < 2000; i++) {
            if (corral_assembly_wants(a)) {
                add(a, ++sequence, 5, 0);
            }
            enum corral_status status = corral_assembly_next(a, 0, &b, &err);
            if (status == CORRAL_AGAIN) {
                continue;
            }
            check_ok(status);
            assert_int_equal(b->count, 4);
            for (uint32_t k = 0; k < 4; k++) {
                assert_true(b->records[k].weight > 0 && b->records[k].weight <= 1 && b->records[k].times > 0);
                assert_true(((uintptr_t)b->records[k].data & 63) == 0);
            }
            double p[4] = {1, 2, 0.5, 3};
            check_status(corral_assembly_priorities(a, b, p, &err), CORRAL_OK);
            p[1] = -1;
            check_status(corral_assembly_priorities(a, b, p, &err), CORRAL_INVALID);
            corral_assembly_done(a, b, 0);
            batches++;
        }
        struct corral_trainer_stats s = {.size = sizeof s};
        corral_assembly_stats(a, &s);
        assert_true(fabs((double)batches * 4 / (double)sequence - 2) < 0.1);
        assert_true(s.replay_items <= 50 && finished >= sequence - 20);
        corral_assembly_destroy(a);
    }
}

static void refuses_options_that_could_not_work(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_trainer_options wrong[] = {
        {.batch = 0},
        {.batch = 1, .mode = 3},
        {.batch = 1, .mode = CORRAL_TRAINER_FRAGMENTS},
        {.batch = 1u << 30},
        {.batch = 1, .mode = CORRAL_TRAINER_GROUPS},
        {.batch = 1u << 17, .mode = CORRAL_TRAINER_GROUPS, .group_size = 4},
        {.batch = 8, .replay = CORRAL_TRAINER_UNIFORM, .replay_items = 4},
        {.batch = 8, .replay = 9, .replay_items = 40},
        {.batch = 8, .replay = 1, .replay_items = 40, .mode = CORRAL_TRAINER_GROUPS, .group_size = 4},
        {.batch = 8, .replay = 2, .replay_items = 40, .samples_per_insert = 1, .samples_error = 7},
        {.batch = 8, .replay = 2, .replay_items = 40, .samples_per_insert = -1},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(wrong); i++) {
        check_status(corral_assembly_check(&wrong[i], &err), CORRAL_INVALID);
    }
}

static void damaged_cursors_are_refused(void **state)
{
    (void)state;
    struct corral_error err;
    static struct corral_handoff_cursor cursor[CORRAL_HANDOFF_WORKERS_MAX];
    uint32_t finished = 0, count;
    struct corral_assembly *a = open_with((struct corral_trainer_options){.batch = 2}, &finished), *again;
    const struct corral_trainer_batch *b;
    uint8_t saved[512];
    uint64_t bytes = sizeof saved;
    for (uint64_t i = 1; i <= 3; i++) {
        add(a, i, 1, 0);
    }
    check_ok(corral_assembly_next(a, 0, &b, &err));
    check_ok(corral_assembly_save(a, b, 5, saved, &bytes, &err));
    for (uint64_t i = 0; i < bytes; i++) {
        again = open_with((struct corral_trainer_options){.batch = 2}, &finished);
        saved[i] ^= 4;
        assert_int_not_equal(corral_assembly_restore(again, 5, saved, bytes, cursor, &count, &err),
                             CORRAL_OK);
        saved[i] ^= 4;
        check_status(corral_assembly_restore(again, 5, saved, i, cursor, &count, &err), CORRAL_PROTOCOL);
        corral_assembly_destroy(again);
    }
    again = open_with((struct corral_trainer_options){.batch = 2}, &finished);
    check_status(corral_assembly_restore(again, 6, saved, bytes, cursor, &count, &err), CORRAL_INVALID);
    check_ok(corral_assembly_restore(again, 5, saved, bytes, cursor, &count, &err));
    assert_int_equal(count, 1);
    assert_int_equal(cursor[0].sequence, 2);
    corral_assembly_destroy(again);
    corral_assembly_destroy(a);
}

static void add_member(struct corral_assembly *a, uint64_t sequence, uint64_t group, uint32_t index,
                       double score)
{
    struct corral_error err;
    struct corral_trainer_record r = make_record(0, 1);
    r.sequence = sequence;
    r.group = group;
    r.group_index = index;
    r.group_size = 2;
    r.score = score;
    check_ok(corral_assembly_add(a, &r, CORRAL_ASSEMBLY_USABLE, NULL, NULL, 0, &err));
}

/* Life after life: each gets what the one before saved with an empty batch. */
static struct corral_assembly *next_life(struct corral_assembly *a, struct corral_trainer_options o,
                                         uint32_t *finished)
{
    static struct corral_handoff_cursor cursor[CORRAL_HANDOFF_WORKERS_MAX];
    static uint8_t saved[SAVED_MAX];
    struct corral_error err;
    const struct corral_trainer_batch *b;
    uint64_t bytes = sizeof saved;
    uint32_t count;
    check_status(corral_assembly_next(a, 0, &b, &err), CORRAL_AGAIN);
    check_ok(corral_assembly_settle(a, &b, &err));
    assert_int_equal(b->count, 0);
    check_ok(corral_assembly_save(a, b, RUN, saved, &bytes, &err));
    corral_assembly_done(a, b, 1);
    corral_assembly_destroy(a);
    a = open_with(o, finished);
    check_ok(corral_assembly_restore(a, RUN, saved, bytes, cursor, &count, &err));
    return a;
}

/* Group 0 is whole and waits for company; far more groups behind it than the window has are dropped. Nothing of these comes again, in any later life. */
static void groups_that_were_dropped_are_never_waited_for_again(void **state)
{
    (void)state;
    enum { DROPPED = 50 };
    struct corral_error err;
    const struct corral_trainer_batch *b;
    uint32_t finished = 0;
    uint64_t sequence = 0;
    const struct corral_trainer_options o = {.batch = 2,
                                             .mode = CORRAL_TRAINER_GROUPS,
                                             .group_size = 2,
                                             .group_ordered = 1,
                                             .groups_max = 4,
                                             .drop_flat = 1};
    struct corral_assembly *a = open_with(o, &finished);
    for (uint64_t g = 0; g <= DROPPED; g++) {
        add_member(a, ++sequence, g, 0, 1);
        add_member(a, ++sequence, g, 1, g > 0 ? 1 : 2);
        check_status(corral_assembly_next(a, 0, &b, &err), CORRAL_AGAIN);
    }
    a = next_life(a, o, &finished);
    assert_int_equal(finished, 2 * DROPPED);
    /* In this life nothing happens but that one more record is dropped, before the order comes to the groups that were. */
    add_member(a, 1, 0, 0, 1); /* sent again: no state covers these two */
    add_member(a, 2, 0, 1, 2);
    add_member(a, ++sequence, 1, 0, 1);
    a = next_life(a, o, &finished);
    add_member(a, 1, 0, 0, 1);
    add_member(a, 2, 0, 1, 2);
    add_member(a, ++sequence, DROPPED + 1, 0, 1);
    add_member(a, ++sequence, DROPPED + 1, 1, 2);
    check_ok(corral_assembly_next(a, 0, &b, &err));
    assert_true(b->group_count == 2 && b->groups[0].id == 0 && b->groups[1].id == DROPPED + 1);
    corral_assembly_destroy(a);
}

static void a_batch_is_done_once_and_no_position_is_saved_with_it_afterwards(void **state)
{
    (void)state;
    struct corral_error err;
    uint32_t finished = 0;
    const struct corral_trainer_batch *first, *second;
    struct corral_assembly *a = open_with((struct corral_trainer_options){.batch = 1}, &finished);
    uint8_t saved[512];
    uint64_t bytes = sizeof saved;
    add(a, 1, 1, 0);
    add(a, 2, 1, 0);
    check_ok(corral_assembly_next(a, 0, &first, &err));
    check_ok(corral_assembly_next(a, 0, &second, &err));
    corral_assembly_done(a, second, 1); /* waits for the first: a position says "up to here" */
    corral_assembly_done(a, second, 2);
    assert_int_equal(finished, 0);
    check_status(corral_assembly_save(a, second, RUN, saved, &bytes, &err), CORRAL_INVALID);
    check_status(corral_assembly_next(a, 0, &second, &err), CORRAL_AGAIN);
    assert_non_null(strstr(err.text, "2 batches are not done, 128 of 268435456 bytes are held"));
    corral_assembly_done(a, first, 2);
    corral_assembly_done(a, NULL, 2);
    assert_int_equal(finished, 2);
    corral_assembly_destroy(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_record_is_in_one_batch_however_often_the_trainer_dies),
        cmocka_unit_test(groups_come_once_and_in_order_however_often_the_trainer_dies),
        cmocka_unit_test(the_same_records_give_the_same_batches),
        cmocka_unit_test(what_is_too_old_is_dropped_counted_and_shows_in_the_lengths),
        cmocka_unit_test(malformed_records_are_acknowledged_and_named),
        cmocka_unit_test(a_failed_completion_is_asked_for_again),
        cmocka_unit_test(replay_takes_each_record_in_once_and_keeps_the_ratio),
        cmocka_unit_test(refuses_options_that_could_not_work),
        cmocka_unit_test(damaged_cursors_are_refused),
        cmocka_unit_test(groups_that_were_dropped_are_never_waited_for_again),
        cmocka_unit_test(a_batch_is_done_once_and_no_position_is_saved_with_it_afterwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
