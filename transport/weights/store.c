/* The store, and its writer. */
#include "transport/weights/store_internal.h"

#include "base/sync.h"
#include "transport/weights/owner.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- making and mapping ---- */

enum corral_status corral_weight_store_create(uint64_t weight_bytes_max, int *fd_out,
                                              struct corral_error *err)
{
    if (weight_bytes_max == 0 || weight_bytes_max > STORE_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a weight store for %" PRIu64 " bytes is not possible",
                           weight_bytes_max);
    }
    uint64_t stride = (weight_bytes_max + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    off_t total = (off_t)(HEADER_BYTES + CORRAL_STORE_SLOTS * stride);
    CORRAL_AUTO_CLOSE int fd = memfd_create("corral-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot create the weight store");
    }
    /* Pages are taken now, so that a full machine is an error here and not a SIGBUS in the middle of a push. */
    if (fallocate(fd, 0, 0, total) != 0) {
        int sys = errno;
        enum corral_status status =
            corral_fail_sys(err, sys, "cannot allocate %lld bytes for the weight store", (long long)total);
        if (sys == ENOSPC || sys == ENOMEM) {
            status = corral_fail(err, CORRAL_NOMEM, "no memory for a weight store of %lld bytes",
                                 (long long)total);
        }
        return status;
    }
    struct store_header *h = mmap(NULL, HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map the weight store");
    }
    h->magic = STORE_MAGIC;
    h->layout = STORE_LAYOUT;
    h->weight_bytes_max = weight_bytes_max;
    h->slot_stride = stride;
    munmap(h, HEADER_BYTES);
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return corral_fail_sys(err, errno, "cannot seal the weight store");
    }
    *fd_out = fd;
    fd = -1;
    return CORRAL_OK;
}

static bool header_valid(const struct store_header *h, uint64_t file_bytes)
{
    return h->magic == STORE_MAGIC && h->layout == STORE_LAYOUT && h->weight_bytes_max > 0 &&
           h->weight_bytes_max <= STORE_BYTES_MAX && h->slot_stride % SLOT_ALIGN == 0 &&
           h->slot_stride >= h->weight_bytes_max && h->slot_stride <= STORE_BYTES_MAX &&
           file_bytes == HEADER_BYTES + CORRAL_STORE_SLOTS * h->slot_stride;
}

enum corral_status corral_weight_store_attach(int fd, struct corral_weight_store **out,
                                              struct corral_error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "cannot look at the weight store (descriptor %d)", fd);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        st.st_size < (off_t)HEADER_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL, "descriptor %d is not a sealed weight store", fd);
    }
    struct corral_weight_store *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot attach the weight store: out of memory");
    }
    s->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    void *map =
        s->fd < 0 ? MAP_FAILED : mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED) {
        int sys = errno;
        corral_cleanup_close(&s->fd);
        free(s);
        return corral_fail_sys(err, sys, "cannot map the weight store");
    }
    s->header = map;
    s->slots = (uint8_t *)map + HEADER_BYTES;
    s->mapped = (size_t)st.st_size;
    if (!header_valid(s->header, (uint64_t)st.st_size)) {
        corral_weight_store_detach(s);
        return corral_fail(err, CORRAL_PROTOCOL, "descriptor %d is not a weight store of layout %u", fd,
                           STORE_LAYOUT);
    }
    s->bytes_max = s->header->weight_bytes_max;
    s->stride = s->header->slot_stride;
    *out = s;
    return CORRAL_OK;
}

void corral_weight_store_detach(struct corral_weight_store *s)
{
    if (s != NULL) {
        corral_weight_store_abort(s);
        munmap(s->header, s->mapped);
        close(s->fd);
        free(s);
    }
}

/* ---- writer ---- */

static enum corral_status take_owner(struct corral_weight_store *s, struct corral_error *err)
{
    pid_t pid = getpid();
    if (s->pid != pid) { /* first use, or a fork since */
        CORRAL_TRY(corral_owner_word(pid, &s->self, err));
        s->pid = pid;
        s->writing = 0;
    }
    if (s->writing != 0) {
        return corral_fail(err, CORRAL_STATE, "weight version %" PRIu64 " has been begun and not finished",
                           s->writing);
    }
    uint64_t holder = 0;
    /* acquire pairs with the release of the writer before: its slot words are seen */
    while (!atomic_compare_exchange_strong_explicit(&s->header->owner, &holder, s->self, memory_order_acq_rel,
                                                    memory_order_acquire)) {
        if (holder != 0 && corral_owner_alive(holder)) {
            return corral_fail(err, CORRAL_EXISTS, "process %d is writing to the weight store",
                               corral_owner_pid(holder));
        }
        /* dead: the next turn swaps its word for ours */
    }
    return CORRAL_OK;
}

static void give_owner(struct corral_weight_store *s)
{
    s->writing = 0;
    atomic_store_explicit(&s->header->owner, 0, memory_order_release); /* pairs with take_owner */
}

