/* A layout as bytes, for cards and for ranks that tell each other their parts (docs/spec/weight-card.md). Reading trusts nothing. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_API_LAYOUT_BYTES_H
#define CORRAL_TRANSPORT_WEIGHTS_API_LAYOUT_BYTES_H

#include "transport/weights/reshard/layout.h"

uint64_t corral_layout_saved_bytes(const struct corral_layout *l);
/* Writes exactly that many. */
void corral_layout_save(const struct corral_layout *l, uint8_t *out);
/* CORRAL_PROTOCOL: not a layout, or not whole. CORRAL_INVALID: a tensor or piece that cannot be. */
enum corral_status corral_layout_load(struct corral_layout **out, const uint8_t *data, uint64_t bytes,
                                      struct corral_error *err);
/* Adds the tensors of `from` that `l` lacks, by name, and all its pieces. CORRAL_INVALID: other ranks, or a tensor that is different. */
enum corral_status corral_layout_merge(struct corral_layout *l, const struct corral_layout *from,
                                       struct corral_error *err);

#endif
