/* A version must reach a node that was away during the only push of it, and a trainer that restarted may push it again. The node's
 * receiver is a process of its own, so that it can be stopped as a frozen machine is: its kernel takes connections and nobody reads. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/log.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/publisher.h"
#include "transport/weights/test_weights.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS (UINT64_C(1) << 20) /* more than the sockets of a stopped receiver hold */
#define BYTES (WORDS * sizeof(uint64_t))
#define RUN 12
#define DEADLINE_MS 400u
#define LONG_NS (60 * CORRAL_NS_PER_S)

static const uint8_t secret[32] = "the run's secret, 32 bytes long";

struct fixture {
    struct corral_manifest *manifest;
    struct corral_weight_publisher *publisher;
    uint64_t *weights, *copy;
    int here_fd, there_fd;
    struct corral_weight_store *here, *there; /* this node's and the other's, as a reader sees it */
    pid_t receiver;
    char endpoint[96];
};

static int run_receiver(const struct fixture *f, int out)
{
    struct corral_weight_store *store = NULL;
    struct corral_weight_receiver *r = NULL;
    char endpoint[96] = "";
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct corral_node_receiver_options options = {
        .node = "there", .host = "127.0.0.1", .manifest = f->manifest, .run = RUN, .secret = secret};
    if (corral_weight_store_attach(f->there_fd, &store, NULL) != CORRAL_OK) {
        return 1;
    }
    options.store = store;
    if (corral_weight_receiver_start(&r, &options, NULL) != CORRAL_OK ||
        snprintf(endpoint, sizeof endpoint, "%s", corral_weight_receiver_endpoint(r)) <= 0 ||
        write(out, endpoint, sizeof endpoint) != (ssize_t)sizeof endpoint) {
        return 1;
    }
    for (;;) {
        pause();
    }
}

static void start_receiver(struct fixture *f)
{
    int out[2];
    assert_int_equal(pipe(out), 0);
    f->receiver = fork();
    assert_true(f->receiver >= 0);
    if (f->receiver == 0) {
        _exit(run_receiver(f, out[1]));
    }
    assert_int_equal(read(out[0], f->endpoint, sizeof f->endpoint), sizeof f->endpoint);
    close(out[0]);
    close(out[1]);
}

static void stop_receiver(struct fixture *f)
{
    int status = 0;
    kill(f->receiver, SIGSTOP);
    assert_int_equal(waitpid(f->receiver, &status, WUNTRACED), f->receiver);
    assert_true(WIFSTOPPED(status));
}

static struct corral_weight_publisher *make_publisher(struct fixture *f)
{
    struct corral_error err = {0};
    struct corral_weight_publisher *p = NULL;
    const struct corral_publisher_options options = {
        .manifest = f->manifest, .run = RUN, .secret = secret, .deadline_ms = DEADLINE_MS};
    check_ok(corral_weight_publisher_create(&p, &options, &err));
    return p;
}

static void new_publisher(struct fixture *f)
{
    struct corral_error err = {0};
    corral_weight_publisher_destroy(f->publisher);
    f->publisher = make_publisher(f);
    check_ok(corral_weight_publisher_add_store(f->publisher, f->here, &err));
    check_ok(corral_weight_publisher_add_node(f->publisher, "there", f->endpoint, &err));
}

static int setup(void **state)
{
    static struct fixture f;
    struct corral_error err = {0};
    uint64_t shape[1] = {WORDS};
    check_ok(corral_manifest_create(&f.manifest, 1, &err));
    check_ok(corral_manifest_add(f.manifest, "w", CORRAL_DTYPE_U64, 1, shape, &err));
    f.weights = malloc(BYTES);
    f.copy = malloc(BYTES);
    assert_true(f.weights && f.copy);
    check_ok(corral_weight_store_create(BYTES, &f.here_fd, &err));
    check_ok(corral_weight_store_create(BYTES, &f.there_fd, &err));
    check_ok(corral_weight_store_attach(f.here_fd, &f.here, &err));
    check_ok(corral_weight_store_attach(f.there_fd, &f.there, &err));
    start_receiver(&f);
    f.publisher = NULL;
    new_publisher(&f);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    int status;
    corral_weight_publisher_destroy(f->publisher);
    kill(f->receiver, SIGKILL);
    waitpid(f->receiver, &status, 0);
    corral_weight_store_detach(f->here);
    corral_weight_store_detach(f->there);
    close(f->here_fd);
    close(f->there_fd);
    corral_manifest_destroy(f->manifest);
    free(f->weights);
    free(f->copy);
    return 0;
}