enum corral_status store_check_manifest(struct store_header *h, struct corral_digest manifest, uint64_t bytes,
                                        struct corral_error *err)
{
    if (atomic_load_explicit(&h->manifest_set, memory_order_acquire) == 0) {
        atomic_store_explicit(&h->manifest_lo, manifest.lo, memory_order_relaxed);
        atomic_store_explicit(&h->manifest_hi, manifest.hi, memory_order_relaxed);
        atomic_store_explicit(&h->bytes, bytes, memory_order_relaxed);
        atomic_store_explicit(&h->manifest_set, 1,
                              memory_order_release); /* pairs with the loads here and in read */
        return CORRAL_OK;
    }
    uint64_t expected = atomic_load_explicit(&h->bytes, memory_order_relaxed);
    if (atomic_load_explicit(&h->manifest_lo, memory_order_relaxed) != manifest.lo ||
        atomic_load_explicit(&h->manifest_hi, memory_order_relaxed) != manifest.hi || expected != bytes) {
        return corral_fail(err, CORRAL_INVALID,
                           "the weights (%" PRIu64 " bytes) are of another model than the store's (%" PRIu64
                           " bytes)",
                           bytes, expected);
    }
    return CORRAL_OK;
}

/* No process that may write into the slot is alive. Forgets those that are gone. */
static bool slot_clean(struct slot_header *slot)
{
    bool clean = true;
    for (int i = 0; i < CORRAL_STORE_TAINTS_MAX; i++) {
        uint64_t word =
            atomic_load_explicit(&slot->tainted[i], memory_order_relaxed); /* only an owner changes it */
        if (word != 0 && corral_owner_alive(word)) {
            clean = false;
        } else if (word != 0) {
            atomic_store_explicit(&slot->tainted[i], 0, memory_order_relaxed);
        }
    }
    return clean;
}

static enum corral_status begin_owned(struct corral_weight_store *s, uint64_t version,
                                      struct corral_digest manifest, uint64_t bytes, void **slot,
                                      struct corral_error *err)
{
    struct store_header *h = s->header;
    uint64_t current = atomic_load_explicit(&h->current, memory_order_relaxed); /* only an owner changes it */
    if (version > VERSION_MAX || version == 0 || version < current / 4) {
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64 " is below the store's %" PRIu64 ": versions only grow",
                           version, current / 4);
    }
    if (bytes == 0 || bytes > s->bytes_max) {
        return corral_fail(err, CORRAL_INVALID, "%" PRIu64 " bytes of weights; the store takes 1 to %" PRIu64,
                           bytes, s->bytes_max);
    }
    CORRAL_TRY(store_check_manifest(h, manifest, bytes, err));
    uint32_t i = (uint32_t)((current % 4 + 1) % CORRAL_STORE_SLOTS);
    if (!slot_clean(&h->slot[i])) {
        i = (i + 1) % CORRAL_STORE_SLOTS; /* the one before the current: slow readers of it try again */
        if (!slot_clean(&h->slot[i])) {
            return corral_fail(
                err, CORRAL_EXISTS,
                "processes that were given up may still write into both free slots of the weight "
                "store");
        }
    }
    uint64_t seq = atomic_load_explicit(&h->slot[i].seq, memory_order_relaxed);
    /* A slot left odd by an abort or a death stays odd: no reader has accepted it since. */
    atomic_store_explicit(&h->slot[i].seq, seq | 1, memory_order_relaxed);
    atomic_thread_fence(
        memory_order_release); /* odd before the first byte; pairs with the reader's acquire fence */
    s->writing = version;
    s->writing_slot = i;
    *slot = s->slots + i * s->stride;
    return CORRAL_OK;
}

enum corral_status corral_weight_store_begin(struct corral_weight_store *s, uint64_t version,
                                             struct corral_digest manifest, uint64_t bytes, void **slot,
                                             struct corral_error *err)
{
    CORRAL_TRY(take_owner(s, err));
    enum corral_status status = begin_owned(s, version, manifest, bytes, slot, err);
    if (status != CORRAL_OK) {
        give_owner(s);
    }
    return status;
}

/* The version is current already: it must have been the same. Digests of two kinds cannot be compared. */
static enum corral_status compare_committed(const struct corral_weight_store *s, uint64_t current,
                                            struct corral_digest digest, enum digest_kind kind,
                                            struct corral_error *err)
{
    uint64_t i = current % 4;
    if (i >= CORRAL_STORE_SLOTS) {
        return corral_fail(err, CORRAL_PROTOCOL, "the weight store is damaged: it names slot %" PRIu64, i);
    }
    const struct slot_header *slot = &s->header->slot[i];
    struct corral_digest stored = {.lo = atomic_load_explicit(&slot->digest_lo, memory_order_relaxed),
                                   .hi = atomic_load_explicit(&slot->digest_hi, memory_order_relaxed)};
    if (!corral_digest_equal(digest, stored) ||
        atomic_load_explicit(&slot->kind, memory_order_relaxed) != kind) {
        char theirs[CORRAL_DIGEST_TEXT], ours[CORRAL_DIGEST_TEXT];
        corral_digest_format(stored, theirs);
        corral_digest_format(digest, ours);
        return corral_fail(err, CORRAL_INVALID,
                           "weight version %" PRIu64
                           " is in the store with other bytes: digest %s, offered %s",
                           current / 4, theirs, ours);
    }
    return CORRAL_OK;
}

