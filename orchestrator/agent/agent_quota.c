/* The coordinator's `quota_*` messages. A change of limits is prepared on every node before it is committed on any (docs/spec/control.md); what cannot be had at once is tried again on
 * a timer until its deadline. */
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "orchestrator/agent/agent_observe.h"
#include "orchestrator/agent/limits.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY_MS 20
#define UNDO_NS (5 * CORRAL_NS_PER_S)
#define TALLY_MAX (CORRAL_LEDGER_ROLES_MAX * CORRAL_KINDS * CORRAL_PHASES)

/* A change under way:
 *   state      event                     next
 *   preparing  everything had            prepared, said
 *   preparing  deadline, or refused      undoing, said
 *   prepared   commit                    gone, done said
 *   any        abort, or silence         undoing
 *   undoing    everything put back       gone, done said
 *   undoing    deadline                  gone, done said with what remains
 */
enum limits_state { LIMITS_PREPARING, LIMITS_PREPARED, LIMITS_UNDOING };

struct corral_agent_limits {
    struct corral_agent *agent;
    struct corral_loop_watch *timer;
    enum limits_state state;
    uint64_t request, deadline_ns;
    char why[400]; /* the last reason for not yet */
    struct corral_limits limits;
};

void corral_agent_quota_close(struct corral_agent *a)
{
    if (a->limits) {
        corral_loop_remove(a->limits->timer);
        free(a->limits);
    }
    a->limits = NULL;
}

static void say(struct corral_agent *a, const char *type, uint64_t request, bool ok, const char *reason)
{
    struct corral_error err;
    corral_mpack_map(a->out, 5);
    corral_mpack_kv_str(a->out, "type", type);
    corral_mpack_kv_u64(a->out, "request", request);
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_kv_bool(a->out, "ok", ok);
    corral_mpack_kv_str(a->out, "reason", reason);
    if (corral_agent_send_out(a, &err) != CORRAL_OK) {
        corral_log_warn("word on a change of limits not sent; the coordinator gives up on it by itself",
                        LOG_ERR(&err));
    }
}

static void start_undo(struct corral_agent_limits *p)
{
    p->state = LIMITS_UNDOING;
    p->deadline_ns = corral_now_ns(&corral_clock_monotonic) + UNDO_NS;
}

static void try_prepare(struct corral_agent_limits *p, uint64_t now)
{
    struct corral_error err;
    enum corral_status status = corral_limits_prepare(&p->limits, &err);
    if (status == CORRAL_OK) {
        p->state = LIMITS_PREPARED;
        p->deadline_ns = corral_limits_hold_until(now, p->deadline_ns);
        say(p->agent, "quota_prepared", p->request, true, "");
        return;
    }
    snprintf(p->why, sizeof p->why, "%.399s", err.text);
    if (status != CORRAL_STATE || now >= p->deadline_ns) {
        start_undo(p); /* before the word, so that nothing is promised that is not yet put back */
        (void)corral_limits_undo(&p->limits, &err);
        say(p->agent, "quota_prepared", p->request, false, p->why);
    }
}

static void try_undo(struct corral_agent_limits *p, uint64_t now)
{
    struct corral_error err;
    enum corral_status status = corral_limits_undo(&p->limits, &err);
    if (status == CORRAL_STATE && now < p->deadline_ns) {
        return;
    }
    if (status != CORRAL_OK) {
        corral_log_warn("limits could not be put back; they stay as they are now", LOG_ERR(&err));
    }
    say(p->agent, "quota_done", p->request, status == CORRAL_OK, status == CORRAL_OK ? "" : err.text);
    corral_agent_quota_close(p->agent);
}

static void on_try(void *ctx)
{
    struct corral_agent_limits *p = ctx;
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (p->state == LIMITS_PREPARING) {
        try_prepare(p, now);
    } else if (p->state == LIMITS_UNDOING) {
        try_undo(p, now);
    } else if (now >= p->deadline_ns) {
        corral_log_warn("no word on a prepared change of limits; it is put back");
        start_undo(p);
    }
}

