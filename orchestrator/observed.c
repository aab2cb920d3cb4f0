#include "orchestrator/observed.h"
#include "base/json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void corral_observed_free(struct corral_observed *o)
{
    if (o) {
        free(o->device);
        *o = (struct corral_observed){.device_count = 0};
    }
}

static enum corral_status make_room(struct corral_observed *o, uint32_t devices, struct corral_error *err)
{
    o->device = calloc(CORRAL_MAX(devices, 1u), sizeof *o->device);
    if (!o->device) {
        return corral_fail(err, CORRAL_NOMEM, "no room for what %u devices report", devices);
    }
    o->device_count = devices;
    return CORRAL_OK;
}

struct corral_observed_role *corral_observed_find(struct corral_observed_device *d, const char *role)
{
    for (uint32_t i = 0; i < d->role_count; i++) {
        if (strcmp(d->role[i].role, role) == 0) {
            return &d->role[i];
        }
    }
    return NULL;
}

static void add_role(struct corral_observed_device *d, const struct corral_ledger *l, uint32_t device,
                     uint32_t role)
{
    const struct corral_ledger_role *from = &l->device[device].role[role];
    struct corral_observed_role *to = &d->role[d->role_count++];
    *to = (struct corral_observed_role){.floor = from->floor,
                                        .ceiling = from->ceiling,
                                        .used = from->used,
                                        .peak = from->peak,
                                        .denied = from->denied,
                                        .booked = from->booked,
                                        .spilled = from->spilled,
                                        .pinned = from->pinned,
                                        .wanted = from->wanted};
    memcpy(to->role, l->role_name[role], sizeof to->role);
}

static void add_holder(struct corral_observed *o, const struct corral_ledger *l,
                       const struct corral_ledger_holder *h)
{
    if (h->pid == 0 || h->device >= o->device_count || h->role >= l->role_count) {
        return;
    }
    struct corral_observed_role *r = corral_observed_find(&o->device[h->device], l->role_name[h->role]);
    if (r) {
        r->processes++;
        r->overhead += h->kind_bytes[CORRAL_KIND_OVERHEAD];
        r->physical += h->physical;
    }
}

enum corral_status corral_observed_from_ledger(const struct corral_ledger *l, struct corral_observed *out,
                                               struct corral_error *err)
{
    struct corral_observed o;
    CORRAL_TRY(make_room(&o, l->device_count, err));
    for (uint32_t i = 0; i < l->device_count; i++) {
        const struct corral_ledger_device *from = &l->device[i];
        struct corral_observed_device *to = &o.device[i];
        static const uint8_t none[sizeof from->uuid];
        memcpy(to->device, from->name, sizeof to->device);
        to->gpu = memcmp(from->uuid, none, sizeof none) != 0;
        to->memory = from->physical;
        to->headroom = from->headroom;
        to->overcommit_ppm = from->overcommit_ppm;
        to->foreign = CORRAL_OBSERVED_UNKNOWN;
        to->steps_open = from->steps_open;
        for (uint32_t r = 0; r < l->role_count; r++) {
            if (from->role[r].ceiling > 0) {
                add_role(to, l, i, r);
            }
        }
    }
    for (uint32_t i = 0; i < CORRAL_MIN(l->holder_high, (uint32_t)CORRAL_LEDGER_HOLDERS_MAX); i++) {
        add_holder(&o, l, &l->holder[i]);
    }
    *out = o;
    return CORRAL_OK;
}

/* ---- the message ---- */

/* The numbers of both structs, each once: writing, reading and JSON cannot drift apart. */
struct number {
    const char *key;
    size_t offset;
};
#define ROLE_NUMBER(field)                                   \
    {                                                        \
#field, offsetof(struct corral_observed_role, field) \
    }
static const struct number role_numbers[] = {
    ROLE_NUMBER(floor),   ROLE_NUMBER(ceiling),  ROLE_NUMBER(used),     ROLE_NUMBER(peak),
    ROLE_NUMBER(denied),  ROLE_NUMBER(booked),   ROLE_NUMBER(spilled),  ROLE_NUMBER(pinned),
    ROLE_NUMBER(wanted),  ROLE_NUMBER(overhead), ROLE_NUMBER(physical), ROLE_NUMBER(processes),
    ROLE_NUMBER(busy_ns),
};
#define DEVICE_NUMBER(field)                                   \
    {                                                          \
#field, offsetof(struct corral_observed_device, field) \
    }
