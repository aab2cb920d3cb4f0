#include "transport/bus/idmap.h"
#include "base/error.h"
#include <stdlib.h>

bool corral_idmap_init(struct corral_idmap *m, uint32_t count_max)
{
    uint32_t slots = 16;
    while (slots < 2 * count_max) {
        slots *= 2;
    }
    m->entries = calloc(slots, sizeof *m->entries);
    m->mask = slots - 1;
    m->count = 0;
    m->count_max = count_max;
    return m->entries != NULL;
}

void corral_idmap_free(struct corral_idmap *m)
{
    free(m->entries);
    m->entries = NULL;
}

static uint32_t home(const struct corral_idmap *m, uint32_t key)
{
    return (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & m->mask;
}

static uint32_t find(const struct corral_idmap *m, uint32_t key)
{
    uint32_t i = home(m, key);
    while (m->entries[i].value != NULL && m->entries[i].key != key) {
        i = (i + 1) & m->mask;
    }
    return i;
}

void *corral_idmap_get(const struct corral_idmap *m, uint32_t key)
{
    return m->entries[find(m, key)].value;
}

bool corral_idmap_put(struct corral_idmap *m, uint32_t key, void *value)
{
    struct corral_idmap_entry *e = &m->entries[find(m, key)];
    if (e->value == NULL) {
        if (m->count >= m->count_max) {
            return false;
        }
        m->count++;
    }
    *e = (struct corral_idmap_entry){.key = key, .value = value};
    return true;
}

void corral_idmap_remove(struct corral_idmap *m, uint32_t key)
{
    uint32_t hole = find(m, key);
    if (m->entries[hole].value == NULL) {
        return;
    }
    m->count--;
    /* Move later entries of the same run back, so that a search never stops early at the hole. */
    for (uint32_t i = (hole + 1) & m->mask; m->entries[i].value != NULL; i = (i + 1) & m->mask) {
        uint32_t distance_home = (i - home(m, m->entries[i].key)) & m->mask;
        uint32_t distance_hole = (i - hole) & m->mask;
        if (distance_home >= distance_hole) {
            m->entries[hole] = m->entries[i];
            hole = i;
        }
    }
    m->entries[hole].value = NULL;
}

bool corral_idring_seen(struct corral_idring *r, uint32_t id)
{
    for (uint32_t i = 0; i < r->used; i++) {
        if (r->ids[i] == id) {
            return true;
        }
    }
    r->ids[r->next] = id;
    r->next = (r->next + 1) % CORRAL_IDRING_MAX;
    r->used = CORRAL_MIN(r->used + 1, CORRAL_IDRING_MAX);
    return false;
}
