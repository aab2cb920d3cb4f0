/* What link.c gives the loops over a bucket's bytes (bytes.c). Internal to link/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LINK_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_LINK_INTERNAL_H

#include "transport/weights/link/link.h"

/* `count` runs of `bytes`, evenly spaced on both sides: one turn of a copy's innermost loop, or a part of it. */
struct corral_link_rows {
    uint64_t source, destination, bytes, count;
    uint64_t source_stride, destination_stride;
};

/* As corral_link_next(), by rows. */
bool corral_link_next_rows(const struct corral_link *link, struct corral_link_cursor *cursor,
                           struct corral_link_rows *rows);

#endif
