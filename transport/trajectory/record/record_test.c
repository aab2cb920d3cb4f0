/* Round trips of random records, records of later versions, and records that nobody should have written. */
#include "base/mpack.h"
#include "base/rng.h"
#include "tests/check.h"
#include "transport/trajectory/record/prologue.h"
#include "transport/trajectory/record/test_records.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct corral_traj_view view;
static struct corral_error err;

static void what_is_written_is_read(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        struct test_record t;
        test_record_make(&t, seed);
        uint64_t bytes;
        void *memory = test_record_encode(&t.record, &bytes);
        check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
        assert_true(test_record_equal(&t.record, &view.record));
        for (uint32_t i = 0; i < view.record.tensor_count; i++) {
            assert_int_equal((uintptr_t)view.tensors[i].data % CORRAL_TRAJ_ALIGN, 0);
            assert_ptr_equal(view.tensors[i].data, corral_traj_record_place(memory, i));
            assert_ptr_equal(corral_traj_record_find(&view.record, t.tensors[i].name), &view.tensors[i]);
        }
        assert_null(corral_traj_record_place(memory, view.record.tensor_count));
        assert_null(corral_traj_record_find(&view.record, "no such"));
        uint64_t again_bytes;
        void *again = test_record_encode(&view.record, &again_bytes);
        assert_int_equal(again_bytes, bytes);
        assert_memory_equal(again, memory, bytes); /* not one byte is left to chance */
        free(again);
        free(memory);
        test_record_free(&t);
    }
}

static void the_largest_header_fits(void **state)
{
    (void)state;
    struct test_record t;
    test_record_largest(&t);
    uint64_t bytes;
    void *memory = test_record_encode(&t.record, &bytes);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    assert_true(test_record_equal(&t.record, &view.record));
    free(memory);
    test_record_free(&t);
}

static void tensors_can_be_filled_in_place(void **state)
{
    (void)state;
    struct test_record t;
    test_record_episode(&t, 100);
    uint64_t bytes;
    struct corral_traj_tensor empty[CORRAL_TRAJ_TENSORS_MAX];
    memcpy(empty, t.tensors, sizeof empty);
    for (uint32_t i = 0; i < t.record.tensor_count; i++) {
        empty[i].data = NULL;
    }
    t.record.tensors = empty;
    check_ok(corral_traj_record_bytes(&t.record, &bytes, &err));
    void *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, bytes);
    memset(memory, 0xAA, bytes);
    check_ok(corral_traj_record_encode(&t.record, memory, bytes, &err));
    for (uint32_t i = 0; i < t.record.tensor_count; i++) {
        memcpy(corral_traj_record_place(memory, i), t.data[i], 100 * corral_traj_dtype_bytes(empty[i].dtype));
    }
    corral_traj_record_stamp(memory, 9, 8, 7, 6);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    t.record.tensors = t.tensors;
    t.record.run = 9, t.record.worker = 8, t.record.epoch = 7, t.record.sequence = 6;
    assert_true(test_record_equal(&t.record, &view.record));
    uint64_t same_bytes;
    void *same = test_record_encode(&t.record, &same_bytes);
    assert_int_equal(same_bytes, bytes);
    assert_memory_equal(same, memory, bytes); /* the gaps are zero however the tensors got there */
    free(same);
    free(memory);
    test_record_free(&t);
}

/* ---- msgpack-c as the second opinion ---- */

static void msgpack_c_reads_the_same(void **state)
{
    (void)state;
    for (uint64_t seed = 5000; seed < 5300; seed++) {
        struct test_record t;
        char text[CORRAL_TRAJ_TASK_MAX + 1];
        uint64_t bytes, number = 0;
        test_record_make(&t, seed);
        void *memory = test_record_encode(&t.record, &bytes);
        const struct corral_traj_prologue *p = memory;
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
        check_ok(corral_mpack_read(&r, (uint8_t *)memory + sizeof *p, p->header_bytes, &err));
        const struct corral_mpack_node *root = corral_mpack_root(r), *list;
        if (t.record.task[0] != 0) {
            check_ok(corral_mpack_get_str(root, "task", text, sizeof text, &err));
            assert_string_equal(text, t.record.task);
        }
        if (t.record.tokens != 0) {
            check_ok(corral_mpack_get_u64(root, "tokens", &number, &err));
        }
        assert_int_equal(number, t.record.tokens);
        check_ok(corral_mpack_get_node(root, "tensors", &list, &err));
        assert_int_equal(corral_mpack_count(list), t.record.tensor_count);
        for (uint32_t i = 0; i < t.record.tensor_count; i++) {
            const struct corral_mpack_node *entry = corral_mpack_at(list, i),
                                           *shape = corral_mpack_at(entry, 2);
            check_ok(corral_mpack_node_str(corral_mpack_at(entry, 0), text, sizeof text, &err));
            assert_string_equal(text, t.tensors[i].name);
            assert_int_equal(corral_mpack_count(shape), t.tensors[i].dims);
            for (uint32_t d = 0; d < t.tensors[i].dims; d++) {
                check_ok(corral_mpack_node_u64(corral_mpack_at(shape, d), &number, &err));
                assert_int_equal(number, t.tensors[i].shape[d]);
            }
        }
        free(memory);
        test_record_free(&t);
    }
}

