/* The receiver as a peer sees it that speaks the protocol byte by byte, and the answers it gives to one that breaks it. */
#include "tests/check.h"

#include "base/clock.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/test_support.h"
#include "transport/trajectory/wire.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define RUN 3
#define TOKEN "a-token"
#define SESSION 1000
#define BUFFER (64u << 10)
#define PATIENCE_NS (60 * CORRAL_NS_PER_S)

struct world {
    char folder[TEST_PATH_MAX];
    void *context, *peer;
    struct corral_traj_receiver *receiver;
    struct corral_mpack_writer *writer;
    const struct corral_traj_item *held[16];
    uint32_t held_count;
};

static void world_open(struct world *w)
{
    struct corral_error err;
    char bind[TEST_PATH_MAX + 16];
    int linger = 0;
    memset(w, 0, sizeof *w);
    test_folder_make(w->folder);
    snprintf(bind, sizeof bind, "ipc://%s/traj", w->folder);
    w->context = zmq_ctx_new();
    w->writer = corral_mpack_writer_create();
    struct corral_traj_receiver_config c = {.zmq_context = w->context,
                                            .run = RUN,
                                            .bind = bind,
                                            .buffer_bytes = BUFFER,
                                            .memory = &corral_allocator_heap,
                                            .transport = test_transport(),
                                            .token = TOKEN};
    check_ok(corral_traj_receiver_create(&w->receiver, &c, &err));
    w->peer = zmq_socket(w->context, ZMQ_DEALER);
    zmq_setsockopt(w->peer, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_connect(w->peer, bind), 0);
}

static void world_close(struct world *w)
{
    zmq_close(w->peer);
    corral_traj_receiver_destroy(w->receiver);
    corral_mpack_writer_destroy(w->writer);
    zmq_ctx_term(w->context);
    test_folder_remove(w->folder);
}

static void say(struct world *w, struct corral_traj_message m)
{
    const void *data;
    size_t bytes;
    m.session = m.session != 0 ? m.session : SESSION;
    corral_traj_encode(w->writer, &m);
    assert_int_equal(corral_mpack_finish(w->writer, &data, &bytes, NULL), CORRAL_OK);
    assert_int_equal(zmq_send(w->peer, data, bytes, 0), bytes);
}

static void say_records(struct world *w, uint32_t epoch, uint64_t first, uint32_t count, uint64_t payload)
{
    struct corral_traj_batch b = {.magic = CORRAL_TRAJ_BATCH_MAGIC,
                                  .protocol = CORRAL_TRAJ_PROTOCOL,
                                  .session = SESSION,
                                  .first = first,
                                  .count = count};
    uint8_t *frame = NULL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes;
        void *record = test_numbered_record(RUN, 1, epoch, first + i, payload, &bytes);
        frame = realloc(frame, sizeof b + b.bytes + bytes);
        memcpy(frame + sizeof b + b.bytes, record, bytes);
        b.bytes += bytes;
        free(record);
    }
    memcpy(frame, &b, sizeof b);
    assert_int_equal(zmq_send(w->peer, frame, sizeof b + b.bytes, 0), sizeof b + b.bytes);
    free(frame);
}

static void say_record(struct world *w, uint32_t epoch, uint64_t sequence, uint64_t payload)
{
    say_records(w, epoch, sequence, 1, payload);
}

/* The next answer of this type; what the receiver hands out meanwhile is held, other answers are passed over. */
static struct corral_traj_message hear(struct world *w, enum corral_traj_type type)
{
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
    for (;;) {
        uint8_t frame[CORRAL_TRAJ_CONTROL_BYTES_MAX];
        struct corral_traj_message m;
        int bytes = zmq_recv(w->peer, frame, sizeof frame, ZMQ_DONTWAIT);
        if (bytes >= 0) {
            assert_int_equal(corral_traj_decode(frame, (size_t)bytes, &m, NULL), CORRAL_OK);
            if (m.type == type) {
                return m;
            }
            continue;
        }
        if (corral_traj_receiver_next(w->receiver, 1, &w->held[w->held_count], NULL) == CORRAL_OK) {
            w->held_count++;
            assert_true(w->held_count < CORRAL_COUNT_OF(w->held));
        }
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
    }
}

