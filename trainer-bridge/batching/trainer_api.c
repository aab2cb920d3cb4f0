/* <corral/trainer.h>: the stream's receiver, and batches assembled from what it hands out (assembly.h). */
#include "base/clock.h"
#include "trainer-bridge/batching/assembly.h"
#include "trainer-bridge/batching/packing.h"
#include "transport/trajectory/receiver.h"
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#define TAKE_IN_MAX 256                    /* records in one go, before batches are looked at */
#define SETTLE_NS (100 * CORRAL_NS_PER_MS) /* how long nothing comes before an empty batch is given out */
#define STRUCT_MAX 4096                    /* bytes of a struct of a later release */
#define CLOSE_NS (100 * CORRAL_NS_PER_MS)  /* from the last done() to the end of the connections */
#define FAILED_FINISH "void"               /* docs/spec/trajectory.md */

struct corral_trainer {
    uint64_t run, buffer_bytes;
    char score[CORRAL_TRAJ_TEXT_MAX + 1];
    void *context;
    struct corral_traj_receiver *receiver;
    struct corral_assembly *assembly;
    uint64_t trainer_waited_ns, rollouts_waited_ns;
    const struct corral_traj_item *untaken; /* was received, and there was no memory to sort it in */
    uint64_t arrived_ns;                    /* when the last record did */
    uint64_t full_since_ns;                 /* when the last call left the buffer full; 0: it did not */
    uint64_t done_ns;                       /* when done() was called last */
    struct corral_traj_view view;
};

CORRAL_DEFINE_CLEANUP(struct corral_trainer, corral_trainer_close)

void corral_trainer_close(struct corral_trainer *t)
{
    if (t == NULL) {
        return;
    }
    /* A writer loses what has come to it and was not read yet when the connection goes: it gets a moment to read its last acknowledgements. */
    const uint64_t now = corral_now_ns(&corral_clock_monotonic), end = t->done_ns + CLOSE_NS;
    if (t->done_ns > 0 && now < end) {
        (void)poll(NULL, 0, (int)((end - now) / CORRAL_NS_PER_MS) + 1);
    }
    corral_assembly_destroy(t->assembly);
    corral_traj_receiver_destroy(t->receiver);
    if (t->context != NULL) {
        zmq_ctx_term(t->context);
    }
    free(t);
}

/* ---- opening ---- */

static void on_finish(void *ctx, const void *item)
{
    struct corral_trainer *t = ctx;
    corral_traj_receiver_finish(t->receiver, item);
}

static enum corral_status restore(struct corral_trainer *t, const struct corral_trainer_options *o,
                                  struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_handoff_cursor *at = calloc(CORRAL_HANDOFF_WORKERS_MAX, sizeof *at);
    CORRAL_AUTO_FREE struct corral_traj_cursor *cursor = calloc(CORRAL_HANDOFF_WORKERS_MAX, sizeof *cursor);
    uint32_t count;
    if (at == NULL || cursor == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "restore cursors");
    }
    CORRAL_TRY(corral_assembly_restore(t->assembly, t->run, o->cursors, o->cursor_bytes, at, &count, err));
    for (uint32_t i = 0; i < count; i++) {
        cursor[i] = (struct corral_traj_cursor){
            .worker = at[i].worker, .epoch = at[i].epoch, .sequence = at[i].sequence};
    }
    return corral_traj_receiver_restore(t->receiver, cursor, count, err);
}

/* ZeroMQ would take the address away from whoever has it, and remove it for both when the first of them closes. */
static enum corral_status check_free(const char *bind, struct corral_error *err)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    if (strncmp(bind, "ipc://", 6) != 0 || strlen(bind + 6) >= sizeof at.sun_path) {
        return CORRAL_OK; /* one port has one holder; what is no address is refused when it is bound */
    }
    memcpy(at.sun_path, bind + 6, strlen(bind + 6) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "open a socket");
    }
    const bool taken = connect(fd, (const struct sockaddr *)&at, sizeof at) == 0 || errno == EAGAIN;
    close(fd);
    return taken ? corral_fail(err, CORRAL_STATE,
                               "bind %s: another trainer receives there; end it or choose another address",
                               bind)
                 : CORRAL_OK;
}

