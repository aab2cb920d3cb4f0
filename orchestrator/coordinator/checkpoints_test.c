#include "tests/check.h"

#include "base/file.h"
#include "orchestrator/coordinator/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRAINERS 2

static uint32_t number; /* of the checkpoint that put() and say() are about */

/* A coordinator with two trainers and nobody connected, in a run folder of its own. */
struct world {
    char folder[64];
    struct corral_job *job;
    struct corral_coordinator *c;
};

static struct world world_open(uint32_t keep)
{
    number = 0;
    struct corral_error err = {0};
    struct world w = {.folder = "/tmp/corral-checkpoints-XXXXXX",
                      .job = calloc(1, sizeof *w.job),
                      .c = calloc(1, sizeof *w.c)};
    assert_non_null(w.job);
    assert_non_null(w.c);
    assert_non_null(mkdtemp(w.folder));
    assert_int_equal(chdir(w.folder), 0);
    assert_int_equal(mkdir("checkpoints", 0755), 0);
    snprintf(w.job->name, sizeof w.job->name, "job");
    snprintf(w.job->node[0].address, sizeof w.job->node[0].address, "local");
    w.job->checkpoint.keep = keep;
    w.c->job = w.job;
    w.c->phase = RUN_RUNNING;
    w.c->grouped = true;
    w.c->generation = 1;
    w.c->trainers = w.c->worker_count = TRAINERS;
    w.c->worker = calloc(TRAINERS, sizeof *w.c->worker);
    assert_non_null(w.c->worker);
    for (uint32_t i = 0; i < TRAINERS; i++) {
        snprintf(w.c->worker[i].job.name, sizeof w.c->worker[i].job.name, "trainer-%u", i);
        w.c->worker[i].job.role = CORRAL_ROLE_TRAIN;
        w.c->worker[i].job.role_index = i;
        w.c->worker[i].state = WORKER_RUNNING;
        w.c->worker[i].generation = 1;
    }
    check_ok(corral_journal_create("journal.db", 7, "job", &w.c->journal, &err));
    return w;
}

static void world_close(struct world *w)
{
    corral_journal_close(w->c->journal);
    assert_int_equal(chdir("/"), 0);
    (void)corral_remove_tree(w->folder, NULL);
    free(w->c->worker);
    free(w->c);
    free(w->job);
}

static void put(uint64_t step, const char *name, const char *text)
{
    struct corral_error err = {0};
    char folder[64], path[128];
    snprintf(folder, sizeof folder, "checkpoints/.step-%09llu-%u.tmp", (unsigned long long)step, number);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    check_ok(corral_mkdirs(folder, 0755, &err));
    check_ok(corral_file_write_atomic(path, text, strlen(text), 0644, false, &err));
}

static void put_rank(uint64_t step, uint32_t rank, const char *text)
{
    char name[40];
    snprintf(name, sizeof name, "trainer-%u.state", rank);
    put(step, name, text);
    if (rank == 0) {
        put(step, "policy.safetensors", text);
    }
}

static enum corral_status say_path(struct world *w, uint32_t rank, uint64_t step, bool written,
                                   const char *path)
{
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_mpack_writer_destroyp)
    struct corral_mpack_writer *out = corral_mpack_writer_create();
    assert_non_null(out);
    corral_mpack_map(out, 8);
    corral_mpack_kv_u64(out, "proof_count", step + 1);
    corral_mpack_kv_str(out, "proof_hash",
                        "00000000000000000000000000000000000000000000000000000000000000ab");
    corral_mpack_kv_u64(out, "step", step);
    corral_mpack_kv_u64(out, "version", step + 1);
    corral_mpack_kv_u64(out, "env_steps", step * 100);
    corral_mpack_kv_str(out, "path", path);
    corral_mpack_kv_bool(out, "written", written);
    corral_mpack_kv_str(out, "reason", written ? "" : "no space left");
    const void *data;
    size_t bytes;
    check_ok(corral_mpack_finish(out, &data, &bytes, &err));
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
    check_ok(corral_mpack_read(&reader, data, bytes, &err));
    return corral_checkpoint_written(w->c, &w->c->worker[rank], corral_mpack_root(reader), &err);
}

static void say(struct world *w, uint32_t rank, uint64_t step, bool written)
{
    char path[64];
    snprintf(path, sizeof path, "checkpoints/.step-%09llu-%u.tmp", (unsigned long long)step, number);
    assert_int_equal(say_path(w, rank, step, written, path), CORRAL_OK);
}

static uint64_t newest(struct world *w)
{
    struct corral_error err = {0};
    struct corral_journal_run run;
    check_ok(corral_journal_read_run(w->c->journal, &run, &err));
    return run.checkpoint_step;
}

