/* The node's ledger in a sealed shared mapping (memfd) made by the agent, locked with a robust process-shared mutex. A process killed anywhere inside an operation is
 * repaired by the next one to lock. Nothing has a name in the file system, so nothing is left behind. Any thread. The layout is docs/spec/ledger.md.
 *
 * An attachment belongs to the process that made it: after fork() the child attaches for itself; through the inherited one it
 * can read, but it joins and reserves nothing (CORRAL_STATE) and gives nothing of its parent's back.
 *
 * Before a reservation is refused, two things are tried: holders whose process has died without the agent having noticed yet are reaped, and roles that have borrowed above their
 * floor and listen for pressure are asked to shrink and given `pressure_wait_ms` to do it.
 */
#ifndef CORRAL_QUOTA_SHARED_H
#define CORRAL_QUOTA_SHARED_H

#include "quota/ledger.h"

struct corral_quota; /* this process's attachment */

#define CORRAL_QUOTA_LOCK_MS_MAX \
    10000 /* longest wait for the lock before CORRAL_TIMEOUT (a holder may be stopped, not dead) */
#define CORRAL_QUOTA_PRESSURE_MS_MAX 10000

/* Environment of processes that the agent starts under a quota. Set by the agent, never by a job. */
#define CORRAL_QUOTA_ENV_LEDGER "CORRAL_QUOTA_LEDGER" /* path of the mapping: /proc/PID/fd/N of the agent */
#define CORRAL_QUOTA_ENV_TOKEN "CORRAL_QUOTA_TOKEN"   /* 32 hex digits: the role's */
#define CORRAL_QUOTA_ENV_LOG "CORRAL_QUOTA_LOG"       /* file that denials are appended to; unset: stderr */
#define CORRAL_QUOTA_ENV_UNKNOWN \
    "CORRAL_QUOTA_UNKNOWN" /* "refuse" (default) or "unproven": see quota/cuda/README.md */
#define CORRAL_QUOTA_ENV_SPILL \
    "CORRAL_QUOTA_SPILL" /* most bytes to spill to host memory per process; unset: none */

struct corral_quota_options {
    uint32_t
        pressure_wait_ms; /* how long a denied reservation waits for borrowers that listen; 0: not at all */
};

/* Agent: make the mapping from a planned ledger; role tokens are drawn here. *fd_out (close-on-exec) is the caller's; clear the flag in the child that inherits it. `options` may be NULL. */
enum corral_status corral_quota_create(const struct corral_ledger *plan,
                                       const struct corral_quota_options *options, int *fd_out,
                                       struct corral_quota **out, struct corral_error *err);
/* Worker: attach to an inherited descriptor (not closed). Checks magic, version, size and seals. */
enum corral_status corral_quota_attach(int fd, struct corral_quota **out, struct corral_error *err);
/* Any process started under a quota: attach to what the environment names. *role is the ledger's role of the token. CORRAL_NOT_FOUND: the variables are not set;
 * anything else wrong (agent gone, damaged, foreign token) is an error of its own: callers fail closed. */
enum corral_status corral_quota_attach_environment(struct corral_quota **out, uint32_t *role,
                                                   struct corral_error *err);
void corral_quota_detach(struct corral_quota *q);
/* Hex of a role's token, for the environment of its processes. */
void corral_quota_token(const struct corral_quota *q, uint32_t role, char out[33]);
/* Names, limits and tables as they are now, for reading without the lock: single fields are whole, sums may be of different moments. */
const struct corral_ledger *corral_quota_ledger(const struct corral_quota *q);

/* Become a holder for (device name, role name). Leaves when detached. */
enum corral_status corral_quota_join(struct corral_quota *q, const char *device, const char *role,
                                     uint32_t *holder, struct corral_error *err);
enum corral_status corral_quota_join_index(struct corral_quota *q, uint32_t device, uint32_t role,
                                           uint32_t *holder, struct corral_error *err);
