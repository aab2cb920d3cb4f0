#include "trainer-bridge/batching/share.h"

uint32_t corral_share_heir(const struct corral_record_share *after,
                           const struct corral_handoff_state *committed,
                           const struct corral_share_record *record)
{
    if (corral_handoff_covers(committed, record->worker, record->epoch, record->sequence)) {
        return CORRAL_SHARE_NOBODY;
    }
    return corral_record_rank(after, record->key);
}
