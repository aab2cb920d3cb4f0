#include "quota/proof/record.h"
#include "tests/check.h"
#include <stdio.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)
static struct corral_error err;

/* Device 100 MiB, headroom 4; trainer 16..64, rollout 32..64. */
static struct corral_proof_record good_step(void)
{
    return (struct corral_proof_record){
        .type = CORRAL_PROOF_STEP,
        .rank = 3,
        .generation = 65537,
        .wall_ns = 1700000000000000000,
        .device = "a:0",
        .own_role = "trainer",
        .physical = 100 * MIB,
        .headroom = 4 * MIB,
        .overcommit_ppm = 1300000,
        .role_count = 2,
        .role = {{.name = "trainer",
                  .floor = 16 * MIB,
                  .ceiling = 64 * MIB,
                  .peak = 40 * MIB,
                  .used = 30 * MIB,
                  .spilled = 5},
                 {.name = "rollout",
                  .floor = 32 * MIB,
                  .ceiling = 64 * MIB,
                  .peak = 20 * MIB,
                  .used = 20 * MIB,
                  .denied = 2,
                  .pinned = 7}},
        .fences = "ledger affinity",
        .step = 812,
        .declared = 48 * MIB,
        .claim_peak = 84 * MIB,
        .own_peak = 40 * MIB,
        .slack_min = 16 * MIB,
        .physical_read = 45 * MIB,
        .ledger = 30 * MIB,
        .baseline = 10 * MIB,
        .drift = (int64_t)(5 * MIB),
        .drift_max = 8 * MIB,
        .step_ns = 1234567,
        .verdict = CORRAL_PROOF_PROVEN,
    };
}

static void expect_same(const struct corral_proof_record *want)
{
    char text[8192];
    struct corral_proof_record r;
    size_t bytes = corral_proof_write(want, text, sizeof text);
    assert_true(bytes > 0 && strlen(text) == bytes);
    assert_null(strchr(text, '\n'));
    assert_int_equal(corral_proof_parse(text, bytes, &r, &err), CORRAL_OK);
    assert_memory_equal(&r, want, sizeof r);
}

static void reads_back_every_type(void **state)
{
    (void)state;
    struct corral_proof_record r = good_step();
    expect_same(&r);
    r.drift = -77;
    r.verdict = CORRAL_PROOF_UNPROVEN;
    snprintf(r.why, sizeof r.why, "a \"quoted\\\" reason");
    expect_same(&r);
    for (int reading = 0; reading <= CORRAL_PROOF_READING_DEVICE;
         reading++) { /* 0: older records do not say */
        r.reading = (enum corral_proof_reading)reading;
        expect_same(&r);
    }
    struct corral_proof_record begin = {.type = CORRAL_PROOF_BEGIN,
                                        .run = 0x7f3a000000000001,
                                        .rank = 1,
                                        .generation = 2,
                                        .wall_ns = 5,
                                        .device = "a:0",
                                        .own_role = "t",
                                        .physical = 9,
                                        .headroom = 1,
                                        .role_count = 1,
                                        .role = {{.name = "t", .floor = 1, .ceiling = 2}},
                                        .fences = "ledger",
                                        .step = 40,
                                        .baseline = 3,
                                        .drift_max = 4};
    expect_same(&begin);
    begin.type = CORRAL_PROOF_RESTART;
    expect_same(&begin);
    struct corral_proof_record limits = {
        .type = CORRAL_PROOF_LIMITS, .wall_ns = 5, .device = "a:0", .own_role = "t"};
    expect_same(&limits);
    struct corral_proof_record recovered = {.type = CORRAL_PROOF_RECOVERED, .wall_ns = 5, .torn_bytes = 17};
    expect_same(&recovered);
    struct corral_proof_record end = {
        .type = CORRAL_PROOF_END, .wall_ns = 5, .rank = 2, .generation = 1, .step = 9};
    expect_same(&end);
}

static void is_not_written_when_it_does_not_fit(void **state)
{
    (void)state;
    char text[4096];
    struct corral_proof_record r = good_step();
    size_t bytes = corral_proof_write(&r, text, sizeof text);
    for (size_t room = 0; room <= bytes; room++) {
        assert_int_equal(corral_proof_write(&r, text, room), 0);
    }
    assert_int_equal(corral_proof_write(&r, text, bytes + 1), bytes);
    r.physical = UINT64_MAX; /* no JSON reader takes it */
    assert_int_equal(corral_proof_write(&r, text, sizeof text), 0);
}

