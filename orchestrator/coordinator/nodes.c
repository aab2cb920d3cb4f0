#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const char *node_name(const struct corral_coordinator *c, uint32_t i)
{
    return c->job->node[i].name;
}

static bool node_is_local(const struct corral_coordinator *c, uint32_t i)
{
    return strcmp(c->job->node[i].address, "local") == 0;
}

/* An agent that ends before it was told to takes its node's workers and memory with it: the run cannot go on, but `rlctl resume` can. */
static void on_agent_exit(void *ctx, int fd, bool readable, bool writable)
{
    (void)fd, (void)readable, (void)writable;
    struct coordinator_node *n = ctx;
    struct corral_coordinator *c = n->owner;
    int code = 0;
    char log[128], reason[400];
    if (corral_process_wait(&n->process, 0, &code, NULL) != CORRAL_OK) {
        return;
    }
    corral_loop_remove(n->watch);
    n->watch = NULL;
    n->stopped = true;
    snprintf(log, sizeof log, "logs/agent-%s.log", node_name(c, n->index));
    corral_process_reason(code, log, reason, sizeof reason);
    if (c->phase < RUN_FINISHING) {
        corral_run_finish(c, CORRAL_OUTCOME_FAILED, false, "the agent of node %s ended: %s",
                          node_name(c, n->index), reason);
    }
}

static enum corral_status start_agent(struct corral_coordinator *c, uint32_t i, struct corral_error *err)
{
    char log[128];
    snprintf(log, sizeof log, "logs/agent-%s.log", node_name(c, i));
    const char *argv[] = {"rlctl", "agent", "--node", node_name(c, i), NULL};
    struct corral_process_spec spec = {.argv = argv, .log_path = log, .new_group = true};
    struct coordinator_node *n = &c->node[i];
    CORRAL_TRY(corral_process_start(&spec, &n->process, err));
    return corral_loop_watch_fd(c->loop, n->process.pidfd, true, false, on_agent_exit, n, &n->watch, err);
}

enum corral_status corral_nodes_start(struct corral_coordinator *c, struct corral_error *err)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        c->node[i] = (struct coordinator_node){.owner = c, .index = i, .process = {.pidfd = -1}};
        if (node_is_local(c, i)) {
            CORRAL_TRY(start_agent(c, i, err));
        }
    }
    return CORRAL_OK;
}

static struct coordinator_node *find_node(struct corral_coordinator *c, const char *name)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (strcmp(node_name(c, i), name) == 0) {
            return &c->node[i];
        }
    }
    return NULL;
}

void corral_node_joined(struct corral_coordinator *c, struct corral_bus_peer *peer)
{
    const struct corral_bus_hello *hello = corral_bus_peer_hello(peer);
    struct coordinator_node *n = find_node(c, hello->name);
    if (!n) {
        corral_log_warn("agent of an unknown node is ignored", LOG_STR("node", hello->name));
        corral_bus_server_drop(c->bus, peer);
        return;
    }
    n->peer = peer;
    n->heard_ns = corral_coordinator_now();
}

/* For the launch report: one line where all nodes have the same fences, else one part per node. */
static void merge_fences(struct corral_coordinator *c)
{
    bool same = true;
    size_t used = 0;
    for (uint32_t i = 1; i < c->job->node_count; i++) {
        same &= strcmp(c->node[i].fences, c->node[0].fences) == 0;
    }
    for (uint32_t i = 0; i < (same ? 1u : c->job->node_count) && used < sizeof c->status.fences; i++) {
        used += (size_t)snprintf(c->status.fences + used, sizeof c->status.fences - used, "%s%s%s%s",
                                 i > 0 ? "; " : "", same ? "" : node_name(c, i), same ? "" : ": ",
                                 c->node[i].fences);
    }
}

static enum corral_status on_node(struct corral_coordinator *c, struct coordinator_node *n,
                                  const struct corral_mpack_node *m, struct corral_error *err)
{
    CORRAL_TRY(
        corral_mpack_get_str(m, "weights_endpoint", n->weights_endpoint, sizeof n->weights_endpoint, err));
    CORRAL_TRY(corral_mpack_get_str(m, "fences", n->fences, sizeof n->fences, err));
    n->joined = true;
    merge_fences(c);
    corral_workers_advance(c);
    return CORRAL_OK;
}

