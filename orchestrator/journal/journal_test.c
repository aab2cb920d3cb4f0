#include "tests/check.h"

#include "base/file.h"
#include "base/rng.h"
#include "orchestrator/journal/journal.h"
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN UINT64_C(0x7123456789abcdef)
#define KILLS 60
#define PAGE 4096

static char folder[64], path[96];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/corral-journal-XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/journal.db", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_journal *create(void)
{
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    check_ok(corral_journal_create(path, RUN, "cartpole", &j, &err));
    return j;
}

static struct corral_journal *reopen(struct corral_journal *j)
{
    struct corral_error err = {0};
    corral_journal_close(j);
    j = NULL;
    check_ok(corral_journal_open(path, &j, &err));
    return j;
}

static struct corral_journal_run read_run(struct corral_journal *j)
{
    struct corral_error err = {0};
    struct corral_journal_run run;
    memset(&run, 0xcc, sizeof run);
    check_ok(corral_journal_read_run(j, &run, &err));
    return run;
}

static void checkpoint(struct corral_journal *j, uint64_t step)
{
    struct corral_error err = {0};
    char where[64];
    snprintf(where, sizeof where, "checkpoints/step-%09llu", (unsigned long long)step);
    check_ok(corral_journal_checkpoint(j, step, step + 1, step * 100, where, &err));
}

static void a_new_journal_has_its_run_and_nothing_else(void **state)
{
    (void)state;
    struct corral_journal_end end;
    struct corral_journal *j = reopen(create());
    struct corral_journal_run run = read_run(j);
    assert_int_equal(run.run, RUN);
    assert_int_equal(run.incarnation, 1);
    assert_int_equal(run.version_limit, 0);
    assert_int_equal(run.checkpoint_step, 0);
    assert_string_equal(run.checkpoint_path, "");
    check_status(corral_journal_read_end(j, &end, NULL), CORRAL_NOT_FOUND);
    corral_journal_close(j);
}

static void a_journal_is_never_made_over_another(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal *j = create(), *second = NULL;
    check_ok(corral_journal_lease_versions(j, 77, &err));
    check_status(corral_journal_create(path, 1, "other", &second, &err), CORRAL_EXISTS);
    assert_null(second);
    j = reopen(j);
    assert_int_equal(read_run(j).version_limit, 77);
    corral_journal_close(j);
}

static void a_lease_only_grows(void **state)
{
    (void)state;
    struct corral_error err = {0};
    static const uint64_t leases[][2] = {{4096, 4096}, {100, 4096}, {0, 4096}, {8192, 8192}, {8191, 8192}};
    struct corral_journal *j = create();
    for (size_t i = 0; i < CORRAL_COUNT_OF(leases); i++) {
        check_ok(corral_journal_lease_versions(j, leases[i][0], &err));
        assert_int_equal(read_run(j).version_limit, leases[i][1]);
        j = reopen(j);
        assert_int_equal(read_run(j).version_limit, leases[i][1]);
    }
    corral_journal_close(j);
}

static void resuming_is_a_new_incarnation_of_the_same_run(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal_end end = {.outcome = "failed", .reason = "the agent of node a ended"},
                              read = {{0}, {0}};
    struct corral_journal *j = create();
    check_ok(corral_journal_lease_versions(j, 5, &err));
    checkpoint(j, 3);
    check_ok(corral_journal_end_run(j, &end, &err));
    j = reopen(j);
    check_ok(corral_journal_read_end(j, &read, &err));
    assert_string_equal(read.outcome, end.outcome);
    assert_string_equal(read.reason, end.reason);
    for (uint32_t expected = 2; expected < 5; expected++) {
        uint32_t incarnation = 0;
        check_ok(corral_journal_next_incarnation(j, &incarnation, &err));
        assert_int_equal(incarnation, expected);
        j = reopen(j);
        struct corral_journal_run run = read_run(j);
        assert_int_equal(run.incarnation, expected);
        assert_int_equal(run.run, RUN);
        assert_int_equal(run.version_limit, 5);
        assert_int_equal(run.checkpoint_step, 3);
        check_status(corral_journal_read_end(j, &read, NULL), CORRAL_NOT_FOUND);
    }
    corral_journal_close(j);
}

struct steps {
    uint64_t step[16];
    uint32_t count;
};

static enum corral_status take_step(void *ctx, uint64_t step, const char *where, struct corral_error *err)
{
    (void)err;
    struct steps *s = ctx;
    assert_non_null(strstr(where, "checkpoints/step-"));
    s->step[s->count++] = step;
    return CORRAL_OK;
}

static enum corral_status forget_first(void *ctx, uint64_t step, const char *where, struct corral_error *err)
{
    (void)where;
    return step == 10 ? corral_journal_forget_checkpoint(ctx, step, err) : CORRAL_OK;
}

