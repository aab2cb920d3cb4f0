/* Which rule a tensor falls under, shared by the layout and the source. Internal to cast/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_CAST_PLAN_H
#define CORRAL_TRANSPORT_WEIGHTS_CAST_PLAN_H

#include "transport/weights/cast/source.h"
#include <stdlib.h>

/* NULL: the tensor stays as it is. */
const struct corral_cast_rule *corral_cast_rule_of(const struct corral_layout_tensor *t,
                                                   const struct corral_cast_rule *rules, uint32_t count);
/* Length of a block along a dimension; 1 where every index has its own scale (or there are none). */
uint32_t corral_cast_block_of(const struct corral_cast_rule *rule, uint32_t dims, uint32_t dim);

#endif
