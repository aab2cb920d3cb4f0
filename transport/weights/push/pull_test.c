/* Receivers that take the current version from each other: whole, from whoever lives, and with the digest that a push would have given it. */
#include "tests/check.h"

#include "base/log.h"
#include "transport/weights/push/pull.h"
#include "transport/weights/push/store_target.h"
#include "transport/weights/push/test_group.h"
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define ELEMENTS 200000
#define PULL_NS (20 * CORRAL_NS_PER_S)

/* Until the receiver's pull is over. */
static struct corral_push_receiver_status wait_for_pull(struct corral_push_receiver *r)
{
    struct corral_push_receiver_status s;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + 2 * PULL_NS;
    do {
        poll(NULL, 0, 1);
        corral_push_receiver_status(r, &s);
    } while (s.pulling && corral_now_ns(&corral_clock_monotonic) < deadline);
    assert_false(s.pulling);
    return s;
}

static struct corral_push_receiver_status pull(struct corral_push_receiver *r, const char *const *peers,
                                               uint32_t count)
{
    struct corral_error err = {0};
    check_ok(corral_push_receiver_pull(r, peers, count, PULL_NS, &err));
    return wait_for_pull(r);
}

/* Receivers 0 and 1 of the same rank; only 0 gets pushes. */
static void make_pair(struct test_group *g, const char *lanes)
{
    *g = (struct test_group){.lanes = lanes};
    test_group_make(g, 5, 2, 2, 1, ELEMENTS, "");
    corral_push_sender_remove(g->tx[0].sender, "r1");
    corral_push_sender_remove(g->tx[1].sender, "r1");
}

static void push_to_first(struct test_group *g, uint64_t version)
{
    test_mesh_fill(&g->mesh, version);
    test_push(g, version);
    assert_int_equal(g->tx[0].status, CORRAL_OK);
    assert_int_equal(g->tx[0].result.applied, 1);
}

static void pulls_over(const char *lanes)
{
    struct test_group g;
    make_pair(&g, lanes);
    push_to_first(&g, 7);
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    struct corral_push_receiver_status s = pull(g.rx[1], &peer, 1);
    assert_string_equal(s.last_error, "");
    assert_int_equal(s.pulls, 1);
    assert_int_equal(s.version, 7);
    assert_string_equal(s.lane, lanes);
    check_has(&g, 1, 7);
    assert_true(corral_digest_equal(g.target[1].digest, g.target[0].digest));
    /* Nothing newer is no error, and nothing happens. */
    s = pull(g.rx[1], &peer, 1);
    assert_int_equal(s.pulls, 1);
    assert_int_equal(g.target[1].begun, 1);
    assert_string_equal(s.last_error, "");
    test_group_drop(&g);
}

static void pulls_over_tcp(void **state)
{
    (void)state;
    pulls_over("tcp");
}

static void pulls_over_shm(void **state)
{
    (void)state;
    pulls_over("shm");
}

static void a_push_of_what_was_pulled_changes_nothing(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 3);
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    (void)pull(g.rx[1], &peer, 1);
    for (uint32_t r = 0; r < 2; r++) {
        test_add(&g, r, 1, "");
        g.tx[r].timeout_ns = 10 * CORRAL_NS_PER_S;
    }
    test_push_ranks(&g, 3, 10 * CORRAL_NS_PER_S, 0, 2);
    assert_int_equal(corral_push_sender_behind(g.tx[0].sender), 0);
    assert_int_equal(g.target[1].begun, 1); /* the pull; the trainer found the version there */
    /* And the next version comes as ever. */
    g.tx[0].timeout_ns = g.tx[1].timeout_ns = 0;
    test_mesh_fill(&g.mesh, 4);
    test_push(&g, 4);
    check_applied(&g, 2);
    check_has(&g, 1, 4);
    test_group_drop(&g);
}

static void goes_on_to_the_next_peer(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 2);
    int deaf =
        socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); /* bound, not listening: connections are refused */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    char nobody[64];
    assert_int_equal(bind(deaf, (struct sockaddr *)&address, length), 0);
    assert_int_equal(getsockname(deaf, (struct sockaddr *)&address, &length), 0);
    snprintf(nobody, sizeof nobody, "127.0.0.1:%u", ntohs(address.sin_port));
    const char *peers[] = {nobody, "not an endpoint", corral_push_receiver_endpoint(g.rx[1]),
                           corral_push_receiver_endpoint(g.rx[0])};
    struct corral_push_receiver_status s = pull(g.rx[1], peers, 4);
    assert_int_equal(s.version, 2);
    check_has(&g, 1, 2);
    close(deaf);
    test_group_drop(&g);
}

