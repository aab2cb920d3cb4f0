/* The versions that a subscriber holds: states, readers, flips; and readers in threads that check every read while versions come. */
#include "tests/check.h"
#include "transport/weights/api/buffers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BYTES 4096u
#define MS UINT64_C(1000000)

static const struct corral_push_target_ops *const target = &corral_buffers_target;

static struct corral_buffers *make(uint32_t count, bool auto_flip)
{
    struct corral_error err;
    struct corral_buffers *b;
    struct corral_buffers_options o = {
        .bytes = BYTES, .count = count, .auto_flip = auto_flip, .busy_wait_ns = MS};
    check_ok(corral_buffers_create(&b, &o, &err));
    return b;
}

static struct corral_digest digest_for(uint64_t version)
{
    return (struct corral_digest){version, ~version};
}

static enum corral_status push(struct corral_buffers *b, uint64_t version, struct corral_error *err)
{
    struct corral_shard shadow;
    CORRAL_TRY(target->begin(b, version, 0, &shadow, err));
    for (uint32_t i = 0; i < BYTES / 8; i++) {
        ((uint64_t *)shadow.host)[i] = version;
    }
    return target->commit(b, version, digest_for(version), err);
}

static void a_version_is_read_only_after_its_flip(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers *b = make(2, false);
    struct corral_weights_view view = {.size = sizeof view};
    uint64_t pause, ready = 0;
    check_status(corral_buffers_acquire(b, &view, &err), CORRAL_AGAIN);
    check_ok(push(b, 5, &err));
    check_status(corral_buffers_acquire(b, &view, &err), CORRAL_AGAIN);
    check_ok(corral_buffers_wait(b, 5, 0, &ready, &err));
    assert_int_equal(ready, 5);
    assert_int_equal(corral_buffers_version(b), 0);
    check_ok(corral_buffers_flip(b, 5, 0, &pause, &err));
    check_ok(corral_buffers_acquire(b, &view, &err));
    assert_int_equal(view.version, 5);
    assert_int_equal(*(const uint64_t *)view.base, 5);
    corral_buffers_release(b, view.buffer);
    check_ok(corral_buffers_flip(b, 5, 0, &pause, &err)); /* is current */
    check_status(corral_buffers_flip(b, 4, 0, &pause, &err), CORRAL_INVALID);
    check_status(corral_buffers_flip(b, 6, 0, &pause, &err), CORRAL_TIMEOUT);
    corral_buffers_destroy(b);
}

static void versions_never_go_back(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers *b = make(2, true);
    struct corral_shard shadow;
    uint64_t version;
    struct corral_digest digest;
    check_ok(push(b, 5, &err));
    check_status(push(b, 4, &err), CORRAL_INVALID);
    check_ok(push(b, 5, &err)); /* the same bytes again */
    check_ok(target->begin(b, 5, 0, &shadow, &err));
    check_status(target->commit(b, 5, digest_for(6), &err), CORRAL_INVALID);
    target->current(b, &version, &digest);
    assert_int_equal(version, 5);
    assert_true(corral_digest_equal(digest, digest_for(5)));
    check_ok(push(b, 6, &err));
    assert_int_equal(corral_buffers_version(b), 6);
    corral_buffers_destroy(b);
}

static void a_held_version_keeps_its_bytes_and_refuses_what_has_no_room(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers *b = make(2, true);
    struct corral_weights_view view = {.size = sizeof view};
    check_ok(push(b, 1, &err));
    check_ok(corral_buffers_acquire(b, &view, &err));
    check_ok(push(b, 2, &err));
    check_status(push(b, 3, &err), CORRAL_TIMEOUT); /* 2 is current, 1 is held */
    assert_int_equal(*(const uint64_t *)view.base, 1);
    corral_buffers_release(b, view.buffer);
    check_ok(push(b, 3, &err));
    corral_buffers_destroy(b);
}

static void what_waits_for_its_flip_is_not_overwritten(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers *b = make(3, false);
    uint64_t pause;
    check_ok(push(b, 1, &err));
    check_ok(corral_buffers_flip(b, 0, 0, &pause, &err));
    check_ok(push(b, 2, &err));
    check_ok(push(b, 3, &err));
    check_status(push(b, 4, &err), CORRAL_TIMEOUT);
    check_ok(corral_buffers_flip(b, 2, 0, &pause, &err)); /* another rank has told us 2 */
    assert_int_equal(corral_buffers_version(b), 2);
    check_ok(push(b, 4, &err));
    check_ok(corral_buffers_flip(b, 0, 0, &pause, &err));
    assert_int_equal(corral_buffers_version(b), 4);
    check_status(corral_buffers_flip(b, 3, 0, &pause, &err), CORRAL_INVALID);
    corral_buffers_destroy(b);
}

