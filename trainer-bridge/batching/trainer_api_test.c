/* The reader with its sockets: writers and trainers are processes of their own; trainers are killed where it hurts and go on from their checkpoint. */
#include "tests/check.h"

#include "base/file.h"
#include "base/rng.h"
#include "transport/trajectory/sender.h"
#include <corral/trainer.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 4242
#define TOKEN "trainer-test"
#define WORKERS 2
#define RECORDS 300 /* of each worker */
#define GROUP_SIZE 4
#define BATCH 5
#define KILLS 5
#define CURSORS_MAX 65536

struct checkpoint { /* what a trainer saves in one piece: its "weights", and the cursors */
    uint64_t steps, version, cursor_bytes;
    uint8_t used[WORKERS][RECORDS];
    uint8_t cursors[CURSORS_MAX];
};

struct paths {
    char folder[64], endpoint[96], checkpoint[96];
};

static void make_paths(struct paths *p)
{
    snprintf(p->folder, sizeof p->folder, "/tmp/corral-trainer-XXXXXX");
    assert_non_null(mkdtemp(p->folder));
    snprintf(p->endpoint, sizeof p->endpoint, "ipc://%s/traj", p->folder);
    snprintf(p->checkpoint, sizeof p->checkpoint, "%s/checkpoint", p->folder);
}

static void remove_paths(const struct paths *p)
{
    struct corral_error err;
    check_ok(corral_remove_tree(p->folder, &err));
}

/* ---- writers: in a child, where a failed check is an exit status ---- */

#define NEED(condition)                                                              \
    do {                                                                             \
        if (!(condition)) {                                                          \
            dprintf(2, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, err.text); \
            _exit(1);                                                                \
        }                                                                            \
    } while (0)

static void write_record(struct corral_traj_sender *s, uint32_t worker, uint32_t number)
{
    struct corral_error err = {.sys = 0};
    uint32_t n = number * WORKERS + worker;
    uint32_t ids[16] = {worker, number};
    uint64_t bytes, sequence;
    void *memory;
    struct corral_traj_score score = {.name = "reward", .value = n % GROUP_SIZE};
    struct corral_traj_tensor tensor = {
        .name = "token_ids", .dtype = CORRAL_TRAJ_U32, .dims = 1, .shape = {2 + n % 14}, .data = ids};
    struct corral_traj_record r = {.size = sizeof r,
                                   .kind = CORRAL_TRAJ_EPISODE,
                                   .env = "count",
                                   .finish = "stop",
                                   .group = n / GROUP_SIZE,
                                   .group_index = n % GROUP_SIZE,
                                   .group_size = GROUP_SIZE,
                                   .episode = number,
                                   .tokens = 2 + n % 14,
                                   .scores = &score,
                                   .score_count = 1,
                                   .tensors = &tensor,
                                   .tensor_count = 1};
    NEED(corral_traj_record_bytes(&r, &bytes, &err) == CORRAL_OK);
    enum corral_status status;
    while ((status = corral_traj_sender_reserve(s, 0, bytes, &memory, &err)) == CORRAL_AGAIN) {
        NEED(corral_traj_sender_poll(s, 100, &err) == CORRAL_OK);
    }
    NEED(status == CORRAL_OK);
    NEED(corral_traj_record_encode(&r, memory, bytes, &err) == CORRAL_OK);
    NEED(corral_traj_sender_commit(s, 0, &sequence, &err) == CORRAL_OK);
    NEED(sequence == number + 1);
}

static pid_t start_writer(const struct paths *p, uint32_t worker, uint32_t records)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) {
        return pid;
    }
    struct corral_error err = {.sys = 0};
    struct corral_traj_sender *s;
    void *context = zmq_ctx_new();
    struct corral_traj_sender_config c = {.zmq_context = context,
                                          .run = RUN,
                                          .worker = worker,
                                          .epoch = 1,
                                          .window_bytes = 1 << 20,
                                          .memory = &corral_allocator_heap,
                                          .token = TOKEN};
    NEED(corral_traj_sender_create(&s, &c, &err) == CORRAL_OK);
    NEED(corral_traj_sender_connect(s, 0, p->endpoint, &err) == CORRAL_OK);
    for (uint32_t i = 0; i < records; i++) {
        write_record(s, worker, i);
    }
    while (corral_traj_sender_unacked(s, 0) > 0) {
        NEED(corral_traj_sender_poll(s, 100, &err) == CORRAL_OK);
    }
    corral_traj_sender_destroy(s, 0);
    zmq_ctx_term(context);
    _exit(0);
}

/* ---- trainers ---- */