static enum corral_status fence(void *ctx, uint32_t device, uint32_t role, uint64_t ceiling,
                                struct corral_error *err)
{
    struct corral_agent *a = ctx;
    uint32_t group = a->fences && role < CORRAL_JOB_PARTITIONS_MAX && device < CORRAL_JOB_NODE_DEVICES_MAX
                         ? a->fence_group[role][device]
                         : CORRAL_LEDGER_NONE;
    return group == CORRAL_LEDGER_NONE ? CORRAL_OK : corral_fences_resize(a->fences, group, ceiling, err);
}

static enum corral_status read_changes(const struct corral_mpack_node *m,
                                       struct corral_limit_change out[CORRAL_LIMITS_ROLES_MAX],
                                       uint32_t *count, struct corral_error *err)
{
    const struct corral_mpack_node *list;
    CORRAL_TRY(corral_mpack_get_node(m, "changes", &list, err));
    if (corral_mpack_count(list) > CORRAL_LIMITS_ROLES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "quota_prepare names %u roles", corral_mpack_count(list));
    }
    for (uint32_t i = 0; i < corral_mpack_count(list); i++) {
        const struct corral_mpack_node *c = corral_mpack_at(list, i);
        out[i] = (struct corral_limit_change){.set_floor = corral_mpack_has(c, "floor"),
                                              .set_ceiling = corral_mpack_has(c, "ceiling")};
        CORRAL_TRY(corral_mpack_get_str(c, "role", out[i].role, sizeof out[i].role, err));
        if (out[i].set_floor) {
            CORRAL_TRY(corral_mpack_get_u64(c, "floor", &out[i].floor, err));
        }
        if (out[i].set_ceiling) {
            CORRAL_TRY(corral_mpack_get_u64(c, "ceiling", &out[i].ceiling, err));
        }
    }
    *count = corral_mpack_count(list);
    return CORRAL_OK;
}

/* A tenant on host devices does not know the ledger: all of its ceiling is charged while it runs, and the kernel holds it there. */
static enum corral_status check_tenants(const struct corral_agent *a, const struct corral_limits *l,
                                        struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_job_partition *p = &a->job->partition[l->entry[i].role];
        if (p->role == CORRAL_ROLE_TENANT && a->job->node[a->node].kind == CORRAL_DEVICE_HOST) {
            return corral_fail(
                err, CORRAL_UNSUPPORTED,
                "tenant %s is on host devices: its whole ceiling is taken while it runs, and cannot "
                "be changed live; change the job file",
                p->name);
        }
    }
    return CORRAL_OK;
}

/* A worker that is down for a moment uses nothing, and would not come up again under a ceiling below what it needs: the run would end. */
static enum corral_status check_needs(const struct corral_agent *a, const struct corral_limits *l,
                                      struct corral_error *err)
{
    for (uint32_t i = 0; i < l->count; i++) {
        const struct corral_limits_entry *e = &l->entry[i];
        const uint64_t least = corral_plan_ceiling_min(a->plan, e->role);
        if (e->ceiling < least && e->ceiling < e->ceiling_before) {
            char need[32], asked[32];
            return corral_fail(
                err, CORRAL_INVALID, "%s on %s: a ceiling of %s is below what its workers need to start, %s",
                a->job->partition[e->role].name, corral_quota_ledger(a->quota)->device[e->device].name,
                corral_format_bytes(e->ceiling, asked, sizeof asked),
                corral_format_bytes(least, need, sizeof need));
        }
    }
    return CORRAL_OK;
}

