/* A consumer's life: from its last checkpoint on, takes records in, checks each, consumes them in steps, saves now and then, until it is killed or the soak ends. */
#include "tests/trajectory/consumer.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/text.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#define WAIT_MS 5u
#define LOOK_EVERY 64u /* records between looks at what the driver wants */

/* ---- opening ---- */

static void open_log(struct consumer *c)
{
    struct corral_error err;
    char folder[PATH_BYTES];
    world_path(c->w, c->rank, "log", folder);
    struct corral_wal_options o = {
        .folder = folder,
        .run = RUN,
        .segment_bytes = c->w->soak ? 16u << 20 : 64u << 10 << corral_rng_below(&c->rng, 4),
        .bytes_max = c->w->soak ? 256u << 20 : 4u << 20,
        .sync = corral_rng_below(&c->rng, 2) == 0 ? CORRAL_WAL_SYNC_GROUP : CORRAL_WAL_SYNC_NEVER,
        .zstd_level = corral_rng_below(&c->rng, 4) == 0,
    };
    enum corral_status status = corral_stream_log_open(&c->log, &o, &err);
    if (status == CORRAL_UNSUPPORTED && o.zstd_level > 0) {
        o.zstd_level = 0;
        status = corral_stream_log_open(&c->log, &o, &err);
    }
    if (status != CORRAL_OK && atomic_load_explicit(&c->me->disk_faults, memory_order_acquire) > 0) {
        consumer_disk_end(c, err.text);
    }
    if (status != CORRAL_OK) {
        world_die(c->w, "consumer %u can't open its log: %s", c->rank, err.text);
    }
    if (corral_stream_log_first(c->log) > c->now.log_low + 1) {
        world_die(c->w,
                  "consumer %u: the log begins at %" PRIu64 ", the checkpoint needs what is beyond %" PRIu64,
                  c->rank, corral_stream_log_first(c->log), c->now.log_low);
    }
    uint64_t last = corral_stream_log_first(c->log) - 1 + corral_stream_log_waiting(c->log);
    if (last < c->now.log_low) {
        world_die(c->w, "consumer %u: the log ends at %" PRIu64 ", but was at %" PRIu64 " already", c->rank,
                  last, c->now.log_low);
    }
}

static void open_receiver(struct consumer *c)
{
    struct corral_error err;
    char bind[PATH_BYTES + 16], path[PATH_BYTES];
    world_path(c->w, c->rank, "stream", path);
    bool tcp = c->w->carrier == CARRIER_TCP;
    (void)snprintf(bind, sizeof bind, tcp ? "tcp://127.0.0.1:*" : "ipc://%s", path);
    struct corral_traj_receiver_config config = {
        .zmq_context = zmq_ctx_new(),
        .run = RUN,
        .bind = bind,
        .buffer_bytes = c->w->soak ? 64u << 20 : 2u << 20,
        .workers = c->w->producers,
        .record_bytes_max = RECORD_MAX,
        .memory = &corral_allocator_heap,
        .token = TOKEN,
        .server_secret_key = tcp ? c->w->secret_key : NULL,
        .log = corral_stream_log_hook(c->log),
        .transport = c->w->carrier == CARRIER_RING ? CORRAL_TRAJ_AUTO : CORRAL_TRAJ_ZMQ,
    };
    enum corral_status status = corral_traj_receiver_create(&c->receiver, &config, &err);
    if (status == CORRAL_OK) {
        status = corral_traj_receiver_restore(c->receiver, c->now.cursor, c->now.cursor_count, &err);
    }
    if (status == CORRAL_OK) {
        status = corral_traj_receiver_restore_spans(c->receiver, c->now.span, c->now.span_count, &err);
    }
    if (status != CORRAL_OK) {
        world_die(c->w, "consumer %u: %s", c->rank, err.text);
    }
    uint64_t port = 1;
    const char *colon = strrchr(corral_traj_receiver_endpoint(c->receiver), ':');
    if (tcp && (colon == NULL || !corral_parse_u64(colon + 1, &port))) {
        world_die(c->w, "consumer %u: bound to %s", c->rank, corral_traj_receiver_endpoint(c->receiver));
    }
    atomic_store_explicit(&c->me->bound, (uint32_t)port, memory_order_release);
}

/* ---- taking in ---- */

static bool restored_span(const struct consumer *c, uint32_t worker, uint32_t epoch, uint64_t sequence)
{
    for (uint32_t i = 0; i < c->restored.span_count; i++) {
        const struct corral_traj_span *s = &c->restored.span[i];
        if (s->worker == worker && s->epoch == epoch && s->first <= sequence && sequence <= s->last) {
            return true;
        }
    }
    return false;
}

