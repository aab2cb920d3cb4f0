#include "tests/check.h"
#include "transport/weights/delta/internal.h"

#include "base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD 0xA5

static const uint32_t sizes[] = {1, 2, 4, 8};

struct pair {
    struct corral_delta_part part;
    uint8_t *base, *next, *delta;
    size_t bytes, room, delta_bytes;
};

static void drop(struct pair *p)
{
    free(p->base);
    free(p->next);
    free(p->delta);
}

static struct corral_delta_part part_of(uint32_t element_bytes, uint64_t elements)
{
    return (struct corral_delta_part){.element_bytes = element_bytes,
                                      .first = 3,
                                      .elements = elements,
                                      .total = elements + 9,
                                      .base = {7, {11, 12}},
                                      .next = {8, {21, 22}}};
}

/* Exactly as large as needed, so that a sanitizer sees a byte too many. */
static struct pair make(uint32_t element_bytes, uint64_t elements, struct corral_rng *rng)
{
    struct pair p = {.part = part_of(element_bytes, elements), .bytes = elements * element_bytes};
    p.room = corral_delta_room(&p.part);
    p.base = malloc(p.bytes);
    p.next = malloc(p.bytes);
    p.delta = malloc(p.room);
    assert_true(p.base && p.next && p.delta);
    for (size_t i = 0; i < p.bytes; i++) {
        p.base[i] = (uint8_t)corral_rng_next(rng);
    }
    memcpy(p.next, p.base, p.bytes);
    return p;
}

static void change(struct pair *p, uint64_t element, struct corral_rng *rng)
{
    uint8_t *at = p->next + element * p->part.element_bytes;
    at[corral_rng_below(rng, p->part.element_bytes)] ^= (uint8_t)(1 + corral_rng_below(rng, 255));
}

/* A fraction of all, or all of some stretches, or both. */
static void change_some(struct pair *p, struct corral_rng *rng)
{
    static const double fractions[] = {0, 0.0001, 0.002, 0.01, 0.05, 0.2, 0.6, 1};
    double f = fractions[corral_rng_below(rng, CORRAL_COUNT_OF(fractions))];
    for (uint64_t i = 0; i < p->part.elements; i++) {
        if (corral_rng_uniform(rng) < f) {
            change(p, i, rng);
        }
    }
    for (uint64_t runs = corral_rng_below(rng, 4); runs > 0; runs--) {
        uint64_t first = corral_rng_below(rng, p->part.elements);
        uint64_t count = 1 + corral_rng_below(rng, CORRAL_MIN(p->part.elements - first, 3000u));
        for (uint64_t i = first; i < first + count; i++) {
            change(p, i, rng);
        }
    }
}

static void encode(struct pair *p, const struct corral_delta_kernels *k, struct corral_delta_stats *stats)
{
    struct corral_error err = {0};
    check_ok(corral_delta_encode_with(k, &p->part, p->base, p->next, p->delta, p->room, &p->delta_bytes,
                                      stats, &err));
}

/* The sum to go with bytes that the test has changed: what a peer that means harm would send. */
static void sign(uint8_t *delta, size_t bytes)
{
    struct corral_digest sum = corral_digest_of(delta, bytes - CORRAL_DELTA_TRAILER_BYTES);
    memcpy(delta + bytes - 16, &sum.lo, 8);
    memcpy(delta + bytes - 8, &sum.hi, 8);
}

/* ---- a second encoder, written from the specification and nothing else ---- */

static size_t naive_index(uint8_t *out, int kind, const uint8_t *changed, uint32_t count)
{
    size_t at = 0;
    if (kind == CORRAL_DELTA_INDEX8) {
        for (uint32_t g = 0; g * 256 < count; g++) {
            uint32_t sum = 0;
            for (uint32_t i = g * 256; i < count && i < g * 256 + 256; i++) {
                sum += changed[i];
            }
            out[at++] = (uint8_t)sum;
        }
    }
    if (kind == CORRAL_DELTA_BITMAP) {
        memset(out, 0, (count + 7) / 8);
        at = (count + 7) / 8;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (kind == CORRAL_DELTA_BITMAP && changed[i]) {
            out[i / 8] |= (uint8_t)(1 << i % 8);
        }
        if (kind == CORRAL_DELTA_INDEX8 && changed[i]) {
            out[at++] = (uint8_t)(i % 256);
        }
        if (kind == CORRAL_DELTA_INDEX16 && changed[i]) {
            out[at++] = (uint8_t)i;
            out[at++] = (uint8_t)(i >> 8);
        }
    }
    return at;
}

