/* What the files of the reshard plan share. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_RESHARD_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_RESHARD_INTERNAL_H

#include "transport/weights/reshard/plan.h"

/* ---- plan.c ---- */
uint64_t corral_reshard_piece_bytes(const struct corral_layout *l, const struct corral_piece *p);

/* ---- copy.c ---- */
/* The copy of `box`, which lies in both pieces, with as few loops as the strides allow. */
void corral_reshard_make_copy(const struct corral_piece *from, const struct corral_piece *to,
                              const struct corral_box *box, uint32_t dims, uint32_t element_bytes,
                              struct corral_reshard_copy *out);
/* Sorts the copies and joins neighbours. */
void corral_reshard_merge(struct corral_reshard_plan *plan);

/* ---- overlap.c ---- */
/* CORRAL_INVALID when two pieces of one rank share a byte of its buffer. */
enum corral_status corral_reshard_check_destination(const struct corral_layout *l, struct corral_error *err);

#endif
