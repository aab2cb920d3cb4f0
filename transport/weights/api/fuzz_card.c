/* A saved layout, and a card signed with the right secret around it: whatever is in them, reading ends, and what was read can be written and read again. */
#include "transport/weights/api/card.h"
#include "transport/weights/api/layout_bytes.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const uint8_t secret[32] = "fuzz";

static void again(const struct corral_layout *l)
{
    uint64_t bytes = corral_layout_saved_bytes(l);
    uint8_t *saved = malloc(bytes);
    struct corral_layout *read = NULL;
    if (!saved) {
        abort();
    }
    corral_layout_save(l, saved);
    if (corral_layout_load(&read, saved, bytes, NULL) != CORRAL_OK ||
        !corral_digest_equal(corral_layout_hash(l), corral_layout_hash(read))) {
        abort();
    }
    corral_layout_destroy(read);
    free(saved);
}

static void sign(uint8_t *card, size_t bytes)
{
    uint8_t to_sign[19 + 32];
    memcpy(to_sign, "corral weights card", 19);
    corral_sha256(card, bytes, to_sign + 19);
    corral_hmac_sha256(secret, 32, to_sign, sizeof to_sign, card + bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct corral_layout *l = NULL;
    struct corral_card card;
    if (corral_layout_load(&l, data, bytes, NULL) == CORRAL_OK) {
        again(l);
        corral_layout_destroy(l);
    }
    uint8_t *copy = malloc(bytes + 32);
    if (!copy) {
        return 0;
    }
    memcpy(copy, data, bytes);
    sign(copy, bytes);
    for (int kind = CORRAL_CARD_TRAINER; kind <= CORRAL_CARD_SUBSCRIBER; kind++) {
        if (corral_card_decode(&card, copy, bytes + 32, (enum corral_card_kind)kind, 1, secret, NULL) ==
            CORRAL_OK) {
            again(card.layout);
            corral_card_clear(&card);
        }
    }
    free(copy);
    return 0;
}
