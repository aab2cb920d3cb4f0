/* What encode and decode must agree on: the map's keys, tensor sizes, names that must differ. Private to record/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_SHAPE_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_SHAPE_H

#include "transport/trajectory/record/short_text.h"

/* In the order in which they are written: a reader that expects the next one finds it at once. `tensors` is first: see corral_traj_record_place(). */
enum record_key {
    KEY_TENSORS,
    KEY_KIND,
    KEY_ENV,
    KEY_TASK,
    KEY_FINISH,
    KEY_EPISODE,
    KEY_TURNS,
    KEY_TOKENS,
    KEY_OLDEST,
    KEY_NEWEST,
    KEY_GROUP,
    KEY_MEMBER,
    KEY_MEMBERS,
    KEY_SCORES,
    KEYS
};
struct record_key_text {
    char text[8]; /* with zeros behind */
    size_t bytes;
};
extern const struct record_key_text corral_traj_keys[KEYS];

static inline uint64_t dtype_bytes(uint32_t dtype)
{
    static const uint8_t bytes[] = {
        [CORRAL_TRAJ_U8] = 1,      [CORRAL_TRAJ_I32] = 4,     [CORRAL_TRAJ_I64] = 8, [CORRAL_TRAJ_F16] = 2,
        [CORRAL_TRAJ_BF16] = 2,    [CORRAL_TRAJ_F32] = 4,     [CORRAL_TRAJ_F64] = 8, [CORRAL_TRAJ_U64] = 8,
        [CORRAL_TRAJ_F8_E4M3] = 1, [CORRAL_TRAJ_F8_E5M2] = 1, [CORRAL_TRAJ_U32] = 4,
    };
    return dtype < sizeof bytes ? bytes[dtype] : 0;
}

/* Bytes of a tensor; 0: dims, an extent or the dtype is out of range, or there are more than CORRAL_TRAJ_RECORD_MAX. */
static inline uint64_t shape_bytes(uint32_t dtype, uint32_t dims, const uint64_t *shape)
{
    uint64_t bytes = dtype_bytes(dtype);
    if (dims == 0 || dims > CORRAL_TRAJ_DIMS_MAX) {
        return 0;
    }
    for (uint32_t i = 0; i < dims; i++) {
        if (__builtin_mul_overflow(bytes, shape[i], &bytes)) {
            return 0;
        }
    }
    return bytes <= CORRAL_TRAJ_RECORD_MAX ? bytes : 0;
}

#endif
