#include "base/clock.h"
#include "orchestrator/observed.h"
#include "tests/check.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

static struct corral_ledger *ledger(void)
{
    struct corral_ledger *l = calloc(1, corral_ledger_bytes());
    struct corral_error err;
    uint32_t out;
    corral_ledger_init(l);
    check_ok(corral_ledger_add_role(l, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(l, "rollout", &out, &err));
    for (uint32_t d = 0; d < 4; d++) {
        char name[8];
        snprintf(name, sizeof name, "a:%u", d);
        check_ok(corral_ledger_add_device(l, name, 100 * MIB, 10 * MIB, &out, &err));
        check_ok(corral_ledger_set_limits(l, d, d < 2 ? 0 : 1, 30 * MIB, 40 * MIB, &err));
    }
    check_ok(corral_ledger_check_plan(l, 1.0, &err));
    return l;
}

static void seen_of(const struct corral_ledger *l, struct corral_observed *out)
{
    struct corral_error err;
    check_ok(corral_observed_from_ledger(l, out, &err));
    for (uint32_t d = 0; d < out->device_count; d++) {
        out->device[d].wall_ns = 10 * CORRAL_NS_PER_S;
        out->device[d].busy_ns = (d < 2 ? 9 : 4) * CORRAL_NS_PER_S;
        out->device[d].busy_known = out->device[d].role[0].busy_known = true;
        out->device[d].role[0].busy_ns = out->device[d].busy_ns;
    }
}

static void a_message_carries_everything(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_ledger *l = ledger();
    uint32_t h;
    check_ok(corral_ledger_join(l, 2, 1, 1, 77, &h, &err));
    check_ok(corral_ledger_reserve(l, h, 5 * MIB, NULL));
    struct corral_observed before, after;
    seen_of(l, &before);
    before.device[2].foreign = 12345;
    before.device[3].foreign = CORRAL_OBSERVED_UNKNOWN;
    before.device[2].role[0].spilled = 7;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    struct corral_mpack_reader *r;
    const struct corral_mpack_node *devices;
    const void *data;
    size_t bytes;
    corral_mpack_map(w, 1);
    corral_mpack_str(w, "devices");
    corral_observed_write(&before, w);
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    check_ok(corral_mpack_read(&r, data, bytes, &err));
    check_ok(corral_mpack_get_node(corral_mpack_root(r), "devices", &devices, &err));
    check_ok(corral_observed_read(devices, &after, &err));
    assert_int_equal(after.device_count, 4);
    assert_memory_equal(after.device, before.device, 4 * sizeof *before.device);
    assert_int_equal(after.device[2].role[0].used, 5 * MIB);
    assert_int_equal(after.device[2].role[0].processes, 1);
    corral_mpack_reader_destroy(r);
    corral_mpack_writer_destroy(w);
    corral_observed_free(&before);
    corral_observed_free(&after);
    free(l);
}

static void garbage_is_refused(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    const void *data;
    size_t bytes;
    for (uint32_t devices = 1; devices <= CORRAL_LEDGER_DEVICES_MAX + 1;
         devices += CORRAL_LEDGER_DEVICES_MAX) {
        struct corral_mpack_reader *r;
        const struct corral_mpack_node *list;
        struct corral_observed out = {.device_count = 99};
        corral_mpack_writer_reset(w);
        corral_mpack_map(w, 1);
        corral_mpack_str(w, "devices");
        corral_mpack_array(w, devices);
        for (uint32_t i = 0; i < devices; i++) {
            corral_mpack_map(w, 1);
            corral_mpack_kv_str(w, "device", "a:0");
        }
        check_ok(corral_mpack_finish(w, &data, &bytes, &err));
        check_ok(corral_mpack_read(&r, data, bytes, &err));
        check_ok(corral_mpack_get_node(corral_mpack_root(r), "devices", &list, &err));
        assert_int_equal(corral_observed_read(list, &out, &err), CORRAL_PROTOCOL);
        assert_int_equal(out.device_count, 99);
        corral_mpack_reader_destroy(r);
    }
    corral_mpack_writer_destroy(w);
}

static void devices_with_the_same_roles_are_one_line(void **state)
{
    (void)state;
    struct corral_ledger *l = ledger();
    struct corral_observed here, there;
    struct corral_device_group group[CORRAL_GROUPS_MAX];
    seen_of(l, &here);
    memcpy(l->device[0].name, "b:7", 4);
    l->device_count = 1;
    seen_of(l, &there);
    const struct corral_observed *nodes[] = {&here, NULL, &there};
    assert_int_equal(corral_device_groups(nodes, 3, group), 2);
    assert_string_equal(group[0].devices, "a:0-1 b:7");
    assert_string_equal(group[1].devices, "a:2-3");
    assert_int_equal(group[0].device_count, 3);
    assert_string_equal(group[1].roles, "rollout 40 %");
    assert_float_equal(group[1].idle, 0.6, 1e-9);
    assert_float_equal(group[1].idle_s, 12, 1e-9);
    here.device[2].busy_known = false; /* one that cannot be seen: nothing is said of the group */
    corral_device_groups(nodes, 3, group);
    assert_true(isnan(group[1].idle));
    corral_observed_free(&here);
    corral_observed_free(&there);
    free(l);
}

static void many_devices_do_not_fit_and_are_cut(void **state)
{
    (void)state;
    struct corral_device_group group[CORRAL_GROUPS_MAX];
    struct corral_observed o = {.device_count = 60, .device = calloc(60, sizeof *o.device)};
    for (uint32_t i = 0; i < 60; i++) {
        snprintf(o.device[i].device, sizeof o.device[i].device, "some-node:%u", 2 * i);
        o.device[i].role_count = 1;
    }
    const struct corral_observed *nodes[] = {&o};
    assert_int_equal(corral_device_groups(nodes, 1, group), 1);
    assert_int_equal(group[0].device_count, 60);
    assert_true(strlen(group[0].devices) < sizeof group[0].devices);
    assert_string_equal(group[0].devices + strlen(group[0].devices) - strlen("…"), "…");
    /* Each with another role: more groups than there is room for. */
    for (uint32_t i = 0; i < 60; i++) {
        snprintf(o.device[i].role[0].role, sizeof o.device[i].role[0].role, "role-%u", i);
    }
    assert_int_equal(corral_device_groups(nodes, 1, group), CORRAL_GROUPS_MAX);
    assert_int_equal(group[CORRAL_GROUPS_MAX - 1].device_count, 60 - CORRAL_GROUPS_MAX + 1);
    corral_observed_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_carries_everything),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(devices_with_the_same_roles_are_one_line),
        cmocka_unit_test(many_devices_do_not_fit_and_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
