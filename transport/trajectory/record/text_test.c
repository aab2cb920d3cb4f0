/* A record as text: what a person must find in it, and what must never reach a terminal. */
#include "tests/check.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/record/test_records.h"
#include "transport/trajectory/record/text.h"
#include "transport/trajectory/test_support.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct corral_error err;
static struct corral_traj_view view;

/* Encoded, decoded, printed: the text (free()). */
static char *shown(const struct corral_traj_record *r, const struct corral_traj_text_options *o)
{
    uint64_t bytes;
    char *text = NULL;
    size_t text_bytes;
    void *memory = test_record_encode(r, &bytes);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    FILE *out = open_memstream(&text, &text_bytes);
    corral_traj_text(out, &view.record, o);
    assert_int_equal(fclose(out), 0);
    free(memory);
    for (size_t i = 0; i < text_bytes; i++) { /* nothing a terminal acts on */
        const unsigned char c = (unsigned char)text[i];
        assert_true(c == '\n' || (c >= 0x20 && c != 0x7F));
        assert_false(c == 0xC2 && (unsigned char)text[i + 1] < 0xA0);
    }
    return text;
}

static void holds(const char *text, const char *part)
{
    if (text == NULL || strstr(text, part) == NULL) {
        fail_msg("`%s` is not in\n%s", part, text == NULL ? "" : text);
    }
}

static void an_episode_of_tokens_is_told_turn_by_turn(void **state)
{
    (void)state;
    struct test_record t;
    test_record_episode(&t, 60);
    char *text = shown(&t.record, NULL);
    holds(text, "episode 6501  worker 3, life 2, sequence 1234567  run 7f3a");
    holds(text, "calculator  gsm8k/train/1234");
    holds(text, "3 turns, 60 tokens, ended by stop");
    holds(text, "group    812, 6 of 8");
    holds(text, "weights  versions 411 to 412");
    holds(text, "reward 0.75   success 1");
    holds(text, "token_ids i32 60");
    holds(text, "0  system        1 ");
    holds(text, "0  user          9 ");
    holds(text, "0  agent        10          0     -0.145  411");
    holds(text, "2  agent        10       0.75     -0.545  412");
    holds(text, "2  tool         10 ");
    holds(text, "| ids 0\n");
    free(text);
    test_record_free(&t);
}

static void what_was_said_is_shown(void **state)
{
    (void)state;
    static const char said[] = "What is 6*7?\nThink.<call> 6*7\x1b[31m\xe2\x80\xae 42 \xff日本";
    struct test_record t;
    test_record_episode(&t, 6);
    static uint32_t end[6] = {0, 20, 29, 37, 44, sizeof said - 1};
    const uint32_t n = t.record.tensor_count;
    t.tensors[n] = (struct corral_traj_tensor){
        .name = "text", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {sizeof said - 1}, .data = said};
    t.tensors[n + 1] = (struct corral_traj_tensor){
        .name = "text_end", .dtype = CORRAL_TRAJ_U32, .dims = 1, .shape = {6}, .data = end};
    t.record.tensor_count += 2;
    char *text = shown(&t.record, NULL);
    holds(text, "| What is 6*7?\n        | Think.<\n");
    free(text);
    end[0] = 0, end[1] = sizeof said - 1; /* now they do not ascend and one is beyond */
    end[3] = 100000;
    text = shown(&t.record, NULL);
    holds(text, "␛[31m� 42 �日本");
    free(text);
    test_record_free(&t);
}

static void long_episodes_are_clipped_and_can_be_had_whole(void **state)
{
    (void)state;
    struct test_record t;
    test_record_episode(&t, 3000);
    for (uint32_t i = 0; i < 3000; i++) {
        ((uint32_t *)t.data[5])[i] = i / 10;
    }
    const struct corral_traj_text_options few = {.rows_max = 8}, whole = {.everything = 1};
    char *text = shown(&t.record, &few), *all = shown(&t.record, &whole);
    holds(text, "spans more");
    uint32_t lines = 0;
    for (const char *p = text; *p != 0; p++) {
        lines += *p == '\n';
    }
    assert_in_range(lines, 20, 32);
    assert_null(strstr(all, "more"));
    assert_null(strstr(all, "…"));
    assert_true(strlen(all) > 10 * strlen(text));
    free(text);
    free(all);
    test_record_free(&t);
}

