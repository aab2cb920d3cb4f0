/* Senders that are killed at any point, and peers that send garbage. The killed sender is this program started again: fault_test sender
 * ENDPOINT WORKER EPOCH. */
#include "tests/check.h"

#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "transport/trajectory/receiver.h"
#include "transport/trajectory/sender.h"
#include "transport/trajectory/test_support.h"
#include "transport/trajectory/wire.h"
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define RUN 7
#define TOKEN "a-token"
#define BUFFER (256u << 10)
#define FRAGMENT_SIZE 9
#define PATIENCE_NS (120 * CORRAL_NS_PER_S)

extern char **environ;

static uint64_t fragment_seed(uint32_t worker, uint32_t epoch, uint64_t sequence)
{
    return corral_seed_derive(99, worker, epoch, sequence);
}

static struct corral_traj_receiver *receiver_open(void *context, const char *folder)
{
    struct corral_error err;
    struct corral_traj_receiver *r = NULL;
    char bind[TEST_PATH_MAX + 16];
    snprintf(bind, sizeof bind, "ipc://%s/traj", folder);
    struct corral_traj_receiver_config c = {.zmq_context = context,
                                            .run = RUN,
                                            .bind = bind,
                                            .buffer_bytes = BUFFER,
                                            .memory = &corral_allocator_heap,
                                            .transport = test_transport(),
                                            .token = TOKEN};
    check_ok(corral_traj_receiver_create(&r, &c, &err));
    return r;
}

static struct corral_traj_sender *sender_open(void *context, const char *endpoint, uint32_t worker,
                                              uint32_t epoch)
{
    struct corral_traj_sender *s = NULL;
    struct corral_traj_sender_config c = {.zmq_context = context,
                                          .run = RUN,
                                          .worker = worker,
                                          .epoch = epoch,
                                          .window_bytes = 1 << 20,
                                          .memory = &corral_allocator_heap,
                                          .transport = test_transport(),
                                          .token = TOKEN};
    if (corral_traj_sender_create(&s, &c, NULL) != CORRAL_OK ||
        corral_traj_sender_connect(s, 0, endpoint, NULL) != CORRAL_OK) {
        abort();
    }
    return s;
}

/* ---- killed senders ---- */

/* Sends for ever; ends with the test. */
static int sender_main(char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    uint64_t worker = 0, epoch = 0;
    if (!corral_parse_u64(argv[3], &worker) || !corral_parse_u64(argv[4], &epoch)) {
        return 2;
    }
    struct corral_traj_sender *s = sender_open(zmq_ctx_new(), argv[2], (uint32_t)worker, (uint32_t)epoch);
    for (uint64_t sequence = 1;; sequence++) {
        struct test_fragment t;
        test_fragment_make(&t, fragment_seed((uint32_t)worker, (uint32_t)epoch, sequence), FRAGMENT_SIZE);
        enum corral_status status;
        while ((status = corral_traj_sender_send_fragment(s, 0, &t.fragment, NULL)) == CORRAL_AGAIN) {
            if (corral_traj_sender_poll(s, 20, NULL) != CORRAL_OK) {
                return 3;
            }
        }
        test_fragment_free(&t);
        if (status != CORRAL_OK) {
            return 4;
        }
    }
}

static pid_t sender_start(const char *endpoint, uint32_t worker, uint32_t epoch)
{
    char worker_text[16], epoch_text[16], program[] = "/proc/self/exe", mode[] = "sender", where[128];
    snprintf(worker_text, sizeof worker_text, "%u", worker);
    snprintf(epoch_text, sizeof epoch_text, "%u", epoch);
    snprintf(where, sizeof where, "%s", endpoint);
    char *argv[] = {program, mode, where, worker_text, epoch_text, NULL};
    pid_t pid;
    assert_int_equal(posix_spawn(&pid, program, NULL, NULL, argv, environ), 0);
    return pid;
}

static void sender_kill(pid_t pid)
{
    int status;
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status)); /* it had not given up by itself */
}

