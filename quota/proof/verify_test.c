#include "base/file.h"
#include "quota/proof/verify.h"
#include "tests/check.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define WITNESSES 64

static char folder[64], path[96];
static struct corral_error err;
static struct corral_chain *chain;
static struct corral_proof_witness noted[WITNESSES];
static struct corral_proof_summary s;

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-verify.XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/chain", folder);
    chain = NULL;
    memset(noted, 0, sizeof noted);
    return corral_chain_open(path, &chain, &err) == CORRAL_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    corral_chain_close(chain);
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_proof_record record(enum corral_proof_type type, uint32_t generation, uint64_t step)
{
    return (struct corral_proof_record){
        .type = type,
        .run = 7,
        .generation = generation,
        .wall_ns = 1,
        .device = "a:0",
        .own_role = "trainer",
        .physical = 100 * MIB,
        .role_count = 2,
        .role = {{.name = "trainer", .floor = 16 * MIB, .ceiling = 64 * MIB, .peak = 10 * MIB},
                 {.name = "rollout", .floor = 32 * MIB, .ceiling = 64 * MIB, .peak = 4 * MIB}},
        .fences = "ledger",
        .step = step,
        .claim_peak = 48 * MIB,
        .slack_min = 52 * MIB,
        .own_peak = 10 * MIB,
        .physical_read = 12 * MIB,
        .ledger = 10 * MIB,
        .baseline = 2 * MIB,
        .drift_max = MIB,
    };
}

static void add(const struct corral_proof_record *r)
{
    char body[8192];
    assert_true(corral_proof_write(r, body, sizeof body) > 0);
    assert_int_equal(corral_chain_append(chain, body, &err), CORRAL_OK);
}

static void put(enum corral_proof_type type, uint32_t generation, uint64_t step)
{
    struct corral_proof_record r = record(type, generation, step);
    add(&r);
}

/* Remember the head as a step report would. */
static void note(int at, uint64_t step, bool durable)
{
    struct corral_chain_head head;
    corral_chain_head(chain, &head);
    noted[at] = (struct corral_proof_witness){.count = head.count, .step = step, .durable = durable};
    memcpy(noted[at].hash, head.hash, sizeof head.hash);
}

static void verify(size_t witnesses)
{
    assert_int_equal(corral_proof_verify(path, noted, witnesses, &s, &err), CORRAL_OK);
}

static void expect_broken(uint64_t recorded, const char *says)
{
    verify(0);
    assert_int_equal(s.broken_record, recorded);
    if (!strstr(s.broken, says)) {
        fail_msg("\"%s\" does not say \"%s\"", s.broken, says);
    }
}

static void a_run_in_order_is_good(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    for (uint64_t i = 1; i <= 10; i++) {
        struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, i);
        r.own_peak = r.role[0].peak = (10 + i) * MIB;
        r.claim_peak += i > 6 ? (i - 6) * MIB : 0;
        r.slack_min = r.physical - r.claim_peak;
        r.role[1].denied = i == 3;
        add(&r);
        note((int)i, i, false);
    }
    put(CORRAL_PROOF_END, 1, 10);
    note(0, 10, true);
    verify(11);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.steps, 10);
    assert_int_equal(s.proven, 10);
    assert_int_equal(s.unproven + s.refused + s.superseded + s.lost, 0);
    assert_int_equal(s.own_peak, 20 * MIB);
    assert_int_equal(s.own_ceiling, 64 * MIB);
    assert_int_equal(s.slack_min, 48 * MIB);
    assert_int_equal(s.denied, 1);
    assert_int_equal(s.head.count, 12);
    assert_true(s.ended);
}

static void steps_taken_again_after_a_crash_count_once(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    for (uint64_t i = 1; i <= 5; i++) {
        put(CORRAL_PROOF_STEP, 1, i);
    }
    struct corral_proof_record doubt = record(CORRAL_PROOF_STEP, 1, 6);
    doubt.verdict = CORRAL_PROOF_UNPROVEN;
    strcpy(doubt.why, "drift");
    add(&doubt);
    put(CORRAL_PROOF_RESTART, 2, 5);
    put(CORRAL_PROOF_STEP, 2, 6);
    verify(0);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.steps, 6);
    assert_int_equal(s.proven, 6); /* the doubtful one was superseded */
    assert_int_equal(s.superseded, 1);
    assert_int_equal(s.doubt_step, 0);
    assert_int_equal(s.restarts, 1);
}

