#include "trainer-bridge/batching/groups.h"
#include "trainer-bridge/batching/group_index.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

enum slot_state { FREE = 0, OPEN, DECIDED };
enum presence { MISSING = 0, HERE, GIVEN_UP };

struct slot {
    uint64_t id, opened_ns;
    enum slot_state state;
    bool skipped; /* came out before a restart */
    uint32_t here, given_up;
    uint32_t older,
        newer; /* open: in the order of opening; decided: `newer` in the order of deciding; free: `newer` */
};

struct request {
    uint64_t id;
    uint32_t index;
};

struct corral_groups {
    struct corral_groups_config config;
    struct corral_groups_stats stats;
    struct slot *slot;
    struct corral_group_item *item;              /* [groups_max][group_size] */
    uint8_t *presence, *tries;                   /* the same */
    struct corral_group_index index;             /* unless ordered */
    uint64_t *skip;                              /* ordered: config.skip_count ids */
    uint64_t next_id, opened_to;                 /* ordered: comes out next; ids below this are open or out */
    uint32_t oldest, newest;                     /* open */
    uint32_t first_decided, last_decided, spare; /* unless ordered */
    struct request *request;                     /* ring */
    uint32_t request_max, request_at, request_count;
};

static enum corral_status check(struct corral_groups_config *c, struct corral_error *err)
{
    c->group_min = c->group_min > 0 ? c->group_min : c->group_size;
    bool ascending = c->skip_count <= CORRAL_GROUPS_SKIP_MAX;
    for (uint32_t i = 1; i < c->skip_count && ascending; i++) {
        ascending = c->skip[i] > c->skip[i - 1];
    }
    if (!ascending || (c->skip_count > 0 && !c->ordered)) {
        return corral_fail(err, CORRAL_INVALID,
                           "%u groups that have come out: at most %u, ascending, of ordered groups",
                           c->skip_count, CORRAL_GROUPS_SKIP_MAX);
    }
    if (c->group_size == 0 || c->group_size > CORRAL_GROUP_SIZE_MAX || c->group_min > c->group_size ||
        c->groups_max == 0 || (uint64_t)c->groups_max * c->group_size > CORRAL_GROUPS_ITEMS_MAX ||
        c->replacements_max > UINT8_MAX || !(c->flat_within >= 0)) {
        return corral_fail(err, CORRAL_INVALID,
                           "groups of %u (at least %u) in a window of %u, %u replacements: out of range",
                           c->group_size, c->group_min, c->groups_max, c->replacements_max);
    }
    return CORRAL_OK;
}

enum corral_status corral_groups_create(struct corral_groups **out, const struct corral_groups_config *config,
                                        struct corral_error *err)
{
    struct corral_groups_config c = *config;
    CORRAL_TRY(check(&c, err));
    CORRAL_CLEANUP(corral_groups_destroyp) struct corral_groups *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "create groups");
    }
    size_t items = (size_t)c.groups_max * c.group_size;
    g->config = c;
    g->slot = calloc(c.groups_max, sizeof *g->slot);
    g->item = calloc(items, sizeof *g->item);
    g->presence = calloc(items, 1);
    g->tries = calloc(items, 1);
    g->request = calloc(items, sizeof *g->request);
    if (g->slot == NULL || g->item == NULL || g->presence == NULL || g->tries == NULL || g->request == NULL ||
        !corral_group_index_init(&g->index, c.ordered ? 1 : c.groups_max)) {
        return corral_fail(err, CORRAL_NOMEM, "%u groups of %u", c.groups_max, c.group_size);
    }
    if (c.skip_count > 0) {
        g->skip = malloc(c.skip_count * sizeof *g->skip);
        if (g->skip == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "%u groups that have come out", c.skip_count);
        }
        memcpy(g->skip, c.skip, c.skip_count * sizeof *g->skip);
    }
    g->request_max = (uint32_t)items;
    g->next_id = g->opened_to = c.first;
    g->oldest = g->newest = g->first_decided = g->last_decided = NONE;
    for (uint32_t i = 0; i < c.groups_max; i++) {
        g->slot[i].newer = i + 1 < c.groups_max ? i + 1 : NONE;
    }
    *out = CORRAL_STEAL(g);
    return CORRAL_OK;
}

