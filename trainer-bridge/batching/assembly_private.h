/* The insides of assembly.h, shared by assembly.c (records in, batches done), assembly_batch.c (batches out) and assembly_state.c (saving). */
#ifndef CORRAL_TRAINER_ASSEMBLY_PRIVATE_H
#define CORRAL_TRAINER_ASSEMBLY_PRIVATE_H

#include "trainer-bridge/batching/assembly.h"
#include "trainer-bridge/batching/groups.h"
#include "trainer-bridge/batching/length_bias.h"
#include "trainer-bridge/batching/limiter.h"
#include "trainer-bridge/batching/replay.h"
#include "trainer-bridge/batching/rounds.h"

struct corral_assembly_entry { /* a record that is held */
    struct corral_trainer_record facts;
    struct corral_handoff_record *handoff;
    const void *item;
    struct corral_assembly_entry *next_free;
};

struct corral_assembly_list {
    struct corral_assembly_entry **entry;
    uint32_t first, count, room; /* entry[first … first + count - 1] */
};

struct corral_assembly_batch {
    struct corral_trainer_batch public; /* comes first: its address is the caller's */
    struct corral_assembly_batch *next; /* handed out after it */
    bool done;
    uint64_t position; /* of the groups, once this batch is done */
    uint64_t *skip;    /* groups beyond it that are decided */
    uint32_t skip_count;
    struct corral_trainer_record *record;
    struct corral_trainer_group *group;
    struct corral_assembly_entry **entry; /* per record; NULL with replay */
    uint64_t *key;                        /* per record with replay */
    struct corral_assembly_entry **settled;
    uint32_t settled_count;
};

struct corral_assembly {
    struct corral_trainer_options o;
    corral_assembly_finish_fn finish;
    void *ctx;
    uint64_t version, number, done_number, done_position;
    uint64_t *done_skip; /* as in the batch that was done last */
    uint32_t done_skip_count;
    uint64_t *restored_skip; /* as the state that was restored named them */
    uint32_t restored_skip_count;
    struct corral_handoff *handoff;
    struct corral_assembly_list queue;     /* STREAM: in the order of arrival; GROUPS: beyond the window */
    struct corral_assembly_list settled;   /* dropped or absorbed since the last batch */
    struct corral_rounds *rounds;          /* FRAGMENTS */
    struct corral_groups *groups;          /* GROUPS */
    struct corral_assembly_list ready;     /* GROUPS: of the coming batch */
    struct corral_trainer_group *coming;   /* GROUPS: the groups of `ready`; room for options.batch */
    struct corral_group_item *group_items; /* room for one group */
    uint32_t coming_count;
    struct corral_replay *replay;
    struct corral_limiter limiter;
    struct corral_assembly_batch *oldest, *newest; /* out */
    struct corral_assembly_entry *spare;
    struct slab *slabs;
    struct corral_trainer_stats stats;
    struct corral_length_bias bias;
};

/* Room for so many more; false: no memory. */
bool corral_assembly_reserve(struct corral_assembly_list *l, uint32_t more);
/* A list grows at its end; false: no memory. */
bool corral_assembly_push(struct corral_assembly_list *l, struct corral_assembly_entry *e);
/* There is always room to settle everything that is held: settling cannot fail. */
void corral_assembly_drop(struct corral_assembly *a, struct corral_assembly_entry *e, uint64_t *counter);
bool corral_assembly_too_old(const struct corral_assembly *a, const struct corral_assembly_entry *e);
/* Puts a completion into its group, or settles it. */
enum corral_status corral_assembly_into_group(struct corral_assembly *a, struct corral_assembly_entry *e,
                                              uint64_t now_ns, struct corral_error *err);
/* Who waits for whom, as a sentence. */
void corral_assembly_waiting(const struct corral_assembly *a, char *out, size_t bytes);
enum corral_status corral_assembly_make_groups(struct corral_assembly *a, uint64_t first,
                                               const uint64_t *skip, uint32_t skip_count,
                                               struct corral_error *err);
void corral_assembly_batch_free(struct corral_assembly_batch *b);
/* The batch behind what the caller holds; NULL: it is none that is out. */
struct corral_assembly_batch *corral_assembly_out(const struct corral_assembly *a,
                                                  const struct corral_trainer_batch *batch);

#endif
