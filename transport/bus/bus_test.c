/* Server and clients in one process. Logging in blocks the client, so it runs in a thread of its own; the rest is one thread. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "transport/bus/bus.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 12
#define TOKEN "a-token"
#define PATIENCE_NS (120 * CORRAL_NS_PER_S)

struct world {
    char folder[64], ipc[96];
    char public_key[41], secret_key[41];
    void *context;
    struct corral_loop *loop;
    struct corral_bus_server *server;
    struct corral_bus_peer *last_joined, *last_from;
    uint32_t joins, messages;
    char last_type[32];
    uint64_t last_value;
    bool echo, drop_on_message;
};

static void on_joined(void *ctx, struct corral_bus_peer *peer)
{
    struct world *w = ctx;
    w->joins++;
    w->last_joined = peer;
}

static struct corral_mpack_writer *message(const char *type, uint64_t value)
{
    struct corral_mpack_writer *m = corral_mpack_writer_create();
    corral_mpack_map(m, 2);
    corral_mpack_kv_str(m, "type", type);
    corral_mpack_kv_u64(m, "value", value);
    return m;
}

static void on_message(void *ctx, struct corral_bus_peer *peer, const char *type,
                       const struct corral_mpack_node *root)
{
    struct world *w = ctx;
    w->messages++;
    w->last_from = peer;
    snprintf(w->last_type, sizeof w->last_type, "%s", type);
    (void)corral_mpack_get_u64(root, "value", &w->last_value, NULL);
    if (w->echo) {
        struct corral_mpack_writer *m = message("echo", w->last_value);
        (void)corral_bus_server_send(w->server, peer, m, NULL);
        corral_mpack_writer_destroy(m);
    }
    if (w->drop_on_message) {
        corral_bus_server_drop(w->server, peer);
    }
}

static void server_open(struct world *w, bool tcp)
{
    struct corral_error err;
    struct corral_bus_server_config c = {.loop = w->loop,
                                         .zmq_context = w->context,
                                         .bind = {tcp ? "tcp://127.0.0.1:*" : w->ipc, tcp ? w->ipc : NULL},
                                         .token = TOKEN,
                                         .run = RUN,
                                         .server_secret_key = tcp ? w->secret_key : NULL,
                                         .joined = on_joined,
                                         .message = on_message,
                                         .ctx = w};
    check_ok(corral_bus_server_create(&w->server, &c, &err));
}

static void world_open(struct world *w, bool tcp)
{
    struct corral_error err;
    memset(w, 0, sizeof *w);
    snprintf(w->folder, sizeof w->folder, "/tmp/corral-bus-XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    snprintf(w->ipc, sizeof w->ipc, "ipc://%s/control", w->folder);
    w->context = zmq_ctx_new();
    check_ok(corral_bus_keypair(w->public_key, w->secret_key, &err));
    check_ok(corral_loop_create(&w->loop, &err));
    server_open(w, tcp);
}

static void world_close(struct world *w)
{
    corral_bus_server_destroy(w->server);
    corral_loop_destroy(w->loop);
    zmq_ctx_term(w->context);
    assert_int_equal(corral_remove_tree(w->folder, NULL), CORRAL_OK);
}

static uint64_t deadline(void)
{
    return corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
}

static void turn(struct world *w, uint64_t until)
{
    struct corral_error err;
    check_ok(corral_loop_once(w->loop, 5, &err));
    assert_true(corral_now_ns(&corral_clock_monotonic) < until);
}

/* ---- logging in ---- */

struct login {
    struct world *world;
    struct corral_bus_client_config config;
    struct corral_bus_client *client;
    enum corral_status status;
    struct corral_error err;
    _Atomic bool done;
};

static void *login_thread(void *arg)
{
    struct login *l = arg;
    l->status = corral_bus_client_create(&l->client, &l->config, 20000, &l->err);
    atomic_store_explicit(&l->done, true, memory_order_release); /* pairs with the acquire in login() */
    return NULL;
}

