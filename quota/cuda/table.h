/* What this process holds: a map from (space, name) to a record, where a name is a device pointer or a driver's handle. Any thread.
 *
 * Hot path: put, take and get touch one of 64 shards, each an open-addressing table under a lock held for some tens of nanoseconds. They make no system call but when a shard
 * doubles, in the put that finds it three quarters full. A forked child starts empty: nothing of its parent's driver state is its own.
 */
#ifndef CORRAL_QUOTA_CUDA_TABLE_H
#define CORRAL_QUOTA_CUDA_TABLE_H

#include "quota/shared.h"

struct corral_cuda_record {
    uint64_t name;
    uint32_t space;
    int32_t device;
    struct corral_quota_charge charge;
    uint64_t tie;   /* what it goes with: the context that frees it, the resource it is a part of */
    uint64_t aux;   /* of the space */
    uint64_t epoch; /* of the table: set by put */
};

/* Replaces a record of the same name: *old is what was there and *had tells. False: no memory for a bigger table, nothing is kept. */
bool corral_cuda_table_put(const struct corral_cuda_record *record, struct corral_cuda_record *old,
                           bool *had);
bool corral_cuda_table_take(uint32_t space, uint64_t name,
                            struct corral_cuda_record *out); /* and removes it */
bool corral_cuda_table_get(uint32_t space, uint64_t name, struct corral_cuda_record *out);
/* Ends an epoch of the table and returns its number. A handle that the driver has given back may be another's at once: whoever goes through what was tied to it ends the epoch before the
 * driver's call, and leaves what was put later. */
uint64_t corral_cuda_table_end_epoch(void);
/* Removes one record of the space with that tie, of this epoch or an earlier one (UINT64_MAX: of any); called until false, with *cursor 0 at first. Records put meanwhile may be missed. */
bool corral_cuda_table_take_tied(uint32_t space, uint64_t tie, uint64_t epoch, uint32_t *cursor,
                                 struct corral_cuda_record *out);
uint64_t corral_cuda_table_count(void);
/* For a forked child, before anything else. */
void corral_cuda_table_forget_all(void);

#endif
