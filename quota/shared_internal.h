/* What the files of the shared ledger share: the mapping, this process's attachment, and the lock. */
#ifndef CORRAL_QUOTA_SHARED_INTERNAL_H
#define CORRAL_QUOTA_SHARED_INTERNAL_H

#include "quota/shared.h"

#include <pthread.h>
#include <stdatomic.h>

#define SHARED_MAGIC UINT32_C(0x53435143) /* "CQCS" */
#define SHARED_VERSION 2
#define SHARED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct shared_ledger {
    uint32_t magic, version;
    uint64_t bytes;
    uint32_t pressure_wait_ms;
    _Atomic uint32_t repairs;
    pthread_mutex_t ledger_lock __attribute__((aligned(64)));
    _Atomic int32_t
        owner_pid; /* the last to have locked: whom to name in a timeout, whom to reap when it died inside */
    /* Somebody waits for memory of these devices (a bit each) to come back: whoever gives some back clears the bit, counts
     * `released` up and wakes the futex there. Set under the lock; a waiter sets it anew before each wait. */
    _Atomic uint64_t waiting __attribute__((aligned(64)));
    _Atomic uint32_t released;
    /* Futexes that listeners of (device, role) wait on; counted up for each new request. */
    _Atomic uint32_t asked[CORRAL_LEDGER_DEVICES_MAX][CORRAL_LEDGER_ROLES_MAX];
    uint32_t listening
        [CORRAL_LEDGER_HOLDERS_MAX]; /* generation of the holder that listens: ends with the holder */
    struct corral_ledger ledger __attribute__((aligned(64)));
};

struct corral_quota {
    struct shared_ledger *shared;
    pid_t pid;       /* the process that attached */
    uint64_t beside; /* corral_quota_rehearse(); 0: in earnest */
    const volatile uint32_t
        *ours; /* reads 1 here and 0 in a forked child; NULL where the kernel has no such pages */
    /* Generation of the slots this attachment took; 0: not ours. Under the lock. */
    uint32_t joined[CORRAL_LEDGER_HOLDERS_MAX];
    /* Another attachment of this process joined it, and leaves it. */
    bool borrowed[CORRAL_LEDGER_HOLDERS_MAX];
    _Atomic uint32_t heard[CORRAL_LEDGER_HOLDERS_MAX]; /* the request a listener has been told of */
};

/* Is this still the process that attached? No system call where the kernel wipes pages on fork. */
bool corral_quota_is_attached(const struct corral_quota *q);
enum corral_status corral_quota_check_process(const struct corral_quota *q, struct corral_error *err);
enum corral_status corral_quota_lock(struct corral_quota *q, struct corral_error *err);
/* For changes that must not be lost: outwaits a stopped lock holder, saying so. False only when the lock is damaged. */
bool corral_quota_lock_patiently(struct corral_quota *q);
void corral_quota_unlock(struct corral_quota *q);
/* Unlock after a change that may have made room on the device: wakes who waits for it. */
void corral_quota_unlock_released(struct corral_quota *q, uint32_t device);
/* A slot is ours when this attachment took it and nobody has taken it since. */
bool corral_quota_is_ours(const struct corral_quota *q, uint32_t holder);
/* Lock for a change of our own slot. False, unlocked, when it is not ours: a forked child's copy of its parent's memory
 * is not charged, so giving it back changes nothing. */
bool corral_quota_lock_ours(struct corral_quota *q, uint32_t holder);

/* ---- shared_pressure.c ---- */
/* Something that may be refused: what to check, and what to do when it fits. */
struct quota_request {
    enum { REQUEST_RESERVE, REQUEST_TAKE, REQUEST_UNTAGGED, REQUEST_RESIZE, REQUEST_STEP } verb;
    enum corral_ledger_kind kind;
    uint32_t holder, allocation, generation;
    uint64_t bytes; /* to take; of the allocation afterwards; declared peak */
    uint64_t step;
    const char *what;
};
/* Carry it out, after reaping the dead and asking borrowers if need be. TAKE sets request->allocation and generation. */
enum corral_status corral_quota_request(struct corral_quota *q, struct quota_request *request,
                                        struct corral_error *err);
void corral_quota_wake_listeners(struct corral_quota *q, uint32_t device, uint32_t roles);

/* ---- shared_agent.c ---- */
void corral_quota_reap_owner(struct shared_ledger *s);

#endif
