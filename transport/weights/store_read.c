/* The store's readers. */
#include "transport/weights/store_internal.h"

#include "base/clock.h"
#include "base/sync.h"
#include <inttypes.h>
#include <string.h>

#define READ_TRIES_MAX 10000
/* No sleep is longer than this: a writer killed between its commit and the wake-up delays waiters by no more. */
#define WAIT_SLICE_NS (100 * CORRAL_NS_PER_MS)

void corral_weight_store_current(const struct corral_weight_store *s, uint64_t *version,
                                 struct corral_digest *digest)
{
    for (int tries = 0; tries < READ_TRIES_MAX; tries++) {
        uint64_t current = atomic_load_explicit(&s->header->current, memory_order_acquire);
        if (current == 0 || current % 4 >= CORRAL_STORE_SLOTS) {
            break;
        }
        const struct slot_header *slot = &s->header->slot[current % 4];
        uint64_t seq = atomic_load_explicit(&slot->seq, memory_order_acquire);
        struct corral_digest d = {.lo = atomic_load_explicit(&slot->digest_lo, memory_order_relaxed),
                                  .hi = atomic_load_explicit(&slot->digest_hi, memory_order_relaxed)};
        uint64_t of = atomic_load_explicit(&slot->version, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire); /* as in read_once */
        if (seq % 2 == 0 && of == current / 4 &&
            atomic_load_explicit(&slot->seq, memory_order_relaxed) == seq) {
            *version = of;
            *digest = d;
            return;
        }
    }
    *version = 0;
    *digest = (struct corral_digest){0};
}

uint64_t corral_weight_store_version(const struct corral_weight_store *s)
{
    return atomic_load_explicit(&s->header->current, memory_order_acquire) / 4;
}

/* One try: CORRAL_AGAIN when the slot was reused meanwhile. */
static enum corral_status read_once(struct corral_weight_store *s, uint64_t current, void *out,
                                    uint64_t bytes, struct corral_digest *digest, uint64_t *kind,
                                    struct corral_error *err)
{
    uint32_t i = current % 4;
    if (i >= CORRAL_STORE_SLOTS) {
        return corral_fail(err, CORRAL_PROTOCOL, "the weight store is damaged: it names slot %u", i);
    }
    struct slot_header *slot = &s->header->slot[i];
    uint64_t seq = atomic_load_explicit(&slot->seq, memory_order_acquire);
    if (seq % 2 != 0 || atomic_load_explicit(&slot->version, memory_order_relaxed) != current / 4) {
        return CORRAL_AGAIN;
    }
    digest->lo = atomic_load_explicit(&slot->digest_lo, memory_order_relaxed);
    digest->hi = atomic_load_explicit(&slot->digest_hi, memory_order_relaxed);
    *kind = atomic_load_explicit(&slot->kind, memory_order_relaxed);
    memcpy(out, s->slots + i * s->stride, bytes);
    atomic_thread_fence(memory_order_acquire); /* the copy is done before seq is read again */
    return atomic_load_explicit(&slot->seq, memory_order_relaxed) == seq ? CORRAL_OK : CORRAL_AGAIN;
}

enum corral_status corral_weight_store_read(struct corral_weight_store *s, struct corral_digest manifest,
                                            void *out, uint64_t bytes, uint64_t *version,
                                            struct corral_digest *digest, struct corral_error *err)
{
    uint64_t current = atomic_load_explicit(&s->header->current, memory_order_acquire);
    if (current == 0) {
        return corral_fail(err, CORRAL_AGAIN, "no weight version has been published yet");
    }
    if (bytes > s->bytes_max) {
        return corral_fail(err, CORRAL_INVALID, "%" PRIu64 " bytes of weights; the store takes 1 to %" PRIu64,
                           bytes, s->bytes_max);
    }
    CORRAL_TRY(store_check_manifest(s->header, manifest, bytes, err)); /* set, since there is a version */
    struct corral_digest stored = {0};
    uint64_t kind = DIGEST_OF_BYTES;
    enum corral_status status = CORRAL_AGAIN;
    for (int tries = 0; tries < READ_TRIES_MAX && status == CORRAL_AGAIN; tries++) {
        current = atomic_load_explicit(&s->header->current, memory_order_acquire);
        status = read_once(s, current, out, bytes, &stored, &kind, err);
    }
    if (status == CORRAL_AGAIN) {
        return corral_fail(err, CORRAL_TIMEOUT, "the weights changed during each of %d reads",
                           READ_TRIES_MAX);
    }
    CORRAL_TRY(status);
    if (kind == DIGEST_OF_BYTES && !corral_digest_equal(corral_digest_of(out, bytes), stored)) {
        return corral_fail(err, CORRAL_PROTOCOL, "weight version %" PRIu64 " is damaged: its digest differs",
                           current / 4);
    }
    *version = current / 4;
    if (digest != NULL) {
        *digest = stored;
    }
    return CORRAL_OK;
}

