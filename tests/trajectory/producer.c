/* A producer's life: streams records to every consumer until it is killed, or until the soak ends and everything is acknowledged. */
#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "tests/trajectory/world.h"
#include "transport/trajectory/sender.h"

#include <corral/trajectory.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include <zmq.h>

#define POLL_EVERY 32u /* records */
#define POLL_MS 5u

struct producer {
    struct world *w;
    struct world_role *role;
    struct world_producer *me;
    struct world_stream *stream; /* [consumers] of this life */
    struct corral_traj_sender *sender;
    struct corral_rng rng;
    uint32_t worker, epoch;
    uint32_t port[CONSUMERS_MAX]; /* connected there; 0: not yet */
    uint64_t committed[CONSUMERS_MAX];
    uint64_t cut, resent;
};

static void open_sender(struct producer *p)
{
    struct corral_error err;
    struct corral_traj_sender_config c = {
        .zmq_context = zmq_ctx_new(),
        .run = RUN,
        .worker = p->worker,
        .epoch = p->epoch,
        .window_bytes = p->w->soak ? 64u << 20 : 4u << 20,
        .ring_bytes = p->w->soak ? 16u << 20 : 1u << 20,
        .transport = p->w->carrier == CARRIER_RING ? CORRAL_TRAJ_AUTO : CORRAL_TRAJ_ZMQ,
        .memory = &corral_allocator_heap,
        .token = TOKEN,
        .server_key = p->w->carrier == CARRIER_TCP ? p->w->public_key : NULL,
    };
    if (corral_traj_sender_create(&p->sender, &c, &err) != CORRAL_OK) {
        world_die(p->w, "producer %u: %s", p->worker, err.text);
    }
}

/* To where the coordinator says that consumers are. */
static void follow_consumers(struct producer *p)
{
    struct corral_error err;
    for (uint32_t i = 0; i < p->w->consumers; i++) {
        char endpoint[PATH_BYTES + 16];
        uint32_t port = atomic_load_explicit(&p->w->consumer[i].published, memory_order_acquire);
        if (port == 0 || port == p->port[i]) {
            continue;
        }
        p->port[i] = port;
        if (p->w->carrier == CARRIER_TCP) {
            (void)snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", port);
        } else {
            char path[PATH_BYTES];
            world_path(p->w, i, "stream", path);
            (void)snprintf(endpoint, sizeof endpoint, "ipc://%s", path);
        }
        if (corral_traj_sender_connect(p->sender, i, endpoint, &err) != CORRAL_OK) {
            world_die(p->w, "producer %u to %s: %s", p->worker, endpoint, err.text);
        }
    }
}

static void note_acknowledged(struct producer *p)
{
    struct corral_traj_sender_stats stats;
    for (uint32_t i = 0; i < p->w->consumers; i++) {
        uint64_t acked = p->committed[i] - corral_traj_sender_unacked(p->sender, i);
        uint64_t before = atomic_load_explicit(&p->stream[i].acked, memory_order_relaxed);
        if (acked < before || acked > p->committed[i]) {
            world_die(p->w,
                      "producer %u, epoch %u: consumer %u acknowledged %" PRIu64 " and now %" PRIu64
                      " of %" PRIu64,
                      p->worker, p->epoch, i, before, acked, p->committed[i]);
        }
        atomic_store_explicit(&p->stream[i].acked, acked, memory_order_release);
        atomic_fetch_add_explicit(&p->me->acked, acked - before, memory_order_relaxed);
    }
    corral_traj_sender_stats(p->sender, &stats);
    atomic_fetch_add_explicit(&p->me->resent, stats.resent - p->resent, memory_order_relaxed);
    p->resent = stats.resent;
}

static void poll_sender(struct producer *p, uint32_t timeout_ms)
{
    struct corral_error err;
    if (corral_traj_sender_poll(p->sender, timeout_ms, &err) != CORRAL_OK) {
        world_die(p->w, "producer %u, epoch %u: %s", p->worker, p->epoch, err.text);
    }
    note_acknowledged(p);
    follow_consumers(p);
    world_cut(p->role, &p->cut);
}

