/* Measuring lanes between the job's nodes, and choosing by what was measured. */
#include "base/log.h"
#include "base/text.h"
#include "orchestrator/coordinator/weights_internal.h"
#include "orchestrator/worker/worker_config.h"
#include "transport/weights/lanes/probe.h"
#include "worker/policy_manifest.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAIR_NS (120 * CORRAL_NS_PER_S) /* all lanes between two nodes */
#define BYTES_MAX (UINT64_C(1) << 30)
#define CHOOSE_BYTES_MIN (UINT64_C(1) << 20)
#define CHOOSE_BYTES_MAX (UINT64_C(256) << 20)

struct measured {
    uint32_t count;
    bool usable[CORRAL_LANE_KINDS];
    char lane[CORRAL_LANE_KINDS][16];
    char reason[CORRAL_LANE_KINDS][200];
    struct corral_lane_probe_result result[CORRAL_LANE_KINDS];
};

/* ---- pairs ---- */

static void end_desk(struct corral_coordinator *c, bool ok, const char *reason)
{
    struct weights_desk *d = &c->weights->desk;
    if (d->client) {
        corral_mpack_map(c->out, 3);
        corral_mpack_kv_str(c->out, "type", "weights_end");
        corral_mpack_kv_bool(c->out, "ok", ok);
        corral_mpack_kv_str(c->out, "reason", reason);
        corral_coordinator_send(c, d->client);
        corral_bus_server_drop(c->bus, d->client);
    }
    d->client = NULL;
    d->busy = false;
}

static void ask_pair(struct corral_coordinator *c)
{
    struct weights_desk *d = &c->weights->desk;
    d->request = ++d->requests;
    d->deadline_ns = corral_coordinator_now() + PAIR_NS;
    corral_mpack_map(c->out, 5);
    corral_mpack_kv_str(c->out, "type", "weights_probe");
    corral_mpack_kv_u64(c->out, "request", d->request);
    corral_mpack_kv_u64(c->out, "bytes", d->bytes);
    corral_mpack_kv_str(c->out, "endpoint", d->from == d->to ? "" : c->node[d->to].weights_endpoint);
    corral_mpack_kv_str(c->out, "lanes", d->lanes);
    corral_coordinator_send(c, c->node[d->from].peer);
}

/* For a client: each node within itself, then to those after it. To choose: from the trainer's node to the others. False: that was the last. */
static bool next_pair(struct corral_coordinator *c)
{
    struct weights_desk *d = &c->weights->desk;
    uint32_t nodes = c->job->node_count;
    d->to++;
    if (d->choosing) {
        d->to += d->to == d->from;
        return d->to < nodes;
    }
    if (d->to == nodes) {
        d->to = ++d->from;
    }
    return d->from < nodes;
}

static void over(struct corral_coordinator *c)
{
    struct weights_desk *d = &c->weights->desk;
    bool choosing = d->choosing;
    d->choosing = false;
    end_desk(c, true, "");
    if (choosing) {
        d->chosen = true;
        corral_workers_advance(c);
    }
}

static void advance(struct corral_coordinator *c)
{
    if (next_pair(c)) {
        ask_pair(c);
    } else {
        over(c);
    }
}

/* ---- choosing ---- */

static uint32_t trainer_node(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (c->worker[i].job.role == CORRAL_ROLE_TRAIN && c->worker[i].job.role_index == 0) {
            return c->worker[i].job.device.node;
        }
    }
    return 0;
}

static void add_note(struct corral_coordinator *c, const char *fmt, ...) CORRAL_PRINTF(2, 3);
static void add_note(struct corral_coordinator *c, const char *fmt, ...)
{
    char *text = c->status.weights;
    size_t used = strlen(text), room = sizeof c->status.weights;
    va_list args;
    if (used > 0 && used + 2 < room) {
        used += (size_t)snprintf(text + used, room - used, "; ");
    }
    va_start(args, fmt);
    (void)vsnprintf(text + used, room - used, fmt, args);
    va_end(args);
}

static void note_rates(const struct measured *m, const char *picked, char *out, size_t room)
{
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < m->count && used < room; i++) {
        if (m->usable[i]) {
            used += (size_t)snprintf(out + used, room - used, "%s%s %.2f GB/s", used ? ", " : "", m->lane[i],
                                     corral_lane_probe_rate(&m->result[i]));
        } else if (strcmp(m->lane[i], picked) != 0) {
            used += (size_t)snprintf(out + used, room - used, "%s%s: %.60s", used ? ", " : "", m->lane[i],
                                     m->reason[i]);
        }
    }
}