enum corral_status corral_weight_store_look(struct corral_weight_store *s, struct corral_digest manifest,
                                            uint64_t bytes, struct corral_weight_look *out,
                                            struct corral_error *err)
{
    for (int tries = 0; tries < READ_TRIES_MAX; tries++) {
        uint64_t current = atomic_load_explicit(&s->header->current, memory_order_acquire);
        if (current == 0) {
            return corral_fail(err, CORRAL_AGAIN, "no weight version has been published yet");
        }
        uint32_t i = current % 4;
        if (i >= CORRAL_STORE_SLOTS || bytes > s->bytes_max) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "the weight store is damaged, or has no room for %" PRIu64 " bytes", bytes);
        }
        CORRAL_TRY(store_check_manifest(s->header, manifest, bytes, err));
        const struct slot_header *slot = &s->header->slot[i];
        struct corral_weight_look look = {
            .slot = s->slots + i * s->stride, .version = current / 4, .index = i};
        look.seq = atomic_load_explicit(&slot->seq, memory_order_acquire);
        look.digest.lo = atomic_load_explicit(&slot->digest_lo, memory_order_relaxed);
        look.digest.hi = atomic_load_explicit(&slot->digest_hi, memory_order_relaxed);
        bool same = atomic_load_explicit(&slot->version, memory_order_relaxed) == look.version;
        if (look.seq % 2 == 0 && same && corral_weight_store_unchanged(s, &look)) {
            *out = look;
            return CORRAL_OK;
        }
    }
    return corral_fail(err, CORRAL_TIMEOUT, "the weights changed during each of %d looks", READ_TRIES_MAX);
}

bool corral_weight_store_unchanged(const struct corral_weight_store *s, const struct corral_weight_look *look)
{
    atomic_thread_fence(
        memory_order_acquire); /* what was read is read before seq is read again, as in read_once */
    return atomic_load_explicit(&s->header->slot[look->index].seq, memory_order_relaxed) == look->seq;
}

enum corral_status corral_weight_store_wait(struct corral_weight_store *s, uint64_t seen, uint32_t timeout_ms,
                                            struct corral_error *err)
{
    if (corral_weight_store_version(s) > seen) {
        return CORRAL_OK;
    }
    struct store_header *h = s->header;
    uint64_t now = corral_now_ns(&corral_clock_monotonic), deadline = now + timeout_ms * CORRAL_NS_PER_MS;
    bool there = false;
    atomic_fetch_add_explicit(&h->waiters, 1, memory_order_seq_cst); /* pairs with commit's load */
    for (;;) {
        uint32_t word = atomic_load_explicit(&h->wake, memory_order_seq_cst);
        there = atomic_load_explicit(&h->current, memory_order_seq_cst) / 4 > seen;
        if (there || now >= deadline) {
            break;
        }
        corral_futex_wait(&h->wake, word, CORRAL_MIN(deadline, now + WAIT_SLICE_NS));
        now = corral_now_ns(&corral_clock_monotonic);
    }
    atomic_fetch_sub_explicit(&h->waiters, 1, memory_order_seq_cst);
    if (!there) {
        return corral_fail(err, CORRAL_TIMEOUT, "no weight version above %" PRIu64 " within %u ms", seen,
                           timeout_ms);
    }
    return CORRAL_OK;
}
