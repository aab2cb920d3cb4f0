/* Every interleaving of the sleep and wake handshake (docs/spec/trajectory-ring.md, "Sleeping"; wake.c, commit and release in ring.c), with a store buffer in each processor: a producer of RECORDS records and a
 * consumer, a ring of one or two records. A state in which both are asleep or at rest with work left is a lost wake-up. The same search with a barrier, or the second look, left out must find one. */
#include "tests/check.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define RECORDS 4
#define BUFFER_MAX 3
#define SET_SLOTS (1u << 22)

enum word { HEAD, TAIL, CONSUMER_SLEEPS, PRODUCER_SLEEPS, WORDS };
enum at { LOOK, SAY, BARRIER, LOOK_AGAIN, ASLEEP, DISARM, DRAIN, PUBLISH, LIGHT, SEE, TAKE, RING, DONE };
enum variant {
    FENCES,        /* both sides: sequentially consistent fence */
    LIGHT_RING,    /* hot side: none; sleeper: empties every processor's buffer */
    NO_BARRIERS,   /* wrong from here on */
    SLEEPER_ONLY,  /* the sleeper's fence alone, without membarrier's reach */
    HOT_SIDE_ONLY, /* the sleeper has none */
    NO_SECOND_LOOK
};

struct side {
    uint8_t at, count, seen; /* records committed or released; last look at the other's count */
    uint8_t buffered;
    uint8_t word[BUFFER_MAX], value[BUFFER_MAX];
};
struct state {
    uint8_t memory[WORDS], bell[2];
    struct side side[2]; /* producer, consumer */
};

struct search {
    struct state *set;
    uint32_t states;
    enum variant variant;
    uint8_t room;
    bool stuck, overflow;
};

static uint8_t load(const struct state *s, int me, uint8_t word)
{
    const struct side *p = &s->side[me];
    for (int i = p->buffered; i-- > 0;) {
        if (p->word[i] == word) {
            return p->value[i];
        }
    }
    return s->memory[word];
}

static void store(struct state *s, int me, uint8_t word, uint8_t value)
{
    struct side *p = &s->side[me];
    p->word[p->buffered] = word;
    p->value[p->buffered++] = value;
}

static void flush_one(struct state *s, int me)
{
    struct side *p = &s->side[me];
    s->memory[p->word[0]] = p->value[0];
    p->buffered--;
    memmove(p->word, p->word + 1, BUFFER_MAX - 1);
    memmove(p->value, p->value + 1, BUFFER_MAX - 1);
    p->word[BUFFER_MAX - 1] = p->value[BUFFER_MAX - 1] = 0;
}

static void flush(struct state *s, int me)
{
    while (s->side[me].buffered > 0) {
        flush_one(s, me);
    }
}

static bool something(const struct search *x, struct side *p, int me)
{
    return me == 0 ? p->count - p->seen < x->room : p->seen > p->count;
}

