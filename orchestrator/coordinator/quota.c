/* `rlctl quota`: peers of kind "cli" that ask for quotas or change them while the run is on. A change is prepared on every node,
 * then committed on every node; one refusal and it is put back everywhere. One change at a time, any number of questions. */
#include "base/log.h"
#include "base/text.h"
#include "orchestrator/coordinator/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS_MAX 16
#define CLIENT_NS (5 * CORRAL_NS_PER_S)  /* from its hello to its question, and for nodes to answer one */
#define ANSWER_NS (10 * CORRAL_NS_PER_S) /* for a node's word beyond the wait that was asked for */
#define WAIT_MS_MAX UINT64_C(3600000)
#define LOOK_NS (250 * CORRAL_NS_PER_MS) /* whether a client that waits is still there */
_Static_assert(CORRAL_JOB_NODES_MAX <= 32, "a bit per node");

enum client_state {
    CLIENT_FREE,
    CLIENT_SILENT,
    CLIENT_SHOWING,
    CLIENT_PREPARING,
    CLIENT_COMMITTING,
    CLIENT_ABORTING
};

struct change {
    uint32_t partition;
    bool set_floor, set_ceiling;
    uint64_t floor, ceiling;
};

/* A question under way:
 *   state       event                      next
 *   silent      quota_show                 showing
 *   silent      quota_set                  preparing
 *   showing     every node has answered    over: quota_end
 *   preparing   every node is prepared     committing
 *   preparing   one refused, or is late    aborting
 *   preparing   the client has gone        aborting
 *   committing  every node is done         over: quota_end ok
 *   aborting    every node is done         over: quota_end with the reason
 */
struct client {
    enum client_state state;
    struct corral_bus_peer *peer; /* NULL when it has gone: a change goes on without it */
    uint64_t request, deadline_ns, looked_ns;
    uint32_t owing; /* nodes that have not answered, a bit each */
    uint32_t change_count;
    struct change change[CORRAL_JOB_PARTITIONS_MAX];
    char reason[400];
};

struct coordinator_quota {
    struct client client[CLIENTS_MAX];
    uint64_t requests;
    struct {
        uint64_t floor, ceiling;
    } limits[CORRAL_JOB_PARTITIONS_MAX]; /* in force */
};

enum corral_status corral_quota_desk_open(struct corral_coordinator *c, struct corral_error *err)
{
    c->quota = calloc(1, sizeof *c->quota);
    if (!c->quota) {
        return corral_fail(err, CORRAL_NOMEM, "coordinator: no room for quotas");
    }
    for (uint32_t i = 0; i < c->job->partition_count; i++) {
        c->quota->limits[i].floor = c->job->partition[i].floor;
        c->quota->limits[i].ceiling = c->job->partition[i].ceiling;
    }
    return CORRAL_OK;
}

void corral_quota_desk_close(struct corral_coordinator *c)
{
    free(c->quota);
    c->quota = NULL;
}

uint64_t corral_quota_desk_ceiling(const struct corral_coordinator *c, uint32_t partition)
{
    return c->quota->limits[partition].ceiling;
}

/* ---- clients ---- */

static struct client *client_of(struct corral_coordinator *c, const struct corral_bus_peer *peer)
{
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        if (c->quota->client[i].state != CLIENT_FREE && c->quota->client[i].peer == peer) {
            return &c->quota->client[i];
        }
    }
    return NULL;
}

void corral_quota_client_joined(struct corral_coordinator *c, struct corral_bus_peer *peer)
{
    const char *name = corral_bus_peer_hello(peer)->name;
    struct client *free_one = NULL;
    corral_weights_client_replaced(c, name);
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *k = &c->quota->client[i];
        if (k->state == CLIENT_FREE) {
            free_one = k;
        } else if (k->peer && strcmp(corral_bus_peer_hello(k->peer)->name, name) == 0) {
            k->peer = NULL; /* replaced: the bus frees it now */
        }
    }
    if (!free_one) {
        corral_log_warn("too many clients at once; this one is sent away", LOG_STR("client", name));
        corral_bus_server_drop(c->bus, peer);
        return;
    }
    *free_one = (struct client){
        .state = CLIENT_SILENT, .peer = peer, .deadline_ns = corral_coordinator_now() + CLIENT_NS};
}