static void the_largest_record_fits_into_a_line(void **state)
{
    (void)state;
    static char text[16384];
    struct corral_proof_record r = good_step();
    r.role_count = CORRAL_LEDGER_ROLES_MAX;
    for (uint32_t i = 0; i < CORRAL_LEDGER_ROLES_MAX; i++) {
        memset(r.role[i].name, '"', sizeof r.role[i].name - 1); /* each takes two */
        r.role[i].floor = r.role[i].ceiling = r.role[i].peak = r.role[i].used = r.role[i].denied =
            r.role[i].spilled = r.role[i].pinned = INT64_MAX;
    }
    memset(r.fences, 'f', sizeof r.fences - 1);
    memset(r.why, '\\', sizeof r.why - 1);
    size_t bytes = corral_proof_write(&r, text, sizeof text - 128);
    assert_true(bytes > 0);
    assert_int_equal(corral_proof_parse(text, bytes, &r, &err), CORRAL_OK);
}

/* What cannot be in a name comes back as '?', whatever else it would be in JSON. */
static void every_byte_of_a_text_is_written_so_that_it_can_be_read(void **state)
{
    (void)state;
    char text[8192];
    for (int byte = 1; byte < 256; byte++) {
        struct corral_proof_record r = good_step(), back;
        char *const into[] = {r.why, r.fences, r.device, r.own_role, r.role[1].name};
        const char *const from[] = {back.why, back.fences, back.device, back.own_role, back.role[1].name};
        for (size_t i = 0; i < CORRAL_COUNT_OF(into); i++) {
            memcpy(into[i], (char[]){'a', (char)byte, (char)byte, '\0'}, 4);
        }
        size_t bytes = corral_proof_write(&r, text, sizeof text);
        assert_int_equal(corral_proof_parse(text, bytes, &back, &err), CORRAL_OK);
        char want[] = {'a', byte >= 32 && byte < 127 ? (char)byte : '?', 0, '\0'};
        want[2] = want[1];
        for (size_t i = 0; i < CORRAL_COUNT_OF(from); i++) {
            assert_string_equal(from[i], want);
        }
        for (size_t i = 0; i < bytes; i++) {
            assert_true(text[i] >= 32 && text[i] < 127);
        }
    }
}

/* Each field in turn: all that a reader takes, and nothing more. */
static void every_number_is_exact_up_to_its_limit(void **state)
{
    (void)state;
    char text[8192];
    struct corral_proof_record r;
    uint64_t *const wide[] = {
        &r.wall_ns,         &r.physical,       &r.headroom,     &r.overcommit_ppm, &r.role[1].floor,
        &r.role[1].ceiling, &r.role[1].peak,   &r.role[1].used, &r.role[1].denied, &r.role[1].spilled,
        &r.role[1].pinned,  &r.step,           &r.declared,     &r.claim_peak,     &r.own_peak,
        &r.ledger,          &r.outside,        &r.slack_min,    &r.physical_read,  &r.physical_age_ns,
        &r.device_used,     &r.device_foreign, &r.drift_max,    &r.baseline,       &r.step_ns};
    for (size_t i = 0; i < CORRAL_COUNT_OF(wide); i++) {
        r = good_step();
        for (uint64_t value = 1; value < INT64_MAX / 10; value *= 10) {
            *wide[i] = value - 1;
            expect_same(&r);
            *wide[i] = value;
            expect_same(&r);
        }
        *wide[i] = INT64_MAX;
        expect_same(&r);
        *wide[i] = (uint64_t)INT64_MAX + 1;
        assert_int_equal(corral_proof_write(&r, text, sizeof text), 0);
    }
    static const int64_t drifts[] = {INT64_MIN, INT64_MIN + 1, -10, -9, -1, 0, 9, 10, INT64_MAX};
    r = good_step();
    r.rank = r.generation = UINT32_MAX;
    for (size_t i = 0; i < CORRAL_COUNT_OF(drifts); i++) {
        r.drift = drifts[i];
        expect_same(&r);
    }
}

static void refuses_missing_wrong_and_unknown(void **state)
{
    (void)state;
    char text[4096], bad[4096];
    struct corral_proof_record r = good_step(), out;
    size_t bytes = corral_proof_write(&r, text, sizeof text);
    static const struct {
        const char *from, *to, *says;
    } change[] = {
        {"\"verdict\":\"proven\"", "\"verdict\":\"fine\"", "fine"},
        {"\"type\":\"step\"", "\"type\":\"stop\"", "stop"},
        {"\"ledger\":", "\"reading\":\"guess\",\"ledger\":", "guess"},
        {"\"claim_peak\":", "\"claim_peek\":", "no `claim_peak`"},
        {"\"step\":812", "\"step\":-812", "negative"},
        {"\"step\":812", "\"step\":\"812\"", "wrong type of `step`"},
        {"\"rank\":3", "\"rank\":4294967296", "too large"},
        {"\"roles\":[", "\"roles\":[1,", "no `name`"},
        {"\"device\":\"a:0\"", "\"device\":\"a:0123456789012345678901234567890123456789\"", "too long"},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(change); i++) {
        const char *at = strstr(text, change[i].from);
        assert_non_null(at);
        int n = snprintf(bad, sizeof bad, "%.*s%s%s", (int)(at - text), text, change[i].to,
                         at + strlen(change[i].from));
        assert_int_not_equal(corral_proof_parse(bad, (size_t)n, &out, &err), CORRAL_OK);
        assert_non_null(strstr(err.text, change[i].says));
    }
    for (size_t n = 0; n < bytes; n++) {
        assert_int_not_equal(corral_proof_parse(text, n, &out, NULL), CORRAL_OK);
    }
    assert_int_not_equal(corral_proof_parse("[]", 2, &out, &err), CORRAL_OK);
}

