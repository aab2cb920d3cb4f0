/* Links against the copies of the plan they are cut from: whatever the mesh and the bucket, the same bytes in the same places, each once. */
#include "tests/check.h"

#include "transport/weights/link/test_mesh.h"

#define BUCKET CORRAL_BUCKET_BYTES_MIN

static struct corral_link *link_of(const struct test_mesh *m, uint32_t source, uint32_t destination,
                                   uint64_t bucket_bytes)
{
    struct corral_error err = {0};
    struct corral_link *link = NULL;
    check_ok(corral_link_create(&link, m->plan, source, destination, bucket_bytes, &err));
    return link;
}

/* Spans of a bucket: in stream order, merged, as long as the bucket; counts how often each destination byte is written. */
static void check_spans(const struct corral_link *link, uint32_t bucket, uint8_t *times)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_span span, last = {0};
    uint64_t bytes = 0;
    while (corral_link_next(link, &cursor, &span)) {
        assert_true(span.bytes > 0);
        if (bytes > 0) {
            assert_false(last.source_offset + last.bytes == span.source_offset &&
                         last.destination_offset + last.bytes == span.destination_offset);
        }
        assert_true(span.source_offset + span.bytes <= link->source_extent);
        assert_true(span.destination_offset + span.bytes <= link->destination_extent);
        for (uint64_t i = 0; i < span.bytes; i++) {
            times[span.destination_offset + i]++;
        }
        bytes += span.bytes;
        last = span;
    }
    assert_int_equal(bytes, corral_link_bucket_size(link, bucket));
}

/* The packed bytes of the whole link, made with the plan's own copies. */
static uint8_t *stream_of(const struct corral_link *link, const uint8_t *source)
{
    uint8_t *stream = test_mesh_buffer(link->bytes, 0);
    for (uint32_t i = 0; i < link->copy_count; i++) {
        corral_reshard_copy_pack(&link->copy[i], source, stream + link->start[i]);
    }
    return stream;
}

static void check_iovec(const struct corral_link *link, uint32_t bucket, enum corral_link_side side,
                        uint8_t *base, const uint8_t *expected)
{
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct iovec iov[3];
    uint32_t n;
    uint64_t at = 0;
    while ((n = corral_link_iovec(link, &cursor, side, base, iov, 3)) > 0) {
        for (uint32_t i = 0; i < n; i++) {
            assert_memory_equal(iov[i].iov_base, expected + at, iov[i].iov_len);
            at += iov[i].iov_len;
        }
    }
    assert_int_equal(at, corral_link_bucket_size(link, bucket));
}

static void check_bucket(const struct corral_link *link, uint32_t bucket, uint8_t *source,
                         const uint8_t *stream, uint8_t *copied, uint8_t *unpacked)
{
    const uint8_t *expected = stream + bucket * link->bucket_bytes;
    uint64_t size = corral_link_bucket_size(link, bucket);
    uint8_t *packed = test_mesh_buffer(size, 0);
    corral_link_pack(link, bucket, source, packed);
    assert_memory_equal(packed, expected, size);
    assert_int_equal(packed[size], 0);
    corral_link_unpack(link, bucket, packed, unpacked);
    corral_link_copy(link, bucket, source, copied);
    check_iovec(link, bucket, CORRAL_LINK_SOURCE, source, expected);
    check_iovec(link, bucket, CORRAL_LINK_DESTINATION, copied, expected);
    struct corral_digest d = corral_link_digest_packed(link, bucket, packed);
    assert_true(corral_digest_equal(d, corral_link_digest(link, bucket, CORRAL_LINK_SOURCE, source)));
    assert_true(corral_digest_equal(d, corral_link_digest(link, bucket, CORRAL_LINK_DESTINATION, copied)));
    packed[size / 2] ^= 1;
    assert_false(corral_digest_equal(d, corral_link_digest_packed(link, bucket, packed)));
    free(packed);
}

static void check_mesh(uint64_t seed)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed * 77);
    struct test_mesh m =
        test_mesh_make(seed, 1 + (uint32_t)corral_rng_below(&rng, 3), 1 + (uint32_t)corral_rng_below(&rng, 3),
                       3, 1000 + corral_rng_below(&rng, 90000));
    for (uint32_t d = 0; d < m.to->ranks; d++) {
        uint64_t bytes = m.to->rank_bytes[d], moved = 0;
        uint8_t *copied = test_mesh_buffer(bytes, 0), *unpacked = test_mesh_buffer(bytes, 0);
        uint8_t *times = test_mesh_buffer(bytes, 0);
        for (uint32_t s = 0; s < m.from->ranks; s++) {
            CORRAL_CLEANUP(corral_link_destroyp)
            struct corral_link *link = link_of(&m, s, d, BUCKET + 4096 * corral_rng_below(&rng, 8));
            assert_true(link->source_extent <= m.from->rank_bytes[s]);
            assert_true(link->destination_extent <= bytes);
            uint8_t *stream = stream_of(link, m.source[s]);
            for (uint32_t b = 0; b < link->buckets; b++) {
                check_spans(link, b, times);
                check_bucket(link, b, m.source[s], stream, copied, unpacked);
            }
            moved += link->bytes;
            free(stream);
        }
        assert_int_equal(moved, m.plan->received[d]);
        assert_memory_equal(copied, m.expected[d], bytes + 1);
        assert_memory_equal(unpacked, m.expected[d], bytes + 1);
        for (uint64_t i = 0; i <= bytes; i++) {
            moved -= times[i];
            assert_true(times[i] <= 1);
        }
        assert_int_equal(moved, 0);
        free(copied);
        free(unpacked);
        free(times);
    }
    test_mesh_drop(&m);
}

static void any_mesh_moves_each_byte_once_to_its_place(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        check_mesh(seed);
    }
}