/* One block in one kind; returns its bytes, or SIZE_MAX when the kind cannot say it. */
static size_t naive_block(uint8_t *out, int kind, const uint8_t *changed, const uint8_t *next, uint32_t count,
                          uint32_t e)
{
    for (uint32_t g = 0; kind == CORRAL_DELTA_INDEX8 && (g + 1) * 256 <= count; g++) {
        if (!memchr(changed + g * 256, 0, 256)) {
            return SIZE_MAX;
        }
    }
    size_t at = kind == CORRAL_DELTA_DENSE ? 0 : naive_index(out, kind, changed, count);
    for (uint32_t i = 0; i < count; i++) {
        if (changed[i] || kind == CORRAL_DELTA_DENSE) {
            memcpy(out + at, next + (size_t)i * e, e);
            at += e;
        }
    }
    return at;
}

static size_t naive_encode(const struct pair *p, uint8_t *out)
{
    const uint32_t e = p->part.element_bytes;
    uint64_t blocks = (p->part.elements + 8191) / 8192;
    size_t at = 96 + 4 * blocks, start = at;
    static uint8_t candidate[5][8192 * 12];
    for (uint64_t b = 0; b < blocks; b++) {
        uint32_t count = (uint32_t)CORRAL_MIN(p->part.elements - b * 8192, 8192u), sum = 0;
        static uint8_t changed[8192];
        for (uint32_t i = 0; i < count; i++) {
            size_t place = (b * 8192 + i) * e;
            changed[i] = memcmp(p->base + place, p->next + place, e) != 0;
            sum += changed[i];
        }
        uint32_t kind = 0;
        size_t least = 0;
        for (uint32_t k = 1; k < 5 && sum > 0; k++) {
            size_t bytes = naive_block(candidate[k], (int)k, changed, p->next + b * 8192 * e, count, e);
            if (kind == 0 || bytes < least) {
                kind = k;
                least = bytes;
            }
        }
        memcpy(out + at, candidate[kind], least);
        at += least;
        uint32_t entry = kind << 28 | (kind == 4 ? count : sum);
        memcpy(out + 96 + 4 * b, &entry, 4);
    }
    memcpy(out, "CWD1", 4);
    uint64_t field[10] = {p->part.base.version,  p->part.base.digest.lo, p->part.base.digest.hi,
                          p->part.next.version,  p->part.next.digest.lo, p->part.next.digest.hi,
                          p->part.first,         p->part.elements,       p->part.total,
                          (uint64_t)(at - start)};
    memcpy(out + 4, &e, 4);
    memcpy(out + 8, field, sizeof field);
    memcpy(out + 88, (uint32_t[]){8192, 0}, 8);
    sign(out, at + 16);
    return at + 16;
}

/* ---- tests ---- */

static uint64_t some_length(struct corral_rng *rng)
{
    static const uint64_t near[] = {1, 63, 64, 65, 255, 256, 257, 8191, 8192, 8193, 16384};
    return corral_rng_below(rng, 2) ? near[corral_rng_below(rng, CORRAL_COUNT_OF(near))]
                                    : 1 + corral_rng_below(rng, 40000);
}

static void all_kernels_write_the_bytes_of_the_specification(void **state)
{
    (void)state;
    const struct corral_delta_kernels *all[DELTA_KERNELS_MAX];
    uint32_t kernels = corral_delta_kernels_all(all);
    struct corral_delta_stats seen = {0};
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        struct pair p = make(sizes[seed % 4], some_length(&rng), &rng);
        change_some(&p, &rng);
        uint8_t *expected = malloc(p.room);
        assert_non_null(expected);
        size_t bytes = naive_encode(&p, expected);
        for (uint32_t k = 0; k < kernels; k++) {
            struct corral_delta_stats stats;
            encode(&p, all[k], &stats);
            if (p.delta_bytes != bytes || memcmp(p.delta, expected, bytes) != 0) {
                fail_msg("seed %llu, kernels %s: other bytes", (unsigned long long)seed, all[k]->name);
            }
            for (uint32_t i = 0; i < CORRAL_DELTA_KINDS; i++) {
                seen.blocks[i] += stats.blocks[i];
            }
        }
        free(expected);
        drop(&p);
    }
    for (uint32_t i = 0; i < CORRAL_DELTA_KINDS; i++) {
        assert_true(seen.blocks[i] > 0);
    }
}

