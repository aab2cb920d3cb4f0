/* Weight versions for trainers and inference engines that are not Corral's own: a trainer cut into ranks one way publishes, engines cut another way subscribe.
 * Link with libcorral, or load it with dlopen or ctypes: plain types, opaque objects, structs that begin with their size.
 *
 *     every trainer rank                                           every engine rank (process)
 *     corral_weights_layout_*: what lies where, on all ranks       corral_weights_layout_*: the same for the engine's ranks
 *     corral_weights_publisher_open(layout, memory)
 *     corral_weights_publisher_card  ---- a few bytes, any way -->  corral_weights_subscriber_open(trainer's card, layout)
 *     corral_weights_publisher_add   <--- the same way ----------   corral_weights_subscriber_card
 *     after a step: corral_weights_publish(version)                 corral_weights_wait(version)
 *                                                                   at a step boundary: corral_weights_flip
 *                                                                   corral_weights_acquire, read, corral_weights_release
 *
 * CARDS tell each side how the other one lies in memory and where it listens. They are bytes (docs/spec/weight-card.md) of at most CORRAL_WEIGHTS_CARD_MAX, signed with the run's secret;
 * carry them by whatever the two programs have: a file, a store, an HTTP request. From both layouts each side computes the same plan; a push begins only when its hashes agree.
 *
 * VERSIONS only grow. A version becomes current at an engine rank whole or not at all. The ranks of a replica get it together when all have staged it, or none does; one that dies while they are told may lag behind, so ranks that must step together agree on the number (corral_weights_flip). What an engine reads between acquire and
 * release is one version, and stays so.
 *
 * LAYOUT. A model is tensors; a rank has one range of bytes, in which pieces of tensors lie at offsets. The range may be many pieces of real memory: regions map it to addresses.
 *
 * OWNERSHIP. Everything given in options is copied, except memory (regions), which must stay until close. UNITS: bytes, milliseconds (_ms), nanoseconds (_ns).
 * THREADS. A layout: one thread. A publisher: one thread at a time. A subscriber: acquire, release, version and wait from any thread; flip, status and card from one thread at a time. The library has
 * threads of its own; callbacks come from them. No function exits, prints or installs a signal handler; with CORRAL_WEIGHTS_LOG=warn (or info) in the
 * environment the library says on stderr whom it drops and why.
 * ERRORS. A failed call changes nothing. CORRAL_INVALID and CORRAL_PROTOCOL name what is wrong with arguments and cards; CORRAL_TIMEOUT, CORRAL_PEER: the next publish tries again.
 */
#ifndef CORRAL_WEIGHTS_H
#define CORRAL_WEIGHTS_H

#include <corral/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CORRAL_WEIGHTS_CARD_MAX (64u << 20)
#define CORRAL_WEIGHTS_DIMS_MAX 8
/* As an offset: behind what the rank has so far, on the next multiple of 64. */
#define CORRAL_WEIGHTS_NEXT UINT64_MAX

enum corral_weights_dtype {
    CORRAL_WEIGHTS_U8 = 0,
    CORRAL_WEIGHTS_I32 = 1,
    CORRAL_WEIGHTS_I64 = 2,
    CORRAL_WEIGHTS_F16 = 3,
    CORRAL_WEIGHTS_BF16 = 4,
    CORRAL_WEIGHTS_F32 = 5,
    CORRAL_WEIGHTS_F64 = 6,
    CORRAL_WEIGHTS_U64 = 7,
    CORRAL_WEIGHTS_F8_E4M3 = 8,
    CORRAL_WEIGHTS_F8_E5M2 = 9
};

/* ---- layout: how a model lies on the ranks of one side ---- */

struct corral_weights_layout;
CORRAL_API enum corral_status corral_weights_layout_create(struct corral_weights_layout **out, uint32_t ranks,
                                                           struct corral_error *err);
