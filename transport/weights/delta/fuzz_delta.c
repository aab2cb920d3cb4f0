/* Any bytes are a delta or one error; what is accepted writes inside the part, in every version of the inner loops the same, and an error leaves the destination as it was. The first byte chooses the part; the checksum is
 * made right, since a fuzzer would never find one. */
#include "transport/weights/delta/internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void *exactly(size_t bytes, int value)
{
    void *p = malloc(bytes + 1);
    if (p == NULL) {
        abort();
    }
    memset(p, value, bytes);
    return p;
}

static void seal(uint8_t *delta, size_t bytes)
{
    if (bytes >= CORRAL_DELTA_TRAILER_BYTES) {
        struct corral_digest sum = corral_digest_of(delta, bytes - CORRAL_DELTA_TRAILER_BYTES);
        memcpy(delta + bytes - 16, &sum.lo, 8);
        memcpy(delta + bytes - 8, &sum.hi, 8);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 2) {
        return 0;
    }
    static const uint64_t lengths[] = {1, 600, 8192, 8192 + 77};
    struct corral_delta_part holds = {
        .element_bytes = 1u << (data[0] & 3), .elements = lengths[data[0] >> 2 & 3], .base = {1, {0, 0}}};
    holds.total = holds.elements;
    size_t size = holds.elements * holds.element_bytes, delta_bytes = bytes - 1;
    uint8_t *delta = exactly(delta_bytes, 0);
    memcpy(delta, data + 1, delta_bytes);
    if (data[0] & 0x80) {
        /* The header that the part wants, so that the fuzzer gets to the blocks at once. */
        struct delta_header h = {.magic = DELTA_MAGIC,
                                 .element_bytes = holds.element_bytes,
                                 .base_version = 1,
                                 .next_version = 2,
                                 .elements = holds.elements,
                                 .total = holds.total,
                                 .block_elements = DELTA_BLOCK};
        size_t around = sizeof h + delta_blocks(holds.elements) * 4 + CORRAL_DELTA_TRAILER_BYTES;
        h.payload_bytes = delta_bytes > around ? delta_bytes - around : 0;
        memcpy(delta, &h, CORRAL_MIN(delta_bytes, sizeof h));
    }
    seal(delta, delta_bytes);
    const struct corral_delta_kernels *all[DELTA_KERNELS_MAX];
    uint32_t kernels = corral_delta_kernels_all(all);
    uint8_t *first = exactly(size, 0x5A), *other = exactly(size, 0x5A);
    struct corral_error err = {0};
    bool taken = corral_delta_apply_with(all[0], &holds, delta, delta_bytes, first, first, &err) == CORRAL_OK;
    for (uint32_t k = 1; k < kernels; k++) {
        memset(other, 0x5A, size);
        bool also =
            corral_delta_apply_with(all[k], &holds, delta, delta_bytes, other, other, &err) == CORRAL_OK;
        if (also != taken || memcmp(first, other, size) != 0) {
            abort();
        }
    }
    memset(other, 0x5A, size);
    if (!taken && (err.text[0] == '\0' || memcmp(first, other, size) != 0)) {
        abort();
    }
    free(delta);
    free(first);
    free(other);
    return 0;
}
