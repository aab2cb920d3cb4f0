/* The receiver against publishers that break the protocol: raw frames over a real connection. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/log.h"
#include "transport/weights/publisher.h"
#include "transport/weights/test_weights.h"
#include "transport/weights/wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define WORDS 4096
#define BYTES (WORDS * sizeof(uint64_t))
#define RUN 0x7f3a
#define LONG_NS (20 * CORRAL_NS_PER_S)

static const uint8_t secret[32] = "the run's secret, 32 bytes long";
static const uint8_t other_secret[32] = "another secret, 32 bytes long..";

struct fixture {
    int fd;
    struct corral_weight_store *store, *reader; /* the receiver's and ours */
    struct corral_weight_receiver *receiver;
    char endpoint[96];
};

static uint64_t in_a_while(void)
{
    return corral_now_ns(&corral_clock_monotonic) + LONG_NS;
}

static int setup(void **state)
{
    static struct fixture f;
    struct corral_error err = {0};
    check_ok(corral_weight_store_create(BYTES, &f.fd, &err));
    check_ok(corral_weight_store_attach(f.fd, &f.store, &err));
    check_ok(corral_weight_store_attach(f.fd, &f.reader, &err));
    check_ok(corral_weight_receiver_start(&f.receiver, f.store, "127.0.0.1", RUN, secret, f.endpoint,
                                          sizeof f.endpoint, &err));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    corral_weight_receiver_stop(f->receiver);
    corral_weight_store_detach(f->store);
    corral_weight_store_detach(f->reader);
    close(f->fd);
    return 0;
}

static void check_store_has(struct fixture *f, uint64_t version)
{
    static uint64_t words[WORDS];
    struct corral_error err = {0};
    struct corral_digest digest;
    uint64_t got = 0;
    check_ok(corral_weight_store_read(f->reader, test_manifest, words, BYTES, &got, &digest, &err));
    assert_int_equal(got, version);
    assert_true(test_is_version(words, WORDS, version));
}

static struct corral_weight_lane *lane_open(struct fixture *f)
{
    struct corral_error err = {0};
    struct corral_weight_lane *lane = NULL;
    check_ok(corral_weight_lane_tcp(f->endpoint, RUN, secret, in_a_while(), &lane, &err));
    return lane;
}

/* `content`: the version whose bytes are sent. */
static enum corral_status lane_push_as(struct corral_weight_lane *lane, uint64_t version, uint64_t content,
                                       struct corral_error *err)
{
    static uint64_t words[WORDS];
    struct corral_digest theirs;
    uint64_t deadline = in_a_while();
    test_fill(words, WORDS, content);
    CORRAL_TRY(lane->ops->prepare(lane, version, test_manifest, BYTES, deadline, err));
    CORRAL_TRY(lane->ops->write(lane, words, BYTES / 2, deadline, err));
    CORRAL_TRY(lane->ops->write(lane, words + WORDS / 2, BYTES / 2, deadline, err));
    CORRAL_TRY(lane->ops->staged(lane, &theirs, deadline, err));
    assert_true(corral_digest_equal(theirs, corral_digest_of(words, BYTES)));
    return lane->ops->commit(lane, deadline, err);
}

static enum corral_status lane_push(struct corral_weight_lane *lane, uint64_t version,
                                    struct corral_error *err)
{
    return lane_push_as(lane, version, version, err);
}

static void a_version_crosses_the_wire(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = lane_open(f);
    for (uint64_t v = 1; v <= 50; v++) {
        check_ok(lane_push(lane, v, &err));
        check_store_has(f, v);
    }
    lane->ops->close(lane);
}

static void a_refused_version_leaves_the_lane_usable(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = lane_open(f);
    check_ok(lane_push(lane, 9, &err));
    check_status(lane_push(lane, 8, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "versions only grow"));
    check_status(lane_push(lane, 4, &err), CORRAL_INVALID);
    check_store_has(f, 9);
    check_ok(lane_push(lane, 9, &err)); /* the same again is no offence */
    check_status(lane_push_as(lane, 9, 90, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "other bytes"));
    check_store_has(f, 9);
    check_ok(lane_push(lane, 10, &err));
    check_store_has(f, 10);
    lane->ops->close(lane);
}

