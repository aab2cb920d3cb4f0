/* The memory ledger of one node: who may take how much of each device, and who has taken it.
 *
 * Plain C over one flat struct: no I/O, no clock, no lock, no pointer. The caller serialises access (quota/shared.h does it
 * across processes with a robust lock), so the same functions run in tests, models and every worker.
 *
 * Invariant 1 of the architecture, checked by every reservation on device d:
 *     used_r + n <= ceiling_r    and    (used_r + n) + sum over q != r of claim_q + headroom <= physical
 * with used_r = committed + reserved of role r, and claim_q = max(floor_q, used_q, what q's open steps have booked). So a floor
 * that is not used is never lent. Check and charge are one call. All sizes are bytes.
 *
 * Steps. A trainer opens a step with the peak it will need. The room is booked in the same operation that checks it, so the step
 * cannot be denied what it declared; while a step is open on a device, borrowing there is frozen: no role grows above its
 * floor, except into what it has booked. What was borrowed before stays.
 *
 * Allocations. A charge with a slot in the allocation table is tagged with holder (role, process), kind, step and phase. The table has fixed slots that never move. Memory
 * that another process maps (CUDA IPC, exported handles) is charged to its owner once; when the owner dies, the charge moves to the importer if the importer's role has
 * room for it, and otherwise stays with the owner's role, held for the importer, until that one lets go or dies: a hand-over never breaks invariant 1.
 */
#ifndef CORRAL_QUOTA_LEDGER_H
#define CORRAL_QUOTA_LEDGER_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#ifndef CORRAL_LEDGER_HOLDERS_MAX /* the explorer compiles the same code with small tables */
#define CORRAL_LEDGER_DEVICES_MAX 64
#define CORRAL_LEDGER_ROLES_MAX 16
#define CORRAL_LEDGER_HOLDERS_MAX 512
#define CORRAL_LEDGER_STEPS_MAX 64 /* open at the same time on the node */
#endif
#define CORRAL_LEDGER_NAME_MAX 32
#define CORRAL_LEDGER_MAGIC UINT32_C(0x4c435143) /* "CQCL" */
#define CORRAL_LEDGER_VERSION 2
#define CORRAL_LEDGER_OVERCOMMIT_MAX 1.3
#ifndef CORRAL_LEDGER_ALLOCATIONS_MAX
#define CORRAL_LEDGER_ALLOCATIONS_MAX 131072
#endif
#ifndef CORRAL_LEDGER_SHARES_MAX
#define CORRAL_LEDGER_SHARES_MAX 4096
#endif
#define CORRAL_LEDGER_NONE UINT32_MAX

/* What a charge is for. Stable numbers: they are in proof records and metrics. */
enum corral_ledger_kind {
    CORRAL_KIND_HOST = 0,     /* host device memory */
    CORRAL_KIND_DEVICE = 1,   /* cuMemAlloc, cuMemAllocPitch */
    CORRAL_KIND_MANAGED = 2,  /* cuMemAllocManaged */
    CORRAL_KIND_VMM = 3,      /* cuMemCreate */
    CORRAL_KIND_POOL = 4,     /* reserved bytes of a memory pool */
    CORRAL_KIND_ARRAY = 5,    /* arrays and mipmapped arrays */
    CORRAL_KIND_GRAPH = 6,    /* reserved graph memory */
    CORRAL_KIND_EXTERNAL = 7, /* imported memory whose owner is outside the ledger */
    CORRAL_KIND_OVERHEAD = 8, /* contexts, modules, what the driver takes for itself: measured */
    CORRAL_KIND_MAPPING = 9,  /* shared mappings made by the agent */
    CORRAL_KINDS = 10
};

