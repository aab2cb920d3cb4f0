#include "transport/board/segment.h"
#include "transport/collective/shm.h"
#include <sys/mman.h>

#define SHM_NAME "corral-collective"
#define SHM_MAGIC UINT32_C(0x4d435143) /* "CQCM" */
#define SHM_VERSION 1
#define STAGING_BYTES_MIN 4096
#define STAGING_BYTES_MAX (UINT64_C(1) << 30)

static uint64_t map_bytes_of(uint32_t ranks, uint64_t staging_bytes)
{
    return sizeof(struct shm_map) + ranks * (sizeof(struct shm_slot) + 2 * staging_bytes);
}

enum corral_status corral_collective_shm_segment(uint32_t ranks, uint64_t staging_bytes, int *fd_out,
                                                 struct corral_error *err)
{
    CORRAL_TRY(corral_call_check_ranks("shm", 0, ranks, err));
    if (staging_bytes > STAGING_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "shm collective: %llu staging bytes, at most %llu",
                           (unsigned long long)staging_bytes, (unsigned long long)STAGING_BYTES_MAX);
    }
    staging_bytes = (CORRAL_MAX(staging_bytes, STAGING_BYTES_MIN) + 127) / 128 * 128;
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_TRY(corral_segment_create(SHM_NAME, map_bytes_of(ranks, staging_bytes), &fd, err));
    void *map;
    uint64_t bytes;
    CORRAL_TRY(corral_segment_map(SHM_NAME, fd, sizeof(struct shm_map), &map, &bytes, err));
    ((struct shm_map *)map)->header = (struct shm_header){
        .magic = SHM_MAGIC, .version = SHM_VERSION, .ranks = ranks, .staging_bytes = staging_bytes};
    munmap(map, bytes);
    *fd_out = fd;
    fd = -1;
    return CORRAL_OK;
}

static enum corral_status check_header(const struct shm_map *map, uint64_t map_bytes, int fd, uint32_t ranks,
                                       struct corral_error *err)
{
    const struct shm_header *h = &map->header;
    if (h->magic != SHM_MAGIC || h->version != SHM_VERSION || h->staging_bytes < STAGING_BYTES_MIN ||
        h->staging_bytes > STAGING_BYTES_MAX || h->staging_bytes % 128 != 0 ||
        h->ranks > CORRAL_COLLECTIVE_RANKS_MAX || map_bytes < map_bytes_of(h->ranks, h->staging_bytes)) {
        return corral_fail(err, CORRAL_INVALID,
                           "shm collective: descriptor %d is not a segment of version %d", fd, SHM_VERSION);
    }
    if (h->ranks != ranks) {
        return corral_fail(err, CORRAL_INVALID, "shm collective: the segment is for %u ranks, not %u",
                           h->ranks, ranks);
    }
    return CORRAL_OK;
}

enum corral_status corral_shm_map(int fd, uint32_t ranks, struct shm_map **out, uint64_t *out_bytes,
                                  struct corral_error *err)
{
    void *map;
    uint64_t bytes;
    CORRAL_TRY(corral_segment_map(SHM_NAME, fd, sizeof(struct shm_map), &map, &bytes, err));
    enum corral_status status = check_header(map, bytes, fd, ranks, err);
    if (status != CORRAL_OK) {
        munmap(map, bytes);
        return status;
    }
    *out = map;
    *out_bytes = bytes;
    return CORRAL_OK;
}
