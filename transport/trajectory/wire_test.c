/* Sizes of fragments, messages, and what the decoder refuses. */
#include "tests/check.h"

#include "base/rng.h"
#include "transport/trajectory/test_support.h"
#include "transport/trajectory/wire.h"
#include <stdlib.h>
#include <string.h>

static struct corral_fragment small(void)
{
    return (struct corral_fragment){.steps = 2,
                                    .rows = 3,
                                    .obs_dim = 4,
                                    .action_components = 1,
                                    .mask_bytes = 5,
                                    .boundary_count = 1,
                                    .episode_count = 2};
}

static void sizes_follow_the_shapes(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_fragment f = small();
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES];
    check_ok(corral_fragment_sizes(&f, bytes, &err));
    const uint64_t expected[CORRAL_FRAGMENT_FRAMES] = {96, 24, 24, 24, 6, 6, 6, 16, 30, 48, 4, 16, 16};
    assert_memory_equal(bytes, expected, sizeof expected);
    assert_int_equal(corral_fragment_bytes(&f), CORRAL_FRAGMENT_HEADER_BYTES + 316);
}

static void refuses_shapes_out_of_range(void **state)
{
    (void)state;
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES] = {77};
    struct corral_fragment bad[] = {small(), small(), small(), small(), small(), small(), small(), small()};
    bad[0].steps = 0;
    bad[1].rows = CORRAL_FRAGMENT_ROWS_MAX + 1;
    bad[2].obs_dim = UINT32_MAX;
    bad[3].action_components = 0;
    bad[4].boundary_count = 7;
    bad[5].episode_count = 7;
    bad[6].steps = bad[6].rows = 65536; /* too large in total */
    bad[6].obs_dim = 1u << 24;
    bad[7].mask_bytes = UINT32_MAX;
    for (size_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        check_status(corral_fragment_sizes(&bad[i], bytes, NULL), CORRAL_INVALID);
        assert_int_equal(corral_fragment_bytes(&bad[i]), 0);
    }
    assert_int_equal(bytes[0], 77); /* outputs are written only on success */
}

static void every_message_decodes_to_itself(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    for (enum corral_traj_type type = 0; type < CORRAL_TRAJ_TYPES; type++) {
        struct corral_traj_message m, out;
        memset(&m, 0, sizeof m);
        m.type = type;
        m.session = m.run = m.first = m.acked = m.received = m.bytes = m.buffer = m.sequence = UINT64_MAX;
        m.worker = m.epoch = UINT32_MAX;
        memset(m.token, 't', sizeof m.token - 1); /* the longest of each */
        memset(m.reason, 'r', sizeof m.reason - 1);
        const void *data;
        size_t bytes;
        corral_traj_encode(w, &m);
        check_ok(corral_mpack_finish(w, &data, &bytes, &err));
        assert_true(bytes <= CORRAL_TRAJ_CONTROL_BYTES_MAX);
        assert_false(corral_traj_is_batch(data, bytes));
        check_ok(corral_traj_decode(data, bytes, &out, &err));
        assert_int_equal(out.type, type);
        assert_true(out.session == UINT64_MAX);
        if (type == CORRAL_TRAJ_HELLO) {
            assert_true(out.run == m.run && out.worker == m.worker && out.epoch == m.epoch);
            assert_true(out.first == m.first && strcmp(out.token, m.token) == 0);
        } else if (type == CORRAL_TRAJ_WELCOME) {
            assert_true(out.acked == m.acked && out.received == m.received && out.bytes == m.bytes &&
                        out.buffer == m.buffer);
        } else if (type == CORRAL_TRAJ_RESEND) {
            assert_true(out.sequence == m.sequence);
        }
    }
    corral_mpack_writer_destroy(w);
}

static void refuses_damaged_messages(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 5);
    struct corral_error err;
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    struct corral_traj_message m = {.type = CORRAL_TRAJ_HELLO, .token = "t"}, out;
    const void *data;
    size_t bytes;
    corral_traj_encode(w, &m);
    check_ok(corral_mpack_finish(w, &data, &bytes, &err));
    uint8_t copy[CORRAL_TRAJ_CONTROL_BYTES_MAX + 1] = {0};
    check_status(corral_traj_decode(copy, sizeof copy, &out, &err), CORRAL_PROTOCOL);
    for (size_t cut = 0; cut < bytes; cut++) {
        memcpy(copy, data, bytes);
        check_status(corral_traj_decode(copy, cut, &out, &err), CORRAL_PROTOCOL);
    }
    for (int i = 0; i < 20000; i++) { /* must not crash; what passes has a known type */
        memcpy(copy, data, bytes);
        for (uint64_t n = 1 + corral_rng_below(&rng, 4); n > 0; n--) {
            copy[corral_rng_below(&rng, bytes)] = (uint8_t)corral_rng_next(&rng);
        }
        if (corral_traj_decode(copy, bytes, &out, &err) == CORRAL_OK) {
            assert_true(out.type < CORRAL_TRAJ_TYPES);
        }
    }
    corral_mpack_writer_destroy(w);
}

/* ---- batches ---- */

