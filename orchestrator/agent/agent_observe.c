#include "orchestrator/agent/agent_observe.h"
#include "base/clock.h"
#include "base/log.h"
#include <stdlib.h>

#define LOOK_MS 250
#define LOOKS_PER_REPORT 2
#define LOOKS_PER_REAP 4

enum corral_status corral_agent_send_out(struct corral_agent *a, struct corral_error *err)
{
    enum corral_status status = corral_bus_client_send(a->bus, a->out, err);
    corral_mpack_writer_reset(a->out);
    /* Sending may take the socket's edge-triggered notice of an arrived message with it. */
    if (a->bus_watch) {
        corral_loop_zmq_kick(a->bus_watch);
    }
    return status;
}

static void look(struct corral_agent_observer *o)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    corral_quota_snapshot(o->agent->quota, o->ledger);
    corral_agent_physical_look(o, now);
    corral_agent_utilisation_look(o, now);
    o->looked_ns = now;
}

enum corral_status corral_agent_observed(struct corral_agent *a, struct corral_observed *out,
                                         struct corral_error *err)
{
    struct corral_agent_observer *o = a->observer;
    look(o);
    /* Once more: the readings just taken are in the ledger. */
    corral_quota_snapshot(a->quota, o->ledger);
    CORRAL_TRY(corral_observed_from_ledger(o->ledger, out, err));
    for (uint32_t d = 0; d < out->device_count; d++) {
        out->device[d].physical_used = o->device_used[d];
        out->device[d].foreign = o->foreign[d];
    }
    corral_agent_utilisation_fill(o, out);
    return CORRAL_OK;
}

enum corral_status corral_agent_send_observed(struct corral_agent *a, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_observed_free) struct corral_observed seen = {.device_count = 0};
    CORRAL_TRY(corral_agent_observed(a, &seen, err));
    corral_mpack_map(a->out, 3);
    corral_mpack_kv_str(a->out, "type", "observed");
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_str(a->out, "devices");
    corral_observed_write(&seen, a->out);
    return corral_agent_send_out(a, err);
}

static void on_look(void *ctx)
{
    struct corral_agent *a = ctx;
    struct corral_agent_observer *o = a->observer;
    o->ticks++;
    if (o->ticks % LOOKS_PER_REAP == 0) {
        uint32_t freed = corral_quota_reap(a->quota);
        if (freed > 0) {
            corral_log_info("memory of processes that have gone is returned", LOG_U64("holders", freed));
        }
    }
    if (o->ticks % LOOKS_PER_REPORT != 0) {
        look(o);
        return;
    }
    struct corral_error err;
    if (corral_agent_send_observed(a, &err) != CORRAL_OK) {
        corral_log_warn("observation not sent; the next one follows", LOG_ERR(&err));
    }
}

enum corral_status corral_agent_observe_start(struct corral_agent *a, struct corral_error *err)
{
    struct corral_agent_observer *o = calloc(1, sizeof *o);
    if (!o) {
        return corral_fail(err, CORRAL_NOMEM, "agent: no room to observe the devices");
    }
    a->observer = o;
    o->agent = a;
    o->started_ns = o->looked_ns = corral_now_ns(&corral_clock_monotonic);
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        o->holder[i].statm_fd = -1;
    }
    o->ledger = calloc(1, corral_ledger_bytes());
    if (!o->ledger) {
        return corral_fail(err, CORRAL_NOMEM, "agent: no room for a copy of the ledger");
    }
    corral_quota_snapshot(a->quota, o->ledger);
    corral_agent_physical_open(o);
    corral_agent_utilisation_open(o);
    CORRAL_TRY(corral_agent_send_observed(a, err)); /* limits, before anything is used */
    return corral_loop_timer(a->loop, LOOK_MS, LOOK_MS, on_look, a, &o->timer, err);
}

void corral_agent_observe_stop(struct corral_agent *a)
{
    struct corral_agent_observer *o = a->observer;
    a->observer = NULL;
    if (o) {
        corral_agent_physical_close(o);
        free(o->ledger);
        free(o);
    }
}