/* The holder that another attachment in this process has on (device, role), such as the interposer's: used through this one too, left by the other alone. CORRAL_NOT_FOUND: none has. */
enum corral_status corral_quota_borrow_holder(struct corral_quota *q, uint32_t device, uint32_t role,
                                              uint32_t *holder, struct corral_error *err);
/* A denial writes the structured log line once, here. `what` names the use ("adam moments", "cuMemAlloc_v2"). */
enum corral_status corral_quota_reserve(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                        const char *what, struct corral_error *err);
/* Pre-flight. Until called again with 0, this attachment's reservations are answered as if their holder had `beside` bytes more than it has, and what is refused is neither
 * counted, logged nor waited for: a rehearsal of a denial is not trouble. One thread. */
void corral_quota_rehearse(struct corral_quota *q, uint64_t beside);
void corral_quota_commit(struct corral_quota *q, uint32_t holder, uint64_t bytes);
void corral_quota_rollback(struct corral_quota *q, uint32_t holder, uint64_t bytes);
void corral_quota_release(struct corral_quota *q, uint32_t holder, uint64_t bytes);

/* A tagged charge, kept by whoever owns the memory. */
struct corral_quota_charge {
    uint64_t bytes;
    uint32_t holder;
    uint32_t allocation; /* in the ledger's table; CORRAL_LEDGER_NONE: untagged */
    uint32_t generation;
};
/* reserve → keep | drop;  kept → drop. Hot path: about two lock operations for take + drop; keep takes no lock. */
enum corral_status corral_quota_take(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                     enum corral_ledger_kind kind, const char *what,
                                     struct corral_quota_charge *out, struct corral_error *err);
void corral_quota_keep(struct corral_quota *q, const struct corral_quota_charge *charge);
void corral_quota_drop(struct corral_quota *q, const struct corral_quota_charge *charge);
/* charge->bytes follows. Growing may be refused; shrinking is not. */
enum corral_status corral_quota_resize(struct corral_quota *q, struct corral_quota_charge *charge,
                                       uint64_t bytes, const char *what, struct corral_error *err);
/* What already exists and must be counted even if it does not fit (a driver's overhead found by measuring, memory that a pool grew behind our back): charged as far as
 * invariant 1 allows, *short_by is the rest, which the caller reports as drift. */
void corral_quota_charge_measured(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                  enum corral_ledger_kind kind, struct corral_quota_charge *out,
                                  uint64_t *short_by);
/* The same for a charge that exists: made what it should be, as far as there is room. */
void corral_quota_resize_measured(struct corral_quota *q, struct corral_quota_charge *charge, uint64_t bytes,
                                  uint64_t *short_by);
enum corral_status corral_quota_export(struct corral_quota *q, const struct corral_quota_charge *charge,
                                       const uint64_t key[2], struct corral_error *err);
enum corral_status corral_quota_import(struct corral_quota *q, uint32_t holder, const uint64_t key[2],
                                       uint32_t *share, struct corral_error *err);
void corral_quota_drop_share(struct corral_quota *q, uint32_t share);

void corral_quota_set_step(struct corral_quota *q, uint32_t holder, uint64_t step);
void corral_quota_set_phase(struct corral_quota *q, uint32_t holder, uint64_t step,
                            enum corral_ledger_phase phase);
enum corral_status corral_quota_open_step(struct corral_quota *q, uint32_t holder, uint64_t step,
                                          uint64_t declared, struct corral_error *err);
enum corral_status corral_quota_close_step(struct corral_quota *q, uint32_t holder,
                                           struct corral_ledger_window *out, struct corral_error *err);