CORRAL_API void corral_weights_layout_destroy(struct corral_weights_layout *l);
/* A tensor of the model, whole, by the name that both sides use. *tensor: its index, for the calls below. */
CORRAL_API enum corral_status corral_weights_layout_tensor(struct corral_weights_layout *l, const char *name,
                                                           enum corral_weights_dtype dtype, uint32_t dims,
                                                           const uint64_t *shape, uint32_t *tensor,
                                                           struct corral_error *err);
/* Another name of the same memory (tied weights). */
CORRAL_API enum corral_status corral_weights_layout_alias(struct corral_weights_layout *l, const char *name,
                                                          uint32_t tensor, struct corral_error *err);
/* Pieces. `offset` is in the rank's range of bytes; *placed (may be NULL) is where it came to lie.
 * The whole tensor. */
CORRAL_API enum corral_status corral_weights_layout_whole(struct corral_weights_layout *l, uint32_t tensor,
                                                          uint32_t rank, uint64_t offset, uint64_t *placed,
                                                          struct corral_error *err);
/* Indices [first, first + count) of one dimension: tensor parallelism. Parts of a fused weight (q, k, v in one buffer) are slices of their own tensors at offsets that follow each other. */
CORRAL_API enum corral_status corral_weights_layout_slice(struct corral_weights_layout *l, uint32_t tensor,
                                                          uint32_t rank, uint32_t dim, uint64_t first,
                                                          uint64_t count, uint64_t offset, uint64_t *placed,
                                                          struct corral_error *err);
/* Elements [first, first + count) of the row-major flattened tensor: FSDP. */
CORRAL_API enum corral_status corral_weights_layout_flat(struct corral_weights_layout *l, uint32_t tensor,
                                                         uint32_t rank, uint64_t first, uint64_t count,
                                                         uint64_t offset, uint64_t *placed,
                                                         struct corral_error *err);
/* A box: first index and count per dimension; `stride` in bytes per dimension, NULL for dense. With a stride, `offset` must be given. */
CORRAL_API enum corral_status corral_weights_layout_box(struct corral_weights_layout *l, uint32_t tensor,
                                                        uint32_t rank, const uint64_t *first,
                                                        const uint64_t *count, uint64_t offset,
                                                        const uint64_t *stride, uint64_t *placed,
                                                        struct corral_error *err);
/* Bytes of a rank's range so far; 0 for a rank that is not there. */
CORRAL_API uint64_t corral_weights_layout_bytes(const struct corral_weights_layout *l, uint32_t rank);
/* The layout as bytes and back: for ranks that only know their own part and send it around. *bytes: room in `out`, then what was written, or what it takes when
 * `out` is NULL or too small (CORRAL_INVALID). */
CORRAL_API enum corral_status corral_weights_layout_save(const struct corral_weights_layout *l, void *out,
                                                         uint64_t *bytes, struct corral_error *err);
/* Adds the pieces of a saved layout of the same number of ranks; tensors are matched by name, and added when new. On failure the layout may have got a part of them: destroy it. */
CORRAL_API enum corral_status corral_weights_layout_merge(struct corral_weights_layout *l, const void *saved,
                                                          uint64_t bytes, struct corral_error *err);

/* ---- memory ---- */

/* Bytes [offset, offset + bytes) of the rank's range are at `address`. Regions must not overlap and must cover every piece of the rank; what lies between pieces need not be covered. */
struct corral_weights_region {
    uint32_t size;  /* sizeof, set by the caller */
    int32_t device; /* -1: host memory; otherwise the CUDA device of the address */
    uint64_t offset, bytes;
    void *address;
};

/* Who belongs together. A member that is zero is taken from the environment: CORRAL_WEIGHTS_RUN and CORRAL_WEIGHTS_GENERATION (decimal), CORRAL_WEIGHTS_SECRET (64 hex digits). */
struct corral_weights_identity {
    uint32_t size;
    uint32_t reserved_;
    uint64_t run;
    uint64_t generation;   /* of the trainer group; larger after each restart of it. Subscribers ignore it. */
    const uint8_t *secret; /* 32 bytes, the same in all processes of the run */
    /* Of the trainer group: one number for all its ranks, drawn by whoever starts them (CORRAL_WEIGHTS_GROUP, decimal), and another for any other group. Engines refuse a rank of a second group with the same run and generation
     * as long as the first is connected; without a number they notice only two processes that say they are the same rank. Subscribers ignore it. */
    uint64_t group;
};

