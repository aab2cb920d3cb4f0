#include "worker/session.h"
#include "base/clock.h"
#include "base/log.h"
#include "quota/cuda/canary.h"
#include "quota/fences/fence.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define CPUS_PER_IO_THREAD 4
#define IO_THREADS_MAX 4

#define POLL_MESSAGES_MAX 64
#define SEND_SLICE_MS 50
#define SEND_MS_MAX 30000 /* a coordinator that reads nothing for so long has failed */
#define READING_POLL_MS 5
#define READING_WAIT_MS_MAX 2000

/* On a GPU the interposer charges, under a holder of its own that it took at the first allocation: steps and phases are that one's. */
static enum corral_status find_interposer(struct corral_session *s, struct corral_error *err)
{
    const struct corral_ledger *l = corral_quota_ledger(s->quota);
    enum corral_status status =
        corral_quota_borrow_holder(s->quota, corral_ledger_find_device(l, s->launch.device),
                                   corral_ledger_find_role(l, s->launch.role), &s->holder, err);
    return status == CORRAL_NOT_FOUND
               ? corral_fail(err, CORRAL_STATE,
                             "worker %s: the interposer is not in the way: nobody charges %s for it",
                             s->launch.name, s->launch.device)
               : status;
}

/* A trainer's first step is proven only with a physical reading of the process, which its agent takes a few times a second. Without one the step is unproven, no more. */
static void wait_for_reading(const struct corral_session *s)
{
    const struct corral_ledger_holder *h = &corral_quota_ledger(s->quota)->holder[s->holder];
    const struct timespec pause = {.tv_nsec = READING_POLL_MS * (long)CORRAL_NS_PER_MS};
    for (uint32_t ms = 0; ms < READING_WAIT_MS_MAX; ms += READING_POLL_MS) {
        if (__atomic_load_n(&h->physical_ns, __ATOMIC_RELAXED) !=
            0) { /* written by the agent, under its lock; only whether it is there counts */
            return;
        }
        (void)nanosleep(&pause, NULL);
    }
}

static enum corral_status attach_gpu(struct corral_session *s, struct corral_error *err)
{
    struct corral_cuda_canary_result checked;
    void *first = NULL;
    CORRAL_TRY(corral_cuda_canary(&checked, err));
    CORRAL_TRY(corral_managed_alloc_create(&s->managed_alloc, err));
    s->memory = corral_managed_allocator(s->managed_alloc);
    CORRAL_TRY(corral_alloc(s->memory, 1, "first of the worker", &first, err));
    corral_release(s->memory, first, 1);
    CORRAL_TRY(find_interposer(s, err));
    if (s->launch.vault_fd >= 0) {
        wait_for_reading(s);
    }
    return CORRAL_OK;
}

static enum corral_status attach_memory(struct corral_session *s, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_attach(s->launch.ledger_fd, &s->quota, err));
    if (s->launch.gpu) {
        return attach_gpu(s, err);
    }
    CORRAL_TRY(corral_quota_join(s->quota, s->launch.device, s->launch.role, &s->holder, err));
    CORRAL_TRY(corral_fence_preflight_host(s->quota, s->holder, err)); /* no pass, no start */
    CORRAL_TRY(corral_host_alloc_create(s->quota, s->holder, &s->host_alloc, err));
    corral_host_alloc_set_spill(s->host_alloc, s->launch.spill);
    s->memory = corral_host_allocator(s->host_alloc);
    /* The node's weight store serves all its workers; the first one is charged with it. */
    return s->launch.board_slot == 0
               ? corral_session_charge_mapping(s, s->launch.store_fd, 1, "weight store", err)
               : CORRAL_OK;
}

enum corral_status corral_session_charge_mapping(struct corral_session *s, int fd, uint32_t sharers,
                                                 const char *what, struct corral_error *err)
{
    struct stat st;
    if (fd < 0 || s->launch.gpu) { /* host memory: not the GPU's */
        return CORRAL_OK;
    }
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "reading the size of the %s", what);
    }
    uint64_t bytes = (uint64_t)st.st_size / sharers;
    struct corral_quota_charge charge; /* given back when the worker leaves */
    CORRAL_TRY(corral_quota_take(s->quota, s->holder, bytes, CORRAL_KIND_MAPPING, what, &charge, err));
    corral_quota_keep(s->quota, &charge);
    return CORRAL_OK;
}

uint64_t corral_session_memory_used(const struct corral_session *s)
{
    if (!s->launch.gpu) {
        return corral_host_alloc_used(s->host_alloc);
    }
    const struct corral_ledger_holder *h = &corral_quota_ledger(s->quota)->holder[s->holder];
    return h->committed + h->reserved; /* of different moments, for show only */
}