static struct corral_traj_message hello(uint32_t epoch, uint64_t first)
{
    return (struct corral_traj_message){.type = CORRAL_TRAJ_HELLO,
                                        .protocol = CORRAL_TRAJ_PROTOCOL,
                                        .first = first,
                                        .token = TOKEN,
                                        .run = RUN,
                                        .worker = 1,
                                        .epoch = epoch};
}

static void log_in(struct world *w)
{
    say(w, hello(1, 1));
    struct corral_traj_message m = hear(w, CORRAL_TRAJ_WELCOME);
    assert_int_equal(m.session, SESSION);
    assert_int_equal(m.acked, 0);
    assert_int_equal(m.received, 0);
    assert_int_equal(m.bytes, BUFFER); /* alone, it has the whole window */
    assert_int_equal(m.buffer, BUFFER);
}

static struct corral_traj_receiver_stats stats_of(const struct world *w)
{
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(w->receiver, &stats);
    return stats;
}

static void a_duplicate_is_acknowledged_again_and_handed_out_once(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    say_record(&w, 1, 1, 4);
    say_record(&w, 1, 2, 4);
    say_record(&w, 1, 1, 4);
    struct corral_traj_message m = hear(&w, CORRAL_TRAJ_CREDIT);
    assert_int_equal(m.acked, 0); /* received, but nothing is finished */
    assert_int_equal(w.held_count, 2);
    corral_traj_receiver_finish(w.receiver, w.held[0]);
    say_record(&w, 1, 1, 4);
    m = hear(&w, CORRAL_TRAJ_CREDIT);
    assert_int_equal(m.acked, 1);
    corral_traj_receiver_finish(w.receiver, w.held[1]);
    while (m.acked == 1) { /* the duplicate is answered too */
        m = hear(&w, CORRAL_TRAJ_CREDIT);
    }
    assert_int_equal(m.acked, 2);
    assert_int_equal(w.held_count, 2);
    assert_int_equal(stats_of(&w).duplicates, 2);
    world_close(&w);
}

static void a_gap_is_refused_and_the_missing_one_asked_for(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    say_record(&w, 1, 1, 4);
    say_record(&w, 1, 3, 4);
    struct corral_traj_message m = hear(&w, CORRAL_TRAJ_RESEND);
    assert_int_equal(m.sequence, 2);
    assert_int_equal(w.held_count, 1);
    assert_int_equal(stats_of(&w).gaps, 1);
    say_record(&w, 1, 2, 4);
    say_record(&w, 1, 3, 4);
    say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_PING});
    m = hear(&w, CORRAL_TRAJ_CREDIT);
    assert_int_equal(w.held_count, 3);
    world_close(&w);
}

static void what_overlaps_is_handed_out_once(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    say_records(&w, 1, 1, 4, 10);
    say_records(&w, 1, 3, 4, 10); /* 3 and 4 are known */
    say_records(&w, 1, 8, 2, 10); /* 7 is missing */
    assert_int_equal(hear(&w, CORRAL_TRAJ_RESEND).sequence, 7);
    assert_int_equal(w.held_count, 6);
    assert_int_equal(stats_of(&w).duplicates, 2);
    assert_int_equal(stats_of(&w).gaps, 2);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(w.held[i]->sequence, i + 1);
    }
    assert_int_equal(stats_of(&w).malformed, 0);
    world_close(&w);
}

/* Part of a message fits: that part is taken, the rest is asked for. */
static void a_message_is_taken_as_far_as_credit_goes(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    say_records(&w, 1, 1, 1, 30000);
    say_records(&w, 1, 2, 2, 20000);
    assert_int_equal(hear(&w, CORRAL_TRAJ_RESEND).sequence, 3);
    assert_int_equal(w.held_count, 2);
    assert_int_equal(stats_of(&w).malformed, 1);
    world_close(&w);
}

static void a_damaged_message_enters_with_nothing(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    uint64_t bytes;
    void *record = test_numbered_record(RUN, 1, 1, 1, 10, &bytes);
    struct corral_traj_batch b = {.magic = CORRAL_TRAJ_BATCH_MAGIC,
                                  .protocol = CORRAL_TRAJ_PROTOCOL,
                                  .session = SESSION,
                                  .first = 1,
                                  .count = 2,
                                  .bytes = 2 * bytes};
    uint8_t frame[2048] = {0};
    memcpy(frame, &b, sizeof b);
    memcpy(frame + sizeof b, record, bytes);
    memcpy(frame + sizeof b + bytes, record, bytes); /* the second has the number of the first */
    free(record);
    assert_true(zmq_send(w.peer, frame, sizeof b + 2 * bytes, 0) > 0);
    assert_int_equal(hear(&w, CORRAL_TRAJ_RESEND).sequence, 1);
    assert_int_equal(w.held_count, 0);
    assert_int_equal(stats_of(&w).malformed, 1);
    world_close(&w);
}