/* Memory that the library takes beside the weights: staging of lanes and of device memory, what deltas start from. Called before it is kept (lanes: before a byte has moved on them) with all that this publisher or subscriber
 * holds of it from then on, 0 at the end; `what` names the use. Anything but CORRAL_OK refuses, with the reason in `err`: that lane is not used, that version goes whole, or the call fails with it. Giving back cannot be refused.
 * From threads of the library, one at a time; it must not call into this publisher or subscriber. */
typedef enum corral_status (*corral_weights_hold_fn)(void *ctx, uint64_t bytes, const char *what,
                                                     struct corral_error *err);

/* ---- trainer ---- */

struct corral_weights_publisher;

/* Precision on the way: tensors are converted while they are gathered, and subscribers' layouts have them in the dtype they become. With blocks or tiles (fp8) there is a second tensor NAME_scale_inv, f32, of
 * what each 128 elements of a row, or each 128 x 128 of a matrix, are to be multiplied with. Every trainer rank must have whole blocks. The first entry that a name matches counts. */
enum corral_weights_scaling {
    CORRAL_WEIGHTS_UNSCALED = 0,
    CORRAL_WEIGHTS_BLOCKS = 3, /* [..., columns / 128] */
    CORRAL_WEIGHTS_TILES = 4   /* [..., rows / 128, columns / 128] */
};
struct corral_weights_cast {
    uint32_t size;
    uint32_t to;      /* enum corral_weights_dtype: F8_E4M3, F8_E5M2, F16, BF16, F32 */
    uint32_t scaling; /* enum corral_weights_scaling */
    uint32_t reserved_;
    const char *
        pattern; /* of names, as a shell's; NULL: linear weights: matrices but for embeddings and output layers */
};

struct corral_weights_publisher_options {
    uint32_t size;
    uint32_t rank;                                  /* rank 0 leads: it decides and gets the whole result */
    const struct corral_weights_identity *identity; /* NULL: all from the environment */
    const struct corral_weights_layout *layout;     /* of all trainer ranks, the same in each */
    const struct corral_weights_region *regions;    /* of this rank */
    uint32_t region_count;
    uint32_t
        deadline_ms; /* per version and engine; 0: 30,000. Who is later is dropped, and tried again at the next version */
    uint64_t
        bucket_bytes; /* what is moved, checked and sent again as one: 64 KiB to 1 GiB, a multiple of 4096; 0: 8 MiB. The same in all ranks. */
    const char *lanes; /* allowed ways, in order of preference; NULL: "shm,tcp" */
    const char *host;  /* numeric address to bind to; NULL: 127.0.0.1 */
    const char *rdma;  /* "mlx5_0:1,mlx5_1:1"; NULL: choose */
    /* 1: versions go as what has changed, bit by bit, to subscribers that have the version before. Costs a copy in host memory of what this rank sends (result.delta_memory); every rank must ask for it. */
    uint32_t delta;
    uint32_t anchor_every;        /* with delta: at least every so many versions goes whole; 0: 25 */
    uint32_t delta_element_bytes; /* with delta: of what changes as one, 1, 2, 4 or 8; 0: 2 (bf16, f16) */
    uint32_t cast_count;
    const struct corral_weights_cast *casts; /* see there; NULL: weights go as they are */
    corral_weights_hold_fn hold;             /* NULL: memory is taken unasked */
    void *hold_ctx;
};

