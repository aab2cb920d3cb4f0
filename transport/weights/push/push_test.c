/* The push protocol between real senders and receivers: versions arrive whole everywhere, or not at all. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/test_group.h"

static void every_version_arrives_whole_at_receivers_cut_differently(const char *lanes)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct test_group g = {.lanes = lanes};
        test_group_make(&g, seed, 2, 2, 2, 120000, "");
        for (uint64_t version = 1; version <= 5; version++) {
            test_mesh_fill(&g.mesh, 100 * seed + version);
            test_push(&g, version);
            check_applied(&g, 2);
            for (uint32_t i = 0; i < 2; i++) {
                check_has(&g, i, version);
            }
        }
        assert_int_equal(g.tx[1].status, CORRAL_OK);
        assert_int_equal(g.tx[1].result.applied, 2);
        test_group_drop(&g);
    }
}

static void over_tcp_every_version_arrives_whole(void **state)
{
    (void)state;
    every_version_arrives_whole_at_receivers_cut_differently("tcp");
}

static void over_shm_every_version_arrives_whole(void **state)
{
    (void)state;
    every_version_arrives_whole_at_receivers_cut_differently("shm,tcp");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(over_tcp_every_version_arrives_whole),
        cmocka_unit_test(over_shm_every_version_arrives_whole),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "push_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
