/* The step guard: around every gradient step of a trainer process, on its device. Begin books the declared peak and freezes borrowing, or refuses the step; end takes the window
 * from the ledger, reads what is physically there, judges drift, and appends the record to the rank's proof chain. One thread. The public face is <corral/quota.h>.
 */
#ifndef CORRAL_TRAINER_STEP_GUARD_H
#define CORRAL_TRAINER_STEP_GUARD_H

#include "quota/proof/chain.h"
#include "quota/proof/record.h"
#include "quota/shared.h"

/* Environment of a trainer that the agent starts, for <corral/quota.h>. Set by the agent, never by a job. */
#define CORRAL_QUOTA_ENV_DEVICE \
    "CORRAL_QUOTA_DEVICE"                       /* name in the ledger, "a:3": of any process under a quota */
#define CORRAL_PROOF_ENV_CHAIN "CORRAL_PROOF"   /* its chain file; unset: not a trainer */
#define CORRAL_PROOF_ENV_RUN "CORRAL_PROOF_RUN" /* the run's id, decimal */
#define CORRAL_PROOF_ENV_RANK "CORRAL_PROOF_RANK"
#define CORRAL_PROOF_ENV_DRIFT "CORRAL_PROOF_DRIFT" /* memory.drift in bytes; unset: 64 MiB */
#define CORRAL_PROOF_ENV_FENCES "CORRAL_FENCES"     /* those that are live, with spaces between */

struct corral_step_guard;

struct corral_step_guard_config {
    struct corral_quota *quota; /* borrowed, as all of these */
    uint32_t holder;
    uint32_t rank,
        generation; /* generation: above that of every earlier life of the rank; 0: the chain's last + 1 */
    uint64_t run;
    uint64_t step;          /* the last one taken before: the chain begins, or goes on, after it */
    const char *chain_path; /* "proof/trainer-0.chain" */
    const char *fences;     /* those that pre-flight found live */
    uint64_t drift_max;     /* bytes; memory.drift of the job */
    uint64_t
        declared; /* default declared peak; 0: whatever is used when the step begins, or the floor if that is more */
    bool
        host_device; /* physical reading is this process's RSS; else the reconciler's NVML reading in the ledger */
};

enum corral_status corral_step_guard_create(const struct corral_step_guard_config *config,
                                            struct corral_step_guard **out, struct corral_error *err);
void corral_step_guard_destroy(
    struct corral_step_guard *guard); /* an open step is closed as refused; writes "end" */
/* declared 0: the default. CORRAL_DENIED: the step would cross; a "refused" record is written and nothing else has changed. Pressure is applied first (quota/shared.h). CORRAL_IO: there is
 * no room for the record; nothing has changed. */
enum corral_status corral_step_guard_begin(struct corral_step_guard *guard, uint64_t step, uint64_t declared,
                                           struct corral_error *err);
/* Before the step is made final (saved, published). *record may be NULL. A failed append fails the step: an unrecorded step must not become final. It may be called again: it then tries the append again. */
enum corral_status corral_step_guard_end(struct corral_step_guard *guard, struct corral_proof_record *record,
                                         struct corral_error *err);
/* The step failed between begin and end: closes the window, writes nothing. */
void corral_step_guard_abandon(struct corral_step_guard *guard);
void corral_step_guard_head(const struct corral_step_guard *guard, struct corral_chain_head *out);
struct corral_step_guard_counts {
    uint64_t proven, unproven, refused;
};
void corral_step_guard_counts(const struct corral_step_guard *guard, struct corral_step_guard_counts *out);
enum corral_status corral_step_guard_sync(struct corral_step_guard *guard, struct corral_error *err);
/* Write "end", durably; *head (may be NULL) is the chain's last. No step may follow; what is left is corral_step_guard_destroy(). */
enum corral_status corral_step_guard_finish(struct corral_step_guard *guard, struct corral_chain_head *head,
                                            struct corral_error *err);

#endif