static void a_fragment_is_told_step_by_step(void **state)
{
    (void)state;
    struct test_fragment t;
    struct corral_traj_tensor tensors[CORRAL_FRAGMENT_FRAMES];
    struct corral_traj_record r;
    test_fragment_sized(&t, 4096);
    for (uint32_t i = 0; i < t.fragment.steps; i++) {
        ((float *)t.tensors[3])[i] = (float)i;
        ((uint8_t *)t.tensors[4])[i] = i == 3;
        ((uint64_t *)t.tensors[7])[i] = 700 + i;
    }
    check_ok(corral_fragment_record(&t.fragment, &r, tensors, &err));
    r.env = "CartPole-v1";
    const struct corral_traj_text_options o = {.columns = 80, .rows_max = 10, .row = 99};
    char *text = shown(&r, &o);
    holds(text, "fragment  worker 0");
    holds(text, "CartPole-v1");
    holds(text, "row 0 of 1");
    holds(text, "weights  versions 700 to 715");
    holds(text, "\n      3          3 ");
    holds(text, "  E");
    holds(text, "703  ");
    holds(text, "…  6 steps more");
    free(text);
    test_fragment_free(&t);
}

static void any_record_can_be_shown(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct test_record t;
        const struct corral_traj_text_options o = {.columns = (uint32_t)(seed % 150),
                                                   .rows_max = (uint32_t)(seed % 7)};
        test_record_make(&t, seed);
        /* Known names on shapes that nobody expects. */
        static const char *const names[] = {"token_ids", "turn", "role", "reward", "text", "text_end", "obs"};
        for (uint32_t i = 0; i < t.record.tensor_count && i < 7; i++) {
            t.tensors[i].name = names[(i + seed) % 7];
        }
        free(shown(&t.record, &o));
        test_record_free(&t);
    }
    struct test_record largest;
    test_record_largest(&largest);
    free(shown(&largest.record, NULL));
    test_record_free(&largest);
}

static void every_dtype_is_read_as_a_number(void **state)
{
    (void)state;
    static const struct {
        uint32_t dtype;
        uint64_t bits;
        double value;
    } cases[] = {
        {CORRAL_TRAJ_U8, 200, 200},
        {CORRAL_TRAJ_I32, 0xFFFFFFFE, -2},
        {CORRAL_TRAJ_I64, UINT64_MAX, -1},
        {CORRAL_TRAJ_U32, 0xFFFFFFFE, 4294967294.0},
        {CORRAL_TRAJ_U64, UINT64_C(1) << 63, 9223372036854775808.0},
        {CORRAL_TRAJ_F16, 0x3E00, 1.5},
        {CORRAL_TRAJ_F16, 0x8001, -5.9604644775390625e-08},
        {CORRAL_TRAJ_F16, 0x7C00, HUGE_VAL},
        {CORRAL_TRAJ_BF16, 0xC040, -3},
        {CORRAL_TRAJ_F32, 0x3F800000, 1},
        {CORRAL_TRAJ_F64, UINT64_C(0x4000000000000000), 2},
        {CORRAL_TRAJ_F8_E4M3, 0x7E, 448},
        {CORRAL_TRAJ_F8_E4M3, 0x01, 0.001953125},
        {CORRAL_TRAJ_F8_E5M2, 0x7B, 57344},
        {CORRAL_TRAJ_F8_E5M2, 0xFC, -HUGE_VAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct corral_traj_tensor t = {
            .dtype = cases[i].dtype, .dims = 1, .shape = {1}, .data = &cases[i].bits};
        assert_true(corral_traj_tensor_value(&t, 0) == cases[i].value);
        assert_string_not_equal(corral_traj_dtype_name(cases[i].dtype), "?");
    }
    const uint64_t nan_bits = 0x7F;
    const struct corral_traj_tensor t = {
        .dtype = CORRAL_TRAJ_F8_E4M3, .dims = 1, .shape = {1}, .data = &nan_bits};
    assert_true(isnan(corral_traj_tensor_value(&t, 0)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_episode_of_tokens_is_told_turn_by_turn),
        cmocka_unit_test(what_was_said_is_shown),
        cmocka_unit_test(long_episodes_are_clipped_and_can_be_had_whole),
        cmocka_unit_test(a_fragment_is_told_step_by_step),
        cmocka_unit_test(any_record_can_be_shown),
        cmocka_unit_test(every_dtype_is_read_as_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