#define FRAME_ROOM 8192

/* Records 11, 12, … of different sizes; at an odd address, as ZeroMQ's are. Returns the frame's bytes. */
static size_t make_batch(uint8_t *frame, uint32_t count)
{
    struct corral_traj_batch b = {.magic = CORRAL_TRAJ_BATCH_MAGIC,
                                  .protocol = CORRAL_TRAJ_PROTOCOL,
                                  .session = 9,
                                  .first = 11,
                                  .count = count};
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes;
        void *record = test_numbered_record(1, 2, 3, 11 + i, 1 + 100 * i, &bytes);
        assert_true(sizeof b + b.bytes + bytes <= FRAME_ROOM);
        memcpy(frame + sizeof b + b.bytes, record, bytes);
        b.bytes += bytes;
        free(record);
    }
    memcpy(frame, &b, sizeof b);
    return sizeof b + b.bytes;
}

static enum corral_status check_batch(const uint8_t *frame, size_t bytes)
{
    struct corral_traj_batch b;
    struct corral_traj_prologue first;
    return corral_traj_batch_check(frame, bytes, &b, &first, NULL);
}

static void a_batch_tells_its_records(void **state)
{
    (void)state;
    struct corral_error err;
    uint8_t memory[FRAME_ROOM + 1], *frame = memory + 1;
    for (uint32_t count = 1; count <= 8; count++) {
        struct corral_traj_batch b;
        struct corral_traj_prologue first;
        size_t bytes = make_batch(frame, count);
        assert_true(corral_traj_is_batch(frame, bytes));
        check_ok(corral_traj_batch_check(frame, bytes, &b, &first, &err));
        assert_int_equal(b.count, count);
        assert_int_equal(b.session, 9);
        assert_int_equal(first.sequence, 11);
        assert_int_equal(first.worker, 2);
        assert_int_equal(first.epoch, 3);
        const uint8_t *at = frame + sizeof b;
        for (uint32_t i = 0; i < count; i++) {
            at += corral_traj_record_size(at);
        }
        assert_ptr_equal(at, frame + bytes);
    }
}

static void a_batch_must_be_whole_and_in_order(void **state)
{
    (void)state;
    uint8_t frame[FRAME_ROOM + 64] = {0};
    size_t bytes = make_batch(frame, 4);
    for (size_t cut = 0; cut < bytes; cut++) {
        check_status(check_batch(frame, cut), CORRAL_PROTOCOL);
    }
    check_status(check_batch(frame, bytes + 64), CORRAL_PROTOCOL);
    /* every field of the header but the session */
    const size_t fields[] = {0, 4, 16, 24, 32, 36, 40, 48, 56};
    for (size_t i = 0; i < CORRAL_COUNT_OF(fields); i++) {
        for (uint32_t bit = 0; bit < 8; bit++) {
            (void)make_batch(frame, 4);
            frame[fields[i]] ^= (uint8_t)(1u << bit);
            check_status(check_batch(frame, bytes), CORRAL_PROTOCOL);
        }
    }
    /* identity and size of every record */
    const size_t members[] = {0, 4, 12, 16, 24, 32, 36, 40, 48};
    for (uint32_t record = 0; record < 4; record++) {
        for (size_t i = 0; i < CORRAL_COUNT_OF(members); i++) {
            (void)make_batch(frame, 4);
            uint8_t *at = frame + sizeof(struct corral_traj_batch);
            for (uint32_t k = 0; k < record; k++) {
                at += corral_traj_record_size(at);
            }
            at[members[i]] ^= 1;
            check_status(check_batch(frame, bytes), CORRAL_PROTOCOL);
        }
    }
}

static void random_damage_is_refused_or_harmless(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 8);
    uint8_t frame[FRAME_ROOM];
    for (int i = 0; i < 20000; i++) {
        size_t bytes = make_batch(frame, 3), size = 0;
        for (uint64_t n = 1 + corral_rng_below(&rng, 4); n > 0; n--) {
            frame[corral_rng_below(&rng, bytes)] = (uint8_t)corral_rng_next(&rng);
        }
        if (check_batch(frame, bytes) == CORRAL_OK) { /* then its sizes add up */
            for (size = sizeof(struct corral_traj_batch); size < bytes;) {
                size += corral_traj_record_size(frame + size);
            }
            assert_int_equal(size, bytes);
        }
    }
}

static void a_record_never_counts_for_more_than_its_fragment(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 500; seed++) {
        struct test_fragment t;
        test_fragment_make(&t, seed, 6);
        assert_true(test_fragment_cost(&t.fragment) <= corral_fragment_bytes(&t.fragment));
        test_fragment_free(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_follow_the_shapes),
        cmocka_unit_test(refuses_shapes_out_of_range),
        cmocka_unit_test(every_message_decodes_to_itself),
        cmocka_unit_test(refuses_damaged_messages),
        cmocka_unit_test(a_batch_tells_its_records),
        cmocka_unit_test(a_batch_must_be_whole_and_in_order),
        cmocka_unit_test(random_damage_is_refused_or_harmless),
        cmocka_unit_test(a_record_never_counts_for_more_than_its_fragment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
