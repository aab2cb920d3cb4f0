#include "transport/trajectory/local/local.h"
#include "transport/trajectory/ring/test_ring.h"

#include "base/file.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#define RUN 77
#define TOKEN "a-token"
#define PATIENCE_MS 60000

static char folder[64], path[CORRAL_LOCAL_PATH_MAX];
static uint64_t now; /* virtual */

static int set_up(void **state)
{
    (void)state;
    char endpoint[128];
    struct corral_error err;
    snprintf(folder, sizeof folder, "/tmp/corral-local-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/traj-0", folder);
    check_ok(corral_local_path(endpoint, path, &err));
    now = 1000;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static int descriptors(void)
{
    int count = 0;
    DIR *open = opendir("/proc/self/fd");
    assert_non_null(open);
    while (readdir(open) != NULL) {
        count++;
    }
    closedir(open);
    return count;
}

static struct corral_local_door *door_open(void)
{
    struct corral_local_door *d = NULL;
    struct corral_error err;
    check_ok(corral_local_door_open(&d, path, RUN, TOKEN, &err));
    return d;
}

static void readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
}

static void caller_close(struct corral_local_caller *c)
{
    close(c->link);
    for (int i = 0; i < 3; i++) {
        close(c->fd[i]);
    }
}

static void a_ring_is_handed_over_and_carries_records(void **state)
{
    (void)state;
    int before = descriptors(), link = -1, fd[3];
    struct corral_error err;
    struct corral_local_caller c;
    struct corral_ring *producer, *consumer;
    struct corral_ring_item item;
    uint64_t acked, received, id;
    struct corral_local_door *d = door_open();
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN);
    check_ok(corral_ring_create(&producer, CORRAL_RING_BYTES_MIN, false, NULL, &err));
    assert_int_equal(test_put(producer, 5, 100), CORRAL_OK);
    corral_ring_descriptors(producer, fd);
    struct corral_local_hello hello = {.run = RUN, .worker = 3, .epoch = 9, .first = 41};
    check_ok(corral_local_call(&link, path, &hello, TOKEN, fd, &err));
    check_status(corral_local_answer(link, &acked, &received, &err), CORRAL_AGAIN);
    readable(corral_local_door_fd(d));
    check_ok(corral_local_door_next(d, now, &c, &err));
    assert_memory_equal(&c.hello, &hello, sizeof hello);
    check_ok(corral_ring_attach(&consumer, CORRAL_RING_CONSUMER, c.fd, &err));
    check_ok(corral_local_welcome(c.link, 17, 18, &err));
    readable(link);
    check_ok(corral_local_answer(link, &acked, &received, &err));
    assert_true(acked == 17 && received == 18);
    check_ok(corral_ring_next(consumer, &item, &err));
    assert_true(test_record_whole(&item, &id, 100) && id == 5);
    assert_false(corral_local_gone(link));
    caller_close(&c);
    assert_true(corral_local_gone(link));
    close(link);
    corral_ring_close(producer);
    corral_ring_close(consumer);
    corral_local_door_close(d);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(descriptors(), before);
}

static void without_a_door_there_is_none(void **state)
{
    (void)state;
    struct corral_error err;
    int link = -1, fd[3] = {0, 0, 0};
    char out[CORRAL_LOCAL_PATH_MAX], endpoint[256];
    struct corral_local_hello hello = {.run = RUN};
    check_status(corral_local_call(&link, path, &hello, TOKEN, fd, &err), CORRAL_NOT_FOUND);
    check_status(corral_local_path("tcp://127.0.0.1:5000", out, &err), CORRAL_UNSUPPORTED);
    check_status(corral_local_path("ipc://@abstract", out, &err), CORRAL_UNSUPPORTED);
    memset(endpoint, 'x', sizeof endpoint);
    memcpy(endpoint, "ipc://", 6);
    endpoint[6 + CORRAL_LOCAL_PATH_MAX - 5] = '\0'; /* one too long with ".ring" */
    check_status(corral_local_path(endpoint, out, &err), CORRAL_UNSUPPORTED);
    endpoint[6 + CORRAL_LOCAL_PATH_MAX - 6] = '\0';
    check_ok(corral_local_path(endpoint, out, &err));
    assert_int_equal(link, -1);
}

static void a_trainer_that_was_killed_leaves_the_door_to_its_successor(void **state)
{
    (void)state;
    int status, ready[2], link = -1, fd[3] = {0, 0, 0};
    struct corral_error err;
    struct corral_local_hello hello = {.run = RUN};
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)door_open();
        if (write(ready[1], "x", 1) == 1) {
            pause();
        }
        _exit(1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    check_status(corral_local_call(&link, path, &hello, TOKEN, fd, &err), CORRAL_NOT_FOUND);
    struct corral_local_door *d = door_open();
    check_ok(corral_local_call(&link, path, &hello, TOKEN, fd, &err));
    corral_local_door_close(d);
    uint64_t acked, received;
    readable(link);
    check_status(corral_local_answer(link, &acked, &received, &err), CORRAL_PEER);
    close(link);
    close(ready[0]);
    close(ready[1]);
}

