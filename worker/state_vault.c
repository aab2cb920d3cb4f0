#include "worker/state_vault.h"
#include "base/hash.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define VAULT_MAGIC UINT64_C(0x31544c5541564c43) /* "CLVAULT1" */
#define SLOTS 2
#define HEADER_BYTES 4096
#define STATE_BYTES_MAX (UINT64_C(1) << 40)

struct slot_header {
    _Atomic uint64_t
        valid; /* 0 while it is being written; released after digest and step, acquired by readers */
    uint64_t
        serial; /* counts commits; tells two states of the same step apart, as a regrouped trainer leaves them */
    uint64_t step, bytes;
    struct corral_digest digest;
};

struct vault_header {
    _Atomic uint64_t
        magic; /* released after state_bytes: a first trainer killed in between leaves an empty vault */
    uint64_t state_bytes;
    struct slot_header slot[SLOTS];
};

struct corral_state_vault {
    struct vault_header *header;
    size_t map_bytes;
    uint64_t state_bytes; /* private copy: the mapping is shared */
    uint32_t begun;
};

_Static_assert(sizeof(struct vault_header) <= HEADER_BYTES, "the header has one page");

static size_t slot_stride(uint64_t state_bytes)
{
    return (size_t)((state_bytes + 4095) / 4096 * 4096);
}

static uint8_t *slot_data(const struct corral_state_vault *v, uint32_t i)
{
    return (uint8_t *)v->header + HEADER_BYTES + i * slot_stride(v->state_bytes);
}

enum corral_status corral_state_vault_create(int *fd_out, struct corral_error *err)
{
    int fd = memfd_create("corral-vault", MFD_CLOEXEC);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "creating the trainer's state vault");
    }
    *fd_out = fd;
    return CORRAL_OK;
}

/* All of its memory now: a store into a page that cannot be had later would be a SIGBUS in the middle of a step. The size changes only when all of it is there. */
static enum corral_status allocate(int fd, size_t bytes, struct corral_error *err)
{
    int code;
    do {
        code = posix_fallocate(fd, 0, (off_t)bytes);
    } while (code == EINTR);
    if (code == ENOSPC || code == ENOMEM) {
        return corral_fail(err, CORRAL_NOMEM, "the state vault needs %zu bytes of shared memory: %s", bytes,
                           strerror(code));
    }
    return code == 0 ? CORRAL_OK : corral_fail_sys(err, code, "sizing the state vault to %zu bytes", bytes);
}

static bool slot_usable(const struct corral_state_vault *v, uint32_t i)
{
    const struct slot_header *s = &v->header->slot[i];
    /* pairs with the release store in commit */
    return atomic_load_explicit(&s->valid, memory_order_acquire) != 0 && s->bytes <= v->state_bytes;
}

static bool slot_whole(const struct corral_state_vault *v, uint32_t i)
{
    const struct slot_header *s = &v->header->slot[i];
    return corral_digest_equal(s->digest, corral_digest_of(slot_data(v, i), s->bytes));
}

/* A damaged slot would count as the newest, and the whole one would be written over. */
static void forget_damaged(struct corral_state_vault *v)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (slot_usable(v, i) && !slot_whole(v, i)) {
            atomic_store_explicit(&v->header->slot[i].valid, 0, memory_order_release);
        }
    }
}

enum corral_status corral_state_vault_peek(int fd, uint64_t *step, void *head, uint64_t head_bytes,
                                           struct corral_error *err)
{
    struct vault_header header;
    if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
        atomic_load_explicit(&header.magic, memory_order_relaxed) != VAULT_MAGIC) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the state vault is empty");
    }
    struct corral_state_vault *v = NULL;
    CORRAL_TRY(corral_state_vault_attach(fd, header.state_bytes, &v, err));
    uint64_t newest, bytes;
    const void *state;
    enum corral_status status = corral_state_vault_newest(v, &newest, err);
    if (status == CORRAL_OK) {
        status = corral_state_vault_find(v, newest, &state, &bytes, err);
    }
    if (status == CORRAL_OK && head && bytes < head_bytes) {
        status = corral_fail(err, CORRAL_PROTOCOL, "the state vault's state has %llu bytes",
                             (unsigned long long)bytes);
    }
    if (status == CORRAL_OK) {
        *step = newest;
        if (head) {
            memcpy(head, state, head_bytes);
        }
    }
    corral_state_vault_detach(v);
    return status;
}