static void the_newest_checkpoint_counts_until_it_is_forgotten(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct steps s = {.count = 0};
    struct corral_journal *j = create();
    checkpoint(j, 10);
    checkpoint(j, 30);
    checkpoint(j, 20);
    checkpoint(j, 30); /* reached a second time */
    j = reopen(j);
    assert_int_equal(read_run(j).checkpoint_step, 30);
    assert_string_equal(read_run(j).checkpoint_path, "checkpoints/step-000000030");
    check_ok(corral_journal_each_checkpoint(j, take_step, &s, &err));
    assert_int_equal(s.count, 3);
    assert_true(s.step[0] == 10 && s.step[1] == 20 && s.step[2] == 30);
    check_ok(corral_journal_forget_checkpoint(j, 30, &err));
    assert_int_equal(read_run(j).checkpoint_step, 20);
    check_ok(corral_journal_each_checkpoint(j, forget_first, j, &err)); /* while it is being read */
    check_ok(corral_journal_forget_checkpoint(j, 20, &err));
    check_ok(corral_journal_forget_checkpoint(j, 999, &err));
    j = reopen(j);
    assert_string_equal(read_run(j).checkpoint_path, "");
    corral_journal_close(j);
}

struct history {
    char text[512];
    uint64_t last_ns;
};

static void take_event(void *ctx, uint64_t wall_ns, const char *kind, const char *subject, const char *text)
{
    struct history *h = ctx;
    size_t used = strlen(h->text);
    assert_true(wall_ns >= h->last_ns);
    h->last_ns = wall_ns;
    snprintf(h->text + used, sizeof h->text - used, "%s|%s|%s\n", kind, subject, text);
}

static void events_are_told_in_order(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct history h = {.text = ""};
    struct corral_journal *j = create();
    check_ok(corral_journal_event(j, "phase", "running", "every worker is up", &err));
    check_ok(corral_journal_event(j, "exited", "rollout-0", "it's \"gone\"; DROP TABLE event", &err));
    check_ok(corral_journal_lease_versions(j, 1, &err));
    check_ok(corral_journal_event(j, "eval", "", "caf\xc3\xa9", &err));
    j = reopen(j);
    check_ok(corral_journal_each_event(j, take_event, &h, &err));
    assert_string_equal(h.text, "phase|running|every worker is up\nexited|rollout-0|it's \"gone\"; DROP "
                                "TABLE event\neval||caf\xc3\xa9\n");
    corral_journal_close(j);
}

static void a_reader_sees_a_running_journal_and_cannot_change_it(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal *j = create(), *reader = NULL;
    check_ok(corral_journal_open_readonly(path, &reader, &err));
    check_ok(corral_journal_lease_versions(j, 9, &err));
    checkpoint(j, 4);
    assert_int_equal(read_run(reader).version_limit, 9);
    assert_int_equal(read_run(reader).checkpoint_step, 4);
    assert_int_not_equal(corral_journal_lease_versions(reader, 10, &err), CORRAL_OK);
    assert_int_equal(read_run(j).version_limit, 9);
    corral_journal_close(j);
    assert_int_equal(read_run(reader).version_limit, 9);
    corral_journal_close(reader);
}

/* ---- damage ---- */

static void expect_unreadable(const char *data, size_t bytes)
{
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    check_ok(corral_file_write_atomic(path, data, bytes, 0644, false, &err));
    check_status(corral_journal_open(path, &j, &err), CORRAL_PROTOCOL);
    assert_null(j);
    assert_non_null(strstr(err.text, path));
    check_status(corral_journal_open_readonly(path, &j, &err), CORRAL_PROTOCOL);
}

static void what_is_no_journal_is_refused(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    static char garbage[3 * PAGE];
    memset(garbage, 'x', sizeof garbage);
    expect_unreadable("", 0);
    expect_unreadable("hello", 5);
    expect_unreadable(garbage, sizeof garbage);
    assert_int_equal(unlink(path), 0);
    check_status(corral_journal_open(path, &j, &err), CORRAL_IO);
    check_status(corral_journal_open_readonly(path, &j, &err), CORRAL_IO);
    assert_int_not_equal(access(path, F_OK), 0);
    char nowhere[128];
    snprintf(nowhere, sizeof nowhere, "%s/absent/journal.db", folder);
    check_status(corral_journal_create(nowhere, RUN, "x", &j, &err), CORRAL_IO);
    assert_null(j);
}

static char *journal_bytes(size_t *bytes)
{
    struct corral_error err = {0};
    char *data = NULL;
    struct corral_journal *j = create();
    for (uint64_t step = 1; step <= 300; step++) {
        checkpoint(j, step);
    }
    check_ok(corral_journal_lease_versions(j, 4096, &err));
    corral_journal_close(j); /* the last one out moves the log into the file */
    check_ok(corral_file_read(path, 1u << 24, &data, bytes, &err));
    assert_true(*bytes > 4 * PAGE);
    return data;
}