static enum corral_status early_push(struct corral_weight_lane *lane, uint64_t version,
                                     struct corral_digest digest, struct corral_error *err)
{
    static uint64_t words[WORDS];
    struct corral_digest theirs;
    uint64_t deadline = in_a_while();
    test_fill(words, WORDS, version);
    lane->digest_known = true;
    lane->digest = digest;
    CORRAL_TRY(lane->ops->prepare(lane, version, test_manifest, BYTES, deadline, err));
    CORRAL_TRY(lane->ops->write(lane, words, BYTES, deadline, err));
    CORRAL_TRY(lane->ops->staged(lane, &theirs, deadline, err));
    return lane->ops->commit(lane, deadline, err);
}

static struct corral_digest digest_of_version(uint64_t version)
{
    static uint64_t words[WORDS];
    test_fill(words, WORDS, version);
    return corral_digest_of(words, BYTES);
}

static void an_early_commit_is_checked_against_what_arrived(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = lane_open(f);
    for (uint64_t v = 1; v <= 20; v++) {
        check_ok(early_push(lane, v, digest_of_version(v), &err));
        check_store_has(f, v);
    }
    check_ok(early_push(lane, 20, digest_of_version(20), &err));
    check_status(early_push(lane, 19, digest_of_version(19), &err), CORRAL_INVALID);
    check_ok(
        early_push(lane, 21, digest_of_version(21), &err)); /* the refused version's COMMIT was skipped */
    check_status(early_push(lane, 22, digest_of_version(23), &err), CORRAL_PROTOCOL);
    check_store_has(f, 21);
    lane->ops->close(lane);
}

static void refuses_a_publisher_with_the_wrong_secret_or_run(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = NULL;
    check_status(corral_weight_lane_tcp(f->endpoint, RUN, other_secret, in_a_while(), &lane, &err),
                 CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "secret"));
    check_status(corral_weight_lane_tcp(f->endpoint, RUN + 1, secret, in_a_while(), &lane, &err),
                 CORRAL_PROTOCOL);
    assert_non_null(strstr(err.text, "another run"));
    assert_null(lane);
}

/* ---- raw publishers ---- */

static int raw_connect(const char *endpoint)
{
    struct sockaddr_storage address;
    socklen_t length = 0;
    struct corral_error err = {0};
    struct timeval limit = {.tv_sec = 20};
    check_ok(wire_resolve(endpoint, &address, &length, &err));
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, length), 0);
    wire_tune_socket(fd);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
}

static void raw_send(int fd, enum wire_type type, uint64_t version, uint64_t claimed, const void *payload,
                     size_t bytes)
{
    uint8_t header[WIRE_HEADER_BYTES];
    wire_put_header(header, type, version, claimed);
    assert_int_equal(send(fd, header, sizeof header, MSG_NOSIGNAL), sizeof header);
    if (bytes > 0) {
        assert_int_equal(send(fd, payload, bytes, MSG_NOSIGNAL), bytes);
    }
}

/* False on end of file. */
static bool raw_receive(int fd, struct wire_frame *frame, uint8_t *payload)
{
    uint8_t header[WIRE_HEADER_BYTES];
    struct corral_error err = {0};
    ssize_t n = recv(fd, header, sizeof header, MSG_WAITALL);
    if (n <= 0) {
        return false;
    }
    check_ok(wire_read_header(header, frame, &err));
    assert_true(frame->bytes == 0 || recv(fd, payload, frame->bytes, MSG_WAITALL) == (ssize_t)frame->bytes);
    return true;
}

/* The receiver must hang up; what it says before is skipped. */
static void expect_end(int fd)
{
    uint8_t bytes[256];
    ssize_t n;
    while ((n = recv(fd, bytes, sizeof bytes, 0)) > 0) {
    }
    assert_true(n == 0 || errno == ECONNRESET);
    close(fd);
}

