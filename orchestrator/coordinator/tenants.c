/* Tenants as their agents tell of them: the agents start and restart them, the coordinator records and shows it. A tenant's end is never the run's. */
#include "base/log.h"
#include "orchestrator/coordinator/internal.h"
#include <stdio.h>
#include <string.h>

static struct corral_tenant_status *find_tenant(struct corral_coordinator *c, const char *name)
{
    for (uint32_t i = 0; i < c->status.tenant_count; i++) {
        if (strcmp(c->job->partition[c->status.tenant[i].partition].name, name) == 0) {
            return &c->status.tenant[i];
        }
    }
    return NULL;
}

void corral_tenants_open(struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        if (c->job->partition[i].role == CORRAL_ROLE_TENANT) {
            c->status.tenant[c->status.tenant_count++] =
                (struct corral_tenant_status){.partition = i, .state = "starting"};
        }
    }
}

static enum corral_status read_state(const struct corral_mpack_node *m, struct corral_tenant_status *t,
                                     struct corral_error *err)
{
    struct corral_tenant_status next = *t;
    CORRAL_TRY(corral_mpack_get_str(m, "state", next.state, sizeof next.state, err));
    CORRAL_TRY(corral_mpack_get_i64(m, "pid", &next.pid, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "restarts", &next.restarts, err));
    *t = next;
    return CORRAL_OK;
}

enum corral_status corral_tenant_beat(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                      struct corral_error *err)
{
    char name[64];
    CORRAL_TRY(corral_mpack_get_str(m, "tenant", name, sizeof name, err));
    struct corral_tenant_status *t = find_tenant(c, name);
    return t ? read_state(m, t, err) : CORRAL_OK;
}

enum corral_status corral_tenant_message(struct corral_coordinator *c, const struct corral_mpack_node *m,
                                         struct corral_error *err)
{
    char name[64], event[32], reason[400];
    int64_t code;
    CORRAL_TRY(corral_mpack_get_str(m, "tenant", name, sizeof name, err));
    CORRAL_TRY(corral_mpack_get_str(m, "event", event, sizeof event, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    CORRAL_TRY(corral_mpack_get_i64(m, "code", &code, err));
    struct corral_tenant_status *t = find_tenant(c, name);
    if (!t) {
        return CORRAL_OK;
    }
    CORRAL_TRY(read_state(m, t, err));
    bool started = strcmp(event, "started") == 0;
    if (strcmp(event, "stopped") == 0) { /* by us: its last end of its own is what is worth keeping */
        snprintf(t->state, sizeof t->state, "stopped");
    } else if (!started) {
        t->code = code;
        memcpy(t->reason, reason, sizeof t->reason);
    }
    corral_coordinator_event(c, "tenant", name, "%s%s%s", event, started ? "" : ": ", started ? "" : reason);
    if (strcmp(event, "given up") == 0) {
        corral_log_warn("tenant stays down", LOG_STR("tenant", name), LOG_STR("reason", reason));
    } else {
        corral_log_info("tenant changes", LOG_STR("tenant", name), LOG_STR("event", event),
                        LOG_STR("state", t->state), LOG_STR("reason", started ? "" : reason));
    }
    return CORRAL_OK;
}

json_t *corral_tenants_json(const struct corral_coordinator *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->status.tenant_count; i++) {
        const struct corral_tenant_status *t = &c->status.tenant[i];
        const struct corral_job_partition *p = &c->job->partition[t->partition];
        char devices[256];
        corral_job_device_set(c->job, p, devices, sizeof devices);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:I}", "name", p->name,
                                              "devices", devices, "state", t->state, "pid",
                                              (json_int_t)t->pid, "restarts", (json_int_t)t->restarts, "code",
                                              (json_int_t)t->code, "reason", t->reason, "memory",
                                              (json_int_t)c->status.memory[t->partition].used_max));
    }
    return list;
}

json_t *corral_fences_json(const struct corral_coordinator *c)
{
    json_t *nodes = json_object();
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        json_object_set_new(nodes, c->job->node[i].name, json_string(c->node[i].fences));
    }
    return nodes;
}
