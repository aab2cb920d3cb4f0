/* The shared mapping of the shm implementation: layout, making and checking it. Internal; described in docs/spec/collective.md. */
#ifndef CORRAL_TRANSPORT_COLLECTIVE_SHM_H
#define CORRAL_TRANSPORT_COLLECTIVE_SHM_H

#include "transport/collective/call.h"
#include <stdatomic.h>

/* Lower half of a slot's `departed`: the status (CORRAL_OK: left cleanly) and the rank it was about, never 0. */
#define DEPARTURE(status, culprit) (UINT32_C(1) | (uint32_t)(status) << 8 | (uint32_t)(culprit) << 16)
#define DEPARTURE_STATUS(word) ((enum corral_status)((uint32_t)(word) >> 8 & 0xff))
#define DEPARTURE_CULPRIT(word) ((uint32_t)(word) >> 16 & 0xff)

/* `posted` and `departed` carry the generation + 1 in their upper half, so that 0 means never and an old group's words are not
 * taken for ours. */
struct shm_slot {
    _Atomic uint64_t posted;   /* generation | piece */
    _Atomic uint64_t departed; /* generation | DEPARTURE() */
    _Atomic uint32_t event;    /* futex: moves on whenever the two above do */
    _Atomic uint32_t sleepers; /* 1: someone may sleep on `event` */
    _Atomic int32_t pid;
    struct corral_call call[2] __attribute__((aligned(64)));
} __attribute__((aligned(128)));

struct shm_header {
    uint32_t magic, version, ranks, reserved;
    uint64_t staging_bytes; /* of one buffer; each rank has two */
} __attribute__((aligned(128)));

struct shm_map {
    struct shm_header header;
    struct shm_slot slot[]; /* then the staging buffers: rank 0's two, rank 1's two, ... */
};

/* Map a segment made by corral_collective_shm_segment() for as many ranks. */
enum corral_status corral_shm_map(int fd, uint32_t ranks, struct shm_map **map, uint64_t *map_bytes,
                                  struct corral_error *err);

#endif
