#include "base/file.h"
#include "quota/proof/internal.h"
#include "quota/proof/record.h"
#include "tests/check.h"
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RECORDS 5
#define FILE_BYTES_MAX (1u << 20)

static char folder[64], path[96];
static struct corral_error err;

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-chain.XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/chain", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_chain *open_chain(void)
{
    struct corral_chain *c = NULL;
    assert_int_equal(corral_chain_open(path, &c, &err), CORRAL_OK);
    return c;
}

static void append(struct corral_chain *c, int i)
{
    char body[64];
    snprintf(body, sizeof body, "{\"type\":\"t\",\"i\":%d}", i);
    assert_int_equal(corral_chain_append(c, body, &err), CORRAL_OK);
}

static struct corral_chain_head write_chain(int records)
{
    struct corral_chain *c = open_chain();
    struct corral_chain_head head;
    for (int i = 0; i < records; i++) {
        append(c, i);
    }
    corral_chain_head(c, &head);
    corral_chain_close(c);
    return head;
}

static char *content(size_t *bytes)
{
    static char *text;
    assert_int_equal(corral_file_read(path, FILE_BYTES_MAX, &text, bytes, &err), CORRAL_OK);
    return text;
}

static void put(const char *text, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0 && write(fd, text, bytes) == (ssize_t)bytes);
    close(fd);
}

/* What a reader who knows the head would find. */
static bool found(const struct corral_chain_head *noted)
{
    struct corral_chain_head head;
    uint64_t torn;
    return corral_chain_read(path, NULL, NULL, &head, &torn, NULL) == CORRAL_INVALID || torn > 0 ||
           head.count != noted->count || strcmp(head.hash, noted->hash) != 0;
}

static void reads_back_what_was_written(void **state)
{
    (void)state;
    struct corral_chain_head noted = write_chain(RECORDS), head;
    uint64_t torn = 1;
    assert_int_equal(corral_chain_read(path, NULL, NULL, &head, &torn, &err), CORRAL_OK);
    assert_int_equal(head.count, RECORDS);
    assert_int_equal(torn, 0);
    assert_string_equal(head.hash, noted.hash);
    assert_false(found(&noted));
}

static void goes_on_where_it_ended(void **state)
{
    (void)state;
    struct corral_chain_head first = write_chain(2), head;
    struct corral_chain *c = open_chain();
    corral_chain_head(c, &head);
    assert_string_equal(head.hash, first.hash);
    assert_non_null(strstr(corral_chain_last(c), "\"i\":1"));
    append(c, 2);
    corral_chain_close(c);
    assert_int_equal(corral_chain_read(path, NULL, NULL, &head, NULL, &err), CORRAL_OK);
    assert_int_equal(head.count, 3);
}

static void finds_every_flipped_bit(void **state)
{
    (void)state;
    struct corral_chain_head noted = write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes);
    int fd = open(path, O_WRONLY);
    for (size_t bit = 0; bit < bytes * 8; bit++) {
        char flipped = (char)(text[bit / 8] ^ (1 << bit % 8));
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
        if (!found(&noted)) {
            fail_msg("bit %zu of byte %zu was flipped and not found", bit % 8, bit / 8);
        }
        assert_int_equal(pwrite(fd, text + bit / 8, 1, (off_t)(bit / 8)), 1);
    }
    assert_false(found(&noted));
    close(fd);
    free(text);
}

struct lines {
    const char *start[RECORDS];
    size_t bytes[RECORDS];
};

static struct lines split(const char *text)
{
    struct lines l;
    for (int i = 0; i < RECORDS; i++) {
        l.start[i] = text;
        l.bytes[i] = (size_t)(strchr(text, '\n') + 1 - text);
        text += l.bytes[i];
    }
    return l;
}

static void put_lines(const struct lines *l, const int *order, int count)
{
    char text[8192];
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        memcpy(text + at, l->start[order[i]], l->bytes[order[i]]);
        at += l->bytes[order[i]];
    }
    put(text, at);
}