static const struct number device_numbers[] = {
    DEVICE_NUMBER(memory),        DEVICE_NUMBER(headroom),   DEVICE_NUMBER(overcommit_ppm),
    DEVICE_NUMBER(physical_used), DEVICE_NUMBER(steps_open), DEVICE_NUMBER(wall_ns),
    DEVICE_NUMBER(busy_ns),
};
#define ROLE_NUMBERS CORRAL_COUNT_OF(role_numbers)
#define DEVICE_NUMBERS CORRAL_COUNT_OF(device_numbers)

static uint64_t number_at(const void *base, size_t offset)
{
    uint64_t value;
    memcpy(&value, (const char *)base + offset, sizeof value);
    return value;
}

static enum corral_status read_numbers(const struct corral_mpack_node *map, const struct number *numbers,
                                       size_t count, void *base, struct corral_error *err)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t value;
        CORRAL_TRY(corral_mpack_get_u64(map, numbers[i].key, &value, err));
        memcpy((char *)base + numbers[i].offset, &value, sizeof value);
    }
    return CORRAL_OK;
}

void corral_observed_write(const struct corral_observed *o, struct corral_mpack_writer *w)
{
    corral_mpack_array(w, o->device_count);
    for (uint32_t i = 0; i < o->device_count; i++) {
        const struct corral_observed_device *d = &o->device[i];
        corral_mpack_map(w, DEVICE_NUMBERS + 5);
        corral_mpack_kv_str(w, "device", d->device);
        corral_mpack_kv_bool(w, "gpu", d->gpu);
        corral_mpack_kv_i64(w, "foreign", d->foreign);
        corral_mpack_kv_bool(w, "busy_known", d->busy_known);
        for (size_t k = 0; k < DEVICE_NUMBERS; k++) {
            corral_mpack_kv_u64(w, device_numbers[k].key, number_at(d, device_numbers[k].offset));
        }
        corral_mpack_str(w, "roles");
        corral_mpack_array(w, d->role_count);
        for (uint32_t r = 0; r < d->role_count; r++) {
            corral_mpack_map(w, ROLE_NUMBERS + 2);
            corral_mpack_kv_str(w, "role", d->role[r].role);
            corral_mpack_kv_bool(w, "busy_known", d->role[r].busy_known);
            for (size_t k = 0; k < ROLE_NUMBERS; k++) {
                corral_mpack_kv_u64(w, role_numbers[k].key, number_at(&d->role[r], role_numbers[k].offset));
            }
        }
    }
}

static enum corral_status read_device(const struct corral_mpack_node *m, struct corral_observed_device *d,
                                      struct corral_error *err)
{
    const struct corral_mpack_node *roles;
    CORRAL_TRY(corral_mpack_get_str(m, "device", d->device, sizeof d->device, err));
    CORRAL_TRY(corral_mpack_get_bool(m, "gpu", &d->gpu, err));
    CORRAL_TRY(corral_mpack_get_i64(m, "foreign", &d->foreign, err));
    CORRAL_TRY(corral_mpack_get_bool(m, "busy_known", &d->busy_known, err));
    CORRAL_TRY(read_numbers(m, device_numbers, DEVICE_NUMBERS, d, err));
    CORRAL_TRY(corral_mpack_get_node(m, "roles", &roles, err));
    if (corral_mpack_count(roles) > CORRAL_LEDGER_ROLES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "device %s reports %u roles, at most %d can be", d->device,
                           corral_mpack_count(roles), CORRAL_LEDGER_ROLES_MAX);
    }
    for (uint32_t i = 0; i < corral_mpack_count(roles); i++) {
        struct corral_observed_role *r = &d->role[d->role_count++];
        const struct corral_mpack_node *role = corral_mpack_at(roles, i);
        CORRAL_TRY(corral_mpack_get_str(role, "role", r->role, sizeof r->role, err));
        CORRAL_TRY(corral_mpack_get_bool(role, "busy_known", &r->busy_known, err));
        CORRAL_TRY(read_numbers(role, role_numbers, ROLE_NUMBERS, r, err));
    }
    return CORRAL_OK;
}