static enum corral_status push(struct fixture *f, uint64_t version, struct corral_publish_stats *stats,
                               struct corral_error *err)
{
    test_fill(f->weights, WORDS, version);
    return corral_weight_publisher_push(f->publisher, version, f->weights, BYTES, stats, err);
}

static void check_has(struct fixture *f, struct corral_weight_store *s, uint64_t version)
{
    struct corral_error err = {0};
    uint64_t got = 0;
    check_ok(
        corral_weight_store_read(s, corral_manifest_hash(f->manifest), f->copy, BYTES, &got, NULL, &err));
    assert_int_equal(got, version);
    assert_true(test_is_version(f->copy, WORDS, version));
}

static void catch_up(struct fixture *f, uint64_t version, uint32_t timeout_ms)
{
    struct corral_error err = {0};
    check_ok(corral_weight_publisher_catch_up(f->publisher, f->weights, BYTES, version, timeout_ms, &err));
}

static void catch_up_until_done(struct fixture *f, uint64_t version, uint32_t timeout_ms)
{
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + LONG_NS;
    while (corral_weight_publisher_behind(f->publisher)) {
        catch_up(f, version, timeout_ms);
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
    }
}

static void push_past_the_stopped(struct fixture *f, uint64_t version)
{
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    check_ok(push(f, version, &stats, &err));
    assert_int_equal(stats.targets, 1);
    assert_int_equal(stats.dropped, 1);
    assert_true(corral_weight_publisher_behind(f->publisher));
}

static void a_receiver_stopped_during_the_only_push_gets_it_afterwards(void **state)
{
    struct fixture *f = *state;
    for (uint32_t timeout_ms = 0; timeout_ms <= 20; timeout_ms += 20) {
        uint64_t version = 1 + timeout_ms;
        stop_receiver(f);
        push_past_the_stopped(f, version);
        for (int i = 0; i < 200; i++) {
            catch_up(f, version, 0);
        }
        assert_true(corral_weight_publisher_behind(f->publisher));
        kill(f->receiver, SIGCONT);
        catch_up_until_done(f, version, timeout_ms);
        check_has(f, f->here, version);
        check_has(f, f->there, version);
    }
}

static void a_receiver_stopped_in_the_middle_of_catching_up_gets_it_afterwards(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_ok(push(f, 1, NULL, &err));
    stop_receiver(f);
    push_past_the_stopped(f, 2);
    for (int round = 0; round < 5; round++) { /* wherever it is when it stops */
        kill(f->receiver, SIGCONT);
        catch_up(f, 2, 1);
        stop_receiver(f);
        catch_up(f, 2, 1);
    }
    catch_up(f, 2, DEADLINE_MS + 100); /* whatever was under way is given up and begun again */
    kill(f->receiver, SIGCONT);
    catch_up_until_done(f, 2, 5);
    check_has(f, f->there, 2);
}

static void waits_no_longer_than_it_is_told(void **state)
{
    struct fixture *f = *state;
    stop_receiver(f);
    push_past_the_stopped(f, 1);
    uint64_t before = corral_now_ns(&corral_clock_monotonic);
    catch_up(f, 1, 50);
    uint64_t took = corral_now_ns(&corral_clock_monotonic) - before;
    assert_true(took >= 50 * CORRAL_NS_PER_MS);
    assert_true(took < LONG_NS);
    kill(f->receiver, SIGCONT);
    catch_up_until_done(f, 1, 1000);
}

static void a_newer_push_takes_over_from_catching_up(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    for (uint64_t version = 1; version <= 9; version += 2) {
        stop_receiver(f);
        push_past_the_stopped(f, version);
        kill(f->receiver, SIGCONT);
        for (uint64_t i = 0; i < version; i++) {
            catch_up(f, version, 0);
        }
        check_ok(push(f, version + 1, NULL, &err));
        catch_up_until_done(f, version + 1, 5);
        check_has(f, f->there, version + 1);
    }
}