/* What a holder is doing; tags its charges. Stable numbers. */
enum corral_ledger_phase {
    CORRAL_PHASE_NONE = 0,
    CORRAL_PHASE_START = 1,
    CORRAL_PHASE_FORWARD = 2,
    CORRAL_PHASE_BACKWARD = 3,
    CORRAL_PHASE_OPTIMIZER = 4,
    CORRAL_PHASE_SYNC = 5, /* weights in or out */
    CORRAL_PHASE_ROLLOUT = 6,
    CORRAL_PHASE_EVAL = 7,
    CORRAL_PHASES = 8
};

struct corral_ledger_role {
    uint64_t floor, ceiling;
    uint64_t used;   /* committed + reserved */
    uint64_t peak;   /* highest used since corral_ledger_reset_peaks() */
    uint64_t denied; /* reservations refused */
    uint64_t booked; /* sum over holders with an open step of max(0, declared peak - the holder's use) */
    uint64_t spilled,
        pinned; /* beside the quota: host memory by opt-in, host-registered memory. Sums over holders */
    uint64_t window_peak; /* highest used since the last step boundary on this device */
    uint64_t wanted;      /* pressure: bytes others wait for while this role uses more than its floor */
};

struct corral_ledger_device {
    char name[CORRAL_LEDGER_NAME_MAX]; /* "a:3" */
    uint8_t uuid[16];                  /* of a GPU; zero for a host device */
    uint64_t physical, headroom;
    uint64_t overcommit_ppm; /* live changes of ceilings stay within it; set by corral_ledger_check_plan */
    uint64_t window_claim; /* highest headroom + sum of claims since the last step boundary on this device */
    uint32_t steps_open;
    uint32_t
        unproven_marks; /* how often a holder on this device was given CORRAL_HOLDER_UNPROVEN: one that came and went is not missed */
    /* The reconciler's last physical reading (quota/shared.h): bytes in use on the device, of them by processes the ledger does not know, and when. */
    uint64_t physical_used, physical_foreign, physical_ns;
    struct corral_ledger_role role
        [CORRAL_LEDGER_ROLES_MAX]; /* same order as ledger.role_name; floor = ceiling = 0: not on this device */
};

enum corral_ledger_holder_flag {
    CORRAL_HOLDER_UNPROVEN =
        1, /* runs by permission on a driver with functions that could allocate and that nobody hooks: its steps are unproven */
    CORRAL_HOLDER_REHEARSING =
        2, /* pre-flight: what it is refused is neither counted, logged nor waited for (quota/shared.h) */
};

/* One process that holds memory on one device. A slot is never moved; a free slot has pid 0. */
struct corral_ledger_holder {
    int32_t pid;
    uint32_t generation; /* grows each time the slot is taken */
    uint64_t start_time; /* of the process, from /proc/PID/stat: pid reuse is not mistaken for life */
    uint32_t role, device;
    uint64_t reserved, committed;
    uint64_t step; /* the holder's current gradient step, for tags and records */
    uint32_t phase;
    uint32_t step_slot; /* open step: index + 1 into ledger.step; 0: none */
    uint32_t left;      /* 1: its process is gone or has detached; what is charged here is mapped by others */
    uint32_t flags;     /* enum corral_ledger_holder_flag */
    uint64_t declared;  /* peak declared for the open step */
    uint64_t spilled, pinned;
    uint64_t kind_bytes[CORRAL_KINDS]; /* by kind; sums to committed + reserved */
    uint64_t physical; /* last physical reading of this process on this device (RSS or NVML), 0 = not read */
    uint64_t physical_ns;
};

/* How far a tagged charge is. A keep without the lock (quota/shared.h) marks the slot only: its bytes stay among the holder's reserved ones. */
enum corral_ledger_kept { CORRAL_LEDGER_RESERVED = 0, CORRAL_LEDGER_COMMITTED = 1, CORRAL_LEDGER_MARKED = 2 };

