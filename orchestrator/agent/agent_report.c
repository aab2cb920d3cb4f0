#include "base/clock.h"
#include "orchestrator/agent/agent_internal.h"

enum corral_status corral_agent_send(struct corral_agent *a, struct corral_error *err)
{
    enum corral_status status = corral_bus_client_send(a->bus, a->out, err);
    corral_mpack_writer_reset(a->out);
    /* Sending may take the socket's edge-triggered notice of an arrived message with it. */
    if (a->bus_watch) {
        corral_loop_zmq_kick(a->bus_watch);
    }
    return status;
}

enum corral_status corral_agent_send_node(struct corral_agent *a, struct corral_error *err)
{
    char fences[512];
    corral_mpack_map(a->out, 6);
    corral_mpack_kv_str(a->out, "type", "node");
    corral_mpack_kv_str(a->out, "fences", corral_fence_report_line(&a->fence_report, fences, sizeof fences));
    corral_mpack_kv_str(a->out, "fences_live", a->fences_live);
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_kv_str(a->out, "weights_endpoint", a->weights_endpoint);
    corral_mpack_kv_u64(a->out, "workers", a->worker_count);
    CORRAL_TRY(corral_agent_send(a, err));
    for (uint32_t i = 0; i < a->tenant_count;
         i++) { /* those that were started before there was anybody to tell */
        CORRAL_TRY(corral_agent_send_tenant(a, &a->tenant[i], "started", err));
    }
    return CORRAL_OK;
}

static void write_tenant(struct corral_agent *a, const struct corral_agent_tenant *t)
{
    corral_mpack_kv_str(a->out, "tenant", t->partition->name);
    corral_mpack_kv_str(a->out, "state", corral_tenant_state_name(t->state));
    corral_mpack_kv_i64(a->out, "pid", t->process.pid);
    corral_mpack_kv_u64(a->out, "restarts", t->restarts);
}

enum corral_status corral_agent_send_tenant(struct corral_agent *a, const struct corral_agent_tenant *t,
                                            const char *event, struct corral_error *err)
{
    corral_mpack_map(a->out, 8);
    corral_mpack_kv_str(a->out, "type", "tenant");
    write_tenant(a, t);
    corral_mpack_kv_str(a->out, "event", event);
    corral_mpack_kv_i64(a->out, "code", t->exit_code);
    corral_mpack_kv_str(a->out, "reason", t->reason);
    return corral_agent_send(a, err);
}

enum corral_status corral_agent_send_exited(struct corral_agent *a, const struct corral_agent_worker *w,
                                            int code, const char *reason, uint64_t ran_ms,
                                            struct corral_error *err)
{
    corral_mpack_map(a->out, 6);
    corral_mpack_kv_str(a->out, "type", "exited");
    corral_mpack_kv_str(a->out, "worker", w->plan->worker.name);
    corral_mpack_kv_u64(a->out, "epoch", w->epoch);
    corral_mpack_kv_i64(a->out, "code", code);
    corral_mpack_kv_str(a->out, "reason", reason);
    corral_mpack_kv_u64(a->out, "ran_ms", ran_ms);
    return corral_agent_send(a, err);
}

static void write_worker(struct corral_agent *a, const struct corral_agent_worker *w, uint64_t now)
{
    const struct corral_board_slot *slot = corral_board_slot(a->board, w->slot);
    uint64_t beat = atomic_load_explicit(&slot->beat_ns, memory_order_acquire);
    uint64_t since = atomic_load_explicit(&slot->activity_ns, memory_order_relaxed);
    corral_mpack_map(a->out, 7);
    corral_mpack_kv_str(a->out, "name", w->plan->worker.name);
    corral_mpack_kv_u64(a->out, "epoch", w->epoch);
    corral_mpack_kv_i64(a->out, "pid", w->process.pid);
    corral_mpack_kv_str(
        a->out, "activity",
        w->process.pid ? corral_activity_name(atomic_load_explicit(&slot->activity, memory_order_relaxed))
                       : "not running");
    corral_mpack_kv_u64(a->out, "activity_ms", now > since ? (now - since) / CORRAL_NS_PER_MS : 0);
    corral_mpack_kv_u64(a->out, "beat_ms", now > beat ? (now - beat) / CORRAL_NS_PER_MS : 0);
    corral_mpack_str(a->out, "counters");
    corral_mpack_array(a->out, CORRAL_BOARD_COUNTERS);
    for (uint32_t c = 0; c < CORRAL_BOARD_COUNTERS; c++) {
        corral_mpack_u64(a->out, atomic_load_explicit(&slot->counter[c], memory_order_relaxed));
    }
}

static void write_memory(struct corral_agent *a, const struct corral_ledger *l)
{
    uint32_t entries = 0;
    for (uint32_t d = 0; d < l->device_count; d++) {
        for (uint32_t r = 0; r < l->role_count; r++) {
            entries += l->device[d].role[r].ceiling > 0;
        }
    }
    corral_mpack_array(a->out, entries);
    for (uint32_t d = 0; d < l->device_count; d++) {
        for (uint32_t r = 0; r < l->role_count; r++) {
            const struct corral_ledger_role *role = &l->device[d].role[r];
            if (role->ceiling == 0) {
                continue;
            }
            corral_mpack_map(a->out, 8);
            corral_mpack_kv_str(a->out, "device", l->device[d].name);
            corral_mpack_kv_str(a->out, "role", l->role_name[r]);
            corral_mpack_kv_u64(a->out, "used", role->used);
            corral_mpack_kv_u64(a->out, "peak", role->peak);
            corral_mpack_kv_u64(a->out, "floor", role->floor);
            corral_mpack_kv_u64(a->out, "ceiling", role->ceiling);
            corral_mpack_kv_u64(a->out, "denied", role->denied);
            corral_mpack_kv_u64(a->out, "slack", corral_ledger_slack(l, d, r));
        }
    }
}

enum corral_status corral_agent_send_beat(struct corral_agent *a, struct corral_error *err)
{
    static struct corral_ledger ledger; /* too large for the stack; one agent per process */
    corral_quota_snapshot(a->quota, &ledger);
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    corral_mpack_map(a->out, 7);
    corral_mpack_kv_str(a->out, "type", "beat");
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_kv_bool(a->out, "consistent", corral_ledger_consistent(&ledger));
    corral_mpack_str(a->out, "workers");
    corral_mpack_array(a->out, a->worker_count);
    for (uint32_t i = 0; i < a->worker_count; i++) {
        write_worker(a, &a->worker[i], now);
    }
    corral_mpack_str(a->out, "tenants");
    corral_mpack_array(a->out, a->tenant_count);
    for (uint32_t i = 0; i < a->tenant_count; i++) {
        corral_mpack_map(a->out, 4);
        write_tenant(a, &a->tenant[i]);
    }
    corral_mpack_str(a->out, "memory");
    write_memory(a, &ledger);
    corral_agent_write_weights(a);
    return corral_agent_send(a, err);
}
