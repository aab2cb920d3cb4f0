/* Pushes with peers that are dead, silent, wrong, old or late. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/frame.h"
#include "transport/weights/push/store_target.h"
#include "transport/weights/push/test_group.h"
#include <arpa/inet.h>
#include <poll.h>

/* ---- a lane that damages what arrives ---- */

static _Atomic int damage_left;
static struct corral_lane_ops damaging;
static _Atomic(uint8_t *) damaged_memory; /* of the one receiver that has this lane, for all its links */

static enum corral_status damaging_begin(struct corral_lane *rx, uint64_t push,
                                         struct corral_shard *destination, struct corral_lane_blob *place,
                                         struct corral_error *err)
{
    atomic_store(&damaged_memory, destination->host);
    return corral_lane_tcp_ops.rx_begin(rx, push, destination, place, err);
}

static enum corral_status damaging_progress(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                            uint32_t room, uint32_t *count, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_tcp_ops.rx_progress(rx, timeout_ns, bucket, room, count, err));
    for (uint32_t i = 0; i < *count; i++) {
        if (atomic_fetch_sub(&damage_left, 1) > 0) {
            struct corral_link_cursor cursor = corral_link_seek(rx->link, bucket[i]);
            struct corral_span span;
            assert_true(corral_link_next(rx->link, &cursor, &span));
            atomic_load(&damaged_memory)[span.destination_offset] ^= 1;
        }
    }
    return CORRAL_OK;
}

static const struct corral_lane_ops *const damaging_lanes[] = {&damaging, NULL};

static void make_damaging_lane(void)
{
    damaging = corral_lane_tcp_ops;
    damaging.name = "damaging";
    damaging.rx_begin = damaging_begin;
    damaging.rx_progress = damaging_progress;
}

static void a_damaged_bucket_is_sent_again(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "damaging", .more = damaging_lanes};
    test_group_make(&g, 1, 1, 1, 1, 200000, "");
    atomic_store(&damage_left, 2);
    test_push(&g, 1);
    check_applied(&g, 1);
    check_has(&g, 0, 1);
    assert_int_equal(g.tx[0].result.resent_buckets, 2);
    struct corral_push_receiver_status s;
    corral_push_receiver_status(g.rx[0], &s);
    assert_int_equal(s.resent_buckets, 2);
    assert_int_equal(s.version, 1);
    assert_string_equal(s.lane, "damaging");
    test_group_drop(&g);
}

static void a_bucket_that_stays_damaged_costs_the_version_and_not_the_next(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "damaging", .more = damaging_lanes};
    test_group_make(&g, 1, 2, 1, 1, 200000, "");
    atomic_store(&damage_left, 0);
    test_push(&g, 1);
    check_applied(&g, 1);
    atomic_store(&damage_left, 1000000);
    test_push(&g, 2);
    check_status(g.tx[0].status, CORRAL_PEER);
    check_has(&g, 0, 1);
    atomic_store(&damage_left, 0);
    test_mesh_fill(&g.mesh, 3);
    test_push(&g, 3);
    check_applied(&g, 1);
    check_has(&g, 0, 3);
    assert_int_equal(g.target[0].aborts, 1);
    test_group_drop(&g);
}

static void falls_to_the_next_lane(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "nothing,tcp"};
    test_group_make(&g, 2, 2, 1, 1, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    struct corral_push_receiver_status s;
    corral_push_receiver_status(g.rx[0], &s);
    assert_string_equal(s.lane, "tcp");
    test_group_drop(&g);
}

/* ---- versions and generations ---- */

static void the_same_version_again_is_applied_and_others_are_refused(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 3, 2, 1, 1, 90000, "");
    test_push(&g, 7);
    check_applied(&g, 1);
    test_push(&g, 7);
    check_applied(&g, 1);
    assert_int_equal(g.target[0].commits, 2);
    uint8_t *was = test_mesh_buffer(g.target[0].bytes, 0);
    memcpy(was, g.mesh.expected[0], g.target[0].bytes);
    test_mesh_fill(&g.mesh, 99); /* other bytes under the same number */
    test_push(&g, 7);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "the target has other bytes"));
    memcpy(g.mesh.expected[0], was, g.target[0].bytes);
    check_has(&g, 0, 7);
    test_mesh_fill(&g.mesh, 100);
    test_push(&g, 8);
    check_applied(&g, 1);
    check_has(&g, 0, 8);
    free(was);
    test_group_drop(&g);
}

