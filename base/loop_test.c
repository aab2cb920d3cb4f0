#include "tests/check.h"

#include "base/clock.h"
#include "base/loop.h"

#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

/* A watchdog: the loop stops and the test fails instead of hanging. */
#define DEADLINE_MS 10000

struct fixture {
    struct corral_loop *loop;
    struct corral_loop_watch *watch, *other, *deadline;
    void *sender;
    uint32_t calls, expected;
    bool late;
    char order[64];
};

static void on_deadline(void *ctx)
{
    struct fixture *f = ctx;
    f->late = true;
    corral_loop_stop(f->loop);
}

static int setup(void **state)
{
    static struct fixture f;
    struct corral_error err = {0};
    memset(&f, 0, sizeof f);
    check_ok(corral_loop_create(&f.loop, &err));
    check_ok(corral_loop_timer(f.loop, DEADLINE_MS, 0, on_deadline, &f, &f.deadline, &err));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    corral_loop_destroy(f->loop);
    assert_false(f->late);
    return 0;
}

static void run(struct fixture *f)
{
    struct corral_error err = {0};
    check_ok(corral_loop_run(f->loop, &err));
    assert_false(f->late);
}

static void count_and_stop(struct fixture *f)
{
    if (++f->calls >= f->expected) {
        corral_loop_stop(f->loop);
    }
}

static void on_timer(void *ctx)
{
    count_and_stop(ctx);
}

static void a_periodic_timer_repeats(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    f->expected = 3;
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    check_ok(corral_loop_timer(f->loop, 1, 5, on_timer, f, &f->watch, &err));
    run(f);
    assert_int_equal(f->calls, 3);
    assert_true(corral_now_ns(&corral_clock_monotonic) - before >= 10 * CORRAL_NS_PER_MS);
}

static void on_timer_remove_self(void *ctx)
{
    struct fixture *f = ctx;
    corral_loop_remove(f->watch);
    corral_loop_remove(f->watch); /* a second removal inside the callback is harmless */
    count_and_stop(f);
}

static void a_watch_may_remove_itself(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    f->expected = 1;
    check_ok(corral_loop_timer(f->loop, 0, 1, on_timer_remove_self, f, &f->watch, &err));
    run(f);
    for (int i = 0; i < 3; i++) {
        check_ok(corral_loop_once(f->loop, 2, &err));
    }
    assert_int_equal(f->calls, 1);
}

static void once_returns_at_its_timeout(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    check_ok(corral_loop_once(f->loop, 5, &err));
    assert_true(corral_now_ns(&corral_clock_monotonic) - before >= 4 * CORRAL_NS_PER_MS);
    check_ok(corral_loop_once(f->loop, 0, &err));
}

static void stop_before_run_returns_at_once(void **state)
{
    struct fixture *f = *state;
    corral_loop_stop(f->loop);
    run(f);
}

static void on_fd(void *ctx, int fd, bool readable, bool writable)
{
    struct fixture *f = ctx;
    uint64_t value = 0;
    assert_true(readable);
    assert_false(writable);
    assert_int_equal(read(fd, &value, sizeof value), sizeof value);
    count_and_stop(f);
}

static void a_descriptor_is_watched_until_removed(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t one = 1;
    f->expected = 1;
    check_ok(corral_loop_watch_fd(f->loop, fd, true, false, on_fd, f, &f->watch, &err));
    assert_int_equal(write(fd, &one, sizeof one), sizeof one);
    run(f);
    corral_loop_remove(f->watch);
    assert_int_equal(write(fd, &one, sizeof one), sizeof one);
    check_ok(corral_loop_once(f->loop, 0, &err));
    assert_int_equal(f->calls, 1);
    close(fd);
}

static void refuses_a_closed_descriptor(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_loop_watch *w = NULL;
    check_status(corral_loop_watch_fd(f->loop, 987654, true, false, on_fd, f, &w, &err), CORRAL_IO);
    assert_null(w);
}

static void on_signal(void *ctx, int signo)
{
    assert_int_equal(signo, SIGUSR1);
    count_and_stop(ctx);
}

static void a_signal_arrives_in_the_loop(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    f->expected = 1;
    check_ok(corral_loop_signal(f->loop, SIGUSR1, on_signal, f, &f->watch, &err));
    assert_int_equal(raise(SIGUSR1), 0);
    run(f);
}

/* ---- ZeroMQ ---- */

struct sockets {
    void *context, *a, *b;
};

static struct sockets pair(void)
{
    struct sockets s = {.context = zmq_ctx_new()};
    int linger = 0, hwm = 0;
    s.a = zmq_socket(s.context, ZMQ_PAIR);
    s.b = zmq_socket(s.context, ZMQ_PAIR);
    zmq_setsockopt(s.a, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s.b, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s.a, ZMQ_SNDHWM, &hwm, sizeof hwm);
    zmq_setsockopt(s.b, ZMQ_RCVHWM, &hwm, sizeof hwm);
    assert_int_equal(zmq_bind(s.a, "inproc://loop-test"), 0);
    assert_int_equal(zmq_connect(s.b, "inproc://loop-test"), 0);
    return s;
}

