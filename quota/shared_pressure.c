#include "quota/shared_internal.h"

#include "base/log.h"
#include "base/text.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAIT_SLICE_NS      \
    (UINT64_C(50) * 1000 * \
     1000) /* ask again at least this often: a request may have been withdrawn by another */
#define NS_PER_MS (UINT64_C(1000) * 1000)
#define NS_PER_S (UINT64_C(1000) * 1000 * 1000)

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

/* ---- carrying a request out, under the lock ---- */

static const struct corral_ledger_allocation *resized(const struct corral_ledger *l,
                                                      const struct quota_request *r)
{
    const struct corral_ledger_allocation *a = &l->allocation[r->allocation % CORRAL_LEDGER_ALLOCATIONS_MAX];
    return r->allocation < CORRAL_LEDGER_ALLOCATIONS_MAX && a->generation == r->generation &&
                   a->holder == r->holder + 1 && !a->orphan
               ? a
               : NULL;
}

static bool fits(const struct corral_ledger *l, const struct quota_request *r,
                 struct corral_ledger_denial *why)
{
    switch (r->verb) {
    case REQUEST_STEP:
        return l->holder[r->holder].step_slot != 0 || corral_ledger_step_fits(l, r->holder, r->bytes, why);
    case REQUEST_RESIZE: {
        const struct corral_ledger_allocation *a = resized(l, r);
        return !a || r->bytes <= a->bytes || corral_ledger_fits(l, r->holder, r->bytes - a->bytes, why);
    }
    default:
        return corral_ledger_fits(l, r->holder, r->bytes, why);
    }
}

static enum corral_status take(struct corral_ledger *l, struct quota_request *r,
                               struct corral_ledger_denial *why)
{
    enum corral_status status = corral_ledger_take(l, r->holder, r->bytes, r->kind, &r->allocation, why);
    if (status != CORRAL_OK) {
        return status;
    }
    if (r->allocation != CORRAL_LEDGER_NONE) {
        r->generation = l->allocation[r->allocation].generation;
    } else { /* nowhere to mark it as kept later */
        corral_ledger_commit(l, r->holder, r->bytes);
        r->generation = r->kind;
    }
    return CORRAL_OK;
}

static enum corral_status carry_out(struct corral_ledger *l, struct quota_request *r,
                                    struct corral_ledger_denial *why, struct corral_error *err)
{
    switch (r->verb) {
    case REQUEST_RESERVE:
        return corral_ledger_reserve(l, r->holder, r->bytes, why);
    case REQUEST_TAKE:
        return take(l, r, why);
    case REQUEST_UNTAGGED:
        return corral_ledger_take_untagged(l, r->holder, r->bytes, r->kind, why);
    case REQUEST_RESIZE:
        if (!resized(l, r)) {
            return corral_fail(err, CORRAL_STATE, "%s: the charge has been given back", r->what);
        }
        return corral_ledger_resize(l, r->allocation, r->bytes, why);
    case REQUEST_STEP:
        return corral_ledger_open_step(l, r->holder, r->step, r->bytes, why, err);
    }
    return corral_fail(err, CORRAL_INTERNAL, "%s: unknown request", r->what);
}

/* ---- the refusal ---- */

static enum corral_status report_denial(const struct corral_quota *q, const struct corral_ledger_denial *why,
                                        const struct quota_request *r, uint64_t step,
                                        struct corral_error *err)
{
    const struct corral_ledger *l = &q->shared->ledger;
    const char *role = l->role_name[why->role], *device = l->device[why->device].name;
    const char *reason = corral_ledger_reason_name(why->reason);
    corral_log_warn("memory denied", LOG_STR("role", role), LOG_STR("device", device), LOG_I64("pid", q->pid),
                    LOG_U64("step", step), LOG_STR("what", r->what), LOG_U64("size", why->bytes),
                    LOG_U64("used", why->used), LOG_U64("floor", why->floor),
                    LOG_U64("ceiling", why->ceiling), LOG_STR("reason", reason));
    char a[32], b[32], c[32], d[32];
    return corral_fail(
        err, CORRAL_DENIED, "%s: %s for %s on %s denied, %s: %s of ceiling %s used, %s would fit", r->what,
        corral_format_bytes(why->bytes, a, sizeof a), role, device, reason,
        corral_format_bytes(why->used, b, sizeof b), corral_format_bytes(why->ceiling, c, sizeof c),
        corral_format_bytes(why->available, d, sizeof d));
}