/* Start a change. What is wrong with it goes back as the reason. */
static enum corral_status begin(struct corral_agent *a, uint64_t request, uint64_t wait_ms,
                                const struct corral_limit_change *changes, uint32_t count,
                                struct corral_error *err)
{
    if (a->limits) {
        return corral_fail(err, CORRAL_STATE, "another change of limits is under way on node %s",
                           a->job->node[a->node].name);
    }
    CORRAL_AUTO_FREE struct corral_agent_limits *p = calloc(1, sizeof *p);
    if (!p) {
        return corral_fail(err, CORRAL_NOMEM, "no room to change limits");
    }
    p->agent = a;
    p->request = request;
    p->deadline_ns = corral_now_ns(&corral_clock_monotonic) + wait_ms * CORRAL_NS_PER_MS;
    CORRAL_TRY(corral_limits_plan(a->quota, changes, count, &p->limits, err));
    CORRAL_TRY(check_tenants(a, &p->limits, err));
    CORRAL_TRY(check_needs(a, &p->limits, err));
    p->limits.fence = fence;
    p->limits.fence_ctx = a;
    CORRAL_TRY(corral_loop_timer(a->loop, TRY_MS, TRY_MS, on_try, p, &p->timer, err));
    a->limits = CORRAL_STEAL(p);
    try_prepare(a->limits, corral_now_ns(&corral_clock_monotonic));
    return CORRAL_OK;
}

static enum corral_status on_prepare(struct corral_agent *a, uint64_t request,
                                     const struct corral_mpack_node *m, struct corral_error *err)
{
    struct corral_limit_change changes[CORRAL_LIMITS_ROLES_MAX];
    uint32_t count = 0;
    uint64_t wait_ms;
    CORRAL_TRY(corral_mpack_get_u64(m, "wait_ms", &wait_ms, err));
    CORRAL_TRY(read_changes(m, changes, &count, err));
    struct corral_error why;
    if (begin(a, request, CORRAL_MIN(wait_ms, UINT64_C(3600000)), changes, count, &why) != CORRAL_OK) {
        say(a, "quota_prepared", request, false, why.text);
    }
    return CORRAL_OK;
}

static void on_commit(struct corral_agent *a, uint64_t request)
{
    struct corral_agent_limits *p = a->limits;
    struct corral_error err;
    if (!p || p->request != request || p->state != LIMITS_PREPARED) {
        say(a, "quota_done", request, false, "the change is not prepared here");
        return;
    }
    enum corral_status status = corral_limits_commit(&p->limits, &err);
    if (status == CORRAL_OK) {
        corral_log_info("limits changed", LOG_U64("request", request), LOG_U64("entries", p->limits.count));
    }
    say(a, "quota_done", request, status == CORRAL_OK, status == CORRAL_OK ? "" : err.text);
    corral_agent_quota_close(a);
}

static void on_abort(struct corral_agent *a, uint64_t request)
{
    if (!a->limits || a->limits->request != request) {
        say(a, "quota_done", request, true,
            ""); /* nothing of it is here: it was refused, or is put back already */
        return;
    }
    if (a->limits->state != LIMITS_UNDOING) {
        start_undo(a->limits);
    }
    try_undo(a->limits, corral_now_ns(&corral_clock_monotonic));
}

/* ---- showing ---- */

struct tally {
    uint32_t device, role;
    uint8_t kind, phase;
    uint64_t bytes, count;
};

/* Allocations of one kind, made in one phase, of one role on one device, together. */
static uint32_t tally_up(const struct corral_ledger *l, const struct corral_ledger_allocation *list,
                         uint32_t count, struct tally *out, uint32_t max)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_ledger_allocation *al = &list[i];
        if (al->holder == 0 || al->holder > CORRAL_LEDGER_HOLDERS_MAX) {
            continue;
        }
        const struct corral_ledger_holder *h = &l->holder[al->holder - 1];
        if (h->device >= l->device_count || h->role >= l->role_count || al->kind >= CORRAL_KINDS ||
            al->phase >= CORRAL_PHASES) {
            continue;
        }
        uint32_t at = 0;
        while (at < used && (out[at].device != h->device || out[at].role != h->role ||
                             out[at].kind != al->kind || out[at].phase != al->phase)) {
            at++;
        }
        if (at == max) {
            continue;
        }
        if (at == used) {
            out[used++] =
                (struct tally){.device = h->device, .role = h->role, .kind = al->kind, .phase = al->phase};
        }
        out[at].bytes += al->bytes;
        out[at].count++;
    }
    return used;
}

