/* The node's ledger in a sealed shared mapping (memfd) made by the agent, inherited by its workers as a descriptor, locked
 * with a robust process-shared mutex. A process killed anywhere inside an operation is repaired by the next one to lock.
 * Nothing has a name in the file system, so nothing is left behind. Any thread. The layout is docs/spec/ledger.md.
 *
 * An attachment belongs to the process that made it: after fork() the child attaches for itself; through the inherited one it
 * can read, but it joins and reserves nothing (CORRAL_STATE) and gives nothing of its parent's back.
 */
#ifndef CORRAL_QUOTA_SHARED_H
#define CORRAL_QUOTA_SHARED_H

#include "quota/ledger.h"

struct corral_quota; /* this process's attachment */

#define CORRAL_QUOTA_LOCK_MS_MAX \
    10000 /* longest wait for the lock before CORRAL_TIMEOUT (a holder may be stopped, not dead) */

/* Agent: make the mapping from a planned ledger. *fd_out (close-on-exec) is the caller's; clear the flag in the child that inherits it. */
enum corral_status corral_quota_create(const struct corral_ledger *plan, int *fd_out,
                                       struct corral_quota **out, struct corral_error *err);
/* Worker: attach to an inherited descriptor (not closed). Checks magic, version, size and seals. */
enum corral_status corral_quota_attach(int fd, struct corral_quota **out, struct corral_error *err);
void corral_quota_detach(struct corral_quota *q);

/* Become a holder for (device name, role name). Leaves when detached. */
enum corral_status corral_quota_join(struct corral_quota *q, const char *device, const char *role,
                                     uint32_t *holder, struct corral_error *err);
/* A denial writes the structured log line once, here. `what` names the use ("adam moments"). */
enum corral_status corral_quota_reserve(struct corral_quota *q, uint32_t holder, uint64_t bytes,
                                        const char *what, struct corral_error *err);
void corral_quota_commit(struct corral_quota *q, uint32_t holder, uint64_t bytes);
void corral_quota_rollback(struct corral_quota *q, uint32_t holder, uint64_t bytes);
void corral_quota_release(struct corral_quota *q, uint32_t holder, uint64_t bytes);
void corral_quota_set_step(struct corral_quota *q, uint32_t holder, uint64_t step);
/* Agent: give back what dead processes hold (pid gone or start time differs). Returns how many slots were freed. */
uint32_t corral_quota_reap(struct corral_quota *q);
/* Agent: give back what one process holds, after its pidfd has reported its end. */
void corral_quota_reap_pid(struct corral_quota *q, pid_t pid);
/* A consistent copy, for status, metrics and records. */
void corral_quota_snapshot(struct corral_quota *q, struct corral_ledger *out);

/* How often a process died inside an operation and the next one repaired the ledger. */
uint32_t corral_quota_repairs(const struct corral_quota *q);

/* /proc/PID/stat field 22; 0 when there is no such process. */
uint64_t corral_process_start_time(pid_t pid);

#endif