/* The processor's next instruction. False: it cannot take one. */
static bool step(const struct search *x, struct state *s, int me)
{
    struct side *p = &s->side[me];
    uint8_t other_word = me == 0 ? TAIL : HEAD, own_word = me == 0 ? HEAD : TAIL;
    uint8_t own_sleep = me == 0 ? PRODUCER_SLEEPS : CONSUMER_SLEEPS,
            other_sleep = me == 0 ? CONSUMER_SLEEPS : PRODUCER_SLEEPS;
    if (p->buffered == BUFFER_MAX) {
        return false; /* the buffer empties first */
    }
    switch (p->at) {
    case LOOK:
        p->seen = load(s, me, other_word);
        p->at = something(x, p, me) ? PUBLISH : SAY;
        return true;
    case SAY: /* the producer's word is the tail it waits for, plus one */
        store(s, me, own_sleep, me == 0 ? (uint8_t)(p->count + 2 - x->room) : 1);
        p->at = x->variant == NO_SECOND_LOOK ? ASLEEP : BARRIER;
        return true;
    case BARRIER:
        if (x->variant != NO_BARRIERS && x->variant != HOT_SIDE_ONLY) {
            flush(s, me);
        }
        if (x->variant == LIGHT_RING) {
            flush(s, !me);
        }
        p->at = LOOK_AGAIN;
        return true;
    case LOOK_AGAIN:
        p->seen = load(s, me, other_word);
        p->at = something(x, p, me) ? DISARM : ASLEEP;
        return true;
    case ASLEEP: /* a system call: the buffer is empty before it returns */
        flush(s, me);
        if (s->bell[me] == 0) {
            return false;
        }
        p->at = DISARM;
        return true;
    case DISARM:
        flush(s, me);
        p->at = s->memory[own_sleep] == 0 ? DRAIN : LOOK;
        s->memory[own_sleep] = 0;
        return true;
    case DRAIN:
        s->bell[me] = 0;
        p->at = LOOK;
        return true;
    case PUBLISH:
        p->count++;
        store(s, me, own_word, p->count);
        p->at = LIGHT;
        return true;
    case LIGHT:
        if (x->variant == FENCES || x->variant == HOT_SIDE_ONLY || x->variant == NO_SECOND_LOOK) {
            flush(s, me);
        }
        p->at = SEE;
        return true;
    case SEE: {
        uint8_t wanted = load(s, me, other_sleep);
        bool rings = wanted != 0 && (me == 0 || p->count >= wanted - 1);
        p->at = rings ? TAKE : p->count == RECORDS ? DONE : LOOK;
        return true;
    }
    case TAKE:
        flush(s, me);
        p->at = s->memory[other_sleep] != 0 ? RING : p->count == RECORDS ? DONE : LOOK;
        s->memory[other_sleep] = 0;
        return true;
    case RING:
        s->bell[!me]++;
        p->at = p->count == RECORDS ? DONE : LOOK;
        return true;
    default:
        return false;
    }
}

static bool is_new(struct search *x, const struct state *s)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *s; i++) {
        hash = (hash ^ ((const uint8_t *)s)[i]) * 1099511628211u;
    }
    uint32_t at = (uint32_t)(hash >> 20) % SET_SLOTS;
    static const struct state none;
    for (;; at = (at + 1) % SET_SLOTS) {
        if (memcmp(&x->set[at], s, sizeof *s) == 0) {
            return false;
        }
        if (memcmp(&x->set[at], &none, sizeof none) == 0) {
            break;
        }
    }
    if (x->states >= SET_SLOTS / 2) {
        x->overflow = true;
        return false;
    }
    x->set[at] = *s;
    x->states++;
    return true;
}

static void explore(struct search *x, const struct state *s)
{
    bool moved = false;
    for (int me = 0; me < 2; me++) {
        struct state next = *s;
        if (step(x, &next, me)) {
            moved = true;
            if (is_new(x, &next)) {
                explore(x, &next);
            }
        }
        next = *s;
        if (next.side[me].buffered > 0) {
            moved = true;
            flush_one(&next, me);
            if (is_new(x, &next)) {
                explore(x, &next);
            }
        }
    }
    if (!moved && (s->side[0].at != DONE || s->side[1].at != DONE)) {
        x->stuck = true;
    }
}

static struct search search(enum variant variant, uint8_t room)
{
    struct search x = {.variant = variant, .room = room, .set = calloc(SET_SLOTS, sizeof(struct state))};
    struct state start;
    assert_non_null(x.set);
    memset(&start, 0, sizeof start);
    is_new(&x, &start);
    explore(&x, &start);
    free(x.set);
    assert_false(x.overflow);
    return x;
}

static void no_wake_up_is_lost(void **state)
{
    (void)state;
    for (uint8_t room = 1; room <= 2; room++) {
        struct search fences = search(FENCES, room), light = search(LIGHT_RING, room);
        assert_false(fences.stuck || light.stuck);
        assert_true(fences.states > 500 && light.states > 500);
    }
}

static void every_part_of_the_handshake_is_needed(void **state)
{
    (void)state;
    for (uint8_t room = 1; room <= 2; room++) {
        for (enum variant v = NO_BARRIERS; v <= NO_SECOND_LOOK; v++) {
            assert_true(search(v, room).stuck);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_wake_up_is_lost),
        cmocka_unit_test(every_part_of_the_handshake_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