static enum corral_status beat_worker(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                      struct corral_error *err)
{
    char name[64];
    CORRAL_TRY(corral_mpack_get_str(m, "name", name, sizeof name, err));
    struct coordinator_worker *w = corral_workers_find(c, name);
    const struct corral_mpack_node *counters;
    CORRAL_TRY(corral_mpack_get_node(m, "counters", &counters, err));
    if (!w) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_mpack_get_str(m, "activity", w->activity, sizeof w->activity, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "activity_ms", &w->activity_ms, err));
    CORRAL_TRY(corral_mpack_get_i64(m, "pid", &w->pid, err));
    for (uint32_t i = 0; i < CORRAL_BOARD_COUNTERS && i < corral_mpack_count(counters); i++) {
        CORRAL_TRY(corral_mpack_node_u64(corral_mpack_at(counters, i), &w->counter[i], err));
    }
    return CORRAL_OK;
}

static enum corral_status beat_memory(struct corral_coordinator *c, struct coordinator_node *n,
                                      const struct corral_mpack_node *m, struct corral_error *err)
{
    char role[CORRAL_LEDGER_NAME_MAX];
    uint64_t used, peak, floor_bytes, ceiling, denied, slack;
    CORRAL_TRY(corral_mpack_get_str(m, "role", role, sizeof role, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "used", &used, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "peak", &peak, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "floor", &floor_bytes, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "ceiling", &ceiling, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "denied", &denied, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "slack", &slack, err));
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        if (strcmp(c->job->partition[i].name, role) != 0) {
            continue;
        }
        struct corral_partition_memory *p = &n->memory[i];
        p->used_max = CORRAL_MAX(p->used_max, used);
        p->peak_max = CORRAL_MAX(p->peak_max, peak);
        p->slack_min = CORRAL_MIN(p->slack_min, slack);
        p->denied += denied;
        p->floor = floor_bytes;
        p->ceiling = ceiling;
    }
    return CORRAL_OK;
}

/* Over all nodes: the fullest device, the tightest floor, all denials. */
static void merge_memory(struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        struct corral_partition_memory total = {.slack_min = UINT64_MAX,
                                                .floor = c->job->partition[i].floor,
                                                .ceiling = c->job->partition[i].ceiling};
        uint64_t slack_before = c->status.memory[i].ceiling ? c->status.memory[i].slack_min : UINT64_MAX;
        for (uint32_t k = 0; k < c->job->node_count; k++) {
            const struct corral_partition_memory *p = &c->node[k].memory[i];
            total.used_max = CORRAL_MAX(total.used_max, p->used_max);
            total.peak_max = CORRAL_MAX(total.peak_max, p->peak_max);
            total.slack_min = p->ceiling ? CORRAL_MIN(total.slack_min, p->slack_min) : total.slack_min;
            total.denied += p->denied;
            total.floor = p->ceiling ? p->floor : total.floor; /* as in force, after live changes too */
            total.ceiling = p->ceiling ? p->ceiling : total.ceiling;
        }
        total.slack_min = CORRAL_MIN(total.slack_min, slack_before);
        c->status.memory[i] = total;
    }
}

static enum corral_status on_beat(struct corral_coordinator *c, struct coordinator_node *n,
                                  const struct corral_mpack_node *m, struct corral_error *err)
{
    const struct corral_mpack_node *workers, *memory, *tenants;
    bool consistent;
    CORRAL_TRY(corral_mpack_get_node(m, "workers", &workers, err));
    CORRAL_TRY(corral_mpack_get_node(m, "memory", &memory, err));
    CORRAL_TRY(corral_mpack_get_node(m, "tenants", &tenants, err));
    CORRAL_TRY(corral_mpack_get_bool(m, "consistent", &consistent, err));
    if (!consistent) {
        c->status.violations++;
        corral_log_error("the memory ledger is inconsistent", LOG_STR("node", node_name(c, n->index)));
    }
    for (uint32_t i = 0; i < corral_mpack_count(workers); i++) {
        CORRAL_TRY(beat_worker(c, corral_mpack_at(workers, i), err));
    }
    for (uint32_t i = 0; i < corral_mpack_count(tenants); i++) {
        CORRAL_TRY(corral_tenant_beat(c, corral_mpack_at(tenants, i), err));
    }
    memset(n->memory, 0, sizeof n->memory);
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        n->memory[i].slack_min = UINT64_MAX;
    }
    for (uint32_t i = 0; i < corral_mpack_count(memory); i++) {
        CORRAL_TRY(beat_memory(c, n, corral_mpack_at(memory, i), err));
    }
    merge_memory(c);
    CORRAL_TRY(corral_weights_beat(c, n->index, m, err));
    corral_mpack_map(c->out, 1);
    corral_mpack_kv_str(c->out, "type", "heard");
    corral_coordinator_send(c, n->peer);
    return CORRAL_OK;
}