/* ---- asking borrowers ---- */

static uint32_t listening_roles(const struct shared_ledger *s, uint32_t device)
{
    uint32_t roles = 0;
    uint32_t high = CORRAL_MIN(s->ledger.holder_high, CORRAL_LEDGER_HOLDERS_MAX);
    for (uint32_t i = 0; i < high; i++) {
        const struct corral_ledger_holder *h = &s->ledger.holder[i];
        if (h->pid != 0 && !h->left && h->device == device && h->role < CORRAL_LEDGER_ROLES_MAX &&
            s->listening[i] != 0 && s->listening[i] == h->generation) {
            roles |= UINT32_C(1) << h->role;
        }
    }
    return roles;
}

void corral_quota_wake_listeners(struct corral_quota *q, uint32_t device, uint32_t roles)
{
    for (uint32_t r = 0; r < CORRAL_LEDGER_ROLES_MAX; r++) {
        if ((roles >> r & 1) != 0) {
            _Atomic uint32_t *word = &q->shared->asked[device][r];
            atomic_fetch_add_explicit(word, 1, memory_order_release); /* pairs with wait_pressure */
            syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        }
    }
}

/* Under the lock, which it lets go of; what the wait is for may have come about when it returns. False: nobody to wait for. */
static bool wait_for_borrowers(struct corral_quota *q, const struct corral_ledger_denial *why,
                               uint64_t deadline_ns, uint32_t *told)
{
    struct shared_ledger *s = q->shared;
    uint64_t now = now_ns();
    if (why->reason != CORRAL_LEDGER_OVER_FLOORS || now >= deadline_ns) {
        return false;
    }
    uint32_t asked = corral_ledger_ask(&s->ledger, why->device, why->role, why->bytes - why->available) &
                     listening_roles(s, why->device);
    if (asked == 0) {
        corral_ledger_ask(&s->ledger, why->device, why->role, 0);
        return false;
    }
    atomic_fetch_or_explicit(&s->waiting, UINT64_C(1) << why->device, memory_order_relaxed);
    uint32_t seen = atomic_load_explicit(&s->released, memory_order_relaxed);
    corral_quota_unlock(q);
    corral_quota_wake_listeners(q, why->device, asked & ~*told);
    *told |= asked;
    futex_wait(&s->released, seen, CORRAL_MIN(WAIT_SLICE_NS, deadline_ns - now));
    return true;
}

static enum corral_status denied_in_rehearsal(const struct quota_request *r,
                                              const struct corral_ledger_denial *why,
                                              struct corral_error *err)
{
    return corral_fail(err, CORRAL_DENIED, "%s: denied in a rehearsal, %s", r->what,
                       corral_ledger_reason_name(why->reason));
}

/* The first attempt did not fit. Dead holders go first; then borrowers that listen have time to shrink; then it is refused. */
static enum corral_status insist(struct corral_quota *q, struct quota_request *r, struct corral_error *err)
{
    struct corral_ledger *l = &q->shared->ledger;
    struct corral_ledger_denial why;
    uint32_t told = 0;
    corral_quota_reap(q);
    uint64_t deadline_ns = now_ns() + q->shared->pressure_wait_ms * NS_PER_MS;
    for (;;) {
        CORRAL_TRY(corral_quota_lock(q, err));
        if (!corral_quota_is_ours(q, r->holder)) {
            corral_quota_unlock(q);
            return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                               r->holder);
        }
        bool admitted = fits(l, r, &why);
        if (!admitted && (l->holder[r->holder].flags & CORRAL_HOLDER_REHEARSING) != 0) {
            corral_quota_unlock(q);
            return denied_in_rehearsal(r, &why, err);
        }
        if (admitted || !wait_for_borrowers(q, &why, deadline_ns, &told)) {
            break;
        }
    }
    uint64_t step = r->verb == REQUEST_STEP ? r->step : l->holder[r->holder].step;
    if (told != 0) {
        const struct corral_ledger_holder *h = &l->holder[r->holder];
        corral_ledger_ask(l, h->device, h->role, 0);
    }
    enum corral_status status = carry_out(l, r, &why, err);
    corral_quota_unlock(q);
    return status == CORRAL_DENIED ? report_denial(q, &why, r, step, err) : status;
}

