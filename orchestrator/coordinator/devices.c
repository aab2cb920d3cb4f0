/* What agents see of their devices: kept as of the last word of each node, for status.json, metrics.jsonl, the Prometheus page and the summary. */
#include "base/metrics.h"
#include "orchestrator/coordinator/internal.h"
#include <stdlib.h>
#include <string.h>

#define UTILISATION_EVERY_NS (2 * CORRAL_NS_PER_S)

struct coordinator_devices {
    struct corral_observed observed[CORRAL_JOB_NODES_MAX];
    uint64_t told_ns; /* the last utilisation line */
};

enum corral_status corral_devices_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->devices = calloc(1, sizeof *c->devices);
    return c->devices ? CORRAL_OK : corral_fail(err, CORRAL_NOMEM, "coordinator: no room for devices");
}

void corral_devices_close(struct corral_coordinator *c)
{
    for (uint32_t i = 0; c->devices && i < CORRAL_JOB_NODES_MAX; i++) {
        corral_observed_free(&c->devices->observed[i]);
    }
    free(c->devices);
    c->devices = NULL;
}

static void update_groups(struct corral_coordinator *c)
{
    const struct corral_observed *nodes[CORRAL_JOB_NODES_MAX];
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        nodes[i] = &c->devices->observed[i];
    }
    c->status.group_count = corral_device_groups(nodes, c->job->node_count, c->status.group);
}

static json_t *group_json(const struct corral_device_group *g)
{
    json_t *busy = json_object();
    for (uint32_t i = 0; i < g->role_count; i++) {
        json_object_set_new(busy, g->role[i], corral_json_real(g->busy[i]));
    }
    return json_pack("{s:s, s:i, s:o, s:o, s:o}", "devices", g->devices, "count", (int)g->device_count,
                     "idle", corral_json_real(g->idle), "idle_s", corral_json_real(g->idle_s), "busy", busy);
}

json_t *corral_devices_groups_json(const struct corral_coordinator *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->status.group_count; i++) {
        json_array_append_new(list, group_json(&c->status.group[i]));
    }
    return list;
}

json_t *corral_devices_json(const struct corral_coordinator *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        json_t *node = corral_observed_json(&c->devices->observed[i]);
        json_array_extend(list, node);
        json_decref(node);
    }
    return list;
}

static void tell_utilisation(struct corral_coordinator *c)
{
    uint64_t now = corral_coordinator_now();
    update_groups(c);
    if (!c->job->observe.metrics ||
        (c->phase < RUN_OVER && now - c->devices->told_ns < UTILISATION_EVERY_NS)) {
        return;
    }
    c->devices->told_ns = now;
    double t = (double)(now - c->config->started_ns) / 1e9;
    corral_report_line(c, json_pack("{s:s, s:o, s:o}", "event", "utilisation", "t", corral_json_real(t),
                                    "groups", corral_devices_groups_json(c)));
}

enum corral_status corral_devices_observed(struct corral_coordinator *c, uint32_t node,
                                           const struct corral_mpack_node *m, struct corral_error *err)
{
    const struct corral_mpack_node *devices;
    struct corral_observed seen;
    CORRAL_TRY(corral_mpack_get_node(m, "devices", &devices, err));
    CORRAL_TRY(corral_observed_read(devices, &seen, err));
    corral_observed_free(&c->devices->observed[node]);
    c->devices->observed[node] = seen;
    tell_utilisation(c);
    return CORRAL_OK;
}

/* ---- the metrics page ---- */

/* One family of the metrics page with a value per device and role. */
struct role_family {
    const char *name, *help;
    enum corral_metric_kind kind;
    size_t offset; /* of a uint64_t in struct corral_observed_role */
};
#define ROLE_FAMILY(name, kind, field, help)                           \
    {                                                                  \
        name, help, kind, offsetof(struct corral_observed_role, field) \
    }
static const struct role_family role_families[] = {
    ROLE_FAMILY("corral_memory_used_bytes", CORRAL_METRIC_GAUGE, used,
                "Memory charged to a role on a device"),
    ROLE_FAMILY("corral_memory_peak_bytes", CORRAL_METRIC_GAUGE, peak,
                "Highest memory charged to a role on a device"),
    ROLE_FAMILY("corral_memory_floor_bytes", CORRAL_METRIC_GAUGE, floor,
                "Memory guaranteed to a role on a device"),
    ROLE_FAMILY("corral_memory_ceiling_bytes", CORRAL_METRIC_GAUGE, ceiling,
                "Most memory a role may take on a device"),
    ROLE_FAMILY("corral_memory_denied_total", CORRAL_METRIC_COUNTER, denied, "Allocations the quota refused"),
    ROLE_FAMILY("corral_memory_spilled_bytes", CORRAL_METRIC_GAUGE, spilled,
                "Memory that went to the host in place of a denial"),
    ROLE_FAMILY("corral_memory_pinned_bytes", CORRAL_METRIC_GAUGE, pinned,
                "Host memory registered with the driver"),
    ROLE_FAMILY("corral_memory_overhead_bytes", CORRAL_METRIC_GAUGE, overhead,
                "Of the memory used: contexts and modules of the driver"),
    ROLE_FAMILY("corral_memory_physical_bytes", CORRAL_METRIC_GAUGE, physical,
                "Memory the role's processes really hold: resident, or NVML's reading"),
};

static void collect_role(struct corral_metrics *m, const struct corral_observed_device *d,
                         const struct corral_observed_role *r)
{
    const char *labels[] = {"device", d->device, "role", r->role, NULL};
    for (size_t i = 0; i < CORRAL_COUNT_OF(role_families); i++) {
        const struct role_family *f = &role_families[i];
        uint64_t value;
        memcpy(&value, (const char *)r + f->offset, sizeof value);
        corral_metrics_set(m, corral_metrics_family(m, f->name, f->kind, f->help), labels, (double)value);
    }
    int busy = corral_metrics_family(m, "corral_utilisation", CORRAL_METRIC_GAUGE,
                                     "Share of a device's time that a role has used since the run began");
    if (r->busy_known && d->wall_ns > 0) {
        corral_metrics_set(m, busy, labels, (double)r->busy_ns / (double)d->wall_ns);
    }
}

static void collect_device(struct corral_metrics *m, const struct corral_observed_device *d)
{
    const char *labels[] = {"device", d->device, NULL};
    int idle = corral_metrics_family(m, "corral_idle_seconds_total", CORRAL_METRIC_COUNTER,
                                     "Time in which a device did nothing");
    int used = corral_metrics_family(m, "corral_device_physical_bytes", CORRAL_METRIC_GAUGE,
                                     "Memory in use on a device, as the driver or the kernel says");
    int foreign = corral_metrics_family(m, "corral_device_foreign_bytes", CORRAL_METRIC_GAUGE,
                                        "Of it, by processes outside this run");
    if (d->busy_known) {
        corral_metrics_set(m, idle, labels, (double)(d->wall_ns - CORRAL_MIN(d->busy_ns, d->wall_ns)) / 1e9);
    }
    if (d->physical_used > 0) {
        corral_metrics_set(m, used, labels, (double)d->physical_used);
    }
    if (d->foreign >= 0) {
        corral_metrics_set(m, foreign, labels, (double)d->foreign);
    }
    for (uint32_t r = 0; r < d->role_count; r++) {
        collect_role(m, d, &d->role[r]);
    }
}

void corral_devices_collect(struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        for (uint32_t d = 0; d < c->devices->observed[i].device_count; d++) {
            collect_device(c->registry, &c->devices->observed[i].device[d]);
        }
    }
}
