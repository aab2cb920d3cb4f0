/* <corral/weights.h> from outside: two trainer ranks, an engine of two shards, by every kind of memory and lane. */
#include "tests/check.h"
#include <corral/weights.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 48u
#define COLUMNS 40u
#define RANKS 2u
#define LONG_MS 20000u

static const uint8_t secret[32] = "api test";
static const struct corral_weights_identity who = {
    .size = sizeof who, .run = 3, .generation = 1, .secret = secret};
static const struct corral_weights_identity engine_who = {
    .size = sizeof engine_who, .run = 3, .generation = 99, .secret = secret}; /* which nobody looks at */

static struct corral_weights_layout *make_layout(bool engine)
{
    struct corral_error err;
    struct corral_weights_layout *l;
    uint32_t a, b;
    uint64_t shape[2] = {ROWS, COLUMNS}, half = ROWS * COLUMNS / 2;
    check_ok(corral_weights_layout_create(&l, RANKS, &err));
    check_ok(corral_weights_layout_tensor(l, "rows", CORRAL_WEIGHTS_I32, 2, shape, &a, &err));
    check_ok(corral_weights_layout_tensor(l, "columns", CORRAL_WEIGHTS_I32, 2, shape, &b, &err));
    for (uint32_t r = 0; r < RANKS; r++) {
        if (engine) {
            check_ok(corral_weights_layout_slice(l, a, r, 0, r * ROWS / 2, ROWS / 2, CORRAL_WEIGHTS_NEXT,
                                                 NULL, &err));
            check_ok(corral_weights_layout_slice(l, b, r, 1, r * COLUMNS / 2, COLUMNS / 2,
                                                 CORRAL_WEIGHTS_NEXT, NULL, &err));
        } else {
            check_ok(corral_weights_layout_flat(l, a, r, r * half, half, CORRAL_WEIGHTS_NEXT, NULL, &err));
            check_ok(corral_weights_layout_flat(l, b, r, r * half, half, CORRAL_WEIGHTS_NEXT, NULL, &err));
        }
    }
    return l;
}

/* Element `index` of tensor t in a version. */
static int32_t value(uint64_t version, uint32_t t, uint32_t index)
{
    return (int32_t)(version * 1000003 + t * 500009 + index);
}

static void check_shard(uint32_t rank, uint64_t version, const int32_t *rows, const int32_t *columns)
{
    for (uint32_t i = 0; i < ROWS * COLUMNS / 2; i++) {
        assert_int_equal(rows[i], value(version, 0, rank * (ROWS * COLUMNS / 2) + i));
        uint32_t row = i / (COLUMNS / 2), column = rank * (COLUMNS / 2) + i % (COLUMNS / 2);
        assert_int_equal(columns[i], value(version, 1, row * COLUMNS + column));
    }
}

/* ---- a trainer of two ranks, each tensor in memory of its own ---- */

struct trainer {
    struct corral_weights_publisher *p;
    uint32_t rank;
    int32_t *tensor[2];
    uint64_t version;
    enum corral_status status;
    struct corral_weights_result result;
    struct corral_error err;
};

static void open_trainer(struct trainer *t, uint32_t rank, const char *lanes)
{
    struct corral_error err;
    struct corral_weights_layout *l = make_layout(false);
    const uint64_t bytes = ROWS * COLUMNS / 2 * 4;
    struct corral_weights_region region[2];
    for (uint32_t i = 0; i < 2; i++) {
        t->tensor[i] = malloc(bytes);
        assert_non_null(t->tensor[i]);
        region[i] = (struct corral_weights_region){.size = sizeof *region,
                                                   .device = -1,
                                                   .offset = i * bytes,
                                                   .bytes = bytes,
                                                   .address = t->tensor[i]};
    }
    struct corral_weights_publisher_options o = {.size = sizeof o,
                                                 .rank = rank,
                                                 .identity = &who,
                                                 .layout = l,
                                                 .regions = region,
                                                 .region_count = 2,
                                                 .deadline_ms = LONG_MS,
                                                 .bucket_bytes = 64u << 10,
                                                 .lanes = lanes};
    t->rank = rank;
    check_ok(corral_weights_publisher_open(&t->p, &o, &err));
    corral_weights_layout_destroy(l);
}

static void close_trainer(struct trainer *t)
{
    corral_weights_publisher_close(t->p);
    free(t->tensor[0]);
    free(t->tensor[1]);
}