/* A program compiled with another release has a shorter or longer struct. */
static enum corral_status read_options(const struct corral_trainer_options *options,
                                       struct corral_trainer_options *o, struct corral_error *err)
{
    if (options == NULL || options->size < sizeof options->size || options->size > STRUCT_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_trainer_open: set options->size to sizeof(struct corral_trainer_options)");
    }
    memset(o, 0, sizeof *o);
    memcpy(o, options, CORRAL_MIN(options->size, sizeof *o));
    return CORRAL_OK;
}

static enum corral_status check_options(const struct corral_trainer_options *options,
                                        struct corral_trainer_options *o, struct corral_error *err)
{
    CORRAL_TRY(read_options(options, o, err));
    if (o->bind == NULL || o->token == NULL) {
        return corral_fail(err, CORRAL_INVALID, "corral_trainer_options: bind and token must be set");
    }
    if (o->workers > CORRAL_HANDOFF_WORKERS_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_trainer_options: %u workers; at most %u are supported", o->workers,
                           CORRAL_HANDOFF_WORKERS_MAX);
    }
    if (o->record_bytes_max > CORRAL_TRAJ_RECORD_MAX) {
        return corral_fail(
            err, CORRAL_INVALID, "corral_trainer_options: record_bytes_max %llu; a record has at most %llu",
            (unsigned long long)o->record_bytes_max, (unsigned long long)CORRAL_TRAJ_RECORD_MAX);
    }
    CORRAL_TRY(corral_assembly_check(o, err));
    o->score = o->score != NULL ? o->score : "reward";
    if (strlen(o->score) > CORRAL_TRAJ_TEXT_MAX) {
        return corral_fail(err, CORRAL_INVALID, "corral_trainer_options: score has more than %u bytes",
                           CORRAL_TRAJ_TEXT_MAX);
    }
    return CORRAL_OK;
}

enum corral_status corral_trainer_open(struct corral_trainer **out,
                                       const struct corral_trainer_options *options, struct corral_error *err)
{
    struct corral_trainer_options o;
    CORRAL_TRY(check_options(options, &o, err));
    CORRAL_TRY(check_free(o.bind, err));
    CORRAL_CLEANUP(corral_trainer_closep) struct corral_trainer *t = calloc(1, sizeof *t);
    if (t == NULL || (t->context = zmq_ctx_new()) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "open a trainer's reader");
    }
    t->run = o.run;
    t->buffer_bytes = o.buffer_bytes;
    t->arrived_ns = corral_now_ns(&corral_clock_monotonic);
    memcpy(t->score, o.score, strlen(o.score) + 1);
    CORRAL_TRY(corral_assembly_create(&t->assembly, &o, on_finish, t, err));
    struct corral_traj_receiver_config c = {
        .zmq_context = t->context,
        .run = o.run,
        .bind = o.bind,
        .buffer_bytes = o.buffer_bytes,
        .workers = o.workers,
        .record_bytes_max = o.record_bytes_max > 0 ? o.record_bytes_max + CORRAL_TRAJ_ITEM_BYTES : 0,
        .memory = &corral_allocator_heap,
        .token = o.token,
        .server_secret_key = o.secret_key,
        .transport = CORRAL_TRAJ_ZMQ};
    CORRAL_TRY(corral_traj_receiver_create(&t->receiver, &c, err));
    if (o.cursors != NULL) {
        CORRAL_TRY(restore(t, &o, err));
    }
    *out = CORRAL_STEAL(t);
    return CORRAL_OK;
}

const char *corral_trainer_endpoint(const struct corral_trainer *t)
{
    return corral_traj_receiver_endpoint(t->receiver);
}

/* ---- records in ---- */

static double score_of(const struct corral_traj_record *r, const char *name)
{
    for (uint32_t i = 0; i < r->score_count; i++) {
        if (strcmp(r->scores[i].name, name) == 0) {
            return r->scores[i].value;
        }
    }
    return NAN;
}