static enum corral_status commit(struct corral_weight_store *s, uint64_t version, struct corral_digest digest,
                                 enum digest_kind kind, struct corral_error *err)
{
    if (s->writing == 0 || s->writing != version || s->pid != getpid()) {
        return corral_fail(err, CORRAL_STATE, "weight version %" PRIu64 " has not been begun here", version);
    }
    struct store_header *h = s->header;
    uint64_t current = atomic_load_explicit(&h->current, memory_order_relaxed); /* only an owner changes it */
    if (version == current / 4) {
        enum corral_status status = compare_committed(s, current, digest, kind, err);
        give_owner(s); /* what was written stays in its odd slot, as after an abort */
        return status;
    }
    struct slot_header *slot = &h->slot[s->writing_slot];
    uint64_t bytes = atomic_load_explicit(&h->bytes, memory_order_relaxed);
    atomic_store_explicit(&slot->version, version, memory_order_relaxed);
    atomic_store_explicit(&slot->bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&slot->digest_lo, digest.lo, memory_order_relaxed);
    atomic_store_explicit(&slot->digest_hi, digest.hi, memory_order_relaxed);
    atomic_store_explicit(&slot->kind, kind, memory_order_relaxed);
    uint64_t seq = atomic_load_explicit(&slot->seq, memory_order_relaxed);
    atomic_store_explicit(&slot->seq, seq + 1,
                          memory_order_release); /* even; pairs with the reader's first load */
    /* seq_cst with `waiters`: either we see the waiter, or it sees this version before it sleeps */
    atomic_store_explicit(&h->current, version * 4 + s->writing_slot, memory_order_seq_cst);
    atomic_fetch_add_explicit(&h->wake, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&h->waiters, memory_order_seq_cst) != 0) {
        corral_futex_wake_all(&h->wake);
    }
    give_owner(s);
    return CORRAL_OK;
}

enum corral_status corral_weight_store_commit_digest(struct corral_weight_store *s, uint64_t version,
                                                     struct corral_digest digest, struct corral_error *err)
{
    return commit(s, version, digest, DIGEST_OF_BYTES, err);
}

enum corral_status corral_weight_store_commit_chain(struct corral_weight_store *s, uint64_t version,
                                                    struct corral_digest chain, struct corral_error *err)
{
    return commit(s, version, chain, DIGEST_CHAIN, err);
}

enum corral_status corral_weight_store_commit(struct corral_weight_store *s, uint64_t version,
                                              struct corral_digest *digest, struct corral_error *err)
{
    if (s->writing == 0 || s->writing != version) {
        return corral_fail(err, CORRAL_STATE, "weight version %" PRIu64 " has not been begun here", version);
    }
    uint64_t bytes = atomic_load_explicit(&s->header->bytes, memory_order_relaxed);
    struct corral_digest d = corral_digest_of(s->slots + s->writing_slot * s->stride, bytes);
    CORRAL_TRY(corral_weight_store_commit_digest(s, version, d, err));
    if (digest != NULL) {
        *digest = d;
    }
    return CORRAL_OK;
}

void corral_weight_store_abort(struct corral_weight_store *s)
{
    if (s->writing != 0 && s->pid == getpid()) { /* a child does not give back what its parent holds */
        give_owner(s);
    }
}

void corral_weight_store_taint(struct corral_weight_store *s, pid_t pid)
{
    uint64_t word = 0;
    if (s->writing == 0 || s->pid != getpid() || corral_owner_word(pid, &word, NULL) != CORRAL_OK) {
        return; /* not begun here, or the process is gone */
    }
    struct slot_header *slot = &s->header->slot[s->writing_slot];
    (void)slot_clean(slot);
    for (int i = 0; i < CORRAL_STORE_TAINTS_MAX; i++) {
        uint64_t there = atomic_load_explicit(&slot->tainted[i], memory_order_relaxed);
        if (there == 0 || there == word) {
            atomic_store_explicit(&slot->tainted[i], word,
                                  memory_order_relaxed); /* seen with `owner`'s release */
            return;
        }
    }
    /* More than can be remembered: as long as this process lives, the slot stays unused. */
    atomic_store_explicit(&slot->tainted[0], s->self, memory_order_relaxed);
}

void corral_weight_store_place(const struct corral_weight_store *s, const void *slot, int *fd,
                               uint64_t *offset)
{
    *fd = s->fd;
    *offset = HEADER_BYTES + (uint64_t)((const uint8_t *)slot - s->slots);
}
