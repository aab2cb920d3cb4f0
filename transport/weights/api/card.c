#include "transport/weights/api/card.h"
#include "transport/weights/api/layout_bytes.h"
#include "transport/weights/link/link.h"
#include "transport/weights/wire.h"

#include <corral/weights.h>
#include <inttypes.h>
#include <string.h>

#define MAGIC 0x31435743u /* "CWC1" */
#define HEADER_BYTES 40u  /* then name, replica, endpoint, layout */
#define LABEL "corral weights card"

static void sign(const uint8_t *data, uint64_t bytes, const uint8_t secret[32], uint8_t out[WIRE_MAC_BYTES])
{
    uint8_t signed_bytes[sizeof LABEL - 1 + 32];
    memcpy(signed_bytes, LABEL, sizeof LABEL - 1);
    corral_sha256(data, bytes, signed_bytes + sizeof LABEL - 1);
    corral_hmac_sha256(secret, 32, signed_bytes, sizeof signed_bytes, out);
}

uint64_t corral_card_bytes(const struct corral_card *card)
{
    return HEADER_BYTES + strlen(card->name) + strlen(card->replica) + strlen(card->endpoint) +
           corral_layout_saved_bytes(card->layout) + WIRE_MAC_BYTES;
}

static uint8_t *put_text(uint8_t *at, uint8_t *length, const char *text)
{
    size_t bytes = strlen(text);
    *length = (uint8_t)bytes;
    memcpy(at, text, bytes);
    return at + bytes;
}

void corral_card_encode(const struct corral_card *card, const uint8_t secret[32], uint8_t *out)
{
    uint64_t bytes = corral_card_bytes(card) - WIRE_MAC_BYTES;
    uint64_t layout_bytes = corral_layout_saved_bytes(card->layout);
    memset(out, 0, HEADER_BYTES);
    wire_put_u32(out, MAGIC);
    wire_put_u32(out + 4, card->kind);
    wire_put_u64(out + 8, card->run);
    wire_put_u64(out + 16, card->bucket_bytes);
    wire_put_u32(out + 24, card->rank);
    wire_put_u64(out + 32, layout_bytes);
    uint8_t *at = put_text(out + HEADER_BYTES, &out[28], card->name);
    at = put_text(at, &out[29], card->replica);
    at = put_text(at, &out[30], card->endpoint);
    corral_layout_save(card->layout, at);
    sign(out, bytes, secret, out + bytes);
}

/* Printable ASCII: it goes into messages and logs. */
static bool get_text(const uint8_t *from, size_t length, char *out, size_t room)
{
    bool good = length < room;
    for (size_t i = 0; good && i < length; i++) {
        good = from[i] > ' ' && from[i] < 127;
    }
    if (good) {
        memcpy(out, from, length);
        out[length] = '\0';
    }
    return good;
}

static enum corral_status decode_texts(struct corral_card *card, const uint8_t *data,
                                       struct corral_error *err)
{
    const uint8_t *at = data + HEADER_BYTES;
    bool good = get_text(at, data[28], card->name, sizeof card->name) &&
                get_text(at + data[28], data[29], card->replica, sizeof card->replica) &&
                get_text(at + data[28] + data[29], data[30], card->endpoint, sizeof card->endpoint);
    return good ? CORRAL_OK
                : corral_fail(err, CORRAL_PROTOCOL,
                              "weight card: its name, replica or endpoint is too long or not printable");
}

static enum corral_status check_kind(const struct corral_card *card, enum corral_card_kind kind, uint64_t run,
                                     struct corral_error *err)
{
    if (card->kind != kind) {
        return corral_fail(err, CORRAL_INVALID, "weight card: a %s's card was expected",
                           kind == CORRAL_CARD_TRAINER ? "trainer" : "subscriber");
    }
    if (card->run != run) {
        return corral_fail(err, CORRAL_INVALID, "weight card: of run %" PRIu64 ", this is run %" PRIu64,
                           card->run, run);
    }
    if (kind == CORRAL_CARD_TRAINER
            ? card->bucket_bytes < CORRAL_BUCKET_BYTES_MIN || card->bucket_bytes > CORRAL_BUCKET_BYTES_MAX ||
                  card->bucket_bytes % 4096 != 0
            : card->name[0] == '\0' || card->endpoint[0] == '\0') {
        return corral_fail(err, CORRAL_PROTOCOL, "weight card: it lacks what a %s's card has",
                           kind == CORRAL_CARD_TRAINER ? "trainer" : "subscriber");
    }
    return CORRAL_OK;
}

enum corral_status corral_card_decode(struct corral_card *out, const void *data, uint64_t bytes,
                                      enum corral_card_kind kind, uint64_t run, const uint8_t secret[32],
                                      struct corral_error *err)
{
    const uint8_t *from = data;
    uint8_t mac[WIRE_MAC_BYTES];
    if (bytes < HEADER_BYTES + WIRE_MAC_BYTES || bytes > CORRAL_WEIGHTS_CARD_MAX ||
        wire_get_u32(from) != MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "these %" PRIu64 " bytes are not a weight card", bytes);
    }
    bytes -= WIRE_MAC_BYTES;
    sign(from, bytes, secret, mac);
    if (!corral_bytes_equal(mac, from + bytes, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "weight card: damaged, or signed with another secret than this run's");
    }
    struct corral_card card = {.kind = (enum corral_card_kind)wire_get_u32(from + 4),
                               .run = wire_get_u64(from + 8),
                               .bucket_bytes = wire_get_u64(from + 16),
                               .rank = wire_get_u32(from + 24)};
    uint64_t texts = (uint64_t)from[28] + from[29] + from[30], layout_bytes = wire_get_u64(from + 32);
    if (from[31] != 0 || layout_bytes > bytes || HEADER_BYTES + texts + layout_bytes != bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "weight card: its lengths do not add up");
    }
    CORRAL_TRY(decode_texts(&card, from, err));
    CORRAL_TRY(check_kind(&card, kind, run, err));
    CORRAL_TRY(corral_layout_load(&card.layout, from + HEADER_BYTES + texts, layout_bytes, err));
    if (kind == CORRAL_CARD_SUBSCRIBER && card.rank >= card.layout->ranks) {
        uint32_t ranks = card.layout->ranks;
        corral_card_clear(&card);
        return corral_fail(err, CORRAL_PROTOCOL, "weight card: rank %u of %u", card.rank, ranks);
    }
    *out = card;
    return CORRAL_OK;
}

void corral_card_clear(struct corral_card *card)
{
    corral_layout_destroy(card->layout);
    card->layout = NULL;
}
