#include "transport/trajectory/ring/test_ring.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define BYTES CORRAL_RING_BYTES_MIN
#define MOST 3000u

static int descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

static void expect(struct corral_ring *r, uint64_t id, struct corral_ring_item *item)
{
    struct corral_error err;
    uint64_t got;
    check_ok(corral_ring_next(r, item, &err));
    assert_true(test_record_whole(item, &got, MOST));
    assert_int_equal(got, id);
}

/* ---- records ---- */

struct held {
    uint64_t id;
    struct corral_ring_item item;
};

/* Random puts, takes and releases in any order over hundreds of laps, beside a model that knows what must be there. */
static void carries_records_whole_and_in_order_whatever_the_order_of_release(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct test_pair p;
        struct corral_rng rng;
        struct held held[64];
        uint32_t held_count = 0;
        uint64_t put = 0, taken = 0, released = 0;
        test_pair_open(&p, BYTES);
        corral_rng_seed(&rng, seed);
        for (int step = 0; step < 60000; step++) {
            uint64_t what = corral_rng_below(&rng, 5);
            if (what < 2) {
                enum corral_status status = test_put(p.producer, put, MOST);
                assert_true(status == CORRAL_OK || status == CORRAL_AGAIN);
                assert_true(status == CORRAL_OK || put > released); /* an empty ring has room */
                put += status == CORRAL_OK;
            } else if (what < 4 && held_count < 64) {
                struct corral_ring_item item;
                enum corral_status status = corral_ring_next(p.consumer, &item, NULL);
                assert_int_equal(status, taken < put ? CORRAL_OK : CORRAL_AGAIN);
                if (status == CORRAL_OK) {
                    held[held_count++] = (struct held){.id = taken++, .item = item};
                }
            } else if (held_count > 0) {
                struct corral_error err;
                uint32_t i = (uint32_t)corral_rng_below(&rng, held_count);
                uint64_t id;
                assert_true(test_record_whole(&held[i].item, &id, MOST));
                assert_int_equal(id, held[i].id);
                check_ok(corral_ring_release(p.consumer, held[i].item.position, &err));
                held[i] = held[--held_count];
                released++;
            }
            assert_int_equal(corral_ring_unreleased(p.producer), put - released);
            assert_int_equal(corral_ring_released(p.producer), released);
        }
        assert_true(put > 10 * BYTES / MOST);
        test_pair_close(&p);
    }
}

static void a_record_is_there_when_it_is_committed_and_not_before(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    void *to, *to2;
    test_pair_open(&p, BYTES);
    check_ok(corral_ring_reserve(p.producer, 500, &to, &err));
    memset(to, 1, 500);
    check_status(corral_ring_next(p.consumer, &item, &err), CORRAL_AGAIN);
    check_ok(corral_ring_reserve(p.producer, 300, &to2, &err)); /* replaces the first */
    assert_ptr_equal(to, to2);
    memset(to2, 2, 300);
    corral_ring_commit(p.producer, 200); /* less than reserved */
    check_ok(corral_ring_next(p.consumer, &item, &err));
    assert_int_equal(item.bytes, 200);
    assert_int_equal(((const uint8_t *)item.data)[199], 2);
    check_status(corral_ring_next(p.consumer, &item, &err), CORRAL_AGAIN);
    test_pair_close(&p);
}

static void a_full_ring_has_room_again_when_the_oldest_is_released(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item items[8];
    void *to;
    uint64_t bytes = BYTES / 4 - 64, count = 0;
    test_pair_open(&p, BYTES);
    while (corral_ring_reserve(p.producer, bytes, &to, &err) == CORRAL_OK) {
        memset(to, (int)count, bytes);
        corral_ring_commit(p.producer, bytes);
        check_ok(corral_ring_next(p.consumer, &items[count++], &err));
    }
    assert_int_equal(err.status, CORRAL_AGAIN);
    assert_int_equal(count, 3); /* the fourth would leave no place for the next header */
    check_ok(corral_ring_release(p.consumer, items[1].position, &err));
    check_status(corral_ring_reserve(p.producer, bytes, &to, &err), CORRAL_AGAIN);
    check_ok(corral_ring_release(p.consumer, items[0].position, &err));
    check_ok(corral_ring_reserve(p.producer, 2 * bytes, &to, &err)); /* room of both, in one piece */
    memset(to, 9, 2 * bytes);
    assert_int_equal(((const uint8_t *)items[2].data)[bytes - 1], 2);
    corral_ring_commit(p.producer, 2 * bytes);
    test_pair_close(&p);
}

