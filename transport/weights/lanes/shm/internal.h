/* The shm lane: both ends on one machine (docs/spec/weight-lanes.md). Internal to shm/.
 *
 * The receiver makes a small sealed mapping (struct shm_control) and hands it, two events and per push the memory to write into over a Unix socket. In a *direct* push that memory is the
 * destination itself and the sender copies every byte once, into place. In a *staged* push it is a ring of slots that the receiver scatters from.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_SHM_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_SHM_INTERNAL_H

#include "transport/weights/lanes/support.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <sys/un.h>

#define SHM_MAGIC 0x4d485343u /* "CSHM" */
#define SHM_VERSION 1u
#define SHM_RING 1024u /* arrivals not yet taken; a power of two */
#define SHM_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
/* Bytes copied between two looks at `closed`. */
#define SHM_PIECE (256u << 10)
/* Buckets in flight of a push that needs no staging: they take no memory, and the more wait, the less it matters when the thread that queues them is waited for. */
#define SHM_DIRECT_WINDOW 16u
#define SHM_FDS_MAX 3
#define SHM_NO_SLOT UINT32_MAX

enum shm_mode { SHM_DIRECT = 1, SHM_STAGED = 2 };

struct shm_arrival {
    uint64_t push;
    uint32_t bucket, slot; /* slot: SHM_NO_SLOT in a direct push */
    uint64_t bytes;        /* below the bucket's size: encoded */
};

/* In the mapping. Written by: (r)eceiver, (s)ender. Either side takes what the other wrote as data that may be wrong. */
struct shm_control {
    uint32_t magic, version;
    _Atomic uint32_t closed; /* r: no copy may begin any more, running ones stop */
    /* s: copies begun and ended. Begun before `closed` is looked at (both seq_cst): once the receiver has set `closed` and sees the two equal, nothing writes and nothing ever will. */
    _Atomic uint32_t begun, ended;
    /* r: the last direct push that ended well. No copy of it begins any more, in the same way: a bucket that was sent twice must not be written again under those who read the weights by now. */
    _Atomic uint64_t over;
    _Alignas(64) _Atomic uint64_t posted; /* s: release; pairs with the receiver's acquire */
    _Alignas(64) _Atomic uint64_t taken;  /* r: release; pairs with the sender's acquire */
    /* s: acquires by storing 1 before it fills the slot. r: stores 0 (release) after it has emptied it. */
    _Alignas(64) _Atomic uint32_t slot_used[CORRAL_LANE_WINDOW_MAX];
    struct shm_arrival ring[SHM_RING];
};

/* ---- channel.c: the socket and what goes over it ---- */

#define SHM_NAME_BYTES 16
#define SHM_OFFER_BYTES (CORRAL_LANE_BLOB_HEAD + SHM_NAME_BYTES + CORRAL_LANE_TOKEN_BYTES)
#define SHM_PLACE_BYTES (CORRAL_LANE_BLOB_HEAD + 8)
#define SHM_HELLO_BYTES (8 + 16 + CORRAL_LANE_TOKEN_BYTES)

enum shm_message_type { SHM_CONTROL = 1, SHM_BEGIN = 2 };

struct shm_message {
    uint32_t magic, type; /* enum shm_message_type */
    uint64_t push;
    uint32_t mode, slots;
    uint64_t offset, slot_bytes;
};

enum corral_status shm_listen(const uint8_t name[SHM_NAME_BYTES], int *out, struct corral_error *err);
/* The other end. A socket alone does not tell that a process has died when a child that it forked has the socket too. */
struct shm_peer {
    int socket, pidfd; /* -1: none */
    pid_t pid;         /* 0: not visible from this PID namespace */
};
/* Connects and says hello; CORRAL_UNSUPPORTED when nobody of that name is on this machine. */
enum corral_status shm_call(const uint8_t name[SHM_NAME_BYTES], const uint8_t *hello, struct shm_peer *out,
                            struct corral_error *err);
/* Waits for the caller whose hello is `hello`; others are turned away. */
enum corral_status shm_accept(int listener, const uint8_t *hello, uint64_t timeout_ns, struct shm_peer *out,
                              struct corral_error *err);