/* The most the holder could reserve right now (corral_ledger_available() under the lock); 0 when it is not ours. */
uint64_t corral_quota_available(struct corral_quota *q, uint32_t holder);
/* One of our holders as it is at one moment. False: not ours. */
bool corral_quota_read_holder(struct corral_quota *q, uint32_t holder, struct corral_ledger_holder *out);
/* What a process of the role that holds nothing on the device could take there now. */
uint64_t corral_quota_room(struct corral_quota *q, uint32_t device, uint32_t role);
/* Sets the holder's flags (enum corral_ledger_holder_flag) beside those it has. */
void corral_quota_add_flags(struct corral_quota *q, uint32_t holder, uint32_t flags);
/* Pre-flight through another attachment of this process, such as the interposer's: while the holder is marked, requests above its quota are refused as ever, but a refusal is
 * neither counted, logged nor waited for. */
void corral_quota_mark_rehearsing(struct corral_quota *q, uint32_t holder, bool rehearsing);
void corral_quota_count_spilled(struct corral_quota *q, uint32_t holder, int64_t bytes);
void corral_quota_count_pinned(struct corral_quota *q, uint32_t holder, int64_t bytes);

/* Pressure. A role that can give memory back listens with a thread of its own: wait returns the bytes wanted of (device, role), above 0, or CORRAL_TIMEOUT. While at
 * least one process of the role listens, others wait for it before they are denied. The process that listens leaves when it detaches or dies. */
enum corral_status corral_quota_listen(struct corral_quota *q, uint32_t holder, struct corral_error *err);
enum corral_status corral_quota_wait_pressure(struct corral_quota *q, uint32_t holder, uint32_t timeout_ms,
                                              uint64_t *wanted, struct corral_error *err);

/* Agent: live limits. CORRAL_STATE: the role uses more than the new ceiling; it is then held where it is (ceiling = what it uses) and asked to shrink,
 * and the caller calls again until it is CORRAL_OK or gives up (the old ceiling can be set again). */
enum corral_status corral_quota_change_limits(struct corral_quota *q, uint32_t device, uint32_t role,
                                              uint64_t floor, uint64_t ceiling, struct corral_error *err);
/* Agent: the physical readings, of a process on a device (by pid) and of a device. */
void corral_quota_set_physical(struct corral_quota *q, uint32_t device, pid_t pid, uint64_t bytes,
                               uint64_t now_ns);
/* The same of a holder that stands for other processes than its own. */
void corral_quota_set_holder_physical(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                      uint64_t now_ns);
void corral_quota_set_device_physical(struct corral_quota *q, uint32_t device, uint64_t used,
                                      uint64_t foreign, uint64_t now_ns);
/* Agent: give back what dead processes hold (pid gone or start time differs). Returns how many slots were freed. */
uint32_t corral_quota_reap(struct corral_quota *q);
/* Agent: give back what one process holds, after its pidfd has reported its end. */
void corral_quota_reap_pid(struct corral_quota *q, pid_t pid);
/* A consistent copy of everything but allocations and shares, for status, metrics and records. Those two are left as they were in *out. */
void corral_quota_snapshot(struct corral_quota *q, struct corral_ledger *out);
/* One device as it is at one moment: its limits fit each other, and its uses too. For records. */
enum corral_status corral_quota_read_device(struct corral_quota *q, uint32_t device,
                                            struct corral_ledger_device *out, struct corral_error *err);
/* Whether a process that is marked CORRAL_HOLDER_UNPROVEN lives on the device. Without the lock: see unproven_marks for those that come and go. */
bool corral_quota_has_unproven(const struct corral_quota *q, uint32_t device);
/* The allocations of one holder (or CORRAL_LEDGER_NONE: all), at most `max`; returns how many there are. */
uint32_t corral_quota_allocations(struct corral_quota *q, uint32_t holder,
                                  struct corral_ledger_allocation *out, uint32_t max);

/* How often a process died inside an operation and the next one repaired the ledger. */
uint32_t corral_quota_repairs(const struct corral_quota *q);

/* /proc/PID/stat field 22; 0 when there is no such process. */
uint64_t corral_process_start_time(pid_t pid);

#endif
