/* <corral/trajectory.h>: one trajectory record, as rollout workers write it and trainers read it. Link with libcorral. Plain C11, usable from C++.
 * Byte format: docs/spec/trajectory.md. Writing and reading streams of records: <corral/rollout.h>, <corral/trainer.h>.
 *
 * A RECORD is an identity (run, worker, epoch, sequence), a few facts about where it comes from, named scores, and named tensors. It is one contiguous piece of memory: a
 * prologue of 64 bytes, a small msgpack map, then the tensors, each at a multiple of 64 bytes, so that it is read in place wherever it lies: in a ring, a message, a log.
 *
 *     struct corral_traj_tensor t[] = {{.name = "token_ids", .dtype = CORRAL_TRAJ_I32, .dims = 1, .shape = {n}, .data = ids}, ...};
 *     struct corral_traj_record r = {.size = sizeof r, .kind = CORRAL_TRAJ_EPISODE, .env = "calc", .group = 7, .group_size = 8, .tensors = t, .tensor_count = 2};
 *     corral_traj_record_bytes(&r, &bytes, &err);                    // what to reserve
 *     corral_traj_record_encode(&r, memory, bytes, &err);            // tensors with data == NULL are left to be filled in place
 *     corral_traj_record_decode(memory, bytes, &view, &err);         // view.record, view.tensors[i].data point into memory
 *
 * FIELDS may be added to the map and tensors to the list; a reader skips what it does not know. Names of tensors have fixed meanings (docs/spec/trajectory.md lists
 * shapes and units): token_ids, obs, action, reward, terminated, truncated, log_prob, version, loss_mask, value, turn, top_k_ids, top_k_log_prob, … Programs may add their own.
 *
 * THREADS: pure functions. OWNERSHIP: encode copies; what decode gives points into the caller's memory and into the view. HOSTILE BYTES: decode checks everything before it uses it,
 * allocates nothing, and fails with CORRAL_PROTOCOL.
 */
#ifndef CORRAL_TRAJECTORY_H
#define CORRAL_TRAJECTORY_H

#include <corral/status.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CORRAL_TRAJ_RECORD_MAX (UINT64_C(1) << 30) /* bytes of one record */
#define CORRAL_TRAJ_HEADER_MAX 16384u              /* bytes of its msgpack map */
#define CORRAL_TRAJ_PROLOGUE_BYTES 64u
#define CORRAL_TRAJ_ALIGN 64u /* of a record, its size and its tensors */
#define CORRAL_TRAJ_TENSORS_MAX 32
#define CORRAL_TRAJ_SCORES_MAX 32
#define CORRAL_TRAJ_DIMS_MAX 6
#define CORRAL_TRAJ_TEXT_MAX 127 /* bytes of env, finish and names; `task` may have CORRAL_TRAJ_TASK_MAX */
#define CORRAL_TRAJ_TASK_MAX 1023

/* Numbered as enum corral_weights_dtype, and one more. */
enum corral_traj_dtype {
    CORRAL_TRAJ_U8 = 0,
    CORRAL_TRAJ_I32 = 1,
    CORRAL_TRAJ_I64 = 2,
    CORRAL_TRAJ_F16 = 3,
    CORRAL_TRAJ_BF16 = 4,
    CORRAL_TRAJ_F32 = 5,
    CORRAL_TRAJ_F64 = 6,
    CORRAL_TRAJ_U64 = 7,
    CORRAL_TRAJ_F8_E4M3 = 8,
    CORRAL_TRAJ_F8_E5M2 = 9,
    CORRAL_TRAJ_U32 = 10
};

enum corral_traj_kind {
    CORRAL_TRAJ_EPISODE = 0, /* a whole trajectory of one agent: tensors are [T] or [T][…] */
    CORRAL_TRAJ_FRAGMENT = 1 /* consecutive steps of several rows: tensors are [S][R] or [S][R][…] */
};

struct corral_traj_tensor {
    const char *name;
    uint32_t dtype; /* enum corral_traj_dtype */
    uint32_t dims;
    uint64_t shape[CORRAL_TRAJ_DIMS_MAX];
    const void *data; /* row-major, little-endian; encode: NULL leaves its place unwritten (see _place) */
};

struct corral_traj_score {
    const char *name; /* "reward", "success", … */
    double value;
};

/* Strings may be NULL when written; they are "" when read. */
struct corral_traj_record {
    size_t size; /* sizeof(struct corral_traj_record) */
    /* identity: worker w in its life `epoch` (grows each time it starts) wrote it as number `sequence` (from 1) of its stream */
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t sequence;
    uint32_t kind; /* enum corral_traj_kind */
    uint32_t turns;
    const char *env, *task; /* environment's id; the task as the task source names it */
    const char *finish;     /* "stop", "length", "tool", "truncated", …; "" for fragments */
    uint64_t group;         /* completions of one prompt share it; with group_size 0 there is none */
    uint32_t group_index, group_size;
    uint64_t episode;
    uint64_t version_min, version_max; /* weight versions that chose its actions: oldest and newest */
    uint64_t tokens;                   /* length for packing and budgets: tokens, or steps x rows */
    const struct corral_traj_score *scores;
    uint32_t score_count;
    uint32_t tensor_count;
    const struct corral_traj_tensor *tensors;
};

/* Storage for a decoded record. Large: keep one and use it again. */
struct corral_traj_view {
    struct corral_traj_record record; /* scores, tensors and strings point below or into the bytes */
    struct corral_traj_score scores[CORRAL_TRAJ_SCORES_MAX];
    struct corral_traj_tensor tensors[CORRAL_TRAJ_TENSORS_MAX];
    uint64_t tensor_bytes[CORRAL_TRAJ_TENSORS_MAX];
    char text[CORRAL_TRAJ_HEADER_MAX];
};

/* What encode() writes: a multiple of 64. CORRAL_INVALID when a field is out of range or a product overflows. */
CORRAL_API enum corral_status corral_traj_record_bytes(const struct corral_traj_record *r, uint64_t *bytes,
                                                       struct corral_error *err);
/* Into memory aligned to 64 bytes of exactly that many bytes. */
CORRAL_API enum corral_status corral_traj_record_encode(const struct corral_traj_record *r, void *memory,
                                                        uint64_t bytes, struct corral_error *err);
/* Where tensor i of the encoded record lies, to fill it in place. */
CORRAL_API void *corral_traj_record_place(void *memory, uint32_t i);
/* Overwrites the identity of an encoded record. */
CORRAL_API void corral_traj_record_stamp(void *memory, uint64_t run, uint32_t worker, uint32_t epoch,
                                         uint64_t sequence);
/* `memory` aligned to 64 bytes and unchanging while it is decoded. */
CORRAL_API enum corral_status corral_traj_record_decode(const void *memory, uint64_t bytes,
                                                        struct corral_traj_view *view,
                                                        struct corral_error *err);
/* The tensor of that name, or NULL. */
CORRAL_API const struct corral_traj_tensor *corral_traj_record_find(const struct corral_traj_record *r,
                                                                    const char *name);
CORRAL_API uint64_t corral_traj_dtype_bytes(uint32_t dtype); /* of one element; 0: unknown */

#ifdef __cplusplus
}
#endif

#endif