static void versions_only_grow_at_a_receiver(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 3, 1, 1, 1, 30000, "");
    test_push(&g, 7);
    check_applied(&g, 1);
    corral_push_sender_destroy(g.tx[0].sender); /* a trainer that has forgotten */
    test_sender_create(&g, 0);
    test_add(&g, 0, 0, "");
    test_push(&g, 6);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "versions only grow"));
    check_has(&g, 0, 7);
    test_push(&g, 9);
    check_applied(&g, 1);
    test_group_drop(&g);
}

static void times_without_end_do_not_run_over(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = UINT64_MAX, .silence_ns = UINT64_MAX};
    test_group_make(&g, 16, 1, 1, 1, 30000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    test_push_ranks(&g, 1, UINT64_MAX, 0, 1); /* catch_up */
    check_applied(&g, 1);
    check_has(&g, 0, 1);
    test_group_drop(&g);
}

static void an_older_generation_is_fenced(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .generation = 5};
    test_group_make(&g, 4, 1, 1, 1, 30000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    struct corral_push_sender *old = g.tx[0].sender;
    g.generation = 6;
    test_sender_create(&g, 0);
    test_add(&g, 0, 0, "");
    test_push(&g, 2);
    check_applied(&g, 1);
    struct corral_push_sender *new = g.tx[0].sender;
    g.tx[0].sender = old;
    test_push(&g, 3); /* its connection is gone, and its login refused */
    check_status(g.tx[0].status, CORRAL_PEER);
    test_push(&g, 4);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "fenced"));
    check_has(&g, 0, 2);
    g.tx[0].sender = new;
    test_push(&g, 5);
    check_applied(&g, 1);
    corral_push_sender_destroy(old);
    test_group_drop(&g);
}

static void another_plan_is_refused(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 5 * CORRAL_NS_PER_S};
    test_group_make(&g, 5, 1, 1, 1, 30000, "");
    struct test_mesh other = test_mesh_make(6, 1, 1, 3, 30000), own = g.mesh;
    corral_push_sender_destroy(g.tx[0].sender);
    g.mesh = other;
    test_sender_create(&g, 0);
    test_add(&g, 0, 0, "");
    test_push(&g, 1);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "another reshard plan"));
    g.mesh = own;
    check_has(&g, 0, 0);
    test_mesh_drop(&other);
    test_group_drop(&g);
}

/* ---- receivers ---- */

static void a_replica_flips_together_or_not_at_all(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 7, 2, 2, 2, 90000, "engine");
    test_push(&g, 1);
    check_applied(&g, 2);
    corral_push_receiver_stop(g.rx[1]);
    test_push(&g, 2);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_int_equal(g.target[0].version, 1);
    test_receiver_start(&g, 1); /* restarted, with what it had */
    test_add(&g, 0, 1, "engine");
    test_add(&g, 1, 1, "engine");
    /* Its mate is connected again in the background of this push or, when that comes late, in time for a later one. */
    uint64_t version = 3;
    do {
        test_mesh_fill(&g.mesh, version);
        test_push(&g, version);
        assert_int_equal(g.target[0].version, g.target[1].version);
    } while (g.tx[0].status != CORRAL_OK && version++ < 20);
    check_applied(&g, 2);
    check_has(&g, 0, version);
    check_has(&g, 1, version);
    test_group_drop(&g);
}

static void a_dead_receiver_does_not_hold_up_the_others_and_comes_back(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 8, 2, 3, 2, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 3);
    corral_push_receiver_stop(g.rx[2]);
    test_push(&g, 2);
    check_applied(&g, 2);
    test_target_drop(&g.target[2]); /* it lost everything */
    test_target_make(&g.target[2], g.mesh.to->rank_bytes[g.rank[2]]);
    test_receiver_start(&g, 2);
    for (uint32_t r = 0; r < 2; r++) {
        test_add(&g, r, 2, "");
        assert_int_equal(corral_push_sender_behind(g.tx[r].sender), 1);
    }
    test_push_ranks(&g, 2, TEST_DEADLINE_NS, 0, 2); /* catch_up: no new version is needed */
    check_applied(&g, 3);
    check_has(&g, 2, 2);
    assert_int_equal(corral_push_sender_behind(g.tx[0].sender), 0);
    assert_int_equal(g.target[0].begun, 2); /* who had it was not sent it again */
    test_group_drop(&g);
}