static enum corral_status collect_head(void *ctx, const struct corral_journal_proof_head *head,
                                       struct corral_error *err)
{
    struct corral_journal_proof_head **at = ctx;
    (void)err;
    *(*at)++ = *head;
    return CORRAL_OK;
}

static void chain_heads_are_kept_by_rank_and_count(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    struct corral_journal_proof_head head[] = {{.rank = 1, .count = 9, .step = 7, .hash = "bb"},
                                               {.rank = 0, .count = 8, .step = 7, .hash = "aa"}};
    struct corral_journal_proof_head later = {.rank = 0, .count = 20, .step = 18, .hash = "cc"}, read[8],
                                     *end = read;
    (void)unlink(path);
    check_ok(corral_journal_create(path, 1, "heads", &j, &err));
    check_ok(corral_journal_proof_heads(j, head, 2, &err));
    check_ok(corral_journal_proof_heads(j, head, 2, &err)); /* noted again: nothing new */
    check_ok(corral_journal_proof_heads(j, &later, 1, &err));
    corral_journal_close(j);
    check_ok(corral_journal_open_readonly(path, &j, &err));
    check_ok(corral_journal_each_proof_head(j, collect_head, &end, &err));
    corral_journal_close(j);
    assert_int_equal(end - read, 3);
    assert_string_equal(read[0].hash, "aa");
    assert_string_equal(read[1].hash, "cc");
    assert_int_equal(read[1].step, 18);
    assert_int_equal(read[2].rank, 1);
    assert_int_equal(read[2].count, 9);
}

static void a_journal_from_before_there_were_heads_gets_the_table(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    struct corral_journal_proof_head head = {.rank = 0, .count = 1, .step = 0, .hash = "aa"}, read[2],
                                     *end = read;
    sqlite3 *db = NULL;
    (void)unlink(path);
    check_ok(corral_journal_create(path, 1, "old", &j, &err));
    corral_journal_close(j);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "DROP TABLE proof_head; PRAGMA user_version = 1;", NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(db);
    check_ok(corral_journal_open_readonly(path, &j, &err));
    check_ok(corral_journal_each_proof_head(j, collect_head, &end, &err));
    corral_journal_close(j);
    assert_ptr_equal(end, read);
    check_ok(corral_journal_open(path, &j, &err));
    check_ok(corral_journal_proof_heads(j, &head, 1, &err));
    check_ok(corral_journal_each_proof_head(j, collect_head, &end, &err));
    corral_journal_close(j);
    assert_int_equal(end - read, 1);
}

static void another_schema_is_refused(void **state)
{
    (void)state;
    size_t bytes;
    char *data = journal_bytes(&bytes);
    data[63] ^= 7; /* user_version: 4 bytes, big-endian, at 60 */
    expect_unreadable(data, bytes);
    free(data);
}

/* Either an error or the truth: a resume must never take a damaged journal for one without checkpoints. */
static void expect_truth_or_error(const char *data, size_t bytes)
{
    struct corral_error err = {0};
    struct corral_journal *j = NULL;
    struct corral_journal_run run;
    check_ok(corral_file_write_atomic(path, data, bytes, 0644, false, &err));
    if (corral_journal_open(path, &j, &err) != CORRAL_OK) {
        assert_true(err.text[0] != 0);
        return;
    }
    if (corral_journal_read_run(j, &run, &err) == CORRAL_OK) {
        assert_int_equal(run.run, RUN);
        assert_int_equal(run.version_limit, 4096);
        assert_int_equal(run.checkpoint_step, 300);
    }
    corral_journal_close(j);
}

static void damaged_pages_are_an_error(void **state)
{
    (void)state;
    size_t bytes;
    char *data = journal_bytes(&bytes), *copy = malloc(bytes);
    assert_non_null(copy);
    for (size_t page = 0; page < bytes / PAGE; page++) {
        for (int fill = 0; fill < 256; fill += 255) {
            memcpy(copy, data, bytes);
            memset(copy + page * PAGE, fill, PAGE);
            expect_truth_or_error(copy, bytes);
        }
    }
    for (size_t cut = PAGE; cut < bytes; cut += PAGE / 2) {
        expect_truth_or_error(data, cut);
    }
    free(copy);
    free(data);
}