static void refused(struct corral_local_door *d, uint64_t run, const char *token, const char *why)
{
    struct corral_error err;
    struct corral_local_caller c;
    struct corral_local_hello hello = {.run = run};
    int link = -1, fd[3] = {0, 0, 0}, before = descriptors();
    uint64_t acked, received, strangers = corral_local_door_strangers(d);
    check_ok(corral_local_call(&link, path, &hello, token, fd, &err));
    check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN);
    readable(link);
    check_status(corral_local_answer(link, &acked, &received, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, why));
    assert_int_equal(corral_local_door_strangers(d), strangers + 1);
    close(link);
    assert_int_equal(descriptors(), before);
}

static void another_run_and_another_token_are_refused(void **state)
{
    (void)state;
    struct corral_local_door *d = door_open();
    refused(d, RUN + 1, TOKEN, "another run");
    refused(d, RUN, "b-token", "wrong token");
    refused(d, RUN, "", "wrong token");
    corral_local_door_close(d);
}

static int raw(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void raw_send(int fd, const void *data, size_t bytes, int fds)
{
    union {
        char bytes[CMSG_SPACE(12 * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec io = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (fds > 0) {
        m.msg_control = &control;
        m.msg_controllen = CMSG_SPACE((size_t)fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN((size_t)fds * sizeof(int)),
                              .cmsg_level = SOL_SOCKET,
                              .cmsg_type = SCM_RIGHTS};
        memset(CMSG_DATA(c), 0, (size_t)fds * sizeof(int)); /* standard input, many times */
    }
    assert_int_equal(sendmsg(fd, &m, 0), (ssize_t)bytes);
}

static void garbage_is_turned_away_and_leaks_nothing(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_local_caller c;
    struct corral_local_door *d = door_open();
    uint8_t hello[120] = {0x43, 0x52, 0x4c, 0x48, 1};
    hello[8] = RUN;
    memcpy(hello + 32, TOKEN, sizeof TOKEN);
    static const struct {
        size_t bytes;
        int fds;
    } cases[] = {{1, 0}, {112, 0}, {112, 2}, {112, 4}, {112, 12}, {111, 3}, {120, 3}, {1, 12}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        int before = descriptors(), fd = raw();
        raw_send(fd, hello, cases[i].bytes, cases[i].fds);
        check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN);
        assert_int_equal(corral_local_door_strangers(d), i + 1);
        assert_true(corral_local_gone(fd));
        close(fd);
        assert_int_equal(descriptors(), before);
    }
    int fd = raw();
    raw_send(fd, hello, 112, 3); /* and this is how it should be */
    check_ok(corral_local_door_next(d, now, &c, &err));
    caller_close(&c);
    close(fd);
    corral_local_door_close(d);
}

static void who_says_nothing_does_not_stand_in_the_way(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_local_caller c;
    struct corral_local_hello hello = {.run = RUN, .worker = 1};
    struct corral_local_door *d = door_open();
    int silent[16], link = -1, fd[3] = {0, 0, 0};
    for (int i = 0; i < 15; i++) {
        silent[i] = raw();
    }
    check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN);
    check_ok(corral_local_call(&link, path, &hello, TOKEN, fd, &err));
    check_ok(corral_local_door_next(d, now, &c, &err)); /* past fifteen of them */
    caller_close(&c);
    close(link);
    silent[15] = raw();
    check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN);
    check_ok(corral_local_call(&link, path, &hello, TOKEN, fd, &err));
    check_status(corral_local_door_next(d, now, &c, &err), CORRAL_AGAIN); /* full */
    struct pollfd door = {.fd = corral_local_door_fd(d), .events = POLLIN};
    assert_int_equal(poll(&door, 1, 0), 0);
    now += UINT64_C(6000000000);
    (void)corral_local_door_next(d, now, &c, &err); /* their time is over */
    check_ok(corral_local_door_next(d, now, &c, &err));
    caller_close(&c);
    close(link);
    for (int i = 0; i < 16; i++) {
        assert_true(corral_local_gone(silent[i]));
        close(silent[i]);
    }
    corral_local_door_close(d);
}

static void an_answer_that_is_none_is_an_error(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_local_caller c;
    struct corral_local_hello hello = {.run = RUN};
    struct corral_local_door *d = door_open();
    uint64_t acked, received;
    for (int i = 0; i < 3; i++) {
        int link = -1, fd[3] = {0, 0, 0};
        check_ok(corral_local_call(&link, path, &hello, TOKEN, fd, &err));
        check_ok(corral_local_door_next(d, now, &c, &err));
        int before = descriptors();
        if (i == 0) {
            raw_send(c.link, "hello", 5, 2);
        } else if (i == 1) {
            check_ok(corral_local_welcome(c.link, 9, 8, &err)); /* more acknowledged than received */
        } else {
            uint8_t longer[400] = {0x43, 0x52, 0x4c, 0x41};
            raw_send(c.link, longer, sizeof longer, 0);
        }
        check_status(corral_local_answer(link, &acked, &received, &err), CORRAL_PROTOCOL);
        assert_int_equal(descriptors(), before);
        caller_close(&c);
        check_status(corral_local_answer(link, &acked, &received, &err), CORRAL_PEER);
        close(link);
    }
    corral_local_door_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_ring_is_handed_over_and_carries_records, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_a_door_there_is_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_trainer_that_was_killed_leaves_the_door_to_its_successor, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(another_run_and_another_token_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(garbage_is_turned_away_and_leaks_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_says_nothing_does_not_stand_in_the_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_answer_that_is_none_is_an_error, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
