/* Weights, as the agent has to do with them beside its receiver: telling how it stands, measuring lanes for the coordinator, and pulling from another node what this one has missed. */
#include "base/clock.h"
#include "base/log.h"
#include "orchestrator/agent/agent_internal.h"
#include "orchestrator/weight_lanes.h"
#include "transport/weights/node_receiver.h"
#include "transport/weights/push/measure.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PROBE_BYTES_MAX (UINT64_C(1) << 30)
#define MEMCPY_BYTES_MAX (UINT64_C(256) << 20)
#define PULL_NS (60 * CORRAL_NS_PER_S)

/* Lanes from this node to another, measured on a thread of its own: the agent goes on. */
struct corral_agent_probe {
    struct corral_agent *agent;
    pthread_t thread;
    int done_fd;
    struct corral_loop_watch *watch;
    uint64_t request, bytes;
    char endpoint[256], lanes[CORRAL_WEIGHT_LANES_MAX], host[256];
    struct corral_push_identity identity;
    double memcpy_rate;
    uint32_t count;
    struct corral_lane_measure measure[CORRAL_LANE_KINDS];
};

/* ---- how the receiver stands ---- */

void corral_agent_write_weights(struct corral_agent *a)
{
    struct corral_push_receiver_status s = {.version = 0};
    char digest[CORRAL_DIGEST_TEXT];
    uint64_t version = 0;
    if (a->receiver) {
        corral_weight_receiver_status(a->receiver, &s);
    }
    uint64_t received = s.version;
    corral_weight_store_current(a->store, &version, &s.digest); /* what the trainer of this node wrote, too */
    corral_digest_format(s.digest, digest);
    corral_mpack_str(a->out, "weights");
    corral_mpack_map(a->out, 12);
    corral_mpack_kv_u64(a->out, "version", version);
    corral_mpack_kv_str(a->out, "digest", version ? digest : "");
    corral_mpack_kv_str(a->out, "lane", version == 0 ? "" : received == version ? s.lane : "store");
    corral_mpack_kv_u64(a->out, "bytes", s.bytes);
    corral_mpack_kv_u64(a->out, "wire_ns", s.wire_ns);
    corral_mpack_kv_u64(a->out, "apply_ns", s.apply_ns);
    corral_mpack_kv_u64(a->out, "flip_ns", s.flip_ns);
    corral_mpack_kv_u64(a->out, "pushes", s.pushes);
    corral_mpack_kv_u64(a->out, "aborted", s.aborted);
    corral_mpack_kv_u64(a->out, "resent", s.resent_buckets);
    corral_mpack_kv_u64(a->out, "pulls", s.pulls);
    corral_mpack_kv_str(a->out, "error", s.last_error);
}

/* ---- measuring ---- */

static void *measure(void *arg)
{
    struct corral_agent_probe *p = arg;
    const struct corral_lane_probe_options options = {.bytes = p->bytes, .lane = {.local_host = p->host}};
    p->memcpy_rate = corral_memcpy_rate(CORRAL_MIN(p->bytes, MEMCPY_BYTES_MAX));
    p->count = corral_lanes_measure(p->endpoint, &p->identity, p->lanes, &options, p->measure);
    eventfd_write(p->done_fd, 1);
    return NULL;
}

static enum corral_status send_probed(struct corral_agent *a, const struct corral_agent_probe *p,
                                      struct corral_error *err)
{
    corral_mpack_map(a->out, 5);
    corral_mpack_kv_str(a->out, "type", "weights_probed");
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_kv_u64(a->out, "request", p->request);
    corral_mpack_kv_f64(a->out, "memcpy", p->memcpy_rate);
    corral_mpack_str(a->out, "lanes");
    corral_mpack_array(a->out, p->count);
    for (uint32_t i = 0; i < p->count; i++) {
        const struct corral_lane_measure *m = &p->measure[i];
        corral_mpack_map(a->out, 6);
        corral_mpack_kv_str(a->out, "lane", m->ops->name);
        corral_mpack_kv_u64(a->out, "status", (uint64_t)m->status);
        corral_mpack_kv_str(a->out, "reason", m->reason);
        corral_mpack_kv_u64(a->out, "bytes", m->result.bytes);
        corral_mpack_kv_u64(a->out, "push_ns", m->result.push_ns);
        corral_mpack_kv_u64(a->out, "latency_ns", m->result.latency_ns);
    }
    return corral_agent_send(a, err);
}

static void probe_end(struct corral_agent *a)
{
    struct corral_agent_probe *p = a->probe;
    pthread_join(p->thread, NULL);
    if (p->watch) {
        corral_loop_remove(p->watch);
    }
    close(p->done_fd);
    free(p);
    a->probe = NULL;
}