static void unpair(struct sockets *s)
{
    zmq_close(s->a);
    zmq_close(s->b);
    zmq_ctx_term(s->context);
}

static void on_message(void *ctx, void *socket)
{
    char byte;
    assert_int_equal(zmq_recv(socket, &byte, 1, ZMQ_DONTWAIT), 1);
    count_and_stop(ctx);
}

static void every_message_is_seen_through_one_edge(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct sockets s = pair();
    for (int i = 0; i < 1000; i++) { /* all before the watch: there will be no edge for them */
        assert_int_equal(zmq_send(s.a, "x", 1, 0), 1);
    }
    f->expected = 1000;
    check_ok(corral_loop_zmq(f->loop, s.b, on_message, f, &f->watch, &err));
    run(f);
    assert_int_equal(f->calls, 1000);
    corral_loop_remove(f->watch);
    unpair(&s);
}

/* Sending processes the socket's commands and so eats the edge of a message that has arrived. */
static void a_kick_finds_messages_whose_edge_was_eaten(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct sockets s = pair();
    check_ok(corral_loop_zmq(f->loop, s.b, on_message, f, &f->watch, &err));
    check_ok(corral_loop_once(f->loop, 0, &err));
    f->expected = 1;
    assert_int_equal(zmq_send(s.a, "x", 1, 0), 1);
    int events = 0;
    size_t size = sizeof events;
    assert_int_equal(zmq_getsockopt(s.b, ZMQ_EVENTS, &events, &size), 0);
    assert_int_equal(events & ZMQ_POLLIN, ZMQ_POLLIN);
    corral_loop_zmq_kick(f->watch);
    run(f);
    assert_int_equal(f->calls, 1);
    corral_loop_remove(f->watch);
    unpair(&s);
}

static void on_flood(void *ctx, void *socket)
{
    struct fixture *f = ctx;
    char byte;
    assert_int_equal(zmq_recv(socket, &byte, 1, ZMQ_DONTWAIT), 1);
    assert_int_equal(zmq_send(f->sender, "x", 1, 0), 1); /* never empty */
    f->calls++;
}

static void on_descriptor_stop(void *ctx, int fd, bool readable, bool writable)
{
    struct fixture *f = ctx;
    (void)fd, (void)readable, (void)writable;
    assert_true(f->calls > 0);
    corral_loop_stop(f->loop);
}

static void a_flooded_socket_does_not_starve_a_descriptor(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct sockets s = pair();
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t one = 1;
    f->sender = s.a;
    assert_int_equal(zmq_send(s.a, "x", 1, 0), 1);
    check_ok(corral_loop_zmq(f->loop, s.b, on_flood, f, &f->watch, &err));
    check_ok(corral_loop_once(f->loop, 0, &err));
    check_ok(corral_loop_watch_fd(f->loop, fd, true, false, on_descriptor_stop, f, &f->other, &err));
    assert_int_equal(write(fd, &one, sizeof one), sizeof one);
    run(f);
    corral_loop_remove(f->watch);
    unpair(&s);
    close(fd);
}

static void on_message_remove(void *ctx, void *socket)
{
    struct fixture *f = ctx;
    char byte;
    assert_int_equal(zmq_recv(socket, &byte, 1, ZMQ_DONTWAIT), 1);
    corral_loop_remove(f->watch);
    count_and_stop(f);
}

static void a_zmq_watch_may_remove_itself(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct sockets s = pair();
    assert_int_equal(zmq_send(s.a, "x", 1, 0), 1);
    assert_int_equal(zmq_send(s.a, "x", 1, 0), 1);
    f->expected = 1;
    check_ok(corral_loop_zmq(f->loop, s.b, on_message_remove, f, &f->watch, &err));
    run(f);
    check_ok(corral_loop_once(f->loop, 0, &err));
    assert_int_equal(f->calls, 1);
    unpair(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_periodic_timer_repeats, setup, teardown),
        cmocka_unit_test_setup_teardown(a_watch_may_remove_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(once_returns_at_its_timeout, setup, teardown),
        cmocka_unit_test_setup_teardown(stop_before_run_returns_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_descriptor_is_watched_until_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_a_closed_descriptor, setup, teardown),
        cmocka_unit_test_setup_teardown(a_signal_arrives_in_the_loop, setup, teardown),
        cmocka_unit_test_setup_teardown(every_message_is_seen_through_one_edge, setup, teardown),
        cmocka_unit_test_setup_teardown(a_kick_finds_messages_whose_edge_was_eaten, setup, teardown),
        cmocka_unit_test_setup_teardown(a_flooded_socket_does_not_starve_a_descriptor, setup, teardown),
        cmocka_unit_test_setup_teardown(a_zmq_watch_may_remove_itself, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