static void applying_gives_the_next_version_bit_by_bit(void **state)
{
    (void)state;
    struct corral_error err = {0};
    const struct corral_delta_kernels *all[DELTA_KERNELS_MAX];
    uint32_t kernels = corral_delta_kernels_all(all);
    for (uint64_t seed = 1000; seed < 1400; seed++) {
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        struct pair p = make(sizes[seed % 4], some_length(&rng), &rng);
        change_some(&p, &rng);
        encode(&p, corral_delta_kernels(), NULL);
        /* A buffer of exactly its size: vectors must not read beyond it. */
        uint8_t *tight = malloc(p.delta_bytes), *to = malloc(p.bytes + 2);
        assert_true(tight && to);
        memcpy(tight, p.delta, p.delta_bytes);
        struct corral_delta_part holds = p.part;
        holds.next = (struct corral_delta_version){0};
        for (uint32_t k = 0; k < 2 * kernels; k++) {
            memset(to, GUARD, p.bytes + 2);
            const void *base = p.base;
            if (k % 2 == 0) { /* in place */
                memcpy(to + 1, p.base, p.bytes);
                base = to + 1;
            }
            check_ok(corral_delta_apply_with(all[k / 2], &holds, tight, p.delta_bytes, base, to + 1, &err));
            assert_memory_equal(to + 1, p.next, p.bytes);
            assert_true(to[0] == GUARD && to[p.bytes + 1] == GUARD);
        }
        free(tight);
        free(to);
        drop(&p);
    }
}

static void keeps_nan_payloads_and_minus_zero(void **state)
{
    (void)state;
    static const uint16_t before[8] = {0x0000, 0x7FC0, 0x7F80, 0x7F81, 0x8000, 0xFFC0, 1, 0x3F80};
    static const uint16_t after[8] = {0x8000, 0x7FC1, 0x7F81, 0x7F80, 0x0000, 0xFFFF, 0x8001, 0x3F80};
    uint16_t to[8];
    uint8_t delta[256];
    size_t bytes;
    struct corral_error err = {0};
    struct corral_delta_stats stats;
    struct corral_delta_part part = part_of(2, 8);
    check_ok(corral_delta_encode(&part, before, after, delta, sizeof delta, &bytes, &stats, &err));
    assert_int_equal(stats.changed, 7);
    check_ok(corral_delta_apply(&part, delta, bytes, before, to, &err));
    assert_memory_equal(to, after, sizeof to);
}

static void fits_into_the_room_it_names_and_never_writes_beyond(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (uint32_t i = 0; i < 4; i++) {
        struct pair p = make(sizes[i], 20000, &rng);
        change_some(&p, &rng);
        for (uint64_t k = 0; k < 200; k++) {
            change(&p, corral_rng_below(&rng, 20000), &rng);
        }
        encode(&p, corral_delta_kernels(), NULL);
        size_t needed = p.delta_bytes, got = 12345;
        uint8_t *exact = malloc(needed);
        assert_non_null(exact);
        check_ok(corral_delta_encode(&p.part, p.base, p.next, exact, needed, &got, NULL, &err));
        assert_int_equal(got, needed);
        assert_memory_equal(exact, p.delta, needed);
        free(exact);
        got = 12345;
        for (size_t room = 0; room < needed; room += 1 + room / 50) {
            exact = malloc(room + 1);
            assert_non_null(exact);
            exact[room] = GUARD;
            check_status(corral_delta_encode(&p.part, p.base, p.next, exact, room, &got, NULL, &err),
                         CORRAL_AGAIN);
            assert_int_equal(got, 12345);
            assert_int_equal(exact[room], GUARD);
            free(exact);
        }
        drop(&p);
    }
}

