#include "transport/weights/delta/chain.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct corral_delta_part part;
    void *delta;
    size_t bytes;
};

struct corral_delta_chain {
    uint64_t bytes, bytes_max;
    struct entry *entry; /* oldest first */
    uint32_t count, room;
};

enum corral_status corral_delta_chain_create(struct corral_delta_chain **out, uint64_t bytes_max,
                                             struct corral_error *err)
{
    struct corral_delta_chain *chain = calloc(1, sizeof *chain);
    if (!chain) {
        return corral_fail(err, CORRAL_NOMEM, "delta chain: out of memory");
    }
    chain->bytes_max = bytes_max;
    *out = chain;
    return CORRAL_OK;
}

/* The oldest `count` go. */
static void drop_oldest(struct corral_delta_chain *chain, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        chain->bytes -= chain->entry[i].bytes;
        free(chain->entry[i].delta);
    }
    chain->count -= count;
    if (count > 0) {
        memmove(chain->entry, chain->entry + count, chain->count * sizeof *chain->entry);
    }
}

void corral_delta_chain_clear(struct corral_delta_chain *chain)
{
    drop_oldest(chain, chain->count);
}

void corral_delta_chain_destroy(struct corral_delta_chain *chain)
{
    if (chain) {
        corral_delta_chain_clear(chain);
        free(chain->entry);
    }
    free(chain);
}

uint64_t corral_delta_chain_bytes(const struct corral_delta_chain *chain)
{
    return chain->bytes;
}

static bool same_part(const struct corral_delta_part *a, const struct corral_delta_part *b)
{
    return a->element_bytes == b->element_bytes && a->first == b->first && a->elements == b->elements &&
           a->total == b->total;
}

/* The newest delta of the part over that version; NULL without. */
static struct entry *find(const struct corral_delta_chain *chain, const struct corral_delta_part *part,
                          const struct corral_delta_version *base)
{
    for (uint32_t i = chain->count; i-- > 0;) {
        struct entry *e = &chain->entry[i];
        if (same_part(&e->part, part) && e->part.base.version == base->version &&
            corral_digest_equal(e->part.base.digest, base->digest)) {
            return e;
        }
    }
    return NULL;
}

static enum corral_status make_room(struct corral_delta_chain *chain, struct corral_error *err)
{
    if (chain->count < chain->room) {
        return CORRAL_OK;
    }
    uint32_t room = CORRAL_MIN(CORRAL_MAX(2 * chain->room, 16u), CORRAL_DELTA_CHAIN_ENTRIES_MAX);
    struct entry *grown = realloc(chain->entry, room * sizeof *grown);
    if (!grown) {
        return corral_fail(err, CORRAL_NOMEM, "delta chain: no memory for %u deltas", room);
    }
    chain->entry = grown;
    chain->room = room;
    return CORRAL_OK;
}

enum corral_status corral_delta_chain_add(struct corral_delta_chain *chain, const void *delta, size_t bytes,
                                          struct corral_error *err)
{
    struct corral_delta_part part;
    CORRAL_TRY(corral_delta_peek(delta, bytes, &part, err));
    if (bytes > chain->bytes_max) {
        return corral_fail(err, CORRAL_AGAIN, "delta chain: %zu bytes where %llu are allowed", bytes,
                           (unsigned long long)chain->bytes_max);
    }
    CORRAL_AUTO_FREE void *copy = malloc(bytes);
    if (!copy) {
        return corral_fail(err, CORRAL_NOMEM, "delta chain: no memory for %zu bytes", bytes);
    }
    memcpy(copy, delta, bytes);
    struct entry *before = find(chain, &part, &part.base);
    if (before) {
        chain->bytes -= before->bytes;
        free(before->delta);
        memmove(before, before + 1, (size_t)(chain->entry + chain->count - (before + 1)) * sizeof *before);
        chain->count--;
    }
    uint32_t oldest = chain->count == CORRAL_DELTA_CHAIN_ENTRIES_MAX;
    uint64_t left = chain->bytes - (oldest ? chain->entry[0].bytes : 0);
    for (; left + bytes > chain->bytes_max; oldest++) {
        left -= chain->entry[oldest].bytes;
    }
    drop_oldest(chain, oldest);
    CORRAL_TRY(make_room(chain, err));
    chain->entry[chain->count++] = (struct entry){part, CORRAL_STEAL(copy), bytes};
    chain->bytes += bytes;
    return CORRAL_OK;
}

enum corral_status corral_delta_chain_bring(const struct corral_delta_chain *chain,
                                            const struct corral_delta_part *holds, uint64_t wanted,
                                            void *memory, struct corral_digest *digest,
                                            struct corral_error *err)
{
    struct corral_delta_part at = *holds;
    for (struct corral_delta_version v = holds->base; v.version != wanted;) {
        const struct entry *e = find(chain, holds, &v);
        if (!e || e->part.next.version > wanted) {
            return corral_fail(err, CORRAL_NOT_FOUND,
                               "delta chain: no way from version %llu to %llu: nothing leads on from %llu",
                               (unsigned long long)holds->base.version, (unsigned long long)wanted,
                               (unsigned long long)v.version);
        }
        v = e->part.next;
    }
    while (at.base.version != wanted) {
        const struct entry *e = find(chain, holds, &at.base);
        at.next = e->part.next;
        CORRAL_TRY(corral_delta_apply(&at, e->delta, e->bytes, memory, memory, err));
        at.base = e->part.next;
    }
    *digest = at.base.digest;
    return CORRAL_OK;
}