static void *publish_main(void *arg)
{
    struct trainer *t = arg;
    for (uint32_t i = 0; i < ROWS * COLUMNS / 2; i++) {
        t->tensor[0][i] = value(t->version, 0, t->rank * (ROWS * COLUMNS / 2) + i);
        t->tensor[1][i] = value(t->version, 1, t->rank * (ROWS * COLUMNS / 2) + i);
    }
    t->result.size = sizeof t->result;
    t->status = corral_weights_publish(t->p, t->version, &t->result, &t->err);
    return NULL;
}

static void publish(struct trainer t[RANKS], uint64_t version)
{
    pthread_t thread[RANKS];
    for (uint32_t i = 0; i < RANKS; i++) {
        t[i].version = version;
        assert_int_equal(pthread_create(&thread[i], NULL, publish_main, &t[i]), 0);
    }
    for (uint32_t i = 0; i < RANKS; i++) {
        pthread_join(thread[i], NULL);
        if (t[i].status != CORRAL_OK) {
            fail_msg("rank %u: %s", i, t[i].err.text);
        }
    }
    assert_int_equal(t[0].result.applied, RANKS);
    assert_int_equal(t[0].result.dropped, 0);
}

/* ---- an engine of two shards ---- */

static uint8_t card[1 << 16];

static struct corral_weights_subscriber *open_engine(struct trainer t[RANKS], uint32_t rank,
                                                     struct corral_weights_subscriber_options o)
{
    struct corral_error err;
    static const char *const names[RANKS] = {"engine.tp0", "engine.tp1"};
    struct corral_weights_subscriber *s;
    struct corral_weights_layout *l = make_layout(true);
    uint64_t bytes = 0;
    check_status(corral_weights_publisher_card(t[0].p, NULL, &bytes, &err), CORRAL_INVALID); /* how much? */
    assert_true(bytes > 0 && bytes <= sizeof card);
    check_ok(corral_weights_publisher_card(t[0].p, card, &bytes, &err));
    o.size = sizeof o;
    o.rank = rank;
    o.identity = &engine_who;
    o.layout = l;
    o.trainer_card = card;
    o.trainer_card_bytes = bytes;
    o.name = names[rank];
    o.replica = "engine";
    check_ok(corral_weights_subscriber_open(&s, &o, &err));
    bytes = sizeof card;
    check_ok(corral_weights_subscriber_card(s, card, &bytes, &err));
    for (uint32_t i = 0; i < RANKS; i++) {
        check_ok(corral_weights_publisher_add(t[i].p, card, bytes, &err));
    }
    corral_weights_layout_destroy(l);
    return s;
}

static void versions_arrive_whole_over(const char *lanes)
{
    struct corral_error err;
    struct trainer t[RANKS] = {{0}, {0}};
    struct corral_weights_subscriber *s[RANKS];
    for (uint32_t i = 0; i < RANKS; i++) {
        open_trainer(&t[i], i, lanes);
    }
    for (uint32_t i = 0; i < RANKS; i++) {
        s[i] = open_engine(t, i, (struct corral_weights_subscriber_options){.lanes = lanes});
    }
    for (uint64_t version = 7; version < 10; version++) {
        publish(t, version);
        uint64_t ready = 0;
        check_ok(corral_weights_wait(s[0], version, LONG_MS, &ready, &err));
        assert_int_equal(ready, version);
        for (uint32_t i = 0; i < RANKS; i++) {
            struct corral_weights_view view = {.size = sizeof view};
            uint64_t pause;
            assert_int_equal(corral_weights_version(s[i]), version == 7 ? 0 : version - 1);
            check_ok(corral_weights_flip(s[i], version, LONG_MS, &pause, &err));
            check_ok(corral_weights_acquire(s[i], &view, &err));
            assert_int_equal(view.version, version);
            check_shard(i, version, view.base, (const int32_t *)view.base + ROWS * COLUMNS / 2);
            corral_weights_release(s[i], &view);
        }
    }
    struct corral_weights_status status = {.size = sizeof status};
    check_ok(corral_weights_subscriber_status(s[1], &status, &err));
    assert_int_equal(status.version, 9);
    assert_string_equal(status.lane, lanes);
    for (uint32_t i = 0; i < RANKS; i++) {
        close_trainer(&t[i]);
        corral_weights_subscriber_close(s[i]);
    }
}