enum corral_status shm_watch_peer(int *epoll, const struct shm_peer *peer, struct corral_error *err);
bool shm_gone(const struct shm_peer *peer); /* closed by its owner, or dead */
void shm_hang_up(struct shm_peer *peer);
void shm_hello(const struct corral_link *link, const uint8_t token[CORRAL_LANE_TOKEN_BYTES],
               uint8_t hello[SHM_HELLO_BYTES]);
enum corral_status shm_send(int socket, const struct shm_message *message, const int *fd, uint32_t count,
                            struct corral_error *err);
/* The descriptors are the caller's; exactly `count` of them or an error. */
enum corral_status shm_receive(int socket, uint64_t deadline_ns, struct shm_message *message, int *fd,
                               uint32_t count, struct corral_error *err);
/* A sealed memfd of `bytes`, all of them allocated. */
enum corral_status shm_memory(const char *name, uint64_t bytes, int *out, struct corral_error *err);
/* Map it all for writing. CORRAL_PROTOCOL when it could shrink under us or is smaller than `bytes_min`. */
enum corral_status shm_map(int fd, uint64_t bytes_min, void **out, uint64_t *bytes, struct corral_error *err);
bool shm_sealed(int fd);

/* ---- tx.c, copy.c: the sender ---- */

#define SHM_MAPPINGS 2 /* destinations that stay mapped: a target has two that alternate */

struct shm_mapping {
    dev_t device;
    ino_t inode;
    uint8_t *base;
    uint64_t bytes, used;
};

enum shm_job_state { SHM_JOB_QUEUED, SHM_JOB_DONE, SHM_JOB_FAILED };

struct shm_job {
    uint32_t bucket, slot;
    enum shm_job_state state;
    const uint8_t *packed; /* NULL: from the source's host memory */
    uint64_t encoded;      /* bytes at `packed` that are to go into the slot as they are; 0: none */
};

struct shm_tx {
    struct corral_lane base;
    struct shm_peer peer;
    int event, peer_event;
    struct shm_control *control;
    struct shm_mapping mapping[SHM_MAPPINGS];
    struct shm_mapping *here;                /* of this push */
    uint32_t window, slots_at_once, threads; /* window: of this push; slots_at_once: as the options have it */
    uint64_t open_timeout_ns, run_bytes, uses;
    uint8_t *bounce; /* [window * bucket_bytes], when the source is not host memory and the push direct */
    /* of the push */
    struct corral_shard *source;
    uint64_t push, offset, slot_bytes, reported;
    uint32_t slots;
    enum shm_mode mode;
    bool active, ended_badly;
    /* Guards all below. */
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    struct corral_lane_thread thread[CORRAL_LANE_STREAMS_MAX];
    struct shm_job job[CORRAL_LANE_WINDOW_MAX]; /* number n in job[n % window] */
    uint64_t sent, claimed, left;
    uint32_t running;
    bool stop, failed;
    _Atomic bool cancel;
};

enum corral_status shm_start_threads(struct shm_tx *tx, struct corral_error *err);
void shm_stop_threads(struct shm_tx *tx);
/* Forget what nobody has begun and wait for what runs: at most a piece of SHM_PIECE bytes each. False when that was anything, or something had failed. */
bool shm_quiet(struct shm_tx *tx);
/* Tell the receiver. With the lock held. */
void shm_post(struct shm_tx *tx, const struct shm_job *job);
/* Count finished jobs at the front as left. With the lock held. */
void shm_advance(struct shm_tx *tx);

/* The ops of tx.c, for the table in rx.c. */
enum corral_status corral_shm_tx_open(struct corral_lane **out, const struct corral_link *link,
                                      const struct corral_lane_options *options,
                                      const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                      struct corral_error *err);
enum corral_status corral_shm_tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                       const struct corral_lane_blob *place, struct corral_error *err);
enum corral_status corral_shm_tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err);
enum corral_status corral_shm_tx_send_encoded(struct corral_lane *lane, uint32_t bucket, const void *encoded,
                                              uint64_t bytes, struct corral_error *err);
enum corral_status corral_shm_tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                          struct corral_error *err);
enum corral_status corral_shm_tx_end(struct corral_lane *lane, bool ok, struct corral_error *err);
void corral_shm_tx_close(struct corral_lane *lane);

#endif
