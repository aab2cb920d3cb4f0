/* Trajectories written through <corral/rollout.h>, received by transport/trajectory/receiver.h in the same thread: nothing here waits for a clock but where a deadline is the point. */
#include "base/file.h"
#include "tests/check.h"
#include "transport/trajectory/receiver.h"
#include "worker/record_share.h"
#include <corral/rollout.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define RUN 0x7f3a
#define TOKEN "secret"
#define RANKS 2

static struct corral_error err;

struct rig {
    char folder[64], address[RANKS][96];
    const char *endpoints[RANKS];
    void *zmq;
    struct corral_traj_receiver *receiver[RANKS];
    struct corral_traj_writer *writer;
};

static void start_receiver(struct rig *g, uint32_t rank, uint64_t buffer_bytes)
{
    const struct corral_traj_receiver_config c = {.zmq_context = g->zmq,
                                                  .run = RUN,
                                                  .bind = g->address[rank],
                                                  .buffer_bytes = buffer_bytes,
                                                  .memory = &corral_allocator_heap,
                                                  .token = TOKEN};
    check_ok(corral_traj_receiver_create(&g->receiver[rank], &c, &err));
}

static struct corral_traj_writer_options options_of(const struct rig *g, uint32_t ranks)
{
    return (struct corral_traj_writer_options){.size = sizeof(struct corral_traj_writer_options),
                                               .run = RUN,
                                               .token = TOKEN,
                                               .worker = 5,
                                               .epoch = 3,
                                               .endpoints = g->endpoints,
                                               .endpoint_count = ranks};
}

static void rig_open(struct rig *g, uint32_t ranks, uint64_t buffer_bytes)
{
    *g = (struct rig){.zmq = zmq_ctx_new()};
    strcpy(g->folder, "/tmp/corral-writer-XXXXXX");
    assert_non_null(mkdtemp(g->folder));
    for (uint32_t i = 0; i < RANKS; i++) {
        snprintf(g->address[i], sizeof g->address[i], "ipc://%s/traj-%u", g->folder, i);
        g->endpoints[i] = g->address[i];
    }
    for (uint32_t i = 0; i < ranks; i++) {
        start_receiver(g, i, buffer_bytes);
    }
    const struct corral_traj_writer_options o = options_of(g, ranks);
    check_ok(corral_traj_writer_open(&g->writer, &o, &err));
}

static void rig_close(struct rig *g)
{
    corral_traj_writer_close(g->writer);
    for (uint32_t i = 0; i < RANKS; i++) {
        corral_traj_receiver_destroy(g->receiver[i]);
    }
    zmq_ctx_term(g->zmq);
    check_ok(corral_remove_tree(g->folder, &err));
}

/* The next record at a rank, both sides being served meanwhile. */
static const struct corral_traj_item *receive(struct rig *g, uint32_t rank)
{
    const struct corral_traj_item *item = NULL;
    enum corral_status status;
    do {
        check_ok(corral_traj_writer_poll(g->writer, 0, &err));
        status = corral_traj_receiver_next(g->receiver[rank], 1, &item, &err);
    } while (status == CORRAL_AGAIN);
    check_ok(status);
    return item;
}

/* corral_traj_writer_write(), the receivers being served until there is room. */
static uint64_t put(struct rig *g, uint32_t rank, const struct corral_traj_record *r)
{
    uint64_t sequence = 0;
    enum corral_status status;
    const struct corral_traj_item *none;
    while ((status = corral_traj_writer_write(g->writer, rank, r, 0, &sequence, &err)) == CORRAL_AGAIN) {
        for (uint32_t i = 0; i < RANKS && g->receiver[i] != NULL; i++) {
            assert_int_equal(corral_traj_receiver_next(g->receiver[i], 1, &none, &err), CORRAL_AGAIN);
        }
    }
    check_ok(status);
    return sequence;
}

