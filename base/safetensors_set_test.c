#include "tests/check.h"

#include "base/file.h"
#include "base/safetensors_set.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct place {
    char folder[64];
    struct corral_error err;
};

static int make_folder(void **state)
{
    struct place *p = calloc(1, sizeof *p);
    if (!p) {
        return -1;
    }
    strcpy(p->folder, "/tmp/corral-set-XXXXXX");
    *state = p;
    return mkdtemp(p->folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    struct place *p = *state;
    int failed = corral_remove_tree(p->folder, NULL) != CORRAL_OK;
    free(p);
    return failed;
}

static void write_file(struct place *p, const char *name, const char *first, const char *second)
{
    char path[128];
    uint8_t data[4] = {1, 2, 3, 4};
    struct corral_error err = {0};
    struct corral_tensor t[2] = {
        {.dtype = CORRAL_DTYPE_F8_E4M3, .rank = 1, .shape = {4}, .data = data, .bytes = 4},
        {.dtype = CORRAL_DTYPE_BF16, .rank = 1, .shape = {2}, .data = data, .bytes = 4}};
    strcpy(t[0].name, first);
    if (second) {
        strcpy(t[1].name, second);
    }
    snprintf(path, sizeof path, "%s/%s", p->folder, name);
    check_ok(corral_safetensors_write(path, t, second ? 2 : 1, NULL, 0, false, &err));
}

static enum corral_status open_with(struct place *p, const char *index, struct corral_safetensors_set **out)
{
    char path[128];
    struct corral_error err = {0};
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", p->folder);
    check_ok(corral_file_write_atomic(path, index, strlen(index), 0600, false, &err));
    return corral_safetensors_set_open(out, p->folder, &p->err);
}

static void reads_a_checkpoint_of_several_files(void **state)
{
    struct place *p = *state;
    CORRAL_CLEANUP(corral_safetensors_set_closep) struct corral_safetensors_set *set = NULL;
    write_file(p, "a.safetensors", "z", "b");
    write_file(p, "b.safetensors", "m", NULL);
    enum corral_status status =
        open_with(p,
                  "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"b\":\"a.safetensors\","
                  "\"m\":\"b.safetensors\",\"z\":\"a.safetensors\"}}",
                  &set);
    struct corral_error err = p->err;
    check_ok(status);
    assert_int_equal(corral_safetensors_set_files(set), 2);
    assert_int_equal(corral_safetensors_set_count(set), 3);
    assert_int_equal(corral_safetensors_set_bytes(set), 12);
    assert_string_equal(corral_safetensors_set_at(set, 0)->name, "b");
    assert_string_equal(corral_safetensors_set_at(set, 2)->name, "z");
    assert_null(corral_safetensors_set_at(set, 3));
    assert_int_equal(corral_safetensors_set_find(set, "m")->dtype, CORRAL_DTYPE_F8_E4M3);
    assert_int_equal(((const uint8_t *)corral_safetensors_set_find(set, "z")->data)[3], 4);
    assert_null(corral_safetensors_set_find(set, "c"));
}

static void reads_a_checkpoint_of_one_file(void **state)
{
    struct place *p = *state;
    CORRAL_CLEANUP(corral_safetensors_set_closep) struct corral_safetensors_set *set = NULL, *same = NULL;
    struct corral_error err = {0};
    char path[128];
    write_file(p, "model.safetensors", "only", NULL);
    check_ok(corral_safetensors_set_open(&set, p->folder, &err));
    snprintf(path, sizeof path, "%s/model.safetensors", p->folder);
    check_ok(corral_safetensors_set_open(&same, path, &err));
    assert_non_null(corral_safetensors_set_find(set, "only"));
    assert_int_equal(corral_safetensors_set_count(same), 1);
}

static void refuses_an_index_that_the_files_do_not_bear_out(void **state)
{
    struct place *p = *state;
    write_file(p, "a.safetensors", "x", "y");
    write_file(p, "b.safetensors", "x", NULL);
    static const struct {
        const char *index;
        enum corral_status status;
    } bad[] = {
        {"{}", CORRAL_PROTOCOL},
        {"[1]", CORRAL_PROTOCOL},
        {"{\"weight_map\":{}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"a.safetensors\"}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"a.safetensors\",\"w\":\"a.safetensors\"}}",
         CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"a.safetensors\",\"w\":\"b.safetensors\"}}",
         CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"../a.safetensors\"}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\".safetensors\"}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":7}}", CORRAL_PROTOCOL},
        {"{\"weight_map\":{\"x\":\"c.safetensors\"}}", CORRAL_NOT_FOUND},
    };
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_safetensors_set *set = NULL;
        if (open_with(p, bad[i].index, &set) != bad[i].status) {
            fail_msg("%s: %s", bad[i].index, p->err.text);
        }
        assert_null(set);
    }
}

static void a_folder_without_a_checkpoint_is_not_found(void **state)
{
    struct place *p = *state;
    struct corral_safetensors_set *set = NULL;
    check_status(corral_safetensors_set_open(&set, p->folder, &p->err), CORRAL_NOT_FOUND);
    check_status(corral_safetensors_set_open(&set, "/nowhere/model.safetensors.index.json", &p->err),
                 CORRAL_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_a_checkpoint_of_several_files, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(reads_a_checkpoint_of_one_file, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(refuses_an_index_that_the_files_do_not_bear_out, make_folder,
                                        drop_folder),
        cmocka_unit_test_setup_teardown(a_folder_without_a_checkpoint_is_not_found, make_folder, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