/* A record whose map is this; `tensor_bytes` behind it. */
static void *assemble(const void *map, size_t map_bytes, uint64_t tensor_bytes, uint64_t *bytes)
{
    *bytes = CORRAL_TRAJ_PROLOGUE_BYTES + corral_traj_align(map_bytes) + tensor_bytes;
    uint8_t *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, *bytes);
    memset(memory, 0, *bytes);
    *(struct corral_traj_prologue *)(void *)memory =
        (struct corral_traj_prologue){.magic = CORRAL_TRAJ_RECORD_MAGIC,
                                      .format = CORRAL_TRAJ_RECORD_FORMAT,
                                      .header_bytes = (uint32_t)map_bytes,
                                      .bytes = *bytes};
    memcpy(memory + CORRAL_TRAJ_PROLOGUE_BYTES, map, map_bytes);
    return memory;
}

/* Bytes changed at random: whatever we accept, msgpack-c and its scan accept. */
static void nothing_is_accepted_that_the_general_scan_refuses(void **state)
{
    (void)state;
    struct corral_rng rng;
    corral_rng_seed(&rng, 4711);
    uint32_t accepted = 0;
    for (uint64_t round = 0; round < 20000; round++) {
        struct test_record t;
        uint64_t bytes;
        test_record_make(&t, round % 50);
        uint8_t *memory = test_record_encode(&t.record, &bytes);
        const struct corral_traj_prologue *p = (const void *)memory;
        const uint32_t header_bytes = p->header_bytes;
        for (uint64_t n = 1 + corral_rng_below(&rng, 3); n > 0; n--) {
            memory[CORRAL_TRAJ_PROLOGUE_BYTES + corral_rng_below(&rng, header_bytes)] =
                (uint8_t)corral_rng_next(&rng);
        }
        const enum corral_status status = corral_traj_record_decode(memory, bytes, &view, &err);
        if (status == CORRAL_OK) {
            CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
            check_ok(corral_mpack_read(&r, memory + CORRAL_TRAJ_PROLOGUE_BYTES, header_bytes, &err));
            accepted++;
        } else {
            assert_int_equal(status, CORRAL_PROTOCOL);
        }
        free(memory);
        test_record_free(&t);
    }
    assert_in_range(accepted, 100, 19900);
}

/* ---- later versions ---- */

static void unknown_fields_are_skipped(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_mpack_writer_destroyp)
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    const void *map;
    size_t map_bytes;
    corral_mpack_map(w, 9);
    corral_mpack_kv_str(w, "future", "text");
    corral_mpack_str(w, "nested");
    corral_mpack_map(w, 2);
    corral_mpack_str(w, "a");
    corral_mpack_array(w, 3);
    corral_mpack_u64(w, 1);
    corral_mpack_map(w, 0);
    corral_mpack_array(w, 0);
    corral_mpack_kv_f64(w, "b", 2.5);
    corral_mpack_kv_u64(w, "kind", 0);
    corral_mpack_kv_bin(w, "blob", "\xC1\xC1\xC1", 3);
    corral_mpack_kv_i64(w, "negative", -5000000000);
    corral_mpack_kv_bool(w, "truth", true);
    corral_mpack_kv_str(w, "env", "calc");
    corral_mpack_str(w, "tensors");
    corral_mpack_array(w, 2);
    corral_mpack_array(w, 5); /* two members more than today */
    corral_mpack_str(w, "new_tensor");
    corral_mpack_u64(w, CORRAL_TRAJ_F16);
    corral_mpack_array(w, 2);
    corral_mpack_u64(w, 3);
    corral_mpack_u64(w, 5);
    corral_mpack_str(w, "zstd");
    corral_mpack_map(w, 1);
    corral_mpack_kv_u64(w, "level", 3);
    corral_mpack_array(w, 3);
    corral_mpack_str(w, "reward");
    corral_mpack_u64(w, CORRAL_TRAJ_F32);
    corral_mpack_array(w, 1);
    corral_mpack_u64(w, 2);
    corral_mpack_kv_u64(w, "tokens", 2);
    check_ok(corral_mpack_finish(w, &map, &map_bytes, &err));
    uint64_t bytes;
    void *memory = assemble(map, map_bytes, 128, &bytes);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    assert_string_equal(view.record.env, "calc");
    assert_int_equal(view.record.tokens, 2);
    assert_int_equal(view.record.tensor_count, 2);
    assert_ptr_equal(view.tensors[1].data, (uint8_t *)memory + bytes - 64);
    assert_ptr_equal(corral_traj_record_place(memory, 1), view.tensors[1].data);
    free(memory);
}

