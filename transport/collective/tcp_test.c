/* What only the tcp implementation promises: strangers stay out and hold nobody up, and endpoints are checked. */
#include "transport/collective/collective.h"

#include "tests/check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LONG_MS 60000

static const uint8_t secret[32] = {1, 2, 3}, wrong_secret[32] = {1, 2, 4};
static struct corral_error err;

struct party {
    struct corral_collective_listener *listener;
    char endpoint[128];
    uint32_t rank, ranks, generation, timeout_ms;
    const uint8_t *secret;
    struct corral_collective *group;
    enum corral_status status;
    struct corral_error err;
    pthread_t thread;
};

static void *create_party(void *arg)
{
    struct party *p = arg;
    p->status = corral_collective_tcp_create(p->listener, p->endpoint, p->rank, p->ranks, p->generation,
                                             p->secret, p->timeout_ms, &p->group, &p->err);
    return NULL;
}

static void start(struct party *p)
{
    assert_int_equal(pthread_create(&p->thread, NULL, create_party, p), 0);
}

static void finish(struct party *p)
{
    pthread_join(p->thread, NULL);
}

static struct party host(uint32_t ranks, uint32_t timeout_ms)
{
    struct party p = {.ranks = ranks, .generation = 3, .timeout_ms = timeout_ms, .secret = secret};
    check_ok(corral_collective_tcp_listen("127.0.0.1", &p.listener, p.endpoint, sizeof p.endpoint, &err));
    return p;
}

static struct party guest(const struct party *host_party, uint32_t rank)
{
    struct party p = *host_party;
    p.listener = NULL;
    p.rank = rank;
    return p;
}

/* Rank 1 joins properly and the group works. */
static void join_and_use(struct party *zero)
{
    struct party one = guest(zero, 1);
    create_party(&one);
    finish(zero);
    if (one.status != CORRAL_OK || zero->status != CORRAL_OK) {
        fail_msg("%s / %s", one.err.text, zero->err.text);
    }
    corral_collective_destroy(one.group);
    float x = 1;
    assert_int_equal(zero->group->ops->sum_f32(zero->group, &x, 1, &err), CORRAL_PEER);
    corral_collective_destroy(zero->group);
}

static int raw_connection(const struct party *zero)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)atoi(strrchr(zero->endpoint, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Until the other side closes. */
static size_t drain(int fd)
{
    char buffer[256];
    size_t total = 0;
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n <= 0) {
            return total;
        }
        total += (size_t)n;
    }
}

static void a_rank_with_the_wrong_secret_stays_out(void **state)
{
    (void)state;
    struct party zero = host(2, LONG_MS), stranger = guest(&zero, 1);
    stranger.secret = wrong_secret;
    start(&zero);
    create_party(&stranger);
    assert_int_equal(stranger.status, CORRAL_PEER);
    assert_non_null(strstr(stranger.err.text, "secret"));
    assert_null(stranger.group);
    join_and_use(&zero);
}

static void garbage_gets_no_answer_and_holds_nobody_up(void **state)
{
    (void)state;
    struct party zero = host(2, LONG_MS);
    start(&zero);
    for (int i = 0; i < 20; i++) {
        int fd = raw_connection(&zero);
        char junk[88];
        memset(junk, 'A' + i, sizeof junk);
        assert_int_equal(send(fd, junk, sizeof junk, MSG_NOSIGNAL), sizeof junk);
        assert_int_equal(drain(fd), 40); /* the challenge, and no more */
        close(fd);
    }
    join_and_use(&zero);
}

static void a_silent_connection_holds_nobody_up(void **state)
{
    (void)state;
    struct party zero = host(2, LONG_MS);
    start(&zero);
    int silent[10];
    for (int i = 0; i < 10; i++) {
        silent[i] = raw_connection(&zero);
    }
    assert_int_equal(send(silent[3], "half a join", 11, MSG_NOSIGNAL), 11);
    join_and_use(&zero);
    for (int i = 0; i < 10; i++) {
        close(silent[i]);
    }
}