static void until_acknowledged(struct rig *g)
{
    const struct corral_traj_item *none;
    while (corral_traj_writer_wait(g->writer, 1, &err) != CORRAL_OK) {
        for (uint32_t i = 0; i < RANKS && g->receiver[i] != NULL; i++) {
            (void)corral_traj_receiver_next(g->receiver[i], 1, &none, &err);
        }
    }
}

static const float rewards[3] = {0, 0.5f, 1};
static const struct corral_traj_tensor one_tensor = {
    .name = "reward", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {3}, .data = rewards};
static const struct corral_traj_record plain = {
    .size = sizeof plain, .env = "calc", .tokens = 3, .tensors = &one_tensor, .tensor_count = 1};

static void what_is_written_arrives_with_its_identity(void **state)
{
    (void)state;
    static struct corral_traj_view view;
    struct rig g;
    rig_open(&g, 1, 1 << 20);
    for (uint64_t i = 1; i <= 20; i++) {
        struct corral_traj_record r = plain;
        r.episode = i * 10;
        assert_int_equal(put(&g, 0, &r), i);
    }
    for (uint64_t i = 1; i <= 20; i++) {
        const struct corral_traj_item *item = receive(&g, 0);
        check_ok(corral_traj_record_decode(item->data, item->bytes, &view, &err));
        assert_int_equal(view.record.run, RUN);
        assert_int_equal(view.record.worker, 5);
        assert_int_equal(view.record.epoch, 3);
        assert_int_equal(view.record.sequence, i);
        assert_int_equal(view.record.episode, i * 10);
        assert_memory_equal(view.tensors[0].data, rewards, sizeof rewards);
        corral_traj_receiver_finish(g.receiver[0], item);
    }
    until_acknowledged(&g);
    struct corral_traj_writer_stats s = {.size = sizeof s};
    check_ok(corral_traj_writer_stats(g.writer, &s, &err));
    assert_true(s.written == 20 && s.acked == 20 && s.unacked_bytes == 0);
    rig_close(&g);
}

static void tensors_are_written_in_place(void **state)
{
    (void)state;
    static struct corral_traj_view view;
    struct rig g;
    rig_open(&g, 1, 1 << 20);
    struct corral_traj_tensor t = one_tensor;
    t.data = NULL;
    struct corral_traj_record r = plain;
    r.tensors = &t;
    assert_null(corral_traj_writer_place(g.writer, 0));
    check_status(corral_traj_writer_commit(g.writer, NULL, &err), CORRAL_STATE);
    put(&g, 0, &plain); /* there is a session now */
    check_status(corral_traj_writer_write(g.writer, 0, &r, 0, NULL, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "`reward`"));
    check_status(corral_traj_writer_commit(g.writer, NULL, &err), CORRAL_STATE);
    check_ok(corral_traj_writer_begin(g.writer, 0, &r, 0, &err));
    check_status(corral_traj_writer_begin(g.writer, 7, &r, 0, &err), CORRAL_INVALID);
    check_status(corral_traj_writer_commit(g.writer, NULL, &err), CORRAL_STATE); /* not the one before */
    check_ok(corral_traj_writer_begin(g.writer, 0, &r, 0, &err));
    check_ok(corral_traj_writer_begin(g.writer, 0, &r, 0, &err)); /* instead of the first */
    float *place = corral_traj_writer_place(g.writer, 0);
    assert_int_equal((uintptr_t)place % 64, 0);
    assert_null(corral_traj_writer_place(g.writer, 1));
    place[0] = 7, place[1] = 8, place[2] = 9;
    check_ok(corral_traj_writer_commit(g.writer, NULL, &err));
    corral_traj_receiver_finish(g.receiver[0], receive(&g, 0));
    const struct corral_traj_item *item = receive(&g, 0);
    check_ok(corral_traj_record_decode(item->data, item->bytes, &view, &err));
    assert_int_equal(view.record.sequence, 2);
    assert_true(((const float *)view.tensors[0].data)[2] == 9);
    corral_traj_receiver_finish(g.receiver[0], item);
    rig_close(&g);
}