/* The last word to a client, and good-bye. */
static void end(struct corral_coordinator *c, struct client *k, bool ok, const char *reason)
{
    if (k->peer) {
        corral_mpack_map(c->out, 3);
        corral_mpack_kv_str(c->out, "type", "quota_end");
        corral_mpack_kv_bool(c->out, "ok", ok);
        corral_mpack_kv_str(c->out, "reason", reason);
        corral_coordinator_send(c, k->peer);
        corral_bus_server_drop(c->bus, k->peer);
    }
    k->peer = NULL;
    k->state = CLIENT_FREE;
}

/* The message in c->out goes to every node; the writer is left empty. */
static void begin_message(struct corral_coordinator *c, struct client *k, const char *type, uint32_t pairs)
{
    corral_mpack_map(c->out, 2 + pairs);
    corral_mpack_kv_str(c->out, "type", type);
    corral_mpack_kv_u64(c->out, "request", k->request);
}

static void send_to_nodes(struct corral_coordinator *c, struct client *k)
{
    k->owing = 0;
    for (uint32_t i = 0; i < c->job->node_count; i++) {
        struct corral_error err;
        if (!c->node[i].peer) {
            continue;
        }
        /* A node that does not read does not answer either: its deadline tells. */
        if (corral_bus_server_send(c->bus, c->node[i].peer, c->out, &err) != CORRAL_OK) {
            corral_log_warn("a node was not asked", LOG_STR("node", c->job->node[i].name), LOG_ERR(&err));
        }
        k->owing |= 1u << i;
    }
    corral_mpack_writer_reset(c->out);
}

static bool ready_for_questions(const struct corral_coordinator *c)
{
    return corral_nodes_joined(c) && c->phase < RUN_OVER;
}

/* ---- showing ---- */

static enum corral_status on_show(struct corral_coordinator *c, struct client *k,
                                  const struct corral_mpack_node *m, struct corral_error *err)
{
    bool allocations;
    CORRAL_TRY(corral_mpack_get_bool(m, "allocations", &allocations, err));
    k->state = CLIENT_SHOWING;
    k->request = ++c->quota->requests;
    k->deadline_ns = corral_coordinator_now() + CLIENT_NS;
    begin_message(c, k, "quota_show", 1);
    corral_mpack_kv_bool(c->out, "allocations", allocations);
    send_to_nodes(c, k);
    return CORRAL_OK;
}

static void answered(struct corral_coordinator *c, struct client *k, uint32_t node);

static enum corral_status on_shown(struct corral_coordinator *c, struct client *k, uint32_t node,
                                   const struct corral_mpack_node *m, struct corral_error *err)
{
    bool ok;
    CORRAL_TRY(corral_mpack_get_bool(m, "ok", &ok, err));
    if (!ok) {
        CORRAL_TRY(corral_mpack_get_str(m, "reason", k->reason, sizeof k->reason, err));
    } else {
        const void *body;
        size_t bytes;
        CORRAL_TRY(corral_mpack_get_bin(m, "body", &body, &bytes, err));
        corral_mpack_map(c->out, 3);
        corral_mpack_kv_str(c->out, "type", "quota_state");
        corral_mpack_kv_str(c->out, "node", c->job->node[node].name);
        corral_mpack_kv_bin(c->out, "body", body, bytes);
        corral_coordinator_send(c, k->peer);
    }
    answered(c, k, node);
    return CORRAL_OK;
}

/* ---- changing ---- */

static bool change_under_way(const struct corral_coordinator *c)
{
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        if (c->quota->client[i].state >= CLIENT_PREPARING) {
            return true;
        }
    }
    return false;
}

static uint32_t find_partition(const struct corral_job *job, const char *name)
{
    uint32_t i = 0;
    while (i < job->partition_count && strcmp(job->partition[i].name, name) != 0) {
        i++;
    }
    return i;
}

