/* Versions that go as what has changed since the one before: the same bytes arrive, whatever went wrong with the base. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/store_target.h"
#include "transport/weights/push/test_group.h"

/* About `per_million` of each source's elements change. */
static void change(struct test_group *g, struct corral_rng *rng, uint32_t per_million)
{
    struct test_mesh *m = &g->mesh;
    for (uint32_t r = 0; r < m->from->ranks; r++) {
        uint64_t elements = m->from->rank_bytes[r] / 2, n = elements * per_million / 1000000;
        for (uint64_t i = 0; i < n; i++) {
            m->source[r][2 * corral_rng_below(rng, elements)] ^= (uint8_t)(1 + corral_rng_below(rng, 255));
        }
    }
    for (uint32_t i = 0; i < m->plan->copy_count; i++) {
        const struct corral_reshard_copy *c = &m->plan->copy[i];
        corral_reshard_copy_run(c, m->source[c->source], m->expected[c->destination]);
    }
}

/* All receivers take the version, `deltas` of them as a delta. */
static void check_push(struct test_group *g, uint64_t version, uint32_t deltas)
{
    test_push(g, version);
    check_applied(g, g->receivers);
    for (uint32_t i = 0; i < g->receivers; i++) {
        check_has(g, i, version);
    }
    assert_int_equal(g->tx[0].result.deltas, deltas);
}

static void random_changes_arrive(const char *lanes)
{
    static const uint32_t changes[] = {0, 10, 1000, 10000, 100000, 500000, 1000000, 0, 3000};
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct test_group g = {.lanes = lanes, .delta = true};
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        test_group_make(&g, seed, 2, 2, 2, 150000, "");
        check_push(&g, 1, 0);
        assert_true(corral_push_sender_delta_memory(g.tx[0].sender) > 0);
        for (uint32_t i = 0; i < CORRAL_COUNT_OF(changes); i++) {
            change(&g, &rng, changes[i]);
            check_push(&g, 2 + i, 2);
            const struct corral_push_result *r = &g.tx[0].result;
            assert_int_equal(r->resent_buckets, 0);
            assert_true(changes[i] > 10000 ? r->moved <= r->bytes : r->moved < r->bytes / 8 + 4096);
        }
        test_group_drop(&g);
    }
}

static void over_tcp_the_changes_arrive(void **state)
{
    (void)state;
    random_changes_arrive("tcp");
}

static void over_shm_the_changes_arrive(void **state)
{
    (void)state;
    random_changes_arrive("shm");
}

static void an_anchor_comes_every_so_many_versions(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .delta = true, .anchor_every = 3};
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    test_group_make(&g, 1, 2, 1, 1, 200000, "");
    for (uint64_t version = 1; version <= 9; version++) {
        change(&g, &rng, 1000);
        check_push(&g, version, version % 3 == 1 ? 0 : 1);
    }
    test_group_drop(&g);
}

static void without_the_option_every_version_goes_whole(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 1, 1, 1, 1, 200000, "");
    check_push(&g, 1, 0);
    check_push(&g, 2, 0);
    assert_int_equal(g.tx[0].result.moved, g.tx[0].result.bytes);
    assert_int_equal(corral_push_sender_delta_memory(g.tx[0].sender), 0);
    test_group_drop(&g);
}

static void a_base_that_has_changed_costs_its_bucket_and_makes_the_next_an_anchor(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "shm", .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    test_group_make(&g, 2, 1, 1, 1, 400000, "");
    check_push(&g, 1, 0);
    const struct corral_reshard_copy *c = &g.mesh.plan->copy[g.mesh.plan->copy_count / 2];
    g.target[0].buffer[g.target[0].at][c->destination_offset] ^= 0x10;
    change(&g, &rng, 1000);
    check_push(&g, 2, 1);
    assert_int_equal(g.tx[0].result.resent_buckets, 1);
    change(&g, &rng, 1000);
    check_push(&g, 3, 0);
    change(&g, &rng, 1000);
    check_push(&g, 4, 1);
    test_group_drop(&g);
}

static void restart(struct test_group *g, uint32_t i)
{
    corral_push_receiver_stop(g->rx[i]);
    test_receiver_start(g, i);
    for (uint32_t r = 0; r < g->senders; r++) {
        test_add(g, r, i, "");
    }
}