static void half_the_ring_fits_and_more_is_refused(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    void *to;
    test_pair_open(&p, BYTES);
    for (int lap = 0; lap < 7; lap++) {
        check_ok(corral_ring_reserve(p.producer, BYTES / 2, &to, &err));
        memset(to, lap, BYTES / 2);
        corral_ring_commit(p.producer, BYTES / 2);
        check_ok(corral_ring_next(p.consumer, &item, &err));
        for (uint64_t i = 0; i < BYTES / 2; i++) {
            assert_int_equal(((const uint8_t *)item.data)[i], lap);
        }
        check_ok(corral_ring_release(p.consumer, item.position, &err));
    }
    check_status(corral_ring_reserve(p.producer, BYTES / 2 + 1, &to, &err), CORRAL_INVALID);
    check_status(corral_ring_reserve(p.producer, UINT64_MAX, &to, &err), CORRAL_INVALID);
    test_pair_close(&p);
}

static void only_what_is_handed_out_is_released_and_once(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item a, b;
    test_pair_open(&p, BYTES);
    for (uint64_t id = 0; id < 3; id++) {
        assert_int_equal(test_put(p.producer, id, MOST), CORRAL_OK);
    }
    check_status(corral_ring_release(p.consumer, 0, &err), CORRAL_INVALID);
    expect(p.consumer, 0, &a);
    expect(p.consumer, 1, &b);
    check_status(corral_ring_release(p.consumer, b.position + 64, &err), CORRAL_INVALID);
    check_status(corral_ring_release(p.consumer, b.position + 1, &err), CORRAL_INVALID);
    check_status(corral_ring_release(p.consumer, UINT64_MAX - 63, &err), CORRAL_INVALID);
    check_ok(corral_ring_release(p.consumer, b.position, &err));
    check_status(corral_ring_release(p.consumer, b.position, &err), CORRAL_INVALID);
    check_ok(corral_ring_release(p.consumer, a.position, &err));
    check_status(corral_ring_release(p.consumer, a.position, &err), CORRAL_INVALID);
    assert_int_equal(corral_ring_unreleased(p.producer), 1);
    test_pair_close(&p);
}

static void copies_of_any_size_and_place_are_exact(void **state)
{
    (void)state;
    static uint8_t from[9000], to[9000], want[9000];
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    for (size_t i = 0; i < sizeof from; i++) {
        from[i] = (uint8_t)corral_rng_next(&rng);
    }
    for (int i = 0; i < 3000; i++) {
        uint64_t at = corral_rng_below(&rng, 200), source = corral_rng_below(&rng, 200),
                 bytes = corral_rng_below(&rng, i % 2 ? 8600 : 300);
        memset(to, 0, sizeof to);
        memset(want, 0, sizeof want);
        corral_ring_copy(to + at, from + source, bytes);
        memcpy(want + at, from + source, bytes);
        assert_memory_equal(to, want, sizeof to);
    }
}

/* ---- successors ---- */

static void a_side_has_one_holder(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring *other = NULL;
    test_pair_open(&p, BYTES);
    check_status(corral_ring_attach(&other, CORRAL_RING_PRODUCER, p.fd, &err), CORRAL_EXISTS);
    check_status(corral_ring_attach(&other, CORRAL_RING_CONSUMER, p.fd, &err), CORRAL_EXISTS);
    assert_null(other);
    assert_true(corral_ring_peer_alive(p.producer));
    corral_ring_close(p.consumer);
    assert_false(corral_ring_peer_alive(p.producer));
    check_ok(corral_ring_attach(&p.consumer, CORRAL_RING_CONSUMER, p.fd, &err));
    assert_true(corral_ring_peer_alive(p.producer));
    test_pair_close(&p);
}

