/* A receiver that says APPLIED to whatever it is offered, over a lane that moves nothing. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/frame.h"
#include "transport/weights/push/test_group.h"
#include <arpa/inet.h>
#include <poll.h>

static struct corral_lane_ops idle;
static const struct corral_lane_ops *const idle_lanes[] = {&idle, NULL};

static enum corral_status idle_open(struct corral_lane **out, const struct corral_link *link,
                                    const struct corral_lane_options *options,
                                    const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                    struct corral_error *err)
{
    (void)options;
    (void)offer;
    struct corral_lane *lane = calloc(1, sizeof *lane);
    assert_non_null(lane);
    *lane = (struct corral_lane){.ops = &idle, .link = link, .fd = -1};
    answer->bytes = 0;
    *out = lane;
    (void)err;
    return CORRAL_OK;
}

static void idle_close(struct corral_lane *lane)
{
    free(lane);
}

static void answer_hello(struct push_io *io, const uint8_t *hello, uint64_t generation)
{
    struct corral_error err = {0};
    uint8_t payload[WIRE_NONCE_BYTES + WIRE_MAC_BYTES] = {0};
    struct corral_push_identity id = test_identity(generation);
    push_mac(id.secret, PUSH_LABEL_RECEIVER, hello, payload, payload + WIRE_NONCE_BYTES);
    struct push_frame f = {.type = PUSH_CHALLENGE, .bytes = sizeof payload, .generation = generation};
    check_ok(push_io_queue(io, &f, payload, &err));
}

static void answer_lightly(struct push_io *io, const struct push_frame *got, const uint8_t *payload)
{
    static const enum push_type answer[PUSH_TYPES] = {[PUSH_PROOF] = PUSH_WELCOME,
                                                      [PUSH_LANE] = PUSH_OFFER,
                                                      [PUSH_ANSWER] = PUSH_READY,
                                                      [PUSH_PREPARE] = PUSH_APPLIED};
    struct corral_error err = {0};
    uint8_t zeros[64] = {0};
    struct push_frame f = {.type = answer[got->type], .generation = got->generation, .version = got->version};
    if (got->type == PUSH_HELLO) {
        answer_hello(io, payload, got->generation);
    } else if (f.type != 0) {
        f.bytes = f.type == PUSH_WELCOME ? 24 : f.type == PUSH_APPLIED ? 24 : 0;
        memcpy(zeros + 20, "idle", f.type == PUSH_WELCOME ? 4 : 0);
        check_ok(push_io_queue(io, &f, zeros, &err));
    }
}

static void *apply_everything(void *arg)
{
    struct corral_error err = {0};
    int listener = *(int *)arg;
    struct push_io *io = calloc(1, sizeof *io);
    assert_non_null(io);
    io->fd = accept(listener, NULL, NULL);
    assert_true(io->fd >= 0);
    for (;;) {
        struct push_frame f;
        const uint8_t *payload;
        struct pollfd p = {.fd = io->fd, .events = POLLIN};
        poll(&p, 1, -1);
        if (push_io_receive(io, &err) != CORRAL_OK) {
            break;
        }
        while (push_io_next(io, &f, &payload, &err) == CORRAL_OK) {
            answer_lightly(io, &f, payload);
        }
        check_ok(push_io_flush(io, &err));
    }
    close(io->fd);
    free(io);
    return NULL;
}

static int listener_at(char *endpoint, size_t room)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(fd, 8) == 0 &&
                getsockname(fd, (struct sockaddr *)&a, &length) == 0);
    snprintf(endpoint, room, "127.0.0.1:%u", ntohs(a.sin_port));
    return fd;
}

static void a_receiver_that_says_applied_to_what_it_was_not_sent_does_not_count(void **state)
{
    (void)state;
    pthread_t thread;
    char endpoint[64];
    struct corral_error err = {0};
    struct test_group g = {.lanes = "idle", .more = idle_lanes};
    int fd = listener_at(endpoint, sizeof endpoint);
    idle = corral_lane_tcp_ops;
    idle.name = "idle";
    idle.tx_open = idle_open;
    idle.tx_close = idle_close;
    test_group_make(&g, 17, 1, 0, 1, 30000, "");
    check_ok(corral_push_sender_add(g.tx[0].sender, "liar", endpoint, 0, "", &err));
    assert_int_equal(pthread_create(&thread, NULL, apply_everything, &fd), 0);
    test_push(&g, 1);
    check_status(g.tx[0].status, CORRAL_PEER);
    assert_non_null(strstr(g.tx[0].err.text, "which nobody sent it"));
    pthread_join(thread, NULL);
    close(fd);
    test_group_drop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_receiver_that_says_applied_to_what_it_was_not_sent_does_not_count),
    };
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, "push_liar_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