static enum corral_status take_in(struct corral_trainer *t, const struct corral_traj_item *item,
                                  uint64_t now_ns, struct corral_error *err)
{
    struct corral_error why;
    struct corral_trainer_record facts = {.data = item->data,
                                          .bytes = item->bytes,
                                          .worker = item->worker,
                                          .epoch = item->epoch,
                                          .sequence = item->sequence};
    if (corral_traj_record_decode(item->data, item->bytes, &t->view, &why) != CORRAL_OK) {
        return corral_assembly_add(t->assembly, &facts, CORRAL_ASSEMBLY_MALFORMED, why.text, item, now_ns,
                                   err);
    }
    const struct corral_traj_record *r = &t->view.record;
    facts.tokens = r->tokens;
    facts.version_min = r->version_min;
    facts.group = r->group;
    facts.group_index = r->group_index;
    facts.group_size = r->group_size;
    facts.score = score_of(r, t->score);
    enum corral_assembly_verdict verdict =
        strcmp(r->finish, FAILED_FINISH) == 0 ? CORRAL_ASSEMBLY_FAILED : CORRAL_ASSEMBLY_USABLE;
    return corral_assembly_add(t->assembly, &facts, verdict, NULL, item, now_ns, err);
}

/* What is here, waiting at most `wait_ms` for the first. *any: something came. */
static enum corral_status take_in_all(struct corral_trainer *t, uint32_t wait_ms, bool *any,
                                      struct corral_error *err)
{
    *any = false;
    for (uint32_t i = 0; i < TAKE_IN_MAX && corral_assembly_wants(t->assembly); i++) {
        if (t->untaken == NULL) {
            enum corral_status status =
                corral_traj_receiver_next(t->receiver, i == 0 ? wait_ms : 0, &t->untaken, err);
            if (status == CORRAL_AGAIN) {
                return CORRAL_OK;
            }
            CORRAL_TRY(status);
        }
        t->arrived_ns = corral_now_ns(&corral_clock_monotonic);
        CORRAL_TRY(take_in(t, t->untaken, t->arrived_ns, err));
        t->untaken = NULL;
        *any = true;
    }
    return CORRAL_OK;
}

/* ---- batches out ---- */

static bool buffer_full(const struct corral_trainer *t)
{
    struct corral_traj_receiver_stats s;
    corral_traj_receiver_stats(t->receiver, &s);
    return s.held_bytes >= t->buffer_bytes - t->buffer_bytes / 8;
}

static bool settle_due(const struct corral_trainer *t, uint64_t now)
{
    return corral_assembly_unsettled(t->assembly) > 0 &&
           (now >= t->arrived_ns + SETTLE_NS || buffer_full(t) || !corral_assembly_wants(t->assembly));
}

static uint32_t wait_slice_ms(const struct corral_trainer *t, uint64_t now, uint64_t until)
{
    until = CORRAL_MIN(until, corral_assembly_deadline(t->assembly));
    if (corral_assembly_unsettled(t->assembly) > 0) {
        until = CORRAL_MIN(until, t->arrived_ns + SETTLE_NS);
    }
    uint64_t ms = until > now ? (until - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS : 0;
    return (uint32_t)CORRAL_MIN(ms, (uint64_t)INT32_MAX);
}

static enum corral_status next_batch(struct corral_trainer *t, uint64_t until,
                                     const struct corral_trainer_batch **out, struct corral_error *err)
{
    for (;;) {
        bool any;
        CORRAL_TRY(take_in_all(t, 0, &any, err));
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        enum corral_status status = corral_assembly_next(t->assembly, now, out, err);
        if (status != CORRAL_AGAIN) {
            return status;
        }
        if (any && now < until) {
            continue;
        }
        if (settle_due(t, now)) {
            return corral_assembly_settle(t->assembly, out, err);
        }
        if (now >= until || !corral_assembly_wants(t->assembly)) {
            return status;
        }
        CORRAL_TRY(take_in_all(t, wait_slice_ms(t, now, until), &any, err));
        t->trainer_waited_ns += corral_now_ns(&corral_clock_monotonic) - now;
    }
}

enum corral_status corral_trainer_next(struct corral_trainer *t, uint32_t timeout_ms,
                                       const struct corral_trainer_batch **out, struct corral_error *err)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (t->full_since_ns > 0) {
        t->rollouts_waited_ns += now - t->full_since_ns;
        t->full_since_ns = 0;
    }
    enum corral_status status = next_batch(t, now + (uint64_t)timeout_ms * CORRAL_NS_PER_MS, out, err);
    corral_traj_receiver_flush(t->receiver);
    if (buffer_full(t)) {
        t->full_since_ns = corral_now_ns(&corral_clock_monotonic);
    }
    return status;
}