static void finds_every_dropped_repeated_and_moved_record(void **state)
{
    (void)state;
    struct corral_chain_head noted = write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes);
    struct lines l = split(text);
    for (int i = 0; i < RECORDS; i++) {
        int dropped[RECORDS], doubled[RECORDS + 1], n = 0, m = 0;
        for (int k = 0; k < RECORDS; k++) {
            if (k != i) {
                dropped[n++] = k;
            }
            doubled[m++] = k;
            if (k == i) {
                doubled[m++] = k;
            }
        }
        put_lines(&l, dropped, n);
        assert_true(found(&noted));
        put_lines(&l, doubled, m);
        assert_true(found(&noted));
        for (int k = i + 1; k < RECORDS; k++) {
            int swapped[RECORDS] = {0, 1, 2, 3, 4};
            swapped[i] = k;
            swapped[k] = i;
            put_lines(&l, swapped, RECORDS);
            assert_true(found(&noted));
        }
    }
    free(text);
}

static void finds_the_end_cut_off_anywhere_by_the_head(void **state)
{
    (void)state;
    struct corral_chain_head noted = write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes);
    for (size_t keep = 0; keep < bytes; keep++) {
        assert_int_equal(truncate(path, (off_t)keep), 0);
        assert_true(found(&noted));
        put(text, bytes);
    }
    free(text);
}

static void names_file_and_record_that_is_broken(void **state)
{
    (void)state;
    write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes), want[160];
    strstr(text, "\"i\":2")[4] = '7';
    put(text, bytes);
    free(text);
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, NULL, &err), CORRAL_INVALID);
    snprintf(want, sizeof want, "%s: record 3: ", path);
    assert_memory_equal(err.text, want, strlen(want));
}

static void never_extends_a_broken_chain(void **state)
{
    (void)state;
    write_chain(RECORDS);
    size_t bytes, after;
    char *text = content(&bytes), *same;
    strstr(text, "\"i\":2")[4] = '7';
    put(text, bytes);
    struct corral_chain *c = NULL;
    assert_int_equal(corral_chain_open(path, &c, &err), CORRAL_INVALID);
    assert_null(c);
    same = content(&after);
    assert_int_equal(after, bytes);
    assert_memory_equal(same, text, bytes);
    free(text);
    free(same);
}

static enum corral_status keep_body(void *ctx, uint64_t n, const char *body, size_t bytes, const char *hash,
                                    struct corral_error *e)
{
    (void)n, (void)hash, (void)e;
    memcpy(ctx, body, bytes + 1);
    return CORRAL_OK;
}

static void cuts_off_a_torn_line_and_says_so(void **state)
{
    (void)state;
    write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes);
    for (size_t lost = 1; lost < 85; lost += 7) {
        put(text, bytes - lost);
        struct corral_chain *c = open_chain();
        struct corral_chain_head head;
        corral_chain_head(c, &head);
        assert_int_equal(head.count, RECORDS); /* one gone, one "recovered" */
        struct corral_proof_record r;
        char last[CORRAL_CHAIN_LINE_MAX], *before = strdup(corral_chain_last(c));
        corral_chain_close(c);
        assert_int_equal(corral_chain_read(path, keep_body, last, NULL, NULL, &err), CORRAL_OK);
        assert_int_equal(corral_proof_parse(last, strlen(last), &r, &err), CORRAL_OK);
        assert_int_equal(r.type, CORRAL_PROOF_RECOVERED);
        assert_true(r.torn_bytes > 0 && r.torn_bytes < 200);
        assert_non_null(strstr(before, "\"n\":4,")); /* what the writer goes on from is not its own note */
        free(before);
    }
    free(text);
}