/* A tagged charge. 32 bytes; slots never move. */
struct corral_ledger_allocation {
    uint64_t bytes;
    uint32_t holder;     /* slot + 1; 0: free */
    uint32_t generation; /* grows each time the slot is taken: an old name of it is recognised */
    uint32_t step;
    uint32_t next; /* free list; shares list while in use */
    uint8_t kind, phase;
    uint8_t committed; /* enum corral_ledger_kept */
    uint8_t orphan;    /* its owner died or let go, others still map it */
    uint32_t reserved_;
};

/* Somebody else maps an allocation. */
struct corral_ledger_share {
    uint32_t allocation; /* slot + 1; 0: free */
    uint32_t holder;     /* the importer's slot + 1 */
    uint32_t holder_generation;
    uint32_t next;
    uint64_t
        key[2]; /* names the export: a hash of the handle. holder == 0: an export nobody has imported yet */
};

/* What happened on one device between opening and closing a step. */
struct corral_ledger_window {
    uint32_t holder; /* slot + 1; 0: free */
    uint32_t device;
    uint64_t step, declared;
    uint64_t claim_peak; /* highest headroom + sum of claims: <= physical is the invariant */
    uint64_t peak[CORRAL_LEDGER_ROLES_MAX];
    uint64_t denied[CORRAL_LEDGER_ROLES_MAX]; /* while open: at opening, absolute; closed: in the window */
    uint64_t holder_peak;                     /* of the trainer process itself */
};

struct corral_ledger;

enum corral_ledger_reason {
    CORRAL_LEDGER_FITS,
    CORRAL_LEDGER_OVER_CEILING,
    CORRAL_LEDGER_OVER_FLOORS,
    CORRAL_LEDGER_FROZEN, /* borrowing is frozen: a step is open on the device */
};

/* Why a reservation was refused, for the one structured log line. */
struct corral_ledger_denial {
    enum corral_ledger_reason reason;
    uint32_t device, role;
    uint64_t bytes, used, floor, ceiling, available; /* available: the most that would have fitted */
};

size_t corral_ledger_bytes(void); /* of the whole struct, some megabytes: never on a stack */
void corral_ledger_init(struct corral_ledger *l);
/* Set-up, before any holder. Names too long or tables full: CORRAL_INVALID. */
enum corral_status corral_ledger_add_role(struct corral_ledger *l, const char *name, uint32_t *out,
                                          struct corral_error *err);
enum corral_status corral_ledger_add_device(struct corral_ledger *l, const char *name, uint64_t physical,
                                            uint64_t headroom, uint32_t *out, struct corral_error *err);
void corral_ledger_set_uuid(struct corral_ledger *l, uint32_t device, const uint8_t uuid[16]);
enum corral_status corral_ledger_set_limits(struct corral_ledger *l, uint32_t device, uint32_t role,
                                            uint64_t floor, uint64_t ceiling, struct corral_error *err);
/* floor <= ceiling everywhere, 1 <= overcommit <= CORRAL_LEDGER_OVERCOMMIT_MAX, sum of floors + headroom <= physical, sum of ceilings <= overcommit * physical; the error says which
 * device, by how much, and what would fit. Remembers the overcommit for live changes. */
enum corral_status corral_ledger_check_plan(struct corral_ledger *l, double overcommit,
                                            struct corral_error *err);
/* Live change, with holders present. The new floor must fit beside what everybody has and is guaranteed now; a ceiling below what the role uses is CORRAL_STATE and the text says
 * how much has to be given back first. Nothing changes on failure; dying inside it leaves valid limits. */
enum corral_status corral_ledger_change_limits(struct corral_ledger *l, uint32_t device, uint32_t role,
                                               uint64_t floor, uint64_t ceiling, struct corral_error *err);

/* Take and give back a slot for a process. Leaving returns every charge it still has, but for allocations that others map. */
enum corral_status corral_ledger_join(struct corral_ledger *l, uint32_t device, uint32_t role, pid_t pid,
                                      uint64_t start_time, uint32_t *holder, struct corral_error *err);