static void expect_text(const char *path, const char *text)
{
    struct corral_error err = {0};
    CORRAL_AUTO_FREE char *found = NULL;
    size_t bytes = 0;
    check_ok(corral_file_read(path, 1000, &found, &bytes, &err));
    assert_string_equal(found, text);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void is_complete_when_every_rank_has_written(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "a");
    say(&w, 0, 5, true);
    assert_true(w.c->checkpoint.active);
    say(&w, 0, 5, true); /* one rank twice is not two ranks */
    assert_true(w.c->checkpoint.active);
    assert_int_equal(newest(&w), 0);
    put_rank(5, 1, "b");
    say(&w, 1, 5, true);
    assert_false(w.c->checkpoint.active);
    assert_int_equal(newest(&w), 5);
    assert_int_equal(w.c->status.checkpoints, 1);
    expect_text("checkpoints/step-000000005/trainer-1.state", "b");
    assert_true(exists("checkpoints/step-000000005/checkpoint.json"));
    assert_false(exists("checkpoints/.step-000000005-0.tmp"));
    world_close(&w);
}

static void is_abandoned_when_a_file_is_missing(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "a");
    say(&w, 0, 5, true);
    say(&w, 1, 5, true); /* as from a node with another file system */
    assert_false(w.c->checkpoint.active);
    assert_int_equal(newest(&w), 0);
    assert_false(exists("checkpoints/step-000000005"));
    assert_false(exists("checkpoints/.step-000000005-0.tmp"));
    world_close(&w);
}

static void is_abandoned_when_a_rank_could_not_write(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "a");
    put_rank(5, 1, "b");
    say(&w, 0, 5, false);
    say(&w, 1, 5, true);
    assert_false(w.c->checkpoint.active);
    assert_int_equal(newest(&w), 0);
    world_close(&w);
}

static void never_touches_a_folder_named_by_a_message(void **state)
{
    (void)state;
    struct world w = world_open(3);
    assert_int_equal(mkdir("precious", 0755), 0);
    assert_int_equal(say_path(&w, 0, 5, true, "precious"), CORRAL_PROTOCOL);
    static const char *const others[] = {"",
                                         "checkpoints/.step-000000005.tmp",
                                         "checkpoints/.step-000000004-0.tmp",
                                         "checkpoints/.step-000000005-00.tmp",
                                         "checkpoints/.step-000000005-0.tmp/",
                                         "checkpoints/.step-000000005-4294967296.tmp",
                                         "checkpoints/.step-000000005--1.tmp",
                                         "checkpoints/.step-000000005-0/../../precious.tmp"};
    for (size_t i = 0; i < CORRAL_COUNT_OF(others); i++) {
        assert_int_equal(say_path(&w, 0, 5, true, others[i]), CORRAL_PROTOCOL);
    }
    assert_false(w.c->checkpoint.active);
    corral_checkpoint_trainer_lost(w.c);
    assert_true(exists("precious"));
    world_close(&w);
}

static void replaces_what_an_earlier_life_left_at_the_same_step(void **state)
{
    (void)state;
    struct world w = world_open(3);
    for (uint32_t life = 0; life < 2; life++) {
        for (uint32_t rank = 0; rank < TRAINERS; rank++) {
            put_rank(5, rank, life == 0 ? "old" : "new");
            say(&w, rank, 5, true);
        }
        expect_text("checkpoints/step-000000005/trainer-0.state", life == 0 ? "old" : "new");
        assert_false(exists("checkpoints/.step-000000005-0.tmp"));
        w.c->checkpoint_step = 0; /* as after a resume */
    }
    assert_int_equal(newest(&w), 5);
    world_close(&w);
}

static void a_step_is_written_once_in_a_life(void **state)
{
    (void)state;
    struct world w = world_open(3);
    for (uint32_t time = 0; time < 2; time++) {
        number = time;
        for (uint32_t rank = 0; rank < TRAINERS; rank++) {
            put_rank(5, rank, time == 0 ? "first" : "second");
            say(&w, rank, 5, true);
        }
    }
    expect_text("checkpoints/step-000000005/trainer-0.state", "first");
    assert_int_equal(w.c->status.checkpoints, 1);
    assert_false(w.c->checkpoint.active);
    assert_false(exists("checkpoints/.step-000000005-0.tmp"));
    assert_false(exists("checkpoints/.step-000000005-1.tmp"));
    world_close(&w);
}

