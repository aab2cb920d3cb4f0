/* Many arrays in one allocation. Run the same carve() calls twice: with base NULL to learn the size, then over the block. */
#ifndef CORRAL_MODEL_CARVER_H
#define CORRAL_MODEL_CARVER_H

#include <stddef.h>
#include <stdint.h>

struct corral_carver {
    char *base;
    uint64_t used;
};

/* 64-byte aligned when the block is. */
static inline void *corral_carve(struct corral_carver *c, uint64_t bytes)
{
    void *at = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return at;
}

#endif
