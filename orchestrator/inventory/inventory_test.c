#include "orchestrator/inventory/inventory.h"
#include "orchestrator/inventory/nvml.h"
#include "tests/check.h"
#include <stdlib.h>
#include <string.h>

static void finds_the_cpus_and_memory_of_this_machine(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_inventory *in = calloc(1, sizeof *in);
    check_ok(corral_inventory_read(in, &err));
    assert_true(in->host[0] != '\0');
    assert_true(in->cpu_count > 0);
    assert_true(in->memory_total > 0 && in->memory_available <= in->memory_total);
    for (uint32_t i = 0; i < in->cpu_count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            assert_int_not_equal(in->cpu[i], in->cpu[k]);
        }
    }
    /* Either there are GPUs with memory, or a reason why not. */
    assert_true((in->gpu_count > 0) != (in->gpu_note[0] != '\0'));
    for (uint32_t i = 0; i < in->gpu_count; i++) {
        assert_true(in->gpu[i].memory_total > 0 && in->gpu[i].uuid[0] != '\0');
        uint64_t total = 0, used = 0;
        check_ok(corral_inventory_gpu_memory(i, &total, &used, &err));
        assert_int_equal(total, in->gpu[i].memory_total);
        assert_true(used <= total);
    }
    json_t *json = corral_inventory_json(in);
    assert_non_null(json);
    assert_int_equal(json_array_size(json_object_get(json, "gpus")), in->gpu_count);
    assert_int_equal(json_array_size(json_object_get(json_object_get(json, "cpu"), "cpus")), in->cpu_count);
    json_decref(json);
    free(in);
}

static void says_why_there_are_no_gpus(void **state)
{
    (void)state;
    struct corral_inventory *in = calloc(1, sizeof *in);
    nvml_read("libcorral-no-such-library.so", in);
    assert_int_equal(in->gpu_count, 0);
    assert_string_equal(in->gpu_note, "no NVIDIA driver: libcorral-no-such-library.so cannot be loaded");
    memset(in, 0, sizeof *in);
    nvml_read("libm.so.6", in); /* a library, but not that one */
    assert_int_equal(in->gpu_count, 0);
    assert_string_equal(in->gpu_note, "libm.so.6 lacks functions this program needs");
    free(in);
}

static void a_gpu_that_is_not_there_has_no_memory_reading(void **state)
{
    (void)state;
    struct corral_error err;
    uint64_t total = 7, used = 7;
    check_status(corral_inventory_gpu_memory(4096, &total, &used, &err), CORRAL_UNSUPPORTED);
    assert_int_equal(total, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_the_cpus_and_memory_of_this_machine),
        cmocka_unit_test(says_why_there_are_no_gpus),
        cmocka_unit_test(a_gpu_that_is_not_there_has_no_memory_reading),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
