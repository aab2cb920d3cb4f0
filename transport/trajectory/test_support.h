/* What the trajectory tests share: fragments that follow from a seed, an allocator that counts and refuses, a private folder. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_TEST_SUPPORT_H
#define CORRAL_TRANSPORT_TRAJECTORY_TEST_SUPPORT_H

#include "base/memory.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/item.h"
#include <corral/trajectory.h>

/* What the streams of a test go over: rings where CORRAL_TEST_RINGS is set, ZeroMQ otherwise. */
bool test_rings(void);
enum corral_traj_transport test_transport(void);
/* For tests of what only one of them does. */
#define TEST_NEEDS_ZMQ()    \
    do {                    \
        if (test_rings()) { \
            skip();         \
        }                   \
    } while (0)

struct test_fragment {
    struct corral_fragment fragment;
    void *tensors[CORRAL_FRAGMENT_FRAMES];
};
/* Shapes and contents from the seed alone; `size` bounds steps and rows. */
void test_fragment_make(struct test_fragment *t, uint64_t seed, uint32_t size);
/* A fragment of about this many bytes. */
void test_fragment_sized(struct test_fragment *t, uint64_t bytes);
void test_fragment_free(struct test_fragment *t);
/* Same shapes and tensors bit for bit, and every tensor aligned to 64 bytes. */
bool test_fragment_equal(const struct corral_fragment *a, const struct corral_fragment *b);

/* What its record counts for. */
uint64_t test_fragment_cost(const struct corral_fragment *f);
/* The fragment in a record that arrived; false when it holds none, or another identity than the item says. */
bool test_item_fragment(const struct corral_traj_item *item, struct corral_fragment *out);
bool test_item_equal(const struct corral_fragment *expected, const struct corral_traj_item *item);
/* An encoded record with one tensor of `payload` bytes that follow from its sequence; free() it. */
void *test_numbered_record(uint64_t run, uint32_t worker, uint32_t epoch, uint64_t sequence, uint64_t payload,
                           uint64_t *bytes);

/* Each byte is counted; an allocation above `limit` is denied. Any thread that owns it. */
struct test_allocator {
    struct corral_allocator allocator;
    uint64_t used, peak, limit, denials;
};
void test_allocator_init(struct test_allocator *t, uint64_t limit);

#define TEST_PATH_MAX 64
void test_folder_make(char path[TEST_PATH_MAX]);
void test_folder_remove(const char *path);

#endif
