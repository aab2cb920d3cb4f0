/* A ring whose memory was written by somebody else: the input goes over headers, control page and records, then both sides and their successors work on it. */
#include "transport/trajectory/ring/layout.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STEPS 24

static void touch(const void *data, uint64_t bytes)
{
    const volatile uint8_t *at = data;
    if (bytes > 0) {
        (void)at[0];
        (void)at[bytes - 1];
    }
}

static void work(struct corral_ring *producer, struct corral_ring *consumer)
{
    uint64_t last = 0;
    for (uint64_t i = 0; i < STEPS; i++) {
        struct corral_ring_item item;
        void *to;
        if (producer != NULL && corral_ring_reserve(producer, i * 100, &to, NULL) == CORRAL_OK) {
            memset(to, (int)i, i * 100);
            corral_ring_commit(producer, i * 100);
        }
        if (consumer != NULL && corral_ring_next(consumer, &item, NULL) == CORRAL_OK) {
            touch(item.data, item.bytes);
            (void)corral_ring_release(consumer, i % 3 == 0 ? last : item.position, NULL);
            last = item.position;
        }
    }
}

/* Pieces of the input: where (u16, in words from the first header; from 0x8000 on in the control page), then a word. */
static void write_over(struct corral_ring *r, const uint8_t *data, size_t size)
{
    for (; size >= 10; data += 10, size -= 10) {
        uint16_t where;
        uint64_t word;
        memcpy(&where, data, 2);
        memcpy(&word, data + 2, 8);
        uint64_t *memory = where & 0x8000 ? (uint64_t *)r->control + where % (RING_CONTROL_BYTES / 8)
                                          : (uint64_t *)r->data + where % (CORRAL_RING_BYTES_MIN / 8);
        *memory = where & 0x4000 ? *memory ^ word : word;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct corral_ring *producer = NULL, *consumer = NULL;
    int fd[3], kept[3];
    if (corral_ring_create(&producer, CORRAL_RING_BYTES_MIN, false, NULL, NULL) != CORRAL_OK) {
        return 0;
    }
    producer->control->key = producer->key =
        1; /* so that an input can hold right checks, and means the same each time */
    corral_ring_descriptors(producer, fd);
    for (int i = 0; i < 3; i++) {
        kept[i] = dup(fd[i]);
    }
    (void)corral_ring_attach(&consumer, CORRAL_RING_CONSUMER, kept, NULL);
    work(producer, consumer);
    write_over(producer, data, size);
    work(producer, consumer);
    corral_ring_close(producer);
    corral_ring_close(consumer);
    producer = consumer = NULL;
    (void)corral_ring_attach(&producer, CORRAL_RING_PRODUCER, kept, NULL);
    (void)corral_ring_attach(&consumer, CORRAL_RING_CONSUMER, kept, NULL);
    work(producer, consumer);
    corral_ring_close(producer);
    corral_ring_close(consumer);
    for (int i = 0; i < 3; i++) {
        close(kept[i]);
    }
    return 0;
}