#define KILLED_WORKERS 2
#define HELD_MAX 512
struct ledger {
    struct corral_traj_cursor done[KILLED_WORKERS]; /* finished */
    struct corral_traj_cursor seen[KILLED_WORKERS]; /* handed out by the present receiver */
    const struct corral_traj_item *held[HELD_MAX];
    uint32_t held_count;
    uint64_t total;
};

/* Each stream counts up without gaps or repeats, contents and all; a new epoch starts at 1. */
static void check_arrival(struct ledger *l, const struct corral_traj_item *f)
{
    assert_true(f->worker < KILLED_WORKERS);
    struct corral_traj_cursor *seen = &l->seen[f->worker];
    if (f->epoch != seen->epoch) {
        assert_true(f->epoch > seen->epoch);
        *seen = (struct corral_traj_cursor){f->worker, f->epoch, 0};
    }
    assert_int_equal(f->sequence, seen->sequence + 1);
    seen->sequence = f->sequence;
    struct test_fragment t;
    test_fragment_make(&t, fragment_seed(f->worker, f->epoch, f->sequence), FRAGMENT_SIZE);
    assert_true(test_item_equal(&t.fragment, f));
    test_fragment_free(&t);
    l->held[l->held_count++] = f;
    l->total++;
}

static void finish_some(struct corral_traj_receiver *r, struct ledger *l, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_traj_item *f = l->held[i];
        l->done[f->worker] = (struct corral_traj_cursor){f->worker, f->epoch, f->sequence};
        corral_traj_receiver_finish(r, f);
    }
    memmove(l->held, l->held + count, (l->held_count - count) * sizeof *l->held);
    l->held_count -= count;
}

static void take(struct corral_traj_receiver *r, struct ledger *l, struct corral_rng *rng, uint64_t fragments)
{
    struct corral_error err;
    uint64_t until = corral_now_ns(&corral_clock_monotonic) + PATIENCE_NS;
    for (uint64_t got = 0; got < fragments;) {
        const struct corral_traj_item *f;
        enum corral_status status = corral_traj_receiver_next(r, 10, &f, &err);
        if (status == CORRAL_OK) {
            check_arrival(l, f);
            got++;
        } else {
            check_status(status, CORRAL_AGAIN);
            finish_some(r, l, l->held_count);
        }
        if (l->held_count == HELD_MAX || corral_rng_below(rng, 10) == 0) {
            finish_some(r, l, (uint32_t)corral_rng_below(rng, l->held_count + 1));
        }
        assert_true(corral_now_ns(&corral_clock_monotonic) < until);
    }
}

static void killed_senders_leave_no_duplicates_and_no_gaps(void **state)
{
    (void)state;
    struct corral_rng rng;
    struct corral_error err;
    struct ledger l = {.held_count = 0};
    char folder[TEST_PATH_MAX];
    pid_t pids[KILLED_WORKERS];
    uint32_t epochs[KILLED_WORKERS] = {1, 1};
    corral_rng_seed(&rng, 4);
    test_folder_make(folder);
    void *context = zmq_ctx_new();
    struct corral_traj_receiver *r = receiver_open(context, folder);
    for (uint32_t w = 0; w < KILLED_WORKERS; w++) {
        pids[w] = sender_start(corral_traj_receiver_endpoint(r), w, epochs[w]);
    }
    for (int round = 0; round < 16; round++) {
        take(r, &l, &rng, corral_rng_below(&rng, 60));
        if (corral_rng_below(&rng, 3) != 0) {
            uint32_t w = (uint32_t)corral_rng_below(&rng, KILLED_WORKERS);
            sender_kill(pids[w]);
            pids[w] = sender_start(corral_traj_receiver_endpoint(r), w, ++epochs[w]);
            continue;
        }
        /* The trainer dies instead: what it held is lost, what it finished stays finished. */
        struct corral_traj_cursor cursors[KILLED_WORKERS];
        uint32_t count = corral_traj_receiver_cursors(r, NULL, 0, cursors, KILLED_WORKERS);
        corral_traj_receiver_destroy(r);
        r = receiver_open(context, folder);
        check_ok(corral_traj_receiver_restore(r, cursors, count, &err));
        memcpy(l.seen, l.done, sizeof l.seen);
        l.held_count = 0;
    }
    take(r, &l, &rng, 200);
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(r, &stats);
    assert_int_equal(stats.malformed + stats.lost + stats.refused, 0);
    for (uint32_t w = 0; w < KILLED_WORKERS; w++) {
        sender_kill(pids[w]);
    }
    corral_traj_receiver_destroy(r);
    zmq_ctx_term(context);
    test_folder_remove(folder);
}