static enum corral_status unknown_role(const struct corral_job *job, const char *name,
                                       struct corral_error *err)
{
    const char *names[CORRAL_JOB_PARTITIONS_MAX];
    for (uint32_t i = 0; i < job->partition_count; i++) {
        names[i] = job->partition[i].name;
    }
    const char *near = corral_nearest(name, names, job->partition_count);
    return near ? corral_fail(err, CORRAL_NOT_FOUND, "the run has no partition `%s`; did you mean `%s`?",
                              name, near)
                : corral_fail(err, CORRAL_NOT_FOUND, "the run has no partition `%s`", name);
}

static enum corral_status read_change(const struct corral_coordinator *c, const struct corral_mpack_node *m,
                                      struct change *out, struct corral_error *err)
{
    char role[CORRAL_LEDGER_NAME_MAX];
    *out = (struct change){.set_floor = corral_mpack_has(m, "floor"),
                           .set_ceiling = corral_mpack_has(m, "ceiling")};
    CORRAL_TRY(corral_mpack_get_str(m, "role", role, sizeof role, err));
    out->partition = find_partition(c->job, role);
    if (out->partition == c->job->partition_count) {
        return unknown_role(c->job, role, err);
    }
    if (out->set_floor) {
        CORRAL_TRY(corral_mpack_get_u64(m, "floor", &out->floor, err));
    }
    if (out->set_ceiling) {
        CORRAL_TRY(corral_mpack_get_u64(m, "ceiling", &out->ceiling, err));
    }
    return CORRAL_OK;
}

static enum corral_status read_changes(const struct corral_coordinator *c, const struct corral_mpack_node *m,
                                       struct client *k, struct corral_error *err)
{
    const struct corral_mpack_node *list;
    CORRAL_TRY(corral_mpack_get_node(m, "changes", &list, err));
    k->change_count = 0;
    for (uint32_t i = 0; i < corral_mpack_count(list); i++) {
        struct change change;
        CORRAL_TRY(read_change(c, corral_mpack_at(list, i), &change, err));
        for (uint32_t n = 0; n < k->change_count; n++) {
            if (k->change[n].partition == change.partition) {
                return corral_fail(err, CORRAL_INVALID, "partition %s is named twice",
                                   c->job->partition[change.partition].name);
            }
        }
        k->change[k->change_count++] = change; /* each partition once: they fit */
    }
    return k->change_count > 0 ? CORRAL_OK : corral_fail(err, CORRAL_INVALID, "nothing to change");
}

static void send_prepare(struct corral_coordinator *c, struct client *k, uint64_t wait_ms)
{
    begin_message(c, k, "quota_prepare", 2);
    corral_mpack_kv_u64(c->out, "wait_ms", wait_ms);
    corral_mpack_str(c->out, "changes");
    corral_mpack_array(c->out, k->change_count);
    for (uint32_t i = 0; i < k->change_count; i++) {
        const struct change *change = &k->change[i];
        corral_mpack_map(c->out, 1u + change->set_floor + change->set_ceiling);
        corral_mpack_kv_str(c->out, "role", c->job->partition[change->partition].name);
        if (change->set_floor) {
            corral_mpack_kv_u64(c->out, "floor", change->floor);
        }
        if (change->set_ceiling) {
            corral_mpack_kv_u64(c->out, "ceiling", change->ceiling);
        }
    }
    send_to_nodes(c, k);
}

static enum corral_status on_set(struct corral_coordinator *c, struct client *k,
                                 const struct corral_mpack_node *m, struct corral_error *err)
{
    uint64_t wait_ms;
    CORRAL_TRY(corral_mpack_get_u64(m, "wait_ms", &wait_ms, err));
    if (change_under_way(c)) {
        return corral_fail(err, CORRAL_STATE, "another change of quotas is under way; try again in a moment");
    }
    CORRAL_TRY(read_changes(c, m, k, err));
    wait_ms = CORRAL_MIN(wait_ms, WAIT_MS_MAX);
    k->state = CLIENT_PREPARING;
    k->request = ++c->quota->requests;
    k->reason[0] = '\0';
    k->deadline_ns = corral_coordinator_now() + wait_ms * CORRAL_NS_PER_MS + ANSWER_NS;
    corral_log_info("a change of quotas begins", LOG_STR("client", corral_bus_peer_hello(k->peer)->name),
                    LOG_U64("wait_ms", wait_ms));
    send_prepare(c, k, wait_ms);
    return CORRAL_OK;
}

