/* Pushes to several targets of which some are dead, slow or wrong: the others must get the version, in time. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/log.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"
#include "transport/weights/test_weights.h"
#include "transport/weights/wire.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define WORDS 65536
#define BYTES (WORDS * sizeof(uint64_t))
#define RUN 12
#define DEADLINE_MS 1000u

static const uint8_t secret[32] = "the run's secret, 32 bytes long";
static uint64_t weights[WORDS], copy[WORDS];

struct node {
    int fd;
    struct corral_weight_store *store, *reader;
    struct corral_weight_receiver *receiver;
    char endpoint[96];
};

struct fixture {
    struct corral_manifest *manifest;
    struct corral_digest hash;
    struct corral_weight_publisher *publisher;
    struct node a, b;
};

static void node_listen(struct fixture *f, struct node *n)
{
    struct corral_error err = {0};
    const struct corral_node_receiver_options options = {.node = n == &f->a ? "a" : "b",
                                                         .host = "127.0.0.1",
                                                         .manifest = f->manifest,
                                                         .store = n->store,
                                                         .run = RUN,
                                                         .secret = secret};
    check_ok(corral_weight_receiver_start(&n->receiver, &options, &err));
    snprintf(n->endpoint, sizeof n->endpoint, "%s", corral_weight_receiver_endpoint(n->receiver));
}

static void node_start(struct fixture *f, struct node *n)
{
    struct corral_error err = {0};
    check_ok(corral_weight_store_create(BYTES, &n->fd, &err));
    check_ok(corral_weight_store_attach(n->fd, &n->store, &err));
    check_ok(corral_weight_store_attach(n->fd, &n->reader, &err));
    node_listen(f, n);
}

static void node_stop(struct node *n)
{
    corral_weight_receiver_stop(n->receiver);
    corral_weight_store_detach(n->store);
    corral_weight_store_detach(n->reader);
    close(n->fd);
}

static int setup(void **state)
{
    static struct fixture f;
    struct corral_error err = {0};
    uint64_t shape[1] = {WORDS};
    check_ok(corral_manifest_create(&f.manifest, 1, &err));
    check_ok(corral_manifest_add(f.manifest, "w", CORRAL_DTYPE_U64, 1, shape, &err));
    f.hash = corral_manifest_hash(f.manifest);
    const struct corral_publisher_options options = {
        .manifest = f.manifest, .run = RUN, .secret = secret, .deadline_ms = DEADLINE_MS};
    check_ok(corral_weight_publisher_create(&f.publisher, &options, &err));
    node_start(&f, &f.a);
    node_start(&f, &f.b);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    corral_weight_publisher_destroy(f->publisher);
    node_stop(&f->a);
    node_stop(&f->b);
    corral_manifest_destroy(f->manifest);
    return 0;
}

static enum corral_status push(struct fixture *f, uint64_t version, struct corral_publish_stats *stats,
                               struct corral_error *err)
{
    test_fill(weights, WORDS, version);
    return corral_weight_publisher_push(f->publisher, version, weights, BYTES, stats, err);
}

static void check_node_has(struct fixture *f, struct node *n, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_digest digest;
    uint64_t got = 0;
    check_ok(corral_weight_store_read(n->reader, f->hash, copy, BYTES, &got, &digest, &err));
    assert_int_equal(got, version);
    assert_true(test_is_version(copy, WORDS, version));
}

static void every_target_gets_every_version(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    for (uint64_t v = 1; v <= 30; v++) {
        check_ok(push(f, v, &stats, &err));
        assert_int_equal(stats.targets, 2);
        assert_int_equal(stats.dropped, 0);
        assert_true(corral_digest_equal(stats.digest, corral_digest_of(weights, BYTES)));
        check_node_has(f, &f->a, v);
        check_node_has(f, &f->b, v);
    }
}

static void versions_only_grow(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(push(f, 5, NULL, &err));
    check_ok(push(f, 5, NULL, &err)); /* the same bytes */
    weights[7] ^= 1;
    check_status(corral_weight_publisher_push(f->publisher, 5, weights, BYTES, NULL, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "other bytes"));
    check_node_has(f, &f->a, 5);
    check_status(push(f, 4, NULL, &err), CORRAL_INVALID);
    check_status(corral_weight_publisher_push(f->publisher, 6, weights, BYTES - 8, NULL, &err),
                 CORRAL_INVALID);
    check_ok(push(f, 6, NULL, &err));
}