static void numbers_may_have_any_form(void **state)
{
    (void)state;
    static const char map[] = "\x84\xA7tensors\xDC\x00\x00\xA4kind\xD2\x00\x00\x00\x01\xD9\x06tokens\xD3\x00"
                              "\x00\x00\x01\x00\x00\x00\x00"
                              "\xA6scores\x84\xA1"
                              "a\xCA\x3F\x00\x00\x00\xA1"
                              "b\xFF\xA1"
                              "c\xD1\xFF\x00\xA1"
                              "d\xCF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF";
    uint64_t bytes;
    void *memory = assemble(map, sizeof map - 1, 0, &bytes);
    check_ok(corral_traj_record_decode(memory, bytes, &view, &err));
    assert_int_equal(view.record.kind, 1);
    assert_int_equal(view.record.tokens, UINT64_C(1) << 32);
    assert_true(view.scores[0].value == 0.5 && view.scores[1].value == -1 && view.scores[2].value == -256 &&
                view.scores[3].value == 18446744073709551615.0);
    free(memory);
}

/* ---- what nobody should have written ---- */

#define T3(name, rest) "\x82\xA4kind\x00\xA7tensors\x91\x93" name rest
#define KIND "\xA4kind\x00"
#define NONE "\xA7tensors\x90"
struct hostile {
    const char *map;
    size_t bytes;
    uint64_t tensor_bytes;
    const char *named; /* in the error text */
};
#define MAP(text, tensor_bytes, named)             \
    {                                              \
        text, sizeof text - 1, tensor_bytes, named \
    }