struct corral_weights_result {
    uint32_t size;
    uint32_t subscribers, applied,
        dropped;             /* dropped: not at this version now; they are tried again at the next */
    uint64_t version, bytes; /* sent by this rank */
    uint64_t total_ns;       /* the whole call */
    /* Of the slowest subscriber, as this rank saw it: digesting, casting and encoding; first byte sent to last bucket taken; to STAGED (digest compared); to APPLIED; longest pause of its readers. */
    uint64_t pack_ns, wire_ns, stage_ns, commit_ns, pause_ns;
    uint32_t resent_buckets; /* arrived damaged and were sent again */
    uint32_t reserved_;
    uint64_t digest[2]; /* of the version (lo, hi); rank 0 only */
    uint64_t
        moved; /* given to lanes by this rank: less than `bytes` with deltas, more when buckets were sent again */
    uint64_t delta_memory; /* kept for deltas after this version */
    uint32_t deltas;       /* subscribers that took this version as a delta */
    uint32_t
        slow_rank; /* rank 0 only: the trainer rank that began this version last, UINT32_MAX when nobody waited; */
    uint64_t
        skew_ns; /* and how long the first rank waited for it, at the subscriber where that was longest */
    uint64_t gather_ns; /* reading the weights into lanes, or to encode them; as pack_ns */
    uint64_t memory;    /* held for lanes, deltas and staging of devices after this version */
};

CORRAL_API enum corral_status
corral_weights_publisher_open(struct corral_weights_publisher **out,
                              const struct corral_weights_publisher_options *options,
                              struct corral_error *err);
CORRAL_API void corral_weights_publisher_close(struct corral_weights_publisher *p);
/* The trainer's card; the same from every rank. *bytes as for corral_weights_layout_save. */
CORRAL_API enum corral_status corral_weights_publisher_card(const struct corral_weights_publisher *p,
                                                            void *out, uint64_t *bytes,
                                                            struct corral_error *err);
/* A subscriber by its card, at every rank, between the same two versions everywhere. The same name again replaces it (an engine that was restarted). Every subscriber must lie as the first one: replicas of
 * one engine. CORRAL_INVALID: another layout, or a tensor that the trainer does not have. */
CORRAL_API enum corral_status corral_weights_publisher_add(struct corral_weights_publisher *p,
                                                           const void *card, uint64_t bytes,
                                                           struct corral_error *err);
CORRAL_API void corral_weights_publisher_remove(struct corral_weights_publisher *p, const char *name);
/* All ranks call it with the same version, above all earlier ones (the last one may be published again with the same bytes). The weights must be complete (synchronise the stream that writes them)
 * and must not change until it returns: at most deadline_ms. `result` may be NULL. CORRAL_STATE: no subscriber yet. CORRAL_PEER: nobody has it (rank 0). */
CORRAL_API enum corral_status corral_weights_publish(struct corral_weights_publisher *p, uint64_t version,
                                                     struct corral_weights_result *result,
                                                     struct corral_error *err);

/* ---- engine ---- */

struct corral_weights_subscriber;

/* Called from a thread of the library when a version is ready: with auto_flip it is current already, otherwise it waits for corral_weights_flip. Return soon; do not call into this
 * subscriber. A scheduler's natural use is to set a flag that its loop looks at between two decode steps. */
typedef void (*corral_weights_ready_fn)(void *ctx, uint64_t version);

/* Another subscriber's card. */
struct corral_weights_peer {
    const void *card;
    uint64_t bytes;
};

struct corral_weights_subscriber_options {
    uint32_t size;
    uint32_t rank;                                  /* of this process in its replica */
    const struct corral_weights_identity *identity; /* NULL: all from the environment */
    const struct corral_weights_layout *layout;     /* of all ranks of a replica, the same in each */
    const void *trainer_card;
    uint64_t trainer_card_bytes;
    const char *name; /* unique in the run: "engine-0.tp1" */
    const char *
        replica; /* ranks with the same name are given a version when all of them have staged it; NULL or "": on its own */
    const char *host; /* numeric address to listen on, as the trainer reaches it; NULL: 127.0.0.1 */
    /* NULL: the library has the memory, `buffers` times this rank's bytes, and acquire gives the address of the current version.
     * Otherwise: versions are staged in memory of the library (once this rank's bytes) and corral_weights_flip copies them here; readers must be quiet during that call. */
    const struct corral_weights_region *regions;
    uint32_t region_count;
    uint32_t
        buffers; /* 0 or 2: a version is staged while one is read. 3: also while one waits for its flip */
    uint32_t auto_flip; /* 1: a version is current as soon as it is committed (not with regions) */
    uint32_t
        busy_wait_ms; /* how long a new version waits for readers to leave the buffer it needs, or for the flip of the one before, until it is refused; 0: 2,000 */
    const char *lanes; /* NULL: "shm,tcp" */
    const char *rdma;
    corral_weights_ready_fn ready; /* may be NULL */
    void *ready_ctx;
    /* A subscriber that comes late takes the current version from one of these, in the background, without the trainer: those of its own rank are tried in turn, 64 at most. What the trainer publishes meanwhile goes first. NULL: it
     * waits for the trainer's next version. */
    const struct corral_weights_peer *peers;
    uint32_t peer_count;
    corral_weights_hold_fn hold; /* NULL: memory is taken unasked */
    void *hold_ctx;
};

