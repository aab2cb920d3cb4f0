#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/lanes/probe.h"
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct corral_lane_probe_options small = {.bytes = 3 << 20, .bucket_bytes = 256 << 10};

static void measures_every_lane_of_this_machine(void **state)
{
    (void)state;
    for (int kind = 0; kind <= CORRAL_LANE_TCP; kind++) {
        struct corral_error err;
        struct corral_lane_probe_result result = {.kind = CORRAL_LANE_KINDS};
        const struct corral_lane_ops *ops = corral_lane_ops_of((enum corral_lane_kind)kind);
        assert_non_null(ops);
        check_ok(corral_lane_probe(ops, &small, &result, &err));
        assert_int_equal(result.kind, kind);
        assert_int_equal(result.bytes, (3 << 20) + CORRAL_LANE_PROBE_SMALL);
        assert_true(result.push_ns > 0 && result.latency_ns > 0);
        assert_true(corral_lane_probe_rate(&result) > 0);
    }
}

static enum corral_status nowhere(const struct corral_lane_options *options, struct corral_error *err)
{
    (void)options;
    return corral_fail(err, CORRAL_UNSUPPORTED, "no such card");
}

static void says_why_a_lane_is_not_there(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_lane_probe_result result;
    struct corral_lane_ops absent = corral_lane_tcp_ops;
    absent.available = nowhere;
    check_status(corral_lane_probe(&absent, &small, &result, &err), CORRAL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no such card"));
}

static enum corral_status damages(struct corral_lane *tx, uint64_t push, struct corral_shard *source,
                                  const struct corral_lane_blob *place, struct corral_error *err)
{
    ((uint8_t *)source->host)[1 << 20] ^= 1;
    return corral_lane_tcp_ops.tx_begin(tx, push, source, place, err);
}

static void believes_no_figure_of_a_lane_that_damages(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_lane_probe_result result;
    struct corral_lane_ops bad = corral_lane_tcp_ops;
    bad.tx_begin = damages;
    assert_int_not_equal(corral_lane_probe(&bad, &small, &result, &err), CORRAL_OK);
    assert_non_null(strstr(err.text, "damaged bucket 4"));
}

static void gives_up_when_the_other_end_is_silent_gone_or_talks_nonsense(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        int pair[2];
        struct corral_error err;
        struct corral_lane_probe_options options = small;
        struct corral_lane_probe_result result;
        options.timeout_ns = 50 * CORRAL_NS_PER_MS;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        if (how == 2) {
            uint8_t noise[64];
            memset(noise, 0xee, sizeof noise);
            assert_int_equal(send(pair[1], noise, sizeof noise, 0), sizeof noise);
        }
        if (how == 1) {
            close(pair[1]);
        }
        enum corral_status status =
            corral_lane_probe_send(pair[0], &corral_lane_shm_ops, &options, &result, &err);
        assert_int_equal(status, how == 0 ? CORRAL_TIMEOUT : how == 1 ? CORRAL_PEER : CORRAL_PROTOCOL);
        close(pair[0]);
        if (how != 1) {
            close(pair[1]);
        }
    }
}

static void chooses_by_latency_and_rate(void **state)
{
    (void)state;
    struct corral_error err;
    enum corral_lane_kind kind = CORRAL_LANE_KINDS;
    const struct corral_lane_probe_result result[] = {
        {.kind = CORRAL_LANE_TCP, .bytes = 1000000, .push_ns = 1000000, .latency_ns = 1000},
        {.kind = CORRAL_LANE_RDMA, .bytes = 1000000, .push_ns = 100000, .latency_ns = 50000},
        {.kind = CORRAL_LANE_SHM, .bytes = 1000000, .push_ns = 0, .latency_ns = 1}, /* not measured */
    };
    check_ok(corral_lane_choose(result, 3, ~0u, 1000, &kind, &err));
    assert_int_equal(kind, CORRAL_LANE_TCP);
    check_ok(corral_lane_choose(result, 3, ~0u, 1000000, &kind, &err));
    assert_int_equal(kind, CORRAL_LANE_RDMA);
    check_ok(corral_lane_choose(result, 3, 1u << CORRAL_LANE_TCP, 1000000, &kind, &err));
    assert_int_equal(kind, CORRAL_LANE_TCP);
    check_status(corral_lane_choose(result, 3, 1u << CORRAL_LANE_SHM, 1, &kind, &err), CORRAL_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measures_every_lane_of_this_machine),
        cmocka_unit_test(says_why_a_lane_is_not_there),
        cmocka_unit_test(believes_no_figure_of_a_lane_that_damages),
        cmocka_unit_test(gives_up_when_the_other_end_is_silent_gone_or_talks_nonsense),
        cmocka_unit_test(chooses_by_latency_and_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
