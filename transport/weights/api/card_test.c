#include "tests/check.h"
#include "transport/weights/api/card.h"
#include "transport/weights/api/layout_bytes.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t secret[32] = "a secret of this test", other[32] = "another secret";

static struct corral_layout *make_layout(void)
{
    struct corral_error err;
    struct corral_layout *l;
    uint32_t w, b;
    uint64_t stride[2] = {64, 2};
    struct corral_box box = {.first = {1, 2}, .count = {3, 4}};
    check_ok(corral_layout_create(&l, 2, &err));
    check_ok(corral_layout_add_tensor(l, "model.w", CORRAL_DTYPE_BF16, 2, (uint64_t[]){8, 6}, &w, &err));
    check_ok(corral_layout_add_tensor(l, "scale", CORRAL_DTYPE_F32, 0, NULL, &b, &err));
    check_ok(corral_layout_add_alias(l, "lm_head.w", w, &err));
    check_ok(corral_layout_add_box(l, w, 0, &box, 4096, stride, &err));
    check_ok(corral_layout_add_whole(l, w, 1, 0, &err));
    check_ok(corral_layout_add_whole(l, b, 0, 0, &err));
    return l;
}

static uint8_t *encode(struct corral_card *card, uint64_t *bytes)
{
    *bytes = corral_card_bytes(card);
    uint8_t *out = malloc(*bytes);
    assert_non_null(out);
    corral_card_encode(card, secret, out);
    return out;
}

static struct corral_card subscriber_card(struct corral_layout *l)
{
    return (struct corral_card){.kind = CORRAL_CARD_SUBSCRIBER,
                                .run = 7,
                                .rank = 1,
                                .name = "engine-0.tp1",
                                .replica = "engine-0",
                                .endpoint = "127.0.0.1:4711",
                                .layout = l};
}

static void a_card_says_what_was_written(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_card card = subscriber_card(make_layout()), read;
    uint64_t bytes;
    uint8_t *data = encode(&card, &bytes);
    check_ok(corral_card_decode(&read, data, bytes, CORRAL_CARD_SUBSCRIBER, 7, secret, &err));
    assert_int_equal(read.rank, 1);
    assert_string_equal(read.name, "engine-0.tp1");
    assert_string_equal(read.replica, "engine-0");
    assert_string_equal(read.endpoint, "127.0.0.1:4711");
    assert_true(corral_digest_equal(corral_layout_hash(card.layout), corral_layout_hash(read.layout)));
    assert_int_equal(corral_layout_find(read.layout, "lm_head.w"), 2);
    assert_int_equal(read.layout->tensor[2].alias_of, 0);
    assert_int_equal(read.layout->rank_bytes[0], card.layout->rank_bytes[0]);
    corral_card_clear(&read);
    corral_card_clear(&card);
    free(data);
}

static void refuses_every_damaged_byte_and_every_length(void **state)
{
    (void)state;
    struct corral_card card = subscriber_card(make_layout()), read;
    uint64_t bytes;
    uint8_t *data = encode(&card, &bytes);
    for (uint64_t i = 0; i < bytes; i++) {
        data[i] ^= 0x40;
        check_status(corral_card_decode(&read, data, bytes, CORRAL_CARD_SUBSCRIBER, 7, secret, NULL),
                     CORRAL_PROTOCOL);
        data[i] ^= 0x40;
        check_status(corral_card_decode(&read, data, i, CORRAL_CARD_SUBSCRIBER, 7, secret, NULL),
                     CORRAL_PROTOCOL);
    }
    corral_card_clear(&card);
    free(data);
}

static void refuses_a_card_of_somebody_else(void **state)
{
    (void)state;
    struct corral_card card = subscriber_card(make_layout()), read;
    uint64_t bytes;
    uint8_t *data = encode(&card, &bytes);
    check_status(corral_card_decode(&read, data, bytes, CORRAL_CARD_SUBSCRIBER, 7, other, NULL),
                 CORRAL_PROTOCOL);
    check_status(corral_card_decode(&read, data, bytes, CORRAL_CARD_SUBSCRIBER, 8, secret, NULL),
                 CORRAL_INVALID);
    check_status(corral_card_decode(&read, data, bytes, CORRAL_CARD_TRAINER, 7, secret, NULL),
                 CORRAL_INVALID);
    free(data);
    card.rank = 2; /* of 2 ranks */
    data = encode(&card, &bytes);
    check_status(corral_card_decode(&read, data, bytes, CORRAL_CARD_SUBSCRIBER, 7, secret, NULL),
                 CORRAL_PROTOCOL);
    corral_card_clear(&card);
    free(data);
}

/* Whatever bytes a saved layout has, reading it ends with a layout or an error. */
static void a_saved_layout_with_any_byte_changed_is_read_safely(void **state)
{
    (void)state;
    struct corral_layout *l = make_layout(), *read = NULL;
    uint64_t bytes = corral_layout_saved_bytes(l);
    uint8_t *data = malloc(bytes);
    assert_non_null(data);
    corral_layout_save(l, data);
    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t was = data[i];
        for (unsigned value = 0; value < 256; value += 51) {
            data[i] = (uint8_t)value;
            if (corral_layout_load(&read, data, bytes, NULL) == CORRAL_OK) {
                corral_layout_destroy(read);
            }
        }
        data[i] = was;
        check_status(corral_layout_load(&read, data, i, NULL), CORRAL_PROTOCOL);
    }
    corral_layout_destroy(l);
    free(data);
}

static void ranks_that_know_their_own_part_make_the_whole(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_layout *whole = NULL, *part[2];
    uint32_t t;
    check_ok(corral_layout_create(&whole, 2, &err));
    for (uint32_t r = 0; r < 2; r++) {
        check_ok(corral_layout_create(&part[r], 2, &err));
        check_ok(corral_layout_add_tensor(part[r], "w", CORRAL_DTYPE_F32, 1, (uint64_t[]){10}, &t, &err));
        check_ok(corral_layout_add_alias(part[r], "tied", t, &err));
        check_ok(corral_layout_add_flat(part[r], t, r, 5 * r, 5, 0, &err));
        check_ok(corral_layout_merge(whole, part[r], &err));
    }
    assert_int_equal(whole->tensor_count, 2);
    assert_int_equal(whole->piece_count, 2);
    assert_int_equal(whole->piece[1].box.first[0], 5);
    struct corral_layout *different;
    check_ok(corral_layout_create(&different, 2, &err));
    check_ok(corral_layout_add_tensor(different, "w", CORRAL_DTYPE_BF16, 1, (uint64_t[]){10}, &t, &err));
    check_status(corral_layout_merge(whole, different, NULL), CORRAL_INVALID);
    corral_layout_destroy(different);
    corral_layout_destroy(part[0]);
    corral_layout_destroy(part[1]);
    corral_layout_destroy(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_card_says_what_was_written),
        cmocka_unit_test(refuses_every_damaged_byte_and_every_length),
        cmocka_unit_test(refuses_a_card_of_somebody_else),
        cmocka_unit_test(a_saved_layout_with_any_byte_changed_is_read_safely),
        cmocka_unit_test(ranks_that_know_their_own_part_make_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
