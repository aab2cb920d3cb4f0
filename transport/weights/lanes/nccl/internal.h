/* One end of the nccl lane. Both ends number the buckets of the link's life from 0: bucket n travels through slot n mod window on both sides, in order. Internal to the lane. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_INTERNAL_H

#include "transport/weights/lanes/nccl/device.h"
#include "transport/weights/lanes/nccl/side.h"
#include "transport/weights/lanes/nccl/worker.h"

#define NCCL_OFFER_BYTES (CORRAL_LANE_BLOB_HEAD + CORRAL_SIDE_OFFER_BYTES + NCCL_ID_BYTES + 8)
#define NCCL_PLACE_BYTES (CORRAL_LANE_BLOB_HEAD + 8)
#define NCCL_STOP_TIMEOUT_NS UINT64_C(2000000000)

enum nccl_message {
    NCCL_ANNOUNCE = 1, /* the next bucket; a: its bytes */
    NCCL_CREDIT        /* the oldest slot is free again */
};

struct nccl_end {
    struct corral_lane base; /* first */
    struct corral_side side;
    struct corral_lane_device device; /* packing and unpacking, on the owner's thread */
    struct nccl_worker *worker;
    struct nccl_id id;
    bool failed;                    /* only closing is left */
    bool joining, ready, on_device; /* on_device: what the first push's shard was, and all must be */
    bool direct_posted;             /* NCCL was given the destination itself */
    uint64_t open_timeout_ns, joining_since_ns;
    uint32_t window;
    struct nccl_memory memory;
    struct corral_shard *shard; /* NULL: between pushes */
    uint64_t push;
    uint64_t posted, done,
        released;   /* buckets given to NCCL; moved; (receiver) handed on, (sender) known to be */
    uint64_t begun; /* posted when this push began */
    uint32_t bucket[CORRAL_LANE_WINDOW_MAX];
    bool direct[CORRAL_LANE_WINDOW_MAX];
    uint32_t queue[CORRAL_LANE_WINDOW_MAX]; /* sender: buckets that wait for the communicator */
    uint32_t queued;
    corral_cuda_event event[CORRAL_LANE_WINDOW_MAX]; /* sender: packed; receiver: [0] unpacked */
};

static inline struct nccl_end *nccl_end_of(struct corral_lane *lane)
{
    return (struct nccl_end *)lane;
}
uint64_t nccl_slot_bytes(const struct corral_link *link);
enum corral_status nccl_available(const struct corral_lane_options *options, struct corral_error *err);
/* An end with its thread running. window 0: the options'. */
enum corral_status nccl_end_create(struct nccl_end **out, const struct corral_link *link,
                                   const struct corral_lane_options *options, int rank, uint32_t window,
                                   struct corral_error *err);
/* Stops the thread. True: it was abandoned. */
bool nccl_end_destroy(struct nccl_end *e);
/* Both kinds of begin: the shard fits the communicator, which is begun by the first. */
enum corral_status nccl_end_begin(struct nccl_end *e, uint64_t push, struct corral_shard *shard,
                                  enum corral_link_side side, struct corral_error *err);
/* CORRAL_AGAIN until the communicator is there; CORRAL_TIMEOUT when that takes longer than it may. */
enum corral_status nccl_end_ready(struct nccl_end *e, struct corral_error *err);
/* How many buckets NCCL has moved. */
enum corral_status nccl_end_look(struct nccl_end *e, struct corral_error *err);
/* The address in the shard of a bucket that is one span there; 0: it is packed, or the shard is not on a device. */
uint64_t nccl_end_direct(const struct nccl_end *e, uint32_t bucket, enum corral_link_side side);

extern const struct corral_lane_ops corral_lane_nccl_ops;
enum corral_status nccl_rx_open(struct corral_lane **out, const struct corral_link *link,
                                const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                struct corral_error *err);
enum corral_status nccl_rx_connect(struct corral_lane *rx, const struct corral_lane_blob *answer,
                                   struct corral_error *err);
enum corral_status nccl_rx_begin(struct corral_lane *rx, uint64_t push, struct corral_shard *destination,
                                 struct corral_lane_blob *place, struct corral_error *err);
enum corral_status nccl_rx_progress(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                    uint32_t room, uint32_t *count, struct corral_error *err);
enum corral_status nccl_rx_taken(struct corral_lane *rx, uint32_t bucket, struct corral_error *err);
enum corral_status nccl_rx_end(struct corral_lane *rx, bool ok, struct corral_error *err);
void nccl_rx_close(struct corral_lane *rx, int32_t *tainted_pid);

#endif
