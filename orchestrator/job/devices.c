/* "a:0-3" into devices: nodes get theirs first, then each partition's list is read against them. */
#include "base/text.h"
#include "orchestrator/inventory/inventory.h"
#include "orchestrator/job/internal.h"
#include <stdlib.h>
#include <string.h>

static enum corral_status resolve_node(struct corral_job *job, uint32_t i, struct corral_error *err)
{
    struct corral_job_node *n = &job->node[i];
    const struct origin *at = &job->origins->node[i];
    if (n->gpu_count > 0 && n->host_devices > 0) {
        return job_error(job, at, err, "node `%s` has both gpus and host_devices; a node has one kind",
                         n->name);
    }
    if (n->gpu_count == 0 && n->host_devices == 0) {
        return job_error(job, at, err, "node `%s` has no devices: set gpus or host_devices", n->name);
    }
    if (n->address[0] == '\0') {
        return job_error(job, at, err, "node `%s` has an empty address", n->name);
    }
    if (n->gpu_count > 0) {
        if (n->gpu_memory == UINT64_MAX) {
            return job_error(job, at, err,
                             "missing key `node.gpu_memory` of node `%s`: the memory of each GPU", n->name);
        }
        n->kind = CORRAL_DEVICE_GPU;
        n->device_count = n->gpu_count;
        memcpy(n->device_index, n->gpu_index, sizeof n->gpu_index);
        n->device_memory = n->gpu_memory;
        return CORRAL_OK;
    }
    n->kind = CORRAL_DEVICE_HOST;
    n->device_count = n->host_devices;
    for (uint32_t k = 0; k < n->host_devices; k++) {
        n->device_index[k] = k;
    }
    n->device_memory = n->host_memory;
    return CORRAL_OK;
}

/* Two ledgers for one GPU would each give away all of it. */
static enum corral_status check_gpus_once(const struct corral_job *job, uint32_t i, struct corral_error *err)
{
    const struct corral_job_node *n = &job->node[i];
    for (uint32_t q = 0; q < i; q++) {
        const struct corral_job_node *other = &job->node[q];
        if (strcmp(other->address, n->address) != 0) {
            continue;
        }
        for (uint32_t k = 0; k < n->gpu_count * other->gpu_count; k++) {
            if (n->gpu_index[k % n->gpu_count] == other->gpu_index[k / n->gpu_count]) {
                return job_error(
                    job, &job->origins->node[i], err,
                    "node `%s` and node `%s` are the same machine (address \"%s\") and both have GPU "
                    "%u; list the indices of each, such as gpus = [0, 1]",
                    n->name, other->name, n->address, n->gpu_index[k % n->gpu_count]);
            }
        }
    }
    return CORRAL_OK;
}

/* One item "NODE:0-3,5". `next` walks its ranges; false at the end or when it is malformed (*bad). */
struct range_walk {
    const char *p;
    bool bad;
};

static bool digits(const char **p, uint32_t *out)
{
    uint32_t n = 0;
    const char *first = *p;
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        if (*p - first >= 6) {
            return false;
        }
        n = n * 10 + (uint32_t)(**p - '0');
    }
    *out = n;
    return *p != first;
}

static bool range_next(struct range_walk *w, uint32_t *first, uint32_t *last)
{
    if (*w->p == '\0') {
        return false;
    }
    w->bad = true;
    if (!digits(&w->p, first)) {
        return false;
    }
    *last = *first;
    if (*w->p == '-') {
        w->p++;
        if (!digits(&w->p, last) || *last < *first) {
            return false;
        }
    }
    if (*w->p == ',') {
        w->p++;
        if (*w->p == '\0') {
            return false;
        }
    } else if (*w->p != '\0') {
        return false;
    }
    w->bad = false;
    return true;
}

static enum corral_status malformed(const struct corral_job *job, const struct corral_job_partition *p,
                                    const struct device_item *item, struct corral_error *err)
{
    return job_error(job, &item->at, err,
                     "`%s.%s.gpus`: \"%.60s\" is not a set of devices; write \"NODE:3\" or \"NODE:0-3\"",
                     job_partition_section(p), p->name, item->text);
}

