/* Power cuts: of what was not synced, anything may be missing. What was said to be durable is there, whole and in order; nothing is there that was not appended. */
#include "tests/check.h"
#include "transport/trajectory/wal/test_power.h"
#include "transport/trajectory/wal/test_wal.h"
#include "transport/trajectory/wal/wal_private.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIVES 12 /* logs that are written */
#define CUTS 30  /* power cuts in each */
#define APPENDS_MAX 250
#define MARKS_MAX (APPENDS_MAX + 1)

struct mark { /* what was known when so many events had happened */
    uint64_t at, durable, appended, trimmed;
};

struct life {
    struct power *power;
    uint64_t old; /* what is up to here, the life before wrote */
    struct mark marks[MARKS_MAX];
    uint32_t mark_count;
};

/* Lives write different records under the same position, so that one of an earlier life cannot pass for one of a later. */
static uint64_t content(const struct life *l, uint64_t position, uint8_t out[TEST_RECORD_MAX])
{
    return test_record(position <= l->old ? position : position + 1000000, out);
}

static void note(struct life *l, struct corral_wal *w, uint64_t trimmed)
{
    struct corral_error err;
    struct mark *m = &l->marks[l->mark_count++];
    uint64_t durable = 0;
    check_ok(
        corral_wal_durable(w, &durable, &err)); /* before the events are counted: it was durable by then */
    *m = (struct mark){
        .at = power_now(l->power), .durable = durable, .appended = corral_wal_last(w), .trimmed = trimmed};
}

static void live(struct life *l, const char *folder, uint32_t appends, bool first_life,
                 struct corral_rng *rng)
{
    struct corral_error err;
    struct corral_wal *w = NULL;
    l->power = power_create(folder);
    l->mark_count = 0;
    struct wal_files files = power_files(l->power);
    struct corral_wal_options o = {
        .folder = folder, .run = TEST_RUN, .segment_bytes = 4096u << corral_rng_below(rng, 4)};
    check_ok(wal_open_with(&w, &o, &files, &err));
    uint64_t trimmed = corral_wal_first(w) - 1;
    l->old = first_life ? UINT64_MAX : corral_wal_last(w);
    note(l, w, trimmed);
    for (uint32_t i = 0; i < appends; i++) {
        uint8_t record[TEST_RECORD_MAX];
        uint64_t position, dice = corral_rng_below(rng, 40);
        check_ok(corral_wal_append(w, record, content(l, corral_wal_last(w) + 1, record), &position, &err));
        if (dice == 0) {
            test_wait_durable(w, position);
        } else if (dice == 1 && position > 30) {
            trimmed = CORRAL_MAX(trimmed, position - 30);
            /* From when it is asked for, the segments may be gone. */
            l->marks[l->mark_count - 1].trimmed = trimmed;
            check_ok(corral_wal_trim(w, trimmed, &err));
        }
        note(l, w, trimmed);
    }
    check_ok(corral_wal_close(w, &err));
}

/* What must hold if the power is cut after `at` events: the newest of both sides' knowledge. */
static struct mark known_at(const struct life *l, uint64_t at)
{
    struct mark m = {0};
    for (uint32_t i = 0; i < l->mark_count; i++) {
        if (l->marks[i].at <= at) {
            m.durable = l->marks[i].durable;
        }
        /* What is being appended or trimmed at that moment belongs to the next mark. */
        m.appended = l->marks[i].appended;
        m.trimmed = l->marks[i].trimmed;
        if (l->marks[i].at > at) {
            break;
        }
    }
    return m;
}

static void check_image(const struct life *l, const char *folder, const struct mark *known)
{
    struct corral_error err;
    struct corral_wal_reader *r = NULL;
    check_ok(corral_wal_reader_open(&r, folder, 0, &err));
    struct corral_wal_item item;
    uint64_t last = 0;
    enum corral_status status;
    while ((status = corral_wal_reader_next(r, &item, &err)) == CORRAL_OK) {
        uint8_t expected[TEST_RECORD_MAX];
        uint64_t bytes = content(l, item.position, expected);
        if (last == 0) {
            assert_true(item.position <= known->trimmed + 1);
        } else {
            assert_int_equal(item.position, last + 1);
        }
        assert_int_equal(item.bytes, bytes);
        assert_memory_equal(item.data, expected, bytes);
        last = item.position;
    }
    if (status != CORRAL_AGAIN) {
        fail_msg("%s", err.text);
    }
    if (last < CORRAL_MAX(known->durable, known->trimmed) && known->durable > known->trimmed) {
        fail_msg("durable %lu, trimmed %lu, read only up to %lu", (unsigned long)known->durable,
                 (unsigned long)known->trimmed, (unsigned long)last);
    }
    assert_true(last <= known->appended);
    corral_wal_reader_close(r);
}

static void cut_and_check(struct life *l, struct corral_rng *rng, bool again)
{
    static const double keeps[] = {0, 0.2, 0.5, 0.9, 1};
    char folder[TEST_FOLDER_BYTES];
    test_folder(folder);
    uint64_t at = 1 + corral_rng_below(rng, power_now(l->power));
    power_cut(l->power, at, keeps[corral_rng_below(rng, CORRAL_COUNT_OF(keeps))], rng, folder);
    struct mark known = known_at(l, at);
    check_image(l, folder, &known);
    if (again) { /* the next life begins there, and its power is cut too: also while it repairs */
        struct life next;
        live(&next, folder, (uint32_t)corral_rng_below(rng, 80), false, rng);
        assert_true(next.marks[0].appended >= known.durable && next.marks[0].appended <= known.appended);
        for (uint32_t i = 0; i < 6; i++) {
            char deeper[TEST_FOLDER_BYTES];
            test_folder(deeper);
            uint64_t when = corral_rng_below(rng, power_now(next.power) + 1);
            power_cut(next.power, when, keeps[corral_rng_below(rng, CORRAL_COUNT_OF(keeps))], rng, deeper);
            struct mark then = known_at(&next, when);
            then.durable = CORRAL_MAX(then.durable, known.durable);
            then.trimmed = CORRAL_MAX(then.trimmed, known.trimmed);
            check_image(&next, deeper, &then);
            test_remove(deeper);
        }
        power_destroy(next.power);
        struct corral_error err;
        uint64_t last = next.marks[next.mark_count - 1].appended;
        struct corral_wal *w = test_open(folder, 0, CORRAL_WAL_SYNC_GROUP);
        assert_int_equal(corral_wal_last(w), last);
        check_ok(corral_wal_close(w, &err));
    }
    test_remove(folder);
}

static void what_was_durable_survives_every_power_cut(void **state)
{
    (void)state;
    struct corral_rng rng;
    const char *seed = getenv("CORRAL_TEST_SEED");
    corral_rng_seed(&rng, seed != NULL ? strtoull(seed, NULL, 10) : 11);
    for (uint32_t i = 0; i < LIVES; i++) {
        char folder[TEST_FOLDER_BYTES];
        test_folder(folder);
        struct life *l = calloc(1, sizeof *l);
        live(l, folder, APPENDS_MAX, true, &rng);
        for (uint32_t k = 0; k < CUTS; k++) {
            cut_and_check(l, &rng, k % 3 == 0);
        }
        power_destroy(l->power);
        free(l);
        test_remove(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_was_durable_survives_every_power_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