static void refuses_who_does_not_know_the_secret(void **state)
{
    (void)state;
    struct test_group g, other;
    make_pair(&g, "tcp");
    push_to_first(&g, 2);
    other = (struct test_group){.lanes = "tcp"};
    other.mesh = test_mesh_make(5, 2, 1, 3, ELEMENTS);
    test_target_make(&other.target[0], other.mesh.to->rank_bytes[0]);
    struct corral_error err = {0};
    struct corral_push_receiver_options o = {.name = "stranger",
                                             .host = "127.0.0.1",
                                             .identity = test_identity(0),
                                             .plan = other.mesh.plan,
                                             .bucket_bytes = TEST_BUCKET,
                                             .lanes = "tcp",
                                             .target = &test_target_ops,
                                             .target_ctx = &other.target[0]};
    o.identity.secret[0] ^= 1;
    check_ok(corral_push_receiver_start(&other.rx[0], &o, &err));
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    struct corral_push_receiver_status s = pull(other.rx[0], &peer, 1);
    assert_int_equal(s.pulls, 0);
    assert_non_null(strstr(s.last_error, "secret"));
    other.receivers = 1;
    test_group_drop(&other);
    test_group_drop(&g);
}

static void refuses_another_plan_and_another_rank(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 9, 1, 2, 2, ELEMENTS, ""); /* two ranks: each has another part */
    test_mesh_fill(&g.mesh, 1);
    corral_push_sender_remove(g.tx[0].sender, "r1");
    test_push(&g, 1);
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    struct corral_push_receiver_status s = pull(g.rx[1], &peer, 1);
    assert_int_equal(s.pulls, 0);
    assert_non_null(strstr(s.last_error, "cannot pull"));
    test_group_drop(&g);
}

/* ---- peers that die and peers that are overtaken ---- */

/* A target whose source says it is damaged after so many bytes were digested: `deadly` kills the process, otherwise it is overtaken (the memory changes). */
struct tricky {
    struct test_target *t;
    uint32_t opened, overtaken_for; /* the first so many pulls */
};
static struct tricky tricky;

static bool tricky_intact(void *ctx, const struct corral_push_source *source)
{
    (void)ctx, (void)source;
    return tricky.opened > tricky.overtaken_for;
}

static enum corral_status tricky_open(void *ctx, struct corral_push_source *out, struct corral_error *err)
{
    struct test_target *t = ctx;
    enum corral_status status = test_target_ops.source_open(ctx, out, err);
    if (status == CORRAL_OK && ++tricky.opened <= tricky.overtaken_for) {
        memset(t->buffer[1 - t->at], (int)tricky.opened, t->bytes); /* another version's bytes */
        out->shard = corral_shard_host(t->buffer[1 - t->at], t->bytes);
    }
    return status;
}

static void begins_again_when_overtaken(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 5);
    tricky = (struct tricky){.t = &g.target[0], .overtaken_for = 2};
    struct corral_push_target_ops ops = test_target_ops;
    ops.source_open = tricky_open;
    ops.source_intact = tricky_intact;
    struct corral_push_receiver *peer_rx = NULL;
    struct corral_error err = {0};
    struct corral_push_receiver_options o = {.name = "tricky",
                                             .host = "127.0.0.1",
                                             .identity = test_identity(0),
                                             .plan = g.mesh.plan,
                                             .bucket_bytes = TEST_BUCKET,
                                             .lanes = "tcp",
                                             .target = &ops,
                                             .target_ctx = &g.target[0]};
    check_ok(corral_push_receiver_start(&peer_rx, &o, &err));
    const char *peer = corral_push_receiver_endpoint(peer_rx);
    struct corral_push_receiver_status s = pull(g.rx[1], &peer, 1);
    assert_int_equal(s.pulls, 1);
    assert_int_equal(tricky.opened, 3);
    assert_int_equal(g.target[1].aborts, 2);
    check_has(&g, 1, 5);
    corral_push_receiver_stop(peer_rx);
    test_group_drop(&g);
}

/* The bytes are another version's from the start, consistently: only the digest over the whole shows it. */
static void refuses_a_version_with_another_digest(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 5);
    g.target[0].digest.lo ^= 1; /* as its owner believes it */
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    struct corral_push_receiver_status s = pull(g.rx[1], &peer, 1);
    assert_int_equal(s.pulls, 0);
    assert_non_null(strstr(s.last_error, "another digest"));
    assert_int_equal(g.target[1].aborts, 1);
    check_has(&g, 1, 0);
    test_group_drop(&g);
}