void corral_quota_rehearse(struct corral_quota *q, uint64_t beside)
{
    q->beside = beside;
}

/* Under the lock, which it lets go of. The same check as in earnest, and nothing of what a refusal leads to. */
static enum corral_status rehearse(struct corral_quota *q, struct quota_request *r, struct corral_error *err)
{
    struct corral_ledger_denial why;
    struct quota_request more = *r;
    more.bytes = r->bytes > UINT64_MAX - q->beside ? UINT64_MAX : r->bytes + q->beside;
    bool admitted = fits(&q->shared->ledger, &more, &why);
    enum corral_status status = admitted ? carry_out(&q->shared->ledger, r, NULL, err) : CORRAL_OK;
    corral_quota_unlock(q);
    return admitted ? status : denied_in_rehearsal(r, &why, err);
}

enum corral_status corral_quota_request(struct corral_quota *q, struct quota_request *r,
                                        struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    CORRAL_TRY(corral_quota_lock(q, err));
    if (!corral_quota_is_ours(q, r->holder)) {
        corral_quota_unlock(q);
        return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                           r->holder);
    }
    if (q->beside != 0) {
        return rehearse(q, r, err);
    }
    struct corral_ledger *l = &q->shared->ledger;
    if (!fits(l, r, NULL)) {
        corral_quota_unlock(q);
        return insist(q, r, err);
    }
    uint32_t device = l->holder[r->holder].device;
    enum corral_status status = carry_out(l, r, NULL, err);
    if (status == CORRAL_NOMEM) { /* no slot for the step: the dead may have some */
        corral_quota_unlock(q);
        return insist(q, r, err);
    }
    if (r->verb == REQUEST_RESIZE) {
        corral_quota_unlock_released(q, device);
    } else {
        corral_quota_unlock(q);
    }
    return status;
}

/* ---- listening ---- */

enum corral_status corral_quota_listen(struct corral_quota *q, uint32_t holder, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    CORRAL_TRY(corral_quota_lock(q, err));
    if (!corral_quota_is_ours(q, holder)) {
        corral_quota_unlock(q);
        return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                           holder);
    }
    struct shared_ledger *s = q->shared;
    const struct corral_ledger_holder *h = &s->ledger.holder[holder];
    s->listening[holder] = h->generation;
    /* A request that is open already is news to this listener. */
    uint32_t asked = atomic_load_explicit(&s->asked[h->device][h->role], memory_order_relaxed);
    bool open = s->ledger.device[h->device].role[h->role].wanted > 0;
    atomic_store_explicit(&q->heard[holder], open ? asked - 1 : asked, memory_order_relaxed);
    corral_quota_unlock(q);
    return CORRAL_OK;
}

enum corral_status corral_quota_wait_pressure(struct corral_quota *q, uint32_t holder, uint32_t timeout_ms,
                                              uint64_t *wanted, struct corral_error *err)
{
    CORRAL_TRY(corral_quota_check_process(q, err));
    if (!corral_quota_is_ours(q, holder)) {
        return corral_fail(err, CORRAL_STATE, "memory ledger: slot %u is not this process's any more",
                           holder);
    }
    struct shared_ledger *s = q->shared;
    const struct corral_ledger_holder *h = &s->ledger.holder[holder];
    uint32_t device = h->device, role = h->role;
    _Atomic uint32_t *word = &s->asked[device][role];
    uint64_t deadline_ns = now_ns() + timeout_ms * NS_PER_MS;
    for (;;) {
        uint32_t seen = atomic_load_explicit(word, memory_order_acquire); /* pairs with wake_listeners */
        if (seen != atomic_load_explicit(&q->heard[holder], memory_order_relaxed)) {
            atomic_store_explicit(&q->heard[holder], seen, memory_order_relaxed);
            CORRAL_TRY(corral_quota_lock(q, err));
            uint64_t bytes = s->ledger.device[device].role[role].wanted;
            corral_quota_unlock(q);
            if (bytes > 0) {
                *wanted = bytes;
                return CORRAL_OK;
            }
        }
        uint64_t now = now_ns();
        if (now >= deadline_ns) {
            return corral_fail(err, CORRAL_TIMEOUT, "nobody asked for memory in %u ms", timeout_ms);
        }
        futex_wait(word, seen, deadline_ns - now);
    }
}