static void a_group_stays_together(void **state)
{
    (void)state;
    static struct corral_traj_view view;
    struct rig g;
    rig_open(&g, RANKS, 1 << 20);
    uint32_t at_rank[RANKS] = {0}, members[40][RANKS] = {{0}};
    for (uint32_t i = 0; i < 80; i++) {
        struct corral_traj_record r = plain;
        r.group = i / 2, r.group_index = i % 2, r.group_size = 2;
        put(&g, CORRAL_TRAJ_ANY_RANK, &r);
    }
    for (uint32_t i = 0; i < 10; i++) {
        put(&g, CORRAL_TRAJ_ANY_RANK, &plain);
    }
    struct corral_traj_writer_stats s = {.size = sizeof s};
    for (uint32_t got = 0; got < 90;) {
        check_ok(corral_traj_writer_poll(g.writer, 0, &err));
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            const struct corral_traj_item *item;
            if (corral_traj_receiver_next(g.receiver[rank], 1, &item, &err) == CORRAL_OK) {
                check_ok(corral_traj_record_decode(item->data, item->bytes, &view, &err));
                if (view.record.group_size > 0) {
                    members[view.record.group][rank]++;
                } else {
                    at_rank[rank]++;
                }
                corral_traj_receiver_finish(g.receiver[rank], item);
                got++;
            }
        }
    }
    uint32_t groups[RANKS] = {0};
    for (uint32_t i = 0; i < 40; i++) {
        assert_true(members[i][0] == 2 || members[i][1] == 2);
        const struct corral_record_share all = {.seed = options_of(&g, RANKS).run,
                                                .live = (1u << RANKS) - 1}; /* the rule that trainers know */
        assert_int_equal(members[i][corral_record_rank(&all, corral_record_key(0, 2, i, 0))], 2);
        groups[members[i][1] == 2]++;
    }
    assert_in_range(groups[0], 8, 32);
    assert_int_equal(at_rank[0], 5);
    check_ok(corral_traj_writer_stats(g.writer, &s, &err));
    assert_int_equal(s.written, 90);
    rig_close(&g);
}

static void no_room_is_named(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, 1, 64 << 10);
    const struct corral_traj_tensor big = {
        .name = "obs", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {20 << 10}, .data = calloc(20, 1 << 10)};
    struct corral_traj_record r = plain;
    r.tensors = &big;
    put(&g, 0, &r);
    const struct corral_traj_item *held[3];
    held[0] = receive(&g, 0);
    put(&g, 0, &r);
    held[1] = receive(&g, 0);
    put(&g, 0, &r);
    held[2] = receive(&g, 0);
    check_status(corral_traj_writer_begin(g.writer, 0, &r, 5, &err), CORRAL_TIMEOUT);
    assert_int_equal(err.status, CORRAL_TIMEOUT);
    assert_non_null(strstr(err.text, "no room within 5 ms"));
    assert_non_null(strstr(err.text, "trainer-0"));
    check_status(corral_traj_writer_begin(g.writer, 0, &r, 0, &err), CORRAL_AGAIN);
    check_status(corral_traj_writer_begin(g.writer, 0, &r, 5, NULL), CORRAL_TIMEOUT);
    check_status(corral_traj_writer_wait(g.writer, 1, &err), CORRAL_TIMEOUT);
    for (uint32_t i = 0; i < 3; i++) {
        corral_traj_receiver_finish(g.receiver[0], held[i]);
    }
    put(&g, 0, &r);
    corral_traj_receiver_finish(g.receiver[0], receive(&g, 0));
    free((void *)(uintptr_t)big.data);
    rig_close(&g);
}

