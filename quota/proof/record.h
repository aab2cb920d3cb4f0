/* The records of a proof chain as structs: written by the step guard, read by `rlctl audit`. The JSON form is docs/spec/proof.md; both directions are here, so what is
 * written is what is checked. Plain data, no I/O. All sizes are bytes.
 *
 * A chain begins with "begin" (who, where, limits, fences), goes on with "step" and "limits" (a live change), has "restart" when the trainer came back, and ends with "end".
 */
#ifndef CORRAL_QUOTA_PROOF_RECORD_H
#define CORRAL_QUOTA_PROOF_RECORD_H

#include "quota/ledger.h"

#define CORRAL_PROOF_READING_AGE_MAX_NS \
    UINT64_C(5000000000) /* an older physical reading says nothing about a step */

enum corral_proof_type {
    CORRAL_PROOF_BEGIN,
    CORRAL_PROOF_STEP,
    CORRAL_PROOF_LIMITS,
    CORRAL_PROOF_RESTART,
    CORRAL_PROOF_RECOVERED,
    CORRAL_PROOF_END,
};

/* Verdict on a step. */
enum corral_proof_verdict {
    CORRAL_PROOF_PROVEN,
    CORRAL_PROOF_UNPROVEN, /* `why` says what could not be shown: drift, foreign processes, a fence that is gone */
    CORRAL_PROOF_REFUSED, /* the step would have crossed and was not taken */
};

/* What `physical_read` is: docs/spec/proof.md. */
enum corral_proof_reading {
    CORRAL_PROOF_READING_UNSAID,
    CORRAL_PROOF_READING_PEAK, /* at most this much has ever been resident of the process, all included */
    CORRAL_PROOF_READING_ANONYMOUS, /* what was resident and not shared at the end of the step */
    CORRAL_PROOF_READING_DEVICE,    /* of the driver, by the agent */
};

struct corral_proof_role {
    char name[CORRAL_LEDGER_NAME_MAX];
    uint64_t floor, ceiling;
    uint64_t peak;            /* in the window */
    uint64_t used;            /* at its end */
    uint64_t denied;          /* in the window */
    uint64_t spilled, pinned; /* at its end */
};

struct corral_proof_record {
    enum corral_proof_type type;
    uint64_t run;
    uint32_t rank, generation;
    uint64_t wall_ns;
    char device[CORRAL_LEDGER_NAME_MAX];
    char own_role[CORRAL_LEDGER_NAME_MAX]; /* the trainer's */
    uint64_t physical, headroom, overcommit_ppm;
    uint32_t role_count;
    struct corral_proof_role role[CORRAL_LEDGER_ROLES_MAX]; /* those on this device */
    char fences[256]; /* "ledger interposer mps cgroup-memory cpuset": those tried and live */
    /* step */
    uint64_t step, declared, claim_peak,
        own_peak;           /* begin, restart, end: `step` is the last one taken before */
    uint64_t ledger;        /* of this process: what its physical reading is compared with */
    uint64_t outside;       /* used by the trainer's role on devices where it was granted nothing: 0 */
    uint64_t slack_min;     /* physical - claim_peak: room that nobody was guaranteed */
    uint64_t physical_read; /* this process on the device, see `reading`; 0 = not read */
    uint64_t physical_age_ns;
    enum corral_proof_reading reading;
    uint64_t device_used, device_foreign; /* of the whole device, where it can be read */
    int64_t drift;                        /* physical_read - (ledger + measured overhead) */
    uint64_t drift_max;                   /* allowed */
    uint64_t baseline;                    /* measured overhead outside the ledger */
    uint64_t step_ns;                     /* from begin to end */
    enum corral_proof_verdict verdict;
    char why[160];
    uint64_t torn_bytes; /* recovered */
};

/* One line of JSON without newline, fields in fixed order. Returns the length, or 0 when it does not fit. */
size_t corral_proof_write(const struct corral_proof_record *r, char *out, size_t out_bytes);
enum corral_status corral_proof_parse(const char *body, size_t bytes, struct corral_proof_record *out,
                                      struct corral_error *err);

/* Recompute invariant 1 from a record's own numbers, with the limits in force (of the last "begin" or "limits" record): CORRAL_INVALID says which inequality fails with both sides. */
enum corral_status corral_proof_check(const struct corral_proof_record *r, struct corral_error *err);

const char *corral_proof_reading_name(enum corral_proof_reading reading); /* "" when it is not said */
const char *corral_proof_type_name(enum corral_proof_type type);
const char *
corral_proof_verdict_name(enum corral_proof_verdict verdict); /* "proven", "unproven", "refused" */

#endif
