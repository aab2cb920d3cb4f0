/* Pushes to several targets of which some are dead, slow or wrong: the others must get the version, in time. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/log.h"
#include "transport/weights/publisher.h"
#include "transport/weights/test_weights.h"
#include "transport/weights/wire.h"

#include <netinet/in.h>
#include <pthread.h>
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

static void node_start(struct node *n)
{
    struct corral_error err = {0};
    check_ok(corral_weight_store_create(BYTES, &n->fd, &err));
    check_ok(corral_weight_store_attach(n->fd, &n->store, &err));
    check_ok(corral_weight_store_attach(n->fd, &n->reader, &err));
    check_ok(corral_weight_receiver_start(&n->receiver, n->store, "127.0.0.1", RUN, secret, n->endpoint,
                                          sizeof n->endpoint, &err));
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
    check_ok(corral_weight_publisher_create(&f.publisher, f.manifest, RUN, secret, DEADLINE_MS, &err));
    node_start(&f.a);
    node_start(&f.b);
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
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
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
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
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
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
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
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    check_status(corral_weight_publisher_add_tcp(f->publisher, "b2", f->b.endpoint, &err), CORRAL_EXISTS);
    check_status(corral_weight_publisher_add_tcp(f->publisher, "c", "nowhere", &err), CORRAL_INVALID);
    corral_weight_publisher_remove(f->publisher, "b");
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 1, NULL, &err));
}

static void fails_only_when_nobody_has_it(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_status(push(f, 1, NULL, &err), CORRAL_PEER);
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    corral_weight_receiver_stop(f->b.receiver);
    f->b.receiver = NULL;
    check_status(push(f, 1, NULL, &err), CORRAL_PEER);
    check_status(push(f, 1, NULL, &err), CORRAL_PEER); /* and it is tried each time when it is the only one */
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    check_ok(push(f, 1, NULL, &err)); /* a version nobody has may be pushed again */
}