static void versions_arrive_whole_over_shm(void **state)
{
    (void)state;
    versions_arrive_whole_over("shm");
}

static void versions_arrive_whole_over_tcp(void **state)
{
    (void)state;
    versions_arrive_whole_over("tcp");
}

static void a_flip_fills_the_engines_own_tensors(void **state)
{
    (void)state;
    struct corral_error err;
    struct trainer t[RANKS] = {{0}, {0}};
    struct corral_weights_subscriber *s[RANKS];
    static int32_t tensor[RANKS][2][ROWS * COLUMNS / 2];
    const uint64_t bytes = sizeof tensor[0][0];
    for (uint32_t i = 0; i < RANKS; i++) {
        open_trainer(&t[i], i, "tcp");
    }
    for (uint32_t i = 0; i < RANKS; i++) {
        struct corral_weights_region region[2];
        for (uint32_t k = 0; k < 2; k++) {
            region[k] = (struct corral_weights_region){.size = sizeof *region,
                                                       .device = -1,
                                                       .offset = k * bytes,
                                                       .bytes = bytes,
                                                       .address = tensor[i][k]};
        }
        s[i] = open_engine(
            t, i,
            (struct corral_weights_subscriber_options){.lanes = "tcp", .regions = region, .region_count = 2});
    }
    publish(t, 1);
    for (uint32_t i = 0; i < RANKS; i++) {
        uint64_t pause;
        struct corral_weights_view view = {.size = sizeof view};
        assert_int_equal(tensor[i][0][5], 0);
        check_ok(corral_weights_flip(s[i], 1, LONG_MS, &pause, &err));
        check_shard(i, 1, tensor[i][0], tensor[i][1]);
        check_status(corral_weights_acquire(s[i], &view, &err), CORRAL_UNSUPPORTED);
    }
    for (uint32_t i = 0; i < RANKS; i++) {
        corral_weights_subscriber_close(s[i]);
        close_trainer(&t[i]);
    }
}

static void count_ready(void *ctx, uint64_t version)
{
    __atomic_store_n((uint64_t *)ctx, version, __ATOMIC_SEQ_CST);
}

static void an_engine_that_wants_it_gets_versions_at_once(void **state)
{
    (void)state;
    struct trainer t[RANKS] = {{0}, {0}};
    struct corral_weights_subscriber *s[RANKS];
    uint64_t told[RANKS] = {0, 0};
    for (uint32_t i = 0; i < RANKS; i++) {
        open_trainer(&t[i], i, NULL);
    }
    for (uint32_t i = 0; i < RANKS; i++) {
        s[i] = open_engine(t, i,
                           (struct corral_weights_subscriber_options){
                               .auto_flip = 1, .ready = count_ready, .ready_ctx = &told[i]});
    }
    publish(t, 4);
    for (uint32_t i = 0; i < RANKS; i++) {
        assert_int_equal(corral_weights_version(s[i]), 4);
        assert_int_equal(__atomic_load_n(&told[i], __ATOMIC_SEQ_CST), 4);
        corral_weights_subscriber_close(s[i]);
        close_trainer(&t[i]);
    }
}

static void refuses_what_cannot_be(void **state)
{
    (void)state;
    struct corral_error err;
    struct trainer t = {0};
    struct corral_weights_layout *l = make_layout(true);
    struct corral_weights_subscriber *s;
    struct corral_weights_subscriber_options o = {.size = sizeof o,
                                                  .identity = &who,
                                                  .layout = l,
                                                  .name = "x",
                                                  .trainer_card = "none",
                                                  .trainer_card_bytes = 4};
    open_trainer(&t, 0, NULL);
    check_status(corral_weights_publish(t.p, 1, NULL, &err), CORRAL_STATE);
    check_status(corral_weights_publisher_add(t.p, "rubbish", 7, &err), CORRAL_PROTOCOL);
    check_status(corral_weights_subscriber_open(&s, &o, &err), CORRAL_PROTOCOL);
    o.size = 1;
    check_status(corral_weights_subscriber_open(&s, &o, &err), CORRAL_INVALID);
    o.size = sizeof o;
    o.name = "with space";
    check_status(corral_weights_subscriber_open(&s, &o, &err), CORRAL_INVALID);
    o.name = "x";
    o.buffers = 9;
    check_status(corral_weights_subscriber_open(&s, &o, &err), CORRAL_INVALID);
    struct corral_weights_publisher_options p = {.size = sizeof p, .identity = &who, .layout = l};
    struct corral_weights_publisher *other;
    check_status(corral_weights_publisher_open(&other, &p, &err),
                 CORRAL_INVALID); /* no memory for its pieces */
    corral_weights_layout_destroy(l);
    close_trainer(&t);
}

