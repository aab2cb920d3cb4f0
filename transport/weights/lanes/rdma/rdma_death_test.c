/* Two processes, one of which is killed by its own adapter after so many bytes. */
#include "transport/weights/lanes/rdma/test_rdma.h"
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_NS (20 * CORRAL_NS_PER_S)

static struct fake_knobs fake;
static const struct corral_lane_options plain = {.open_timeout_ns = CORRAL_NS_PER_S};
static const struct corral_lane_ops *const ops = &corral_lane_rdma_ops;

static bool tell(int fd, const struct corral_lane_blob *blob)
{
    return send(fd, blob, sizeof(*blob), MSG_NOSIGNAL) == (ssize_t)sizeof(*blob);
}

static bool hear(int fd, struct corral_lane_blob *blob)
{
    return recv(fd, blob, sizeof(*blob), 0) == (ssize_t)sizeof(*blob);
}

static bool goes_on(uint64_t deadline)
{
    return corral_now_ns(&corral_clock_monotonic) < deadline;
}

/* Both return what the lane said; CORRAL_PEER also when the other process is gone before the lane is open. */
static enum corral_status run_sender(int fd, struct bed *b, struct corral_error *err)
{
    struct corral_lane_blob offer, answer, place;
    struct corral_lane *tx = NULL;
    uint64_t left = 0, deadline = corral_now_ns(&corral_clock_monotonic) + LIMIT_NS;
    if (!hear(fd, &offer)) {
        return CORRAL_PEER;
    }
    CORRAL_TRY(ops->tx_open(&tx, b->link, &plain, &offer, &answer, err));
    enum corral_status status = CORRAL_PEER;
    if (tell(fd, &answer) && hear(fd, &place)) {
        status = ops->tx_begin(tx, 1, &b->source_shard, &place, err);
    }
    for (uint32_t next = 0; status == CORRAL_OK && left < b->link->buckets;) {
        while (next < b->link->buckets && (status = ops->tx_send(tx, next, err)) == CORRAL_OK) {
            next++;
        }
        if (status == CORRAL_OK || status == CORRAL_AGAIN) {
            status = ops->tx_progress(tx, CORRAL_NS_PER_S, &left, err);
        }
        if (status == CORRAL_OK && !goes_on(deadline)) {
            status = corral_fail(err, CORRAL_TIMEOUT, "the sender stands still");
        }
    }
    ops->tx_close(tx);
    return status;
}

/* A sender that dies is noticed by its closed socket: RDMA does not tell. */
static enum corral_status run_receiver(int fd, struct bed *b, struct corral_error *err)
{
    struct corral_lane_blob offer, answer, place;
    struct corral_lane *rx = NULL;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + LIMIT_NS;
    int32_t tainted = -1;
    CORRAL_TRY(ops->rx_open(&rx, b->link, &plain, &offer, err));
    enum corral_status status = CORRAL_PEER;
    if (tell(fd, &offer) && hear(fd, &answer) && (status = ops->rx_connect(rx, &answer, err)) == CORRAL_OK &&
        (status = ops->rx_begin(rx, 1, &b->destination_shard, &place, err)) == CORRAL_OK) {
        status = tell(fd, &place) ? CORRAL_OK : CORRAL_PEER;
    }
    for (uint32_t taken = 0; status == CORRAL_OK && taken < b->link->buckets;) {
        uint32_t bucket, count = 0;
        struct pollfd fds[2] = {{.fd = rx->fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        struct corral_digest sent, got;
        status = ops->rx_progress(rx, 0, &bucket, 1, &count, err);
        if (status == CORRAL_OK && count > 0) {
            b->source_shard.ops->digest(&b->source_shard, b->link, CORRAL_LINK_SOURCE, bucket, &sent, err);
            b->destination_shard.ops->digest(&b->destination_shard, b->link, CORRAL_LINK_DESTINATION, bucket,
                                             &got, err);
            /* Reported is arrived, also when the sender dies right now. */
            status = corral_digest_equal(sent, got) ? ops->rx_taken(rx, bucket, err) : CORRAL_INTERNAL;
            taken++;
        } else if (status == CORRAL_OK && poll(fds, 2, 5000) == 0) {
            status = corral_fail(err, goes_on(deadline) ? CORRAL_INTERNAL : CORRAL_TIMEOUT,
                                 "the receiver stands still");
        } else if (status == CORRAL_OK && (fds[1].revents & POLLHUP) != 0 && (fds[0].revents & POLLIN) == 0) {
            status = CORRAL_PEER;
        }
    }
    ops->rx_close(rx, &tainted);
    return tainted == 0 ? status : CORRAL_INTERNAL;
}

typedef enum corral_status role_fn(int fd, struct bed *b, struct corral_error *err);

/* Starts the other role in a child with faults of its own. Nothing of the adapter is open then. */
static pid_t start_child(role_fn *role, struct bed *b, const char *faults, int *fd)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(fake.live(), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct corral_error err = {.text = ""};
        close(fds[0]);
        if (fake.faults(faults) != 0) {
            _exit(99);
        }
        enum corral_status status = role(fds[1], b, &err);
        if (status != CORRAL_OK) {
            fprintf(stderr, "child: %s\n", err.text);
        }
        _exit((int)status);
    }
    close(fds[1]);
    *fd = fds[0];
    return pid;
}

static void round_of(role_fn *mine, role_fn *theirs, const char *fault, bool dies)
{
    struct corral_error err = {.text = ""};
    struct bed b;
    int fd, how;
    char faults[128];
    bed_make(&b, 256u << 10);
    snprintf(faults, sizeof(faults), "%s%sack_us=5000", fault, fault[0] != '\0' ? "," : "");
    assert_int_equal(fake.faults("ack_us=5000"), 0);
    pid_t pid = start_child(theirs, &b, faults, &fd);
    enum corral_status status = mine(fd, &b, &err);
    close(fd);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    if (dies) {
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
        check_status(status, CORRAL_PEER);
    } else {
        check_ok(status);
        assert_true(WIFEXITED(how));
        assert_int_equal(WEXITSTATUS(how), 0);
        assert_true(mine != run_receiver || bed_arrived(&b));
    }
    assert_int_equal(fake.live(), 0);
    bed_drop(&b);
}

static void moves_between_processes(void **state)
{
    (void)state;
    round_of(run_receiver, run_sender, "", false);
    round_of(run_sender, run_receiver, "", false);
}

static void outlives_a_sender_killed_at_any_byte(void **state)
{
    (void)state;
    char fault[64];
    for (unsigned at = 1; at < 4200000; at += 523291) {
        snprintf(fault, sizeof(fault), "die_sent=%u", at);
        round_of(run_receiver, run_sender, fault, true);
        round_of(run_receiver, run_sender, "", false);
    }
}

static void outlives_a_receiver_killed_at_any_byte(void **state)
{
    (void)state;
    char fault[64];
    for (unsigned at = 1; at < 4200000; at += 523291) {
        snprintf(fault, sizeof(fault), "die_received=%u", at);
        round_of(run_sender, run_receiver, fault, true);
        round_of(run_sender, run_receiver, "", false);
    }
}

int main(void)
{
    if (!fake_knobs_find(&fake)) {
        puts("the fake libibverbs is not in LD_LIBRARY_PATH (tests/fakeverbs)");
        return CORRAL_TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moves_between_processes),
        cmocka_unit_test(outlives_a_sender_killed_at_any_byte),
        cmocka_unit_test(outlives_a_receiver_killed_at_any_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