static struct corral_trainer_options options(const struct paths *p, uint32_t mode)
{
    return (struct corral_trainer_options){.size = sizeof(struct corral_trainer_options),
                                           .bind = p->endpoint,
                                           .run = RUN,
                                           .token = TOKEN,
                                           .workers = WORKERS,
                                           .mode = mode,
                                           .batch = mode == CORRAL_TRAINER_STREAM ? BATCH : 1,
                                           .buffer_bytes = 256 << 10,
                                           .record_bytes_max = 4096,
                                           .group_size = GROUP_SIZE,
                                           .group_ordered = 1,
                                           .groups_max = 64,
                                           .pack_tokens = 64};
}

static void use_batch(struct checkpoint *c, const struct corral_trainer_batch *b)
{
    struct corral_error err = {.sys = 0};
    static struct corral_traj_view view;
    for (uint32_t i = 0; i < b->count; i++) {
        NEED(corral_trainer_view(b, i, &view, &err) == CORRAL_OK);
        const struct corral_traj_tensor *t = corral_traj_record_find(&view.record, "token_ids");
        const uint32_t *ids = t->data;
        NEED(ids[0] == b->records[i].worker && ids[1] + 1 == b->records[i].sequence);
        NEED(b->records[i].bin < b->bins && view.record.group == b->records[i].group);
        NEED(c->used[ids[0]][ids[1]]++ == 0);
    }
    for (uint32_t g = 0; g < b->group_count; g++) {
        NEED(b->groups[g].count == GROUP_SIZE && b->groups[g].mean == 1.5);
        NEED(b->groups[g].id == c->steps); /* one group a batch, in order, over all lives */
    }
    c->steps++;
}

static void run_trainer(const struct paths *p, uint32_t mode, int told)
{
    struct corral_error err = {.sys = 0};
    static struct checkpoint c;
    struct corral_trainer *t;
    struct corral_trainer_options o = options(p, mode);
    char *saved;
    size_t bytes;
    if (corral_file_read(p->checkpoint, sizeof c, &saved, &bytes, &err) == CORRAL_OK) {
        NEED(bytes == sizeof c);
        memcpy(&c, saved, sizeof c);
        free(saved);
        o.cursors = c.cursors;
        o.cursor_bytes = c.cursor_bytes;
    }
    NEED(corral_trainer_open(&t, &o, &err) == CORRAL_OK);
    uint32_t per_step = mode == CORRAL_TRAINER_STREAM   ? BATCH
                        : mode == CORRAL_TRAINER_GROUPS ? GROUP_SIZE
                                                        : WORKERS;
    while (c.steps < WORKERS * RECORDS / per_step) {
        const struct corral_trainer_batch *b;
        enum corral_status status = corral_trainer_next(t, 1000, &b, &err);
        if (status == CORRAL_AGAIN) {
            continue;
        }
        NEED(status == CORRAL_OK && b->number == c.steps + 1);
        use_batch(&c, b);
        c.cursor_bytes = CURSORS_MAX;
        NEED(corral_trainer_cursors(t, b, c.cursors, &c.cursor_bytes, &err) == CORRAL_OK);
        NEED(write(told, "b", 1) == 1); /* before it is saved, between, and after it is acknowledged */
        NEED(corral_file_write_atomic(p->checkpoint, &c, sizeof c, 0600, false, &err) == CORRAL_OK);
        NEED(write(told, "s", 1) == 1);
        corral_trainer_done(t, b, ++c.version);
        NEED(write(told, "d", 1) == 1);
    }
    struct corral_trainer_stats s = {.size = sizeof s};
    NEED(corral_trainer_stats(t, &s, &err) == CORRAL_OK);
    NEED(s.lost == 0 && s.malformed == 0);
    corral_trainer_close(t);
}

