/* Checking a proof chain offline: each link, the order of the records, invariant 1 from each record's own numbers with the limits in force, steps without gap or repeat, and
 * what others noted of the chain while it grew. docs/spec/proof.md says what makes a chain good. Any thread. */
#ifndef CORRAL_QUOTA_PROOF_VERIFY_H
#define CORRAL_QUOTA_PROOF_VERIFY_H

#include "quota/proof/chain.h"
#include "quota/proof/record.h"

/* Where a chain stood, as somebody else noted it. */
struct corral_proof_witness {
    uint64_t count, step; /* records then, and the last step among them */
    char hash[CORRAL_CHAIN_HASH_HEX];
    bool durable; /* noted after the chain had been synced: nothing excuses its absence */
};

struct corral_proof_summary {
    uint64_t run;
    uint32_t rank, generation;
    char device[CORRAL_LEDGER_NAME_MAX], own_role[CORRAL_LEDGER_NAME_MAX];
    char fences[256]; /* of the last step; else of the beginning */
    struct corral_chain_head head;
    uint64_t
        torn_bytes; /* after the last whole record: of one whose writing did not return, unless a witness knows better */
    /* Steps from first_step to last_step each have a record that counts; those taken again after a restart count once. */
    uint64_t first_step, last_step, steps, proven, unproven;
    uint64_t refused, superseded, restarts; /* records */
    bool refused_last;                      /* the last refusal was of a step that has not been taken since */
    uint64_t lost; /* noted records that a power cut took, of steps that were taken again */
    /* Over all steps; own_ceiling: the highest that was in force; slack_min UINT64_MAX: no step. */
    uint64_t own_peak, own_ceiling, slack_min, declared_max;
    uint64_t limit_changes; /* live ones: the table's floors and ceilings are the last */
    int64_t drift_max;
    uint64_t denied, spilled_max;
    uint32_t role_count;
    struct corral_proof_role role[CORRAL_LEDGER_ROLES_MAX]; /* limits in force last; highest peak; denials */
    bool ended;                                             /* its last record is "end" */
    uint64_t doubt_record, doubt_step;                      /* first unproven step that counts; 0: none */
    char doubt[160];
    uint64_t refused_record;
    char refusal[160];      /* of the first refusal */
    uint64_t broken_record; /* broken[0]: which; 0: the chain as a whole */
    char broken[496];       /* "" or the first thing that is wrong */
};

/* Fails only when the file cannot be read; what is wrong with it is in out->broken. `witness` may be NULL; any order. */
enum corral_status corral_proof_verify(const char *path, const struct corral_proof_witness *witness,
                                       size_t witness_count, struct corral_proof_summary *out,
                                       struct corral_error *err);

#endif