/* ---- garbage ---- */

static void *raw_dealer(void *context, const char *endpoint)
{
    void *socket = zmq_socket(context, ZMQ_DEALER);
    int linger = 0, timeout = 2000;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_SNDTIMEO, &timeout, sizeof timeout);
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    return socket;
}

static void random_frames(void *socket, struct corral_rng *rng)
{
    uint8_t bytes[2048];
    uint64_t frames = 1 + corral_rng_below(rng, 18);
    for (uint64_t i = 0; i < frames; i++) {
        uint64_t size = corral_rng_below(rng, corral_rng_below(rng, 4) == 0 ? sizeof bytes : 40);
        for (uint64_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)corral_rng_next(rng);
        }
        zmq_send(socket, bytes, size, i + 1 < frames ? ZMQ_SNDMORE : 0);
    }
}

/* Records of worker and epoch as in `m`, in a message that is right or nearly. Returns its size. */
static size_t almost_records(uint8_t *frame, size_t room, struct corral_rng *rng,
                             const struct corral_traj_message *m)
{
    struct corral_traj_batch b = {.magic = CORRAL_TRAJ_BATCH_MAGIC,
                                  .protocol = CORRAL_TRAJ_PROTOCOL + (corral_rng_below(rng, 20) == 0),
                                  .session = m->session,
                                  .first = m->sequence};
    uint64_t records = 1 + corral_rng_below(rng, 4);
    for (uint64_t i = 0; i < records; i++) {
        uint64_t bytes, skip = corral_rng_below(rng, 20) == 0;
        void *record = test_numbered_record(RUN, m->worker, m->epoch, m->sequence + i + skip,
                                            corral_rng_below(rng, 200) + 1, &bytes);
        if (sizeof b + b.bytes + bytes <= room) {
            memcpy(frame + sizeof b + b.bytes, record, bytes);
            b.bytes += bytes;
            b.count++;
        }
        free(record);
    }
    size_t total = sizeof b + b.bytes;
    b.count += corral_rng_below(rng, 20) == 0;
    b.bytes += corral_rng_below(rng, 20) == 0 ? 64 : 0;
    memcpy(frame, &b, sizeof b);
    return total - (corral_rng_below(rng, 20) == 0 ? corral_rng_below(rng, total) : 0);
}

/* A real message with random fields, sometimes with bytes flipped, of the right size or nearly. */
static void almost_valid(void *socket, struct corral_rng *rng, struct corral_mpack_writer *writer,
                         uint64_t session)
{
    struct corral_traj_message m;
    const void *data;
    size_t bytes;
    memset(&m, 0, sizeof m);
    m.type = (enum corral_traj_type)corral_rng_below(rng, CORRAL_TRAJ_TYPES);
    m.session = corral_rng_below(rng, 4) != 0 ? session : corral_rng_next(rng);
    m.protocol = CORRAL_TRAJ_PROTOCOL;
    m.first = corral_rng_below(rng, 3);
    m.bytes = corral_rng_next(rng) >> corral_rng_below(rng, 64);
    m.run = RUN;
    m.worker = 5 + (uint32_t)corral_rng_below(rng, 2);
    m.epoch = (uint32_t)corral_rng_below(rng, 3);
    m.sequence = corral_rng_below(rng, 4);
    snprintf(m.token, sizeof m.token, "%s", corral_rng_below(rng, 4) != 0 ? TOKEN : "no");
    _Alignas(64) uint8_t frame[4096] = {0};
    if (corral_rng_below(rng, 3) == 0) {
        bytes = almost_records(frame, sizeof frame, rng, &m);
    } else {
        corral_traj_encode(writer, &m);
        assert_int_equal(corral_mpack_finish(writer, &data, &bytes, NULL), CORRAL_OK);
        memcpy(frame, data, bytes);
    }
    assert_true(bytes <= sizeof frame);
    if (corral_rng_below(rng, 3) == 0) {
        frame[corral_rng_below(rng, CORRAL_MIN(bytes, 300))] = (uint8_t)corral_rng_next(rng);
    }
    zmq_send(socket, frame, bytes, corral_rng_below(rng, 30) == 0 ? ZMQ_SNDMORE : 0);
}