/* Kills it after it has said so many words; 0: lets it come to its end. */
static int trainer_life(const struct paths *p, uint32_t mode, uint32_t words)
{
    int end[2];
    assert_int_equal(pipe(end), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(end[0]);
        run_trainer(p, mode, end[1]);
        _exit(0);
    }
    close(end[1]);
    char word;
    for (uint32_t said = 0; (words == 0 || said < words) && read(end[0], &word, 1) == 1; said++) {
    }
    if (words > 0) {
        kill(pid, SIGKILL);
    }
    close(end[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void each_record_is_trained_on_once(uint32_t mode, uint64_t seed)
{
    struct corral_error err;
    struct paths p;
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    make_paths(&p);
    pid_t writer[WORKERS];
    for (uint32_t w = 0; w < WORKERS; w++) {
        writer[w] = start_writer(&p, w, RECORDS);
    }
    for (uint32_t i = 0; i < KILLS; i++) {
        trainer_life(&p, mode, 1 + (uint32_t)corral_rng_below(&rng, 20));
    }
    assert_int_equal(trainer_life(&p, mode, 0), 0);
    for (uint32_t w = 0; w < WORKERS;
         w++) { /* everything is acknowledged, so they have come to their end too */
        int status;
        assert_int_equal(waitpid(writer[w], &status, 0), writer[w]);
        assert_int_equal(status, 0);
    }
    static struct checkpoint c;
    char *saved;
    size_t bytes;
    check_ok(corral_file_read(p.checkpoint, sizeof c, &saved, &bytes, &err));
    assert_int_equal(bytes, sizeof c);
    memcpy(&c, saved, sizeof c);
    free(saved);
    for (uint32_t w = 0; w < WORKERS; w++) {
        for (uint32_t i = 0; i < RECORDS; i++) {
            assert_int_equal(c.used[w][i], 1);
        }
    }
    remove_paths(&p);
}

static void a_killed_trainer_uses_each_record_once_streaming(void **state)
{
    (void)state;
    each_record_is_trained_on_once(CORRAL_TRAINER_STREAM, 1);
}

static void a_killed_trainer_uses_each_record_once_by_fragments(void **state)
{
    (void)state;
    each_record_is_trained_on_once(CORRAL_TRAINER_FRAGMENTS, 2);
}

static void a_killed_trainer_uses_each_record_once_by_groups(void **state)
{
    (void)state;
    each_record_is_trained_on_once(CORRAL_TRAINER_GROUPS, 3);
}

/* ---- in one process ---- */

static void says_for_whom_it_waits(void **state)
{
    (void)state;
    struct corral_error err;
    struct paths p;
    struct corral_trainer *t;
    const struct corral_trainer_batch *b;
    struct corral_trainer_stats s = {.size = sizeof s};
    make_paths(&p);
    struct corral_trainer_options o = options(&p, CORRAL_TRAINER_FRAGMENTS);
    pid_t writer = start_writer(&p, 1, 1); /* worker 0 has nothing */
    check_ok(corral_trainer_open(&t, &o, &err));
    do {
        check_status(corral_trainer_next(t, 50, &b, &err), CORRAL_AGAIN);
        check_ok(corral_trainer_stats(t, &s, &err));
    } while (s.received == 0);
    assert_non_null(strstr(err.text, "waits for worker 0: 1 of its 1 records are missing"));
    assert_string_equal(s.waiting, strstr(err.text, "the trainer"));
    assert_true(s.trainer_waited_ns > 0 && s.held == 1);
    pid_t other = start_writer(&p, 0, 1);
    enum corral_status status;
    while ((status = corral_trainer_next(t, 50, &b, &err)) == CORRAL_AGAIN) {
    }
    check_ok(status);
    assert_true(b->count == 2 && b->records[0].worker == 0 && b->records[1].worker == 1);
    corral_trainer_done(t, b, 1);
    int left = 2, ended;
    while (left > 0) { /* the acknowledgements have gone out, or go with the next call */
        check_status(corral_trainer_next(t, 10, &b, &err), CORRAL_AGAIN);
        left -= waitpid(writer, &ended, WNOHANG) == writer;
        left -= waitpid(other, &ended, WNOHANG) == other;
    }
    corral_trainer_close(t);
    remove_paths(&p);
}

static void refuses_options_that_make_no_sense(void **state)
{
    (void)state;
    struct corral_error err;
    struct paths p;
    struct corral_trainer *t;
    make_paths(&p);
    struct corral_trainer_options good = options(&p, CORRAL_TRAINER_STREAM), o = good;
    o.size = 8;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_INVALID);
    o = good;
    o.bind = NULL;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_INVALID);
    o = good;
    o.batch = 0;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_INVALID);
    o = good;
    o.record_bytes_max = UINT64_MAX;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_INVALID);
    check_status(corral_trainer_open(&t, NULL, &err), CORRAL_INVALID);
    o = good;
    o.workers = 5000;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_INVALID);
    o = good;
    o.cursors = "not these";
    o.cursor_bytes = 9;
    check_status(corral_trainer_open(&t, &o, &err), CORRAL_PROTOCOL);
    struct corral_trainer_stats s = {.size = 3};
    check_ok(corral_trainer_open(&t, &good, &err));
    assert_string_equal(corral_trainer_endpoint(t), p.endpoint);
    check_status(corral_trainer_stats(t, &s, &err), CORRAL_INVALID);
    corral_trainer_close(t);
    corral_trainer_close(NULL);
    remove_paths(&p);
}