static void a_pid_that_was_used_again_holds_nothing(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    test_pair_open(&p, BYTES);
    corral_ring_close(p.consumer);
    /* This process's pid, but another start time: the holder is gone. */
    atomic_store(&p.producer->control->holder[CORRAL_RING_CONSUMER], p.producer->own ^ 1);
    assert_false(corral_ring_peer_alive(p.producer));
    check_ok(corral_ring_attach(&p.consumer, CORRAL_RING_CONSUMER, p.fd, &err));
    test_pair_close(&p);
}

static void who_was_replaced_stops(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    void *to;
    test_pair_open(&p, BYTES);
    atomic_store(&p.producer->control->holder[CORRAL_RING_CONSUMER], p.producer->own ^ 1);
    atomic_store(&p.producer->control->holder[CORRAL_RING_PRODUCER], p.producer->own ^ 1);
    check_status(corral_ring_next(p.consumer, &item, &err), CORRAL_PROTOCOL);
    while (test_put(p.producer, 1, MOST) == CORRAL_OK) {
    }
    check_status(corral_ring_reserve(p.producer, MOST, &to, &err), CORRAL_PROTOCOL);
    test_pair_close(&p);
}

static void a_consumer_reads_again_what_the_one_before_had_not_released(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item items[6], item;
    test_pair_open(&p, BYTES);
    for (uint64_t id = 0; id < 8; id++) {
        assert_int_equal(test_put(p.producer, id, MOST), CORRAL_OK);
    }
    for (uint64_t id = 0; id < 6; id++) {
        expect(p.consumer, id, &items[id]);
    }
    check_ok(corral_ring_release(p.consumer, items[0].position, &err));
    check_ok(corral_ring_release(p.consumer, items[2].position, &err));
    check_ok(corral_ring_release(p.consumer, items[5].position, &err));
    corral_ring_close(p.consumer);
    check_ok(corral_ring_attach(&p.consumer, CORRAL_RING_CONSUMER, p.fd, &err));
    assert_int_equal(corral_ring_released(p.producer), 3);
    static const uint64_t left[] = {1, 3, 4, 6, 7};
    for (size_t i = 0; i < CORRAL_COUNT_OF(left); i++) {
        expect(p.consumer, left[i], &item);
        check_ok(corral_ring_release(p.consumer, item.position, &err));
    }
    check_status(corral_ring_next(p.consumer, &item, &err), CORRAL_AGAIN);
    assert_int_equal(corral_ring_unreleased(p.producer), 0);
    assert_int_equal(p.consumer->tail, p.producer->position); /* all memory is free again */
    test_pair_close(&p);
}

/* The memory of what was released before goes back to the producer together with the oldest, before the consumer has read over it. */
static void a_consumer_does_not_read_what_it_gave_back(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item items[4], item;
    uint64_t put = 4;
    test_pair_open(&p, BYTES);
    for (uint64_t id = 0; id < 4; id++) {
        assert_int_equal(test_put(p.producer, id, MOST), CORRAL_OK);
        expect(p.consumer, id, &items[id]);
    }
    for (uint64_t id = 1; id < 4; id++) {
        check_ok(corral_ring_release(p.consumer, items[id].position, &err));
    }
    corral_ring_close(p.consumer);
    check_ok(corral_ring_attach(&p.consumer, CORRAL_RING_CONSUMER, p.fd, &err));
    expect(p.consumer, 0, &item);
    check_ok(corral_ring_release(p.consumer, item.position, &err));
    while (test_put(p.producer, put, MOST) == CORRAL_OK) {
        put++;
    }
    for (uint64_t id = 4; id < put; id++) {
        expect(p.consumer, id, &item);
    }
    test_pair_close(&p);
}

static void a_producer_takes_back_what_the_one_before_had_not_committed(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring_item item;
    void *to;
    test_pair_open(&p, BYTES);
    for (uint64_t id = 0; id < 100; id++) { /* over the end of the ring */
        check_ok(corral_ring_reserve(p.producer, MOST, &to, &err));
        memset(to, 0x38, MOST);
        corral_ring_close(p.producer);
        check_ok(corral_ring_attach(&p.producer, CORRAL_RING_PRODUCER, p.fd, &err));
        assert_int_equal(corral_ring_unreleased(p.producer) + corral_ring_released(p.producer), id);
        assert_int_equal(test_put(p.producer, id, MOST), CORRAL_OK);
        expect(p.consumer, id, &item);
        check_ok(corral_ring_release(p.consumer, item.position, &err));
    }
    test_pair_close(&p);
}

