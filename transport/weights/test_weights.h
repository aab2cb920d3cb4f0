/* What the weight tests share: a version's bytes are derived from its number, so a mix of two cannot pass for either. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_TEST_WEIGHTS_H
#define CORRAL_TRANSPORT_WEIGHTS_TEST_WEIGHTS_H

#include "base/rng.h"
#include "transport/weights/store.h"
#include <stdbool.h>

static const struct corral_digest test_manifest = {.lo = 11, .hi = 22};

static inline void test_fill(uint64_t *words, size_t count, uint64_t version)
{
    for (size_t i = 0; i < count; i++) {
        words[i] = version * UINT64_C(0x9e3779b97f4a7c15) + i;
    }
}

static inline bool test_is_version(const uint64_t *words, size_t count, uint64_t version)
{
    for (size_t i = 0; i < count; i++) {
        if (words[i] != version * UINT64_C(0x9e3779b97f4a7c15) + i) {
            return false;
        }
    }
    return true;
}

#endif