static void counts_what_is_unproven_and_refused(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, 1);
    r.verdict = CORRAL_PROOF_REFUSED;
    strcpy(r.why, "no room");
    add(&r);
    put(CORRAL_PROOF_STEP, 1, 1);
    r = record(CORRAL_PROOF_STEP, 1, 2);
    r.verdict = CORRAL_PROOF_UNPROVEN;
    r.claim_peak = r.physical + 5; /* fails the check, and says that it is not proven */
    r.slack_min = 0;
    strcpy(r.why, "claims");
    add(&r);
    verify(0);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.steps, 2);
    assert_int_equal(s.proven, 1);
    assert_int_equal(s.unproven, 1);
    assert_int_equal(s.doubt_step, 2);
    assert_int_equal(s.doubt_record, 4);
    assert_string_equal(s.doubt, "claims");
    assert_int_equal(s.refused, 1);
    assert_int_equal(s.refused_record, 2);
    assert_string_equal(s.refusal, "no room");
}

static void a_step_left_out_or_repeated_is_found(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    put(CORRAL_PROOF_STEP, 1, 3);
    expect_broken(3, "step 3 after step 1");
}

static void a_repeated_step_is_found(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 4);
    put(CORRAL_PROOF_STEP, 1, 5);
    put(CORRAL_PROOF_STEP, 1, 5);
    expect_broken(3, "step 5 after step 5");
}

static void a_proven_step_that_crossed_is_found(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, 1);
    r.claim_peak = r.physical + 1;
    r.slack_min = 0;
    add(&r);
    expect_broken(2, "step 1: claims");
}

static void limits_must_be_those_in_force(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    struct corral_proof_record limits = record(CORRAL_PROOF_LIMITS, 1, 0);
    limits.role[1].ceiling = 40 * MIB;
    add(&limits);
    struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, 1);
    r.role[1].ceiling = 40 * MIB;
    add(&r);
    verify(0);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.role[1].ceiling, 40 * MIB);
    put(CORRAL_PROOF_STEP, 1, 2);
    expect_broken(4, "not those in force");
}

static void overcommit_is_one_of_the_limits(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, 1);
    r.overcommit_ppm = 1300000; /* its ceilings are within that */
    add(&r);
    expect_broken(2, "not those in force");
}

static void limits_of_another_place_are_found(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    struct corral_proof_record limits = record(CORRAL_PROOF_LIMITS, 1, 0);
    strcpy(limits.device, "a:1");
    add(&limits);
    expect_broken(3, "limits of trainer on a:1");
}

static void the_highest_ceiling_in_force_is_told(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    struct corral_proof_record limits = record(CORRAL_PROOF_LIMITS, 1, 0);
    for (uint64_t step = 1; step <= 2; step++) {
        limits.role[0].ceiling = step == 1 ? 66 * MIB : 40 * MIB;
        add(&limits);
        struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, step);
        r.role[0].ceiling = limits.role[0].ceiling;
        add(&r);
    }
    verify(0);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.own_ceiling, 66 * MIB);
    assert_int_equal(s.role[0].ceiling, 40 * MIB);
    assert_int_equal(s.limit_changes, 2);
}

static void the_order_of_records_is_checked(void **state)
{
    (void)state;
    put(CORRAL_PROOF_STEP, 1, 1);
    expect_broken(1, "must begin");
}

static void nothing_but_a_restart_follows_the_end(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    put(CORRAL_PROOF_END, 1, 1);
    put(CORRAL_PROOF_RESTART, 2, 1);
    put(CORRAL_PROOF_STEP, 2, 2);
    put(CORRAL_PROOF_END, 2, 2);
    verify(0);
    assert_string_equal(s.broken, "");
    put(CORRAL_PROOF_STEP, 2, 3);
    expect_broken(7, "after the end");
}

static void generation_and_rank_cannot_change_by_themselves(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 3, 0);
    put(CORRAL_PROOF_RESTART, 3, 0);
    expect_broken(2, "generation 3 after generation 3");
}

static void a_restart_cannot_go_forward(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    put(CORRAL_PROOF_RESTART, 2, 2);
    expect_broken(3, "a restart after step 2");
}