static void one_percent_of_bf16_takes_at_most_400_mb_of_a_9b_model(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 6);
    struct pair p = make(2, 1u << 20, &rng);
    uint64_t changed = 0;
    for (uint64_t i = 0; i < p.part.elements; i++) {
        if (corral_rng_uniform(&rng) < 0.01) {
            change(&p, i, &rng);
            changed++;
        }
    }
    struct corral_delta_stats stats;
    encode(&p, corral_delta_kernels(), &stats);
    assert_int_equal(stats.changed, changed);
    assert_true((double)p.delta_bytes / (double)p.bytes * 18e9 < 400e6);
    drop(&p);
}

static struct pair example(uint32_t element_bytes, struct corral_rng *rng)
{
    struct pair p = make(element_bytes, 5 * 8192 + 77, rng);
    for (uint64_t i = 0; i < 20; i++) { /* u16 */
        change(&p, 8192 + 100 * i, rng);
    }
    for (uint64_t i = 0; i < 300; i++) { /* u8 */
        change(&p, 2 * 8192 + 27 * i, rng);
    }
    for (uint64_t i = 0; i < 4000; i++) { /* bitmap */
        change(&p, 3 * 8192 + 2 * i, rng);
    }
    for (uint64_t i = 0; i < 8192; i++) { /* dense */
        p.next[(4 * 8192 + i) * element_bytes] ^= 1;
    }
    change(&p, 5 * 8192 + 76, rng);
    encode(&p, corral_delta_kernels(), NULL);
    return p;
}

static void refuses_every_truncation_and_every_flipped_byte(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 7);
    struct pair p = example(1, &rng);
    check_ok(corral_delta_check(&p.part, p.delta, p.delta_bytes, &err));
    uint8_t *copy = malloc(p.bytes);
    assert_non_null(copy);
    memcpy(copy, p.base, p.bytes);
    for (size_t bytes = 0; bytes < p.delta_bytes; bytes += bytes < 300 ? 1 : 37) {
        check_status(corral_delta_apply(&p.part, p.delta, bytes, copy, copy, &err), CORRAL_PROTOCOL);
    }
    for (size_t i = 0; i < p.delta_bytes; i++) {
        uint8_t was = p.delta[i];
        p.delta[i] ^= (uint8_t)(1 + corral_rng_below(&rng, 255));
        check_status(corral_delta_apply(&p.part, p.delta, p.delta_bytes, copy, copy, &err), CORRAL_PROTOCOL);
        p.delta[i] = was;
    }
    assert_memory_equal(copy, p.base, p.bytes);
    free(copy);
    drop(&p);
}

/* With the checksum made right again: what is left is checked by form, and an accepted one stays inside the part. */
static void forged_bytes_are_refused_or_stay_inside(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 8);
    struct pair p = example(2, &rng);
    uint8_t *to = malloc(p.bytes);
    assert_non_null(to);
    uint32_t refused = 0, taken = 0;
    for (size_t i = 0; i < p.delta_bytes - 16; i += i < 200 ? 1 : 7) {
        uint8_t was = p.delta[i];
        p.delta[i] ^= (uint8_t)(1 + corral_rng_below(&rng, 255));
        sign(p.delta, p.delta_bytes);
        memcpy(to, p.base, p.bytes);
        if (corral_delta_apply(&p.part, p.delta, p.delta_bytes, to, to, &err) == CORRAL_OK) {
            taken++;
        } else {
            refused++;
            assert_memory_equal(to, p.base, p.bytes);
        }
        p.delta[i] = was;
    }
    assert_true(refused > 100 && taken > 100);
    free(to);
    drop(&p);
}

struct forgery {
    const char *what;
    size_t at; /* in the delta; the payload's place is added where it is above 96 */
    uint32_t value, bytes;
};