/* A child process is the first peer. It is killed as soon as the puller's target has been begun, or a little later: in the middle of the transfer. */
static void kill_a_peer(const char *lanes, uint32_t rounds)
{
    struct corral_rng rng;
    uint32_t aborts = 0;
    corral_rng_seed(&rng, 4);
    for (uint32_t round = 0; round < rounds; round++) {
        struct test_group g;
        int out[2];
        char endpoint[64] = "";
        assert_int_equal(pipe(out), 0);
        pid_t pid = fork(); /* no thread has been started yet */
        assert_true(pid >= 0);
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            make_pair(&g, lanes);
            push_to_first(&g, 6);
            const char *mine = corral_push_receiver_endpoint(g.rx[0]);
            (void)!write(out[1], mine, strlen(mine) + 1);
            pause();
            _exit(0);
        }
        close(out[1]);
        for (size_t n = 0; n == 0 || endpoint[n - 1] != '\0'; n++) {
            assert_true(n < sizeof endpoint && read(out[0], endpoint + n, 1) == 1);
        }
        make_pair(&g, lanes);
        push_to_first(&g, 6);
        const char *peers[] = {endpoint, corral_push_receiver_endpoint(g.rx[0])};
        struct corral_error err = {0};
        check_ok(corral_push_receiver_pull(g.rx[1], peers, 2, PULL_NS, &err));
        uint32_t begun = 0;
        while (begun == 0) {
            pthread_mutex_lock(&g.target[1].lock);
            begun = g.target[1].begun;
            pthread_mutex_unlock(&g.target[1].lock);
        }
        for (volatile uint64_t spin = corral_rng_below(&rng, 300000); spin > 0; spin--) {
        }
        kill(pid, SIGKILL);
        struct corral_push_receiver_status s = wait_for_pull(g.rx[1]);
        assert_int_equal(s.pulls, 1);
        check_has(&g, 1, 6);
        aborts += g.target[1].aborts;
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        close(out[0]);
        test_group_drop(&g);
    }
    print_message("killed in the middle: %u of %u\n", aborts, rounds);
    assert_true(aborts > 0);
}

static void a_killed_peer_costs_nothing_but_time_over_tcp(void **state)
{
    (void)state;
    kill_a_peer("tcp", 12);
}

static void a_killed_peer_costs_nothing_but_time_over_shm(void **state)
{
    (void)state;
    kill_a_peer("shm", 12);
}

static void a_push_goes_before_a_pull(void **state)
{
    (void)state;
    struct test_group g = {.lanes = "tcp"};
    test_group_make(&g, 5, 1, 1, 1, ELEMENTS, "");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); /* takes the connection and says nothing */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    char silent[64];
    assert_int_equal(bind(listener, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(listener, 4), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    snprintf(silent, sizeof silent, "127.0.0.1:%u", ntohs(address.sin_port));
    const char *peer = silent;
    struct corral_error err = {0};
    check_ok(corral_push_receiver_pull(g.rx[0], &peer, 1, PULL_NS, &err));
    int connection = accept(listener, NULL, NULL); /* the pull is under way */
    assert_true(connection >= 0);
    assert_int_equal(corral_push_receiver_pull(g.rx[0], &peer, 1, PULL_NS, &err), CORRAL_EXISTS);
    test_mesh_fill(&g.mesh, 1);
    test_push(&g, 1);
    check_applied(&g, 1);
    check_has(&g, 0, 1);
    struct corral_push_receiver_status s = wait_for_pull(g.rx[0]);
    assert_int_equal(s.pulls, 0);
    close(connection);
    close(listener);
    test_group_drop(&g);
}

static void stops_in_the_middle_of_a_pull(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 5);
    const char *peer = corral_push_receiver_endpoint(g.rx[0]);
    struct corral_error err = {0};
    check_ok(corral_push_receiver_pull(g.rx[1], &peer, 1, PULL_NS, &err));
    test_group_drop(&g); /* the peer's end first, then the puller's */
}

/* ---- stores ---- */

