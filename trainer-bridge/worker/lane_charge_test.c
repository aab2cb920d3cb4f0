/* A publisher whose deltas and lanes are charged to a trainer's quota on a host device. */
#include "trainer-bridge/worker/lane_charge.h"

#include "base/log.h"
#include "quota/test_node.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"
#include <string.h>
#include <unistd.h>

#define BYTES (8 * MIB)

static const uint8_t secret[32] = "the run's secret, 32 bytes long";
static uint8_t weights[BYTES];

struct fixture {
    int ledger_fd, store_fd;
    struct corral_quota *q;
    uint32_t holder;
    struct corral_lane_charge charge;
    struct corral_manifest *manifest;
    struct corral_weight_store *store;
    struct corral_weight_receiver *receiver;
    struct corral_weight_publisher *publisher;
};

static uint64_t used(const struct fixture *f)
{
    static struct corral_ledger seen;
    corral_quota_snapshot(f->q, &seen);
    assert_true(corral_ledger_consistent(&seen));
    return seen.device[0].role[TRAINER].used;
}

static uint64_t denied(const struct fixture *f)
{
    static struct corral_ledger seen;
    corral_quota_snapshot(f->q, &seen);
    return seen.device[0].role[TRAINER].denied;
}

static struct fixture make(void)
{
    struct fixture f = {.ledger_fd = -1};
    struct corral_error err = {0};
    uint64_t shape[1] = {BYTES};
    f.q = test_node(&f.ledger_fd);
    check_ok(corral_quota_join(f.q, "a:0", "trainer", &f.holder, &err));
    check_ok(corral_manifest_create(&f.manifest, 1, &err));
    check_ok(corral_manifest_add(f.manifest, "w", CORRAL_DTYPE_U8, 1, shape, &err));
    check_ok(corral_weight_store_create(BYTES, &f.store_fd, &err));
    check_ok(corral_weight_store_attach(f.store_fd, &f.store, &err));
    const struct corral_node_receiver_options receiver = {.node = "b",
                                                          .host = "127.0.0.1",
                                                          .manifest = f.manifest,
                                                          .store = f.store,
                                                          .run = 3,
                                                          .secret = secret};
    check_ok(corral_weight_receiver_start(&f.receiver, &receiver, &err));
    return f;
}

/* At its final place, which the charge has for an address. */
static void publish_from(struct fixture *f)
{
    struct corral_error err = {0};
    f->charge = (struct corral_lane_charge){.quota = f->q, .holder = f->holder};
    const struct corral_publisher_options publisher = {
        .manifest = f->manifest,
        .run = 3,
        .secret = secret,
        .deadline_ms = 20000,
        .delta = true,
        .budget = {.hold = corral_lane_charge_hold, .ctx = &f->charge}};
    check_ok(corral_weight_publisher_create(&f->publisher, &publisher, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", corral_weight_receiver_endpoint(f->receiver),
                                              &err));
}

static void drop(struct fixture *f)
{
    corral_weight_receiver_stop(f->receiver);
    corral_weight_store_detach(f->store);
    corral_manifest_destroy(f->manifest);
    corral_quota_detach(f->q);
    close(f->store_fd);
    close(f->ledger_fd);
}

static struct corral_publish_stats push(struct fixture *f, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    weights[version * 4096 % BYTES]++;
    check_ok(corral_weight_publisher_push(f->publisher, version, weights, BYTES, &stats, &err));
    return stats;
}

static void what_deltas_start_from_is_charged_to_the_trainer_and_given_back_at_the_end(void **state)
{
    (void)state;
    struct fixture f = make();
    publish_from(&f);
    assert_int_equal(used(&f), 0);
    assert_int_equal(push(&f, 1).deltas, 0);
    struct corral_publish_stats stats = push(&f, 2);
    assert_int_equal(stats.deltas, 1);
    assert_true(stats.memory >= BYTES);
    assert_int_equal(used(&f), stats.memory);
    corral_weight_publisher_destroy(f.publisher);
    assert_int_equal(used(&f), 0);
    assert_int_equal(denied(&f), 0);
    drop(&f);
}

/* The ledger's refusal is counted as any other; the version goes all the same. */
static void deltas_that_would_cross_the_quota_are_done_without(void **state)
{
    (void)state;
    struct fixture f = make();
    struct corral_error err = {0};
    const uint64_t taken = 50 * MIB - 4 * MIB; /* of what the trainer may have beside the rollout's floor */
    publish_from(&f);
    check_ok(corral_quota_reserve(f.q, f.holder, taken, "the trainer itself", &err));
    corral_quota_commit(f.q, f.holder, taken);
    for (uint64_t version = 1; version <= 3; version++) {
        struct corral_publish_stats stats = push(&f, version);
        assert_int_equal(stats.deltas, 0);
        assert_int_equal(stats.targets, 1);
        assert_true(used(&f) <= 50 * MIB);
    }
    assert_true(denied(&f) > 0);
    corral_quota_release(f.q, f.holder, taken);
    (void)push(&f, 4);
    assert_int_equal(push(&f, 5).deltas, 1);
    corral_weight_publisher_destroy(f.publisher);
    assert_int_equal(used(&f), 0);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_deltas_start_from_is_charged_to_the_trainer_and_given_back_at_the_end),
        cmocka_unit_test(deltas_that_would_cross_the_quota_are_done_without),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, -1, "lane_charge_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
