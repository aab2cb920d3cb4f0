/* What a side does when the other one's bytes are wrong: an error or nothing, never an access outside of the ring. */
#include "transport/trajectory/ring/test_ring.h"

#include <stdlib.h>
#include <unistd.h>

#define BYTES CORRAL_RING_BYTES_MIN
#define MOST 2000u

static void check_inside(const struct corral_ring *r, const struct corral_ring_item *item)
{
    const uint8_t *from = item->data;
    assert_true(from >= r->data && item->bytes <= r->capacity / 2 &&
                from + item->bytes <= r->data + 2 * r->capacity);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < item->bytes; i++) {
        sum += from[i];
    }
    __asm__ volatile("" : : "r"(sum));
}

static bool is_expected(enum corral_status status)
{
    return status == CORRAL_OK || status == CORRAL_AGAIN || status == CORRAL_PROTOCOL ||
           status == CORRAL_INVALID || status == CORRAL_TIMEOUT || status == CORRAL_PEER;
}

/* Everything both sides do, a few times. Returns whether somebody noticed. */
static bool exercise(struct test_pair *p, int times)
{
    bool noticed = false;
    uint64_t held[4];
    uint32_t count = 0;
    for (int i = 0; i < times; i++) {
        struct corral_ring_item item;
        enum corral_status status = test_put(p->producer, (uint64_t)i, MOST);
        assert_true(is_expected(status));
        noticed |= status == CORRAL_PROTOCOL;
        (void)corral_ring_arm(p->producer, MOST);
        (void)corral_ring_arm(p->consumer, 0);
        assert_true(corral_ring_unreleased(p->producer) <= p->producer->number);
        status = corral_ring_next(p->consumer, &item, NULL);
        assert_true(is_expected(status));
        noticed |= status == CORRAL_PROTOCOL;
        if (status == CORRAL_OK) {
            check_inside(p->consumer, &item);
            held[count++] = item.position;
        }
        if (count == 4 || (count > 0 && i % 3 == 0)) {
            uint32_t k = (uint32_t)i % count;
            status = corral_ring_release(p->consumer, held[k], NULL);
            assert_true(is_expected(status));
            noticed |= status == CORRAL_PROTOCOL;
            held[k] = held[--count];
        }
        corral_ring_disarm(p->producer);
        corral_ring_disarm(p->consumer);
    }
    return noticed;
}

/* Both sides close and come again. */
static enum corral_status come_again(struct test_pair *p)
{
    corral_ring_close(p->producer);
    corral_ring_close(p->consumer);
    p->producer = p->consumer = NULL;
    enum corral_status status = corral_ring_attach(&p->producer, CORRAL_RING_PRODUCER, p->fd, NULL);
    return status != CORRAL_OK ? status : corral_ring_attach(&p->consumer, CORRAL_RING_CONSUMER, p->fd, NULL);
}

static void flip(struct test_pair *p, uint64_t word, uint64_t bits)
{
    uint64_t *control = (uint64_t *)p->producer->control;
    control[word] ^= bits;
}

/* Whichever bit of the control page: what both sides do next is right or an error; and so is what their successors do. */
static void any_bit_of_the_control_page_may_flip(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    for (uint64_t word = 0; word < RING_CONTROL_BYTES / 8; word++) {
        bool used =
            word <= 5 || word == 16 || word == 17 || word == 32 || word == 33 || word == 48 || word == 64;
        for (uint64_t bit = 0; bit < 64 + 3; bit++) {
            if (!used && bit % 29 != 0) {
                continue; /* a few of those that mean nothing */
            }
            struct test_pair p;
            test_pair_open(&p, BYTES);
            (void)exercise(&p, 30);
            flip(&p, word, bit < 64 ? UINT64_C(1) << bit : corral_rng_next(&rng));
            (void)exercise(&p, 60);
            enum corral_status status = come_again(&p);
            assert_true(status == CORRAL_OK || status == CORRAL_PROTOCOL || status == CORRAL_EXISTS ||
                        status == CORRAL_UNSUPPORTED);
            if (status == CORRAL_OK) {
                (void)exercise(&p, 30);
            }
            test_pair_close(&p);
        }
    }
}