/* A trainer that restarted from an old checkpoint must not turn a node's weights back. */
static void a_target_that_is_ahead_refuses_and_is_dropped(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    void *slot = NULL;
    struct corral_digest digest;
    check_ok(corral_weight_store_begin(f->b.reader, 100, f->hash, BYTES, &slot, &err));
    test_fill(slot, WORDS, 100);
    check_ok(corral_weight_store_commit(f->b.reader, 100, &digest, &err));
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 7, &stats, &err));
    assert_int_equal(stats.targets, 1);
    assert_int_equal(stats.dropped, 1);
    check_node_has(f, &f->a, 7);
    check_node_has(f, &f->b, 100);
}

static void an_endpoint_is_added_once(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_status(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err), CORRAL_EXISTS);
    check_status(corral_weight_publisher_add_node(f->publisher, "", f->b.endpoint, &err), CORRAL_INVALID);
    corral_weight_publisher_remove(f->publisher, "b");
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 1, NULL, &err));
}

static void fails_only_when_nobody_has_it(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_status(push(f, 1, NULL, &err), CORRAL_NOT_FOUND);
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    corral_weight_receiver_stop(f->b.receiver);
    f->b.receiver = NULL;
    check_status(push(f, 1, NULL, &err), CORRAL_PEER);
    check_status(push(f, 1, NULL, &err), CORRAL_PEER); /* and it is tried each time when it is the only one */
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(push(f, 1, NULL, &err)); /* a version nobody has may be pushed again */
}

static void a_receiver_that_was_restarted_gets_the_next_version(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 1, &stats, &err));
    assert_int_equal(stats.targets, 2);
    corral_weight_receiver_stop(f->b.receiver);
    f->b.receiver = NULL;
    check_ok(push(f, 2, &stats, &err));
    assert_int_equal(stats.targets, 1);
    assert_int_equal(stats.dropped, 1);
    check_node_has(f, &f->b, 1);
    corral_weight_publisher_remove(f->publisher, "b"); /* it comes back on another port */
    node_listen(f, &f->b);
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 3, &stats, &err));
    assert_int_equal(stats.targets, 2);
    check_node_has(f, &f->b, 3);
}

/* ---- a machine that has frozen: its kernel takes connections, and nobody reads ---- */

static int frozen(char *endpoint, size_t endpoint_bytes)
{
    struct sockaddr_storage address = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    socklen_t length = sizeof *v4;
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    wire_format_address(&address, endpoint, endpoint_bytes);
    return fd;
}

static void a_frozen_node_is_dropped_and_the_others_do_not_wait_for_it(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    char endpoint[96];
    int fd = frozen(endpoint, sizeof endpoint);
    check_ok(corral_weight_publisher_add_node(f->publisher, "frozen", endpoint, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(push(f, 1, &stats, &err));
    assert_int_equal(stats.targets, 2);
    assert_int_equal(stats.dropped, 1);
    /* The good one was done well before the time that the push had to sit out for the frozen one. */
    assert_true(stats.wire_ns + stats.stage_ns + stats.apply_ns < DEADLINE_MS * CORRAL_NS_PER_MS / 2);
    check_node_has(f, &f->a, 1);
    check_node_has(f, &f->b, 1);
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    for (uint64_t v = 2; v <= 6; v++) { /* pushes do not wait for it any more */
        check_ok(push(f, v, &stats, &err));
        assert_int_equal(stats.targets, 2);
        check_node_has(f, &f->b, v);
    }
    assert_true(corral_now_ns(&corral_clock_monotonic) - before < 5 * DEADLINE_MS * CORRAL_NS_PER_MS);
    close(fd);
}

static void a_dropped_node_is_found_again_by_later_pushes(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    check_ok(corral_weight_publisher_add_store(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 1, &stats, &err));
    assert_int_equal(stats.targets, 2);
    corral_weight_receiver_stop(f->b.receiver);
    check_ok(push(f, 2, &stats, &err));
    assert_int_equal(stats.dropped, 1);
    node_listen(f, &f->b);
    check_ok(corral_weight_publisher_add_node(f->publisher, "b", f->b.endpoint, &err)); /* another port */
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + 20 * CORRAL_NS_PER_S, version = 3;
    do {
        check_ok(push(f, version++, &stats, &err));
    } while (stats.targets < 2 && corral_now_ns(&corral_clock_monotonic) < until);
    check_node_has(f, &f->b, version - 1);
}

int main(void)
{
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL); /* the drops are what is tested */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_target_gets_every_version, setup, teardown),
        cmocka_unit_test_setup_teardown(versions_only_grow, setup, teardown),
        cmocka_unit_test_setup_teardown(a_target_that_is_ahead_refuses_and_is_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(an_endpoint_is_added_once, setup, teardown),
        cmocka_unit_test_setup_teardown(fails_only_when_nobody_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_receiver_that_was_restarted_gets_the_next_version, setup, teardown),
        cmocka_unit_test_setup_teardown(a_frozen_node_is_dropped_and_the_others_do_not_wait_for_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_dropped_node_is_found_again_by_later_pushes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
