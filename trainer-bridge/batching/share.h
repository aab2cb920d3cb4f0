/* What a dead trainer rank leaves behind, dealt out to those that live. The rule of who gets what is worker/record_share.h; this adds what the dead rank has committed: records that a saved step has used are nobody's any
 * more, all others of its own move, and no other record does. Pure functions. */
#ifndef CORRAL_TRAINER_SHARE_H
#define CORRAL_TRAINER_SHARE_H

#include "trainer-bridge/batching/handoff.h"
#include "worker/record_share.h"

struct corral_share_record { /* one that was sent to the rank */
    uint32_t worker, epoch;
    uint64_t sequence, key;
};

/* The rank that gets a record of rank `dead`, which is not live in `after`; `committed` is the state the dead rank saved last. CORRAL_SHARE_NOBODY: it is used up, or nobody lives. */
uint32_t corral_share_heir(const struct corral_record_share *after,
                           const struct corral_handoff_state *committed,
                           const struct corral_share_record *record);

#endif