/* Each life of a producer counts up from 1 without gaps; only what an earlier step consumed out of order is left out. */
static void check_order(struct consumer *c, const struct corral_traj_item *item)
{
    if (item->worker >= c->w->producers) {
        world_die(c->w, "consumer %u: a record of worker %u", c->rank, item->worker);
    }
    struct corral_traj_cursor *seen = &c->seen[item->worker];
    uint64_t next = item->epoch == seen->epoch ? seen->sequence + 1 : 1;
    while (restored_span(c, item->worker, item->epoch, next)) {
        next++;
    }
    if (item->epoch < seen->epoch || item->sequence != next) {
        world_die(c->w,
                  "consumer %u: record %u/%u/%" PRIu64 " is handed out after %u/%u/%" PRIu64 "; %" PRIu64
                  " is the next",
                  c->rank, item->worker, item->epoch, item->sequence, item->worker, seen->epoch,
                  seen->sequence, next);
    }
    *seen = (struct corral_traj_cursor){item->worker, item->epoch, item->sequence};
}

static void take_in(struct consumer *c, const struct corral_traj_item *item)
{
    struct corral_error err;
    check_order(c, item);
    if (corral_traj_record_decode(item->data, item->bytes, &c->view, &err) != CORRAL_OK) {
        world_die(c->w, "consumer %u, record %u/%u/%" PRIu64 ": %s", c->rank, item->worker, item->epoch,
                  item->sequence, err.text);
    }
    const struct corral_traj_record *r = &c->view.record;
    const struct corral_traj_tensor *t = corral_traj_record_find(r, "token_ids");
    uint32_t bytes = record_bytes(c->w, item->worker, item->epoch, c->rank, item->sequence);
    record_fill(c->w, item->worker, item->epoch, c->rank, item->sequence, c->expected, bytes);
    if (r->run != RUN || r->worker != item->worker || r->epoch != item->epoch ||
        r->sequence != item->sequence || r->group != c->rank || t == NULL || t->shape[0] != bytes ||
        memcmp(t->data, c->expected, bytes) != 0) {
        world_die(c->w, "consumer %u: record %u/%u/%" PRIu64 " is not what was written", c->rank,
                  item->worker, item->epoch, item->sequence);
    }
    c->held[c->held_count++] = (struct held){.item = item, .digest = corral_digest_of(t->data, bytes).lo};
}

static void tell_statistics(struct consumer *c)
{
    struct corral_traj_receiver_stats s;
    corral_traj_receiver_stats(c->receiver, &s);
    /* ZeroMQ's frame header is outside of what CURVE protects. */
    uint64_t corrupted = atomic_load_explicit(&c->w->proxy.hit[PROXY_CORRUPT], memory_order_relaxed);
    if (s.lost > 0 || s.malformed > corrupted) {
        world_die(c->w, "consumer %u: %" PRIu64 " records lost, %" PRIu64 " messages malformed", c->rank,
                  s.lost, s.malformed);
    }
    atomic_fetch_add_explicit(&c->me->received, s.received - c->told.received, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->replayed, s.replayed - c->told.replayed, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->duplicates, s.duplicates - c->told.duplicates, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->unlogged, s.unlogged - c->told.unlogged, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->gaps, s.gaps - c->told.gaps, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->denied, s.denied - c->told.denied, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->me->rings, s.rings > c->told.rings ? s.rings - c->told.rings : 0,
                              memory_order_relaxed);
    c->told = s;
}

/* ---- steps ---- */

static bool may_save(const struct consumer *c)
{
    return world_now_ns() >= atomic_load_explicit(&c->me->hold_until_ns, memory_order_acquire);
}

/* Moves what the step takes to `taken`; the rest stays, in order. */
static uint32_t choose(struct consumer *c, struct held *taken)
{
    uint32_t count = 0, kept = 0, want = c->held_count;
    bool in_order = world_in_order(c->w, c->rank);
    if (!c->w->soak) {
        want = 1 + (uint32_t)corral_rng_below(&c->rng, c->held_count);
    }
    for (uint32_t i = 0; i < c->held_count; i++) {
        bool take = in_order ? i < want : i == 0 || corral_rng_below(&c->rng, c->held_count) < want;
        if (take) {
            taken[count++] = c->held[i];
        } else {
            c->held[kept++] = c->held[i];
        }
    }
    c->held_count = kept;
    return count;
}

static void write_ledger(struct consumer *c, const struct held *taken, uint32_t count)
{
    static struct ledger_entry entries[HELD_MAX];
    uint32_t last[PRODUCERS_MAX], entry_count = 0;
    memset(last, 0xff, sizeof last);
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_traj_item *item = taken[i].item;
        struct ledger_entry *e = last[item->worker] != UINT32_MAX ? &entries[last[item->worker]] : NULL;
        if (e == NULL || e->epoch != item->epoch || e->first + e->count != item->sequence) {
            last[item->worker] = entry_count;
            e = &entries[entry_count++];
            *e = (struct ledger_entry){.worker = item->worker, .epoch = item->epoch, .first = item->sequence};
        }
        e->count++;
        e->digest += taken[i].digest;
    }
    ledger_append(c, entries, entry_count);
}