void corral_ledger_leave(struct corral_ledger *l, uint32_t holder);

const char *corral_ledger_reason_name(
    enum corral_ledger_reason reason); /* "fits", "over ceiling", "over floors", "borrowing frozen" */
const char *corral_ledger_kind_name(enum corral_ledger_kind kind);    /* "host", "device", "managed", … */
const char *corral_ledger_phase_name(enum corral_ledger_phase phase); /* "none", "start", "forward", … */
/* Index of a name, or UINT32_MAX. */
uint32_t corral_ledger_find_device(const struct corral_ledger *l, const char *name);
uint32_t corral_ledger_find_uuid(const struct corral_ledger *l, const uint8_t uuid[16]);
uint32_t corral_ledger_find_role(const struct corral_ledger *l, const char *name);

/* Untagged charges: reserve → commit | rollback → release, kind CORRAL_KIND_HOST. CORRAL_DENIED fills *why (may be NULL). Bytes committed or released may be parts;
 * more than the holder has is a bug of the caller. */
enum corral_status corral_ledger_reserve(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                         struct corral_ledger_denial *why);
void corral_ledger_commit(struct corral_ledger *l, uint32_t holder, uint64_t bytes);
void corral_ledger_rollback(struct corral_ledger *l, uint32_t holder, uint64_t bytes);
void corral_ledger_release(struct corral_ledger *l, uint32_t holder, uint64_t bytes);

/* Tagged charges. With the table full, *allocation is CORRAL_LEDGER_NONE and the bytes are charged untagged (of that kind): the caller then uses the
 * untagged calls with them. */
enum corral_status corral_ledger_take(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                      enum corral_ledger_kind kind, uint32_t *allocation,
                                      struct corral_ledger_denial *why);
void corral_ledger_keep(struct corral_ledger *l, uint32_t allocation); /* reserved → committed */
/* Free or roll back. While others map it, it stays charged to the owner until the last of them lets go. */
void corral_ledger_give_back(struct corral_ledger *l, uint32_t allocation);
/* Untagged bytes of a kind, committed at once; letting go of such, reserved or committed (the latter first). */
enum corral_status corral_ledger_take_untagged(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                               enum corral_ledger_kind kind,
                                               struct corral_ledger_denial *why);
void corral_ledger_give_back_untagged(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                      enum corral_ledger_kind kind);
/* Charge what already exists: as many of the bytes as invariant 1 admits, frozen borrowing aside; committed at once. Returns how many. */
uint64_t corral_ledger_take_measured(struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                                     enum corral_ledger_kind kind, uint32_t *allocation);
/* Grow (checked like a reservation; committed at once) or shrink (never refused). */
enum corral_status corral_ledger_resize(struct corral_ledger *l, uint32_t allocation, uint64_t bytes,
                                        struct corral_ledger_denial *why);
/* Name an allocation for others, take a share of what somebody named (CORRAL_NOT_FOUND: nobody did), let go of it. */
enum corral_status corral_ledger_export(struct corral_ledger *l, uint32_t allocation, const uint64_t key[2],
                                        struct corral_error *err);
enum corral_status corral_ledger_import(struct corral_ledger *l, uint32_t holder, const uint64_t key[2],
                                        uint32_t *share, struct corral_error *err);
void corral_ledger_drop_share(struct corral_ledger *l, uint32_t share);

/* Open a step of a trainer process: check and book `declared` bytes as its peak (its present use included), freeze borrowing on the device. Opening while one is open is
 * CORRAL_STATE. Closing gives the window. A holder that leaves or is reaped closes its step. */
enum corral_status corral_ledger_open_step(struct corral_ledger *l, uint32_t holder, uint64_t step,
                                           uint64_t declared, struct corral_ledger_denial *why,
                                           struct corral_error *err);
