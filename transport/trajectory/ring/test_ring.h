/* What the ring's tests share: a ring with both sides in this process, and records that say who they are. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RING_TEST_RING_H
#define CORRAL_TRANSPORT_TRAJECTORY_RING_TEST_RING_H

#include "base/rng.h"
#include "tests/check.h"
#include "transport/trajectory/ring/layout.h"
#include <string.h>
#include <unistd.h>

struct test_pair {
    struct corral_ring *producer, *consumer;
    int fd[3]; /* kept when both sides are closed */
};

static inline void test_pair_open(struct test_pair *p, uint64_t bytes)
{
    struct corral_error err;
    int fd[3];
    check_ok(corral_ring_create(&p->producer, bytes, false, NULL, &err));
    corral_ring_descriptors(p->producer, fd);
    for (int i = 0; i < 3; i++) {
        p->fd[i] = dup(fd[i]);
        assert_true(p->fd[i] >= 0);
    }
    check_ok(corral_ring_attach(&p->consumer, CORRAL_RING_CONSUMER, p->fd, &err));
}

static inline void test_pair_close(struct test_pair *p)
{
    corral_ring_close(p->producer);
    corral_ring_close(p->consumer);
    for (int i = 0; i < 3; i++) {
        close(p->fd[i]);
    }
}

/* Length and bytes of record `id` follow from the id. At least 16 bytes: id, then a check over the rest. */
static inline uint64_t test_record_bytes(uint64_t id, uint64_t most)
{
    return 16 + corral_seed_derive(3, id, 0, 0) % (most - 15);
}

static inline uint64_t test_record_check(uint64_t id, const uint8_t *data, uint64_t bytes)
{
    uint64_t sum = ring_mix(id + 1);
    for (uint64_t i = 16; i < bytes; i++) {
        sum = ring_mix(sum ^ data[i]);
    }
    return sum;
}

static inline void test_record_fill(void *to, uint64_t id, uint64_t bytes)
{
    uint8_t *data = to;
    memcpy(data, &id, 8);
    for (uint64_t i = 16; i < bytes; i++) {
        data[i] = (uint8_t)(id * 31 + i * 7);
    }
    uint64_t check = test_record_check(id, data, bytes);
    memcpy(data + 8, &check, 8);
}

static inline bool test_record_whole(const struct corral_ring_item *item, uint64_t *id, uint64_t most)
{
    uint64_t check;
    if (item->bytes < 16 || (uintptr_t)item->data % CORRAL_RING_ALIGN != 0) {
        return false;
    }
    memcpy(id, item->data, 8);
    memcpy(&check, (const uint8_t *)item->data + 8, 8);
    return item->bytes == test_record_bytes(*id, most) &&
           check == test_record_check(*id, item->data, item->bytes);
}

static inline enum corral_status test_put(struct corral_ring *r, uint64_t id, uint64_t most)
{
    void *to;
    uint64_t bytes = test_record_bytes(id, most);
    enum corral_status status = corral_ring_reserve(r, bytes, &to, NULL);
    if (status == CORRAL_OK) {
        test_record_fill(to, id, bytes);
        corral_ring_commit(r, bytes);
    }
    return status;
}

#endif