static void accepts_what_holds_the_invariant(void **state)
{
    (void)state;
    struct corral_proof_record r = good_step();
    assert_int_equal(corral_proof_check(&r, &err), CORRAL_OK);
    r.claim_peak = r.physical; /* to the byte */
    r.slack_min = 0;
    assert_int_equal(corral_proof_check(&r, &err), CORRAL_OK);
}

static void expect_bad(const struct corral_proof_record *r, const char *says)
{
    assert_int_equal(corral_proof_check(r, &err), CORRAL_INVALID);
    if (!strstr(err.text, says)) {
        fail_msg("\"%s\" does not say \"%s\"", err.text, says);
    }
}

static void finds_each_inequality_that_fails(void **state)
{
    (void)state;
#define BAD(change, says)                           \
    do {                                            \
        struct corral_proof_record r = good_step(); \
        change;                                     \
        expect_bad(&r, says);                       \
    } while (0)
    BAD((r.claim_peak = r.physical + 1, r.slack_min = 0), "a floor was lent");
    BAD(r.claim_peak -= MIB * 9, "peaked above its own");
    BAD(r.slack_min += 1, "slack");
    BAD(r.role[0].peak = r.role[0].ceiling + 1, "> ceiling");
    BAD(r.role[1].used = r.role[1].peak + 1, "> peak");
    BAD(r.role[1].floor = r.role[1].ceiling + 1, "> ceiling");
    BAD(r.role[1].floor = r.role[1].ceiling = 90 * MIB, "floors + headroom");
    BAD(r.role[1].ceiling = 90 * MIB, "x physical");
    BAD(r.own_peak = r.role[0].peak + 1, "own peak");
    BAD(r.outside = 1, "granted none");
    BAD(r.own_role[0] = 'x', "not among");
    BAD(r.drift += 1, "drift");
    BAD((r.physical_read += 4 * MIB, r.drift += (int64_t)(4 * MIB)), "called proven");
    BAD((r.physical_read = 0, r.drift = 0), "called proven");
    BAD(r.physical_age_ns = CORRAL_PROOF_READING_AGE_MAX_NS + 1, "reading of");
    BAD(r.device_foreign = r.drift_max + 1, "unknown processes");
    /* Each role's peak could be true alone, but both are in use at the end: together more than is claimed. */
    BAD((r.physical = 100 * MIB, r.headroom = 0, r.role_count = 2, r.role[0].floor = r.role[1].floor = 0,
         r.role[0].ceiling = r.role[1].ceiling = 60 * MIB, r.role[0].peak = r.role[0].used = 60 * MIB,
         r.role[1].peak = r.role[1].used = 60 * MIB, r.own_peak = 0, r.claim_peak = 60 * MIB,
         r.slack_min = 40 * MIB, r.overcommit_ppm = 1300000),
        "used or guaranteed at the end");
    BAD(strcpy(r.why, "no idea"), "although");
    BAD(r.headroom = UINT64_MAX - 1, "floors + headroom");
}

static void a_refused_step_and_an_end_have_nothing_to_check(void **state)
{
    (void)state;
    struct corral_proof_record r = good_step();
    r.verdict = CORRAL_PROOF_REFUSED;
    r.claim_peak = 0;
    assert_int_equal(corral_proof_check(&r, &err), CORRAL_OK);
    r.type = CORRAL_PROOF_END;
    assert_int_equal(corral_proof_check(&r, &err), CORRAL_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_back_every_type),
        cmocka_unit_test(is_not_written_when_it_does_not_fit),
        cmocka_unit_test(the_largest_record_fits_into_a_line),
        cmocka_unit_test(every_byte_of_a_text_is_written_so_that_it_can_be_read),
        cmocka_unit_test(every_number_is_exact_up_to_its_limit),
        cmocka_unit_test(refuses_missing_wrong_and_unknown),
        cmocka_unit_test(accepts_what_holds_the_invariant),
        cmocka_unit_test(finds_each_inequality_that_fails),
        cmocka_unit_test(a_refused_step_and_an_end_have_nothing_to_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