/* Without [[node]] the machine has as many host devices as the job names. */
static enum corral_status highest_index(struct corral_job *job, uint32_t *out, struct corral_error *err)
{
    *out = 0;
    for (uint32_t i = 0; i < job->partition_count; i++) {
        for (uint32_t k = 0; k < job->origins->item_count[i]; k++) {
            const struct device_item *item = &job->origins->item[i][k];
            const char *colon = strchr(item->text, ':');
            struct range_walk w = {.p = colon != NULL ? colon + 1 : ""};
            uint32_t first = 0, last = 0;
            while (range_next(&w, &first, &last)) {
                if (last >= CORRAL_JOB_NODE_DEVICES_MAX) {
                    return job_error(job, &item->at, err,
                                     "`%s.%s.gpus`: \"%.60s\" goes past the last possible device, %d",
                                     job_partition_section(&job->partition[i]), job->partition[i].name,
                                     item->text, CORRAL_JOB_NODE_DEVICES_MAX - 1);
                }
                *out = CORRAL_MAX(*out, last);
            }
        }
    }
    return CORRAL_OK;
}

bool job_wants_machine(const struct corral_job *job)
{
    /* The built-in learner computes on host devices; it would leave a GPU idle. */
    return job->node_count == 0 && job->model.kind == CORRAL_MODEL_TRANSFORMER;
}

static enum corral_status node_as_found(struct corral_job *job, const struct corral_inventory *machine,
                                        struct corral_error *err)
{
    struct corral_job_node *n = &job->node[0];
    strcpy(n->name, "local");
    strcpy(n->address, "local");
    n->as_found = true;
    n->gpu_memory = UINT64_MAX;
    n->host_memory = CORRAL_JOB_HOST_MEMORY;
    for (uint32_t i = 0; i < corral_option_count; i++) {
        job->origins->node_option[0][i].kind = ORIGIN_MACHINE;
    }
    if (job_wants_machine(job) && machine != NULL && machine->gpu_count > 0) {
        n->gpu_count = CORRAL_MIN(machine->gpu_count, (uint32_t)CORRAL_JOB_NODE_DEVICES_MAX);
        for (uint32_t i = 0; i < n->gpu_count; i++) {
            n->gpu_index[i] = i;
            n->gpu_memory = CORRAL_MIN(n->gpu_memory, machine->gpu[i].memory_total);
        }
    } else {
        uint32_t highest = 0;
        CORRAL_TRY(highest_index(job, &highest, err));
        n->host_devices = highest + 1;
    }
    job->node_count = 1;
    return CORRAL_OK;
}

static enum corral_status unknown_node(const struct corral_job *job, const struct corral_job_partition *p,
                                       const struct device_item *item, const char *name,
                                       struct corral_error *err)
{
    if (job->node[0].as_found) {
        return job_error(job, &item->at, err,
                         "`%s.%s.gpus`: unknown node `%s` in \"%.60s\"; without [[node]] the only node is "
                         "`local`",
                         job_partition_section(p), p->name, name, item->text);
    }
    const char *names[CORRAL_JOB_NODES_MAX] = {NULL};
    for (uint32_t i = 0; i < job->node_count; i++) {
        names[i] = job->node[i].name;
    }
    const char *near = corral_nearest(name, names, job->node_count);
    return job_error(job, &item->at, err, "`%s.%s.gpus`: unknown node `%s` in \"%.60s\"%s%s%s",
                     job_partition_section(p), p->name, name, item->text,
                     near != NULL ? "; did you mean `" : "", near != NULL ? near : "",
                     near != NULL ? "`?" : "");
}

/* "0-3 5 7" */
static void indices_text(const struct corral_job_node *n, char *out, size_t out_bytes)
{
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n->device_count && used < out_bytes;) {
        uint32_t k = i;
        while (k + 1 < n->device_count && n->device_index[k + 1] == n->device_index[k] + 1) {
            k++;
        }
        int wrote =
            k > i ? snprintf(out + used, out_bytes - used, "%s%u-%u", i > 0 ? " " : "", n->device_index[i],
                             n->device_index[k])
                  : snprintf(out + used, out_bytes - used, "%s%u", i > 0 ? " " : "", n->device_index[i]);
        used += (size_t)wrote;
        i = k + 1;
    }
}

/* A tenant shares what it is given; a partition has to say so. */
static const char *shared_advice(const struct corral_job_partition *a, const struct corral_job_partition *b)
{
    if (a->role == CORRAL_ROLE_TENANT || b->role == CORRAL_ROLE_TENANT) {
        return "; a partition shares its devices with a tenant when it says shared = true";
    }
    return a->shared || b->shared ? "; both must say shared = true" : "";
}