/* Harm that is not harmless: a tail that moved by itself would let the producer write over records. */
static void a_flipped_tail_is_noticed(void **state)
{
    (void)state;
    for (uint64_t bit = 0; bit < 64; bit++) {
        struct test_pair p;
        test_pair_open(&p, BYTES);
        while (test_put(p.producer, 1, MOST) == CORRAL_OK) {
        }
        flip(&p, 32, UINT64_C(1) << bit);
        assert_int_equal(test_put(p.producer, 1, MOST), CORRAL_PROTOCOL);
        assert_int_equal(come_again(&p), CORRAL_PROTOCOL);
        test_pair_close(&p);
    }
}

/* No single flipped bit of a header makes a record appear, vanish, or change its length. */
static void any_flipped_bit_of_a_header_is_noticed(void **state)
{
    (void)state;
    for (uint64_t bit = 0; bit < 5 * 64; bit++) {
        for (int open = 0; open < 2; open++) {
            struct test_pair p;
            struct corral_ring_item item;
            uint64_t id;
            test_pair_open(&p, BYTES);
            assert_int_equal(test_put(p.producer, 1, MOST), CORRAL_OK);
            uint64_t offset = open ? p.producer->offset : 0;
            ((uint64_t *)(p.producer->data + offset))[bit / 64] ^= UINT64_C(1) << bit % 64;
            enum corral_status status = corral_ring_next(p.consumer, &item, NULL);
            if (open) {
                assert_int_equal(status, CORRAL_OK);
                assert_true(test_record_whole(&item, &id, MOST) && id == 1);
                status = corral_ring_next(p.consumer, &item, NULL);
                assert_int_equal(status, bit < 64 ? CORRAL_PROTOCOL : CORRAL_AGAIN);
                /* length and seal of the open header mean nothing yet; the rest is noticed by a successor */
                assert_int_equal(come_again(&p), bit < 3 * 64 ? CORRAL_PROTOCOL : CORRAL_OK);
            } else {
                /* the mark counts only while the header is open */
                assert_int_equal(status, bit / 64 == 2 ? CORRAL_OK : CORRAL_PROTOCOL);
            }
            test_pair_close(&p);
        }
    }
}

static void garbage_anywhere_is_survived(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 6);
    uint32_t noticed = 0;
    for (int round = 0; round < 1500; round++) {
        struct test_pair p;
        test_pair_open(&p, BYTES);
        (void)exercise(&p, (int)corral_rng_below(&rng, 200));
        for (uint64_t i = corral_rng_below(&rng, 40); i > 0; i--) {
            uint64_t word = corral_rng_below(&rng, (BYTES + 600) / 8);
            uint64_t *memory = word < BYTES / 8 ? (uint64_t *)p.producer->data + word
                                                : (uint64_t *)p.producer->control + (word - BYTES / 8);
            /* Random words, and words that could be meant. */
            uint64_t positions[] = {corral_rng_next(&rng), p.producer->position | RING_COMMITTED,
                                    p.consumer->position | RING_RELEASED, p.consumer->tail | RING_OPEN,
                                    UINT64_MAX};
            *memory = positions[corral_rng_below(&rng, CORRAL_COUNT_OF(positions))];
        }
        if (round % 2) {
            struct corral_ring_item item;
            uint64_t *header = (uint64_t *)(p.consumer->data + p.consumer->offset);
            header[corral_rng_below(&rng, 5)] = corral_rng_next(&rng);
            (void)corral_ring_next(p.consumer, &item, NULL);
        }
        noticed += exercise(&p, 200);
        if (come_again(&p) == CORRAL_OK) {
            noticed += exercise(&p, 50);
        }
        test_pair_close(&p);
    }
    assert_true(noticed > 100);
}

/* A chain of sound headers without an end, as only a ring of the wrong key's owner could write it. */
static void a_chain_without_an_end_ends_the_walk(void **state)
{
    (void)state;
    struct test_pair p;
    test_pair_open(&p, BYTES);
    for (uint64_t position = 0; position < BYTES; position += RING_HEADER_BYTES) {
        struct ring_header *h = ring_header_at(p.producer, position);
        uint64_t number = position / RING_HEADER_BYTES;
        h->number = number;
        h->bytes = 0;
        h->seal = ring_check(p.producer->key, position, number, 0);
        h->stamp = position | RING_COMMITTED;
    }
    assert_int_equal(come_again(&p), CORRAL_PROTOCOL);
    test_pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bit_of_the_control_page_may_flip),
        cmocka_unit_test(a_flipped_tail_is_noticed),
        cmocka_unit_test(any_flipped_bit_of_a_header_is_noticed),
        cmocka_unit_test(garbage_anywhere_is_survived),
        cmocka_unit_test(a_chain_without_an_end_ends_the_walk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