static void a_buffer_that_a_dead_sender_may_write_is_exchanged(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers *b = make(2, true);
    struct corral_shard shadow;
    struct corral_weights_view view = {.size = sizeof view};
    check_ok(push(b, 1, &err));
    check_ok(target->begin(b, 2, 0, &shadow, &err));
    uint64_t *theirs = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, shadow.fd, 0);
    assert_true(theirs != MAP_FAILED);
    target->abort(b, 2, 4711);
    check_ok(push(b, 3, &err));
    memset(theirs, 0xee, BYTES); /* the late writes of the dead */
    check_ok(corral_buffers_acquire(b, &view, &err));
    for (uint32_t i = 0; i < BYTES / 8; i++) {
        assert_int_equal(((const uint64_t *)view.base)[i], 3);
    }
    corral_buffers_release(b, view.buffer);
    munmap(theirs, BYTES);
    corral_buffers_destroy(b);
}

static void a_flip_copies_into_the_engines_own_memory(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_layout *l;
    uint32_t t;
    static uint64_t low[100], high[BYTES / 8 - 100];
    struct corral_weights_region regions[2] = {
        {.size = sizeof *regions, .device = -1, .offset = sizeof low, .bytes = sizeof high, .address = high},
        {.size = sizeof *regions, .device = -1, .offset = 0, .bytes = sizeof low, .address = low}};
    check_ok(corral_layout_create(&l, 1, &err));
    check_ok(corral_layout_add_tensor(l, "w", CORRAL_DTYPE_U64, 1, (uint64_t[]){BYTES / 8}, &t, &err));
    check_ok(corral_layout_add_whole(l, t, 0, 0, &err));
    struct corral_memory *live;
    check_status(corral_memory_create(&live, l, 0, regions, 1, &err), CORRAL_INVALID); /* not all covered */
    check_ok(corral_memory_create(&live, l, 0, regions, 2, &err));
    struct corral_buffers *b;
    struct corral_buffers_options o = {.bytes = BYTES, .count = 1, .live = live, .busy_wait_ns = MS};
    check_ok(corral_buffers_create(&b, &o, &err));
    check_ok(push(b, 9, &err));
    assert_int_equal(low[0], 0);
    check_status(push(b, 10, &err), CORRAL_TIMEOUT);
    uint64_t pause;
    check_ok(corral_buffers_flip(b, 9, 0, &pause, &err));
    assert_int_equal(low[0], 9);
    assert_int_equal(high[BYTES / 8 - 101], 9);
    check_ok(push(b, 10, &err));
    corral_buffers_destroy(b);
    corral_memory_destroy(live);
    corral_layout_destroy(l);
}

/* ---- threads ---- */

#define VERSIONS 2000u

struct reading {
    struct corral_buffers *b;
    uint64_t reads, torn, regressed;
};

static void *read_all(void *arg)
{
    struct reading *r = arg;
    struct corral_weights_view view = {.size = sizeof view};
    uint64_t last = 0;
    while (last < VERSIONS) {
        if (corral_buffers_acquire(r->b, &view, NULL) != CORRAL_OK) {
            continue;
        }
        const uint64_t *word = view.base;
        for (uint32_t i = 0; i < BYTES / 8; i += 37) {
            r->torn += word[i] != view.version;
        }
        r->regressed += view.version < last;
        last = view.version;
        r->reads++;
        corral_buffers_release(r->b, view.buffer);
    }
    return NULL;
}

static void readers_see_whole_versions_while_they_come(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_buffers_options o = {
        .bytes = BYTES, .count = 2, .auto_flip = true, .busy_wait_ns = 20000 * MS};
    struct reading r[2] = {{0}, {0}};
    pthread_t thread[2];
    struct corral_buffers *b;
    check_ok(corral_buffers_create(&b, &o, &err));
    for (int i = 0; i < 2; i++) {
        r[i].b = b;
        assert_int_equal(pthread_create(&thread[i], NULL, read_all, &r[i]), 0);
    }
    for (uint64_t v = 1; v <= VERSIONS; v++) {
        check_ok(push(b, v, &err));
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(r[i].torn, 0);
        assert_int_equal(r[i].regressed, 0);
        assert_true(r[i].reads > 0);
    }
    corral_buffers_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_version_is_read_only_after_its_flip),
        cmocka_unit_test(versions_never_go_back),
        cmocka_unit_test(a_held_version_keeps_its_bytes_and_refuses_what_has_no_room),
        cmocka_unit_test(what_waits_for_its_flip_is_not_overwritten),
        cmocka_unit_test(a_buffer_that_a_dead_sender_may_write_is_exchanged),
        cmocka_unit_test(a_flip_copies_into_the_engines_own_memory),
        cmocka_unit_test(readers_see_whole_versions_while_they_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