static void what_exceeds_the_credit_is_not_taken(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    say_record(&w, 1, 1, 48600); /* most of the window */
    say_record(&w, 1, 2, 48600);
    struct corral_traj_message m = hear(&w, CORRAL_TRAJ_RESEND);
    assert_int_equal(m.sequence, 2);
    assert_int_equal(w.held_count, 1);
    assert_int_equal(stats_of(&w).malformed, 1);
    assert_true(stats_of(&w).held_bytes <= BUFFER);
    uint64_t each = stats_of(&w).held_bytes;
    say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_WANT, .bytes = 2 * each});
    corral_traj_receiver_finish(w.receiver, w.held[0]); /* makes room for it */
    while (hear(&w, CORRAL_TRAJ_CREDIT).bytes < 2 * each) {
    }
    say_record(&w, 1, 2, 48600);
    say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_PING});
    while (w.held_count < 2) {
        (void)hear(&w, CORRAL_TRAJ_CREDIT);
        say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_PING});
    }
    assert_int_equal(w.held[1]->sequence, 2);
    world_close(&w);
}

static void a_peer_without_a_session_is_told_to_say_hello(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    say_record(&w, 1, 1, 4);
    assert_int_equal(hear(&w, CORRAL_TRAJ_REHELLO).session, SESSION);
    assert_int_equal(w.held_count, 0);
    world_close(&w);
}

static void records_of_an_older_epoch_are_acknowledged_and_dropped(void **state)
{
    (void)state;
    struct world w;
    struct corral_error err;
    world_open(&w);
    check_ok(corral_traj_receiver_restore(w.receiver, &(struct corral_traj_cursor){1, 5, 9}, 1, &err));
    say_record(&w, 4, 70, 4);
    assert_int_equal(hear(&w, CORRAL_TRAJ_CREDIT).acked, 70);
    say(&w, hello(4, 71));
    assert_non_null(strstr(hear(&w, CORRAL_TRAJ_REFUSED).reason, "newer epoch"));
    say(&w, hello(5, 10));
    struct corral_traj_message m = hear(&w, CORRAL_TRAJ_WELCOME);
    assert_int_equal(m.acked, 9);
    assert_int_equal(m.received, 9);
    assert_int_equal(stats_of(&w).duplicates, 1);
    assert_int_equal(w.held_count, 0);
    world_close(&w);
}

static void leftovers_of_an_earlier_session_are_ignored(void **state)
{
    (void)state;
    struct world w;
    world_open(&w);
    log_in(&w);
    struct corral_traj_message again = hello(1, 1);
    again.session = SESSION + 1;
    say(&w, again);
    say_record(&w, 1, 1, 4); /* still of the first session */
    say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_WANT, .bytes = UINT64_MAX});
    say(&w, (struct corral_traj_message){.type = CORRAL_TRAJ_PING, .session = SESSION + 1});
    (void)hear(&w, CORRAL_TRAJ_WELCOME);
    assert_int_equal(hear(&w, CORRAL_TRAJ_CREDIT).session, SESSION + 1);
    assert_int_equal(w.held_count, 0);
    assert_int_equal(stats_of(&w).malformed, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_duplicate_is_acknowledged_again_and_handed_out_once),
        cmocka_unit_test(a_gap_is_refused_and_the_missing_one_asked_for),
        cmocka_unit_test(what_overlaps_is_handed_out_once),
        cmocka_unit_test(a_message_is_taken_as_far_as_credit_goes),
        cmocka_unit_test(a_damaged_message_enters_with_nothing),
        cmocka_unit_test(what_exceeds_the_credit_is_not_taken),
        cmocka_unit_test(a_peer_without_a_session_is_told_to_say_hello),
        cmocka_unit_test(records_of_an_older_epoch_are_acknowledged_and_dropped),
        cmocka_unit_test(leftovers_of_an_earlier_session_are_ignored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