static void a_tail_of_zeros_is_room_however_long(void **state)
{
    (void)state;
    write_chain(RECORDS);
    size_t bytes;
    free(content(&bytes));
    uint64_t torn = 1;
    assert_int_equal(truncate(path, (off_t)bytes + 300000), 0);
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, &torn, &err), CORRAL_OK);
    assert_int_equal(torn, 0);
    struct corral_chain *c = open_chain();
    struct corral_chain_head head;
    corral_chain_head(c, &head);
    assert_int_equal(head.count, RECORDS); /* nothing was recovered: nothing was lost */
    append(c, 9);
    corral_chain_close(c);
    free(content(&bytes));
    assert_true(bytes < 1000);
    assert_int_equal(corral_chain_read(path, NULL, NULL, &head, &torn, &err), CORRAL_OK);
    assert_int_equal(head.count, RECORDS + 1);
    assert_int_equal(torn, 0);
}

/* A power cut may leave a block of zeros with a later block behind it: what is behind is no record, and is not taken for a broken one. */
static void nothing_after_a_zero_byte_is_a_record(void **state)
{
    (void)state;
    write_chain(RECORDS);
    size_t bytes;
    char *text = content(&bytes);
    char *third = strchr(strchr(text, '\n') + 1, '\n') + 1;
    memset(third + 20, 0, 30);
    put(text, bytes);
    struct corral_chain_head head;
    uint64_t torn;
    assert_int_equal(corral_chain_read(path, NULL, NULL, &head, &torn, &err), CORRAL_OK);
    assert_int_equal(head.count, 2);
    assert_int_equal(torn, bytes - (size_t)(third - text));
    free(text);
    struct corral_chain *c = open_chain();
    corral_chain_head(c, &head);
    assert_int_equal(head.count, 3); /* "recovered" */
    corral_chain_close(c);
}

static int (*real_sync)(int);
static int failures_left, syncs;
static sem_t synced;
static int failing_sync(int fd)
{
    int code = real_sync(fd);
    syncs++;
    if (failures_left > 0) {
        failures_left--;
        errno = EIO;
        code = -1;
    }
    sem_post(&synced);
    return code;
}

static void fail_syncs(int count)
{
    real_sync = corral_chain_fdatasync;
    failures_left = count;
    syncs = 0;
    assert_int_equal(sem_init(&synced, 0, 0), 0);
    corral_chain_fdatasync = failing_sync;
}

/* The kernel tells of it once; the next sync is fine again, and what was lost stays lost. */
static void one_failed_sync_breaks_the_chain_for_good(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    append(c, 1);
    fail_syncs(1);
    assert_int_equal(corral_chain_sync(c, &err), CORRAL_IO);
    assert_int_equal(corral_chain_sync(c, &err), CORRAL_IO);
    assert_int_equal(corral_chain_append(c, "{\"type\":\"t\"}", &err), CORRAL_IO);
    corral_chain_close(c);
    corral_chain_fdatasync = real_sync;
    sem_destroy(&synced);
    c = open_chain();
    append(c, 2);
    corral_chain_close(c);
}

static void a_failed_sync_of_the_thread_is_noticed(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    fail_syncs(1);
    append(c, 1);
    assert_int_equal(sem_wait(&synced), 0); /* the thread has met it, and used the kernel's one report up */
    assert_int_equal(corral_chain_sync(c, &err), CORRAL_IO);
    assert_int_equal(corral_chain_append(c, "{\"type\":\"t\"}", &err), CORRAL_IO);
    corral_chain_close(c);
    corral_chain_fdatasync = real_sync;
    sem_destroy(&synced);
}

/* What a writer that died of a failed sync has left may look written and not be. */
static void the_end_is_synced_once_more_when_it_is_opened(void **state)
{
    (void)state;
    write_chain(RECORDS);
    fail_syncs(1);
    struct corral_chain *c = NULL;
    assert_int_equal(corral_chain_open(path, &c, &err), CORRAL_IO);
    assert_null(c);
    corral_chain_fdatasync = real_sync;
    sem_destroy(&synced);
    c = open_chain();
    append(c, 2);
    corral_chain_close(c);
}