enum corral_status corral_observed_read(const struct corral_mpack_node *devices, struct corral_observed *out,
                                        struct corral_error *err)
{
    CORRAL_CLEANUP(corral_observed_free) struct corral_observed o = {.device_count = 0};
    if (corral_mpack_count(devices) > CORRAL_LEDGER_DEVICES_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "a node reports %u devices, at most %d can be",
                           corral_mpack_count(devices), CORRAL_LEDGER_DEVICES_MAX);
    }
    CORRAL_TRY(make_room(&o, corral_mpack_count(devices), err));
    for (uint32_t i = 0; i < o.device_count; i++) {
        CORRAL_TRY(read_device(corral_mpack_at(devices, i), &o.device[i], err));
    }
    *out = o;
    o = (struct corral_observed){.device_count = 0};
    return CORRAL_OK;
}

/* ---- JSON ---- */

static double share(uint64_t part_ns, uint64_t wall_ns)
{
    return wall_ns > 0 ? CORRAL_MIN((double)part_ns / (double)wall_ns, 1.0) : 0;
}

static json_t *share_json(bool known, uint64_t part_ns, uint64_t wall_ns)
{
    return known && wall_ns > 0 ? corral_json_real(share(part_ns, wall_ns)) : json_null();
}

static void add_numbers(json_t *object, const struct number *numbers, size_t count, const void *base)
{
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(numbers[i].key);
        if (length > 3 && strcmp(numbers[i].key + length - 3, "_ns") == 0) {
            continue; /* told as shares */
        }
        json_object_set_new(object, numbers[i].key,
                            json_integer((json_int_t)number_at(base, numbers[i].offset)));
    }
}

static json_t *device_json(const struct corral_observed_device *d)
{
    json_t *object = json_object(), *roles = json_array();
    json_object_set_new(object, "device", json_string(d->device));
    json_object_set_new(object, "kind", json_string(d->gpu ? "gpu" : "host"));
    add_numbers(object, device_numbers, DEVICE_NUMBERS, d);
    json_object_set_new(object, "foreign", d->foreign < 0 ? json_null() : json_integer(d->foreign));
    json_object_set_new(object, "busy", share_json(d->busy_known, d->busy_ns, d->wall_ns));
    json_object_set_new(
        object, "idle_s",
        d->busy_known ? corral_json_real((double)(d->wall_ns - CORRAL_MIN(d->busy_ns, d->wall_ns)) / 1e9)
                      : json_null());
    for (uint32_t i = 0; i < d->role_count; i++) {
        const struct corral_observed_role *r = &d->role[i];
        json_t *role = json_object();
        json_object_set_new(role, "role", json_string(r->role));
        add_numbers(role, role_numbers, ROLE_NUMBERS, r);
        json_object_set_new(role, "busy", share_json(r->busy_known, r->busy_ns, d->wall_ns));
        json_array_append_new(roles, role);
    }
    json_object_set_new(object, "roles", roles);
    return object;
}

json_t *corral_observed_json(const struct corral_observed *o)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < o->device_count; i++) {
        json_array_append_new(list, device_json(&o->device[i]));
    }
    return list;
}

/* ---- groups ---- */

struct builder {
    struct corral_device_group *group;
    uint64_t wall_ns[CORRAL_GROUPS_MAX], busy_ns[CORRAL_GROUPS_MAX];
    uint64_t role_ns[CORRAL_GROUPS_MAX][CORRAL_LEDGER_ROLES_MAX];
    bool known[CORRAL_GROUPS_MAX], role_known[CORRAL_GROUPS_MAX][CORRAL_LEDGER_ROLES_MAX];
    char first[CORRAL_GROUPS_MAX][CORRAL_LEDGER_NAME_MAX]; /* node of the last device named, with its colon */
    uint32_t last[CORRAL_GROUPS_MAX];                      /* its number */
    bool range[CORRAL_GROUPS_MAX];                         /* the text ends in an open range */
    uint32_t count;
};

static bool same_roles(const struct corral_device_group *g, const struct corral_observed_device *d)
{
    bool same = g->role_count == d->role_count;
    for (uint32_t i = 0; same && i < d->role_count; i++) {
        same = strcmp(g->role[i], d->role[i].role) == 0;
    }
    return same;
}