static void a_receiver_that_was_restarted_gets_the_next_version(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 1, &stats, &err));
    assert_int_equal(stats.targets, 2);
    corral_weight_receiver_stop(f->b.receiver);
    f->b.receiver = NULL;
    check_ok(push(f, 2, &stats, &err));
    assert_int_equal(stats.targets, 1);
    assert_int_equal(stats.dropped, 1);
    check_node_has(f, &f->b, 1);
    corral_weight_publisher_remove(f->publisher, "b"); /* it comes back on another port */
    check_ok(corral_weight_receiver_start(&f->b.receiver, f->b.store, "127.0.0.1", RUN, secret, f->b.endpoint,
                                          sizeof f->b.endpoint, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    check_ok(push(f, 3, &stats, &err));
    assert_int_equal(stats.targets, 2);
    check_node_has(f, &f->b, 3);
}

/* ---- a receiver that logs the publisher in and then does as told ---- */

struct impostor {
    int listen_fd;
    bool damaged; /* answers STAGED with a wrong digest; otherwise reads nothing more */
    char endpoint[96];
    pthread_t thread;
    int stop[2];
    _Atomic int logins;
};

static void say(int fd, enum wire_type type, uint64_t version, const void *payload, size_t bytes)
{
    uint8_t frame[WIRE_FRAME_MAX];
    wire_put_header(frame, type, version, bytes);
    if (bytes > 0) {
        memcpy(frame + WIRE_HEADER_BYTES, payload, bytes);
    }
    send(fd, frame, WIRE_HEADER_BYTES + bytes, MSG_NOSIGNAL);
}

static void impostor_serve(struct impostor *im, int fd)
{
    static uint8_t data[BYTES];
    uint8_t hello[WIRE_HEADER_BYTES + 8 + WIRE_NONCE_BYTES], answer[64] = {0},
                                                             rest[WIRE_HEADER_BYTES * 2 + 32];
    if (recv(fd, hello, sizeof hello, MSG_WAITALL) != (ssize_t)sizeof hello) {
        return;
    }
    wire_mac(secret, WIRE_LABEL_RECEIVER, RUN, hello + WIRE_HEADER_BYTES + 8, answer,
             answer + WIRE_NONCE_BYTES);
    say(fd, WIRE_CHALLENGE, 0, answer, sizeof answer);
    recv(fd, rest, WIRE_HEADER_BYTES + WIRE_MAC_BYTES, MSG_WAITALL);
    say(fd, WIRE_WELCOME, 0, NULL, 0);
    im->logins++;
    if (im->damaged && recv(fd, rest, 2 * WIRE_HEADER_BYTES + 24, MSG_WAITALL) > 0 &&
        recv(fd, data, sizeof data, MSG_WAITALL) > 0) {
        say(fd, WIRE_STAGED, 1, answer, 16);
    }
    char byte;
    if (im->damaged) {
        recv(fd, &byte, 1, 0); /* the publisher hangs up */
    } else {
        (void)!read(im->stop[0], &byte, 1);
    }
}

static void *impostor_run(void *arg)
{
    struct impostor *im = arg;
    int fd = accept(im->listen_fd, NULL, NULL);
    if (fd >= 0) {
        impostor_serve(im, fd);
        close(fd);
    }
    return NULL;
}

static void impostor_start(struct impostor *im)
{
    struct sockaddr_storage address = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    socklen_t length = sizeof *v4;
    int small = 4096;
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    im->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(im->listen_fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    assert_int_equal(pipe(im->stop), 0);
    assert_int_equal(bind(im->listen_fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(im->listen_fd, 8), 0);
    assert_int_equal(getsockname(im->listen_fd, (struct sockaddr *)&address, &length), 0);
    wire_format_address(&address, im->endpoint, sizeof im->endpoint);
    assert_int_equal(pthread_create(&im->thread, NULL, impostor_run, im), 0);
}

static void impostor_stop(struct impostor *im)
{
    assert_int_equal(write(im->stop[1], "x", 1), 1);
    pthread_join(im->thread, NULL);
    close(im->listen_fd);
    close(im->stop[0]);
    close(im->stop[1]);
}

static void a_stalled_receiver_is_dropped_while_the_others_commit(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    struct impostor im = {.damaged = false};
    impostor_start(&im);
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "stalled", im.endpoint, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "b", f->b.endpoint, &err));
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    check_ok(push(f, 1, &stats, &err));
    uint64_t took = corral_now_ns(&corral_clock_monotonic) - before;
    assert_int_equal(stats.targets, 2);
    assert_int_equal(stats.dropped, 1);
    assert_true(took >= DEADLINE_MS * CORRAL_NS_PER_MS);
    /* The good ones did not wait for it: they were done well before the deadline that the push had to sit out. */
    assert_true(stats.wire_ns + stats.apply_ns < DEADLINE_MS * CORRAL_NS_PER_MS);
    check_node_has(f, &f->a, 1);
    check_node_has(f, &f->b, 1);
    /* Its kernel still takes connections, but nobody logs us in: pushes do not wait for that any more. */
    before = corral_now_ns(&corral_clock_monotonic);
    for (uint64_t v = 2; v <= 6; v++) {
        check_ok(push(f, v, &stats, &err));
        assert_int_equal(stats.targets, 2);
        check_node_has(f, &f->b, v);
    }
    assert_true(corral_now_ns(&corral_clock_monotonic) - before < 5 * DEADLINE_MS * CORRAL_NS_PER_MS);
    impostor_stop(&im);
}

static void weights_that_arrive_damaged_are_not_committed(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    struct impostor im = {.damaged = true};
    impostor_start(&im);
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "damaged", im.endpoint, &err));
    check_status(push(f, 1, &stats, &err), CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "digest"));
    impostor_stop(&im);
}

/* Frees a port the way a crashed receiver does and lets another take its place. */
static void a_dropped_endpoint_is_found_again_by_later_pushes(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    struct impostor im = {.damaged = true};
    impostor_start(&im);
    check_ok(corral_weight_publisher_add_shm(f->publisher, f->a.reader, &err));
    check_ok(corral_weight_publisher_add_tcp(f->publisher, "x", im.endpoint, &err));
    check_ok(push(f, 1, &stats, &err));
    assert_int_equal(stats.dropped, 1);
    pthread_join(im.thread, NULL);
    assert_int_equal(im.logins, 1);
    assert_int_equal(pthread_create(&im.thread, NULL, impostor_run, &im),
                     0); /* listens on, as a restarted one would */
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + 20 * CORRAL_NS_PER_S, version = 2;
    int fd_ready = 0;
    while (fd_ready == 0 && corral_now_ns(&corral_clock_monotonic) < until) {
        check_ok(push(f, version++, &stats, &err));
        fd_ready = im.logins == 2;
    }
    assert_int_equal(fd_ready, 1);
    corral_weight_publisher_remove(f->publisher, "x");
    impostor_stop(&im);
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
        cmocka_unit_test_setup_teardown(a_stalled_receiver_is_dropped_while_the_others_commit, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(weights_that_arrive_damaged_are_not_committed, setup, teardown),
        cmocka_unit_test_setup_teardown(a_dropped_endpoint_is_found_again_by_later_pushes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