static void records_are_durable_soon_and_an_idle_chain_rests(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    fail_syncs(0);
    for (int i = 0; i < 3; i++) {
        append(c, i);
        assert_int_equal(sem_wait(&synced), 0);
    }
    assert_true(syncs >= 3);
    corral_chain_close(c);
    corral_chain_fdatasync = real_sync;
    sem_destroy(&synced);
}

static uint64_t file_bytes(void)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

/* Through both ways of writing: more records than one stretch of room, and than one window, holds. */
static void grows_past_every_room_and_window(void **state)
{
    (void)state;
    char body[8000];
    memset(body, 'x', sizeof body);
    memcpy(body, "{\"type\":\"", 9);
    memcpy(body + sizeof body - 3, "\"}", 3);
    for (int mapped = 0; mapped < 2; mapped++) {
        struct corral_chain *c = NULL;
        struct corral_chain_head head;
        uint64_t torn = 1;
        (void)unlink(path);
        check_ok(mapped ? corral_chain_open(path, &c, &err) : corral_chain_open_unmapped(path, &c, &err));
        for (int i = 0; i < 1300; i++) {
            if (i % 3 != 1) { /* who does not reserve is written to all the same */
                check_ok(corral_chain_reserve(c, &err));
            }
            check_ok(corral_chain_append(c, body, &err));
        }
        check_ok(corral_chain_read(path, NULL, NULL, &head, &torn, &err));
        assert_int_equal(head.count, 1300);
        assert_int_equal(torn, 0);
        corral_chain_close(c);
        uint64_t bytes = file_bytes();
        check_ok(corral_chain_read(path, NULL, NULL, &head, &torn, &err));
        assert_int_equal(head.count, 1300);
        assert_true(bytes > 1300 * 8000 && bytes < 1300 * 8100);
    }
}

/* Not by SIGBUS, which the first of these would get through its mapping. */
static void a_chain_that_others_cut_short_or_remove_is_an_error(void **state)
{
    (void)state;
    for (int how = 0; how < 4; how++) {
        struct corral_chain *c = NULL;
        (void)unlink(path);
        check_ok(how & 1 ? corral_chain_open_unmapped(path, &c, &err) : corral_chain_open(path, &c, &err));
        check_ok(corral_chain_reserve(c, &err));
        append(c, 1);
        assert_int_equal(how & 2 ? unlink(path) : truncate(path, 10), 0);
        assert_int_equal(corral_chain_append(c, "{\"type\":\"t\"}", &err), CORRAL_STATE);
        assert_non_null(strstr(err.text, path));
        assert_int_equal(corral_chain_append(c, "{\"type\":\"t\"}", &err), CORRAL_STATE); /* and stays one */
        corral_chain_close(c);
    }
}

/* Whatever is done to the file makes the writer look, and only what takes records away is an error. */
static void a_chain_that_others_touch_goes_on(void **state)
{
    (void)state;
    struct corral_chain_head head;
    struct corral_chain *c = open_chain();
    check_ok(corral_chain_reserve(c, &err));
    for (int i = 0; i < 3 * RECORDS; i++) {
        append(c, i);
        assert_int_equal(chmod(path, i % 2 ? 0644 : 0640), 0);
        if (i % 3 == 0) {
            char other[128];
            snprintf(other, sizeof other, "%s.%d", path, i);
            assert_int_equal(link(path, other), 0);
            assert_int_equal(unlink(other), 0);
        }
    }
    corral_chain_close(c);
    check_ok(corral_chain_read(path, NULL, NULL, &head, NULL, &err));
    assert_int_equal(head.count, 3 * RECORDS);
}