static void refuses_each_broken_rule(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint8_t base[600] = {0}, next[600] = {0}, to[600], delta[1024];
    next[5] = next[6] = next[300] = next[599] = 1;
    struct corral_delta_part part = part_of(1, 600);
    size_t bytes;
    check_ok(corral_delta_encode(&part, base, next, delta, sizeof delta, &bytes, NULL, &err));
    /* One block of u8 indices: 3 counts, 4 indices, 4 values after a table of one entry. */
    assert_int_equal(bytes, 96 + 4 + 3 + 4 + 4 + 16);
    const struct forgery forgeries[] = {
        {"count of a group", 100, 3, 1},
        {"index beyond the end", 106, 88, 1},
        {"indices out of order", 104, 5, 1},
        {"more changes than elements", 96, 2u << 28 | 601, 4},
        {"no changes", 96, 2u << 28, 4},
        {"an empty block with a count", 96, 4, 4},
        {"unknown kind", 96, 5u << 28 | 4, 4},
        {"a dense block of some", 96, 4u << 28 | 4, 4},
        {"payload that no block owns", 96, 0, 4},
        {"a bitmap with other bits", 96, 3u << 28 | 4, 4},
        {"u16 indices out of order", 96, 1u << 28 | 3, 4},
        {"payload length", 80, 8, 1},
        {"elements", 64, 601, 2},
        {"element size", 4, 3, 4},
        {"block size", 88, 4096, 4},
        {"reserved", 92, 1, 4},
        {"next not above base", 32, 7, 1},
        {"base 0", 8, 0, 1},
        {"beyond the total", 72, 602, 2},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(forgeries); i++) {
        const struct forgery *f = &forgeries[i];
        uint8_t forged[1024];
        memcpy(forged, delta, bytes);
        memcpy(forged + f->at, &f->value, f->bytes);
        sign(forged, bytes);
        memcpy(to, base, sizeof to);
        if (corral_delta_apply(&part, forged, bytes, to, to, &err) != CORRAL_PROTOCOL) {
            fail_msg("%s was not refused", f->what);
        }
        assert_memory_equal(to, base, sizeof to);
    }
}

static void another_base_is_a_state_error_that_names_both_versions(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 9);
    struct pair p = example(4, &rng);
    struct corral_delta_part holds = p.part;
    holds.base.version = 6;
    check_status(corral_delta_check(&holds, p.delta, p.delta_bytes, &err), CORRAL_STATE);
    assert_non_null(strstr(err.text, "version 7"));
    assert_non_null(strstr(err.text, "version 6"));
    holds = p.part;
    holds.base.digest.hi ^= 1;
    check_status(corral_delta_apply(&holds, p.delta, p.delta_bytes, p.base, p.base, &err), CORRAL_STATE);
    holds = p.part;
    holds.next.version = 9;
    check_status(corral_delta_check(&holds, p.delta, p.delta_bytes, &err), CORRAL_STATE);
    holds = p.part;
    holds.first = 4;
    check_status(corral_delta_check(&holds, p.delta, p.delta_bytes, &err), CORRAL_PROTOCOL);
    struct corral_delta_part seen;
    check_ok(corral_delta_peek(p.delta, p.delta_bytes, &seen, &err));
    assert_int_equal(seen.next.version, 8);
    assert_true(corral_digest_equal(seen.next.digest, p.part.next.digest));
    drop(&p);
}

static void refuses_to_encode_what_is_not_a_part(void **state)
{
    (void)state;
    struct corral_error err = {0};
    uint8_t byte[8] = {0}, out[256];
    size_t bytes;
    struct corral_delta_part bad[6];
    for (uint32_t i = 0; i < 6; i++) {
        bad[i] = part_of(2, 4);
    }
    bad[0].element_bytes = 3;
    bad[1].elements = 0;
    bad[2].total = 6;
    bad[3].next.version = 7;
    bad[4].base.version = 0;
    bad[5].total = UINT64_MAX;
    for (uint32_t i = 0; i < 6; i++) {
        check_status(corral_delta_encode(&bad[i], byte, byte, out, sizeof out, &bytes, NULL, &err),
                     CORRAL_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_kernels_write_the_bytes_of_the_specification),
        cmocka_unit_test(applying_gives_the_next_version_bit_by_bit),
        cmocka_unit_test(keeps_nan_payloads_and_minus_zero),
        cmocka_unit_test(fits_into_the_room_it_names_and_never_writes_beyond),
        cmocka_unit_test(one_percent_of_bf16_takes_at_most_400_mb_of_a_9b_model),
        cmocka_unit_test(refuses_every_truncation_and_every_flipped_byte),
        cmocka_unit_test(forged_bytes_are_refused_or_stay_inside),
        cmocka_unit_test(refuses_each_broken_rule),
        cmocka_unit_test(another_base_is_a_state_error_that_names_both_versions),
        cmocka_unit_test(refuses_to_encode_what_is_not_a_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