static int raw_login(const char *endpoint, const uint8_t key[32], bool *welcome)
{
    uint8_t hello[8 + WIRE_NONCE_BYTES] = {0}, payload[WIRE_PAYLOAD_MAX], mac[WIRE_MAC_BYTES];
    struct wire_frame frame;
    int fd = raw_connect(endpoint);
    wire_put_u64(hello, RUN);
    raw_send(fd, WIRE_HELLO, 0, sizeof hello, hello, sizeof hello);
    assert_true(raw_receive(fd, &frame, payload));
    assert_int_equal(frame.type, WIRE_CHALLENGE);
    wire_mac(key, WIRE_LABEL_PUBLISHER, RUN, hello + 8, payload, mac);
    raw_send(fd, WIRE_PROOF, 0, sizeof mac, mac, sizeof mac);
    *welcome = raw_receive(fd, &frame, payload) && frame.type == WIRE_WELCOME;
    return fd;
}

static int raw_publisher(struct fixture *f)
{
    bool welcome = false;
    int fd = raw_login(f->endpoint, secret, &welcome);
    assert_true(welcome);
    return fd;
}

static void raw_prepare(int fd, uint64_t version)
{
    uint8_t payload[24];
    wire_put_digest(payload, test_manifest);
    wire_put_u64(payload + 16, BYTES);
    raw_send(fd, WIRE_PREPARE, version, sizeof payload, payload, sizeof payload);
}

static void the_store_still_takes(struct fixture *f, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_weight_lane *lane = lane_open(f);
    check_ok(lane_push(lane, version, &err));
    check_store_has(f, version);
    lane->ops->close(lane);
}

static void a_proof_with_the_wrong_secret_is_not_welcome(void **state)
{
    struct fixture *f = *state;
    bool welcome = true;
    int fd = raw_login(f->endpoint, other_secret, &welcome);
    assert_false(welcome);
    expect_end(fd);
    the_store_still_takes(f, 1);
}

static void a_receivers_proof_cannot_be_sent_back_as_ours(void **state)
{
    struct fixture *f = *state;
    uint8_t hello[8 + WIRE_NONCE_BYTES] = {0}, payload[WIRE_PAYLOAD_MAX];
    struct wire_frame frame;
    int fd = raw_connect(f->endpoint);
    wire_put_u64(hello, RUN);
    raw_send(fd, WIRE_HELLO, 0, sizeof hello, hello, sizeof hello);
    assert_true(raw_receive(fd, &frame, payload));
    raw_send(fd, WIRE_PROOF, 0, WIRE_MAC_BYTES, payload + WIRE_NONCE_BYTES, WIRE_MAC_BYTES);
    expect_end(fd);
}

static void nothing_is_taken_before_the_login(void **state)
{
    struct fixture *f = *state;
    int fd = raw_connect(f->endpoint);
    raw_prepare(fd, 5);
    expect_end(fd);
    assert_int_equal(corral_weight_store_version(f->reader), 0);
    the_store_still_takes(f, 1);
}

static void garbage_ends_the_connection_and_nothing_else(void **state)
{
    struct fixture *f = *state;
    static uint8_t noise[4096];
    for (int round = 0; round < 20; round++) {
        int fd = round % 2 == 0 ? raw_connect(f->endpoint) : raw_publisher(f);
        corral_random_bytes(noise, sizeof noise);
        assert_true(send(fd, noise, sizeof noise, MSG_NOSIGNAL) > 0);
        expect_end(fd);
    }
    the_store_still_takes(f, 1);
}

static void a_stream_cut_anywhere_discards_the_version(void **state)
{
    struct fixture *f = *state;
    static uint64_t words[WORDS];
    const size_t cuts[] = {0, 1, 100, BYTES / 2, BYTES - 1, BYTES};
    the_store_still_takes(f, 1);
    for (size_t i = 0; i < CORRAL_COUNT_OF(cuts); i++) {
        int fd = raw_publisher(f);
        raw_prepare(fd, 100);
        raw_send(fd, WIRE_DATA, 100, BYTES, words, cuts[i]);
        shutdown(fd, SHUT_WR);
        expect_end(fd);
        check_store_has(f, 1);
    }
    the_store_still_takes(f, 2); /* 100 was never there */
}