static const struct hostile hostile[] = {
    MAP("\x90", 0, "no map"),
    MAP("\xC0", 0, "no map"),
    MAP("\xDF\xFF\xFF\xFF\xFF", 0, "no map"),
    MAP("\xDE\x00", 0, "no map"),
    MAP("\x80", 0, "`tensors` is missing"),
    MAP("\x81" NONE, 0, "`kind` is missing"),
    MAP("\x81" KIND, 0, "`tensors` is missing"),
    MAP("\x82" KIND NONE "\x00", 0, "bytes after the end"),
    MAP("\x83" KIND NONE, 0, "key 2 is no string"),
    MAP("\x83" KIND NONE "\x01\x01", 0, "key 2 is no string"),
    MAP("\x83" KIND NONE KIND, 0, "`kind` is there twice"),
    MAP("\x83" KIND NONE NONE, 0, "`tensors` is there twice"),
    MAP("\x82\xA4kind\x02" NONE, 0, "kind 2"),
    MAP("\x82\xA4kind\xA1x" NONE, 0, "`kind`"),
    MAP("\x82\xA4kind\xFF" NONE, 0, "`kind`"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA1\x00",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA2\xC0\x80",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA3\xED\xA0\x80",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA4\xF4\x90\x80\x80",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA1\xC3",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA3"
        "env\xA9"
        "abcdefgh\xFF",
        0, "`env` is not UTF-8"),
    MAP("\x83" KIND NONE "\xA6"
        "finish\x05",
        0, "`finish`"),
    MAP("\x83" KIND NONE "\xA6"
        "finish\xDB\xFF\xFF\xFF\xFF"
        "abc",
        0, "`finish`"),
    MAP("\x83" KIND NONE "\xA5turns\xCF\x00\x00\x00\x01\x00\x00\x00\x00", 0, "`turns`"),
    MAP("\x83" KIND NONE "\xA5turns\xD0\x80", 0, "`turns`"),
    MAP("\x83" KIND NONE "\xA5turns\xCD\x01", 0, "`turns`"),
    MAP("\x83" KIND NONE "\xA6oldest\x05", 0, "oldest"),
    MAP("\x83" KIND NONE "\xA5group\x05", 0, "group of 0"),
    MAP("\x84" KIND NONE "\xA6member\x05\xA7members\x05", 0, "member 5 of a group of 5"),
    MAP("\x83" KIND NONE "\xA6scores\x90", 0, "`scores`"),
    MAP("\x83" KIND NONE "\xA6scores\x81\xA1x\xA1y", 0, "score `x`"),
    MAP("\x83" KIND NONE "\xA6scores\x82\xA1x\x01\xA1x\x02", 0, "two scores"),
    MAP("\x83" KIND NONE "\xA6scores\x81\xA0\x01", 0, "name of score 0"),
    MAP("\x83" KIND NONE "\xA1u\xC1", 0, "unknown key"),
    MAP("\x83" KIND NONE "\xA1u\xD4\x00\x00", 0, "unknown key"),
    MAP("\x83" KIND NONE "\xA1u\xDD\xFF\xFF\xFF\xFF", 0, "unknown key"),
    MAP("\x83" KIND NONE "\xA1u\xC6\xFF\xFF\xFF\xFF", 0, "unknown key"),
    MAP("\x83" KIND NONE "\xA1u\x81\x01\x01", 0, "unknown key"),
    MAP("\x83" KIND NONE "\xA1u\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x01", 0,
        "unknown key"),
    MAP("\x82" KIND "\xA7tensors\x81\xA1x\x01", 0, "`tensors`"),
    MAP("\x82" KIND "\xA7tensors\x91\x01", 0, "tensor 0"),
    MAP("\x82" KIND "\xA7tensors\x91\x92\xA1x\x05", 0, "tensor 0"),
    MAP(T3("\xA0", "\x05\x91\x01"), 64, "name of tensor 0"),
    MAP(T3("\xA2"
           "a ",
           "\x05\x91\x01"),
        64, "name of tensor 0"),
    MAP(T3("\xA2"
           "a\x00",
           "\x05\x91\x01"),
        64, "name of tensor 0"),
    MAP(T3("\xA2"
           "\xC3\xA9",
           "\x05\x91\x01"),
        64, "name of tensor 0"),
    MAP(T3("\x01", "\x05\x91\x01"), 64, "name of tensor 0"),
    MAP(T3("\xA1x", "\x0B\x91\x01"), 64, "dtype"),
    MAP(T3("\xA1x", "\xCF\x00\x00\x00\x01\x00\x00\x00\x05\x91\x01"), 64, "dtype"),
    MAP(T3("\xA1x", "\xA1"
                    "f\x91\x01"),
        64, "dtype"),
    MAP(T3("\xA1x", "\x05\x90"), 64, "1 to 6 extents"),
    MAP(T3("\xA1x", "\x05\x97\x01\x01\x01\x01\x01\x01\x01"), 64, "1 to 6 extents"),
    MAP(T3("\xA1x", "\x05\x01"), 64, "1 to 6 extents"),
    MAP(T3("\xA1x", "\x05\x92\x01\x00"), 64, "extent 1"),
    MAP(T3("\xA1x", "\x05\x91\xFF"), 64, "extent 0"),
    MAP(T3("\xA1x", "\x05\x91\xCA\x3F\x80\x00\x00"), 64, "extent 0"),
    MAP(T3("\xA1x", "\x05\x92\xCF\x40\x00\x00\x00\x00\x00\x00\x00\x08"), 64, "needs more than"),
    MAP(T3("\xA1x", "\x05\x92\xCF\x80\x00\x00\x00\x00\x00\x00\x00\x02"), 64, "needs more than"),
    MAP(T3("\xA1x", "\x05\x91\xCE\x10\x00\x00\x01"), 64, "needs more than"),
    MAP(T3("\xA1x", "\x05\x91\x11"), 64, "beyond"),
    MAP(T3("\xA1x", "\x05\x91\x10"), 128, "end at byte"),
    MAP(T3("\xA1x", "\x05\x91\x10"), 0, "beyond"),
    MAP("\x82" KIND "\xA7tensors\x92\x93\xA1x\x05\x91\x01\x93\xA1x\x05\x91\x01", 128, "two tensors"),
    MAP("\x82" KIND "\xA7tensors\x91\x94\xA1x\x05\x91\x01\xC1", 64, "member 3"),
    MAP("\x82" KIND "\xA7tensors\xDC\x00\x21", 0, "`tensors`"),
};