/* ---- memory ---- */

struct counted {
    uint64_t used, limit;
};

static enum corral_status count_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                      struct corral_error *err)
{
    struct counted *c = ctx;
    if (c->used + bytes > c->limit) {
        return corral_fail(err, CORRAL_DENIED, "%s: denied by the test", what);
    }
    c->used += bytes;
    return corral_alloc(&corral_allocator_heap, bytes, what, out, err);
}

static void count_release(void *ctx, void *memory, size_t bytes)
{
    struct counted *c = ctx;
    c->used -= memory != NULL ? bytes : 0;
    corral_release(&corral_allocator_heap, memory, bytes);
}

static void its_bytes_are_charged_as_long_as_it_is_held(void **state)
{
    (void)state;
    struct counted c = {.limit = 3 * BYTES};
    struct corral_allocator charge = {.alloc = count_alloc, .release = count_release, .ctx = &c};
    struct corral_ring *r = NULL, *other = NULL;
    struct corral_error err;
    int before = descriptors();
    check_ok(corral_ring_create(&r, BYTES + 1, false, &charge, &err));
    assert_true(c.used >= corral_ring_capacity(r) && corral_ring_capacity(r) > BYTES);
    check_status(corral_ring_create(&other, 2 * BYTES, false, &charge, &err), CORRAL_DENIED);
    assert_null(other);
    corral_ring_close(r);
    assert_int_equal(c.used, 0);
    assert_int_equal(descriptors(), before);
}

static void what_stands_for_it_in_the_quota_takes_no_memory_itself(void **state)
{
    (void)state;
    struct counted c = {.limit = UINT64_MAX};
    struct corral_allocator charge = {.alloc = count_alloc, .release = count_release, .ctx = &c};
    struct corral_ring *r = NULL;
    struct corral_error err;
    uint64_t bytes = 8u << 20, page = (uint64_t)sysconf(_SC_PAGESIZE), resident = 0;
    unsigned char in[(8u << 20) / 4096];
    check_ok(corral_ring_create(&r, bytes, false, &charge, &err));
    uintptr_t first = ((uintptr_t)r->charged + page - 1) / page * page;
    assert_int_equal(mincore((void *)first, bytes - page, in), 0);
    for (uint64_t i = 0; i < (bytes - page) / page; i++) {
        resident += in[i] & 1;
    }
    assert_true(resident < 8);
    corral_ring_close(r);
}

static void huge_pages_are_used_or_their_absence_is_said(void **state)
{
    (void)state;
    struct counted c = {.limit = UINT64_MAX};
    struct corral_allocator charge = {.alloc = count_alloc, .release = count_release, .ctx = &c};
    struct test_pair p = {.fd = {-1, -1, -1}};
    struct corral_error err;
    struct corral_ring_item item;
    int fd[3];
    check_ok(corral_ring_create(&p.producer, 3u << 20, true, &charge, &err));
    corral_ring_descriptors(p.producer, fd);
    check_ok(corral_ring_attach(&p.consumer, CORRAL_RING_CONSUMER, fd, &err));
    bool huge = strcmp(corral_ring_pages(p.producer), "huge") == 0;
    assert_true(huge || strncmp(corral_ring_pages(p.producer), "base", 4) == 0);
    assert_int_equal(corral_ring_capacity(p.producer), huge ? 4u << 20 : 3u << 20);
    assert_int_equal(test_put(p.producer, 7, MOST), CORRAL_OK);
    expect(p.consumer, 7, &item);
    test_pair_close(&p);
    assert_int_equal(c.used, 0);
}

