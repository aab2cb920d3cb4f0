/* What a lane does when the other process dies, stops or goes away, and what it leaves behind. The other process is forked before anything is opened. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/file.h"
#include "transport/weights/lanes/conformance.h"
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOOKS 40 /* of 50 ms: how long silence is waited on before it is taken for one */

/* More buckets than any lane has begun at once: the child that sends them in turns never has one twice on its way. */
static const struct rig_shape big = {64, 300001, 100000, 200001, 256 << 10};

/* ---- the blobs' way between the two processes ---- */

static void put(int fd, const struct corral_lane_blob *blob)
{
    struct corral_error err;
    check_ok(corral_write_all(fd, blob, sizeof *blob, "a blob", &err));
}

static bool get(int fd, struct corral_lane_blob *blob)
{
    return recv(fd, blob, sizeof *blob, MSG_WAITALL) == (ssize_t)sizeof *blob;
}

static void child_must(bool ok)
{
    if (!ok) {
        _exit(3);
    }
}

/* ---- a child that sends for ever: bucket after bucket, again and again, until its lane breaks ---- */

static void child_sends(struct rig *r, int fd)
{
    const struct corral_lane_ops *ops = conformance.ops;
    struct corral_lane_blob offer, answer, place;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    child_must(get(fd, &offer));
    child_must(ops->tx_open(&r->tx, r->link, &conformance.options, &offer, &answer, NULL) == CORRAL_OK);
    put(fd, &answer);
    child_must(get(fd, &place));
    child_must(ops->tx_begin(r->tx, 1, &r->source_shard, &place, NULL) == CORRAL_OK);
    enum corral_status status = CORRAL_OK;
    for (uint64_t n = 0, left; status == CORRAL_OK || status == CORRAL_AGAIN; n += status == CORRAL_OK) {
        status = ops->tx_send(r->tx, (uint32_t)(n % r->link->buckets), NULL);
        if (status == CORRAL_AGAIN && ops->tx_progress(r->tx, CORRAL_NS_PER_MS, &left, NULL) != CORRAL_OK) {
            break;
        }
    }
    ops->tx_close(r->tx);
    _exit(0);
}

struct sending {
    struct rig r;
    pid_t child;
    int fd;
    uint8_t arrived[64];
};

static void start_sender(struct sending *s, enum rig_memory to)
{
    int pair[2];
    struct corral_error err;
    struct corral_lane_blob offer, answer, place;
    memset(s, 0, sizeof *s);
    rig_make(&s->r, big, RIG_HOST, to);
    assert_true(s->r.link->buckets <= sizeof s->arrived);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    s->child = fork();
    assert_true(s->child >= 0);
    if (s->child == 0) {
        close(pair[0]);
        child_sends(&s->r, pair[1]);
    }
    close(pair[1]);
    s->fd = pair[0];
    check_ok(conformance.ops->rx_open(&s->r.rx, s->r.link, &conformance.options, &offer, &err));
    put(s->fd, &offer);
    assert_true(get(s->fd, &answer));
    check_ok(conformance.ops->rx_connect(s->r.rx, &answer, &err));
    check_ok(conformance.ops->rx_begin(s->r.rx, 1, &s->r.destination_shard, &place, &err));
    put(s->fd, &place);
}

static enum corral_status look(struct sending *s, uint64_t timeout_ns, uint32_t *count)
{
    struct corral_error err;
    uint32_t bucket[4];
    *count = 0;
    enum corral_status status = conformance.ops->rx_progress(s->r.rx, timeout_ns, bucket, 4, count, &err);
    for (uint32_t i = 0; status == CORRAL_OK && i < *count; i++) {
        s->arrived[bucket[i]] = 1;
        check_ok(conformance.ops->rx_taken(s->r.rx, bucket[i], &err));
    }
    return status;
}

static void wait_for_all(struct sending *s)
{
    struct patience patience = patience_start();
    while (memchr(s->arrived, 0, s->r.link->buckets) != NULL) {
        uint32_t count;
        assert_int_equal(look(s, 100 * CORRAL_NS_PER_MS, &count), CORRAL_OK);
        patience_check(&patience, "the child's buckets");
    }
}

static void finish_sender(struct sending *s)
{
    close(s->fd);
    rig_drop(&s->r);
}

