/* Completions of one prompt, gathered into groups (GRPO and its family). Pure: time is passed in. One thread; nothing is allocated after create.
 *
 * ORDER. `ordered`: group ids are consecutive numbers that whoever hands out prompts counts up; groups come out by id, so the same completions in any order of arrival within the admission window (groups_max ids from the
 * one that is next) give the same groups in the same order. Otherwise groups come out as they become complete. Within a group, completions are sorted by their index, always.
 *
 * MISSING ONES. A completion that failed for a reason outside the task is asked for again, at most replacements_max times each. A group that is not complete deadline_ns after it was opened is given out with what it has when that is
 * at least group_min, and else dropped, by decision: it comes out with that verdict, so that its completions can be acknowledged. With `ordered`, a group is opened when a completion of it or of any later one arrives.
 *
 * FLAT GROUPS, all of one score, teach nothing when advantages are relative to the group. They are flagged, and with drop_flat they come out as dropped (dynamic sampling): ask for more prompts then. */
#ifndef CORRAL_TRAINER_GROUPS_H
#define CORRAL_TRAINER_GROUPS_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_GROUP_SIZE_MAX 4096u
#define CORRAL_GROUPS_ITEMS_MAX (1u << 20) /* groups_max * group_size */
#define CORRAL_GROUPS_SKIP_MAX (1u << 20)

struct corral_groups;
struct corral_groups_config {
    uint32_t group_size; /* completions of a prompt */
    uint32_t group_min;  /* with fewer at the deadline it is dropped; 0: group_size */
    uint32_t groups_max; /* open at the same time: the admission window */
    uint32_t replacements_max;
    uint64_t deadline_ns; /* 0: none */
    uint64_t first;       /* ordered: the id of the first group */
    const uint64_t *skip; /* ids that have come out already, ascending, from `first` on: after a restart */
    uint32_t skip_count;
    bool ordered, drop_flat;
    double flat_within; /* scores this far apart are one score */
};
struct corral_group_item {
    uint32_t index;
    double score;
    uint64_t tokens;
    void *user;
};
enum corral_group_fate {
    CORRAL_GROUP_KEPT,
    CORRAL_GROUP_LATE,    /* its group has come out: drop it */
    CORRAL_GROUP_SURPLUS, /* this completion of the group is here already: drop it */
    CORRAL_GROUP_BEYOND   /* no room before other groups come out: hold it back and add it again */
};
enum corral_group_verdict {
    CORRAL_GROUP_COMPLETE,
    CORRAL_GROUP_SHORT,   /* fewer than group_size, at least group_min */
    CORRAL_GROUP_TOO_FEW, /* dropped */
    CORRAL_GROUP_FLAT     /* dropped */
};
struct corral_group {
    uint64_t id;
    enum corral_group_verdict verdict;
    bool flat;
    uint32_t count;
    double mean, deviation; /* of the scores; n - 1 */
};
struct corral_groups_stats {
    uint64_t open, held; /* groups, completions in them */
    uint64_t complete, shortened, too_few, flat, flat_dropped;
    uint64_t late, surplus, failed, asked; /* asked: replacements */
};

enum corral_status corral_groups_create(struct corral_groups **out, const struct corral_groups_config *config,
                                        struct corral_error *err);
void corral_groups_destroy(struct corral_groups *g);
/* CORRAL_INVALID: the index is not below group_size, or the score is not finite. */
enum corral_status corral_groups_add(struct corral_groups *g, uint64_t id,
                                     const struct corral_group_item *item, uint64_t now_ns,
                                     enum corral_group_fate *fate, struct corral_error *err);
/* Completion `index` will not come. Kept: it is counted, and asked for again if it may be. */
enum corral_status corral_groups_fail(struct corral_groups *g, uint64_t id, uint32_t index, uint64_t now_ns,
                                      enum corral_group_fate *fate, struct corral_error *err);
/* The next replacement to ask for. False: none. */
bool corral_groups_replacement(struct corral_groups *g, uint64_t *id, uint32_t *index);
/* The next group that is decided, dropped ones included; `items` has room for group_size. False: none yet. */
bool corral_groups_next(struct corral_groups *g, uint64_t now_ns, struct corral_group *out,
                        struct corral_group_item *items);
/* When next() may have something to decide without anything arriving; UINT64_MAX: never. */
uint64_t corral_groups_deadline(const struct corral_groups *g);
/* The group that the trainer waits for: *have of *need completions are here. False: no group is open. */
bool corral_groups_waiting_for(const struct corral_groups *g, uint64_t *id, uint32_t *have, uint32_t *need);
/* ordered: the id that comes out next, for a checkpoint. */
uint64_t corral_groups_position(const struct corral_groups *g);
void corral_groups_stats(const struct corral_groups *g, struct corral_groups_stats *out);

CORRAL_DEFINE_CLEANUP(struct corral_groups, corral_groups_destroy)

#endif