static void refuses_a_commit_of_something_else(void **state)
{
    struct fixture *f = *state;
    static uint64_t words[WORDS];
    uint8_t payload[WIRE_PAYLOAD_MAX];
    struct wire_frame frame;
    for (int wrong_version = 0; wrong_version < 2; wrong_version++) {
        int fd = raw_publisher(f);
        raw_prepare(fd, 3);
        raw_send(fd, WIRE_DATA, 3, BYTES, words, BYTES);
        assert_true(raw_receive(fd, &frame, payload));
        assert_int_equal(frame.type, WIRE_STAGED);
        payload[0] ^= wrong_version == 0;
        raw_send(fd, WIRE_COMMIT, 3 + (uint64_t)wrong_version, 16, payload, 16);
        expect_end(fd);
        assert_int_equal(corral_weight_store_version(f->reader), 0);
    }
    the_store_still_takes(f, 1);
}

static void refuses_frames_out_of_order(void **state)
{
    struct fixture *f = *state;
    uint8_t payload[16] = {0};
    int fd = raw_publisher(f);
    raw_send(fd, WIRE_COMMIT, 1, 16, payload, 16);
    expect_end(fd);
    fd = raw_publisher(f);
    raw_prepare(fd, 1);
    raw_prepare(fd, 2);
    expect_end(fd);
    fd = raw_publisher(f);
    raw_prepare(fd, 1);
    raw_send(fd, WIRE_DATA, 1, BYTES + 1, NULL, 0);
    expect_end(fd);
    the_store_still_takes(f, 1);
}

static void the_newest_login_wins(void **state)
{
    struct fixture *f = *state;
    static uint64_t words[WORDS];
    int old = raw_publisher(f);
    raw_prepare(old, 50);
    raw_send(old, WIRE_DATA, 50, BYTES, words, BYTES / 2); /* and then it hangs, holding the store */
    the_store_still_takes(f, 3);
    expect_end(old);
}

static void more_strangers_than_places_do_not_keep_a_publisher_out(void **state)
{
    struct fixture *f = *state;
    int fd[20];
    for (int i = 0; i < 20; i++) {
        fd[i] = raw_connect(f->endpoint);
    }
    the_store_still_takes(f, 1);
    for (int i = 0; i < 20; i++) {
        close(fd[i]);
    }
}

static void stopping_the_receiver_frees_the_store(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = lane_open(f);
    void *slot = NULL;
    check_ok(lane->ops->prepare(lane, 7, test_manifest, BYTES, in_a_while(), &err));
    check_ok(lane->ops->write(lane, secret, sizeof secret, in_a_while(), &err));
    corral_weight_receiver_stop(f->receiver);
    f->receiver = NULL;
    check_ok(corral_weight_store_begin(f->reader, 1, test_manifest, BYTES, &slot, &err));
    corral_weight_store_abort(f->reader);
    lane->ops->close(lane);
}

int main(void)
{
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL); /* the drops are what is tested */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_version_crosses_the_wire, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refused_version_leaves_the_lane_usable, setup, teardown),
        cmocka_unit_test_setup_teardown(an_early_commit_is_checked_against_what_arrived, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_publisher_with_the_wrong_secret_or_run, setup, teardown),
        cmocka_unit_test_setup_teardown(a_proof_with_the_wrong_secret_is_not_welcome, setup, teardown),
        cmocka_unit_test_setup_teardown(a_receivers_proof_cannot_be_sent_back_as_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_taken_before_the_login, setup, teardown),
        cmocka_unit_test_setup_teardown(garbage_ends_the_connection_and_nothing_else, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stream_cut_anywhere_discards_the_version, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_commit_of_something_else, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_frames_out_of_order, setup, teardown),
        cmocka_unit_test_setup_teardown(the_newest_login_wins, setup, teardown),
        cmocka_unit_test_setup_teardown(more_strangers_than_places_do_not_keep_a_publisher_out, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(stopping_the_receiver_frees_the_store, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