enum corral_status corral_trainer_view(const struct corral_trainer_batch *batch, uint32_t i,
                                       struct corral_traj_view *view, struct corral_error *err)
{
    if (i >= batch->count) {
        return corral_fail(err, CORRAL_INVALID, "record %u of a batch of %u", i, batch->count);
    }
    return corral_traj_record_decode(batch->records[i].data, batch->records[i].bytes, view, err);
}

void corral_trainer_done(struct corral_trainer *t, const struct corral_trainer_batch *batch, uint64_t version)
{
    corral_assembly_done(t->assembly, batch, version);
    corral_traj_receiver_flush(t->receiver); /* the next step may be long */
    t->done_ns = corral_now_ns(&corral_clock_monotonic);
}

enum corral_status corral_trainer_priorities(struct corral_trainer *t,
                                             const struct corral_trainer_batch *batch, const double *priority,
                                             struct corral_error *err)
{
    return corral_assembly_priorities(t->assembly, batch, priority, err);
}

int corral_trainer_replacement(struct corral_trainer *t, uint64_t *group, uint32_t *index)
{
    return corral_assembly_replacement(t->assembly, group, index);
}

enum corral_status corral_trainer_cursors(const struct corral_trainer *t,
                                          const struct corral_trainer_batch *batch, void *out,
                                          uint64_t *bytes, struct corral_error *err)
{
    return corral_assembly_save(t->assembly, batch, t->run, out, bytes, err);
}

enum corral_status corral_trainer_stats(const struct corral_trainer *t, struct corral_trainer_stats *out,
                                        struct corral_error *err)
{
    const size_t size = out->size;
    if (size < sizeof out->size || size > STRUCT_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "corral_trainer_stats: set size to sizeof(struct corral_trainer_stats)");
    }
    struct corral_traj_receiver_stats s;
    struct corral_trainer_stats all = {.size = size};
    corral_traj_receiver_stats(t->receiver, &s);
    corral_assembly_stats(t->assembly, &all);
    all.duplicates += s.duplicates;
    all.malformed += s.malformed;
    all.lost = s.lost;
    all.held_bytes = s.held_bytes;
    all.trainer_waited_ns = t->trainer_waited_ns;
    all.rollouts_waited_ns = t->rollouts_waited_ns;
    if (buffer_full(t)) {
        snprintf(all.waiting, sizeof all.waiting,
                 "rollouts wait for the trainer: %llu of %llu bytes are held, %llu batches are not done",
                 (unsigned long long)s.held_bytes, (unsigned long long)t->buffer_bytes,
                 (unsigned long long)all.batches_out);
    }
    memset(out, 0, size);
    memcpy(out, &all, CORRAL_MIN(size, sizeof all));
    return CORRAL_OK;
}

/* ---- packing ---- */

enum corral_status corral_trainer_pack(struct corral_trainer_packing *p, const uint64_t *tokens,
                                       uint32_t count, uint32_t *rank, uint32_t *round,
                                       struct corral_error *err)
{
    if (p->size < sizeof *p) {
        return corral_fail(err, CORRAL_INVALID, "corral_trainer_packing: size is %zu; this library's is %zu",
                           p->size, sizeof *p);
    }
    struct corral_pack_config c = {.budget = p->budget,
                                   .ranks = p->ranks,
                                   .equal_bins = p->equal_bins != 0,
                                   .cost_linear = p->cost_linear,
                                   .cost_quadratic = p->cost_quadratic};
    if (c.cost_linear == 0 && c.cost_quadratic == 0) {
        c.cost_linear = 1;
    }
    struct corral_pack_stats s;
    CORRAL_AUTO_FREE struct corral_pack_place *place = calloc(CORRAL_MAX(count, 1u), sizeof *place);
    if (place == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "pack %u sequences", count);
    }
    CORRAL_TRY(corral_pack(&c, tokens, count, place, &s, err));
    for (uint32_t i = 0; i < count; i++) {
        rank[i] = place[i].rank;
        round[i] = place[i].round;
    }
    p->bins = s.bins;
    p->rounds = s.rounds;
    p->padding = s.padding;
    p->imbalance = s.imbalance;
    return CORRAL_OK;
}