static void each_malformed_map_is_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < CORRAL_COUNT_OF(hostile); i++) {
        uint64_t bytes;
        void *memory = assemble(hostile[i].map, hostile[i].bytes, hostile[i].tensor_bytes, &bytes);
        const enum corral_status status = corral_traj_record_decode(memory, bytes, &view, &err);
        if (status != CORRAL_PROTOCOL || strstr(err.text, hostile[i].named) == NULL) {
            fail_msg("case %zu: %s, `%s`, expected it to name `%s`", i, corral_status_name(status), err.text,
                     hostile[i].named);
        }
        check_status(corral_traj_record_decode(memory, bytes, &view, NULL), CORRAL_PROTOCOL);
        free(memory);
    }
}

static void refuse_prologue(void *memory, uint64_t bytes, const char *named)
{
    check_status(corral_traj_record_decode(memory, bytes, &view, &err), CORRAL_PROTOCOL);
    if (strstr(err.text, named) == NULL) {
        fail_msg("`%s` does not name `%s`", err.text, named);
    }
    assert_null(corral_traj_record_place(memory, 0)); /* there is no tensor anyway */
}

static void each_wrong_prologue_is_refused_by_name(void **state)
{
    (void)state;
    uint64_t bytes;
    struct corral_traj_prologue *p = assemble("\x82" KIND NONE, 16, 0, &bytes), good = *p;
    check_ok(corral_traj_record_decode(p, bytes, &view, &err));
    check_status(corral_traj_record_decode(p, 63, &view, &err), CORRAL_PROTOCOL);
    check_status(corral_traj_record_decode(p, 0, &view, &err), CORRAL_PROTOCOL);
    check_status(corral_traj_record_decode(p, bytes - 64, &view, &err), CORRAL_PROTOCOL);
    check_status(corral_traj_record_decode((uint8_t *)p + 8, bytes - 64, &view, &err), CORRAL_INVALID);
#define WRONG(member, value, named)       \
    do {                                  \
        p->member = value;                \
        refuse_prologue(p, bytes, named); \
        *p = good;                        \
    } while (0)
    WRONG(magic, 0x31465243, "magic");
    WRONG(format, 0, "format 0");
    WRONG(format, 2, "format 2");
    WRONG(bytes, 64, "within 64");
    WRONG(bytes, 127, "claims 127");
    WRONG(bytes, 192, "claims 192");
    WRONG(bytes, 0, "within 0");
    WRONG(bytes, UINT64_MAX - 63, "claims");
    WRONG(header_bytes, 0, "header of 0");
    WRONG(header_bytes, 65, "header of 65");
    WRONG(header_bytes, CORRAL_TRAJ_HEADER_MAX + 1, "header of 16385");
    WRONG(header_bytes, UINT32_MAX, "header of");
    WRONG(header_bytes, 17, "after the end");
    WRONG(header_bytes, 15, "`tensors`");
    WRONG(reserved0, 1, "reserved");
    WRONG(reserved1[0], 1, "reserved");
    WRONG(reserved1[1], UINT64_C(1) << 63, "reserved");
    free(p);
}

/* Every prefix of the map and every byte of it changed: never more than an error. */
static void damage_is_never_more_than_an_error(void **state)
{
    (void)state;
    struct test_record t;
    uint64_t bytes;
    test_record_episode(&t, 50);
    uint8_t *memory = test_record_encode(&t.record, &bytes);
    struct corral_traj_prologue *p = (void *)memory;
    const uint32_t header_bytes = p->header_bytes;
    for (uint32_t n = 1; n < header_bytes; n++) {
        p->header_bytes = n;
        check_status(corral_traj_record_decode(memory, bytes, &view, &err), CORRAL_PROTOCOL);
        (void)corral_traj_record_place(memory, 7);
    }
    p->header_bytes = header_bytes;
    for (uint32_t at = 0; at < header_bytes; at++) {
        uint8_t *b = memory + CORRAL_TRAJ_PROLOGUE_BYTES + at, before = *b;
        for (uint32_t value = 0; value < 256; value++) {
            *b = (uint8_t)value;
            const enum corral_status status = corral_traj_record_decode(memory, bytes, &view, &err);
            assert_true(status == CORRAL_OK || status == CORRAL_PROTOCOL);
            const uint8_t *place = corral_traj_record_place(memory, 7);
            assert_true(place == NULL || (place >= memory && place < memory + bytes));
        }
        *b = before;
    }
    free(memory);
    test_record_free(&t);
}

