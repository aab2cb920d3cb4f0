/* What others do to a chain while it is written, or to its file while nobody does: other processes, children of the writer, damage. */
#include "base/file.h"
#include "quota/proof/internal.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RECORDS 5

static char top[64], folder[80], path[96], other[96];
static struct corral_error err;

static int setup(void **state)
{
    (void)state;
    strcpy(top, "/tmp/corral-tamper.XXXXXX");
    if (!mkdtemp(top)) {
        return -1;
    }
    snprintf(folder, sizeof folder, "%s/f", top);
    snprintf(path, sizeof path, "%s/chain", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    return mkdir(folder, 0755);
}

static int teardown(void **state)
{
    (void)state;
    return corral_remove_tree(top, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_chain *open_chain(bool mapped)
{
    struct corral_chain *c = NULL;
    check_ok(mapped ? corral_chain_open(path, &c, &err) : corral_chain_open_unmapped(path, &c, &err));
    check_ok(corral_chain_reserve(c, &err));
    return c;
}

static enum corral_status add(struct corral_chain *c)
{
    return corral_chain_append(c, "{\"type\":\"t\",\"i\":1}", &err);
}

static void write_chain(void)
{
    struct corral_chain *c = open_chain(true);
    for (int i = 0; i < RECORDS; i++) {
        check_ok(add(c));
    }
    corral_chain_close(c);
}

static uint64_t records(void)
{
    struct corral_chain_head head;
    uint64_t torn = 1;
    check_ok(corral_chain_read(path, NULL, NULL, &head, &torn, &err));
    assert_int_equal(torn, 0);
    return head.count;
}

static void make_other(void)
{
    FILE *f = fopen(other, "we");
    assert_non_null(f);
    fclose(f);
}

/* ---- the name ---- */

static void move_away(void)
{
    assert_int_equal(rename(path, other), 0);
}

static void rename_over(void)
{
    make_other();
    assert_int_equal(rename(other, path), 0);
}

static void rename_over_what_has_another_name(void)
{
    char third[100];
    snprintf(third, sizeof third, "%s/third", folder);
    assert_int_equal(link(path, third), 0);
    rename_over();
}

static void unlink_what_has_another_name(void)
{
    assert_int_equal(link(path, other), 0);
    assert_int_equal(unlink(path), 0);
}

static void a_chain_that_its_name_does_not_lead_to_is_an_error(void **state)
{
    (void)state;
    static void (*const ways[])(void) = {move_away, rename_over, rename_over_what_has_another_name,
                                         unlink_what_has_another_name};
    for (size_t i = 0; i < 2 * CORRAL_COUNT_OF(ways); i++) {
        struct corral_chain *c = open_chain(i & 1);
        check_ok(add(c));
        ways[i / 2]();
        assert_int_equal(add(c), CORRAL_STATE);
        assert_int_equal(add(c), CORRAL_STATE); /* and stays one */
        corral_chain_close(c);
        check_ok(corral_remove_tree(folder, &err));
        assert_int_equal(mkdir(folder, 0755), 0);
    }
}

/* Whoever moves a run's folder moves all that is in it. */
static void a_folder_may_be_moved(void **state)
{
    (void)state;
    for (int mapped = 0; mapped < 2; mapped++) {
        char elsewhere[80];
        snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", top);
        struct corral_chain *c = open_chain(mapped);
        check_ok(add(c));
        assert_int_equal(rename(folder, elsewhere), 0);
        snprintf(other, sizeof other, "%s/chain", elsewhere);
        assert_int_equal(chmod(other, 0640), 0);
        check_ok(add(c));
        corral_chain_close(c);
        assert_int_equal(rename(elsewhere, folder), 0);
        assert_int_equal(records(), 2 * (mapped + 1));
    }
}

/* ---- the room ---- */

static bool is_mapped(const struct corral_chain *c)
{
    return c->window != NULL;
}

/* The copy into a hole would be a SIGBUS once the disk is full. */
static void a_chain_that_others_take_blocks_from_is_an_error(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        (void)unlink(path);
        struct corral_chain *c = open_chain(true);
        if (!is_mapped(c)) {
            corral_chain_close(c);
            skip(); /* this file system promises no room */
        }
        for (int i = 0; i < 100; i++) {
            check_ok(add(c));
        }
        int fd = open(path, O_RDWR);
        off_t bytes = lseek(fd, 0, SEEK_END);
        if (how == 0) {
            assert_int_equal(ftruncate(fd, 10), 0);
            assert_int_equal(ftruncate(fd, bytes), 0);
        } else {
            off_t at = how == 1 ? 4096 : bytes / 4096 * 4096 - 8 * 4096;
            assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 2 * 4096), 0);
        }
        close(fd);
        assert_int_equal(add(c), CORRAL_STATE);
        assert_non_null(strstr(err.text, "blocks"));
        corral_chain_close(c);
    }
}

