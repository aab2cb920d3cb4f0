#include "trainer-bridge/worker/lane_charge.h"

enum corral_status corral_lane_charge_hold(void *ctx, uint64_t bytes, const char *what,
                                           struct corral_error *err)
{
    struct corral_lane_charge *c = ctx;
    if (bytes == 0) {
        if (c->charge.bytes > 0) {
            corral_quota_drop(c->quota, &c->charge);
        }
        c->charge = (struct corral_quota_charge){.bytes = 0};
        return CORRAL_OK;
    }
    if (c->charge.bytes > 0) {
        return corral_quota_resize(c->quota, &c->charge, bytes, what, err);
    }
    struct corral_quota_charge charge = {.bytes = 0};
    CORRAL_TRY(corral_quota_take(c->quota, c->holder, bytes, CORRAL_KIND_HOST, what, &charge, err));
    corral_quota_keep(c->quota, &charge);
    c->charge = charge;
    return CORRAL_OK;
}
