/* What the two ends of an RDMA lane tell each other: offer, answer and place (docs/spec/weight-lanes.md). Everything read is checked; a blob that is not exactly right is refused. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_BLOB_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_BLOB_H

#include "transport/weights/lanes/rdma/port.h"

#define CORRAL_RDMA_STREAMS_MAX 8 /* queue pairs per rail */
#define CORRAL_RDMA_WINDOW_MAX 16 /* slots: four bits of an immediate */

enum corral_rdma_blob_kind { CORRAL_RDMA_OFFER = 1, CORRAL_RDMA_ANSWER = 2, CORRAL_RDMA_PLACE = 3 };

struct corral_rdma_rail_address {
    bool ethernet;
    uint8_t mtu;
    uint8_t peer; /* answer: the rail of the offer that this one is connected to */
    uint8_t gid_type;
    uint16_t lid;
    uint8_t gid[16];
    uint32_t rkey;
    uint64_t staging;
    uint32_t qpn[CORRAL_RDMA_STREAMS_MAX], psn[CORRAL_RDMA_STREAMS_MAX];
};

/* Offer and answer. */
struct corral_rdma_address {
    uint64_t generation; /* random, the receiver's: an answer to an older offer is refused */
    struct corral_digest link;
    uint64_t slot_bytes;
    uint8_t window, rails, streams;
    struct corral_rdma_rail_address rail[CORRAL_RDMA_RAILS_MAX];
};

void corral_rdma_address_write(const struct corral_rdma_address *a, enum corral_rdma_blob_kind kind,
                               struct corral_lane_blob *out);
/* CORRAL_PROTOCOL: malformed. */
enum corral_status corral_rdma_address_read(const struct corral_lane_blob *blob,
                                            enum corral_rdma_blob_kind kind, struct corral_rdma_address *out,
                                            struct corral_error *err);

struct corral_rdma_place {
    uint64_t generation, push, serial; /* serial: which push of this lane */
};
void corral_rdma_place_write(const struct corral_rdma_place *p, struct corral_lane_blob *out);
enum corral_status corral_rdma_place_read(const struct corral_lane_blob *blob, struct corral_rdma_place *out,
                                          struct corral_error *err);

#endif