static struct corral_bus_client_config client_config(struct world *w, const char *name, uint32_t epoch)
{
    struct corral_bus_client_config c = {.zmq_context = w->context,
                                         .endpoint = w->ipc,
                                         .token = TOKEN,
                                         .run = RUN,
                                         .hello = {.kind = "worker", .epoch = epoch, .pid = -3, .node = "a"}};
    snprintf(c.hello.name, sizeof c.hello.name, "%s", name);
    return c;
}

static enum corral_status login(struct world *w, struct corral_bus_client_config config,
                                struct corral_bus_client **out, struct corral_error *err)
{
    struct login l = {.world = w, .config = config};
    pthread_t thread;
    uint64_t until = deadline();
    assert_int_equal(pthread_create(&thread, NULL, login_thread, &l), 0);
    while (!atomic_load_explicit(&l.done, memory_order_acquire)) {
        turn(w, until);
    }
    pthread_join(thread, NULL);
    *out = l.client;
    *err = l.err;
    return l.status;
}

static struct corral_bus_client *join(struct world *w, const char *name, uint32_t epoch)
{
    struct corral_error err;
    struct corral_bus_client *c = NULL;
    check_ok(login(w, client_config(w, name, epoch), &c, &err));
    return c;
}

static void send_value(struct corral_bus_client *c, uint64_t value)
{
    struct corral_error err;
    struct corral_mpack_writer *m = message("beat", value);
    check_ok(corral_bus_client_send(c, m, &err));
    corral_mpack_writer_destroy(m);
}

/* Let the server run until the client has a message, and return its status. */
static enum corral_status receive(struct world *w, struct corral_bus_client *c, char type[32],
                                  uint64_t *value, struct corral_error *err)
{
    uint64_t until = deadline();
    for (;;) {
        struct corral_mpack_reader *r = NULL;
        enum corral_status status = corral_bus_client_receive(c, 0, type, &r, err);
        if (status == CORRAL_OK) {
            (void)corral_mpack_get_u64(corral_mpack_root(r), "value", value, NULL);
            corral_mpack_reader_destroy(r);
        }
        if (status != CORRAL_AGAIN) {
            return status;
        }
        turn(w, until);
    }
}

static void await_messages(struct world *w, uint32_t count)
{
    for (uint64_t until = deadline(); w->messages < count;) {
        turn(w, until);
    }
}