static void an_empty_link_has_no_buckets(void **state)
{
    (void)state;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = NULL;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = NULL;
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *link = NULL;
    struct corral_error err = {0};
    uint32_t t;
    for (int i = 0; i < 2; i++) {
        struct corral_layout **l = i == 0 ? &from : &to;
        check_ok(corral_layout_create(l, 2, &err));
        check_ok(corral_layout_add_tensor(*l, "w", CORRAL_DTYPE_U8, 1, (uint64_t[]){100}, &t, &err));
        check_ok(corral_layout_add_slice(*l, t, 0, 0, 0, 50, 0, &err));
        check_ok(corral_layout_add_slice(*l, t, 1, 0, 50, 50, 0, &err));
    }
    check_ok(corral_reshard_plan_build(from, to, &plan, &err));
    check_ok(corral_link_create(&link, plan, 0, 1, BUCKET, &err));
    assert_int_equal(link->buckets, 0);
    assert_int_equal(link->bytes, 0);
    assert_int_equal(corral_link_bucket_size(link, 0), 0);
    struct corral_span span;
    struct corral_link_cursor cursor = corral_link_seek(link, 0);
    assert_false(corral_link_next(link, &cursor, &span));
}

static void hashes_and_digests_tell_links_and_buckets_apart(void **state)
{
    (void)state;
    struct test_mesh m = test_mesh_make(3, 2, 2, 3, 90000);
    struct corral_digest seen[8];
    uint32_t n = 0;
    for (uint32_t s = 0; s < 2; s++) {
        for (uint32_t d = 0; d < 2; d++) {
            for (uint32_t k = 1; k <= 2; k++) {
                CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *link = link_of(&m, s, d, k * BUCKET);
                for (uint32_t i = 0; i < n; i++) {
                    assert_false(corral_digest_equal(seen[i], link->hash));
                }
                seen[n++] = link->hash;
            }
        }
    }
    /* equal bytes in two buckets of one link, and in two links, have different digests */
    CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *a = link_of(&m, 0, 0, BUCKET);
    CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *b = link_of(&m, 1, 0, BUCKET);
    assert_true(a->buckets > 2 && b->buckets > 1);
    uint8_t *zero = test_mesh_buffer(BUCKET, 0);
    struct corral_digest first = corral_link_digest_packed(a, 0, zero);
    assert_false(corral_digest_equal(first, corral_link_digest_packed(a, 1, zero)));
    assert_false(corral_digest_equal(first, corral_link_digest_packed(b, 0, zero)));
    free(zero);
    test_mesh_drop(&m);
}

static void refuses_ranks_and_buckets_that_cannot_be(void **state)
{
    (void)state;
    struct test_mesh m = test_mesh_make(3, 2, 2, 1, 3000);
    struct corral_link *link = NULL;
    struct corral_error err = {0};
    check_status(corral_link_create(&link, m.plan, 2, 0, BUCKET, &err), CORRAL_INVALID);
    assert_string_equal(err.text, "no link from rank 2 to rank 0: the plan has 2 to 2");
    check_status(corral_link_create(&link, m.plan, 0, 2, BUCKET, &err), CORRAL_INVALID);
    check_status(corral_link_create(&link, m.plan, 0, 0, BUCKET - 4096, &err), CORRAL_INVALID);
    check_status(corral_link_create(&link, m.plan, 0, 0, BUCKET + 1, &err), CORRAL_INVALID);
    check_status(corral_link_create(&link, m.plan, 0, 0, (UINT64_C(1) << 30) + 4096, &err), CORRAL_INVALID);
    assert_null(link);
    test_mesh_drop(&m);
}

static void a_shard_that_is_too_small_is_refused(void **state)
{
    (void)state;
    struct test_mesh m = test_mesh_make(3, 1, 1, 3, 9000);
    CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *link = link_of(&m, 0, 0, BUCKET);
    struct corral_error err = {0};
    struct corral_digest d;
    uint8_t *packed = test_mesh_buffer(BUCKET, 0), *to = test_mesh_buffer(m.to->rank_bytes[0], 0);
    struct corral_shard source = corral_shard_host(m.source[0], m.from->rank_bytes[0]);
    struct corral_shard destination = corral_shard_host(to, m.to->rank_bytes[0] - 1);
    check_ok(source.ops->gather(&source, link, 0, packed, &err));
    check_status(destination.ops->scatter(&destination, link, 0, packed, &err), CORRAL_INVALID);
    check_status(destination.ops->digest(&destination, link, CORRAL_LINK_DESTINATION, 0, &d, &err),
                 CORRAL_INVALID);
    check_status(source.ops->gather(&source, link, link->buckets, packed, &err), CORRAL_INVALID);
    destination.bytes++;
    for (uint32_t b = 0; b < link->buckets; b++) {
        struct corral_digest sent;
        check_ok(source.ops->gather(&source, link, b, packed, &err));
        check_ok(source.ops->digest(&source, link, CORRAL_LINK_SOURCE, b, &sent, &err));
        check_ok(destination.ops->scatter(&destination, link, b, packed, &err));
        check_ok(destination.ops->digest(&destination, link, CORRAL_LINK_DESTINATION, b, &d, &err));
        assert_true(corral_digest_equal(sent, d));
    }
    assert_memory_equal(to, m.expected[0], m.to->rank_bytes[0]);
    free(packed);
    free(to);
    test_mesh_drop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_mesh_moves_each_byte_once_to_its_place),
        cmocka_unit_test(an_empty_link_has_no_buckets),
        cmocka_unit_test(hashes_and_digests_tell_links_and_buckets_apart),
        cmocka_unit_test(refuses_ranks_and_buckets_that_cannot_be),
        cmocka_unit_test(a_shard_that_is_too_small_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