enum corral_status corral_node_message(struct corral_coordinator *c, struct corral_bus_peer *peer,
                                       const char *type, const struct corral_mpack_node *m,
                                       struct corral_error *err)
{
    struct coordinator_node *n = find_node(c, corral_bus_peer_hello(peer)->name);
    if (!n || n->peer != peer) {
        return CORRAL_OK;
    }
    n->heard_ns = corral_coordinator_now();
    if (strcmp(type, "node") == 0) {
        return on_node(c, n, m, err);
    }
    if (strcmp(type, "exited") == 0) {
        return corral_worker_exited(c, m, err);
    }
    if (strcmp(type, "tenant") == 0) {
        return corral_tenant_message(c, m, err);
    }
    if (strcmp(type, "beat") == 0) {
        return on_beat(c, n, m, err);
    }
    if (strcmp(type, "observed") == 0) {
        return corral_devices_observed(c, n->index, m, err);
    }
    if (strcmp(type, "weights_probed") == 0) {
        return corral_weights_probed(c, n->index, m, err);
    }
    if (strncmp(type, "quota_", 6) == 0) {
        return corral_quota_node_message(c, n->index, type, m, err);
    }
    return CORRAL_OK;
}

static bool has_trainer(const struct corral_coordinator *c, uint32_t node)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == CORRAL_ROLE_TRAIN && c->worker[i].job.device.node == node) {
            return true;
        }
    }
    return false;
}

void corral_nodes_tick(struct corral_coordinator *c, uint64_t late_ns)
{
    uint64_t now = corral_coordinator_now(), limit = c->job->fault.dead_after_ns;
    for (uint32_t i = 0; i < c->job->node_count && c->phase < RUN_FINISHING; i++) {
        struct coordinator_node *n = &c->node[i];
        n->heard_ns = CORRAL_MIN(now, n->heard_ns + late_ns); /* what came meanwhile has not been read yet */
        if (n->joined && now - n->heard_ns > limit) {
            corral_run_finish(c, CORRAL_OUTCOME_FAILED, !has_trainer(c, i),
                              "node %s has been silent for %.1f s (fault.dead_after)", node_name(c, i),
                              (double)(now - n->heard_ns) / 1e9);
        }
    }
}

bool corral_nodes_joined(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (!c->node[i].joined) {
            return false;
        }
    }
    return true;
}

void corral_nodes_stop(struct corral_coordinator *c, uint64_t grace_ms)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (c->node[i].peer) {
            corral_mpack_map(c->out, 2);
            corral_mpack_kv_str(c->out, "type", "stop");
            corral_mpack_kv_u64(c->out, "grace_ms", grace_ms);
            corral_coordinator_send(c, c->node[i].peer);
        } else {
            corral_process_signal(&c->node[i].process, SIGTERM);
        }
    }
}

/* Agents elsewhere cannot be waited for: they were told, and they end by themselves when we fall silent. */
bool corral_nodes_stopped(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (c->node[i].process.pid != 0) {
            return false;
        }
    }
    return true;
}

void corral_nodes_kill(struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        struct coordinator_node *n = &c->node[i];
        if (n->process.pid == 0) {
            continue;
        }
        int code;
        corral_process_signal(&n->process, SIGKILL); /* its workers follow by PDEATHSIG */
        (void)corral_process_wait(&n->process, 2000, &code, NULL);
    }
}