static void a_draft_is_the_same_record(void **state)
{
    (void)state;
    static const char *const bodies[] = {"{}", "{\"type\":\"t\",\"i\":1}", "{\"a\":2}"};
    struct corral_chain_head copied, drafted;
    for (int draft = 0; draft < 2; draft++) {
        (void)unlink(path);
        struct corral_chain *c = open_chain();
        for (int i = 0; i < 4 * (int)CORRAL_COUNT_OF(bodies); i++) {
            const char *body = bodies[i % (int)CORRAL_COUNT_OF(bodies)];
            size_t room = 0;
            if (draft) {
                char *to = corral_chain_draft(c, &room);
                assert_true(room > CORRAL_CHAIN_LINE_MAX - 128);
                memcpy(to, body, strlen(body));
                check_ok(corral_chain_append_draft(c, strlen(body), &err));
            } else {
                check_ok(corral_chain_append(c, body, &err));
            }
        }
        assert_int_equal(corral_chain_append_draft(c, 1, &err), CORRAL_INVALID);
        corral_chain_head(c, draft ? &drafted : &copied);
        corral_chain_close(c);
        check_ok(corral_chain_read(path, NULL, NULL, NULL, NULL, &err));
    }
    assert_int_equal(drafted.count, copied.count);
    assert_string_equal(drafted.hash, copied.hash);
}

/* Whoever reads meanwhile may meet half of the next record; only without its writer it is torn. */
static void what_a_living_writer_is_about_to_end_is_not_torn(void **state)
{
    (void)state;
    uint64_t torn = 1;
    write_chain(RECORDS);
    size_t bytes;
    free(content(&bytes));
    struct corral_chain *c = open_chain();
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "0123", 4, (off_t)bytes), 4);
    close(fd);
    check_ok(corral_chain_read(path, NULL, NULL, NULL, &torn, &err));
    assert_int_equal(torn, 0);
    corral_chain_close(c);
    check_ok(corral_chain_read(path, NULL, NULL, NULL, &torn, &err));
    assert_int_equal(torn, 4);
}

static void refuses_a_second_writer(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain(), *second = NULL;
    assert_int_equal(corral_chain_open(path, &second, &err), CORRAL_EXISTS);
    corral_chain_close(c);
    c = open_chain();
    corral_chain_close(c);
}

static void refuses_what_is_not_one_object_in_one_line(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    static const char *const bad[] = {"", "{", "[]", "{\"a\":1}\n", "{\"a\":\n1}", "x{}"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        assert_int_equal(corral_chain_append(c, bad[i], &err), CORRAL_INVALID);
    }
    char *large = malloc(CORRAL_CHAIN_LINE_MAX + 1);
    memset(large, 'x', CORRAL_CHAIN_LINE_MAX);
    large[0] = '{';
    large[CORRAL_CHAIN_LINE_MAX - 1] = '}';
    large[CORRAL_CHAIN_LINE_MAX] = '\0';
    assert_int_equal(corral_chain_append(c, large, &err), CORRAL_INVALID);
    free(large);
    assert_int_equal(corral_chain_append(c, "{}", &err), CORRAL_OK);
    corral_chain_close(c);
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, NULL, &err), CORRAL_OK);
}

static void takes_the_largest_record_and_reads_it_back(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    char *body = malloc(CORRAL_CHAIN_LINE_MAX);
    size_t bytes = CORRAL_CHAIN_LINE_MAX - 64 - 1 - 1 - strlen("\"n\":1,");
    memset(body, 'x', bytes);
    body[0] = '{';
    body[bytes - 1] = '}';
    body[bytes] = '\0';
    assert_int_equal(corral_chain_append(c, body, &err), CORRAL_OK);
    free(body);
    corral_chain_close(c);
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, NULL, &err), CORRAL_OK);
}