static void on_measured(void *ctx, int fd, bool readable, bool writable)
{
    (void)fd, (void)readable, (void)writable;
    struct corral_agent_probe *p = ctx;
    struct corral_agent *a = p->agent;
    struct corral_error err;
    if (send_probed(a, p, &err) != CORRAL_OK) {
        corral_log_warn("measured lanes not reported", LOG_ERR(&err));
    }
    probe_end(a);
}

static enum corral_status start_probe(struct corral_agent *a, struct corral_agent_probe *p,
                                      struct corral_error *err)
{
    p->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->done_fd < 0) {
        return corral_fail_sys(err, errno, "measuring lanes");
    }
    CORRAL_TRY(corral_loop_watch_fd(a->loop, p->done_fd, true, false, on_measured, p, &p->watch, err));
    sigset_t all, before;
    sigfillset(&all); /* signals are the loop's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&p->thread, NULL, measure, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        corral_loop_remove(p->watch);
        return corral_fail_sys(err, code, "measuring lanes");
    }
    return CORRAL_OK;
}

static enum corral_status on_probe(struct corral_agent *a, const struct corral_mpack_node *m,
                                   struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_agent_probe *p = calloc(1, sizeof *p);
    if (!p) {
        return corral_fail(err, CORRAL_NOMEM, "measuring lanes");
    }
    *p = (struct corral_agent_probe){.agent = a, .done_fd = -1, .identity = {.run = a->launch.run}};
    memcpy(p->identity.secret, a->launch.secret, sizeof p->identity.secret);
    snprintf(p->host, sizeof p->host, "%s", corral_job_node_host(a->job, a->node));
    CORRAL_TRY(corral_mpack_get_u64(m, "request", &p->request, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "bytes", &p->bytes, err));
    CORRAL_TRY(corral_mpack_get_str(m, "endpoint", p->endpoint, sizeof p->endpoint, err));
    CORRAL_TRY(corral_mpack_get_str(m, "lanes", p->lanes, sizeof p->lanes, err));
    p->bytes = CORRAL_MIN(CORRAL_MAX(p->bytes, 4096u), PROBE_BYTES_MAX);
    struct corral_error why;
    if (a->probe || start_probe(a, p, &why) != CORRAL_OK) {
        if (p->done_fd >= 0) {
            close(p->done_fd);
        }
        return send_probed(a, p, err); /* no lane was measured: the coordinator says so */
    }
    a->probe = CORRAL_STEAL(p);
    return CORRAL_OK;
}

/* ---- pulling, choosing ---- */

static enum corral_status on_pull(struct corral_agent *a, const struct corral_mpack_node *m,
                                  struct corral_error *err)
{
    const struct corral_mpack_node *peers;
    char text[CORRAL_JOB_NODES_MAX][CORRAL_PULL_ENDPOINT_MAX];
    const char *endpoint[CORRAL_JOB_NODES_MAX];
    uint32_t count = 0;
    CORRAL_TRY(corral_mpack_get_node(m, "peers", &peers, err));
    for (uint32_t i = 0; i < corral_mpack_count(peers) && count < CORRAL_JOB_NODES_MAX; i++) {
        CORRAL_TRY(corral_mpack_node_str(corral_mpack_at(peers, i), text[count], sizeof text[count], err));
        endpoint[count] = text[count];
        count++;
    }
    struct corral_error why;
    if (a->receiver && count > 0 &&
        corral_weight_receiver_pull(a->receiver, endpoint, count, PULL_NS, &why) != CORRAL_OK &&
        why.status != CORRAL_EXISTS) {
        corral_log_warn("weights not pulled", LOG_ERR(&why));
    }
    return CORRAL_OK;
}

static enum corral_status on_lanes(struct corral_agent *a, const struct corral_mpack_node *m,
                                   struct corral_error *err)
{
    char lanes[CORRAL_WEIGHT_LANES_MAX];
    CORRAL_TRY(corral_mpack_get_str(m, "lanes", lanes, sizeof lanes, err));
    return a->receiver ? corral_weight_receiver_set_lanes(a->receiver, lanes, err) : CORRAL_OK;
}

enum corral_status corral_agent_weights_message(struct corral_agent *a, const char *type,
                                                const struct corral_mpack_node *message,
                                                struct corral_error *err)
{
    if (strcmp(type, "weights_probe") == 0) {
        return on_probe(a, message, err);
    }
    if (strcmp(type, "weights_pull") == 0) {
        return on_pull(a, message, err);
    }
    return strcmp(type, "weights_lanes") == 0 ? on_lanes(a, message, err) : CORRAL_OK;
}

void corral_agent_weights_close(struct corral_agent *a)
{
    if (a->probe) {
        probe_end(a); /* waits for the lane that is being measured */
    }
}