static void garbage_neither_stops_nor_enters_the_receiver(void **state)
{
    (void)state;
    char folder[TEST_PATH_MAX];
    struct corral_rng rng;
    struct corral_error err;
    corral_rng_seed(&rng, 11);
    test_folder_make(folder);
    void *context = zmq_ctx_new(), *hostile_context = zmq_ctx_new();
    struct corral_traj_receiver *r = receiver_open(context, folder);
    struct corral_mpack_writer *writer = corral_mpack_writer_create();
    struct corral_traj_sender *s = sender_open(context, corral_traj_receiver_endpoint(r), 1, 1);
    void *hostile[4] = {NULL};
    uint64_t received = 0, sent = 0, others = 0;
    for (uint64_t turn = 0; received < 400; turn++) {
        void **h = &hostile[corral_rng_below(&rng, CORRAL_COUNT_OF(hostile))];
        if (*h == NULL || corral_rng_below(&rng, 200) == 0) {
            if (*h != NULL) {
                zmq_close(*h);
            }
            *h = raw_dealer(hostile_context, corral_traj_receiver_endpoint(r));
        }
        for (int i = 0; i < 4; i++) {
            if (corral_rng_below(&rng, 3) == 0) {
                random_frames(*h, &rng);
            } else {
                almost_valid(*h, &rng, writer, 77);
            }
        }
        char reply[1024];
        while (zmq_recv(*h, reply, sizeof reply, ZMQ_DONTWAIT) >= 0) {
        }
        struct test_fragment t;
        test_fragment_make(&t, fragment_seed(1, 1, sent + 1), FRAGMENT_SIZE);
        sent += corral_traj_sender_send_fragment(s, 0, &t.fragment, NULL) == CORRAL_OK;
        test_fragment_free(&t);
        check_ok(corral_traj_sender_poll(s, 0, &err));
        const struct corral_traj_item *f;
        while (corral_traj_receiver_next(r, 0, &f, &err) == CORRAL_OK) {
            if (f->worker == 1) {
                assert_int_equal(f->sequence, ++received);
                test_fragment_make(&t, fragment_seed(1, 1, received), FRAGMENT_SIZE);
                assert_true(test_item_equal(&t.fragment, f));
                test_fragment_free(&t);
            } else {
                others++; /* what logged in with the token and added up */
            }
            corral_traj_receiver_finish(r, f);
        }
        assert_true(turn < 400000);
    }
    struct corral_traj_receiver_stats stats;
    corral_traj_receiver_stats(r, &stats);
    assert_true(stats.malformed > 100);
    assert_true(stats.refused > 10);
    assert_true(stats.held_bytes == 0);
    assert_int_equal(stats.received, received + others);
    for (size_t i = 0; i < CORRAL_COUNT_OF(hostile); i++) {
        if (hostile[i] != NULL) {
            zmq_close(hostile[i]);
        }
    }
    /* All of them gone before the receiver: ZeroMQ aborts when a peer goes while a message of several frames is half sent. */
    zmq_ctx_term(hostile_context);
    corral_traj_sender_destroy(s, 0);
    corral_traj_receiver_destroy(r);
    corral_mpack_writer_destroy(writer);
    zmq_ctx_term(context);
    test_folder_remove(folder);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "sender") == 0) {
        return sender_main(argv);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_senders_leave_no_duplicates_and_no_gaps),
        cmocka_unit_test(garbage_neither_stops_nor_enters_the_receiver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