/* ---- how the kernel tells ---- */

/* Descriptors up to here: none is left for the watch. */
static void leave_descriptors(int count, struct rlimit *before)
{
    int lowest = open("/dev/null", O_RDONLY);
    assert_true(lowest >= 0);
    close(lowest);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, before), 0);
    struct rlimit few = {(rlim_t)(lowest + count), before->rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
}

static void without_a_watch_every_record_has_a_look(void **state)
{
    (void)state;
    for (int how = 0; how < 2; how++) {
        struct rlimit limit;
        struct corral_chain *c = NULL;
        (void)unlink(path);
        write_chain();
        leave_descriptors(2, &limit); /* the folder and the file */
        enum corral_status status = corral_chain_open(path, &c, &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        check_ok(status);
        assert_int_equal(c->watch_fd, -1);
        check_ok(corral_chain_reserve(c, &err));
        check_ok(add(c));
        assert_int_equal(how ? truncate(path, 10) : unlink(path), 0);
        assert_int_equal(add(c), CORRAL_STATE);
        corral_chain_close(c);
    }
}

static long max_queued(void)
{
    char text[32] = "";
    FILE *f = fopen("/proc/sys/fs/inotify/max_queued_events", "re");
    if (f) {
        (void)!fgets(text, sizeof text, f);
        fclose(f);
    }
    return atol(text);
}

/* More than the kernel keeps: the rest it drops, and the one event that counts is among it. */
static void a_queue_that_overflows_hides_nothing(void **state)
{
    (void)state;
    long most = max_queued();
    if (most <= 0 || most > 100000) {
        skip();
    }
    struct corral_chain *c = open_chain(true);
    uint64_t bytes = is_mapped(c) ? c->room_to : c->size;
    for (long i = 0; i < most / 2 + 10; i++) { /* equal ones in a row would be one */
        assert_int_equal(chmod(path, 0644), 0);
        assert_int_equal(truncate(path, (off_t)bytes), 0);
    }
    check_ok(add(c));
    for (long i = 0; i < most / 2 + 10; i++) {
        assert_int_equal(chmod(path, 0644), 0);
        assert_int_equal(truncate(path, (off_t)bytes), 0);
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(add(c), CORRAL_STATE);
    corral_chain_close(c);
}

/* A file system that goes away takes the watch with it. */
static void a_watch_that_ends_is_not_waited_for(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain(true);
    if (c->watch_fd < 0) {
        corral_chain_close(c);
        skip();
    }
    check_ok(add(c));
    for (int i = 1; i < 10; i++) { /* whatever its number is */
        (void)inotify_rm_watch(c->watch_fd, i);
    }
    check_ok(add(c));
    assert_int_equal(c->watch_fd, -1);
    assert_int_equal(truncate(path, 10), 0);
    assert_int_equal(add(c), CORRAL_STATE);
    corral_chain_close(c);
}

/* ---- children ---- */

static int exit_code(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* As a data loader's worker does that cleans up when it ends. */
static void a_child_neither_writes_nor_ends_the_chain(void **state)
{
    (void)state;
    for (int mapped = 0; mapped < 2; mapped++) {
        (void)unlink(path);
        struct corral_chain *c = open_chain(mapped);
        check_ok(add(c));
        pid_t child = fork();
        if (child == 0) {
            bool refused = add(c) == CORRAL_STATE && corral_chain_sync(c, &err) == CORRAL_STATE &&
                           corral_chain_reserve(c, &err) == CORRAL_STATE;
            corral_chain_close(c);
            _exit(refused ? 0 : 1);
        }
        assert_int_equal(exit_code(child), 0);
        check_ok(add(c));
        check_ok(corral_chain_sync(c, &err));
        corral_chain_close(c);
        assert_int_equal(records(), 2);
    }
}

static void a_child_has_nothing_of_the_watch(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain(true);
    check_ok(add(c));
    assert_int_equal(truncate(path, 10), 0); /* the event lies in the queue */
    pid_t child = fork();
    if (child == 0) {
        (void)add(c);
        _exit(0);
    }
    assert_int_equal(exit_code(child), 0);
    assert_int_equal(add(c), CORRAL_STATE);
    corral_chain_close(c);
}

/* A killed trainer's next life must not wait for the children that the first left behind. */
static void a_child_that_is_left_does_not_hold_the_lock(void **state)
{
    (void)state;
    int tell[2], stay[2];
    char byte;
    assert_int_equal(pipe(tell) | pipe(stay), 0);
    pid_t trainer = fork();
    if (trainer == 0) {
        struct corral_chain *c = open_chain(true);
        check_ok(add(c));
        if (fork() == 0) {
            close(stay[1]);
            (void)!write(tell[1], "", 1);
            (void)!read(stay[0], &byte, 1);
            _exit(0);
        }
        close(stay[1]);
        for (;;) {
            pause();
        }
    }
    close(tell[1]);
    assert_int_equal(read(tell[0], &byte, 1), 1);
    kill(trainer, SIGKILL);
    assert_int_equal(exit_code(trainer), -1);
    struct corral_chain *c = open_chain(true);
    check_ok(add(c));
    corral_chain_close(c);
    assert_int_equal(records(), 2);
    close(stay[1]);
    assert_int_equal(read(tell[0], &byte, 1), 0); /* it has ended */
    close(stay[0]);
    close(tell[0]);
}

/* ---- damage ---- */

static uint64_t file_bytes(void)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

/* A space that lost its only bit is a zero: what is behind it was durable. */
static void one_flipped_bit_never_costs_another_record(void **state)
{
    (void)state;
    write_chain();
    char *text;
    size_t bytes;
    check_ok(corral_file_read(path, 1 << 20, &text, &bytes, &err));
    size_t last = bytes - 1;
    while (text[last - 1] != '\n') {
        last--;
    }
    for (size_t bit = 0; bit < last * 8; bit++) {
        struct corral_chain *c = NULL;
        char flipped = (char)(text[bit / 8] ^ (1 << bit % 8));
        int fd = open(path, O_WRONLY);
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
        assert_int_equal(corral_chain_open(path, &c, &err), CORRAL_INVALID);
        assert_int_equal(file_bytes(), bytes);
        assert_int_equal(pwrite(fd, text + bit / 8, 1, (off_t)(bit / 8)), 1);
        close(fd);
    }
    assert_int_equal(records(), RECORDS);
    free(text);
}

/* What the copy of a line has come to when the writer is killed in it: its parts may be there in any order, but its newline. */
static void a_kill_inside_the_copy_costs_that_line_alone(void **state)
{
    (void)state;
    write_chain();
    char *text;
    size_t bytes;
    check_ok(corral_file_read(path, 1 << 20, &text, &bytes, &err));
    size_t last = bytes - 1;
    while (text[last - 1] != '\n') {
        last--;
    }
    size_t line = bytes - last - 1;
    for (size_t from = 0; from < line; from += 17) {
        for (size_t to = from + 1; to <= line; to += 29) {
            for (int inside = 0; inside < 2; inside++) { /* only this part is there, or all but it */
                char left[1024] = {0};
                memcpy(left, text + last, line);
                if (inside) {
                    memset(left + from, 0, to - from);
                } else {
                    memset(left, 0, from);
                    memset(left + to, 0, line - to);
                }
                int fd = open(path, O_RDWR | O_TRUNC);
                assert_int_equal(write(fd, text, last), last);
                assert_int_equal(write(fd, left, sizeof left), sizeof left);
                close(fd);
                bool nothing = left[0] == 0 && memcmp(left, left + 1, sizeof left - 1) == 0;
                struct corral_chain *c = open_chain(true);
                corral_chain_close(c);
                assert_int_equal(records(), nothing ? RECORDS - 1 : RECORDS); /* and "recovered" */
            }
        }
    }
    free(text);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_chain_that_its_name_does_not_lead_to_is_an_error),
        T(a_folder_may_be_moved),
        T(a_chain_that_others_take_blocks_from_is_an_error),
        T(without_a_watch_every_record_has_a_look),
        T(a_queue_that_overflows_hides_nothing),
        T(a_watch_that_ends_is_not_waited_for),
        T(a_child_neither_writes_nor_ends_the_chain),
        T(a_child_has_nothing_of_the_watch),
        T(a_child_that_is_left_does_not_hold_the_lock),
        T(a_kill_inside_the_copy_costs_that_line_alone),
        T(one_flipped_bit_never_costs_another_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