static void an_address_has_one_trainer(void **state)
{
    (void)state;
    struct corral_error err;
    struct paths p;
    struct corral_trainer *t, *second;
    make_paths(&p);
    struct corral_trainer_options o = options(&p, CORRAL_TRAINER_STREAM);
    check_ok(corral_trainer_open(&t, &o, &err));
    check_status(corral_trainer_open(&second, &o, &err), CORRAL_STATE);
    assert_non_null(strstr(err.text, "another trainer receives there"));
    corral_trainer_close(t);
    check_ok(corral_trainer_open(&t, &o, &err));
    corral_trainer_close(t);
    /* What a killed one leaves is nobody's. */
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        NEED(corral_trainer_open(&t, &o, &err) == CORRAL_OK);
        raise(SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(access(p.endpoint + 6, F_OK), 0);
    check_ok(corral_trainer_open(&t, &o, &err));
    corral_trainer_close(t);
    remove_paths(&p);
}

static void writers_hear_of_the_last_batch_before_the_trainer_goes(void **state)
{
    (void)state;
    struct corral_error err;
    struct paths p;
    make_paths(&p);
    for (uint32_t round = 0; round < 20; round++) {
        struct corral_trainer *t;
        const struct corral_trainer_batch *b;
        struct corral_trainer_options o = options(&p, CORRAL_TRAINER_STREAM);
        check_ok(corral_trainer_open(&t, &o, &err));
        pid_t pid = start_writer(&p, 0, BATCH); /* ends when all is acknowledged */
        enum corral_status status = CORRAL_AGAIN;
        for (uint32_t i = 0; i < 100 && status == CORRAL_AGAIN; i++) {
            status = corral_trainer_next(t, 100, &b, &err);
        }
        check_ok(status);
        corral_trainer_done(t, b, 1);
        corral_trainer_close(t);
        struct pollfd child = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
        assert_true(child.fd >= 0);
        const int ended = poll(&child, 1, 20000);
        close(child.fd);
        kill(pid, SIGKILL);
        int how;
        assert_int_equal(waitpid(pid, &how, 0), pid);
        assert_int_equal(ended, 1);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    }
    remove_paths(&p);
}

static void structs_of_other_releases_are_read(void **state)
{
    (void)state;
    struct corral_error err;
    struct paths p;
    struct corral_trainer *t;
    make_paths(&p);
    struct {
        struct corral_trainer_options o;
        uint64_t later[4];
    } longer = {.o = options(&p, CORRAL_TRAINER_STREAM)};
    longer.o.size = sizeof longer;
    check_ok(corral_trainer_open(&t, &longer.o, &err));
    corral_trainer_close(t);
    struct corral_trainer_options shorter = options(&p, CORRAL_TRAINER_STREAM);
    shorter.size = offsetof(struct corral_trainer_options, cursors); /* an earlier release had none */
    shorter.cursors = "not to be read";
    shorter.cursor_bytes = 3;
    check_ok(corral_trainer_open(&t, &shorter, &err));
    struct {
        struct corral_trainer_stats s;
        uint64_t later[4];
    } stats = {.s.size = sizeof stats, .later = {1, 1, 1, 1}};
    check_ok(corral_trainer_stats(t, &stats.s, &err));
    assert_true(stats.s.size == sizeof stats && stats.later[0] == 0 && stats.later[3] == 0);
    stats.s.size = offsetof(struct corral_trainer_stats, duplicates);
    stats.s.duplicates = 77;
    check_ok(corral_trainer_stats(t, &stats.s, &err));
    assert_int_equal(stats.s.duplicates, 77);
    corral_trainer_close(t);
    remove_paths(&p);
}

static void packs_for_others(void **state)
{
    (void)state;
    struct corral_error err;
    const uint64_t tokens[6] = {60, 50, 40, 30, 20, 10};
    uint32_t rank[6], round[6];
    uint64_t fill[2][3] = {{0}};
    struct corral_trainer_packing p = {.size = sizeof p, .budget = 100, .ranks = 2};
    check_ok(corral_trainer_pack(&p, tokens, 6, rank, round, &err));
    for (uint32_t i = 0; i < 6; i++) {
        fill[rank[i]][round[i]] += tokens[i];
        assert_true(fill[rank[i]][round[i]] <= 100);
    }
    assert_true(p.rounds <= 2 && p.bins <= 4 && p.imbalance < 0.06);
    p.budget = 59;
    check_status(corral_trainer_pack(&p, tokens, 6, rank, round, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "sequence 0 has 60 tokens"));
    p.size = 1;
    check_status(corral_trainer_pack(&p, tokens, 6, rank, round, &err), CORRAL_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_trainer_uses_each_record_once_streaming),
        cmocka_unit_test(a_killed_trainer_uses_each_record_once_by_fragments),
        cmocka_unit_test(a_killed_trainer_uses_each_record_once_by_groups),
        cmocka_unit_test(says_for_whom_it_waits),
        cmocka_unit_test(refuses_options_that_make_no_sense),
        cmocka_unit_test(an_address_has_one_trainer),
        cmocka_unit_test(writers_hear_of_the_last_batch_before_the_trainer_goes),
        cmocka_unit_test(structs_of_other_releases_are_read),
        cmocka_unit_test(packs_for_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
