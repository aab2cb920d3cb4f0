#include "base/log.h"
#include "base/text.h"
#include "transport/weights/api/internal.h"
#include "transport/weights/api/layout_bytes.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define STRUCT_BYTES_MAX 4096u

enum corral_status corral_api_take(void *to, uint32_t room, const void *from, const char *what,
                                   struct corral_error *err)
{
    uint32_t size;
    if (!from) {
        return corral_fail(err, CORRAL_INVALID, "%s are missing", what);
    }
    memcpy(&size, from, sizeof size);
    if (size < sizeof size || size > STRUCT_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: size is %u; set it to the struct's sizeof", what, size);
    }
    memset(to, 0, room);
    memcpy(to, from, CORRAL_MIN(size, room));
    return CORRAL_OK;
}

enum corral_status corral_api_give(void *to, const void *from, uint32_t bytes, const char *what,
                                   struct corral_error *err)
{
    uint32_t size;
    memcpy(&size, to, sizeof size);
    if (size < sizeof size || size > STRUCT_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: size is %u; set it to the struct's sizeof", what, size);
    }
    memset((char *)to + sizeof size, 0, size - sizeof size);
    memcpy((char *)to + sizeof size, (const char *)from + sizeof size, CORRAL_MIN(size, bytes) - sizeof size);
    return CORRAL_OK;
}

enum corral_status corral_api_copy_text(char **to, const char *text, struct corral_error *err)
{
    *to = text ? strdup(text) : NULL;
    return text && !*to ? corral_fail(err, CORRAL_NOMEM, "no memory for an option") : CORRAL_OK;
}

void corral_api_quiet(void)
{
#ifdef CORRAL_IN_LIBRARY
    static atomic_flag done = ATOMIC_FLAG_INIT;
    enum corral_log_level level = CORRAL_LOG_ERROR;
    const char *wanted = getenv("CORRAL_WEIGHTS_LOG");
    if (!atomic_flag_test_and_set_explicit(&done, memory_order_relaxed)) {
        bool logs = wanted && corral_log_level_parse(wanted, &level);
        corral_log_configure(level, false, logs ? 2 : -1, "libcorral");
    }
#endif
}

/* ---- identity ---- */

static enum corral_status number_from(const char *name, uint64_t *value, struct corral_error *err)
{
    const char *text = getenv(name);
    if (*value != 0 || !text) {
        return CORRAL_OK;
    }
    return corral_parse_u64(text, value)
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "%s is \"%.40s\", not a number", name, text);
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum corral_status secret_from_environment(uint8_t secret[32], struct corral_error *err)
{
    const char *text = getenv("CORRAL_WEIGHTS_SECRET");
    if (!text) {
        return corral_fail(err, CORRAL_INVALID,
                           "no secret is given, and CORRAL_WEIGHTS_SECRET is not in the environment");
    }
    bool good = strlen(text) == 64;
    for (int i = 0; good && i < 32; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        good = high >= 0 && low >= 0;
        secret[i] = (uint8_t)(high << 4 | low);
    }
    return good ? CORRAL_OK
                : corral_fail(err, CORRAL_INVALID, "CORRAL_WEIGHTS_SECRET is not 64 lower-case hex digits");
}

enum corral_status corral_api_identity(const struct corral_weights_identity *given,
                                       struct corral_push_identity *out, struct corral_error *err)
{
    struct corral_weights_identity id = {.size = sizeof id};
    struct corral_push_identity push = {.run = 0};
    if (given) {
        CORRAL_TRY(corral_api_take(&id, sizeof id, given, "identity", err));
    }
    push.run = id.run;
    push.generation = id.generation;
    CORRAL_TRY(number_from("CORRAL_WEIGHTS_RUN", &push.run, err));
    CORRAL_TRY(number_from("CORRAL_WEIGHTS_GENERATION", &push.generation, err));
    push.group = id.group;
    CORRAL_TRY(number_from("CORRAL_WEIGHTS_GROUP", &push.group, err));
    push.generation = CORRAL_MAX(push.generation, 1u);
    if (id.secret) {
        memcpy(push.secret, id.secret, sizeof push.secret);
    } else {
        CORRAL_TRY(secret_from_environment(push.secret, err));
    }
    *out = push;
    return CORRAL_OK;
}

/* ---- layouts and cards ---- */

enum corral_status corral_api_copy_layout(const struct corral_layout *l, struct corral_layout **out,
                                          struct corral_error *err)
{
    uint64_t bytes = corral_layout_saved_bytes(l);
    CORRAL_AUTO_FREE uint8_t *saved = malloc(bytes);
    if (!saved) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to copy a layout of %u pieces", l->piece_count);
    }
    corral_layout_save(l, saved);
    return corral_layout_load(out, saved, bytes, err);
}

static enum corral_status check_room(const void *out, uint64_t *bytes, uint64_t need, const char *what,
                                     struct corral_error *err)
{
    uint64_t room = out ? *bytes : 0;
    *bytes = need;
    return room >= need
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "%s takes %" PRIu64 " bytes, there is room for %" PRIu64,
                             what, need, room);
}

enum corral_status corral_api_give_card(const struct corral_card *card, const uint8_t secret[32], void *out,
                                        uint64_t *bytes, struct corral_error *err)
{
    uint64_t need = corral_card_bytes(card);
    if (need > CORRAL_WEIGHTS_CARD_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "the layout's %u pieces make a card of %" PRIu64 " bytes; at most %u",
                           card->layout->piece_count, need, CORRAL_WEIGHTS_CARD_MAX);
    }
    CORRAL_TRY(check_room(out, bytes, need, "the card", err));
    corral_card_encode(card, secret, out);
    return CORRAL_OK;
}

/* ---- <corral/weights.h>: layouts ---- */

enum corral_status corral_weights_layout_save(const struct corral_weights_layout *l, void *out,
                                              uint64_t *bytes, struct corral_error *err)
{
    CORRAL_TRY(check_room(out, bytes, corral_layout_saved_bytes(l->l), "the saved layout", err));
    corral_layout_save(l->l, out);
    return CORRAL_OK;
}

enum corral_status corral_weights_layout_merge(struct corral_weights_layout *l, const void *saved,
                                               uint64_t bytes, struct corral_error *err)
{
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = NULL;
    CORRAL_TRY(corral_layout_load(&from, saved, bytes, err));
    return corral_layout_merge(l->l, from, err);
}