static void copy(const char *to, int keep_lines)
{
    char *text = NULL;
    size_t bytes, at = 0;
    assert_int_equal(corral_file_read(path, 1 << 20, &text, &bytes, &err), CORRAL_OK);
    for (int i = 0; i < keep_lines; i++) {
        at += (size_t)(strchr(text + at, '\n') - (text + at)) + 1;
    }
    assert_int_equal(corral_file_write_atomic(to, text, at, 0644, false, &err), CORRAL_OK);
    free(text);
}

static void a_missing_end_is_found_by_a_witness(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    for (uint64_t i = 1; i <= 5; i++) {
        put(CORRAL_PROOF_STEP, 1, i);
        note((int)i - 1, i, i == 5);
    }
    copy(path, 4);
    verify(0);
    assert_string_equal(s.broken, ""); /* the chain alone cannot know */
    verify(5);
    assert_int_equal(s.broken_record, 5);
    assert_non_null(strstr(s.broken, "cut short"));
}

static void a_tail_lost_in_a_power_cut_is_excused_when_its_steps_were_taken_again(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    for (uint64_t i = 1; i <= 5; i++) {
        put(CORRAL_PROOF_STEP, 1, i);
        note((int)i - 1, i, i <= 2);
    }
    corral_chain_close(chain);
    copy(path, 4); /* step 4 and 5 are gone; the run had saved step 2 */
    assert_int_equal(corral_chain_open(path, &chain, &err), CORRAL_OK);
    put(CORRAL_PROOF_RESTART, 2, 2);
    put(CORRAL_PROOF_STEP, 2, 3);
    verify(5);
    assert_string_equal(s.broken, "");
    assert_int_equal(s.lost, 2);
    noted[4].durable = true;
    verify(5);
    assert_non_null(strstr(s.broken, "not the one that was reported"));
}

static void a_chain_written_anew_is_found_by_a_witness(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    put(CORRAL_PROOF_STEP, 1, 2);
    note(0, 2, false);
    corral_chain_close(chain);
    unlink(path);
    assert_int_equal(corral_chain_open(path, &chain, &err), CORRAL_OK);
    put(CORRAL_PROOF_BEGIN, 1, 0);
    put(CORRAL_PROOF_STEP, 1, 1);
    struct corral_proof_record r = record(CORRAL_PROOF_STEP, 1, 2);
    r.own_peak -= 1;
    add(&r);
    verify(0);
    assert_string_equal(s.broken, "");
    verify(1);
    assert_int_equal(s.broken_record, 3);
}

static void a_torn_end_is_told(void **state)
{
    (void)state;
    put(CORRAL_PROOF_BEGIN, 1, 0);
    note(0, 1, false);
    noted[0].count++;
    corral_chain_close(chain);
    chain = NULL; /* nobody writes it any more */
    FILE *f = fopen(path, "a");
    fputs("0123", f);
    fclose(f);
    verify(0);
    assert_int_equal(s.torn_bytes, 4);
    assert_string_equal(s.broken, ""); /* it was never a record */
    verify(1);
    assert_non_null(strstr(s.broken, "cut short")); /* it was */
}

static void a_missing_file_is_an_error(void **state)
{
    (void)state;
    assert_int_equal(corral_proof_verify("/nonexistent/chain", NULL, 0, &s, &err), CORRAL_NOT_FOUND);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_run_in_order_is_good),
        T(steps_taken_again_after_a_crash_count_once),
        T(counts_what_is_unproven_and_refused),
        T(a_step_left_out_or_repeated_is_found),
        T(a_repeated_step_is_found),
        T(a_proven_step_that_crossed_is_found),
        T(limits_must_be_those_in_force),
        T(overcommit_is_one_of_the_limits),
        T(limits_of_another_place_are_found),
        T(the_highest_ceiling_in_force_is_told),
        T(the_order_of_records_is_checked),
        T(nothing_but_a_restart_follows_the_end),
        T(generation_and_rank_cannot_change_by_themselves),
        T(a_restart_cannot_go_forward),
        T(a_missing_end_is_found_by_a_witness),
        T(a_tail_lost_in_a_power_cut_is_excused_when_its_steps_were_taken_again),
        T(a_chain_written_anew_is_found_by_a_witness),
        T(a_torn_end_is_told),
        T(a_missing_file_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