static void record_change(struct corral_coordinator *c, const struct change *change)
{
    const struct corral_job_partition *p = &c->job->partition[change->partition];
    uint64_t low = c->quota->limits[change->partition].floor,
             high = c->quota->limits[change->partition].ceiling;
    uint64_t new_low = change->set_floor ? change->floor : low;
    uint64_t new_high = change->set_ceiling ? change->ceiling : high;
    char text[4][32];
    corral_coordinator_event(c, "quota", p->name, "floor %s -> %s, ceiling %s -> %s per device",
                             corral_format_bytes_exact(low, text[0], sizeof text[0]),
                             corral_format_bytes_exact(new_low, text[1], sizeof text[1]),
                             corral_format_bytes_exact(high, text[2], sizeof text[2]),
                             corral_format_bytes_exact(new_high, text[3], sizeof text[3]));
    corral_log_info("quota changed", LOG_STR("partition", p->name), LOG_U64("floor", new_low),
                    LOG_U64("ceiling", new_high));
    c->quota->limits[change->partition].floor = new_low;
    c->quota->limits[change->partition].ceiling = new_high;
    if (c->job->observe.metrics) {
        double t = (double)(corral_coordinator_now() - c->config->started_ns) / 1e9;
        corral_report_line(c, json_pack("{s:s, s:o, s:s, s:I, s:I}", "event", "quota", "t",
                                        corral_json_real(t), "partition", p->name, "floor",
                                        (json_int_t)new_low, "ceiling", (json_int_t)new_high));
    }
}

static void next_step(struct corral_coordinator *c, struct client *k, enum client_state state,
                      const char *type)
{
    k->state = state;
    k->deadline_ns = corral_coordinator_now() + ANSWER_NS;
    begin_message(c, k, type, 0);
    send_to_nodes(c, k);
}

/* Every node has said its word in this state. */
static void advance(struct corral_coordinator *c, struct client *k)
{
    switch (k->state) {
    case CLIENT_SHOWING:
        end(c, k, k->reason[0] == '\0', k->reason);
        return;
    case CLIENT_PREPARING:
        if (k->reason[0]) {
            next_step(c, k, CLIENT_ABORTING, "quota_abort");
        } else {
            next_step(c, k, CLIENT_COMMITTING, "quota_commit");
        }
        return;
    case CLIENT_COMMITTING:
        for (uint32_t i = 0; k->reason[0] == '\0' && i < k->change_count; i++) {
            record_change(c, &k->change[i]);
        }
        end(c, k, k->reason[0] == '\0', k->reason);
        return;
    case CLIENT_ABORTING:
        end(c, k, false, k->reason);
        return;
    default:
        return;
    }
}

static void answered(struct corral_coordinator *c, struct client *k, uint32_t node)
{
    k->owing &= ~(1u << node);
    /* One refusal is enough to begin putting back: nobody need wait for the others' waits. */
    if (k->owing == 0 || (k->state == CLIENT_PREPARING && k->reason[0])) {
        advance(c, k);
    }
}

static enum corral_status on_word(struct corral_coordinator *c, struct client *k, uint32_t node,
                                  const struct corral_mpack_node *m, struct corral_error *err)
{
    bool ok;
    char reason[400];
    CORRAL_TRY(corral_mpack_get_bool(m, "ok", &ok, err));
    CORRAL_TRY(corral_mpack_get_str(m, "reason", reason, sizeof reason, err));
    size_t used = strlen(k->reason);
    if (!ok && used == 0) {
        snprintf(k->reason, sizeof k->reason, "%s", reason[0] ? reason : "refused");
    } else if (!ok && k->state == CLIENT_ABORTING && used + 40 < sizeof k->reason) {
        snprintf(k->reason + used, sizeof k->reason - used, "; not put back on node %s: %.200s",
                 c->job->node[node].name, reason);
    }
    answered(c, k, node);
    return CORRAL_OK;
}

