/* Records into parcels. Small ones fill a chunk one behind the other, parcel after parcel; a large one has a block of its own. */
#include "transport/trajectory/sender_private.h"
#include <string.h>

/* A parcel at the beginning of `memory`, whose block the caller has a reference to and gives away. */
static struct corral_traj_parcel *parcel_at(void *memory, struct corral_traj_block *block, uint64_t first)
{
    struct corral_traj_parcel *p = memory;
    *p = (struct corral_traj_parcel){.block = block, .first = first};
    return p;
}

static void append(struct corral_traj_rank *r, struct corral_traj_parcel *p)
{
    struct corral_traj_batch *b = corral_traj_parcel_header(p);
    *b = (struct corral_traj_batch){
        .magic = CORRAL_TRAJ_BATCH_MAGIC, .protocol = CORRAL_TRAJ_PROTOCOL, .first = p->first};
    *(r->tail != NULL ? &r->tail->next : &r->head) = p;
    r->tail = p;
    r->unsent = r->unsent != NULL ? r->unsent : p;
}

void corral_traj_gather_seal(struct corral_traj_rank *r)
{
    /* A reservation lies behind the parcel's last record, where a next parcel would begin: the parcel is kept open for it. */
    bool reserved = r->reserved != NULL && r->alone == NULL;
    if (r->open != NULL && r->open->count > 0 && !reserved) {
        append(r, r->open);
        r->open = NULL;
    }
}

uint64_t corral_traj_gather_cost(const struct corral_traj_rank *r)
{
    return r->open != NULL ? r->open->bytes + r->open->count * (uint64_t)CORRAL_TRAJ_ITEM_BYTES : 0;
}

void corral_traj_gather_drop(struct corral_traj_rank *r)
{
    if (r->alone != NULL) {
        corral_traj_block_unref(r->alone);
        r->alone = NULL;
    }
    r->reserved = NULL;
}

static enum corral_status reserve_alone(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                        uint64_t bytes, struct corral_error *err)
{
    CORRAL_TRY(corral_traj_block_get(s->pool, CORRAL_TRAJ_PARCEL_BYTES + bytes, &r->alone, err));
    r->reserved = (uint8_t *)r->alone->memory + CORRAL_TRAJ_PARCEL_BYTES;
    return CORRAL_OK;
}

/* An empty parcel at the end of the chunk, or of a new one when `bytes` do not fit behind it there. */
static enum corral_status open_parcel(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                      uint64_t bytes, struct corral_error *err)
{
    uint64_t need = CORRAL_TRAJ_PARCEL_BYTES + bytes;
    if (r->chunk == NULL || r->chunk->capacity - r->chunk_used < need) {
        struct corral_traj_block *chunk;
        CORRAL_TRY(corral_traj_block_get(s->pool, CORRAL_MAX(s->chunk_bytes, need), &chunk, err));
        if (r->chunk != NULL) {
            corral_traj_block_unref(r->chunk);
        }
        r->chunk = chunk;
        r->chunk_used = 0;
    }
    corral_traj_block_ref(r->chunk);
    r->open = parcel_at((uint8_t *)r->chunk->memory + r->chunk_used, r->chunk, r->last_sequence + 1);
    r->chunk_used += CORRAL_TRAJ_PARCEL_BYTES;
    return CORRAL_OK;
}

enum corral_status corral_traj_gather_reserve(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                              uint64_t bytes, struct corral_error *err)
{
    bool alone = bytes >= CORRAL_TRAJ_ALONE_BYTES;
    if (r->open != NULL && (alone || r->open->bytes + bytes > CORRAL_TRAJ_BATCH_BYTES_MAX ||
                            r->chunk->capacity - r->chunk_used < bytes)) {
        if (r->open->count > 0) {
            corral_traj_gather_seal(r);
            corral_traj_rank_pump(s, r);
        } else { /* nothing was committed to it: its place is free again */
            r->chunk_used -= CORRAL_TRAJ_PARCEL_BYTES;
            corral_traj_block_unref(r->open->block);
            r->open = NULL;
        }
    }
    if (alone) {
        CORRAL_TRY(reserve_alone(s, r, bytes, err));
    } else {
        if (r->open == NULL) {
            CORRAL_TRY(open_parcel(s, r, bytes, err));
        }
        r->reserved = (uint8_t *)r->chunk->memory + r->chunk_used;
    }
    r->reserved_bytes = bytes;
    return CORRAL_OK;
}

void corral_traj_gather_commit(struct corral_traj_sender *s, struct corral_traj_rank *r, uint64_t bytes)
{
    struct corral_traj_parcel *p = r->open;
    if (r->alone != NULL) {
        p = parcel_at(r->alone->memory, r->alone, r->last_sequence + 1);
        r->alone = NULL;
    } else {
        r->chunk_used += bytes;
    }
    p->bytes += bytes;
    p->count++;
    r->last_sequence++;
    r->unacked_bytes += corral_traj_cost(bytes);
    s->stats.unacked_bytes += corral_traj_cost(bytes);
    r->reserved = NULL;
    if (p != r->open) {
        append(r, p);
    }
}

enum corral_status corral_traj_gather_copy(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           const void *record, uint64_t bytes, uint64_t sequence,
                                           struct corral_error *err)
{
    struct corral_traj_block *block;
    CORRAL_TRY(corral_traj_block_get(s->pool, CORRAL_TRAJ_PARCEL_BYTES + bytes, &block, err));
    struct corral_traj_parcel *p = parcel_at(block->memory, block, sequence);
    p->bytes = bytes;
    p->count = 1;
    memcpy(corral_traj_parcel_records(p), record, bytes);
    r->unacked_bytes += corral_traj_cost(bytes);
    s->stats.unacked_bytes += corral_traj_cost(bytes);
    append(r, p);
    return CORRAL_OK;
}

enum corral_status corral_traj_parcel_split(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                            struct corral_traj_parcel *p, uint32_t count,
                                            struct corral_error *err)
{
    uint64_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        kept += corral_traj_record_size(corral_traj_parcel_records(p) + kept);
    }
    struct corral_traj_block *block;
    CORRAL_TRY(corral_traj_block_get(s->pool, CORRAL_TRAJ_PARCEL_BYTES + p->bytes - kept, &block, err));
    struct corral_traj_parcel *rest = parcel_at(block->memory, block, p->first + count);
    rest->bytes = p->bytes - kept;
    rest->count = p->count - count;
    rest->session = p->session;
    rest->next = p->next;
    memcpy(corral_traj_parcel_records(rest), corral_traj_parcel_records(p) + kept, rest->bytes);
    *corral_traj_parcel_header(rest) = (struct corral_traj_batch){
        .magic = CORRAL_TRAJ_BATCH_MAGIC, .protocol = CORRAL_TRAJ_PROTOCOL, .first = rest->first};
    p->bytes = kept;
    p->count = count;
    p->next = rest;
    r->tail = r->tail == p ? rest : r->tail;
    return CORRAL_OK;
}
