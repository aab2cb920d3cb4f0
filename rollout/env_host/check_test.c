#include "rollout/env_host/check.h"
#include "tests/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static struct corral_error err;

struct seen {
    const char *find; /* name of a check */
    enum corral_check_result result;
    char text[400], all[8192];
};

static void note(void *ctx, const struct corral_check_line *line)
{
    struct seen *s = ctx;
    size_t used = strlen(s->all);
    if (line->result == CORRAL_CHECK_FAIL) {
        snprintf(s->all + used, sizeof s->all - used, "%s: %s\n", line->name, line->text);
    }
    if (s->find != NULL && strcmp(line->name, s->find) == 0) {
        s->result = line->result;
        snprintf(s->text, sizeof s->text, "%s", line->text);
    }
}

static uint32_t check_id(const char *library, const char *id, struct seen *seen, uint32_t timeout_ms)
{
    struct corral_check_config config = {.id = id, .library = library, .timeout_ms = timeout_ms};
    uint32_t failed = 99;
    check_ok(corral_env_check(&config, note, seen, &failed, &err));
    return failed;
}

static void good_environments_pass(void **state)
{
    (void)state;
    static const char *const good[] = {"walk/Same-v0",      "walk/Next-v0",    "walk/Off-v0",
                                       "walk/Turns-v0",     "walk/Team-v0",    "walk/Bytes-v0",
                                       "walk/Ints-v0",      "walk/Doubles-v0", "walk/Smooth-v0",
                                       "walk/Allocates-v0", "walk/Declared-v0"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct seen seen = {0};
        if (check_id(WALK_PLUGIN, good[i], &seen, 0) != 0) {
            fail_msg("%s: %s", good[i], seen.all);
        }
    }
}

static void every_flaw_is_found_and_named(void **state)
{
    (void)state;
    static const struct {
        const char *id, *check, *text;
    } flaws[] = {
        {"walk/Crash-v0", "determinism", "crashed with signal 6 (Aborted) while in step 7"},
        {"walk/CrashInCreate-v0", "create and destroy",
         "crashed with signal 6 (Aborted) while creating a batch"},
        {"walk/CrashOnBadArguments-v0", "bad arguments",
         "crashed with signal 6 (Aborted) while describing with the arguments"},
        {"walk/NanObs-v0", "finite numbers", "obs[1] of row 0 is nan"},
        {"walk/InfReward-v0", "finite numbers", "the reward of row 0 is inf"},
        {"walk/NanFinal-v0", "finite numbers", "final_obs[0] of row 0 is nan"},
        {"walk/Overrun-v0", "buffer edges", "past the end of `obs`"},
        {"walk/Underrun-v0", "buffer edges", "4 bytes before the beginning of `reward`"},
        {"walk/Nondeterministic-v0", "determinism", "equal seeds and actions gave another result"},
        {"walk/ObsLie-v0", "observation bounds", "is 7.5, outside the declared [-1, 1]"},
        {"walk/RewardLie-v0", "reward bounds", "is 9, outside the declared [-1, 1]"},
        {"walk/NoLegalChoice-v0", "masks", "has no legal choice for component 0"},
        {"walk/NoActiveRow-v0", "active rows", "nobody can ever decide"},
        {"walk/FlagOfTwo-v0", "terminated, truncated", "truncated of row 0 is 2"},
        {"walk/FlagsUnwritten-v0", "terminated, truncated", "terminated of row 0 was not written"},
        {"walk/ForgetfulSnapshot-v0", "snapshots",
         "restore() did not write obs, active and mask as they were"},
        {"walk/Overlong-v0", "max_episode_steps", "is not over after 15 steps"},
        {"walk/NoAutoreset-v0", "autoreset and seeds", "final_obs was not written"},
        {"walk/StaleFinal-v0", "autoreset and seeds", "final_obs was not written"},
        {"walk/OwnSeedRule-v0", "autoreset and seeds", "corral_env_episode_seed(stream seed, 1)"},
        {"walk/SharedState-v0", "batch independence", "gave another result"},
        {"walk/BatchCoupled-v0", "batch independence", "when the environment is alone in its batch"},
        {"walk/StepsAll-v0", "subsets of ids", "which was not among its ids"},
        {"walk/Leaks-v0", "memory", "destroy() left 100000 bytes"},
        {"walk/CrashWhenRefused-v0", "memory", "while creating a batch"},
        {"walk/Infra-v0", "determinism", "status[1] is infra (-3) after step()"},
        {"walk/BatchFails-v0", "determinism", "step() returned infra (-3)"},
        {"walk/Speaks-v0", "stdout", "a plug-in should not say this"},
        {"walk/ZeroAgents-v0", "description", "agents is 0"},
        {"walk/Absent-v0", "load", "does not offer the environment walk/Absent-v0"},
    };
    for (size_t i = 0; i < sizeof flaws / sizeof flaws[0]; i++) {
        struct seen seen = {.find = flaws[i].check, .result = CORRAL_CHECK_SKIPPED};
        uint32_t failed = check_id(WALK_PLUGIN, flaws[i].id, &seen, 0);
        if (failed == 0 || seen.result != CORRAL_CHECK_FAIL || strstr(seen.text, flaws[i].text) == NULL) {
            fail_msg("%s: check \"%s\" should have failed with \"%s\" and says: %s\nall failures:\n%s",
                     flaws[i].id, flaws[i].check, flaws[i].text, seen.text, seen.all);
        }
    }
}