static void step(struct consumer *c)
{
    static struct held taken[HELD_MAX];
    static const struct corral_traj_item *items[HELD_MAX];
    uint32_t count = choose(c, taken);
    for (uint32_t i = 0; i < count; i++) {
        items[i] = taken[i].item;
    }
    c->steps++;
    write_ledger(c, taken, count);
    bool save = may_save(c);
    if (c->save_first && save) {
        checkpoint_save(c, items, count);
    }
    for (uint32_t i = 0; i < count; i++) {
        corral_traj_receiver_finish(c->receiver, items[i]);
    }
    corral_traj_receiver_flush(c->receiver);
    uint64_t every = c->w->soak ? 32 : 1 + corral_rng_below(&c->rng, 8);
    if (!c->save_first && save && c->steps - c->saved_at_step >= every) {
        checkpoint_save(c, NULL, 0);
    }
    tell_statistics(c);
}

/* A log that is full takes records again when a checkpoint lets it be trimmed; one that has failed, when it is opened again. */
static void look_at_log(struct consumer *c)
{
    uint64_t durable;
    struct corral_error err;
    const struct corral_traj_log *log = corral_stream_log_hook(c->log);
    if (corral_traj_receiver_log_trouble(c->receiver) == NULL) {
        return;
    }
    if (log->durable(log->ctx, &durable, &err) != CORRAL_OK) {
        consumer_disk_end(c, err.text);
    }
    if (may_save(c) && corral_stream_log_low(c->log) > c->trimmed) {
        checkpoint_save(c, NULL, 0);
    }
}

static _Noreturn void end(struct consumer *c)
{
    struct corral_error err;
    checkpoint_save(c, NULL, 0);
    tell_statistics(c);
    if (c->now.span_count > 0 || corral_stream_log_waiting(c->log) > 0) {
        world_die(c->w, "consumer %u: all is consumed, but %u spans and %" PRIu64 " records of the log wait",
                  c->rank, c->now.span_count, corral_stream_log_waiting(c->log));
    }
    corral_traj_receiver_destroy(c->receiver);
    if (corral_stream_log_close(c->log, &err) != CORRAL_OK) {
        world_die(c->w, "consumer %u: %s", c->rank, err.text);
    }
    _exit(0);
}

static void live(struct consumer *c)
{
    uint32_t target = 1;
    for (uint64_t i = 0;; i++) {
        const struct corral_traj_item *item;
        struct corral_error err;
        bool full = c->held_count == HELD_MAX;
        enum corral_status status =
            full ? CORRAL_AGAIN : corral_traj_receiver_next(c->receiver, WAIT_MS, &item, &err);
        if (status == CORRAL_OK) {
            take_in(c, item);
        } else if (status != CORRAL_AGAIN) {
            world_die(c->w, "consumer %u: %s", c->rank, err.text);
        }
        if (c->held_count > 0 && (status == CORRAL_AGAIN || c->held_count >= target)) {
            step(c);
            target = c->w->soak ? HELD_MAX / 2 : 1 + (uint32_t)corral_rng_below(&c->rng, 256);
        }
        if (status == CORRAL_AGAIN || i % LOOK_EVERY == 0) {
            look_at_log(c);
            world_cut(c->role, &c->cut);
        }
        if (status == CORRAL_AGAIN && !full && c->held_count == 0 &&
            atomic_load_explicit(&c->w->finish, memory_order_acquire) == CONSUMERS_END) {
            end(c);
        }
    }
}

_Noreturn void consumer_run(struct world *w, uint32_t rank)
{
    static struct consumer c;
    uint64_t life = atomic_load_explicit(&w->role[w->producers + rank].started, memory_order_relaxed);
    c.w = w;
    c.role = &w->role[w->producers + rank];
    c.me = &w->consumer[rank];
    c.rank = rank;
    c.cut = atomic_load_explicit(&c.role->cut, memory_order_relaxed);
    corral_rng_seed(&c.rng, corral_seed_derive(w->seed, 1000 + rank, life, 2));
    (void)signal(SIGXFSZ, SIG_IGN);
    world_log(w, rank == 0 ? "consumer-0" : rank == 1 ? "consumer-1" : "consumer-n");
    checkpoint_restore(&c);
    for (uint32_t i = 0; i < c.now.cursor_count; i++) {
        c.seen[c.now.cursor[i].worker] = c.now.cursor[i];
    }
    c.save_first = !w->soak && corral_rng_below(&c.rng, 2) == 0;
    open_log(&c);
    open_receiver(&c);
    live(&c);
    _exit(0);
}