static uint32_t group_of(struct builder *b, const struct corral_observed_device *d)
{
    for (uint32_t i = 0; i < b->count; i++) {
        if (same_roles(&b->group[i], d)) {
            return i;
        }
    }
    if (b->count == CORRAL_GROUPS_MAX) {
        return CORRAL_GROUPS_MAX - 1;
    }
    struct corral_device_group *g = &b->group[b->count];
    *g = (struct corral_device_group){.role_count = d->role_count};
    for (uint32_t i = 0; i < d->role_count; i++) {
        memcpy(g->role[i], d->role[i].role, sizeof g->role[i]);
        b->role_known[b->count][i] = true;
    }
    b->known[b->count] = true;
    return b->count++;
}

/* "a:6-7 b:0": runs of numbers of one node are drawn together; what does not fit ends in "…". */
static void name_device(struct builder *b, uint32_t at, const char *name)
{
    struct corral_device_group *g = &b->group[at];
    const char *colon = strrchr(name, ':');
    size_t node_bytes = colon ? (size_t)(colon - name) + 1 : 0, length = strlen(g->devices);
    uint32_t number = colon ? (uint32_t)strtoul(colon + 1, NULL, 10) : 0;
    bool follows = length > 0 && colon && number == b->last[at] + 1 && strlen(b->first[at]) == node_bytes &&
                   strncmp(b->first[at], name, node_bytes) == 0;
    char text[48];
    if (follows) {
        char *dash = b->range[at] ? strrchr(g->devices, '-') : NULL;
        length = dash ? (size_t)(dash - g->devices) : length;
        snprintf(text, sizeof text, "-%u", number);
    } else {
        snprintf(text, sizeof text, "%s%s", length > 0 ? " " : "", name);
    }
    if (length + strlen(text) + sizeof "…" > sizeof g->devices) {
        if (length + sizeof "…" <= sizeof g->devices &&
            (length < 3 || strcmp(g->devices + length - 3, "…") != 0)) {
            snprintf(g->devices + length, sizeof g->devices - length, "…");
        }
        return;
    }
    snprintf(g->devices + length, sizeof g->devices - length, "%s", text);
    b->range[at] = follows;
    b->last[at] = number;
    snprintf(b->first[at], sizeof b->first[at], "%.*s", (int)CORRAL_MIN(node_bytes, (size_t)31), name);
}

static void add_device(struct builder *b, const struct corral_observed_device *d)
{
    uint32_t at = group_of(b, d);
    name_device(b, at, d->device);
    b->group[at].device_count++;
    b->wall_ns[at] += d->wall_ns;
    b->busy_ns[at] += CORRAL_MIN(d->busy_ns, d->wall_ns);
    b->known[at] &= d->busy_known;
    bool same = same_roles(&b->group[at], d); /* not when it is one of those put into the last */
    for (uint32_t i = 0; i < CORRAL_MIN(d->role_count, b->group[at].role_count); i++) {
        b->role_known[at][i] &= same;
        b->role_ns[at][i] += d->role[i].busy_ns;
        b->role_known[at][i] &= d->role[i].busy_known;
    }
}

static void finish_group(struct builder *b, uint32_t at)
{
    struct corral_device_group *g = &b->group[at];
    g->idle = g->idle_s = NAN;
    if (b->known[at] && b->wall_ns[at] > 0) {
        g->idle = 1 - share(b->busy_ns[at], b->wall_ns[at]);
        g->idle_s = (double)(b->wall_ns[at] - b->busy_ns[at]) / 1e9;
    }
    size_t length = 0;
    for (uint32_t i = 0; i < g->role_count; i++) {
        bool known = b->role_known[at][i] && b->wall_ns[at] > 0;
        g->busy[i] = known ? share(b->role_ns[at][i], b->wall_ns[at]) : NAN;
        if (known && length < sizeof g->roles - 1) {
            int n = snprintf(g->roles + length, sizeof g->roles - length, "%s%s %.0f %%", length ? ", " : "",
                             g->role[i], 100 * g->busy[i]);
            length += n > 0 ? (size_t)n : 0;
        }
    }
}

uint32_t corral_device_groups(const struct corral_observed *const *nodes, uint32_t node_count,
                              struct corral_device_group out[CORRAL_GROUPS_MAX])
{
    struct builder b = {.group = out};
    for (uint32_t n = 0; n < node_count; n++) {
        for (uint32_t i = 0; nodes[n] && i < nodes[n]->device_count; i++) {
            if (nodes[n]->device[i].role_count > 0) {
                add_device(&b, &nodes[n]->device[i]);
            }
        }
    }
    for (uint32_t i = 0; i < b.count; i++) {
        finish_group(&b, i);
    }
    return b.count;
}
