/* A lane moves the buckets of one link from a source shard to a destination shard: by shared memory, TCP, RDMA, NCCL or CUDA IPC. One ops table each, one conformance suite for all (conformance_test.c).
 *
 * A lane only moves bytes. Versions, digests, commits, deadlines and who may talk to whom are the push protocol's (push/), over its own authenticated connection, which also carries a lane's opening:
 *
 *      receiver                            sender
 *      rx_open    -> offer blob  ------>   tx_open (offer) -> answer blob
 *      rx_connect (answer)       <------
 *   then for every push, with the same number on both sides, which grows on a lane:
 *      rx_begin   -> place blob  ------>   tx_begin (place)
 *      rx_progress: which buckets          tx_send (bucket) ... tx_progress: how many have left the source
 *      have arrived in final memory
 *      rx_taken (bucket)         (the receiver has done with it; staging may be reused)
 *      rx_end                              tx_end
 *
 * Rules
 *  - A bucket that rx_progress reports has all its bytes in the destination shard (through ops->scatter where it has no host address). It may be wrong (a damaged wire): the push protocol
 *    compares digests and may ask for it again: tx_send of the same bucket in the same push must work, any number of times.
 *  - After a push that did not end well on either side (rx_end or tx_end with ok = false), and after any error, the lane is closed and a new one opened. No byte of an old push
 *    can then reach the memory of a new one: streams are closed, queue pairs destroyed, keys invalidated. A lane that cannot promise it (shm: a stopped process still maps the memory) says so with
 *    rx_close's result: the memory is *not* safe to use again until that process is gone.
 *  - Nothing blocks longer than the timeout given. progress with timeout 0 never blocks. A peer that dies is an error or simply no progress; the caller has the deadline.
 *  - One thread per endpoint. A lane may have threads of its own.
 *  - `fd` becomes readable (poll) when progress has something to do; -1: only by calling it.
 *  - The bytes a lane allocates (staging, queues) are bounded and known: `memory_bytes`, for the ledger.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_LANE_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_LANE_H

#include "transport/weights/link/link.h"

#define CORRAL_LANE_BLOB_MAX 4096 /* bytes of an offer, answer or place */

enum corral_lane_kind {
    CORRAL_LANE_SHM,
    CORRAL_LANE_TCP,
    CORRAL_LANE_RDMA,
    CORRAL_LANE_NCCL,
    CORRAL_LANE_CUDA_IPC,
    CORRAL_LANE_KINDS
};

struct corral_lane_blob {
    uint32_t bytes;
    uint8_t data[CORRAL_LANE_BLOB_MAX];
};

enum corral_lane_zero_copy {
    CORRAL_LANE_ZERO_COPY_TRY,
    CORRAL_LANE_ZERO_COPY_ALWAYS,
    CORRAL_LANE_ZERO_COPY_NEVER
};

struct corral_lane_options {
    const char *local_host; /* address to listen on or bind to, numeric; "127.0.0.1" when NULL */
    const char *device;     /* rdma: "mlx5_0:1,mlx5_1:1", NULL: choose. Others: unused */
    uint32_t streams;       /* tcp: connections, rdma: queue pairs per device; 0: choose */
    uint32_t window;        /* staged lanes: buckets in flight; 0: 3 */
    uint64_t open_timeout_ns;
    const char *
        near; /* PCI address of the GPU whose memory moves ("0000:3b:00.0"): rdma prefers adapters near it; NULL: no preference */
    /* tcp, sender: whether the kernel sends from the source's own pages (MSG_ZEROCOPY). TRY: until it says that it has to copy them after all, as it does on one machine. */
    enum corral_lane_zero_copy zero_copy;
};

struct corral_lane; /* one end: sender's or receiver's */

struct corral_lane_ops {
    const char *name; /* "shm" */
    enum corral_lane_kind kind;
    /* CORRAL_OK when this machine can use the lane for shards of this kind (library, device, memory); CORRAL_UNSUPPORTED with the reason in words an admin can act on. */
    enum corral_status (*available)(const struct corral_lane_options *options, struct corral_error *err);

    enum corral_status (*rx_open)(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                  struct corral_error *err);
    enum corral_status (*rx_connect)(struct corral_lane *rx, const struct corral_lane_blob *answer,
                                     struct corral_error *err);
    enum corral_status (*rx_begin)(struct corral_lane *rx, uint64_t push, struct corral_shard *destination,
                                   struct corral_lane_blob *place, struct corral_error *err);
    /* *count buckets in `bucket` (room at most). Waits up to timeout_ns for the first. CORRAL_OK with 0: nothing yet. */
    enum corral_status (*rx_progress)(struct corral_lane *rx, uint64_t timeout_ns, uint32_t *bucket,
                                      uint32_t room, uint32_t *count, struct corral_error *err);
    enum corral_status (*rx_taken)(struct corral_lane *rx, uint32_t bucket, struct corral_error *err);
    enum corral_status (*rx_end)(struct corral_lane *rx, bool ok, struct corral_error *err);
    /* *tainted: a process `pid` may still write into the last destination (0: nobody can). NULL rx is fine. */
    void (*rx_close)(struct corral_lane *rx, int32_t *tainted_pid);

    enum corral_status (*tx_open)(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options,
                                  const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                  struct corral_error *err);
    enum corral_status (*tx_begin)(struct corral_lane *tx, uint64_t push, struct corral_shard *source,
                                   const struct corral_lane_blob *place, struct corral_error *err);
    /* Begin to move a bucket. CORRAL_AGAIN: as many are in flight as fit; call tx_progress first. */
    enum corral_status (*tx_send)(struct corral_lane *tx, uint32_t bucket, struct corral_error *err);
    /* Move on. *left: how many of the buckets sent in this push have left, in order: their source is no longer read. */
    enum corral_status (*tx_progress)(struct corral_lane *tx, uint64_t timeout_ns, uint64_t *left,
                                      struct corral_error *err);
    enum corral_status (*tx_end)(struct corral_lane *tx, bool ok, struct corral_error *err);
    void (*tx_close)(struct corral_lane *tx);
    /* May be NULL: the lane only moves buckets as they are. As tx_send, of a bucket that is encoded: `bytes` of them, above 0 and below the bucket's size, which must stay until it has left. Only where the
     * destination has no host address and decodes (ops->decode); both kinds of buckets may come in one push. */
    enum corral_status (*tx_send_encoded)(struct corral_lane *tx, uint32_t bucket, const void *encoded,
                                          uint64_t bytes, struct corral_error *err);
};

/* First member of every lane's own struct. */
struct corral_lane {
    const struct corral_lane_ops *ops;
    const struct corral_link *link;
    int fd;
    uint64_t memory_bytes;
};

extern const struct corral_lane_ops corral_lane_shm_ops, corral_lane_tcp_ops, corral_lane_rdma_ops,
    corral_lane_nccl_ops, corral_lane_cuda_ipc_ops;
/* By kind, and by name ("auto" and unknown names: NULL). lanes.c */
const struct corral_lane_ops *corral_lane_ops_of(enum corral_lane_kind kind);
const struct corral_lane_ops *corral_lane_named(const char *name);

#endif
