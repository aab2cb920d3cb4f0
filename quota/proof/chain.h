/* The proof of a run's gradient steps: one append-only file per trainer rank, a chain of lines, each with the SHA-256 of the one before. docs/spec/proof.md is the format; a
 * chain can be checked with nothing but sha256sum. The writer belongs to one process and one thread, with a thread of its own that makes lines durable. In a child that is forked every call but close fails, and close ends nothing.
 *
 * An append is one copy into a shared mapping of the file (one pwrite() where room cannot be promised): once it has returned, it survives the death of the process. It costs no fsync; the sync thread calls fdatasync
 * at most CORRAL_CHAIN_SYNC_MS after it (power cut). corral_chain_sync() waits for that: before a checkpoint names the step. A sync that fails, here or there, fails every later call. A line torn by a power cut, or by a
 * kill inside the copy, is cut off when the chain is opened again, and a "recovered" record says how many bytes went. Zeros after the last record are room.
 */
#ifndef CORRAL_QUOTA_PROOF_CHAIN_H
#define CORRAL_QUOTA_PROOF_CHAIN_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_CHAIN_SYNC_MS 100
#define CORRAL_CHAIN_LINE_MAX 16384 /* bytes, with its newline */
#define CORRAL_CHAIN_HASH_HEX 65    /* 64 digits and the NUL */

struct corral_chain; /* writer */

/* Where a chain stands: what others note down so that a chain cut short is found. */
struct corral_chain_head {
    uint64_t count;                   /* records so far */
    char hash[CORRAL_CHAIN_HASH_HEX]; /* of the last; 64 zeros when there is none */
};

/* Open for appending; made when missing. A last line without its newline is cut off; anything else that does not verify is CORRAL_INVALID naming the record: a broken chain is never extended. */
enum corral_status corral_chain_open(const char *path, struct corral_chain **out, struct corral_error *err);
void corral_chain_close(struct corral_chain *chain); /* syncs */
/* `body` is one JSON object in one line without newline; the chain adds "n" and the hash. Durable against the death of the process when it returns. */
enum corral_status corral_chain_append(struct corral_chain *chain, const char *body,
                                       struct corral_error *err);
/* The same without a copy: where the next record's body may be written, in at most *room bytes; then its length. */
char *corral_chain_draft(struct corral_chain *chain, size_t *room);
enum corral_status corral_chain_append_draft(struct corral_chain *chain, size_t bytes,
                                             struct corral_error *err);
enum corral_status corral_chain_sync(struct corral_chain *chain, struct corral_error *err);
/* Take room for at least two more records from the disk, so that a full one is noticed before a step and not after it. Costs a system call only now and then. */
enum corral_status corral_chain_reserve(struct corral_chain *chain, struct corral_error *err);
/* Body of the last record that is not "recovered", "" when there is none; until the next append or draft. */
const char *corral_chain_last(const struct corral_chain *chain);
void corral_chain_head(const struct corral_chain *chain, struct corral_chain_head *out);

/* Read a chain from the start, verifying each link. The callback gets each record's body. Stops at the first record that does not verify: CORRAL_INVALID, "FILE: record N: why". A torn last line is
 * reported through *torn_bytes, not as an error; while a writer has the chain open there is none: what is there is on its way. */
typedef enum corral_status (*corral_chain_record_fn)(void *ctx, uint64_t n, const char *body, size_t bytes,
                                                     const char *hash, struct corral_error *err);
enum corral_status corral_chain_read(const char *path, corral_chain_record_fn fn, void *ctx,
                                     struct corral_chain_head *head, uint64_t *torn_bytes,
                                     struct corral_error *err);

#endif