/* The leader, started again within its group, logs in to receiver i as the leader and takes the place of the first one's connection, which the first one notices at its next push. */
static void cut_off(struct test_group *g, uint32_t i)
{
    struct corral_push_sender *own = g->tx[0].sender;
    uint64_t version = g->target[i].version + 1;
    test_sender_create(g, 0);
    test_add(g, 0, i, "");
    test_push_ranks(g, version, 0, 0, 1);
    check_status(g->tx[0].status, CORRAL_OK);
    corral_push_sender_destroy(g->tx[0].sender);
    g->tx[0].sender = own;
}

static void a_replica_that_lost_a_part_is_waited_for_when_there_is_no_other(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .group = 5};
    test_group_make(&g, 13, 1, 2, 2, 30000, "engine");
    test_push(&g, 1);
    check_applied(&g, 2);
    for (uint32_t i = 0; i < 2; i++) {
        cut_off(&g, i);
        test_push(&g, 3 + i);
        check_applied(&g, 2);
        assert_int_equal(g.target[0].version, 3 + i);
        assert_int_equal(g.target[1].version, 3 + i);
    }
    test_group_drop(&g);
}

/* Its login takes more round trips than a push of a few bytes. */
static void a_receiver_that_was_cut_off_is_back_in_the_push_after_the_next(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 5 * CORRAL_NS_PER_S, .group = 5};
    test_group_make(&g, 14, 1, 2, 1, 300, "");
    test_push(&g, 1);
    check_applied(&g, 2);
    for (uint64_t version = 2; version < 40; version += 3) {
        cut_off(&g, 1);
        test_push(&g, version + 1);
        check_status(g.tx[0].status, CORRAL_OK);
        test_push(&g, version + 2);
        check_applied(&g, 2);
        check_has(&g, 1, version + 2);
    }
    test_group_drop(&g);
}

/* Accepts in the kernel, and nobody is behind it. */
static int silent_listener(char *endpoint, size_t room)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 8) == 0 &&
                getsockname(fd, (struct sockaddr *)&a, &length) == 0);
    snprintf(endpoint, room, "127.0.0.1:%u", ntohs(a.sin_port));
    return fd;
}

static void a_receiver_that_says_nothing_is_dropped_at_the_deadline(void **state)
{
    (void)state;
    char endpoint[64];
    int fd = silent_listener(endpoint, sizeof endpoint);
    struct test_group g = {.lanes = "tcp", .deadline_ns = CORRAL_NS_PER_S};
    test_group_make(&g, 9, 1, 1, 1, 30000, "");
    struct corral_error err = {0};
    check_ok(corral_push_sender_add(g.tx[0].sender, "mute", endpoint, 0, "", &err));
    test_push(&g, 1);
    check_status(g.tx[0].status, CORRAL_OK);
    assert_int_equal(g.tx[0].result.applied, 1);
    assert_int_equal(g.tx[0].result.dropped, 1);
    check_has(&g, 0, 1);
    close(fd);
    test_group_drop(&g);
}

/* ---- senders ---- */

static int connect_to(const char *endpoint)
{
    struct sockaddr_storage a;
    socklen_t length;
    struct corral_error err = {0};
    check_ok(wire_resolve(endpoint, &a, &length, &err));
    int fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && connect(fd, (struct sockaddr *)&a, length) == 0);
    return fd;
}

static void garbage_from_strangers_harms_nobody(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 10, 1, 1, 1, 30000, "");
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (int i = 0; i < 40; i++) {
        uint8_t bytes[256];
        int fd = connect_to(corral_push_receiver_endpoint(g.rx[0]));
        struct push_frame f = {.type = (uint32_t)i, .bytes = i == 1 ? PUSH_HELLO_BYTES : 0};
        for (size_t k = 0; k < sizeof bytes; k++) {
            bytes[k] = (uint8_t)corral_rng_below(&rng, 256);
        }
        if (i < 20) {
            push_put_header(bytes, &f);
        }
        (void)!send(fd, bytes, sizeof bytes, MSG_NOSIGNAL);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 20000), 1); /* an ERROR or the end, and no hang */
        close(fd);
    }
    test_push(&g, 1);
    check_applied(&g, 1);
    check_has(&g, 0, 1);
    test_group_drop(&g);
}