void corral_groups_destroy(struct corral_groups *g)
{
    if (g == NULL) {
        return;
    }
    corral_group_index_free(&g->index);
    free(g->skip);
    free(g->slot);
    free(g->item);
    free(g->presence);
    free(g->tries);
    free(g->request);
    free(g);
}

/* ---- opening and deciding ---- */

static void open_slot(struct corral_groups *g, uint32_t i, uint64_t id, uint64_t now_ns)
{
    size_t at = (size_t)i * g->config.group_size;
    g->slot[i] =
        (struct slot){.id = id, .opened_ns = now_ns, .state = OPEN, .older = g->newest, .newer = NONE};
    *(g->newest != NONE ? &g->slot[g->newest].newer : &g->oldest) = i;
    g->newest = i;
    memset(&g->presence[at], MISSING, g->config.group_size);
    memset(&g->tries[at], 0, g->config.group_size);
    g->stats.open++;
}

static void leave_open_list(struct corral_groups *g, uint32_t i)
{
    struct slot *s = &g->slot[i];
    *(s->older != NONE ? &g->slot[s->older].newer : &g->oldest) = s->newer;
    *(s->newer != NONE ? &g->slot[s->newer].older : &g->newest) = s->older;
}

static void decide(struct corral_groups *g, uint32_t i)
{
    struct slot *s = &g->slot[i];
    leave_open_list(g, i);
    s->state = DECIDED;
    s->newer = NONE;
    if (!g->config.ordered) {
        *(g->last_decided != NONE ? &g->slot[g->last_decided].newer : &g->first_decided) = i;
        g->last_decided = i;
    }
}

static void decide_if_settled(struct corral_groups *g, uint32_t i)
{
    if (g->slot[i].here + g->slot[i].given_up == g->config.group_size) {
        decide(g, i);
    }
}