/* ---- messages ---- */

void corral_quota_client_message(struct corral_coordinator *c, struct corral_bus_peer *peer, const char *type,
                                 const struct corral_mpack_node *m)
{
    struct client *k = client_of(c, peer);
    if (!k || k->state != CLIENT_SILENT) {
        return;
    }
    struct corral_error why;
    enum corral_status status;
    if (!ready_for_questions(c)) {
        status = corral_fail(&why, CORRAL_STATE, "the run is %s: no quotas to show or change",
                             corral_run_phase_name(c->phase));
    } else if (strcmp(type, "quota_show") == 0) {
        status = on_show(c, k, m, &why);
    } else if (strcmp(type, "quota_set") == 0) {
        status = on_set(c, k, m, &why);
    } else if (strcmp(type, "weights_probe") == 0) { /* another desk's */
        *k = (struct client){.state = CLIENT_FREE};
        corral_weights_client(c, peer, m);
        return;
    } else {
        return;
    }
    if (status != CORRAL_OK) {
        end(c, k, false, why.text);
    }
}

static struct client *asker(struct corral_coordinator *c, const struct corral_mpack_node *m, uint32_t node)
{
    uint64_t request;
    if (corral_mpack_get_u64(m, "request", &request, NULL) != CORRAL_OK) {
        return NULL;
    }
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *k = &c->quota->client[i];
        if (k->state > CLIENT_SILENT && k->request == request && (k->owing >> node & 1u)) {
            return k;
        }
    }
    return NULL;
}

enum corral_status corral_quota_node_message(struct corral_coordinator *c, uint32_t node, const char *type,
                                             const struct corral_mpack_node *m, struct corral_error *err)
{
    struct client *k = asker(c, m, node);
    if (!k) {
        return CORRAL_OK; /* too late, or twice */
    }
    if (strcmp(type, "quota_shown") == 0 && k->state == CLIENT_SHOWING) {
        return on_shown(c, k, node, m, err);
    }
    if ((strcmp(type, "quota_prepared") == 0 && k->state == CLIENT_PREPARING) ||
        (strcmp(type, "quota_done") == 0 && k->state >= CLIENT_COMMITTING)) {
        return on_word(c, k, node, m, err);
    }
    return CORRAL_OK;
}

/* A client that was killed would keep everybody else from changing anything until its wait is over. Sending finds out; those that live ignore what they do not wait for. */
static bool client_is_gone(struct corral_coordinator *c, struct client *k, uint64_t now)
{
    if (k->state != CLIENT_PREPARING || !k->peer || now - k->looked_ns < LOOK_NS) {
        return false;
    }
    k->looked_ns = now;
    corral_mpack_map(c->out, 1);
    corral_mpack_kv_str(c->out, "type", "quota_wait");
    bool gone = corral_bus_server_send(c->bus, k->peer, c->out, NULL) == CORRAL_PEER;
    corral_mpack_writer_reset(c->out);
    return gone;
}

static void abandon(struct corral_coordinator *c, struct client *k)
{
    corral_log_info("who asked for a change of quotas has gone; it is put back");
    snprintf(k->reason, sizeof k->reason, "who asked for it has gone");
    corral_bus_server_drop(c->bus, k->peer);
    k->peer = NULL;
    k->owing = 0;
    advance(c, k);
}

void corral_quota_tick(struct corral_coordinator *c)
{
    uint64_t now = corral_coordinator_now();
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *k = &c->quota->client[i];
        if (client_is_gone(c, k, now)) {
            abandon(c, k);
            continue;
        }
        if (k->state == CLIENT_FREE || now < k->deadline_ns) {
            continue;
        }
        if (k->state == CLIENT_SILENT) {
            end(c, k, false, "nothing was asked");
            continue;
        }
        for (uint32_t n = 0; n < c->job->node_count && k->reason[0] == '\0'; n++) {
            if (k->owing >> n & 1u) {
                snprintf(k->reason, sizeof k->reason, "node %s does not answer", c->job->node[n].name);
            }
        }
        k->owing = 0;
        advance(c, k);
    }
}