/* ---- what a writer gets wrong ---- */

static void refuse_record(const struct corral_traj_record *r, const char *named)
{
    uint64_t bytes = 77;
    check_status(corral_traj_record_bytes(r, &bytes, &err), CORRAL_INVALID);
    if (strstr(err.text, named) == NULL) {
        fail_msg("`%s` does not name `%s`", err.text, named);
    }
    assert_int_equal(bytes, 77);
}

static void what_a_writer_gets_wrong_is_named(void **state)
{
    (void)state;
    struct corral_traj_tensor t[2] = {{.name = "a", .dtype = CORRAL_TRAJ_F32, .dims = 1, .shape = {4}},
                                      {.name = "b", .dtype = CORRAL_TRAJ_U8, .dims = 2, .shape = {2, 2}}};
    struct corral_traj_score s[2] = {{"x", 1}, {"y", 2}};
    const struct corral_traj_record good = {
        .size = sizeof good, .tensors = t, .tensor_count = 2, .scores = s, .score_count = 2};
    struct corral_traj_record r = good;
    uint64_t bytes;
    char longest[CORRAL_TRAJ_TASK_MAX + 2];
    memset(longest, 'l', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    check_ok(corral_traj_record_bytes(&r, &bytes, &err));
#define BAD(what, named)          \
    do {                          \
        r = good;                 \
        what;                     \
        refuse_record(&r, named); \
    } while (0)
    BAD(r.size = 8, "size member");
    BAD(r.kind = 2, "kind 2");
    BAD(r.version_min = 1, "oldest");
    BAD(r.group = 7, "group");
    BAD(r.group_index = 7, "group");
    BAD((r.group_size = 8, r.group_index = 8), "group");
    BAD(r.env = "\xFF", "`env`");
    BAD(r.finish = longest, "`finish`");
    BAD(r.task = longest, "`task`");
    BAD(r.tensors = NULL, "NULL");
    BAD(r.scores = NULL, "NULL");
    BAD(r.tensor_count = 33, "33 tensors");
    BAD(r.score_count = 33, "33 scores");
    BAD(t[1].name = "a", "two tensors");
    BAD(t[1].name = "", "tensor 1");
    BAD(t[1].name = NULL, "tensor 1");
    BAD(t[1].name = "with space", "tensor 1");
    t[1].name = "b";
    BAD(s[1].name = "x", "two scores");
    s[1].name = "y";
    BAD(t[1].dtype = 11, "`b`");
    t[1].dtype = CORRAL_TRAJ_U8;
    BAD(t[1].dims = 0, "`b`");
    BAD(t[1].dims = 7, "`b`");
    t[1].dims = 2;
    BAD(t[1].shape[1] = 0, "`b`");
    BAD(t[1].shape[1] = UINT64_MAX, "`b`");
    BAD(t[1].shape[1] = CORRAL_TRAJ_RECORD_MAX, "`b`");
    BAD(t[1].shape[1] = CORRAL_TRAJ_RECORD_MAX / 2, "at most"); /* the tensor alone would do */
    t[1].shape[1] = 2;
    void *memory = test_record_encode(&good, &bytes);
    check_status(corral_traj_record_encode(&good, memory, bytes - 64, &err), CORRAL_INVALID);
    check_status(corral_traj_record_encode(&good, memory, bytes + 64, &err), CORRAL_INVALID);
    check_status(corral_traj_record_encode(&good, (uint8_t *)memory + 8, bytes, &err), CORRAL_INVALID);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(the_largest_header_fits),
        cmocka_unit_test(tensors_can_be_filled_in_place),
        cmocka_unit_test(msgpack_c_reads_the_same),
        cmocka_unit_test(nothing_is_accepted_that_the_general_scan_refuses),
        cmocka_unit_test(unknown_fields_are_skipped),
        cmocka_unit_test(numbers_may_have_any_form),
        cmocka_unit_test(each_malformed_map_is_refused_by_name),
        cmocka_unit_test(each_wrong_prologue_is_refused_by_name),
        cmocka_unit_test(damage_is_never_more_than_an_error),
        cmocka_unit_test(what_a_writer_gets_wrong_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