static void a_receiver_that_was_restarted_goes_on_from_what_it_has_kept(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    test_group_make(&g, 3, 2, 2, 2, 200000, "");
    check_push(&g, 1, 0);
    restart(&g, 1);
    change(&g, &rng, 1000);
    check_push(&g, 2, 2);
    /* and from nothing when it has nothing, or something else by the same number */
    corral_push_receiver_stop(g.rx[1]);
    g.target[1].version = 0;
    memset(g.target[1].buffer[g.target[1].at], 0, g.target[1].bytes);
    g.target[1].digest = (struct corral_digest){0};
    test_receiver_start(&g, 1);
    test_add(&g, 0, 1, "");
    test_add(&g, 1, 1, "");
    change(&g, &rng, 1000);
    check_push(&g, 3, 1);
    corral_push_receiver_stop(g.rx[0]);
    g.target[0].digest.lo ^= 1;
    test_receiver_start(&g, 0);
    test_add(&g, 0, 0, "");
    test_add(&g, 1, 0, "");
    change(&g, &rng, 1000);
    check_push(&g, 4, 1);
    change(&g, &rng, 1000);
    check_push(&g, 5, 2);
    test_group_drop(&g);
}

static void who_has_missed_a_version_gets_the_next_whole(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 4);
    test_group_make(&g, 4, 1, 2, 1, 200000, "");
    check_push(&g, 1, 0);
    g.target[1].refuse_commit = true;
    change(&g, &rng, 1000);
    test_push(&g, 2);
    check_applied(&g, 1);
    check_has(&g, 0, 2);
    g.target[1].refuse_commit = false;
    change(&g, &rng, 1000);
    check_push(&g, 3, 1);
    test_group_drop(&g);
}

static void a_version_that_nobody_took_is_not_the_base_of_the_next(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    test_group_make(&g, 5, 1, 1, 1, 200000, "");
    check_push(&g, 1, 0);
    g.target[0].refuse_commit = true;
    change(&g, &rng, 1000);
    test_push(&g, 2);
    check_status(g.tx[0].status, CORRAL_PEER);
    g.target[0].refuse_commit = false;
    change(&g, &rng, 1000);
    check_push(&g, 3, 1);
    test_group_drop(&g);
}

static void one_rank_without_a_base_makes_all_send_whole_buckets(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 6);
    test_group_make(&g, 6, 2, 1, 1, 200000, "");
    check_push(&g, 1, 0);
    corral_push_sender_destroy(g.tx[1].sender);
    test_sender_create(&g, 1);
    test_add(&g, 1, 0, "");
    change(&g, &rng, 1000);
    test_push(&g, 2); /* the receiver may still be at the end of the old connection */
    change(&g, &rng, 1000);
    uint64_t version = 3;
    for (test_push(&g, version); g.tx[0].status != CORRAL_OK && version < 20; test_push(&g, ++version)) {
    }
    check_has(&g, 0, version);
    change(&g, &rng, 1000);
    check_push(&g, version + 1, 1);
    test_group_drop(&g);
}

/* ---- a lane that damages encodings ---- */

static _Atomic int damage_left;
static struct corral_lane_ops damaging;
static uint8_t *damaged[8];

static enum corral_status damaging_send(struct corral_lane *tx, uint32_t bucket, const void *encoded,
                                        uint64_t bytes, struct corral_error *err)
{
    int left = atomic_load(&damage_left);
    if (left <= 0) {
        return corral_lane_tcp_ops.tx_send_encoded(tx, bucket, encoded, bytes, err);
    }
    free(damaged[left]);
    uint8_t *copy = damaged[left] = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, encoded, bytes);
    copy[bytes * (unsigned)left / 8] ^= 4;
    enum corral_status status = corral_lane_tcp_ops.tx_send_encoded(tx, bucket, copy, bytes, err);
    atomic_fetch_sub(&damage_left, status == CORRAL_OK);
    return status;
}

static enum corral_status damaging_open(struct corral_lane **out, const struct corral_link *link,
                                        const struct corral_lane_options *options,
                                        const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                        struct corral_error *err)
{
    CORRAL_TRY(corral_lane_tcp_ops.tx_open(out, link, options, offer, answer, err));
    (*out)->ops = &damaging;
    return CORRAL_OK;
}

static void a_damaged_delta_is_followed_by_the_whole_bucket(void **state)
{
    (void)state;
    static const struct corral_lane_ops *const lanes[] = {&damaging, NULL};
    damaging = corral_lane_tcp_ops;
    damaging.name = "damaging";
    damaging.tx_open = damaging_open;
    damaging.tx_send_encoded = damaging_send;
    struct test_group g = {.lanes = "damaging", .more = lanes, .delta = true};
    struct corral_rng rng;
    corral_rng_seed(&rng, 7);
    test_group_make(&g, 7, 1, 1, 1, 900000, "");
    check_push(&g, 1, 0);
    change(&g, &rng, 10000);
    atomic_store(&damage_left, 7);
    check_push(&g, 2, 1);
    assert_int_equal(g.tx[0].result.resent_buckets, 7);
    test_group_drop(&g);
    for (size_t i = 0; i < CORRAL_COUNT_OF(damaged); i++) {
        free(damaged[i]);
    }
}