static void messages_go_both_ways(bool tcp)
{
    struct world w;
    struct corral_error err;
    struct corral_bus_client *c = NULL;
    world_open(&w, tcp);
    struct corral_bus_client_config config = client_config(&w, "rollout-3", 4);
    if (tcp) {
        config.endpoint = corral_bus_server_endpoint(w.server, 0);
        config.server_public_key = w.public_key;
    }
    check_ok(login(&w, config, &c, &err));
    const struct corral_bus_hello *hello = corral_bus_peer_hello(w.last_joined);
    assert_string_equal(hello->name, "rollout-3");
    assert_string_equal(hello->kind, "worker");
    assert_int_equal(hello->epoch, 4);
    assert_int_equal(hello->pid, -3);
    corral_bus_peer_set_user(w.last_joined, &w);
    assert_ptr_equal(corral_bus_peer_user(w.last_joined), &w);
    w.echo = true;
    for (uint64_t i = 1; i <= 500; i++) {
        send_value(c, i);
    }
    char type[32];
    for (uint64_t i = 1, value = 0; i <= 500; i++) {
        assert_int_equal(receive(&w, c, type, &value, &err), CORRAL_OK);
        assert_int_equal(value, i);
        assert_string_equal(type, "echo");
    }
    assert_int_equal(w.messages, 500);
    assert_true(corral_bus_peer_heard_ns(w.last_joined) > 0);
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void carries_messages_both_ways_over_ipc(void **state)
{
    (void)state;
    messages_go_both_ways(false);
}

static void carries_messages_both_ways_over_tcp_with_curve_beside_ipc(void **state)
{
    (void)state;
    messages_go_both_ways(true);
    struct world w; /* and the plain endpoint of the same socket still takes ipc peers */
    world_open(&w, true);
    assert_string_equal(corral_bus_server_endpoint(w.server, 1), w.ipc);
    assert_null(corral_bus_server_endpoint(w.server, 2));
    struct corral_bus_client *c = join(&w, "a", 1);
    send_value(c, 3);
    await_messages(&w, 1);
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void sends_from_outside_callbacks_do_not_stall_the_loop(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    char type[32];
    uint64_t value = 0;
    /* Each send may swallow the descriptor's edge for a message that is arriving just then. */
    for (uint32_t i = 1; i <= 300; i++) {
        struct corral_mpack_writer *m = message("order", i);
        send_value(c, i);
        check_ok(corral_bus_server_send(w.server, w.last_joined, m, &err));
        corral_mpack_writer_destroy(m);
        await_messages(&w, i);
        assert_int_equal(receive(&w, c, type, &value, &err), CORRAL_OK);
        assert_int_equal(value, i);
    }
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void refuses_wrong_tokens_runs_and_protocols(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_bus_client *c = NULL;
    world_open(&w, false);
    struct corral_bus_client_config config = client_config(&w, "a", 1);
    config.token = "a-tokem";
    check_status(login(&w, config, &c, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "wrong token"));
    config.token = "";
    check_status(login(&w, config, &c, &err), CORRAL_INVALID);
    config = client_config(&w, "a", 1);
    config.run = RUN + 1;
    check_status(login(&w, config, &c, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "another run"));
    config = client_config(&w, "", 1);
    check_status(login(&w, config, &c, &err), CORRAL_INVALID);
    config = client_config(&w, "two\nlines", 1);
    check_status(login(&w, config, &c, &err), CORRAL_INVALID);
    assert_null(c);
    assert_int_equal(w.joins, 0);
    struct corral_bus_server_stats stats;
    corral_bus_server_stats(w.server, &stats);
    assert_int_equal(stats.refused, 5);
    assert_int_equal(stats.peers, 0);
    world_close(&w);
}

static void times_out_without_a_server_and_without_its_key(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_bus_client *c = NULL;
    world_open(&w, true);
    struct corral_bus_client_config config = client_config(&w, "a", 1);
    char nowhere[128];
    snprintf(nowhere, sizeof nowhere, "%s-nobody", w.ipc);
    config.endpoint = nowhere;
    check_status(corral_bus_client_create(&c, &config, 20, &err), CORRAL_TIMEOUT);
    char other_public[41], other_secret[41];
    check_ok(corral_bus_keypair(other_public, other_secret, &err));
    config.endpoint = corral_bus_server_endpoint(w.server, 0);
    config.server_public_key = other_public;
    check_status(corral_bus_client_create(&c, &config, 200, &err), CORRAL_TIMEOUT);
    config.server_public_key = NULL;
    check_status(corral_bus_client_create(&c, &config, 200, &err), CORRAL_INVALID);
    assert_null(c);
    world_close(&w);
}

static void a_newer_epoch_replaces_and_an_older_or_equal_one_is_refused(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_bus_client *first = NULL, *second = NULL, *third = NULL;
    char type[32];
    uint64_t value;
    world_open(&w, false);
    first = join(&w, "a", 5);
    check_status(login(&w, client_config(&w, "a", 5), &third, &err), CORRAL_INVALID);
    check_status(login(&w, client_config(&w, "a", 4), &third, &err), CORRAL_INVALID);
    second = join(&w, "a", 6);
    assert_int_equal(w.joins, 2);
    assert_int_equal(receive(&w, first, type, &value, &err), CORRAL_PEER);
    send_value(first, 1); /* the old one does not reach the caller any more */
    send_value(second, 2);
    await_messages(&w, 1);
    assert_int_equal(w.last_value, 2);
    assert_ptr_equal(w.last_from, w.last_joined);
    struct corral_bus_client *other = join(&w, "b", 1); /* another name is another peer */
    struct corral_bus_server_stats stats;
    corral_bus_server_stats(w.server, &stats);
    assert_int_equal(stats.peers, 2);
    corral_bus_client_destroy(first);
    corral_bus_client_destroy(second);
    corral_bus_client_destroy(other);
    world_close(&w);
}

static void the_same_epoch_may_come_back_once_its_connection_is_dead(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 5);
    corral_bus_client_destroy(c);
    enum corral_status status = CORRAL_INVALID;
    for (uint64_t until = deadline(); status != CORRAL_OK; turn(&w, until)) {
        status = login(&w, client_config(&w, "a", 5), &c,
                       &err); /* until ZeroMQ has noticed that the first is gone */
    }
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void a_dropped_peer_must_log_in_again(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    char type[32];
    uint64_t value;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    w.drop_on_message = true;
    send_value(c, 1);
    await_messages(&w, 1);
    send_value(c, 2);
    assert_int_equal(receive(&w, c, type, &value, &err), CORRAL_PEER);
    assert_non_null(strstr(err.text, "hello"));
    assert_int_equal(w.messages, 1);
    corral_bus_client_destroy(c);
    c = join(&w, "a", 1);
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void sending_to_a_peer_that_has_gone_is_an_error(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    corral_bus_client_destroy(c);
    struct corral_mpack_writer *m = message("order", 1);
    for (uint64_t until = deadline();
         corral_bus_server_send(w.server, w.last_joined, m, &err) == CORRAL_OK;) {
        turn(&w, until);
    }
    assert_int_equal(err.status, CORRAL_PEER);
    corral_mpack_writer_destroy(m);
    world_close(&w);
}

static void a_client_of_a_restarted_server_learns_that_it_is_unknown(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    char type[32];
    uint64_t value;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    corral_bus_server_destroy(w.server);
    server_open(&w, false); /* at the same path */
    struct corral_bus_client *d = join(&w, "b", 1);
    send_value(c, 1);
    assert_int_equal(receive(&w, c, type, &value, &err), CORRAL_PEER);
    assert_int_equal(w.messages, 0);
    corral_bus_client_destroy(c);
    corral_bus_client_destroy(d);
    world_close(&w);
}

static void *raw_dealer(struct world *w, void *context, const char *routing_id)
{
    void *socket = zmq_socket(context, ZMQ_DEALER);
    int linger = 0;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    if (routing_id != NULL) {
        zmq_setsockopt(socket, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    }
    assert_int_equal(zmq_connect(socket, w->ipc), 0);
    return socket;
}

static void garbage_never_reaches_the_caller(void **state)
{
    (void)state;
    struct world w;
    struct corral_rng rng;
    corral_rng_seed(&rng, 3);
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "good", 1);
    void *context = zmq_ctx_new();
    void *hostile[3] = {raw_dealer(&w, context, NULL), raw_dealer(&w, context, NULL),
                        raw_dealer(&w, context, "chosen")};
    uint64_t until = deadline();
    for (uint32_t i = 1; i <= 300; i++) {
        void *h = hostile[corral_rng_below(&rng, 3)];
        uint8_t bytes[300];
        uint64_t frames = 1 + corral_rng_below(&rng, 4);
        for (uint64_t k = 0; k < frames; k++) {
            uint64_t size = corral_rng_below(&rng, sizeof bytes);
            for (uint64_t b = 0; b < size; b++) {
                bytes[b] = (uint8_t)corral_rng_next(&rng);
            }
            zmq_send(h, bytes, size, ZMQ_DONTWAIT | (k + 1 < frames ? ZMQ_SNDMORE : 0));
        }
        struct corral_mpack_writer *early = message("beat", 1000000); /* well-formed, but not logged in */
        const void *data;
        size_t data_bytes;
        assert_int_equal(corral_mpack_finish(early, &data, &data_bytes, NULL), CORRAL_OK);
        zmq_send(h, data, data_bytes, ZMQ_DONTWAIT);
        corral_mpack_writer_destroy(early);
        send_value(c, i);
        while (w.last_value != i) {
            turn(&w, until);
        }
    }
    assert_int_equal(w.messages, 300);
    assert_int_equal(w.joins, 1);
    struct corral_bus_server_stats stats;
    corral_bus_server_stats(w.server, &stats);
    assert_true(stats.malformed > 0);
    assert_true(stats.refused > 0);
    for (int i = 0; i < 3; i++) {
        zmq_close(hostile[i]);
    }
    zmq_ctx_term(
        context); /* gone before the server: ZeroMQ aborts when a peer goes while a message of several frames is half sent */
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void refuses_a_message_above_the_limit(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    struct corral_mpack_writer *m = corral_mpack_writer_create();
    void *large = calloc(1, CORRAL_BUS_MESSAGE_BYTES_MAX);
    corral_mpack_map(m, 1);
    corral_mpack_kv_bin(m, "type", large, CORRAL_BUS_MESSAGE_BYTES_MAX);
    check_status(corral_bus_client_send(c, m, &err), CORRAL_INVALID);
    check_status(corral_bus_server_send(w.server, w.last_joined, m, &err), CORRAL_INVALID);
    free(large);
    corral_mpack_writer_destroy(m);
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void a_full_queue_is_waited_for_and_nothing_is_lost(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w, false);
    struct corral_bus_client *c = join(&w, "a", 1);
    struct corral_mpack_writer *m = message("order", 1);
    enum corral_status status;
    while ((status = corral_bus_client_send_within(c, m, 1, &err)) == CORRAL_OK) {
    }
    assert_int_equal(status, CORRAL_TIMEOUT);
    check_status(corral_bus_client_send(c, m, &err), CORRAL_PEER);
    for (uint64_t until = deadline();
         (status = corral_bus_client_send_within(c, m, 1, &err)) == CORRAL_TIMEOUT;) {
        turn(&w, until);
    }
    assert_int_equal(status, CORRAL_OK);
    corral_mpack_writer_destroy(m);
    corral_bus_client_destroy(c);
    world_close(&w);
}

static void refuses_endpoints_it_cannot_protect(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    struct corral_bus_server *s = NULL;
    world_open(&w, false);
    struct corral_bus_server_config c = {
        .loop = w.loop, .zmq_context = w.context, .token = TOKEN, .run = RUN};
    check_status(corral_bus_server_create(&s, &c, &err), CORRAL_INVALID); /* nothing to bind */
    c.bind[0] = "tcp://127.0.0.1:*";
    check_status(corral_bus_server_create(&s, &c, &err), CORRAL_INVALID); /* no key */
    char long_path[200];
    memset(long_path, 'x', sizeof long_path);
    memcpy(long_path, "ipc://", 6);
    long_path[sizeof long_path - 1] = '\0';
    c.bind[0] = long_path;
    check_status(corral_bus_server_create(&s, &c, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "socket path"));
    assert_null(s);
    world_close(&w);
}

static void binds_a_path_relative_to_the_current_folder(void **state)
{
    (void)state;
    struct world w;
    char before[4096];
    assert_non_null(getcwd(before, sizeof before));
    world_open(&w, false);
    corral_bus_server_destroy(w.server);
    assert_int_equal(chdir(w.folder), 0);
    snprintf(w.ipc, sizeof w.ipc, "ipc://control");
    server_open(&w, false);
    assert_int_equal(access("control", F_OK), 0);
    struct corral_bus_client *c = join(&w, "a", 1);
    send_value(c, 1);
    await_messages(&w, 1);
    corral_bus_client_destroy(c);
    corral_bus_server_destroy(w.server);
    assert_int_not_equal(access("control", F_OK), 0); /* gone when destroy returns */
    server_open(&w, false);
    assert_int_equal(chdir(before), 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(carries_messages_both_ways_over_ipc),
        cmocka_unit_test(carries_messages_both_ways_over_tcp_with_curve_beside_ipc),
        cmocka_unit_test(sends_from_outside_callbacks_do_not_stall_the_loop),
        cmocka_unit_test(refuses_wrong_tokens_runs_and_protocols),
        cmocka_unit_test(times_out_without_a_server_and_without_its_key),
        cmocka_unit_test(a_newer_epoch_replaces_and_an_older_or_equal_one_is_refused),
        cmocka_unit_test(the_same_epoch_may_come_back_once_its_connection_is_dead),
        cmocka_unit_test(a_dropped_peer_must_log_in_again),
        cmocka_unit_test(sending_to_a_peer_that_has_gone_is_an_error),
        cmocka_unit_test(a_client_of_a_restarted_server_learns_that_it_is_unknown),
        cmocka_unit_test(garbage_never_reaches_the_caller),
        cmocka_unit_test(refuses_a_message_above_the_limit),
        cmocka_unit_test(a_full_queue_is_waited_for_and_nothing_is_lost),
        cmocka_unit_test(refuses_endpoints_it_cannot_protect),
        cmocka_unit_test(binds_a_path_relative_to_the_current_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
