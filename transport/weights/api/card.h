/* A card: how one side of a push lies in memory, and for a subscriber who it is and where it listens. Signed with the run's secret, so that a card of another run, a damaged one or
 * a forged one is refused before anything in it is believed (docs/spec/weight-card.md). */
#ifndef CORRAL_TRANSPORT_WEIGHTS_API_CARD_H
#define CORRAL_TRANSPORT_WEIGHTS_API_CARD_H

#include "transport/weights/reshard/layout.h"

#define CORRAL_CARD_TEXT_MAX 64      /* name and replica */
#define CORRAL_CARD_ENDPOINT_MAX 128 /* "192.0.2.7:4711" */

enum corral_card_kind { CORRAL_CARD_TRAINER = 1, CORRAL_CARD_SUBSCRIBER = 2 };

struct corral_card {
    enum corral_card_kind kind;
    uint64_t run;
    uint64_t bucket_bytes; /* trainer */
    uint32_t rank;         /* subscriber: below the layout's ranks */
    char name[CORRAL_CARD_TEXT_MAX], replica[CORRAL_CARD_TEXT_MAX], endpoint[CORRAL_CARD_ENDPOINT_MAX];
    struct corral_layout *layout; /* owned after decode, borrowed by encode */
};

uint64_t corral_card_bytes(const struct corral_card *card);
void corral_card_encode(const struct corral_card *card, const uint8_t secret[32], uint8_t *out);
/* CORRAL_PROTOCOL: not a card, damaged, or signed with another secret. CORRAL_INVALID: of another run or kind. */
enum corral_status corral_card_decode(struct corral_card *out, const void *data, uint64_t bytes,
                                      enum corral_card_kind kind, uint64_t run, const uint8_t secret[32],
                                      struct corral_error *err);
void corral_card_clear(struct corral_card *card);

#endif