enum corral_status corral_ledger_close_step(struct corral_ledger *l, uint32_t holder,
                                            struct corral_ledger_window *out, struct corral_error *err);
void corral_ledger_set_phase(struct corral_ledger *l, uint32_t holder, uint64_t step,
                             enum corral_ledger_phase phase);
/* Beside the quota: only counted. Negative gives back; never below 0. */
void corral_ledger_count_spilled(struct corral_ledger *l, uint32_t holder, int64_t bytes);
void corral_ledger_count_pinned(struct corral_ledger *l, uint32_t holder, int64_t bytes);

/* Whether a reservation would be granted now, without counting a refusal. `why` may be NULL. */
bool corral_ledger_fits(const struct corral_ledger *l, uint32_t holder, uint64_t bytes,
                        struct corral_ledger_denial *why);
/* The same for opening a step of that peak. */
bool corral_ledger_step_fits(const struct corral_ledger *l, uint32_t holder, uint64_t declared,
                             struct corral_ledger_denial *why);
/* The most the holder could reserve right now. */
uint64_t corral_ledger_available(const struct corral_ledger *l, uint32_t holder);
/* The most that a new holder of the role could reserve there right now. */
uint64_t corral_ledger_room(const struct corral_ledger *l, uint32_t device, uint32_t role);
/* Ask every other role on the device that uses more than its floor to give back `bytes` together; which were asked, as a bit mask of roles. Withdrawn by asking for 0. */
uint32_t corral_ledger_ask(struct corral_ledger *l, uint32_t device, uint32_t role, uint64_t bytes);
/* Finish the pending change and recompute totals from the holders and allocations: what the next owner does when a process died inside
 * an operation. Doing it twice, or dying inside it, does no harm. */
void corral_ledger_repair(struct corral_ledger *l);
/* True when no change is pending, totals equal the holders' sums and invariant 1 holds on every device. */
bool corral_ledger_consistent(const struct corral_ledger *l);
/* True when the allocation and share tables agree with the holders, with each other and with their free lists. Slow. */
bool corral_ledger_tables_consistent(const struct corral_ledger *l);
void corral_ledger_reset_peaks(struct corral_ledger *l);
/* What is physically left for the role: physical - headroom - sum of every role's use, at least 0. While invariant 1 holds it is at
 * least the unused part of the role's floor, floor - used_r: that is what a step's record proves. */
uint64_t corral_ledger_slack(const struct corral_ledger *l, uint32_t device, uint32_t role);

struct corral_ledger {
    uint32_t magic, version;
    uint32_t device_count, role_count, holder_high; /* holders in [0, holder_high) may be in use */
    /* Redo record of the change under way; what makes an operation whole or absent when its process dies inside it: corral_ledger_repair()
     * finishes it. Its fields are the implementation's (docs/spec/ledger.md). */
    uint32_t pending;
    uint64_t pending_field[12];
    uint32_t allocation_free, allocation_high; /* free list head (slot + 1; 0: none), slots ever used */
    uint32_t share_free, share_high;
    char role_name[CORRAL_LEDGER_ROLES_MAX][CORRAL_LEDGER_NAME_MAX];
    uint8_t role_token[CORRAL_LEDGER_ROLES_MAX][16]; /* who shows it may join as the role (quota/shared.h) */
    struct corral_ledger_device device[CORRAL_LEDGER_DEVICES_MAX];
    struct corral_ledger_holder holder[CORRAL_LEDGER_HOLDERS_MAX];
    struct corral_ledger_window step[CORRAL_LEDGER_STEPS_MAX];
    struct corral_ledger_share share[CORRAL_LEDGER_SHARES_MAX];
    struct corral_ledger_allocation allocation[CORRAL_LEDGER_ALLOCATIONS_MAX];
};

_Static_assert(sizeof(struct corral_ledger_role) == 80, "shared layout");
_Static_assert(sizeof(struct corral_ledger_allocation) == 32, "shared layout");

#endif