/* The next record for a consumer. False: not now. */
static bool send_one(struct producer *p, uint32_t rank)
{
    struct corral_error err;
    uint64_t sequence = p->committed[rank] + 1, stamped, bytes;
    uint32_t payload = record_bytes(p->w, p->worker, p->epoch, rank, sequence);
    struct corral_traj_tensor tensor = {
        .name = "token_ids", .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {payload}};
    struct corral_traj_record record = {.size = sizeof record,
                                        .env = "soak",
                                        .group = rank,
                                        .group_size = 1,
                                        .episode = sequence,
                                        .tokens = payload,
                                        .tensor_count = 1,
                                        .tensors = &tensor};
    void *memory;
    enum corral_status status = corral_traj_record_bytes(&record, &bytes, &err);
    if (status == CORRAL_OK) {
        status = corral_traj_sender_reserve(p->sender, rank, bytes, &memory, &err);
    }
    if (status == CORRAL_AGAIN) {
        return false;
    }
    if (status == CORRAL_OK) {
        status = corral_traj_record_encode(&record, memory, bytes, &err);
    }
    bool may_drop = atomic_load_explicit(&p->w->finish, memory_order_relaxed) == RUN_ON;
    if (status == CORRAL_OK && may_drop && corral_rng_below(&p->rng, 64) == 0) {
        return true; /* thought better of it: the next reservation takes its place */
    }
    if (status == CORRAL_OK) {
        record_fill(p->w, p->worker, p->epoch, rank, sequence, corral_traj_record_place(memory, 0), payload);
        atomic_store_explicit(&p->stream[rank].sent, sequence, memory_order_release);
        status = corral_traj_sender_commit(p->sender, rank, &stamped, &err);
    }
    if (status != CORRAL_OK || stamped != sequence) {
        world_die(p->w, "producer %u, epoch %u, record %" PRIu64 ": %s", p->worker, p->epoch, sequence,
                  status == CORRAL_OK ? "got another number" : err.text);
    }
    p->committed[rank] = sequence;
    return true;
}

static bool all_acknowledged(const struct producer *p)
{
    for (uint32_t i = 0; i < p->w->consumers; i++) {
        if (corral_traj_sender_unacked(p->sender, i) > 0) {
            return false;
        }
    }
    return true;
}

_Noreturn void producer_run(struct world *w, uint32_t worker)
{
    struct producer p = {.w = w, .role = &w->role[worker], .me = &w->producer[worker], .worker = worker};
    p.epoch = atomic_fetch_add_explicit(&p.me->epoch, 1, memory_order_relaxed) + 1;
    p.cut = atomic_load_explicit(&p.role->cut, memory_order_relaxed);
    if (p.epoch >= EPOCHS_MAX) {
        world_die(w, "producer %u: no epoch is left", worker);
    }
    p.stream = p.me->stream[p.epoch];
    corral_rng_seed(&p.rng, corral_seed_derive(w->seed, worker, p.epoch, 1));
    open_sender(&p);
    follow_consumers(&p);
    for (uint64_t i = 0; atomic_load_explicit(&w->finish, memory_order_acquire) == RUN_ON; i++) {
        uint32_t rank = (uint32_t)corral_rng_below(&p.rng, w->consumers);
        bool sent = p.port[rank] != 0 && send_one(&p, rank);
        if (!sent || i % POLL_EVERY == 0) {
            poll_sender(&p, sent || corral_rng_below(&p.rng, 2) == 0 ? 0 : POLL_MS);
        }
    }
    /* A reservation that is still open would hold back the small records before it. */
    for (uint32_t rank = 0; rank < w->consumers; rank++) {
        while (p.port[rank] == 0 || !send_one(&p, rank)) {
            poll_sender(&p, POLL_MS);
        }
    }
    while (!all_acknowledged(&p)) {
        poll_sender(&p, POLL_MS);
    }
    note_acknowledged(&p);
    corral_traj_sender_destroy(p.sender, 0);
    _exit(0);
}
