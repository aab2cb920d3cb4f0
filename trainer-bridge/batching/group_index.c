#include "trainer-bridge/batching/group_index.h"
#include "base/rng.h"
#include <stdlib.h>

#define CLOSED_PER_GROUP 4u

bool corral_group_index_init(struct corral_group_index *x, uint32_t groups_max)
{
    *x = (struct corral_group_index){.closed_max = CLOSED_PER_GROUP * groups_max};
    uint64_t size = 16;
    while (size < 2 * ((uint64_t)groups_max + x->closed_max)) {
        size *= 2;
    }
    x->mask = (uint32_t)(size - 1);
    x->entry = calloc(size, sizeof *x->entry);
    x->closed = calloc(x->closed_max, sizeof *x->closed);
    for (uint64_t i = 0; x->entry != NULL && i < size; i++) {
        x->entry[i].slot = CORRAL_GROUP_ABSENT;
    }
    return x->entry != NULL && x->closed != NULL;
}

void corral_group_index_free(struct corral_group_index *x)
{
    free(x->entry);
    free(x->closed);
}

static uint32_t home(const struct corral_group_index *x, uint64_t id)
{
    return (uint32_t)corral_splitmix64(&id) & x->mask;
}

/* Where it is, or would be. At most half of the table is in use, so there is an empty entry. */
static uint32_t place(const struct corral_group_index *x, uint64_t id)
{
    uint32_t i = home(x, id);
    while (x->entry[i].slot != CORRAL_GROUP_ABSENT && x->entry[i].id != id) {
        i = (i + 1) & x->mask;
    }
    return i;
}

uint32_t corral_group_index_get(const struct corral_group_index *x, uint64_t id)
{
    return x->entry[place(x, id)].slot;
}

void corral_group_index_put(struct corral_group_index *x, uint64_t id, uint32_t slot)
{
    uint32_t i = place(x, id);
    x->entry[i].id = id;
    x->entry[i].slot = slot;
}

/* What comes after the hole is moved up, unless it would go before its home. */
static void forget(struct corral_group_index *x, uint64_t id)
{
    uint32_t hole = place(x, id);
    for (uint32_t i = (hole + 1) & x->mask; x->entry[i].slot != CORRAL_GROUP_ABSENT; i = (i + 1) & x->mask) {
        uint32_t from_home = (i - home(x, x->entry[i].id)) & x->mask;
        if (from_home >= ((i - hole) & x->mask)) {
            x->entry[hole] = x->entry[i];
            hole = i;
        }
    }
    x->entry[hole].slot = CORRAL_GROUP_ABSENT;
}

void corral_group_index_close(struct corral_group_index *x, uint64_t id)
{
    if (x->closed_count == x->closed_max) {
        forget(x, x->closed[x->closed_at]);
    } else {
        x->closed_count++;
    }
    x->closed[x->closed_at] = id;
    x->closed_at = (x->closed_at + 1) % x->closed_max;
    corral_group_index_put(x, id, CORRAL_GROUP_CLOSED);
}