static void reap(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0) {
        assert_int_equal(errno, EINTR);
    }
}

static void between_two_processes(void **state)
{
    (void)state;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct sending s;
        struct corral_error err;
        int32_t tainted;
        start_sender(&s, (enum rig_memory)to);
        wait_for_all(&s);
        check_ok(conformance.ops->rx_end(s.r.rx, false, &err));
        conformance.ops->rx_close(s.r.rx, &tainted);
        s.r.rx = NULL;
        reap(s.child); /* its lane broke, so it has ended */
        rig_check(&s.r);
        assert_true(tainted == 0 || tainted == s.child);
        finish_sender(&s);
    }
}

static void a_sender_that_is_killed_is_noticed(void **state)
{
    (void)state;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct sending s;
        uint32_t count, silent = 0;
        int32_t tainted = -1;
        start_sender(&s, (enum rig_memory)to);
        wait_for_all(&s);
        kill(s.child, SIGKILL);
        reap(s.child);
        struct patience patience = patience_start();
        while (silent < LOOKS && look(&s, 50 * CORRAL_NS_PER_MS, &count) == CORRAL_OK) {
            silent =
                count == 0 ? silent + 1 : 0; /* no progress is an answer too: the caller has a deadline */
            patience_check(&patience, "the end of a dead sender's buckets");
        }
        conformance.ops->rx_close(s.r.rx, &tainted);
        assert_int_equal(tainted, 0); /* the dead write no more */
        s.r.rx = NULL;
        rig_check(&s.r);
        finish_sender(&s);
    }
}

/* After rx_close, memory is safe, or the pid says that it is not: a sender that is stopped in the middle and goes on later must not change memory that was called safe. */
static void a_stopped_sender_cannot_write_afterwards(void **state)
{
    (void)state;
    for (int round = 0; round < 12; round++) {
        struct sending s;
        int status;
        int32_t tainted = -1;
        start_sender(&s, (enum rig_memory)(round % 3));
        wait_for_all(&s);
        kill(s.child, SIGSTOP);
        assert_int_equal(waitpid(s.child, &status, WUNTRACED), s.child);
        assert_true(WIFSTOPPED(status));
        conformance.ops->rx_close(s.r.rx, &tainted);
        s.r.rx = NULL;
        assert_true(tainted == 0 || tainted == s.child);
        memset(s.r.destination, 0x11, s.r.destination_bytes);
        memset(s.r.expected, 0x11, s.r.destination_bytes);
        if (tainted != 0) {
            kill(s.child, SIGKILL);
        }
        kill(s.child, SIGCONT);
        reap(s.child);
        if (tainted == 0) {
            rig_check(&s.r);
        }
        finish_sender(&s);
    }
}

/* ---- a child that receives ---- */

static void child_receives(struct rig *r, int fd)
{
    const struct corral_lane_ops *ops = conformance.ops;
    struct corral_lane_blob offer, answer, place;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    child_must(ops->rx_open(&r->rx, r->link, &conformance.options, &offer, NULL) == CORRAL_OK);
    put(fd, &offer);
    child_must(get(fd, &answer));
    child_must(ops->rx_connect(r->rx, &answer, NULL) == CORRAL_OK);
    child_must(ops->rx_begin(r->rx, 1, &r->destination_shard, &place, NULL) == CORRAL_OK);
    put(fd, &place);
    for (;;) {
        uint32_t bucket[4], count;
        if (ops->rx_progress(r->rx, CORRAL_NS_PER_S, bucket, 4, &count, NULL) != CORRAL_OK) {
            _exit(0);
        }
    }
}

