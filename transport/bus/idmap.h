/* A bounded map from 32-bit routing ids to pointers: open addressing, no tombstones. Private to transport/. One thread. */
#ifndef CORRAL_TRANSPORT_BUS_IDMAP_H
#define CORRAL_TRANSPORT_BUS_IDMAP_H

#include <stdbool.h>
#include <stdint.h>

struct corral_idmap_entry {
    uint32_t key;
    void *value; /* NULL: empty */
};
struct corral_idmap {
    struct corral_idmap_entry *entries;
    uint32_t mask, count, count_max;
};

bool corral_idmap_init(struct corral_idmap *m, uint32_t count_max); /* false: out of memory */
void corral_idmap_free(struct corral_idmap *m);                     /* not the values */
void *corral_idmap_get(const struct corral_idmap *m, uint32_t key); /* NULL when absent */
bool corral_idmap_put(struct corral_idmap *m, uint32_t key,
                      void *value); /* false: count_max reached. `value` is not NULL */
void corral_idmap_remove(struct corral_idmap *m, uint32_t key);

/* The last few ids that were complained about, so that one peer makes one log line. */
#define CORRAL_IDRING_MAX 256
struct corral_idring {
    uint32_t ids[CORRAL_IDRING_MAX];
    uint32_t used, next;
};
bool corral_idring_seen(struct corral_idring *r,
                        uint32_t id); /* false the first time, and again after 256 others */

#endif