static void a_store_that_its_own_trainer_fills_can_be_pulled_from(void **state)
{
    (void)state;
    struct test_mesh mesh = test_mesh_make(3, 1, 1, 2, ELEMENTS);
    struct corral_weight_store *store[2];
    struct corral_push_store_target target[2];
    struct corral_push_receiver *rx[2];
    struct corral_error err = {0};
    uint64_t bytes = mesh.to->rank_bytes[0], version;
    for (uint32_t i = 0; i < 2; i++) {
        int fd;
        check_ok(corral_weight_store_create(bytes, &fd, &err));
        check_ok(corral_weight_store_attach(fd, &store[i], &err));
        close(fd);
        target[i] = (struct corral_push_store_target){
            .store = store[i], .manifest = {.lo = 1, .hi = 2}, .bytes = bytes};
        struct corral_push_receiver_options o = {.name = i == 0 ? "a" : "b",
                                                 .host = "127.0.0.1",
                                                 .identity = test_identity(0),
                                                 .plan = mesh.plan,
                                                 .bucket_bytes = TEST_BUCKET,
                                                 .lanes = "tcp",
                                                 .target = &corral_push_store_target_ops,
                                                 .target_ctx = &target[i]};
        check_ok(corral_push_receiver_start(&rx[i], &o, &err));
    }
    const char *peer = corral_push_receiver_endpoint(rx[0]);
    struct corral_push_receiver_status s = pull(rx[1], &peer, 1);
    assert_int_equal(s.pulls, 0); /* nothing there yet */
    void *slot;
    check_ok(corral_weight_store_begin(store[0], 11, target[0].manifest, bytes, &slot, &err));
    memcpy(slot, mesh.expected[0], bytes);
    check_ok(corral_weight_store_commit(store[0], 11, NULL, &err));
    s = pull(rx[1], &peer, 1);
    assert_string_equal(s.last_error, "");
    assert_int_equal(s.version, 11);
    uint8_t *copy = test_mesh_buffer(bytes, 0);
    check_ok(corral_weight_store_read(store[1], target[1].manifest, copy, bytes, &version, NULL, &err));
    assert_int_equal(version, 11);
    assert_memory_equal(copy, mesh.expected[0], bytes);
    free(copy);
    for (uint32_t i = 0; i < 2; i++) {
        corral_push_receiver_stop(rx[i]);
        corral_weight_store_detach(store[i]);
    }
    test_mesh_drop(&mesh);
}

/* ---- probing ---- */

static void measures_a_lane_to_a_receivers_node(void **state)
{
    (void)state;
    struct test_group g;
    make_pair(&g, "tcp");
    push_to_first(&g, 1);
    struct corral_push_identity id = test_identity(0);
    struct corral_lane_probe_options o = {.bytes = 4u << 20, .timeout_ns = 20 * CORRAL_NS_PER_S};
    struct corral_lane_probe_result result = {0};
    struct corral_error err = {0};
    const char *endpoint = corral_push_receiver_endpoint(g.rx[0]);
    check_ok(corral_push_probe(endpoint, &id, &corral_lane_tcp_ops, &o, &result, &err));
    assert_true(result.push_ns > 0 && result.latency_ns > 0 && result.bytes >= o.bytes);
    check_ok(corral_push_probe(endpoint, &id, &corral_lane_shm_ops, &o, &result, &err));
    id.secret[3] ^= 1;
    assert_int_equal(corral_push_probe(endpoint, &id, &corral_lane_tcp_ops, &o, &result, &err),
                     CORRAL_PROTOCOL);
    id.secret[3] ^= 1;
    o.bytes = UINT64_C(2) << 30;
    assert_int_not_equal(corral_push_probe(endpoint, &id, &corral_lane_tcp_ops, &o, &result, &err),
                         CORRAL_OK);
    test_mesh_fill(&g.mesh, 2);
    push_to_first(&g, 2); /* it serves as ever */
    test_group_drop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* first: they fork before there is any thread */
        cmocka_unit_test(a_killed_peer_costs_nothing_but_time_over_tcp),
        cmocka_unit_test(a_killed_peer_costs_nothing_but_time_over_shm),
        cmocka_unit_test(pulls_over_tcp),
        cmocka_unit_test(pulls_over_shm),
        cmocka_unit_test(a_push_of_what_was_pulled_changes_nothing),
        cmocka_unit_test(goes_on_to_the_next_peer),
        cmocka_unit_test(refuses_who_does_not_know_the_secret),
        cmocka_unit_test(refuses_another_plan_and_another_rank),
        cmocka_unit_test(begins_again_when_overtaken),
        cmocka_unit_test(refuses_a_version_with_another_digest),
        cmocka_unit_test(a_push_goes_before_a_pull),
        cmocka_unit_test(stops_in_the_middle_of_a_pull),
        cmocka_unit_test(a_store_that_its_own_trainer_fills_can_be_pulled_from),
        cmocka_unit_test(measures_a_lane_to_a_receivers_node),
    };
    corral_log_configure(getenv("PUSH_TEST_LOG") ? CORRAL_LOG_DEBUG : CORRAL_LOG_ERROR, false, 2,
                         "pull_test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