static void a_receiver_that_is_killed_is_noticed(void **state)
{
    (void)state;
    const struct corral_lane_ops *ops = conformance.ops;
    for (int to = RIG_HOST; to <= RIG_OPAQUE; to++) {
        struct rig r;
        int pair[2];
        struct corral_error err;
        struct corral_lane_blob offer, answer, place;
        rig_make(&r, big, RIG_HOST, (enum rig_memory)to);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            close(pair[0]);
            child_receives(&r, pair[1]);
        }
        close(pair[1]);
        assert_true(get(pair[0], &offer));
        check_ok(ops->tx_open(&r.tx, r.link, &conformance.options, &offer, &answer, &err));
        put(pair[0], &answer);
        assert_true(get(pair[0], &place));
        check_ok(ops->tx_begin(r.tx, 1, &r.source_shard, &place, &err));
        struct patience patience = patience_start();
        enum corral_status status = CORRAL_OK;
        uint64_t sent = 0, left = 0, before = 0;
        for (uint32_t silent = 0; silent < LOOKS && (status == CORRAL_OK || status == CORRAL_AGAIN);) {
            status = ops->tx_send(r.tx, (uint32_t)(sent % r.link->buckets), &err);
            bool full = status == CORRAL_AGAIN;
            sent += status == CORRAL_OK;
            if (full || status == CORRAL_OK) { /* a lane may be so fast that it is never full */
                status = ops->tx_progress(r.tx, full ? 50 * CORRAL_NS_PER_MS : 0, &left, &err);
                silent = full && left == before ? silent + 1 : 0;
                before = left;
            }
            if (child > 0 && left > 3) {
                kill(child, SIGKILL);
                reap(child);
                child = 0;
            }
            patience_check(&patience, "the end of a dead receiver's lane");
        }
        assert_int_equal(child, 0);
        (void)ops->tx_end(r.tx, false, &err);
        ops->tx_close(r.tx); /* does not hang */
        r.tx = NULL;
        close(pair[0]);
        rig_drop(&r);
    }
}

/* ---- what is left behind ---- */

static uint32_t entries(const char *path)
{
    DIR *dir = opendir(path);
    assert_non_null(dir);
    uint32_t n = 0;
    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

/* Of the lane's shared memory, which a sanitizer does not count. */
static uint32_t mappings(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    uint32_t n = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        n += strstr(line, "/memfd:") != NULL;
    }
    fclose(f);
    return n;
}

static void leaves_nothing_behind(void **state)
{
    (void)state;
    uint32_t fds = 0, tasks = 0, maps = 0;
    for (int round = 0; round < 12; round++) {
        struct rig r;
        uint32_t one = 1;
        rig_make(&r, (struct rig_shape){100, 5000, 1000, 2500, 64 << 10}, RIG_HOST,
                 (enum rig_memory)(round % 3));
        rig_open(&r, &conformance.options);
        rig_push(&r, 1);
        rig_begin(&r, 2);
        rig_move(&r, &one, 1);
        if (round % 2 == 0) {
            rig_end(&r, false);
        }
        rig_drop(&r);     /* in the middle of a push otherwise */
        if (round == 5) { /* what libraries keep for ever is there by now */
            fds = entries("/proc/self/fd");
            tasks = entries("/proc/self/task");
            maps = mappings();
        }
    }
    assert_int_equal(entries("/proc/self/fd"), fds);
    assert_int_equal(mappings(), maps);
    struct patience patience = patience_start();
    while (entries("/proc/self/task") > tasks) { /* a joined thread's entry goes a moment later */
        patience_check(&patience, "threads to end");
    }
}

static void opening_fails_when_nobody_answers(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_lane_blob offer, answer;
    struct corral_lane_options options = conformance.options;
    struct rig r;
    options.open_timeout_ns = 300 * CORRAL_NS_PER_MS;
    rig_make(&r, big, RIG_HOST, RIG_HOST);
    check_ok(conformance.ops->rx_open(&r.rx, r.link, &options, &offer, &err));
    conformance.ops->rx_close(r.rx, NULL);
    r.rx = NULL;
    /* A receiver that has gone: found out when opening, or at the first push. */
    if (conformance.ops->tx_open(&r.tx, r.link, &options, &offer, &answer, &err) == CORRAL_OK) {
        struct corral_lane_blob place = {0};
        assert_int_not_equal(conformance.ops->tx_begin(r.tx, 1, &r.source_shard, &place, &err), CORRAL_OK);
    }
    rig_drop(&r);
}

const struct CMUnitTest conformance_deaths[] = {
    cmocka_unit_test(between_two_processes),
    cmocka_unit_test(a_sender_that_is_killed_is_noticed),
    cmocka_unit_test(a_stopped_sender_cannot_write_afterwards),
    cmocka_unit_test(a_receiver_that_is_killed_is_noticed),
    cmocka_unit_test(leaves_nothing_behind),
    cmocka_unit_test(opening_fails_when_nobody_answers),
};
const size_t conformance_deaths_count = CORRAL_COUNT_OF(conformance_deaths);
