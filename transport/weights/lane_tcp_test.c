/* The publisher's end of the TCP lane against receivers that break the protocol: threads behind a listening socket. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/publisher.h"
#include "transport/weights/wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#define WORDS 4096
#define BYTES (WORDS * sizeof(uint64_t))
#define RUN 0x7f3a
#define LONG_NS (20 * CORRAL_NS_PER_S)

static const struct corral_digest manifest = {.lo = 1, .hi = 2};
static const uint8_t secret[32] = "the run's secret, 32 bytes long";

static uint64_t in_a_while(void)
{
    return corral_now_ns(&corral_clock_monotonic) + LONG_NS;
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

enum misbehaviour {
    WRONG_PROOF,
    SAYS_NOTHING,
    HANGS_UP,
    SENDS_GARBAGE,
    SENDS_A_STRANGE_ERROR,
    STAGES_ANOTHER_VERSION
};

struct impostor {
    int listen_fd;
    enum misbehaviour how;
    char endpoint[96];
    pthread_t thread;
};

static void *impostor_run(void *arg)
{
    struct impostor *im = arg;
    uint8_t hello[WIRE_HEADER_BYTES + 8 + WIRE_NONCE_BYTES], answer[64] = {0}, more[WIRE_FRAME_MAX];
    int fd = accept(im->listen_fd, NULL, NULL);
    if (fd < 0 || recv(fd, hello, sizeof hello, MSG_WAITALL) != (ssize_t)sizeof hello) {
        return NULL;
    }
    if (im->how != WRONG_PROOF) {
        wire_mac(secret, WIRE_LABEL_RECEIVER, RUN, hello + WIRE_HEADER_BYTES + 8, answer,
                 answer + WIRE_NONCE_BYTES);
    }
    raw_send(fd, WIRE_CHALLENGE, 0, sizeof answer, answer, sizeof answer);
    if (recv(fd, more, WIRE_HEADER_BYTES + WIRE_MAC_BYTES, MSG_WAITALL) > 0) {
        raw_send(fd, WIRE_WELCOME, 0, 0, NULL, 0);
        switch (im->how) {
        case SENDS_GARBAGE:
            memset(more, 0xee, sizeof more);
            send(fd, more, sizeof more, MSG_NOSIGNAL);
            break;
        case SENDS_A_STRANGE_ERROR:
            wire_put_u32(more, 12345);
            memcpy(more + 4, "\x1b[31m", 5);
            raw_send(fd, WIRE_ERROR, 1, 9, more, 9);
            break;
        case STAGES_ANOTHER_VERSION:
            raw_send(fd, WIRE_STAGED, 2, 16, answer, 16);
            break;
        default:
            break;
        }
        if (im->how == HANGS_UP) {
            struct linger reset = {.l_onoff = 1};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        } else if (im->how == SAYS_NOTHING) {
            char byte;
            while (recv(fd, &byte, 1, 0) > 0) {
            }
        } else {
            while (recv(fd, more, sizeof more, 0) > 0) {
            }
        }
    }
    close(fd);
    return NULL;
}

static void impostor_start(struct impostor *im, enum misbehaviour how)
{
    struct sockaddr_storage address = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    socklen_t length = sizeof *v4;
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    im->how = how;
    im->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(im->listen_fd, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(im->listen_fd, 1), 0);
    assert_int_equal(getsockname(im->listen_fd, (struct sockaddr *)&address, &length), 0);
    wire_format_address(&address, im->endpoint, sizeof im->endpoint);
    assert_int_equal(pthread_create(&im->thread, NULL, impostor_run, im), 0);
}

static void impostor_stop(struct impostor *im)
{
    pthread_join(im->thread, NULL);
    close(im->listen_fd);
}

static void a_lane_survives_every_kind_of_receiver(void **state)
{
    (void)state;
    static const struct {
        enum misbehaviour how;
        enum corral_status status;
        const char *text;
    } cases[] = {
        {WRONG_PROOF, CORRAL_PROTOCOL, "secret"},
        {SAYS_NOTHING, CORRAL_TIMEOUT, "in time"},
        {HANGS_UP, CORRAL_PEER, ""},
        {SENDS_GARBAGE, CORRAL_PROTOCOL, "magic"},
        {SENDS_A_STRANGE_ERROR, CORRAL_PROTOCOL, "refused: ?[31m"},
        {STAGES_ANOTHER_VERSION, CORRAL_PROTOCOL, "for version 2"},
    };
    static uint64_t words[WORDS];
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        struct impostor im;
        struct corral_error err = {0};
        struct corral_weight_lane *lane = NULL;
        struct corral_digest theirs;
        impostor_start(&im, cases[i].how);
        enum corral_status status =
            corral_weight_lane_tcp(im.endpoint, RUN, secret, in_a_while(), &lane, &err);
        uint64_t deadline = cases[i].how == SAYS_NOTHING
                                ? corral_now_ns(&corral_clock_monotonic) + 30 * CORRAL_NS_PER_MS
                                : in_a_while();
        if (status == CORRAL_OK) {
            check_ok(lane->ops->prepare(lane, 1, manifest, BYTES, deadline, &err));
            status = lane->ops->write(lane, words, BYTES, deadline, &err);
        }
        if (status == CORRAL_OK) {
            status = lane->ops->staged(lane, &theirs, deadline, &err);
        }
        if (lane != NULL) {
            lane->ops->close(lane);
        }
        impostor_stop(&im);
        assert_int_equal(status, cases[i].status);
        if (strstr(err.text, cases[i].text) == NULL) {
            fail_msg("unexpected error text: %s", err.text);
        }
    }
}

static void refuses_an_endpoint_without_a_port(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_weight_lane *lane = NULL;
    const char *const bad[] = {"", "host", ":1", "127.0.0.1:", "127.0.0.1:x"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        assert_int_not_equal(corral_weight_lane_tcp(bad[i], RUN, secret, in_a_while(), &lane, &err),
                             CORRAL_OK);
        assert_null(lane);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lane_survives_every_kind_of_receiver),
        cmocka_unit_test(refuses_an_endpoint_without_a_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
