/* Best fit decreasing in O(1) per sequence, practically: bins by the room they have left, and a tree of bit sets to find the smallest room that is enough. */
#include "trainer-bridge/batching/packing.h"
#include <assert.h>
#include <stdlib.h>

#define NONE UINT32_MAX
#define LEVELS 5 /* 64^5 > CORRAL_PACK_BUDGET_MAX */

struct rooms {
    uint32_t *head;          /* per room: the bins that have it, a list */
    uint32_t *next;          /* per bin */
    uint64_t *level[LEVELS]; /* level 0: bit per room; level i: bit per word of level i - 1 */
};

static void free_rooms(struct rooms *r)
{
    free(r->head);
    free(r->next);
    for (uint32_t i = 0; i < LEVELS; i++) {
        free(r->level[i]);
    }
}

static bool make_rooms(struct rooms *r, uint64_t budget, uint32_t bins_max)
{
    r->head = malloc((budget + 1) * sizeof r->head[0]);
    r->next = malloc(CORRAL_MAX(bins_max, 1u) * sizeof r->next[0]);
    bool ok = r->head != NULL && r->next != NULL;
    uint64_t words = budget + 1;
    for (uint32_t i = 0; i < LEVELS; i++) {
        words = (words + 63) / 64;
        r->level[i] = calloc(words, sizeof r->level[i][0]);
        ok = ok && r->level[i] != NULL;
    }
    for (uint64_t i = 0; ok && i <= budget; i++) {
        r->head[i] = NONE;
    }
    return ok;
}

static void put(struct rooms *r, uint64_t room, uint32_t bin)
{
    r->next[bin] = r->head[room];
    r->head[room] = bin;
    for (uint32_t i = 0; i < LEVELS; i++) {
        r->level[i][room / 64] |= UINT64_C(1) << (room % 64);
        room /= 64;
    }
}

static uint32_t take(struct rooms *r, uint64_t room)
{
    uint32_t bin = r->head[room];
    r->head[room] = r->next[bin];
    if (r->head[room] != NONE) {
        return bin;
    }
    for (uint32_t i = 0; i < LEVELS; i++) {
        r->level[i][room / 64] &= ~(UINT64_C(1) << (room % 64));
        if (r->level[i][room / 64] != 0) {
            break;
        }
        room /= 64;
    }
    return bin;
}

/* The smallest room >= least that a bin has; false: none. */
static bool find(const struct rooms *r, uint64_t least, uint64_t budget, uint64_t *room)
{
    uint64_t at = least, limit = budget;
    uint32_t i = 0;
    for (;; i++, at = at / 64 + 1, limit /= 64) { /* up, until a word has something at or after it */
        if (i == LEVELS || at > limit) {
            return false;
        }
        uint64_t word = r->level[i][at / 64] & (UINT64_MAX << (at % 64));
        if (word != 0) {
            at = at / 64 * 64 + (uint64_t)__builtin_ctzll(word);
            break;
        }
    }
    while (i > 0) { /* down, along the first bits */
        i--;
        at = at * 64 + (uint64_t)__builtin_ctzll(r->level[i][at]);
    }
    *room = at;
    return true;
}

enum corral_status corral_pack_best_fit(uint64_t budget, const uint64_t *tokens, const uint32_t *order,
                                        uint32_t count, uint32_t *bin, uint32_t *bins,
                                        struct corral_error *err)
{
    struct rooms r = {.head = NULL};
    if (!make_rooms(&r, budget, count)) {
        free_rooms(&r);
        return corral_fail(err, CORRAL_NOMEM, "pack %u sequences", count);
    }
    uint32_t made = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t n = tokens[order[i]], room;
        assert(n > 0 && n <= budget && (i == 0 || n <= tokens[order[i - 1]]));
        uint32_t b = made;
        if (find(&r, n, budget, &room)) {
            b = take(&r, room);
        } else {
            made++;
            room = budget;
        }
        bin[order[i]] = b;
        put(&r, room - n, b);
    }
    free_rooms(&r);
    *bins = made;
    return CORRAL_OK;
}