static void choose(struct corral_coordinator *c, const struct measured *m)
{
    struct weights_desk *d = &c->weights->desk;
    struct corral_lane_probe_result good[CORRAL_LANE_KINDS];
    uint32_t count = 0;
    char rates[200], lanes[CORRAL_WEIGHT_LANES_MAX];
    enum corral_lane_kind kind;
    struct corral_error why;
    for (uint32_t i = 0; i < m->count; i++) {
        if (m->usable[i]) {
            good[count++] = m->result[i];
        }
    }
    const char *node = c->job->node[d->to].name;
    if (corral_lane_choose(good, count, UINT32_MAX, d->bytes, &kind, &why) != CORRAL_OK) {
        add_note(c, "%s: %s, none could be measured", node, d->lanes);
        return;
    }
    struct node_weights *w = &c->weights->node[d->to];
    snprintf(w->picked, sizeof w->picked, "%s", corral_lane_ops_of(kind)->name);
    note_rates(m, w->picked, rates, sizeof rates);
    add_note(c, "%s: %s picked (%s)", node, w->picked, rates);
    snprintf(lanes, sizeof lanes, "%s%s", w->picked, kind == CORRAL_LANE_TCP ? "" : ",tcp");
    corral_mpack_map(c->out, 2);
    corral_mpack_kv_str(c->out, "type", "weights_lanes");
    corral_mpack_kv_str(c->out, "lanes", lanes);
    corral_coordinator_send(c, c->node[d->to].peer);
}

/* How many bytes a version has; 0 when nobody can say. */
static uint64_t weight_bytes(const struct corral_coordinator *c)
{
    struct corral_policy_layout layout;
    CORRAL_CLEANUP(corral_weight_form_destroyp) struct corral_weight_form *form = NULL;
    bool known = corral_job_policy_layout(c->job, c->config->env, &layout, NULL) == CORRAL_OK &&
                 corral_policy_form(&layout, c->job->weights.cast, &form, NULL) == CORRAL_OK;
    return known ? corral_weight_form_manifest(form)->bytes : 0;
}

bool corral_weights_chosen(struct corral_coordinator *c)
{
    struct weights_desk *d = &c->weights->desk;
    char size[32];
    if (d->chosen || d->choosing) {
        return d->chosen;
    }
    d->chosen = c->job->node_count == 1;
    if (d->chosen) {
        return true;
    }
    uint64_t bytes = weight_bytes(c);
    corral_weight_lanes(c->job, d->lanes);
    if (c->job->weights.transport != CORRAL_WEIGHTS_AUTO) {
        add_note(c, "%s between nodes, as the job says", d->lanes);
        d->chosen = true;
    } else if (bytes < c->job->weights.measure) {
        add_note(c, "%s between nodes, the first that opens (versions of %s: too small to measure)", d->lanes,
                 corral_format_bytes(bytes, size, sizeof size));
        d->chosen = true;
    } else if (!d->busy) {
        d->busy = d->choosing = true;
        d->bytes = CORRAL_MIN(CORRAL_MAX(bytes, CHOOSE_BYTES_MIN), CHOOSE_BYTES_MAX);
        d->from = trainer_node(c);
        d->to = UINT32_MAX; /* the next one is 0 */
        advance(c);
    }
    return d->chosen;
}

/* ---- answers ---- */