CORRAL_API enum corral_status
corral_weights_subscriber_open(struct corral_weights_subscriber **out,
                               const struct corral_weights_subscriber_options *options,
                               struct corral_error *err);
/* Nothing may be acquired any more. */
CORRAL_API void corral_weights_subscriber_close(struct corral_weights_subscriber *s);
CORRAL_API enum corral_status corral_weights_subscriber_card(const struct corral_weights_subscriber *s,
                                                             void *out, uint64_t *bytes,
                                                             struct corral_error *err);

/* Versions of this rank: current (what acquire gives) and ready (committed, to be flipped to; the current one when there is no newer). 0: none. Hot path. */
CORRAL_API uint64_t corral_weights_version(const struct corral_weights_subscriber *s);
CORRAL_API uint64_t corral_weights_ready(const struct corral_weights_subscriber *s);
/* Until a version of at least `version` is ready. CORRAL_TIMEOUT otherwise. `ready` may be NULL. */
CORRAL_API enum corral_status corral_weights_wait(struct corral_weights_subscriber *s, uint64_t version,
                                                  uint32_t timeout_ms, uint64_t *ready,
                                                  struct corral_error *err);
/* Make `version` current; 0: what is ready. For a replica of several ranks, one of them reads corral_weights_ready, tells the others, and each flips to that number at the same step: it waits at
 * most timeout_ms until it is ready here too. CORRAL_OK when it is current already; CORRAL_INVALID when the current one is newer; CORRAL_TIMEOUT. *pause_ns (may be NULL): how long it took, the wait not included. */
CORRAL_API enum corral_status corral_weights_flip(struct corral_weights_subscriber *s, uint64_t version,
                                                  uint32_t timeout_ms, uint64_t *pause_ns,
                                                  struct corral_error *err);

/* The current version, read in place and held. At most a few at a time: a buffer that is held cannot take a new version. */
struct corral_weights_view {
    uint32_t size;
    uint32_t buffer;
    uint64_t version, bytes;
    const void *base; /* this rank's range of bytes */
};
/* CORRAL_AGAIN: no version yet. CORRAL_UNSUPPORTED: the memory is the engine's own (regions). Hot path: no lock, no system call. */
CORRAL_API enum corral_status corral_weights_acquire(struct corral_weights_subscriber *s,
                                                     struct corral_weights_view *view,
                                                     struct corral_error *err);
CORRAL_API void corral_weights_release(struct corral_weights_subscriber *s, struct corral_weights_view *view);

struct corral_weights_status {
    uint32_t size;
    uint32_t reserved_;
    uint64_t version, ready, generation;
    uint64_t pushes, aborted, resent_buckets, bytes;
    uint64_t wire_ns, apply_ns, commit_ns; /* of the last version */
    uint64_t flip_ns, flip_ns_max; /* corral_weights_flip, or the flip of auto_flip: last and longest */
    uint64_t digest[2];
    char lane[32], last_error[200];
    uint64_t memory; /* held for lanes */
    uint64_t pulls;  /* versions taken from other subscribers */
};
CORRAL_API enum corral_status corral_weights_subscriber_status(struct corral_weights_subscriber *s,
                                                               struct corral_weights_status *out,
                                                               struct corral_error *err);

#ifdef __cplusplus
}
#endif
#endif
