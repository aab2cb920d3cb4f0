/* Where the weight versions are: what agents say of their nodes and the leading trainer of its pushes, for status.json and the Prometheus page; and nodes that have missed a version, which are told to pull it. */
#include "base/log.h"
#include "base/metrics.h"
#include "orchestrator/coordinator/weights_internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PULL_EVERY_NS (2 * CORRAL_NS_PER_S) /* the same node is not told more often */

enum corral_status corral_weights_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->weights = calloc(1, sizeof *c->weights);
    return c->weights ? CORRAL_OK : corral_fail(err, CORRAL_NOMEM, "coordinator: no room for weights");
}

void corral_weights_close(struct corral_coordinator *c)
{
    free(c->weights);
    c->weights = NULL;
}

/* ---- what is said ---- */

static const struct {
    const char *key;
    size_t at;
} node_counts[] = {
    {"version", offsetof(struct node_weights, version)},
    {"bytes", offsetof(struct node_weights, bytes)},
    {"wire_ns", offsetof(struct node_weights, wire_ns)},
    {"apply_ns", offsetof(struct node_weights, apply_ns)},
    {"flip_ns", offsetof(struct node_weights, flip_ns)},
    {"pushes", offsetof(struct node_weights, pushes)},
    {"aborted", offsetof(struct node_weights, aborted)},
    {"resent", offsetof(struct node_weights, resent)},
    {"pulls", offsetof(struct node_weights, pulls)},
};
static const struct {
    const char *key;
    size_t at;
} push_counts[] = {
    {"version", offsetof(struct push_weights, version)},
    {"bytes", offsetof(struct push_weights, bytes)},
    {"copy_ns", offsetof(struct push_weights, copy_ns)},
    {"gather_ns", offsetof(struct push_weights, gather_ns)},
    {"pack_ns", offsetof(struct push_weights, pack_ns)},
    {"wire_ns", offsetof(struct push_weights, wire_ns)},
    {"stage_ns", offsetof(struct push_weights, stage_ns)},
    {"apply_ns", offsetof(struct push_weights, apply_ns)},
    {"pause_ns", offsetof(struct push_weights, pause_ns)},
    {"targets", offsetof(struct push_weights, targets)},
    {"dropped", offsetof(struct push_weights, dropped)},
    {"resent", offsetof(struct push_weights, resent)},
    {"whole_bytes", offsetof(struct push_weights, whole_bytes)},
    {"moved_bytes", offsetof(struct push_weights, moved_bytes)},
    {"deltas", offsetof(struct push_weights, deltas)},
    {"memory", offsetof(struct push_weights, memory)},
};

static uint64_t *count_at(void *of, size_t at)
{
    return (uint64_t *)((char *)of + at);
}

static uint64_t newest_version(const struct corral_coordinator *c)
{
    uint64_t newest = 0;
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        newest = CORRAL_MAX(newest, c->weights->node[i].version);
    }
    return newest;
}

/* Not the trainer's next push, and not its catching up, has helped it for a while. */
static void tell_to_pull(struct corral_coordinator *c, uint32_t node)
{
    uint32_t count = 0;
    uint64_t newest = newest_version(c);
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        count += c->weights->node[i].version == newest && c->node[i].weights_endpoint[0] != '\0';
    }
    if (count == 0 || !c->node[node].peer) {
        return;
    }
    corral_log_info("a node is told to pull the weights it has missed",
                    LOG_STR("node", c->job->node[node].name),
                    LOG_U64("version", c->weights->node[node].version), LOG_U64("newest", newest));
    corral_mpack_map(c->out, 2);
    corral_mpack_kv_str(c->out, "type", "weights_pull");
    corral_mpack_str(c->out, "peers");
    corral_mpack_array(c->out, count);
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        if (c->weights->node[i].version == newest && c->node[i].weights_endpoint[0] != '\0') {
            corral_mpack_str(c->out, c->node[i].weights_endpoint);
        }
    }
    corral_coordinator_send(c, c->node[node].peer);
}

static void look_whether_behind(struct corral_coordinator *c, uint32_t node, uint64_t had)
{
    struct node_weights *w = &c->weights->node[node];
    uint64_t now = corral_coordinator_now(),
             patience = CORRAL_MAX(c->job->weights.deadline_ns, PULL_EVERY_NS);
    if (w->version == newest_version(c) || w->version != had || w->behind_ns == 0) {
        w->behind_ns = now;
    }
    if (now - w->behind_ns < patience || now - w->told_ns < PULL_EVERY_NS || c->phase != RUN_RUNNING) {
        return;
    }
    w->told_ns = now;
    tell_to_pull(c, node);
}

enum corral_status corral_weights_beat(struct corral_coordinator *c, uint32_t node,
                                       const struct corral_mpack_node *beat, struct corral_error *err)
{
    const struct corral_mpack_node *m;
    struct node_weights *w = &c->weights->node[node], heard = *w;
    CORRAL_TRY(corral_mpack_get_node(beat, "weights", &m, err));
    for (size_t i = 0; i < CORRAL_COUNT_OF(node_counts); i++) {
        CORRAL_TRY(corral_mpack_get_u64(m, node_counts[i].key, count_at(&heard, node_counts[i].at), err));
    }
    CORRAL_TRY(corral_mpack_get_str(m, "digest", heard.digest, sizeof heard.digest, err));
    CORRAL_TRY(corral_mpack_get_str(m, "lane", heard.lane, sizeof heard.lane, err));
    CORRAL_TRY(corral_mpack_get_str(m, "error", heard.error, sizeof heard.error, err));
    uint64_t had = w->version;
    *w = heard;
    look_whether_behind(c, node, had);
    return CORRAL_OK;
}