static enum corral_status read_lane(const struct corral_mpack_node *m, struct measured *out,
                                    struct corral_error *err)
{
    uint32_t i = out->count;
    uint64_t status;
    struct corral_lane_probe_result *r = &out->result[i];
    CORRAL_TRY(corral_mpack_get_str(m, "lane", out->lane[i], sizeof out->lane[i], err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", out->reason[i], sizeof out->reason[i], err));
    CORRAL_TRY(corral_mpack_get_u64(m, "status", &status, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "bytes", &r->bytes, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "push_ns", &r->push_ns, err));
    CORRAL_TRY(corral_mpack_get_u64(m, "latency_ns", &r->latency_ns, err));
    const struct corral_lane_ops *ops = corral_lane_named(out->lane[i]);
    if (!ops) {
        return corral_fail(err, CORRAL_PROTOCOL, "a lane that nobody knows was measured");
    }
    r->kind = ops->kind;
    out->usable[i] = status == CORRAL_OK;
    out->count++;
    return CORRAL_OK;
}

static void tell_client(struct corral_coordinator *c, const struct corral_mpack_node *lanes, double rate)
{
    struct weights_desk *d = &c->weights->desk;
    corral_mpack_map(c->out, 5);
    corral_mpack_kv_str(c->out, "type", "weights_probed");
    corral_mpack_kv_str(c->out, "from", c->job->node[d->from].name);
    corral_mpack_kv_str(c->out, "to", c->job->node[d->to].name);
    corral_mpack_kv_f64(c->out, "memcpy", rate);
    corral_mpack_str(c->out, "lanes");
    corral_mpack_array(c->out, corral_mpack_count(lanes));
    for (uint32_t i = 0; i < corral_mpack_count(lanes); i++) {
        const struct corral_mpack_node *m = corral_mpack_at(lanes, i);
        static const char *const numbers[] = {"status", "bytes", "push_ns", "latency_ns"};
        char text[200] = "";
        corral_mpack_map(c->out, 6);
        (void)corral_mpack_get_str(m, "lane", text, sizeof text, NULL); /* read before */
        corral_mpack_kv_str(c->out, "lane", text);
        (void)corral_mpack_get_str(m, "reason", text, sizeof text, NULL);
        corral_mpack_kv_str(c->out, "reason", text);
        for (size_t n = 0; n < CORRAL_COUNT_OF(numbers); n++) {
            uint64_t value = 0;
            (void)corral_mpack_get_u64(m, numbers[n], &value, NULL);
            corral_mpack_kv_u64(c->out, numbers[n], value);
        }
    }
    bool gone = corral_bus_server_send(c->bus, d->client, c->out, NULL) == CORRAL_PEER;
    corral_mpack_writer_reset(c->out);
    if (gone) {
        corral_bus_server_drop(c->bus, d->client);
        d->client = NULL;
    }
}

enum corral_status corral_weights_probed(struct corral_coordinator *c, uint32_t node,
                                         const struct corral_mpack_node *m, struct corral_error *err)
{
    struct weights_desk *d = &c->weights->desk;
    const struct corral_mpack_node *lanes;
    uint64_t request;
    double rate;
    CORRAL_TRY(corral_mpack_get_u64(m, "request", &request, err));
    CORRAL_TRY(corral_mpack_get_f64(m, "memcpy", &rate, err));
    CORRAL_TRY(corral_mpack_get_node(m, "lanes", &lanes, err));
    if (!d->busy || request != d->request || node != d->from) {
        return CORRAL_OK; /* too late */
    }
    CORRAL_AUTO_FREE struct measured *measured = calloc(1, sizeof *measured);
    if (!measured || corral_mpack_count(lanes) > CORRAL_LANE_KINDS) {
        return corral_fail(err, measured ? CORRAL_PROTOCOL : CORRAL_NOMEM, "measured lanes");
    }
    for (uint32_t i = 0; i < corral_mpack_count(lanes); i++) {
        CORRAL_TRY(read_lane(corral_mpack_at(lanes, i), measured, err));
    }
    if (d->choosing) {
        choose(c, measured);
    } else {
        tell_client(c, lanes, rate);
        if (!d->client) {
            d->busy = false;
            return CORRAL_OK;
        }
    }
    advance(c);
    return CORRAL_OK;
}

void corral_weights_tick(struct corral_coordinator *c)
{
    struct weights_desk *d = &c->weights->desk;
    char reason[120];
    if (!d->busy || corral_coordinator_now() < d->deadline_ns) {
        return;
    }
    snprintf(reason, sizeof reason, "node %s does not answer", c->job->node[d->from].name);
    corral_log_warn("measuring lanes takes too long", LOG_STR("from", c->job->node[d->from].name),
                    LOG_STR("to", c->job->node[d->to].name));
    if (d->choosing) {
        add_note(c, "%s: %s, measuring took too long", c->job->node[d->to].name, d->lanes);
        advance(c);
    } else {
        end_desk(c, false, reason);
    }
}

/* ---- clients ---- */

static void send_away(struct corral_coordinator *c, struct corral_bus_peer *peer, const char *reason)
{
    corral_mpack_map(c->out, 3);
    corral_mpack_kv_str(c->out, "type", "weights_end");
    corral_mpack_kv_bool(c->out, "ok", false);
    corral_mpack_kv_str(c->out, "reason", reason);
    corral_coordinator_send(c, peer);
    corral_bus_server_drop(c->bus, peer);
}

void corral_weights_client(struct corral_coordinator *c, struct corral_bus_peer *peer,
                           const struct corral_mpack_node *m)
{
    struct weights_desk *d = &c->weights->desk;
    struct corral_error why;
    char lanes[CORRAL_WEIGHT_LANES_MAX];
    uint64_t bytes;
    if (corral_mpack_get_u64(m, "bytes", &bytes, &why) != CORRAL_OK ||
        corral_mpack_get_str(m, "lanes", lanes, sizeof lanes, &why) != CORRAL_OK) {
        send_away(c, peer, why.text);
    } else if (!corral_nodes_joined(c) || c->phase != RUN_RUNNING) {
        send_away(c, peer, "the run is starting or ending: its lanes cannot be measured now");
    } else if (d->busy) {
        send_away(c, peer, "lanes are being measured already; try again in a moment");
    } else {
        d->busy = true;
        d->client = peer;
        d->bytes = CORRAL_MIN(CORRAL_MAX(bytes, 4096u), BYTES_MAX);
        snprintf(d->lanes, sizeof d->lanes, "%s", lanes);
        d->from = d->to = 0;
        ask_pair(c);
    }
}

void corral_weights_client_replaced(struct corral_coordinator *c, const char *name)
{
    struct weights_desk *d = &c->weights->desk;
    if (d->client && strcmp(corral_bus_peer_hello(d->client)->name, name) == 0) {
        d->client = NULL; /* the bus frees it now */
        d->busy = false;
    }
}