static enum corral_status write_allocations(struct corral_agent *a, struct corral_mpack_writer *w,
                                            struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_ledger_allocation *list =
        calloc(CORRAL_LEDGER_ALLOCATIONS_MAX, sizeof *list);
    CORRAL_AUTO_FREE struct tally *tally = calloc(TALLY_MAX, sizeof *tally);
    if (!list || !tally) {
        return corral_fail(err, CORRAL_NOMEM, "no room to list allocations");
    }
    uint32_t count =
        corral_quota_allocations(a->quota, CORRAL_LEDGER_NONE, list, CORRAL_LEDGER_ALLOCATIONS_MAX);
    const struct corral_ledger *l = a->observer->ledger;
    uint32_t used =
        tally_up(l, list, CORRAL_MIN(count, (uint32_t)CORRAL_LEDGER_ALLOCATIONS_MAX), tally, TALLY_MAX);
    corral_mpack_array(w, used);
    for (uint32_t i = 0; i < used; i++) {
        corral_mpack_map(w, 6);
        corral_mpack_kv_str(w, "device", l->device[tally[i].device].name);
        corral_mpack_kv_str(w, "role", l->role_name[tally[i].role]);
        corral_mpack_kv_str(w, "kind", corral_ledger_kind_name((enum corral_ledger_kind)tally[i].kind));
        corral_mpack_kv_str(w, "phase", corral_ledger_phase_name((enum corral_ledger_phase)tally[i].phase));
        corral_mpack_kv_u64(w, "bytes", tally[i].bytes);
        corral_mpack_kv_u64(w, "count", tally[i].count);
    }
    return CORRAL_OK;
}

static enum corral_status write_state(struct corral_agent *a, bool allocations, struct corral_mpack_writer *w,
                                      struct corral_error *err)
{
    CORRAL_CLEANUP(corral_observed_free) struct corral_observed seen = {.device_count = 0};
    CORRAL_TRY(corral_agent_observed(a, &seen, err));
    corral_mpack_map(w, allocations ? 3 : 2);
    corral_mpack_kv_str(w, "node", a->job->node[a->node].name);
    corral_mpack_str(w, "devices");
    corral_observed_write(&seen, w);
    if (!allocations) {
        return CORRAL_OK;
    }
    corral_mpack_str(w, "allocations");
    return write_allocations(a, w, err);
}

static enum corral_status on_show(struct corral_agent *a, uint64_t request, const struct corral_mpack_node *m,
                                  struct corral_error *err)
{
    bool allocations;
    const void *body;
    size_t bytes;
    CORRAL_TRY(corral_mpack_get_bool(m, "allocations", &allocations, err));
    CORRAL_CLEANUP(corral_mpack_writer_destroyp) struct corral_mpack_writer *w = corral_mpack_writer_create();
    if (!w) {
        return corral_fail(err, CORRAL_NOMEM, "no room to show quotas");
    }
    struct corral_error why;
    if (write_state(a, allocations, w, &why) != CORRAL_OK ||
        corral_mpack_finish(w, &body, &bytes, &why) != CORRAL_OK) {
        say(a, "quota_shown", request, false, why.text);
        return CORRAL_OK;
    }
    corral_mpack_map(a->out, 5);
    corral_mpack_kv_str(a->out, "type", "quota_shown");
    corral_mpack_kv_u64(a->out, "request", request);
    corral_mpack_kv_str(a->out, "node", a->job->node[a->node].name);
    corral_mpack_kv_bool(a->out, "ok", true);
    corral_mpack_kv_bin(a->out, "body", body, bytes);
    return corral_agent_send_out(a, err);
}

enum corral_status corral_agent_quota_message(struct corral_agent *a, const char *type,
                                              const struct corral_mpack_node *m, struct corral_error *err)
{
    uint64_t request;
    CORRAL_TRY(corral_mpack_get_u64(m, "request", &request, err));
    if (strcmp(type, "quota_prepare") == 0) {
        return on_prepare(a, request, m, err);
    }
    if (strcmp(type, "quota_commit") == 0) {
        on_commit(a, request);
    } else if (strcmp(type, "quota_abort") == 0) {
        on_abort(a, request);
    } else if (strcmp(type, "quota_show") == 0) {
        return on_show(a, request, m, err);
    }
    return CORRAL_OK;
}