static enum corral_status attach_node(struct corral_session *s, struct corral_error *err)
{
    CORRAL_TRY(corral_board_attach(s->launch.board_fd, &s->board, err));
    s->slot = corral_board_slot(s->board, s->launch.board_slot);
    if (!s->slot) {
        return corral_fail(err, CORRAL_INVALID, "worker %s: the node's board has no slot %u", s->launch.name,
                           s->launch.board_slot);
    }
    corral_board_enter(s->slot, CORRAL_ACTIVITY_STARTING);
    return corral_weight_store_attach(s->launch.store_fd, &s->store, err);
}

/* ZeroMQ deals connections out to its threads: a trainer with many rollout workers gains by several, and a thread without a connection costs nothing. */
static int io_threads(void)
{
    cpu_set_t cpus;
    int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    return CORRAL_MIN(CORRAL_MAX(count / CPUS_PER_IO_THREAD, 1), IO_THREADS_MAX);
}

static enum corral_status log_in(struct corral_session *s, uint32_t timeout_ms, struct corral_error *err)
{
    s->zmq = zmq_ctx_new();
    if (!s->zmq || zmq_ctx_set(s->zmq, ZMQ_IO_THREADS, io_threads()) != 0) {
        return corral_fail(err, CORRAL_NOMEM, "worker %s: no ZeroMQ context", s->launch.name);
    }
    struct corral_bus_client_config config = {
        .zmq_context = s->zmq,
        .endpoint = s->launch.endpoint,
        .token = s->launch.token,
        .run = s->launch.run,
        .server_public_key = s->launch.server_key[0] ? s->launch.server_key : NULL,
        .hello = {.kind = "worker", .epoch = s->launch.epoch, .pid = (int64_t)getpid()},
    };
    memcpy(config.hello.name, s->launch.name, sizeof config.hello.name);
    memcpy(config.hello.node, s->launch.node, sizeof config.hello.node);
    return corral_bus_client_create(&s->bus, &config, timeout_ms, err);
}

enum corral_status corral_session_open(struct corral_session *s, const struct corral_worker_launch *launch,
                                       uint32_t timeout_ms, struct corral_error *err)
{
    memset(s, 0, sizeof *s);
    s->launch = *launch;
    enum corral_status status = attach_node(s, err);
    if (status == CORRAL_OK) {
        status = attach_memory(s, err);
    }
    if (status == CORRAL_OK) {
        status = log_in(s, timeout_ms, err);
    }
    if (status != CORRAL_OK) {
        corral_session_close(s);
    }
    return status;
}

void corral_session_close(struct corral_session *s)
{
    if (s->slot) {
        corral_board_enter(s->slot, CORRAL_ACTIVITY_STOPPING);
    }
    corral_bus_client_destroy(s->bus);
    if (s->zmq) {
        zmq_ctx_term(s->zmq);
    }
    corral_weight_store_detach(s->store);
    corral_managed_alloc_destroy(s->managed_alloc);
    corral_host_alloc_destroy(s->host_alloc);
    corral_quota_detach(s->quota);
    corral_board_detach(s->board);
    memset(s, 0, sizeof *s);
}

enum corral_status corral_session_poll(struct corral_session *s, uint32_t timeout_ms,
                                       corral_session_message_fn fn, void *ctx, struct corral_error *err)
{
    corral_board_beat(s->slot);
    for (uint32_t i = 0; i < POLL_MESSAGES_MAX; i++) {
        char type[32];
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *reader = NULL;
        enum corral_status status =
            corral_bus_client_receive(s->bus, i == 0 ? timeout_ms : 0, type, &reader, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        const struct corral_mpack_node *message = corral_mpack_root(reader);
        if (strcmp(type, "finish") == 0) {
            s->finish = true;
            (void)corral_mpack_get_bool(message, "checkpoint", &s->finish_checkpoint, NULL);
            continue;
        }
        if (strcmp(type, "refused") == 0) {
            char reason[200] = "";
            (void)corral_mpack_get_str(message, "reason", reason, sizeof reason, NULL);
            return corral_fail(err, CORRAL_PEER, "the coordinator refused worker %s: %s", s->launch.name,
                               reason);
        }
        CORRAL_TRY(fn(ctx, type, message, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_session_send(struct corral_session *s, struct corral_mpack_writer *message,
                                       struct corral_error *err)
{
    /* A worker that is faster than the coordinator reads waits for it, and shows that it lives. */
    enum corral_status status;
    uint32_t waited_ms = 0;
    while ((status = corral_bus_client_send_within(s->bus, message, SEND_SLICE_MS, err)) == CORRAL_TIMEOUT &&
           waited_ms < SEND_MS_MAX) {
        waited_ms += SEND_SLICE_MS;
        corral_board_beat(s->slot);
    }
    corral_mpack_writer_reset(message);
    return status;
}

void corral_session_report_failure(struct corral_session *s, const struct corral_error *reason)
{
    if (!s->bus) {
        return;
    }
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    if (!w) {
        return;
    }
    corral_mpack_map(w, 2);
    corral_mpack_kv_str(w, "type", "failed");
    corral_mpack_kv_str(w, "reason", reason->text);
    (void)corral_bus_client_send(s->bus, w, NULL);
}
