/* Which slot a group id is in, and which ids have come out lately: a hash table of fixed size. Private to groups.c. */
#ifndef CORRAL_TRAINER_GROUP_INDEX_H
#define CORRAL_TRAINER_GROUP_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#define CORRAL_GROUP_ABSENT UINT32_MAX
#define CORRAL_GROUP_CLOSED (UINT32_MAX - 1)

struct corral_group_index {
    struct {
        uint64_t id;
        uint32_t slot;
    } * entry;        /* slot ABSENT: empty */
    uint32_t mask;    /* a power of two, less 1 */
    uint64_t *closed; /* ring of the ids that came out last */
    uint32_t closed_max, closed_count, closed_at;
};

bool corral_group_index_init(struct corral_group_index *x, uint32_t groups_max); /* false: no memory */
void corral_group_index_free(struct corral_group_index *x);
uint32_t corral_group_index_get(const struct corral_group_index *x, uint64_t id);
void corral_group_index_put(struct corral_group_index *x, uint64_t id, uint32_t slot);
/* It has come out: remembered for a while. */
void corral_group_index_close(struct corral_group_index *x, uint64_t id);

#endif
