#include "base/file.h"
#include "rollout/env_host/registry.h"
#include "tests/check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct corral_error err;

static void assert_refused(const char *id, const char *library, enum corral_status status, const char *text)
{
    struct corral_env_def *def = NULL;
    memset(&err, 0, sizeof err);
    check_status(corral_env_open(&def, id, library, &err), status);
    assert_null(def);
    if (strstr(err.text, text) == NULL) {
        fail_msg("\"%s\" does not contain \"%s\"", err.text, text);
    }
}

static void opens_an_environment_of_a_file(void **state)
{
    (void)state;
    struct corral_env_def *def = NULL;
    check_ok(corral_env_open(&def, "walk/Next-v0", WALK_PLUGIN, &err));
    assert_string_equal(def->id, "walk/Next-v0");
    assert_string_equal(def->path, WALK_PLUGIN);
    struct corral_env_spec spec;
    check_ok(corral_env_describe(&def->ops, NULL, &spec, &err));
    assert_int_equal(spec.autoreset, CORRAL_ENV_AUTORESET_NEXT_STEP);
    corral_env_close(def);
}

static void says_what_is_wrong_with_a_file(void **state)
{
    (void)state;
    assert_refused("x", TEST_PLUGIN_DIR "/no_symbol.so", CORRAL_INVALID, "exports no corral_env_plugin_v1");
    assert_refused("x", TEST_PLUGIN_DIR "/wrong_abi.so", CORRAL_INVALID,
                   "speaks environment ABI 2 and this runtime speaks 1");
    assert_refused("x", TEST_PLUGIN_DIR "/no_step.so", CORRAL_INVALID, "lacks the required member .step");
    assert_refused("x", TEST_PLUGIN_DIR "/short_ops.so", CORRAL_INVALID, ".size is 0");
    assert_refused("x", TEST_PLUGIN_DIR "/absent.so", CORRAL_NOT_FOUND, "there is no plug-in file");
    assert_refused("x", TEST_PLUGIN_DIR, CORRAL_NOT_FOUND, "there is no plug-in file");
    assert_refused("x", "/proc/self/exe", CORRAL_INVALID, "cannot load the plug-in");
    assert_refused("walk/Other-v0", WALK_PLUGIN, CORRAL_NOT_FOUND, "it offers: walk/Same-v0, walk/Next-v0");
    assert_refused(NULL, WALK_PLUGIN, CORRAL_INVALID, "name one of: walk/Same-v0");
    assert_refused(NULL, NULL, CORRAL_INVALID, "no environment named");
}

static void a_file_that_is_no_library_is_refused(void **state)
{
    (void)state;
    char folder[] = "/tmp/corral-registry-XXXXXX", path[128];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/text.so", folder);
    check_ok(corral_file_write_atomic(path, "not an ELF file", 15, 0644, false, &err));
    assert_refused("x", path, CORRAL_INVALID, "cannot load the plug-in");
    check_ok(corral_remove_tree(folder, &err));
}

static void the_search_path_finds_ids_and_suggests_near_ones(void **state)
{
    (void)state;
    char folder[] = "/tmp/corral-registry-XXXXXX", link[128], list[256];
    assert_non_null(mkdtemp(folder));
    snprintf(link, sizeof link, "%s/walk.so", folder);
    assert_int_equal(symlink(WALK_PLUGIN, link), 0);
    snprintf(link, sizeof link, "%s/broken.so", folder);
    assert_int_equal(symlink(TEST_PLUGIN_DIR "/no_symbol.so", link), 0);
    snprintf(list, sizeof list, "/nonexistent/place::%s", folder);
    assert_int_equal(setenv("CORRAL_ENV_PATH", list, 1), 0);
    struct corral_env_def *def = NULL;
    check_ok(corral_env_open(&def, "walk/Off-v0", NULL, &err));
    assert_memory_equal(def->path, folder, strlen(folder));
    corral_env_close(def);
    assert_refused("walk/Of-v0", NULL, CORRAL_NOT_FOUND, "did you mean walk/Off-v0?");
    assert_refused("walk/Of-v0", NULL, CORRAL_NOT_FOUND,
                   "looked in /nonexistent/place, /tmp/corral-registry-");
    assert_refused("walk/Of-v0", NULL, CORRAL_NOT_FOUND, "exports no corral_env_plugin_v1");
    snprintf(list, sizeof list, "%s", WALK_PLUGIN); /* a file is fine in the list, too */
    assert_int_equal(setenv("CORRAL_ENV_PATH", list, 1), 0);
    check_ok(corral_env_open(&def, "walk/Off-v0", NULL, &err));
    corral_env_close(def);
    assert_int_equal(unsetenv("CORRAL_ENV_PATH"), 0);
    check_ok(corral_remove_tree(folder, &err));
}

