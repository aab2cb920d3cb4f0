/* The run's journal: what must be remembered across a crash of everything, in SQLite (WAL, one writer: the coordinator). Schema: docs/spec/journal.md; PRAGMA user_version
 * says which. Version leases and checkpoints are written with synchronous=FULL before anyone acts on them; events may lose the last moments of a power cut. One thread. */
#ifndef CORRAL_ORCHESTRATOR_JOURNAL_H
#define CORRAL_ORCHESTRATOR_JOURNAL_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

struct corral_journal;

struct corral_journal_run {
    uint64_t run;
    uint32_t incarnation;     /* times started: launch 1, each resume one more */
    uint64_t version_limit;   /* no version above this has ever been published */
    uint64_t checkpoint_step; /* newest complete checkpoint; 0 and "" when there is none */
    char checkpoint_path[256];
};

struct corral_journal_end {
    char outcome[16]; /* "learned", "done", "stopped", "failed" */
    char reason[400];
};

/* A new journal with its run, or nothing: a failure leaves no file. CORRAL_EXISTS when there is one already. */
enum corral_status corral_journal_create(const char *path, uint64_t run, const char *job_name,
                                         struct corral_journal **out, struct corral_error *err);
enum corral_status corral_journal_open(const char *path, struct corral_journal **out,
                                       struct corral_error *err);
/* For readers beside a running coordinator (status, list): never writes. */
enum corral_status corral_journal_open_readonly(const char *path, struct corral_journal **out,
                                                struct corral_error *err);
void corral_journal_close(struct corral_journal *j);

enum corral_status corral_journal_read_run(struct corral_journal *j, struct corral_journal_run *out,
                                           struct corral_error *err);
/* Durable when they return. */
enum corral_status corral_journal_next_incarnation(struct corral_journal *j, uint32_t *incarnation,
                                                   struct corral_error *err);
enum corral_status corral_journal_lease_versions(struct corral_journal *j, uint64_t version_limit,
                                                 struct corral_error *err);
enum corral_status corral_journal_checkpoint(struct corral_journal *j, uint64_t step, uint64_t version,
                                             uint64_t env_steps, const char *path, struct corral_error *err);
enum corral_status corral_journal_end_run(struct corral_journal *j, const struct corral_journal_end *end,
                                          struct corral_error *err);
/* CORRAL_NOT_FOUND while the run has no end. */
enum corral_status corral_journal_read_end(struct corral_journal *j, struct corral_journal_end *out,
                                           struct corral_error *err);
/* One line of history: a state change, an exit, an evaluation. */
enum corral_status corral_journal_event(struct corral_journal *j, const char *kind, const char *subject,
                                        const char *text, struct corral_error *err);
typedef void (*corral_journal_event_fn)(void *ctx, uint64_t wall_ns, const char *kind, const char *subject,
                                        const char *text);
enum corral_status corral_journal_each_event(struct corral_journal *j, corral_journal_event_fn fn, void *ctx,
                                             struct corral_error *err);
/* Checkpoints, oldest first, and forgetting one that was deleted. */
typedef enum corral_status (*corral_journal_checkpoint_fn)(void *ctx, uint64_t step, const char *path,
                                                           struct corral_error *err);
enum corral_status corral_journal_each_checkpoint(struct corral_journal *j, corral_journal_checkpoint_fn fn,
                                                  void *ctx, struct corral_error *err);
/* Heads of the proof chains (docs/spec/proof.md), noted after the chain had been synced. Durable when it returns; all or none. */
struct corral_journal_proof_head {
    uint32_t rank;
    uint64_t count, step;
    char hash[65];
};
enum corral_status corral_journal_proof_heads(struct corral_journal *j,
                                              const struct corral_journal_proof_head *head, uint32_t count,
                                              struct corral_error *err);
/* By rank, then count. A journal from before there were any has none. */
typedef enum corral_status (*corral_journal_proof_fn)(void *ctx, const struct corral_journal_proof_head *head,
                                                      struct corral_error *err);
enum corral_status corral_journal_each_proof_head(struct corral_journal *j, corral_journal_proof_fn fn,
                                                  void *ctx, struct corral_error *err);
enum corral_status corral_journal_forget_checkpoint(struct corral_journal *j, uint64_t step,
                                                    struct corral_error *err);

#endif
