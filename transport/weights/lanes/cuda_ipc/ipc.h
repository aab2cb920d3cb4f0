/* What both ends of the cuda_ipc lane share: the place blob, the messages, and memory whose importer may still be writing. Internal to the lane. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_CUDA_IPC_IPC_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_CUDA_IPC_IPC_H

#include "transport/weights/lanes/nccl/device.h"
#include "transport/weights/lanes/nccl/side.h"

#define IPC_OFFER_BYTES (CORRAL_LANE_BLOB_HEAD + CORRAL_SIDE_OFFER_BYTES)
#define IPC_PLACE_BYTES (CORRAL_LANE_BLOB_HEAD + 8 + 4 + 4 + 16 + 64 + 8 + 8 + 8)

enum ipc_message { IPC_DATA = 1, IPC_CREDIT, IPC_END }; /* a: the staging slot */

struct ipc_place {
    uint64_t push;
    bool direct;     /* the destination itself, else staging */
    uint32_t window; /* slots of staging */
    struct corral_cuda_uuid device;
    struct corral_cuda_ipc_handle handle;
    uint64_t offset; /* of the memory in what the handle names */
    uint64_t address,
        bytes; /* as the receiver sees it: used when both ends are one process, which cannot open its own handle */
};
void ipc_place_write(struct corral_lane_blob *blob, const struct corral_link *link,
                     const struct ipc_place *place);
enum corral_status ipc_place_read(const struct corral_lane_blob *blob, const struct corral_link *link,
                                  struct ipc_place *place, struct corral_error *err);

/* Exported memory whose importer has not said that it let go: freed when that process has ended, looked at whenever a lane is opened or closed. Takes the memory. */
void ipc_park(int32_t pid, int ordinal, uint64_t address);
void ipc_sweep(void);

enum corral_status ipc_available(const struct corral_lane_options *options, struct corral_error *err);
uint64_t ipc_slot_bytes(const struct corral_link *link);

enum corral_status ipc_rx_open(struct corral_lane **out, const struct corral_link *link,
                               const struct corral_lane_options *options, struct corral_lane_blob *offer,
                               struct corral_error *err);
enum corral_status ipc_rx_connect(struct corral_lane *rx, const struct corral_lane_blob *answer,
                                  struct corral_error *err);
enum corral_status ipc_rx_begin(struct corral_lane *rx, uint64_t push, struct corral_shard *destination,
                                struct corral_lane_blob *place, struct corral_error *err);
enum corral_status ipc_rx_progress(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                   uint32_t room, uint32_t *count, struct corral_error *err);
enum corral_status ipc_rx_taken(struct corral_lane *rx, uint32_t bucket, struct corral_error *err);
enum corral_status ipc_rx_end(struct corral_lane *rx, bool ok, struct corral_error *err);
void ipc_rx_close(struct corral_lane *rx, int32_t *tainted_pid);

#endif
