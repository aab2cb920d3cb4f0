/* The running discounted return of every environment row, kept across fragments: what reward scaling measures. A fixed
 * open-addressing table keyed by (worker, row); a worker's new epoch starts its rows afresh. When the table is nearly full, further rows start
 * from 0 in each fragment: their returns are cut short, nothing else. Changes are logged so that a failed step can take them back.
 */
#ifndef CORRAL_TRAINER_LEARNERS_RETURN_TABLE_H
#define CORRAL_TRAINER_LEARNERS_RETURN_TABLE_H

#include <stdint.h>

#define CORRAL_RETURN_SLOTS 32768u /* a power of two */
#define CORRAL_RETURN_ROWS_MAX (CORRAL_RETURN_SLOTS / 4 * 3)

struct corral_return_entry {
    uint32_t worker, row, epoch, used;
    double value;
};

struct corral_return_change {
    struct corral_return_entry before;
    uint32_t slot;
};

/* Plain arrays owned by the learner. */
struct corral_return_table {
    struct corral_return_entry *slots;    /* [CORRAL_RETURN_SLOTS] */
    struct corral_return_change *changes; /* [changes_max] */
    uint32_t used, changes_count, changes_max;
};

double corral_return_get(const struct corral_return_table *t, uint32_t worker, uint32_t epoch, uint32_t row);
void corral_return_set(struct corral_return_table *t, uint32_t worker, uint32_t epoch, uint32_t row,
                       double value);
/* Forget the log, or undo everything in it. */
void corral_return_commit(struct corral_return_table *t);
void corral_return_rollback(struct corral_return_table *t);

#endif