static void a_missing_tensor_is_named(void **state)
{
    (void)state;
    struct corral_error err;
    struct trainer t = {0};
    struct corral_weights_layout *l = make_layout(true);
    struct corral_weights_subscriber *s;
    uint32_t more;
    uint64_t bytes = sizeof card;
    open_trainer(&t, 0, NULL);
    check_ok(corral_weights_layout_tensor(l, "lm_head", CORRAL_WEIGHTS_F32, 1, (uint64_t[]){8}, &more, &err));
    check_ok(corral_weights_layout_whole(l, more, 0, CORRAL_WEIGHTS_NEXT, NULL, &err));
    check_ok(corral_weights_publisher_card(t.p, card, &bytes, &err));
    struct corral_weights_subscriber_options o = {.size = sizeof o,
                                                  .identity = &who,
                                                  .layout = l,
                                                  .name = "x",
                                                  .trainer_card = card,
                                                  .trainer_card_bytes = bytes};
    check_status(corral_weights_subscriber_open(&s, &o, &err), CORRAL_INVALID);
    assert_non_null(strstr(err.text, "lm_head"));
    corral_weights_layout_destroy(l);
    close_trainer(&t);
}

/* The trainer is gone when the late one comes. */
static void a_late_engine_takes_the_version_from_a_peer(void **state)
{
    (void)state;
    static uint8_t cards[RANKS][1 << 16], trainer_card[1 << 16];
    struct corral_error err;
    struct trainer t[RANKS] = {{0}, {0}};
    struct corral_weights_subscriber *s[RANKS], *late;
    struct corral_weights_peer peer[RANKS];
    uint64_t trainer_bytes = sizeof trainer_card;
    for (uint32_t i = 0; i < RANKS; i++) {
        open_trainer(&t[i], i, "tcp");
    }
    check_ok(corral_weights_publisher_card(t[0].p, trainer_card, &trainer_bytes, &err));
    for (uint32_t i = 0; i < RANKS; i++) {
        s[i] = open_engine(t, i, (struct corral_weights_subscriber_options){.lanes = "tcp"});
        peer[i] = (struct corral_weights_peer){.card = cards[i], .bytes = sizeof cards[i]};
        check_ok(corral_weights_subscriber_card(s[i], cards[i], &peer[i].bytes, &err));
    }
    publish(t, 5); /* committed at the peers; neither has flipped to it */
    close_trainer(&t[0]);
    close_trainer(&t[1]);
    struct corral_weights_layout *l = make_layout(true);
    struct corral_weights_subscriber_options o = {.size = sizeof o,
                                                  .rank = 1,
                                                  .identity = &who,
                                                  .layout = l,
                                                  .trainer_card = trainer_card,
                                                  .trainer_card_bytes = trainer_bytes,
                                                  .name = "late.tp1",
                                                  .lanes = "tcp",
                                                  .peers = peer,
                                                  .peer_count = RANKS};
    check_ok(corral_weights_subscriber_open(&late, &o, &err));
    check_ok(corral_weights_flip(late, 5, LONG_MS, NULL, &err));
    struct corral_weights_view view = {.size = sizeof view};
    check_ok(corral_weights_acquire(late, &view, &err));
    check_shard(1, 5, view.base, (const int32_t *)view.base + ROWS * COLUMNS / 2);
    corral_weights_release(late, &view);
    corral_weights_subscriber_close(late);
    cards[1][40] ^= 1; /* a damaged card is no silent miss */
    check_status(corral_weights_subscriber_open(&late, &o, &err), CORRAL_PROTOCOL);
    corral_weights_layout_destroy(l);
    for (uint32_t i = 0; i < RANKS; i++) {
        corral_weights_subscriber_close(s[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_arrive_whole_over_shm),
        cmocka_unit_test(versions_arrive_whole_over_tcp),
        cmocka_unit_test(a_flip_fills_the_engines_own_tensors),
        cmocka_unit_test(an_engine_that_wants_it_gets_versions_at_once),
        cmocka_unit_test(refuses_what_cannot_be),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_late_engine_takes_the_version_from_a_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