/* ---- the disk is full ---- */

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void a_full_disk_is_an_error_and_keeps_what_was_written(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct rlimit before;
    struct corral_journal *j = create();
    enum corral_status status = CORRAL_OK;
    uint64_t granted = 0;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    limit_files(100 * 1024);
    while (status == CORRAL_OK && granted < 100000) {
        status = corral_journal_lease_versions(j, granted + 1, &err);
        granted += status == CORRAL_OK;
    }
    limit_files(before.rlim_cur);
    signal(SIGXFSZ, old);
    assert_int_equal(status, CORRAL_IO);
    assert_true(granted > 0 && granted < 100000);
    assert_int_equal(read_run(j).version_limit, granted);
    check_ok(corral_journal_lease_versions(j, granted + 10, &err)); /* there is room again */
    j = reopen(j);
    assert_int_equal(read_run(j).version_limit, granted + 10);
    corral_journal_close(j);
}

static void a_journal_that_does_not_fit_leaves_no_file(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t room = 0; room < 12 * 1024; room += 3000) {
        struct corral_journal *j = NULL;
        limit_files(room);
        enum corral_status status = corral_journal_create(path, RUN, "cartpole", &j, &err);
        limit_files(before.rlim_cur);
        assert_int_equal(status, CORRAL_IO);
        assert_null(j);
        assert_int_equal(rmdir(folder), 0); /* it is empty */
        assert_int_equal(mkdir(folder, 0700), 0);
    }
    signal(SIGXFSZ, old);
}

/* ---- kill -9 ---- */

struct progress {
    _Atomic uint64_t leased, checkpointed; /* shared with the child: acknowledged to whoever asked */
};

static void write_for_ever(struct progress *progress)
{
    struct corral_journal *j = NULL;
    if (corral_journal_open(path, &j, NULL) != CORRAL_OK) {
        _exit(3);
    }
    for (uint64_t n = atomic_load(&progress->leased) + 1;; n++) {
        if (corral_journal_lease_versions(j, n, NULL) != CORRAL_OK ||
            corral_journal_event(j, "lease", "trainer-0", "one more", NULL) != CORRAL_OK) {
            _exit(4);
        }
        atomic_store(&progress->leased, n);
        if (corral_journal_checkpoint(j, n, n, n, "checkpoints/step", NULL) != CORRAL_OK ||
            corral_journal_forget_checkpoint(j, n - 1, NULL) != CORRAL_OK) {
            _exit(5);
        }
        atomic_store(&progress->checkpointed, n);
    }
}

static void kill_at_a_random_point(struct progress *progress, struct corral_rng *rng)
{
    uint64_t before = atomic_load(&progress->checkpointed);
    pid_t parent = getpid(), child = fork();
    int ended;
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent) {
            write_for_ever(progress);
        }
        _exit(6);
    }
    while (atomic_load(&progress->checkpointed) < before + 1) {
        assert_int_equal(waitpid(child, &ended, WNOHANG), 0);
        sched_yield();
    }
    for (volatile uint64_t spin = corral_rng_below(rng, 3000000); spin > 0; spin--) {
    }
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFSIGNALED(ended));
}

static void a_writer_killed_anywhere_loses_nothing_it_had_acknowledged(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 11);
    corral_journal_close(create());
    struct progress *progress =
        mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(progress, MAP_FAILED);
    for (uint32_t i = 0; i < KILLS; i++) {
        kill_at_a_random_point(progress, &rng);
        struct corral_error err = {0};
        struct corral_journal *j = NULL;
        check_ok(corral_journal_open(path, &j, &err));
        struct corral_journal_run run = read_run(j);
        assert_true(run.version_limit >= atomic_load(&progress->leased) &&
                    run.version_limit <= atomic_load(&progress->leased) + 1);
        assert_true(run.checkpoint_step >= atomic_load(&progress->checkpointed) &&
                    run.checkpoint_step <= run.version_limit);
        atomic_store(&progress->leased, run.version_limit);
        atomic_store(&progress->checkpointed, run.checkpoint_step);
        corral_journal_close(j);
    }
    munmap(progress, sizeof *progress);
}

#define test(fn) cmocka_unit_test_setup_teardown(fn, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(a_new_journal_has_its_run_and_nothing_else),
        test(a_journal_is_never_made_over_another),
        test(a_lease_only_grows),
        test(resuming_is_a_new_incarnation_of_the_same_run),
        test(the_newest_checkpoint_counts_until_it_is_forgotten),
        test(events_are_told_in_order),
        test(a_reader_sees_a_running_journal_and_cannot_change_it),
        test(what_is_no_journal_is_refused),
        test(chain_heads_are_kept_by_rank_and_count),
        test(a_journal_from_before_there_were_heads_gets_the_table),
        test(another_schema_is_refused),
        test(damaged_pages_are_an_error),
        test(a_full_disk_is_an_error_and_keeps_what_was_written),
        test(a_journal_that_does_not_fit_leaves_no_file),
        test(a_writer_killed_anywhere_loses_nothing_it_had_acknowledged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