static void a_target_added_after_the_push_gets_it(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    corral_weight_publisher_remove(f->publisher, "there");
    check_ok(push(f, 1, NULL, &err));
    assert_false(corral_weight_publisher_behind(f->publisher));
    check_ok(corral_weight_publisher_add_node(f->publisher, "there", f->endpoint, &err));
    assert_true(corral_weight_publisher_behind(f->publisher));
    catch_up_until_done(f, 1, 5);
    check_has(f, f->there, 1);
}

static void refuses_to_catch_up_with_anything_but_the_last_push(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_publisher *p = f->publisher;
    assert_false(corral_weight_publisher_behind(p));
    check_status(corral_weight_publisher_catch_up(p, f->weights, BYTES, 0, 0, &err), CORRAL_INVALID);
    check_ok(push(f, 3, NULL, &err));
    check_status(corral_weight_publisher_catch_up(p, f->weights, BYTES, 2, 0, &err), CORRAL_INVALID);
    check_status(corral_weight_publisher_catch_up(p, f->weights, BYTES, 4, 0, &err), CORRAL_INVALID);
    check_status(corral_weight_publisher_catch_up(p, f->weights, BYTES - 8, 3, 0, &err), CORRAL_INVALID);
    catch_up(f, 3, 0);
}

static void a_version_nobody_got_is_caught_up_with(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_weight_publisher *p = make_publisher(f);
    check_ok(corral_weight_publisher_add_node(p, "there", f->endpoint, &err));
    corral_weight_publisher_destroy(f->publisher);
    f->publisher = p;
    stop_receiver(f);
    check_status(push(f, 1, NULL, &err), CORRAL_PEER);
    kill(f->receiver, SIGCONT);
    catch_up_until_done(f, 1, 5);
    check_has(f, f->there, 1);
    check_ok(push(f, 1, NULL, &err));
    check_ok(push(f, 2, NULL, &err));
}

static void a_restarted_publisher_may_push_the_same_version_again(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    struct corral_publish_stats stats;
    for (int i = 0; i < 3; i++) {
        check_ok(push(f, 5, &stats, &err));
        catch_up_until_done(f, 5, 5);
        check_has(f, f->here, 5);
        check_has(f, f->there, 5);
        new_publisher(f);
    }
    check_ok(push(f, 6, &stats, &err));
    catch_up_until_done(f, 6, 5);
    check_has(f, f->here, 6);
    check_has(f, f->there, 6);
}

static void other_bytes_under_the_same_version_are_refused(void **state)
{
    struct fixture *f = *state;
    struct corral_error err = {0};
    check_ok(push(f, 5, NULL, &err));
    catch_up_until_done(f, 5, 5);
    new_publisher(f);
    test_fill(f->weights, WORDS, 55);
    check_status(corral_weight_publisher_push(f->publisher, 5, f->weights, BYTES, NULL, &err),
                 CORRAL_INVALID);
    assert_non_null(strstr(err.text, "other bytes"));
    catch_up_until_done(f, 5, 5); /* refused is refused: it is not offered for ever */
    check_has(f, f->here, 5);
    check_has(f, f->there, 5);
    check_ok(push(f, 6, NULL, &err));
    catch_up_until_done(f, 6, 5);
    check_has(f, f->here, 6);
    check_has(f, f->there, 6);
}

int main(void)
{
    corral_log_configure(CORRAL_LOG_ERROR, false, 2, NULL); /* the drops are what is tested */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_receiver_stopped_during_the_only_push_gets_it_afterwards, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_receiver_stopped_in_the_middle_of_catching_up_gets_it_afterwards,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(waits_no_longer_than_it_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(a_newer_push_takes_over_from_catching_up, setup, teardown),
        cmocka_unit_test_setup_teardown(a_target_added_after_the_push_gets_it, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_to_catch_up_with_anything_but_the_last_push, setup, teardown),
        cmocka_unit_test_setup_teardown(a_version_nobody_got_is_caught_up_with, setup, teardown),
        cmocka_unit_test_setup_teardown(a_restarted_publisher_may_push_the_same_version_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(other_bytes_under_the_same_version_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
