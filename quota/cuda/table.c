#include "quota/cuda/table.h"
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define SHARDS 64u          /* a power of two */
#define SHARD_SLOTS_MIN 64u /* a page */

/* A slot with space 0 is free, so spaces are stored from 1. */
struct shard {
    _Alignas(64) pthread_mutex_t lock; /* guards the rest */
    struct corral_cuda_record *slot;
    uint32_t slots, used;
};

static struct shard shards[SHARDS] = {
    [0 ... SHARDS - 1] = {.lock = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP},
};

static _Atomic uint64_t epoch_now; /* read at each put, written when a context goes */

static uint64_t hash_name(uint32_t space, uint64_t name)
{
    uint64_t x = name ^ ((uint64_t)space << 58);
    x ^= x >> 33;
    x *= UINT64_C(0xff51afd7ed558ccd);
    x ^= x >> 33;
    x *= UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ (x >> 33);
}

static struct shard *shard_of(uint64_t hash)
{
    return &shards[hash >> 58];
}

/* The slot of the name, or the free one where it would go. The table has a free slot. */
static uint32_t find(const struct shard *s, uint64_t hash, uint32_t space, uint64_t name)
{
    uint32_t mask = s->slots - 1;
    uint32_t at = (uint32_t)hash & mask;
    while (s->slot[at].space != 0 && (s->slot[at].name != name || s->slot[at].space != space)) {
        at = (at + 1) & mask;
    }
    return at;
}

static bool grow(struct shard *s)
{
    uint32_t slots = s->slots == 0 ? SHARD_SLOTS_MIN : s->slots * 2;
    size_t bytes = (size_t)slots * sizeof(struct corral_cuda_record);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return false;
    }
    struct shard bigger = {.slot = memory, .slots = slots};
    for (uint32_t i = 0; i < s->slots; i++) {
        const struct corral_cuda_record *r = &s->slot[i];
        if (r->space != 0) {
            bigger.slot[find(&bigger, hash_name(r->space, r->name), r->space, r->name)] = *r;
        }
    }
    if (s->slot != NULL) {
        munmap(s->slot, (size_t)s->slots * sizeof(struct corral_cuda_record));
    }
    s->slot = bigger.slot;
    s->slots = slots;
    return true;
}

/* Close the hole at `at`, so that no search has to step over removed slots. */
static void remove_at(struct shard *s, uint32_t at)
{
    uint32_t mask = s->slots - 1;
    uint32_t hole = at;
    for (uint32_t i = (at + 1) & mask; s->slot[i].space != 0; i = (i + 1) & mask) {
        uint32_t home = (uint32_t)hash_name(s->slot[i].space, s->slot[i].name) & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            s->slot[hole] = s->slot[i];
            hole = i;
        }
    }
    memset(&s->slot[hole], 0, sizeof(s->slot[hole]));
    s->used--;
}

static void copy_out(struct corral_cuda_record *out, const struct corral_cuda_record *slot)
{
    *out = *slot;
    out->space--;
}

bool corral_cuda_table_put(const struct corral_cuda_record *record, struct corral_cuda_record *old, bool *had)
{
    uint32_t space = record->space + 1;
    uint64_t hash = hash_name(space, record->name);
    struct shard *s = shard_of(hash);
    pthread_mutex_lock(&s->lock);
    /* A shard that cannot grow is used until its last free slot, which ends every search. */
    if (s->used + 1 > s->slots / 4 * 3 && !grow(s) && s->used + 1 >= s->slots) {
        pthread_mutex_unlock(&s->lock);
        return false;
    }
    uint32_t at = find(s, hash, space, record->name);
    *had = s->slot[at].space != 0;
    if (*had) {
        copy_out(old, &s->slot[at]);
    } else {
        s->used++;
    }
    s->slot[at] = *record;
    s->slot[at].space = space;
    /* Pairs with corral_cuda_table_end_epoch(). What was allocated after the driver had given a handle back comes after that in any order: the driver has synchronised both. */
    s->slot[at].epoch = atomic_load_explicit(&epoch_now, memory_order_acquire);
    pthread_mutex_unlock(&s->lock);
    return true;
}

static bool look(uint32_t space, uint64_t name, bool take, struct corral_cuda_record *out)
{
    uint64_t hash = hash_name(space + 1, name);
    struct shard *s = shard_of(hash);
    bool found = false;
    pthread_mutex_lock(&s->lock);
    if (s->used > 0) {
        uint32_t at = find(s, hash, space + 1, name);
        found = s->slot[at].space != 0;
        if (found) {
            copy_out(out, &s->slot[at]);
        }
        if (found && take) {
            remove_at(s, at);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

bool corral_cuda_table_take(uint32_t space, uint64_t name, struct corral_cuda_record *out)
{
    return look(space, name, true, out);
}

bool corral_cuda_table_get(uint32_t space, uint64_t name, struct corral_cuda_record *out)
{
    return look(space, name, false, out);
}

uint64_t corral_cuda_table_end_epoch(void)
{
    return atomic_fetch_add_explicit(&epoch_now, 1, memory_order_acq_rel);
}

static bool take_tied_in(struct shard *s, uint32_t space, uint64_t tie, uint64_t epoch,
                         struct corral_cuda_record *out)
{
    for (uint32_t i = 0; i < s->slots; i++) {
        if (s->slot[i].space == space + 1 && s->slot[i].tie == tie && s->slot[i].epoch <= epoch) {
            copy_out(out, &s->slot[i]);
            remove_at(s, i);
            return true;
        }
    }
    return false;
}

bool corral_cuda_table_take_tied(uint32_t space, uint64_t tie, uint64_t epoch, uint32_t *cursor,
                                 struct corral_cuda_record *out)
{
    for (; *cursor < SHARDS; (*cursor)++) {
        struct shard *s = &shards[*cursor];
        pthread_mutex_lock(&s->lock);
        bool found = take_tied_in(s, space, tie, epoch, out);
        pthread_mutex_unlock(&s->lock);
        if (found) {
            return true;
        }
    }
    return false;
}

uint64_t corral_cuda_table_count(void)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < SHARDS; i++) {
        pthread_mutex_lock(&shards[i].lock);
        count += shards[i].used;
        pthread_mutex_unlock(&shards[i].lock);
    }
    return count;
}

void corral_cuda_table_forget_all(void)
{
    for (uint32_t i = 0; i < SHARDS; i++) {
        struct shard *s = &shards[i];
        /* Another thread of the parent may have held it at the fork. */
        s->lock = (pthread_mutex_t)PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP;
        if (s->slot != NULL) {
            munmap(s->slot, (size_t)s->slots * sizeof(struct corral_cuda_record));
        }
        s->slot = NULL;
        s->slots = s->used = 0;
    }
}