static bool is_skipped(const struct corral_groups *g, uint64_t id)
{
    uint32_t low = 0, high = g->config.skip_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (g->skip[middle] < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < g->config.skip_count && g->skip[low] == id;
}

static void open_up_to(struct corral_groups *g, uint64_t id, uint64_t now_ns)
{
    for (; g->opened_to <= id; g->opened_to++) {
        uint32_t i = (uint32_t)(g->opened_to % g->config.groups_max);
        open_slot(g, i, g->opened_to, now_ns);
        if (is_skipped(g, g->opened_to)) {
            g->slot[i].skipped = true;
            decide(g, i);
        }
    }
}

static enum corral_group_fate find_ordered(struct corral_groups *g, uint64_t id, uint64_t now_ns,
                                           uint32_t *slot)
{
    if (id < g->next_id) {
        return CORRAL_GROUP_LATE;
    }
    const bool beyond = id - g->next_id >= g->config.groups_max;
    /* What waits beyond the window waits for all of it: every group in it has a deadline from now on, also one of which nothing ever comes. */
    open_up_to(g, beyond ? g->next_id + g->config.groups_max - 1 : id, now_ns);
    *slot = (uint32_t)(id % g->config.groups_max);
    return beyond ? CORRAL_GROUP_BEYOND : CORRAL_GROUP_KEPT;
}

static enum corral_group_fate find_any(struct corral_groups *g, uint64_t id, uint64_t now_ns, uint32_t *slot)
{
    uint32_t i = corral_group_index_get(&g->index, id);
    if (i == CORRAL_GROUP_CLOSED) {
        return CORRAL_GROUP_LATE;
    }
    if (i == CORRAL_GROUP_ABSENT) {
        if (g->spare == NONE) {
            return CORRAL_GROUP_BEYOND;
        }
        i = g->spare;
        g->spare = g->slot[i].newer;
        open_slot(g, i, id, now_ns);
        corral_group_index_put(&g->index, id, i);
    }
    *slot = i;
    return CORRAL_GROUP_KEPT;
}

static enum corral_group_fate find_slot(struct corral_groups *g, uint64_t id, uint32_t index, uint64_t now_ns,
                                        uint32_t *slot)
{
    enum corral_group_fate fate = (g->config.ordered ? find_ordered : find_any)(g, id, now_ns, slot);
    if (fate == CORRAL_GROUP_KEPT && (g->slot[*slot].state == DECIDED ||
                                      g->presence[(size_t)*slot * g->config.group_size + index] == HERE)) {
        fate = CORRAL_GROUP_SURPLUS;
    }
    g->stats.late += fate == CORRAL_GROUP_LATE;
    g->stats.surplus += fate == CORRAL_GROUP_SURPLUS;
    return fate;
}

static enum corral_status check_index(const struct corral_groups *g, uint64_t id, uint32_t index,
                                      struct corral_error *err)
{
    if (index >= g->config.group_size) {
        return corral_fail(err, CORRAL_INVALID, "completion %u of group %llu: a group has %u", index,
                           (unsigned long long)id, g->config.group_size);
    }
    return CORRAL_OK;
}

enum corral_status corral_groups_add(struct corral_groups *g, uint64_t id,
                                     const struct corral_group_item *item, uint64_t now_ns,
                                     enum corral_group_fate *fate, struct corral_error *err)
{
    CORRAL_TRY(check_index(g, id, item->index, err));
    if (!isfinite(item->score)) {
        return corral_fail(err, CORRAL_INVALID, "completion %u of group %llu has a score of %g", item->index,
                           (unsigned long long)id, item->score);
    }
    uint32_t i;
    *fate = find_slot(g, id, item->index, now_ns, &i);
    if (*fate != CORRAL_GROUP_KEPT) {
        return CORRAL_OK;
    }
    size_t at = (size_t)i * g->config.group_size + item->index;
    g->slot[i].given_up -= g->presence[at] == GIVEN_UP;
    g->presence[at] = HERE;
    g->item[at] = *item;
    g->slot[i].here++;
    g->stats.held++;
    decide_if_settled(g, i);
    return CORRAL_OK;
}

enum corral_status corral_groups_fail(struct corral_groups *g, uint64_t id, uint32_t index, uint64_t now_ns,
                                      enum corral_group_fate *fate, struct corral_error *err)
{
    CORRAL_TRY(check_index(g, id, index, err));
    uint32_t i;
    *fate = find_slot(g, id, index, now_ns, &i);
    if (*fate != CORRAL_GROUP_KEPT) {
        return CORRAL_OK;
    }
    size_t at = (size_t)i * g->config.group_size + index;
    g->stats.failed++;
    /* The ring can only be full of requests that nobody takes: asking once more would not help. */
    if (g->presence[at] == MISSING && g->tries[at] < g->config.replacements_max &&
        g->request_count < g->request_max) {
        g->tries[at]++;
        g->request[(g->request_at + g->request_count++) % g->request_max] =
            (struct request){.id = id, .index = index};
        g->stats.asked++;
    } else if (g->presence[at] == MISSING) {
        g->presence[at] = GIVEN_UP;
        g->slot[i].given_up++;
        decide_if_settled(g, i);
    }
    return CORRAL_OK;
}

bool corral_groups_replacement(struct corral_groups *g, uint64_t *id, uint32_t *index)
{
    if (g->request_count == 0) {
        return false;
    }
    *id = g->request[g->request_at].id;
    *index = g->request[g->request_at].index;
    g->request_at = (g->request_at + 1) % g->request_max;
    g->request_count--;
    return true;
}

/* ---- giving out ---- */

static bool overdue(const struct corral_groups *g, uint32_t i, uint64_t now_ns)
{
    return g->config.deadline_ns > 0 && now_ns >= g->slot[i].opened_ns &&
           now_ns - g->slot[i].opened_ns >= g->config.deadline_ns;
}

static void judge(struct corral_groups *g, struct corral_group *out, const struct corral_group_item *items)
{
    double sum = 0, squares = 0, least = INFINITY, most = -INFINITY;
    for (uint32_t i = 0; i < out->count; i++) {
        sum += items[i].score;
        least = fmin(least, items[i].score);
        most = fmax(most, items[i].score);
    }
    out->mean = out->count > 0 ? sum / out->count : 0;
    for (uint32_t i = 0; i < out->count; i++) {
        squares += (items[i].score - out->mean) * (items[i].score - out->mean);
    }
    out->deviation = out->count > 1 ? sqrt(squares / (out->count - 1)) : 0;
    out->flat = g->config.group_size > 1 && most - least <= g->config.flat_within;
    out->verdict = out->count == g->config.group_size  ? CORRAL_GROUP_COMPLETE
                   : out->count >= g->config.group_min ? CORRAL_GROUP_SHORT
                                                       : CORRAL_GROUP_TOO_FEW;
    bool dropped = out->verdict == CORRAL_GROUP_TOO_FEW;
    g->stats.flat += out->flat && !dropped;
    if (out->flat && !dropped && g->config.drop_flat) {
        out->verdict = CORRAL_GROUP_FLAT;
    }
    g->stats.complete += out->verdict == CORRAL_GROUP_COMPLETE;
    g->stats.shortened += out->verdict == CORRAL_GROUP_SHORT;
    g->stats.too_few += dropped;
    g->stats.flat_dropped += out->verdict == CORRAL_GROUP_FLAT;
}

/* The slot that comes out next; NONE: nothing is decided. */
static uint32_t next_slot(struct corral_groups *g, uint64_t now_ns)
{
    uint32_t i = g->first_decided;
    if (g->config.ordered) {
        for (i = (uint32_t)(g->next_id % g->config.groups_max);
             g->next_id != g->opened_to && g->slot[i].skipped;
             i = (uint32_t)(g->next_id % g->config.groups_max)) {
            g->slot[i] = (struct slot){.state = FREE};
            g->stats.open--;
            g->next_id++;
        }
        if (g->next_id == g->opened_to) {
            return NONE;
        }
        if (g->slot[i].state == OPEN && overdue(g, i, now_ns)) {
            decide(g, i);
        }
        return g->slot[i].state == DECIDED ? i : NONE;
    }
    if (i == NONE && g->oldest != NONE && overdue(g, g->oldest, now_ns)) {
        i = g->oldest;
        decide(g, i);
    }
    return i;
}

bool corral_groups_next(struct corral_groups *g, uint64_t now_ns, struct corral_group *out,
                        struct corral_group_item *items)
{
    uint32_t i = next_slot(g, now_ns);
    if (i == NONE) {
        return false;
    }
    struct slot *s = &g->slot[i];
    size_t at = (size_t)i * g->config.group_size;
    *out = (struct corral_group){.id = s->id};
    for (uint32_t k = 0; k < g->config.group_size; k++) {
        if (g->presence[at + k] == HERE) {
            items[out->count++] = g->item[at + k];
        }
    }
    judge(g, out, items);
    g->stats.open--;
    g->stats.held -= out->count;
    s->state = FREE;
    if (g->config.ordered) {
        g->next_id++;
        return true;
    }
    g->first_decided = s->newer;
    if (g->first_decided == NONE) {
        g->last_decided = NONE;
    }
    s->newer = g->spare;
    g->spare = i;
    corral_group_index_close(&g->index, s->id);
    return true;
}

uint64_t corral_groups_deadline(const struct corral_groups *g)
{
    uint32_t i = g->oldest; /* the head of the line, if it is open, is also the oldest */
    if (i == NONE || g->config.deadline_ns == 0) {
        return UINT64_MAX;
    }
    uint64_t at;
    return __builtin_add_overflow(g->slot[i].opened_ns, g->config.deadline_ns, &at) ? UINT64_MAX : at;
}

bool corral_groups_waiting_for(const struct corral_groups *g, uint64_t *id, uint32_t *have, uint32_t *need)
{
    if (g->oldest == NONE) {
        return false;
    }
    *id = g->slot[g->oldest].id;
    *have = g->slot[g->oldest].here;
    *need = g->config.group_size;
    return true;
}

uint64_t corral_groups_position(const struct corral_groups *g)
{
    return g->next_id;
}

void corral_groups_stats(const struct corral_groups *g, struct corral_groups_stats *out)
{
    *out = g->stats;
}
