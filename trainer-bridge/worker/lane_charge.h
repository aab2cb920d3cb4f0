/* The memory of a trainer's weight lanes and deltas, charged to the trainer's own quota on its host device. Give corral_lane_charge_hold and this struct to a publisher or sender as its budget
 * (transport/weights/push/push.h): what the ledger refuses is not kept. Called by one thread at a time; nothing is charged after the publisher is destroyed. */
#ifndef CORRAL_TRAINER_LANE_CHARGE_H
#define CORRAL_TRAINER_LANE_CHARGE_H

#include "quota/shared.h"

struct corral_lane_charge {
    struct corral_quota *quota;
    uint32_t holder;
    struct corral_quota_charge charge; /* of all of it; bytes 0: nothing is charged */
};

/* ctx: a struct corral_lane_charge, zero but for quota and holder at first. CORRAL_DENIED: it would cross the role's quota. */
enum corral_status corral_lane_charge_hold(void *ctx, uint64_t bytes, const char *what,
                                           struct corral_error *err);

#endif