/* Where the system refuses the memory, create fails and leaves nothing; a fault at first use would be a signal. */
static void a_ring_that_the_system_refuses_is_an_error(void **state)
{
    (void)state;
    struct corral_error err;
    struct corral_ring *r = NULL;
    check_status(corral_ring_create(&r, BYTES - 1, false, NULL, &err), CORRAL_INVALID);
    check_status(corral_ring_create(&r, CORRAL_RING_BYTES_MAX + 1, false, NULL, &err), CORRAL_INVALID);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct counted c = {.limit = UINT64_MAX};
        struct corral_allocator charge = {.alloc = count_alloc, .release = count_release, .ctx = &c};
        struct rlimit limit = {.rlim_cur = BYTES, .rlim_max = BYTES};
        signal(SIGXFSZ, SIG_IGN);
        int before = descriptors();
        bool good = setrlimit(RLIMIT_FSIZE, &limit) == 0 &&
                    corral_ring_create(&r, 4 * BYTES, false, &charge, &err) == CORRAL_IO &&
                    err.sys == EFBIG && r == NULL && c.used == 0 && descriptors() == before;
        _exit(good ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void the_memory_cannot_be_cut(void **state)
{
    (void)state;
    struct test_pair p;
    test_pair_open(&p, BYTES);
    assert_int_equal(ftruncate(p.fd[0], 4096), -1);
    assert_int_equal(ftruncate(p.fd[0], 1 << 20), -1);
    test_pair_close(&p);
}

static void descriptors_of_something_else_are_refused(void **state)
{
    (void)state;
    struct test_pair p;
    struct corral_error err;
    struct corral_ring *r = NULL;
    int ends[2], blocking = eventfd(0, EFD_CLOEXEC), before;
    int plain = memfd_create("not-sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING),
        empty = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    test_pair_open(&p, BYTES);
    corral_ring_close(p.consumer);
    p.consumer = NULL;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(ftruncate(plain, BYTES + 4096), 0);
    assert_int_equal(ftruncate(empty, BYTES + 4096), 0);
    assert_int_equal(fcntl(empty, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    const struct {
        int fd[3];
        enum corral_status status;
    } cases[] = {
        {{plain, p.fd[1], p.fd[2]}, CORRAL_INVALID},    {{empty, p.fd[1], p.fd[2]}, CORRAL_PROTOCOL},
        {{ends[0], p.fd[1], p.fd[2]}, CORRAL_INVALID},  {{p.fd[0], ends[1], p.fd[2]}, CORRAL_INVALID},
        {{p.fd[0], p.fd[1], blocking}, CORRAL_INVALID}, {{-1, p.fd[1], p.fd[2]}, CORRAL_IO},
    };
    before = descriptors();
    for (size_t i = 0; i < CORRAL_COUNT_OF(cases); i++) {
        check_status(corral_ring_attach(&r, CORRAL_RING_CONSUMER, cases[i].fd, &err), cases[i].status);
        assert_null(r);
    }
    assert_int_equal(descriptors(), before);
    int others[] = {ends[0], ends[1], blocking, plain, empty};
    for (size_t i = 0; i < CORRAL_COUNT_OF(others); i++) {
        close(others[i]);
    }
    test_pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(carries_records_whole_and_in_order_whatever_the_order_of_release),
        cmocka_unit_test(a_record_is_there_when_it_is_committed_and_not_before),
        cmocka_unit_test(a_full_ring_has_room_again_when_the_oldest_is_released),
        cmocka_unit_test(half_the_ring_fits_and_more_is_refused),
        cmocka_unit_test(only_what_is_handed_out_is_released_and_once),
        cmocka_unit_test(copies_of_any_size_and_place_are_exact),
        cmocka_unit_test(a_side_has_one_holder),
        cmocka_unit_test(a_pid_that_was_used_again_holds_nothing),
        cmocka_unit_test(who_was_replaced_stops),
        cmocka_unit_test(a_consumer_reads_again_what_the_one_before_had_not_released),
        cmocka_unit_test(a_consumer_does_not_read_what_it_gave_back),
        cmocka_unit_test(a_producer_takes_back_what_the_one_before_had_not_committed),
        cmocka_unit_test(its_bytes_are_charged_as_long_as_it_is_held),
        cmocka_unit_test(what_stands_for_it_in_the_quota_takes_no_memory_itself),
        cmocka_unit_test(huge_pages_are_used_or_their_absence_is_said),
        cmocka_unit_test(a_ring_that_the_system_refuses_is_an_error),
        cmocka_unit_test(the_memory_cannot_be_cut),
        cmocka_unit_test(descriptors_of_something_else_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