static void a_flaw_does_not_show_in_unrelated_checks(void **state)
{
    (void)state;
    static const char *const ids[] = {
        "walk/ObsLie-v0",     "walk/RewardLie-v0", "walk/ForgetfulSnapshot-v0",   "walk/Leaks-v0",
        "walk/StaleFinal-v0", "walk/Speaks-v0",    "walk/CrashOnBadArguments-v0", "walk/Overrun-v0"};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        struct seen seen = {0};
        uint32_t failed = check_id(WALK_PLUGIN, ids[i], &seen, 0);
        if (failed != 1) {
            fail_msg("%s: %u failures\n%s", ids[i], failed, seen.all);
        }
    }
}

static void a_hang_is_a_line_of_the_report(void **state)
{
    (void)state;
    struct seen seen = {.find = "determinism"};
    assert_true(check_id(WALK_PLUGIN, "walk/Hang-v0", &seen, 300) > 0);
    assert_int_equal(seen.result, CORRAL_CHECK_FAIL);
    assert_non_null(strstr(seen.text, "it hung while in step 7 of environment 0 and was ended after 300 ms"));
}

static void an_unusable_file_fails_once_and_skips_the_rest(void **state)
{
    (void)state;
    struct seen seen = {.find = "load"};
    assert_int_equal(check_id(TEST_PLUGIN_DIR "/wrong_abi.so", NULL, &seen, 0), 1);
    assert_non_null(strstr(seen.text, "speaks environment ABI 2"));
}

static void lists_the_ids_of_a_file(void **state)
{
    (void)state;
    char(*ids)[CORRAL_ENV_ID_BYTES] = NULL;
    uint32_t count = 0;
    check_ok(corral_env_check_ids(WALK_PLUGIN, &ids, &count, &err));
    assert_true(count > 40);
    assert_string_equal(ids[1], "walk/Next-v0");
    free(ids);
    check_status(corral_env_check_ids(TEST_PLUGIN_DIR "/no_symbol.so", &ids, &count, &err), CORRAL_INVALID);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* every check has been reaped */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_environments_pass),
        cmocka_unit_test(every_flaw_is_found_and_named),
        cmocka_unit_test(a_flaw_does_not_show_in_unrelated_checks),
        cmocka_unit_test(a_hang_is_a_line_of_the_report),
        cmocka_unit_test(an_unusable_file_fails_once_and_skips_the_rest),
        cmocka_unit_test(lists_the_ids_of_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