enum corral_status corral_weights_pushed(struct corral_coordinator *c, const struct corral_mpack_node *step,
                                         struct corral_error *err)
{
    const struct corral_mpack_node *m;
    struct push_weights *w = &c->weights->push, heard = *w;
    CORRAL_TRY(corral_mpack_get_node(step, "push", &m, err));
    for (size_t i = 0; i < CORRAL_COUNT_OF(push_counts); i++) {
        CORRAL_TRY(corral_mpack_get_u64(m, push_counts[i].key, count_at(&heard, push_counts[i].at), err));
    }
    if (heard.version != w->version) { /* not every step publishes */
        heard.dropped_total += heard.dropped;
        heard.resent_total += heard.resent;
        heard.whole_total += heard.whole_bytes;
        heard.moved_total += heard.moved_bytes;
        heard.deltas_total += heard.deltas;
    }
    *w = heard;
    return CORRAL_OK;
}

/* ---- what is shown ---- */

static json_t *node_json(const struct corral_coordinator *c, uint32_t i)
{
    struct node_weights *w = &c->weights->node[i];
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:s}", "node", c->job->node[i].name, "digest", w->digest,
                             "lane", w->lane, "picked", w->picked, "error", w->error);
    for (size_t k = 0; k < CORRAL_COUNT_OF(node_counts); k++) {
        json_object_set_new(root, node_counts[k].key,
                            json_integer((json_int_t)*count_at(w, node_counts[k].at)));
    }
    return root;
}

json_t *corral_weights_json(const struct corral_coordinator *c)
{
    struct push_weights *p = &c->weights->push;
    json_t *nodes = json_array(), *push = json_object();
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        json_array_append_new(nodes, node_json(c, i));
    }
    for (size_t k = 0; k < CORRAL_COUNT_OF(push_counts); k++) {
        json_object_set_new(push, push_counts[k].key,
                            json_integer((json_int_t)*count_at(p, push_counts[k].at)));
    }
    json_object_set_new(push, "dropped_total", json_integer((json_int_t)p->dropped_total));
    json_object_set_new(push, "resent_total", json_integer((json_int_t)p->resent_total));
    json_object_set_new(push, "whole_total", json_integer((json_int_t)p->whole_total));
    json_object_set_new(push, "moved_total", json_integer((json_int_t)p->moved_total));
    json_object_set_new(push, "deltas_total", json_integer((json_int_t)p->deltas_total));
    return json_pack("{s:s, s:o, s:o}", "lanes", c->status.weights, "push", push, "nodes", nodes);
}

static void set(struct corral_coordinator *c, const char *name, enum corral_metric_kind kind,
                const char *help, const char *label, const char *value, double number)
{
    const char *labels[] = {label, value, NULL};
    corral_metrics_set(c->registry, corral_metrics_family(c->registry, name, kind, help),
                       label ? labels : NULL, number);
}

void corral_weights_collect(struct corral_coordinator *c)
{
    const struct push_weights *p = &c->weights->push;
    const struct {
        const char *stage;
        uint64_t ns;
    } stages[] = {{"copy", p->copy_ns},  {"gather", p->gather_ns}, {"pack", p->pack_ns},
                  {"wire", p->wire_ns},  {"stage", p->stage_ns},   {"apply", p->apply_ns},
                  {"pause", p->pause_ns}};
    for (size_t i = 0; i < CORRAL_COUNT_OF(stages); i++) {
        set(c, "corral_weights_push_seconds", CORRAL_METRIC_GAUGE,
            "Stages of the last weight push, of its slowest node", "stage", stages[i].stage,
            (double)stages[i].ns / 1e9);
    }
    set(c, "corral_weights_dropped_total", CORRAL_METRIC_COUNTER,
        "Nodes that a weight push had to do without", NULL, NULL, (double)p->dropped_total);
    set(c, "corral_weights_whole_bytes_total", CORRAL_METRIC_COUNTER,
        "What versions would have taken between nodes, whole and uncast", NULL, NULL, (double)p->whole_total);
    set(c, "corral_weights_moved_bytes_total", CORRAL_METRIC_COUNTER, "What versions took between nodes",
        NULL, NULL, (double)p->moved_total);
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        const struct node_weights *w = &c->weights->node[i];
        const char *node = c->job->node[i].name;
        set(c, "corral_weights_node_version", CORRAL_METRIC_GAUGE, "Weight version of the node's store",
            "node", node, (double)w->version);
        set(c, "corral_weights_wire_seconds", CORRAL_METRIC_GAUGE,
            "Last version received: first to last bucket", "node", node, (double)w->wire_ns / 1e9);
        set(c, "corral_weights_apply_seconds", CORRAL_METRIC_GAUGE, "Last version received: digesting",
            "node", node, (double)w->apply_ns / 1e9);
        set(c, "corral_weights_flip_seconds", CORRAL_METRIC_GAUGE, "Last version received: the flip", "node",
            node, (double)w->flip_ns / 1e9);
        set(c, "corral_weights_aborted_total", CORRAL_METRIC_COUNTER, "Versions begun and given up", "node",
            node, (double)w->aborted);
        set(c, "corral_weights_resent_buckets_total", CORRAL_METRIC_COUNTER,
            "Buckets that arrived damaged and were sent again", "node", node, (double)w->resent);
        set(c, "corral_weights_pulls_total", CORRAL_METRIC_COUNTER, "Versions pulled from another node",
            "node", node, (double)w->pulls);
    }
}