enum corral_status corral_state_vault_attach(int fd, uint64_t state_bytes, struct corral_state_vault **out,
                                             struct corral_error *err)
{
    if (state_bytes == 0 || state_bytes > STATE_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "a state vault for states of %llu bytes",
                           (unsigned long long)state_bytes);
    }
    size_t bytes = HEADER_BYTES + SLOTS * slot_stride(state_bytes);
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "reading the size of the state vault");
    }
    if (st.st_size == 0) {
        CORRAL_TRY(allocate(fd, bytes, err));
    }
    if (st.st_size != 0 && (size_t)st.st_size != bytes) {
        return corral_fail(
            err, CORRAL_INVALID,
            "the state vault holds %lld bytes, this learner needs %zu: the job changed while it ran",
            (long long)st.st_size, bytes);
    }
    struct corral_state_vault *v = calloc(1, sizeof *v);
    if (!v) {
        return corral_fail(err, CORRAL_NOMEM, "attaching the state vault");
    }
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        enum corral_status status = corral_fail_sys(err, errno, "mapping the state vault");
        free(v);
        return status;
    }
    v->header = map;
    v->map_bytes = bytes;
    v->state_bytes = state_bytes;
    if (atomic_load_explicit(&v->header->magic, memory_order_acquire) == 0) { /* pairs with the store below */
        v->header->state_bytes = state_bytes;
        atomic_store_explicit(&v->header->magic, VAULT_MAGIC, memory_order_release);
    }
    if (atomic_load_explicit(&v->header->magic, memory_order_relaxed) != VAULT_MAGIC ||
        v->header->state_bytes != state_bytes) {
        corral_state_vault_detach(v);
        return corral_fail(err, CORRAL_INVALID, "the state vault belongs to another learner");
    }
    forget_damaged(v);
    *out = v;
    return CORRAL_OK;
}

void corral_state_vault_detach(struct corral_state_vault *v)
{
    if (!v) {
        return;
    }
    munmap(v->header, v->map_bytes);
    free(v);
}

/* Never over the newest: over a slot that holds nothing, else over the one committed earlier. */
void *corral_state_vault_begin(struct corral_state_vault *v)
{
    const struct slot_header *slot = v->header->slot;
    uint32_t i = 0;
    if (slot_usable(v, 0)) {
        i = !slot_usable(v, 1) || slot[1].serial < slot[0].serial ? 1 : 0;
    }
    v->begun = i;
    atomic_store_explicit(&v->header->slot[i].valid, 0, memory_order_release);
    return slot_data(v, i);
}

void corral_state_vault_commit(struct corral_state_vault *v, uint64_t step, uint64_t bytes)
{
    struct slot_header *s = &v->header->slot[v->begun];
    const struct slot_header *other = &v->header->slot[1 - v->begun];
    s->serial = other->serial + 1;
    s->step = step;
    s->bytes = bytes;
    s->digest = corral_digest_of(slot_data(v, v->begun), bytes);
    atomic_store_explicit(&s->valid, 1, memory_order_release);
}

enum corral_status corral_state_vault_newest(const struct corral_state_vault *v, uint64_t *step,
                                             struct corral_error *err)
{
    bool found = false;
    uint64_t newest = 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (slot_usable(v, i) && (!found || v->header->slot[i].step > newest) && slot_whole(v, i)) {
            newest = v->header->slot[i].step;
            found = true;
        }
    }
    if (!found) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the state vault is empty");
    }
    *step = newest;
    return CORRAL_OK;
}

enum corral_status corral_state_vault_find(const struct corral_state_vault *v, uint64_t step,
                                           const void **state, uint64_t *bytes, struct corral_error *err)
{
    uint32_t best = SLOTS;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const struct slot_header *s = &v->header->slot[i];
        if (slot_usable(v, i) && s->step == step && slot_whole(v, i) &&
            (best == SLOTS || s->serial > v->header->slot[best].serial)) {
            best = i;
        }
    }
    if (best == SLOTS) {
        return corral_fail(err, CORRAL_NOT_FOUND, "the state vault has no state of step %llu",
                           (unsigned long long)step);
    }
    *state = slot_data(v, best);
    *bytes = v->header->slot[best].bytes;
    return CORRAL_OK;
}

void corral_state_vault_rewind(struct corral_state_vault *v, uint64_t step)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (slot_usable(v, i) && v->header->slot[i].step > step) {
            atomic_store_explicit(&v->header->slot[i].valid, 0, memory_order_release);
        }
    }
}