static void the_base_may_be_the_trainers_own_memory(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    struct corral_rng rng;
    struct corral_error err = {0};
    corral_rng_seed(&rng, 8);
    test_group_make(&g, 8, 1, 1, 1, 300000, "");
    uint64_t bytes = g.mesh.from->rank_bytes[0];
    uint8_t *before = test_mesh_buffer(bytes, 0);
    struct corral_shard base = corral_shard_host(before, bytes);
    struct corral_push_sender_options o = {.ranks = 1,
                                           .leader = true,
                                           .identity = test_identity(1),
                                           .plan = g.mesh.plan,
                                           .bucket_bytes = TEST_BUCKET,
                                           .lanes = "tcp",
                                           .deadline_ns = TEST_DEADLINE_NS,
                                           .delta = true,
                                           .base = &base};
    corral_push_sender_destroy(g.tx[0].sender);
    check_ok(corral_push_sender_create(&g.tx[0].sender, &o, &err));
    test_add(&g, 0, 0, "");
    for (uint64_t version = 1; version <= 5; version++) {
        struct corral_push_result r;
        uint64_t at = version == 4 ? 0 : version - 1; /* 4: it is not to be used */
        check_ok(corral_push_sender_push(g.tx[0].sender, version, at, &g.tx[0].source, &r, &err));
        check_has(&g, 0, version);
        assert_int_equal(r.deltas, version == 1 || version == 4 ? 0 : 1);
        memcpy(before, g.mesh.source[0], bytes);
        change(&g, &rng, 5000);
    }
    assert_true(corral_push_sender_delta_memory(g.tx[0].sender) <= 4 * TEST_BUCKET);
    free(before);
    test_group_drop(&g);
}

static void a_store_takes_deltas_while_it_is_read(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "shm", .delta = true};
    struct corral_rng rng;
    struct corral_error err = {0};
    corral_rng_seed(&rng, 9);
    test_group_make(&g, 9, 2, 1, 1, 200000, "");
    struct corral_push_store_target target = {.bytes = g.mesh.to->rank_bytes[0], .manifest = {1, 2}};
    int fd = -1;
    check_ok(corral_weight_store_create(target.bytes, &fd, &err));
    check_ok(corral_weight_store_attach(fd, &target.store, &err));
    struct corral_push_receiver_options o = {.name = "r0",
                                             .host = "127.0.0.1",
                                             .identity = test_identity(0),
                                             .plan = g.mesh.plan,
                                             .bucket_bytes = TEST_BUCKET,
                                             .lanes = "shm",
                                             .target = &corral_push_store_target_ops,
                                             .target_ctx = &target};
    corral_push_receiver_stop(g.rx[0]);
    check_ok(corral_push_receiver_start(&g.rx[0], &o, &err));
    test_add(&g, 0, 0, "");
    test_add(&g, 1, 0, "");
    CORRAL_AUTO_FREE uint8_t *read = malloc(target.bytes);
    assert_non_null(read);
    for (uint64_t version = 1; version <= 8; version++) {
        uint64_t has = 0;
        struct corral_digest digest;
        test_push(&g, version);
        check_applied(&g, 1);
        assert_int_equal(g.tx[0].result.deltas, version > 1);
        check_ok(
            corral_weight_store_read(target.store, target.manifest, read, target.bytes, &has, &digest, &err));
        assert_int_equal(has, version);
        for (uint32_t i = 0; i < g.mesh.plan->copy_count; i++) {
            const struct corral_reshard_copy *c = &g.mesh.plan->copy[i];
            assert_memory_equal(read + c->destination_offset, g.mesh.expected[0] + c->destination_offset,
                                c->run_bytes);
        }
        change(&g, &rng, 2000);
    }
    corral_push_receiver_stop(g.rx[0]);
    g.rx[0] = NULL;
    corral_weight_store_detach(target.store);
    close(fd);
    test_group_drop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(over_tcp_the_changes_arrive),
        cmocka_unit_test(over_shm_the_changes_arrive),
        cmocka_unit_test(an_anchor_comes_every_so_many_versions),
        cmocka_unit_test(without_the_option_every_version_goes_whole),
        cmocka_unit_test(a_base_that_has_changed_costs_its_bucket_and_makes_the_next_an_anchor),
        cmocka_unit_test(a_receiver_that_was_restarted_goes_on_from_what_it_has_kept),
        cmocka_unit_test(who_has_missed_a_version_gets_the_next_whole),
        cmocka_unit_test(a_version_that_nobody_took_is_not_the_base_of_the_next),
        cmocka_unit_test(one_rank_without_a_base_makes_all_send_whole_buckets),
        cmocka_unit_test(a_damaged_delta_is_followed_by_the_whole_bucket),
        cmocka_unit_test(the_base_may_be_the_trainers_own_memory),
        cmocka_unit_test(a_store_takes_deltas_while_it_is_read),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "push_delta_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