/* A file that may not grow stands for a full disk. */
static void writer_without_room(void)
{
    signal(SIGXFSZ, SIG_IGN);
    struct corral_chain *c = open_chain();
    size_t bytes;
    free(content(&bytes));
    struct rlimit limit = {bytes + 300, RLIM_INFINITY};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
        _exit(2);
    }
    int written = 0;
    while (written < 100 && corral_chain_append(c, "{\"type\":\"t\",\"i\":1}", &err) == CORRAL_OK) {
        written++;
    }
    bool refused = written > 0 && written < 100 && err.status == CORRAL_IO;
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    bool again = corral_chain_append(c, "{\"type\":\"t\",\"i\":2}", &err) == CORRAL_OK;
    corral_chain_close(c);
    _exit(refused && again ? 0 : 1);
}

static void a_full_disk_leaves_no_half_record(void **state)
{
    (void)state;
    write_chain(RECORDS);
    pid_t child = fork();
    if (child == 0) {
        writer_without_room();
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    uint64_t torn = 1;
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, &torn, &err), CORRAL_OK);
    assert_int_equal(torn, 0);
}

/* The child tells of each record before it is killed: all that it told of must be there. */
static void a_killed_writer_leaves_whole_records(void **state)
{
    (void)state;
    uint64_t least = 0;
    for (int round = 0; round < 20; round++) {
        int tell[2];
        assert_int_equal(pipe(tell), 0);
        pid_t child = fork();
        if (child == 0) {
            struct corral_chain *c = open_chain();
            for (int i = 0;; i++) {
                if (round % 2 == 0) { /* through the mapping */
                    check_ok(corral_chain_reserve(c, &err));
                }
                append(c, i);
                (void)!write(tell[1], "", 1);
            }
        }
        close(tell[1]);
        char byte;
        for (int i = 0; i <= round * 5; i++) {
            assert_int_equal(read(tell[0], &byte, 1), 1);
            least++;
        }
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(tell[0], &byte, 1) == 1) {
            least++;
        }
        close(tell[0]);
        struct corral_chain_head head;
        uint64_t torn; /* a write that crosses a page may be cut there; then it was not told of */
        assert_int_equal(corral_chain_read(path, NULL, NULL, &head, &torn, &err), CORRAL_OK);
        assert_true(head.count >= least && head.count <= least + 2 * (uint64_t)round + 1);
    }
}

static void room_that_was_not_used_is_given_back(void **state)
{
    (void)state;
    struct corral_chain *c = open_chain();
    assert_int_equal(corral_chain_reserve(c, &err), CORRAL_OK);
    append(c, 1);
    assert_int_equal(corral_chain_sync(c, &err), CORRAL_OK);
    corral_chain_close(c);
    size_t bytes;
    free(content(&bytes));
    assert_true(bytes < 200);
    assert_int_equal(corral_chain_read(path, NULL, NULL, NULL, NULL, &err), CORRAL_OK);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(reads_back_what_was_written),
        T(goes_on_where_it_ended),
        T(finds_every_flipped_bit),
        T(finds_every_dropped_repeated_and_moved_record),
        T(finds_the_end_cut_off_anywhere_by_the_head),
        T(names_file_and_record_that_is_broken),
        T(never_extends_a_broken_chain),
        T(cuts_off_a_torn_line_and_says_so),
        T(a_tail_of_zeros_is_room_however_long),
        T(nothing_after_a_zero_byte_is_a_record),
        T(one_failed_sync_breaks_the_chain_for_good),
        T(a_failed_sync_of_the_thread_is_noticed),
        T(the_end_is_synced_once_more_when_it_is_opened),
        T(records_are_durable_soon_and_an_idle_chain_rests),
        T(grows_past_every_room_and_window),
        T(a_chain_that_others_cut_short_or_remove_is_an_error),
        T(a_chain_that_others_touch_goes_on),
        T(a_draft_is_the_same_record),
        T(what_a_living_writer_is_about_to_end_is_not_torn),
        T(refuses_a_second_writer),
        T(refuses_what_is_not_one_object_in_one_line),
        T(takes_the_largest_record_and_reads_it_back),
        T(a_full_disk_leaves_no_half_record),
        T(a_killed_writer_leaves_whole_records),
        T(room_that_was_not_used_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
