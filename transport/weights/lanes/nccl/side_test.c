/* The small connection beside a lane, without any device. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/weights/lanes/nccl/side.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define STRANGERS 12
#define WAIT_NS (5 * CORRAL_NS_PER_S)

/* Somebody who has found the address and knows no token. */
static int stranger(const char *text)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bool local = text[0] == '@';
    int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (local) {
        memcpy(un.sun_path + 1, text + 1, strlen(text) - 1);
        assert_int_equal(connect(fd, (struct sockaddr *)&un,
                                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(text))),
                         0);
    } else {
        in.sin_port = htons((uint16_t)atoi(strrchr(text, ':') + 1));
        assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof in), 0);
    }
    return fd;
}

static void strangers_do_not_keep_the_sender_out(void **state)
{
    (void)state;
    struct corral_error err;
    static const char *const hosts[] = {NULL, "127.0.0.1"};
    for (size_t h = 0; h < CORRAL_COUNT_OF(hosts); h++) {
        struct corral_side rx, tx;
        uint8_t offer[CORRAL_SIDE_OFFER_BYTES];
        int fd[STRANGERS];
        corral_side_init(&rx);
        corral_side_init(&tx);
        check_ok(corral_side_listen(&rx, hosts[h], offer, &err));
        for (int i = 0; i < STRANGERS; i++) { /* silent, talkative, halfway */
            fd[i] = stranger((const char *)offer);
            uint8_t noise[CORRAL_LANE_TOKEN_BYTES + 8] = {1, 2, 3};
            assert_true(i % 3 == 0 || send(fd[i], noise, i % 3 == 1 ? sizeof noise : 5, MSG_NOSIGNAL) > 0);
        }
        check_ok(corral_side_connect(&tx, offer, WAIT_NS, &err));
        check_ok(corral_side_accept(&rx, WAIT_NS, &err));
        struct corral_side_message m = {.type = 7, .bucket = 8, .push = 9, .a = 10, .b = 11}, got = {0};
        check_ok(corral_side_send(&tx, &m, &err));
        assert_true(corral_lane_poll(rx.fd, POLLIN, corral_lane_deadline(WAIT_NS)));
        check_ok(corral_side_receive(&rx, &got, &err));
        assert_memory_equal(&got, &m, sizeof m);
        assert_int_equal(rx.peer_pid, hosts[h] == NULL ? getpid() : 0);
        for (int i = 0; i < STRANGERS; i++) {
            close(fd[i]);
        }
        corral_side_close(&tx);
        corral_side_close(&rx);
    }
}

static void gives_up_when_only_strangers_come(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_side rx;
    uint8_t offer[CORRAL_SIDE_OFFER_BYTES];
    int fd[STRANGERS];
    corral_side_init(&rx);
    check_ok(corral_side_listen(&rx, NULL, offer, &err));
    for (int i = 0; i < STRANGERS; i++) {
        fd[i] = stranger((const char *)offer);
    }
    assert_int_equal(corral_side_accept(&rx, 300 * CORRAL_NS_PER_MS, &err), CORRAL_TIMEOUT);
    assert_int_equal(rx.fd, -1);
    for (int i = 0; i < STRANGERS; i++) {
        char byte;
        assert_int_equal(recv(fd[i], &byte, 1, MSG_DONTWAIT), 0); /* hung up on: nothing of them is kept */
        close(fd[i]);
    }
    corral_side_close(&rx);
}

int main(void)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(strangers_do_not_keep_the_sender_out),
        cmocka_unit_test(gives_up_when_only_strangers_come),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}
