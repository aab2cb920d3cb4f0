#include "transport/board/board.h"

#include "base/clock.h"
#include "transport/board/segment.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define BOARD_MAGIC UINT32_C(0x44425143) /* "CQBD" */
#define BOARD_VERSION 1

struct board_header {
    uint32_t magic, version, slots, slot_bytes;
} __attribute__((aligned(128)));

struct board_map {
    struct board_header header;
    struct corral_board_slot slot[];
};

struct corral_board {
    struct board_map *map;
    uint64_t bytes;
    uint32_t slots;
};

static uint64_t map_bytes(uint32_t slots)
{
    return sizeof(struct board_map) + (uint64_t)slots * sizeof(struct corral_board_slot);
}

static void board_free(struct corral_board *b)
{
    if (b && b->map) {
        munmap(b->map, b->bytes);
    }
    free(b);
}
CORRAL_DEFINE_CLEANUP(struct corral_board, board_free)

static enum corral_status map_board(int fd, struct corral_board **out, struct corral_error *err)
{
    CORRAL_CLEANUP(board_freep) struct corral_board *b = calloc(1, sizeof *b);
    if (!b) {
        return corral_fail(err, CORRAL_NOMEM, "board: no memory");
    }
    void *map = NULL;
    CORRAL_TRY(corral_segment_map("corral-board", fd, sizeof(struct board_map), &map, &b->bytes, err));
    b->map = map;
    *out = CORRAL_STEAL(b);
    return CORRAL_OK;
}

enum corral_status corral_board_create(uint32_t slots, int *fd_out, struct corral_board **out,
                                       struct corral_error *err)
{
    if (slots == 0 || slots > CORRAL_BOARD_SLOTS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "board: %u slots, must be 1 to %d", slots,
                           CORRAL_BOARD_SLOTS_MAX);
    }
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_TRY(corral_segment_create("corral-board", map_bytes(slots), &fd, err));
    struct corral_board *b;
    CORRAL_TRY(map_board(fd, &b, err));
    b->slots = slots;
    b->map->header = (struct board_header){.magic = BOARD_MAGIC,
                                           .version = BOARD_VERSION,
                                           .slots = slots,
                                           .slot_bytes = sizeof(struct corral_board_slot)};
    *fd_out = fd;
    fd = -1;
    *out = b;
    return CORRAL_OK;
}

enum corral_status corral_board_attach(int fd, struct corral_board **out, struct corral_error *err)
{
    CORRAL_CLEANUP(board_freep) struct corral_board *b = NULL;
    CORRAL_TRY(map_board(fd, &b, err));
    const struct board_header *h = &b->map->header;
    uint32_t slots = h->slots;
    if (h->magic != BOARD_MAGIC || h->version != BOARD_VERSION ||
        h->slot_bytes != sizeof(struct corral_board_slot) || slots == 0 || slots > CORRAL_BOARD_SLOTS_MAX ||
        b->bytes < map_bytes(slots)) {
        return corral_fail(err, CORRAL_INVALID, "board: descriptor %d is not a board of version %d", fd,
                           BOARD_VERSION);
    }
    b->slots = slots;
    *out = CORRAL_STEAL(b);
    return CORRAL_OK;
}

void corral_board_detach(struct corral_board *b)
{
    board_free(b);
}

struct corral_board_slot *corral_board_slot(struct corral_board *b, uint32_t i)
{
    return i < b->slots ? &b->map->slot[i] : NULL;
}

void corral_board_beat(struct corral_board_slot *s)
{
    /* Pairs with the reader's acquire load of beat_ns: what was stored before this beat is seen with it. */
    atomic_store_explicit(&s->beat_ns, corral_now_ns(&corral_clock_monotonic), memory_order_release);
}

void corral_board_enter(struct corral_board_slot *s, enum corral_activity a)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (a == CORRAL_ACTIVITY_STARTING) {
        atomic_store_explicit(&s->pid, (int32_t)getpid(), memory_order_relaxed);
    }
    atomic_store_explicit(&s->activity, (uint32_t)a, memory_order_relaxed);
    atomic_store_explicit(&s->activity_ns, now, memory_order_relaxed);
    atomic_store_explicit(&s->beat_ns, now, memory_order_release); /* as in corral_board_beat() */
}

const char *corral_activity_name(enum corral_activity a)
{
    static const char *const name[CORRAL_ACTIVITY_COUNT] = {
        [CORRAL_ACTIVITY_STARTING] = "starting",
        [CORRAL_ACTIVITY_IDLE] = "idle",
        [CORRAL_ACTIVITY_ENV_STEP] = "env step",
        [CORRAL_ACTIVITY_INFERENCE] = "inference",
        [CORRAL_ACTIVITY_WAIT_VERSION] = "waiting for version",
        [CORRAL_ACTIVITY_WAIT_CREDIT] = "waiting for credit",
        [CORRAL_ACTIVITY_WAIT_BATCH] = "waiting for batch",
        [CORRAL_ACTIVITY_TRAIN] = "training",
        [CORRAL_ACTIVITY_PUBLISH] = "publishing weights",
        [CORRAL_ACTIVITY_CHECKPOINT] = "writing checkpoint",
        [CORRAL_ACTIVITY_EVALUATE] = "evaluating",
        [CORRAL_ACTIVITY_STOPPING] = "stopping",
    };
    /* The value may come from another process's memory. */
    return (uint32_t)a < CORRAL_ACTIVITY_COUNT ? name[a] : "unknown";
}