static void a_rank_that_does_not_take_part_costs_the_version_and_not_the_next(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp", .deadline_ns = 2 * CORRAL_NS_PER_S};
    test_group_make(&g, 11, 2, 1, 1, 90000, "");
    test_push(&g, 1);
    check_applied(&g, 1);
    test_push_ranks(&g, 2, 0, 0, 1); /* rank 1 is busy */
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "rank 1 has not begun"));
    check_has(&g, 0, 1);
    assert_int_equal(g.target[0].begun, 1);
    test_mesh_fill(&g.mesh, 3);
    test_push(&g, 3);
    check_applied(&g, 1);
    check_has(&g, 0, 3);
    test_group_drop(&g);
}

/* ---- the store ---- */

static void a_store_is_flipped_and_read_as_ever(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct test_group g = {.lanes = "shm,tcp"};
    test_group_make(&g, 12, 2, 1, 1, 90000, "");
    corral_push_receiver_stop(g.rx[0]);
    uint64_t bytes = g.mesh.to->rank_bytes[0];
    int fd = -1;
    struct corral_push_store_target t = {.manifest = {.lo = 1, .hi = 2}, .bytes = bytes};
    check_ok(corral_weight_store_create(bytes, &fd, &err));
    check_ok(corral_weight_store_attach(fd, &t.store, &err));
    struct corral_push_receiver_options o = {.name = "store",
                                             .host = "127.0.0.1",
                                             .identity = test_identity(0),
                                             .plan = g.mesh.plan,
                                             .bucket_bytes = TEST_BUCKET,
                                             .lanes = "shm,tcp",
                                             .target = &corral_push_store_target_ops,
                                             .target_ctx = &t};
    check_ok(corral_push_receiver_start(&g.rx[0], &o, &err));
    test_add(&g, 0, 0, "");
    test_add(&g, 1, 0, "");
    uint8_t *copy = test_mesh_buffer(bytes, 0);
    for (uint64_t version = 1; version <= 6; version++) {
        struct corral_digest digest;
        uint64_t read = 0;
        test_mesh_fill(&g.mesh, version);
        test_push(&g, version);
        check_applied(&g, 1);
        check_ok(corral_weight_store_read(t.store, t.manifest, copy, bytes, &read, &digest, &err));
        assert_int_equal(read, version);
        assert_memory_equal(copy, g.mesh.expected[0], bytes);
        assert_true(corral_digest_equal(digest, g.tx[0].result.digest));
        test_push(&g, version); /* again */
        check_applied(&g, 1);
    }
    free(copy);
    test_group_drop(&g);
    corral_weight_store_detach(t.store);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_damaged_bucket_is_sent_again),
        cmocka_unit_test(a_bucket_that_stays_damaged_costs_the_version_and_not_the_next),
        cmocka_unit_test(falls_to_the_next_lane),
        cmocka_unit_test(the_same_version_again_is_applied_and_others_are_refused),
        cmocka_unit_test(versions_only_grow_at_a_receiver),
        cmocka_unit_test(times_without_end_do_not_run_over),
        cmocka_unit_test(an_older_generation_is_fenced),
        cmocka_unit_test(another_plan_is_refused),
        cmocka_unit_test(a_replica_flips_together_or_not_at_all),
        cmocka_unit_test(a_dead_receiver_does_not_hold_up_the_others_and_comes_back),
        cmocka_unit_test(a_replica_that_lost_a_part_is_waited_for_when_there_is_no_other),
        cmocka_unit_test(a_receiver_that_was_cut_off_is_back_in_the_push_after_the_next),
        cmocka_unit_test(a_receiver_that_says_nothing_is_dropped_at_the_deadline),
        cmocka_unit_test(garbage_from_strangers_harms_nobody),
        cmocka_unit_test(a_rank_that_does_not_take_part_costs_the_version_and_not_the_next),
        cmocka_unit_test(a_store_is_flipped_and_read_as_ever),
    };
    make_damaging_lane();
    corral_log_configure(getenv("PUSH_TEST_LOG") ? CORRAL_LOG_DEBUG : CORRAL_LOG_ERROR, false, 2,
                         "push_fault_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