static void a_stale_generation_or_a_second_rank_is_refused(void **state)
{
    (void)state;
    struct party zero = host(3, LONG_MS), stale = guest(&zero, 1), one = guest(&zero, 1),
                 twin = guest(&zero, 1);
    struct party odd = guest(&zero, 2), two = guest(&zero, 2);
    start(&zero);
    stale.generation = 2;
    create_party(&stale);
    assert_int_equal(stale.status, CORRAL_STATE);
    odd.ranks = 4;
    create_party(&odd);
    assert_int_equal(odd.status, CORRAL_INVALID);
    create_party(&one);
    assert_int_equal(one.status, CORRAL_OK);
    create_party(&twin);
    assert_int_equal(twin.status, CORRAL_EXISTS);
    create_party(&two);
    assert_int_equal(two.status, CORRAL_OK);
    finish(&zero);
    assert_int_equal(zero.status, CORRAL_OK);
    corral_collective_destroy(zero.group);
    corral_collective_destroy(one.group);
    corral_collective_destroy(two.group);
}

static void missing_ranks_are_listed_when_the_deadline_passes(void **state)
{
    (void)state;
    struct party zero = host(4, 300), two = guest(&zero, 2);
    start(&zero);
    create_party(&two);
    assert_int_equal(two.status, CORRAL_OK);
    finish(&zero);
    assert_int_equal(zero.status, CORRAL_TIMEOUT);
    assert_non_null(strstr(zero.err.text, "rank 1, 3"));
    assert_null(zero.group);
    assert_int_equal(two.group->ops->barrier(two.group, &err), CORRAL_PEER);
    corral_collective_destroy(two.group);
}

static void a_server_that_cannot_prove_itself_is_refused(void **state)
{
    (void)state;
    struct party zero = host(2, LONG_MS), one = guest(&zero, 1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    snprintf(one.endpoint, sizeof one.endpoint, "tcp://127.0.0.1:%u", ntohs(address.sin_port));
    start(&one);
    int fd = accept(listener, NULL, NULL);
    uint32_t hello[10] = {UINT32_C(0x54435143), 1}, welcome[10] = {UINT32_C(0x54435143), 0};
    assert_int_equal(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    char join[88];
    assert_int_equal(recv(fd, join, sizeof join, MSG_WAITALL), sizeof join);
    assert_int_equal(send(fd, welcome, sizeof welcome, MSG_NOSIGNAL), sizeof welcome);
    finish(&one);
    assert_int_equal(one.status, CORRAL_PROTOCOL);
    assert_null(one.group);
    close(fd);
    close(listener);
    corral_collective_listener_destroy(zero.listener);
}

static void bad_endpoints_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "127.0.0.1:5",
                                      "tcp://",
                                      "tcp://:5",
                                      "tcp://host",
                                      "tcp://host:",
                                      "tcp://127.0.0.1:99999999999999999999"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_collective *c = NULL;
        assert_int_equal(corral_collective_tcp_create(NULL, bad[i], 1, 2, 1, secret, 100, &c, &err),
                         CORRAL_INVALID);
        assert_null(c);
    }
    struct corral_collective *c = NULL;
    assert_int_equal(corral_collective_tcp_create(NULL, "tcp://127.0.0.1:1", 1, 2, 1, secret, 100, &c, &err),
                     CORRAL_IO);
    assert_int_equal(corral_collective_tcp_create(NULL, "x", 0, 2, 1, secret, 100, &c, &err), CORRAL_INVALID);
    assert_int_equal(corral_collective_tcp_create(NULL, "x", 2, 2, 1, secret, 100, &c, &err), CORRAL_INVALID);
    struct corral_collective_listener *l = NULL;
    char small[8], endpoint[64];
    assert_int_equal(corral_collective_tcp_listen("127.0.0.1", &l, small, sizeof small, &err),
                     CORRAL_INVALID);
    assert_int_equal(corral_collective_tcp_listen("not an address", &l, endpoint, sizeof endpoint, &err),
                     CORRAL_INVALID);
    assert_null(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_with_the_wrong_secret_stays_out),
        cmocka_unit_test(garbage_gets_no_answer_and_holds_nobody_up),
        cmocka_unit_test(a_silent_connection_holds_nobody_up),
        cmocka_unit_test(a_stale_generation_or_a_second_rank_is_refused),
        cmocka_unit_test(missing_ranks_are_listed_when_the_deadline_passes),
        cmocka_unit_test(a_server_that_cannot_prove_itself_is_refused),
        cmocka_unit_test(bad_endpoints_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
