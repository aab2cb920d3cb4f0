/* One node's copy of the policy weights: a shared mapping (memfd made by the agent) with CORRAL_STORE_SLOTS slots. One writer at a
 * time (the publishing trainer on this node, or the agent's receiver for versions from another node); any number of readers.
 *
 *   writer: begin(version) -> fill the slot -> commit(digest) flips `current` atomically -> waiters wake
 *   reader: read() copies the current version out, re-checks that the slot was not reused meanwhile, and checks the digest
 *
 * A reader gets version v or v+1, whole, never a mix. Versions only grow: begin() refuses a version below the highest committed one. That one
 * itself may be written again: commit() succeeds without changing anything when the bytes are the same (a writer that restarted, or
 * did not hear that it had been committed), and refuses others. A writer killed half-way leaves `current` where it was and the slot is reused. Slot layout, orders and the wake-up word: docs/spec/weights.md.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_STORE_H
#define CORRAL_TRANSPORT_WEIGHTS_STORE_H

#include "base/error.h"
#include "base/hash.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CORRAL_STORE_SLOTS 3
#define CORRAL_STORE_TAINTS_MAX 4 /* processes per slot */

struct corral_weight_store;

/* Agent. *fd_out is close-on-exec and the caller's. */
enum corral_status corral_weight_store_create(uint64_t weight_bytes_max, int *fd_out,
                                              struct corral_error *err);
enum corral_status corral_weight_store_attach(int fd, struct corral_weight_store **out,
                                              struct corral_error *err);
void corral_weight_store_detach(struct corral_weight_store *s);

/* Writer. The manifest hash is fixed by the first begin(); a different one later is CORRAL_INVALID. */
enum corral_status corral_weight_store_begin(struct corral_weight_store *s, uint64_t version,
                                             struct corral_digest manifest, uint64_t bytes, void **slot,
                                             struct corral_error *err);
/* Digest of what is now in the slot, computed here. CORRAL_INVALID, and the version given up: it has been committed before with other
 * bytes. */
enum corral_status corral_weight_store_commit(struct corral_weight_store *s, uint64_t version,
                                              struct corral_digest *digest, struct corral_error *err);
/* The same for a writer that has just hashed the slot itself. */
enum corral_status corral_weight_store_commit_digest(struct corral_weight_store *s, uint64_t version,
                                                     struct corral_digest digest, struct corral_error *err);
/* The same with a digest that is not XXH3-128 of the slot: the chain over the buckets of a push, each compared in final memory when it arrived. Readers get it, and do not hash their copy. */
enum corral_status corral_weight_store_commit_chain(struct corral_weight_store *s, uint64_t version,
                                                    struct corral_digest chain, struct corral_error *err);
void corral_weight_store_abort(struct corral_weight_store *s); /* give up the begun version */
/* Before abort: this process may still write into the begun slot, which no version is given while it lives. */
void corral_weight_store_taint(struct corral_weight_store *s, pid_t pid);
/* Where a begun slot lies, for a sender that maps it: the store's descriptor (the store's own: do not close it) and the slot's offset. */
void corral_weight_store_place(const struct corral_weight_store *s, const void *slot, int *fd,
                               uint64_t *offset);
/* Version and digest of what is current; 0 and zeros when nothing is. Any writer or reader. */
void corral_weight_store_current(const struct corral_weight_store *s, uint64_t *version,
                                 struct corral_digest *digest);

/* Readers. 0 = none yet. Hot path: one atomic load. */
uint64_t corral_weight_store_version(const struct corral_weight_store *s);
/* Copy the current version into `out`. CORRAL_AGAIN: no version yet. CORRAL_INVALID: manifest or size differ. CORRAL_PROTOCOL: digest differs. */
enum corral_status corral_weight_store_read(struct corral_weight_store *s, struct corral_digest manifest,
                                            void *out, uint64_t bytes, uint64_t *version,
                                            struct corral_digest *digest, struct corral_error *err);
/* What is current, read in place: whatever was read between _look and _unchanged is the version's when _unchanged says so afterwards. CORRAL_AGAIN: no version yet. Any thread. */
struct corral_weight_look {
    void *slot; /* not to be written */
    uint64_t version;
    struct corral_digest digest;
    uint64_t seq;
    uint32_t index;
};
enum corral_status corral_weight_store_look(struct corral_weight_store *s, struct corral_digest manifest,
                                            uint64_t bytes, struct corral_weight_look *out,
                                            struct corral_error *err);
bool corral_weight_store_unchanged(const struct corral_weight_store *s,
                                   const struct corral_weight_look *look);
/* Wait until the version is above `seen`, at most timeout_ms. CORRAL_TIMEOUT otherwise. */
enum corral_status corral_weight_store_wait(struct corral_weight_store *s, uint64_t seen, uint32_t timeout_ms,
                                            struct corral_error *err);

#endif