struct counted {
    int good, broken;
};
static void count(void *ctx, const struct corral_env_listed *item)
{
    struct counted *c = ctx;
    if (item->id[0] != '\0') {
        c->good++;
    } else {
        c->broken++;
        assert_true(item->summary[0] != '\0');
    }
}

static void lists_environments_and_broken_files(void **state)
{
    (void)state;
    struct counted c = {0};
    assert_int_equal(setenv("CORRAL_ENV_PATH", TEST_PLUGIN_DIR, 1), 0);
    check_ok(corral_env_each(NULL, count, &c, &err));
    assert_true(c.good > 40);
    assert_true(c.broken >= 4);
    assert_int_equal(unsetenv("CORRAL_ENV_PATH"), 0);
    check_status(corral_env_each(TEST_PLUGIN_DIR "/wrong_abi.so", count, &c, &err), CORRAL_INVALID);
}

static struct corral_env_spec good(void)
{
    return (struct corral_env_spec){.size = sizeof(struct corral_env_spec),
                                    .agents = 1,
                                    .autoreset = CORRAL_ENV_AUTORESET_OFF,
                                    .obs_dtype = CORRAL_ENV_F32,
                                    .obs_rank = 2,
                                    .obs_shape = {3, 4},
                                    .obs_low = -1,
                                    .obs_high = 1,
                                    .action_kind = CORRAL_ENV_DISCRETE,
                                    .components = 1,
                                    .choices = {2}};
}

static void refuses_descriptions_that_contradict_themselves(void **state)
{
    (void)state;
    struct corral_env_spec s = good();
    check_ok(corral_env_spec_validate("x", &s, false, &err));
    assert_int_equal(corral_env_obs_dim(&s), 12);
#define REFUSES(change)                                                               \
    do {                                                                              \
        s = good();                                                                   \
        change;                                                                       \
        check_status(corral_env_spec_validate("x", &s, false, &err), CORRAL_INVALID); \
    } while (0)
    REFUSES(s.agents = 0);
    REFUSES(s.agents = CORRAL_ENV_AGENTS_MAX + 1);
    REFUSES(s.autoreset = 4);
    REFUSES(s.flags = 1u << 20);
    REFUSES(s.flags = CORRAL_ENV_SNAPSHOTS);
    REFUSES(s.obs_dtype = 9);
    REFUSES(s.obs_rank = 0);
    REFUSES(s.obs_rank = 5);
    REFUSES(s.obs_shape[1] = 0);
    REFUSES(s.obs_shape[0] = s.obs_shape[1] = UINT32_MAX);
    REFUSES(s.obs_low = 2);
    REFUSES(s.obs_low = __builtin_nan(""));
    REFUSES(s.reward_low = 2);
    REFUSES(s.action_kind = 0);
    REFUSES(s.components = 0);
    REFUSES(s.components = 2);
    REFUSES(s.choices[0] = 0);
    REFUSES(s.choices[0] = UINT32_MAX);
    REFUSES((s.action_kind = CORRAL_ENV_MULTI_DISCRETE, s.components = 17));
    REFUSES((s.action_kind = CORRAL_ENV_CONTINUOUS, s.low[0] = 1, s.high[0] = 1));
    REFUSES(
        (s.action_kind = CORRAL_ENV_CONTINUOUS, s.low[0] = -1, s.high[0] = 1, s.flags = CORRAL_ENV_MASKS));
#undef REFUSES
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_an_environment_of_a_file),
        cmocka_unit_test(says_what_is_wrong_with_a_file),
        cmocka_unit_test(a_file_that_is_no_library_is_refused),
        cmocka_unit_test(the_search_path_finds_ids_and_suggests_near_ones),
        cmocka_unit_test(lists_environments_and_broken_files),
        cmocka_unit_test(refuses_descriptions_that_contradict_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