static void the_last_one_does_not_cost_the_one_that_waits_for_environments(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "first");
    put_rank(5, 1, "first");
    say(&w, 0, 5, true);
    w.c->checkpoint.asked[0] = 1;
    say(&w, 1, 5, true);
    assert_true(w.c->checkpoint.active);
    number = 1;
    put_rank(5, 0, "last");
    say(&w, 0, 5, true);
    assert_true(w.c->checkpoint.active);
    assert_false(exists("checkpoints/.step-000000005-1.tmp"));
    w.c->checkpoint.deadline_ns = 1;
    corral_checkpoint_tick(w.c);
    assert_int_equal(newest(&w), 5);
    expect_text("checkpoints/step-000000005/trainer-0.state", "first");
    world_close(&w);
}

static void an_earlier_one_is_over_when_the_next_begins(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "x");
    say(&w, 0, 5, true);
    number = 1;
    put_rank(7, 1, "x");
    say(&w, 1, 7, true);
    number = 0;
    put_rank(5, 1, "x");
    say(&w, 1, 5, true); /* that rank is late: nobody waits for it any more */
    assert_false(exists("checkpoints/.step-000000005-0.tmp"));
    number = 1;
    put_rank(7, 0, "x");
    say(&w, 0, 7, true);
    assert_int_equal(newest(&w), 7);
    assert_int_equal(w.c->status.checkpoints, 1);
    world_close(&w);
}

static void states_of_two_groups_are_never_mixed(void **state)
{
    (void)state;
    struct world w = world_open(3);
    put_rank(5, 0, "one");
    say(&w, 0, 5, true);
    w.c->grouped = false;
    corral_checkpoint_trainer_lost(w.c);
    assert_false(w.c->checkpoint.active);
    w.c->grouped = true;
    w.c->worker[0].generation = w.c->worker[1].generation = 2;
    put_rank(5, 1, "two");
    say(&w, 1, 5, true);
    assert_true(w.c->checkpoint.active);
    assert_false(exists("checkpoints/.step-000000005-0.tmp/trainer-0.state"));
    put_rank(5, 0, "two");
    say(&w, 0, 5, true);
    assert_int_equal(newest(&w), 5);
    expect_text("checkpoints/step-000000005/trainer-0.state", "two");
    world_close(&w);
}

static void only_so_many_are_kept(void **state)
{
    (void)state;
    struct world w = world_open(2);
    for (uint64_t step = 1; step <= 4; step++) {
        for (uint32_t rank = 0; rank < TRAINERS; rank++) {
            put_rank(step, rank, "x");
            say(&w, rank, step, true);
        }
    }
    assert_false(exists("checkpoints/step-000000002"));
    assert_true(exists("checkpoints/step-000000003"));
    assert_true(exists("checkpoints/step-000000004"));
    world_close(&w);
}

static void one_that_cannot_be_removed_does_not_cost_the_new_one(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct world w = world_open(1);
    check_ok(corral_journal_checkpoint(w.c->journal, 1, 2, 100, "/proc/version", &err));
    for (uint32_t rank = 0; rank < TRAINERS; rank++) {
        put_rank(5, rank, "x");
        say(&w, rank, 5, true);
    }
    assert_int_equal(newest(&w), 5);
    assert_int_equal(w.c->status.checkpoints, 1);
    assert_true(exists("checkpoints/step-000000005/trainer-0.state"));
    world_close(&w);
}

static void what_a_crash_left_is_swept(void **state)
{
    (void)state;
    struct world w = world_open(1);
    put_rank(9, 0, "half");
    assert_int_equal(mkdir("checkpoints/step-000000008", 0755), 0);
    corral_checkpoint_clean();
    assert_false(exists("checkpoints/.step-000000009-0.tmp"));
    assert_true(exists("checkpoints/step-000000008"));
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_complete_when_every_rank_has_written),
        cmocka_unit_test(is_abandoned_when_a_file_is_missing),
        cmocka_unit_test(is_abandoned_when_a_rank_could_not_write),
        cmocka_unit_test(never_touches_a_folder_named_by_a_message),
        cmocka_unit_test(replaces_what_an_earlier_life_left_at_the_same_step),
        cmocka_unit_test(a_step_is_written_once_in_a_life),
        cmocka_unit_test(the_last_one_does_not_cost_the_one_that_waits_for_environments),
        cmocka_unit_test(an_earlier_one_is_over_when_the_next_begins),
        cmocka_unit_test(states_of_two_groups_are_never_mixed),
        cmocka_unit_test(only_so_many_are_kept),
        cmocka_unit_test(one_that_cannot_be_removed_does_not_cost_the_new_one),
        cmocka_unit_test(what_a_crash_left_is_swept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
