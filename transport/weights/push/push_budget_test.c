/* Memory for staging and deltas is asked for, given back, and done without. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/test_group.h"
#include <inttypes.h>

#define LANE_STAGING (UINT64_C(3) * TEST_BUCKET) /* of one end of a lane */

struct budget {
    _Atomic uint64_t limit, held, most, refused;
};

static enum corral_status hold(void *ctx, uint64_t bytes, const char *what, struct corral_error *err)
{
    struct budget *b = ctx;
    if (bytes > b->limit && bytes > b->held) {
        b->refused++;
        return corral_fail(err, CORRAL_DENIED, "%s: %" PRIu64 " bytes are above the quota", what, bytes);
    }
    b->held = bytes;
    b->most = CORRAL_MAX((uint64_t)b->most, bytes);
    return CORRAL_OK;
}

static struct corral_push_budget budget_of(struct budget *b)
{
    return (struct corral_push_budget){.hold = hold, .ctx = b};
}

/* ---- a source without a host address, which lanes must stage ---- */

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    struct corral_shard *host = shard->ctx;
    return host->ops->gather(host, link, bucket, packed, err);
}

static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    struct corral_shard *host = shard->ctx;
    return host->ops->digest(host, link, side, bucket, out, err);
}

static void hide_source(struct test_group *g, struct corral_shard *host)
{
    static const struct corral_shard_ops ops = {.name = "far", .gather = gather, .digest = digest};
    *host = g->tx[0].source;
    g->tx[0].source =
        (struct corral_shard){.ops = &ops, .bytes = host->bytes, .fd = -1, .device = -1, .ctx = host};
}

static void staging_is_held_while_the_lane_is_open_and_given_back_with_it(void **state)
{
    (void)state;
    struct budget b = {.limit = UINT64_MAX};
    struct corral_shard host;
    struct test_group g = {.lanes = "tcp", .budget = budget_of(&b)};
    test_group_make(&g, 31, 1, 1, 1, 90000, "");
    hide_source(&g, &host);
    test_push(&g, 1);
    check_applied(&g, 1);
    assert_true(b.held >= TEST_BUCKET);
    assert_int_equal(g.tx[0].result.memory, b.held);
    corral_push_sender_remove(g.tx[0].sender, "r0");
    assert_int_equal(b.held, 0);
    test_group_drop(&g);
}

static void a_lane_above_the_budget_is_refused_and_tried_again(void **state)
{
    (void)state;
    struct budget b = {.limit = TEST_BUCKET};
    struct corral_shard host;
    struct test_group g = {.lanes = "tcp", .budget = budget_of(&b)};
    test_group_make(&g, 32, 1, 1, 1, 300000, "");
    hide_source(&g, &host);
    test_push(&g, 1);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "staging of a weight lane"));
    assert_non_null(strstr(g.tx[0].err.text, "above the quota"));
    assert_int_equal(b.held, 0);
    check_has(&g, 0, 0);
    b.limit = UINT64_MAX;
    test_push(&g, 1);
    check_applied(&g, 1);
    check_has(&g, 0, 1);
    test_group_drop(&g);
    assert_int_equal(b.held, 0);
}

static void versions_go_whole_when_there_is_no_memory_for_deltas(void **state)
{
    (void)state;
    struct budget b = {.limit = LANE_STAGING};
    struct test_group g = {.lanes = "tcp", .delta = true, .budget = budget_of(&b)};
    test_group_make(&g, 33, 1, 1, 1, 90000, "");
    for (uint64_t version = 1; version <= 3; version++) {
        test_push(&g, version);
        check_applied(&g, 1);
        assert_int_equal(g.tx[0].result.deltas, 0);
    }
    assert_true(b.refused > 0);
    assert_true(b.held <= LANE_STAGING);
    b.limit = UINT64_MAX;
    test_push(&g, 4);
    assert_true(b.held > 0 && b.most >= b.held);
    test_push(&g, 5);
    assert_int_equal(g.tx[0].result.deltas, 1);
    check_has(&g, 0, 5);
    test_group_drop(&g);
    assert_int_equal(b.held, 0);
}

/* Its first refusal costs a version; then it asks for whole ones, for which there is memory. */
static void a_receiver_without_memory_for_deltas_asks_for_whole_versions(void **state)
{
    (void)state;
    struct budget b = {.limit = LANE_STAGING};
    struct test_group g = {.lanes = "tcp", .delta = true, .receiver_budget = budget_of(&b)};
    test_group_make(&g, 34, 1, 1, 1, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    test_push(&g, 2);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "above the quota"));
    test_push(&g, 3);
    check_applied(&g, 1);
    assert_int_equal(g.tx[0].result.deltas, 0);
    check_has(&g, 0, 3);
    test_group_drop(&g);
    assert_int_equal(b.held, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(staging_is_held_while_the_lane_is_open_and_given_back_with_it),
        cmocka_unit_test(a_lane_above_the_budget_is_refused_and_tried_again),
        cmocka_unit_test(versions_go_whole_when_there_is_no_memory_for_deltas),
        cmocka_unit_test(a_receiver_without_memory_for_deltas_asks_for_whole_versions),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "push_budget_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