/* Who else has this device already? Two partitions may, when both say so. */
static enum corral_status check_overlap(const struct corral_job *job, uint32_t partition, uint32_t item_index,
                                        const struct corral_job_device *d, struct corral_error *err)
{
    const struct corral_job_partition *p = &job->partition[partition];
    const struct device_item *item = &job->origins->item[partition][item_index];
    for (uint32_t q = 0; q <= partition; q++) {
        const struct corral_job_partition *other = &job->partition[q];
        for (uint32_t k = 0; k < other->device_count; k++) {
            if (other->device[k].node != d->node || other->device[k].slot != d->slot) {
                continue;
            }
            if (q == partition) {
                return job_error(job, &item->at, err, "gpus \"%.60s\" name %s:%u twice in %s.%s", item->text,
                                 job->node[d->node].name, d->index, job_partition_section(p), p->name);
            }
            if (p->shared && other->shared) {
                continue;
            }
            const struct device_item *theirs = &job->origins->item[q][job->origins->device_item[q][k]];
            char where[48] = "--set";
            if (theirs->at.kind == ORIGIN_FILE) {
                snprintf(where, sizeof where, "line %u", theirs->at.line);
            }
            return job_error(job, &item->at, err, "gpus \"%.60s\" overlap %s.%s (%.60s, %s)%s", item->text,
                             job_partition_section(other), other->name, theirs->text, where,
                             shared_advice(p, other));
        }
    }
    return CORRAL_OK;
}

static enum corral_status add_device(struct corral_job *job, uint32_t partition, uint32_t item_index,
                                     uint32_t node, uint32_t index, struct corral_error *err)
{
    struct corral_job_partition *p = &job->partition[partition];
    const struct device_item *item = &job->origins->item[partition][item_index];
    const struct corral_job_node *n = &job->node[node];
    struct corral_job_device d = {.node = node, .index = index, .slot = UINT32_MAX};
    for (uint32_t s = 0; s < n->device_count; s++) {
        if (n->device_index[s] == index) {
            d.slot = s;
        }
    }
    if (d.slot == UINT32_MAX) {
        char have[128];
        indices_text(n, have, sizeof have);
        return job_error(job, &item->at, err, "`%s.%s.gpus`: \"%.60s\" names %s:%u, but node `%s` has %s",
                         job_partition_section(p), p->name, item->text, n->name, index, n->name, have);
    }
    CORRAL_TRY(check_overlap(job, partition, item_index, &d, err));
    if (p->device_count == CORRAL_JOB_PARTITION_DEVICES_MAX) {
        return job_error(job, &item->at, err, "%s.%s has more than %d devices", job_partition_section(p),
                         p->name, CORRAL_JOB_PARTITION_DEVICES_MAX);
    }
    job->origins->device_item[partition][p->device_count] = (uint8_t)item_index;
    p->device[p->device_count++] = d;
    return CORRAL_OK;
}

static enum corral_status resolve_item(struct corral_job *job, uint32_t partition, uint32_t item_index,
                                       struct corral_error *err)
{
    struct corral_job_partition *p = &job->partition[partition];
    const struct device_item *item = &job->origins->item[partition][item_index];
    const char *colon = strchr(item->text, ':');
    char name[CORRAL_JOB_NAME_MAX];
    size_t length = colon != NULL ? (size_t)(colon - item->text) : 0;
    if (length == 0 || length >= sizeof name || colon[1] == '\0') {
        return malformed(job, p, item, err);
    }
    memcpy(name, item->text, length);
    name[length] = '\0';
    uint32_t node = 0;
    while (node < job->node_count && strcmp(job->node[node].name, name) != 0) {
        node++;
    }
    if (node == job->node_count) {
        return unknown_node(job, p, item, name, err);
    }
    struct range_walk w = {.p = colon + 1};
    uint32_t first = 0, last = 0;
    while (range_next(&w, &first, &last)) {
        for (uint32_t i = first; i <= last; i++) {
            CORRAL_TRY(add_device(job, partition, item_index, node, i, err));
        }
    }
    return w.bad ? malformed(job, p, item, err) : CORRAL_OK;
}

enum corral_status job_resolve_devices(struct corral_job *job, const struct corral_inventory *machine,
                                       struct corral_error *err)
{
    if (job->node_count == 0) {
        CORRAL_TRY(node_as_found(job, machine, err));
    }
    for (uint32_t i = 0; i < job->node_count; i++) {
        CORRAL_TRY(resolve_node(job, i, err));
        CORRAL_TRY(check_gpus_once(job, i, err));
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        for (uint32_t k = 0; k < job->origins->item_count[i]; k++) {
            CORRAL_TRY(resolve_item(job, i, k, err));
        }
    }
    return CORRAL_OK;
}