static void a_trainer_that_comes_back_gets_the_rest_once(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, 1, 1 << 20);
    for (uint32_t i = 0; i < 10; i++) {
        put(&g, 0, &plain);
    }
    const struct corral_traj_item *item[10];
    for (uint32_t i = 0; i < 10; i++) {
        item[i] = receive(&g, 0);
    }
    struct corral_traj_cursor cursor;
    assert_int_equal(corral_traj_receiver_cursors(g.receiver[0], item, 4, &cursor, 1), 1);
    corral_traj_receiver_destroy(g.receiver[0]); /* before it acknowledged anything */
    start_receiver(&g, 0, 1 << 20);
    check_ok(corral_traj_receiver_restore(g.receiver[0], &cursor, 1, &err));
    for (uint64_t sequence = 5; sequence <= 10; sequence++) {
        const struct corral_traj_item *again = receive(&g, 0);
        assert_int_equal(again->sequence, sequence);
        corral_traj_receiver_finish(g.receiver[0], again);
    }
    until_acknowledged(&g);
    rig_close(&g);
}

static void a_foreign_writer_is_refused_with_the_reason(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, 1, 1 << 20);
    corral_traj_writer_close(g.writer);
    struct corral_traj_writer_options o = options_of(&g, 1);
    o.token = "wrong";
    check_ok(corral_traj_writer_open(&g.writer, &o, &err));
    enum corral_status status;
    const struct corral_traj_item *none;
    while ((status = corral_traj_writer_write(g.writer, 0, &plain, 0, NULL, &err)) == CORRAL_AGAIN) {
        check_status(corral_traj_receiver_next(g.receiver[0], 1, &none, &err), CORRAL_AGAIN);
        if (corral_traj_writer_poll(g.writer, 0, &err) != CORRAL_OK) {
            break;
        }
    }
    assert_int_equal(err.status, CORRAL_INVALID);
    assert_non_null(strstr(err.text, "token"));
    rig_close(&g);
}

static void refuse_options(const struct corral_traj_writer_options *o, const char *named)
{
    struct corral_traj_writer *w = NULL;
    check_status(corral_traj_writer_open(&w, o, &err), CORRAL_INVALID);
    assert_null(w);
    if (strstr(err.text, named) == NULL) {
        fail_msg("`%s` does not name `%s`", err.text, named);
    }
}

static void wrong_arguments_are_named(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, 1, 1 << 20);
    const struct corral_traj_writer_options good = options_of(&g, 1);
    struct corral_traj_writer_options o;
    refuse_options(NULL, "size");
#define BAD(member, value, named) \
    o = good;                     \
    o.member = value;             \
    refuse_options(&o, named)
    BAD(size, 4, "size");
    BAD(endpoints, NULL, "endpoints");
    BAD(endpoint_count, 0, "endpoints");
    BAD(worker, 1024, "worker 1024");
    BAD(token, NULL, "token");
    BAD(io_threads, 99, "io_threads");
    const char *nonsense = "nonsense";
    BAD(endpoints, &nonsense, "nonsense");
    const char *tcp = "tcp://127.0.0.1:9"; /* without a key */
    BAD(endpoints, &tcp, "tcp");
    check_status(corral_traj_writer_write(g.writer, 1, &plain, 0, NULL, &err), CORRAL_INVALID);
    check_status(corral_traj_writer_connect(g.writer, 1, g.address[0], &err), CORRAL_INVALID);
    struct corral_traj_record r = plain;
    r.kind = 9;
    check_status(corral_traj_writer_write(g.writer, 0, &r, 0, NULL, &err), CORRAL_INVALID);
    struct corral_traj_writer_stats s = {.size = 0};
    check_status(corral_traj_writer_stats(g.writer, &s, &err), CORRAL_INVALID);
    corral_traj_writer_close(NULL);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_arrives_with_its_identity),
        cmocka_unit_test(tensors_are_written_in_place),
        cmocka_unit_test(a_group_stays_together),
        cmocka_unit_test(no_room_is_named),
        cmocka_unit_test(a_trainer_that_comes_back_gets_the_rest_once),
        cmocka_unit_test(a_foreign_writer_is_refused_with_the_reason),
        cmocka_unit_test(wrong_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
