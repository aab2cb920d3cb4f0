/* The public face of quotas and step proofs: <corral/quota.h>. */
#include "base/text.h"
#include "trainer-bridge/step_guard/step_guard.h"
#include <assert.h>
#include <corral/quota.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_MS 100 /* the pressure thread looks this often whether it is to end */
#define DRIFT_DEFAULT (UINT64_C(64) << 20)

static_assert((int)CORRAL_QUOTA_PHASE_FORWARD == CORRAL_PHASE_FORWARD &&
                  (int)CORRAL_QUOTA_PHASE_BACKWARD == CORRAL_PHASE_BACKWARD &&
                  (int)CORRAL_QUOTA_PHASE_OPTIMIZER == CORRAL_PHASE_OPTIMIZER &&
                  (int)CORRAL_QUOTA_PHASE_SYNC == CORRAL_PHASE_SYNC &&
                  (int)CORRAL_QUOTA_PHASE_ROLLOUT == CORRAL_PHASE_ROLLOUT &&
                  (int)CORRAL_QUOTA_PHASE_EVAL == CORRAL_PHASE_EVAL,
              "phases have the same numbers inside and outside");

struct corral_quota_client {
    struct corral_quota *quota;
    const struct corral_ledger *ledger;
    uint32_t device, role;
    uint32_t holder;                 /* CORRAL_LEDGER_NONE until it is needed */
    bool borrowed;                   /* it is the interposer's, or another client's of this process */
    struct corral_step_guard *guard; /* from the first step on */
    uint64_t step;
    pthread_t thread;
    bool thread_runs;
    atomic_bool stop;
    corral_quota_pressure_fn fn;
    void *ctx;
};

/* On a GPU the interposer, in this very process, is charged under a holder of its own: steps and phases are that one's. It takes it at the first allocation, which may
 * come after this client needed a holder. */
static uint32_t charged_holder(const struct corral_quota_client *q)
{
    uint32_t holder = q->holder;
    (void)corral_quota_borrow_holder(q->quota, q->device, q->role, &holder, NULL);
    return holder;
}

static enum corral_status need_holder(struct corral_quota_client *q, struct corral_error *err)
{
    if (q->holder == CORRAL_LEDGER_NONE) {
        q->holder = charged_holder(q);
        q->borrowed = q->holder != CORRAL_LEDGER_NONE;
    }
    return q->holder != CORRAL_LEDGER_NONE
               ? CORRAL_OK
               : corral_quota_join_index(q->quota, q->device, q->role, &q->holder, err);
}

enum corral_status corral_quota_open(struct corral_quota_client **out, struct corral_error *err)
{
    struct corral_quota *quota = NULL;
    uint32_t role;
    CORRAL_TRY(corral_quota_attach_environment(&quota, &role, err));
    const char *device = getenv(CORRAL_QUOTA_ENV_DEVICE);
    const struct corral_ledger *ledger = corral_quota_ledger(quota);
    uint32_t index = device ? corral_ledger_find_device(ledger, device) : CORRAL_LEDGER_NONE;
    struct corral_quota_client *q = index < CORRAL_LEDGER_DEVICES_MAX ? calloc(1, sizeof *q) : NULL;
    if (!q) {
        corral_quota_detach(quota);
        return !device ? corral_fail(err, CORRAL_INVALID, "%s is not set: which device is this process's?",
                                     CORRAL_QUOTA_ENV_DEVICE)
               : index >= CORRAL_LEDGER_DEVICES_MAX
                   ? corral_fail(err, CORRAL_INVALID, "%s=%.64s: the node's ledger has no such device",
                                 CORRAL_QUOTA_ENV_DEVICE, device)
                   : corral_fail(err, CORRAL_NOMEM, "quota client");
    }
    *q = (struct corral_quota_client){
        .quota = quota, .ledger = ledger, .device = index, .role = role, .holder = CORRAL_LEDGER_NONE};
    *out = q;
    return CORRAL_OK;
}

static void stop_thread(struct corral_quota_client *q)
{
    if (q->thread_runs) {
        atomic_store_explicit(&q->stop, true, memory_order_release); /* pairs with the thread's load */
        pthread_join(q->thread, NULL);
        q->thread_runs = false;
    }
}

void corral_quota_close(struct corral_quota_client *q)
{
    if (q) {
        stop_thread(q);
        corral_step_guard_destroy(q->guard);
        corral_quota_detach(q->quota);
        free(q);
    }
}

/* A program compiled with another release has a shorter or longer struct. */
static enum corral_status check_size(uint32_t size, const char *what, struct corral_error *err)
{
    return size >= sizeof(uint32_t) && size <= 4096
               ? CORRAL_OK
               : corral_fail(err, CORRAL_INVALID, "%s: out->size is %u; set it to sizeof(*out)", what, size);
}

enum corral_status corral_quota_state(struct corral_quota_client *q, struct corral_quota_state *out,
                                      struct corral_error *err)
{
    CORRAL_TRY(check_size(out->size, "corral_quota_state", err));
    CORRAL_TRY(need_holder(q, err));
    const struct corral_ledger_device *d = &q->ledger->device[q->device];
    const struct corral_ledger_role *r = &d->role[q->role];
    struct corral_quota_state s = {
        .size = CORRAL_MIN(out->size, (uint32_t)sizeof s),
        .physical = d->physical,
        .floor = r->floor,
        .ceiling = r->ceiling,
        .used = r->used,
        .available = corral_quota_available(q->quota, charged_holder(q)),
        .denied = r->denied,
        .wanted = r->wanted,
        .frozen = d->steps_open > 0,
    };
    static_assert(sizeof s.device == sizeof d->name && sizeof s.role == CORRAL_LEDGER_NAME_MAX,
                  "copied whole");
    memcpy(s.device, d->name, sizeof s.device);
    memcpy(s.role, q->ledger->role_name[q->role], sizeof s.role);
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        const struct corral_ledger_holder *h = &q->ledger->holder[i];
        if (h->pid == getpid() && h->device == q->device && h->role == q->role) {
            s.used_here += h->committed + h->reserved;
        }
    }
    memcpy(out, &s, s.size);
    return CORRAL_OK;
}

/* ---- steps ---- */

static uint64_t number_of(const char *name, int base, uint64_t otherwise)
{
    const char *text = getenv(name);
    char *end = NULL;
    uint64_t value = text && *text ? strtoull(text, &end, base) : 0;
    return end && *end == '\0' ? value : otherwise;
}

/* The baseline is measured when the guard is made: as late as can be, at the first step. */
static enum corral_status make_guard(struct corral_quota_client *q, uint64_t step, struct corral_error *err)
{
    static const uint8_t no_uuid[16];
    const char *path = getenv(CORRAL_PROOF_ENV_CHAIN);
    if (!path || !*path) {
        return corral_fail(err, CORRAL_STATE, "this process is not a trainer: %s is not set",
                           CORRAL_PROOF_ENV_CHAIN);
    }
    if (step == 0) {
        return corral_fail(err, CORRAL_INVALID, "corral_step_begin: steps are counted from 1");
    }
    CORRAL_TRY(need_holder(q, err));
    bool gpu = memcmp(q->ledger->device[q->device].uuid, no_uuid, sizeof no_uuid) != 0;
    if (gpu && charged_holder(q) == q->holder && !q->borrowed) {
        return corral_fail(err, CORRAL_STATE,
                           "nothing charges this process for %s yet: allocate on it before the first step",
                           q->ledger->device[q->device].name);
    }
    struct corral_step_guard_config config = {
        .quota = q->quota,
        .holder = charged_holder(q),
        .rank = (uint32_t)number_of(CORRAL_PROOF_ENV_RANK, 10, 0),
        .run = number_of(CORRAL_PROOF_ENV_RUN, 10, 0),
        .step = step - 1,
        .chain_path = path,
        .fences = getenv(CORRAL_PROOF_ENV_FENCES),
        .drift_max = number_of(CORRAL_PROOF_ENV_DRIFT, 10, DRIFT_DEFAULT),
        .host_device = !gpu,
    };
    return corral_step_guard_create(&config, &q->guard, err);
}

enum corral_status corral_step_begin(struct corral_quota_client *q, uint64_t step, uint64_t peak,
                                     struct corral_error *err)
{
    if (!q->guard) {
        CORRAL_TRY(make_guard(q, step, err));
    }
    CORRAL_TRY(corral_step_guard_begin(q->guard, step, peak, err));
    q->step = step;
    return CORRAL_OK;
}

enum corral_status corral_step_end(struct corral_quota_client *q, struct corral_step_result *out,
                                   struct corral_error *err)
{
    if (out) {
        CORRAL_TRY(check_size(out->size, "corral_step_end", err));
    }
    if (!q->guard) {
        return corral_fail(err, CORRAL_STATE, "corral_step_end: no step is open");
    }
    CORRAL_AUTO_FREE struct corral_proof_record *r = malloc(sizeof *r);
    if (!r) {
        return corral_fail(err, CORRAL_NOMEM, "corral_step_end");
    }
    CORRAL_TRY(corral_step_guard_end(q->guard, r, err));
    if (!out) {
        return CORRAL_OK;
    }
    struct corral_chain_head head;
    corral_step_guard_head(q->guard, &head);
    struct corral_step_result result = {
        .size = CORRAL_MIN(out->size, (uint32_t)sizeof result),
        .verdict = r->verdict == CORRAL_PROOF_PROVEN ? 0 : 1,
        .step = r->step,
        .declared = r->declared,
        .peak = r->own_peak,
        .slack_min = r->slack_min,
        .drift = r->drift,
        .record = head.count,
    };
    static_assert(sizeof result.hash == sizeof head.hash && sizeof result.why == sizeof r->why,
                  "copied whole");
    memcpy(result.hash, head.hash, sizeof result.hash);
    memcpy(result.why, r->why, sizeof result.why);
    memcpy(out, &result, result.size);
    return CORRAL_OK;
}

void corral_step_abandon(struct corral_quota_client *q)
{
    if (q->guard) {
        corral_step_guard_abandon(q->guard);
    }
}

void corral_quota_phase(struct corral_quota_client *q, enum corral_quota_phase phase)
{
    if (need_holder(q, NULL) == CORRAL_OK) {
        corral_quota_set_phase(q->quota, charged_holder(q), q->step, (enum corral_ledger_phase)phase);
    }
}

/* ---- pressure ---- */

static void *pressure_main(void *arg)
{
    struct corral_quota_client *q = arg;
    while (
        !atomic_load_explicit(&q->stop, memory_order_acquire)) { /* pairs with the store in stop_thread() */
        uint64_t wanted = 0;
        struct corral_error err;
        enum corral_status status = corral_quota_wait_pressure(q->quota, q->holder, WAIT_MS, &wanted, &err);
        if (status == CORRAL_OK && wanted > 0) {
            q->fn(q->ctx, wanted);
        } else if (status != CORRAL_OK && status != CORRAL_TIMEOUT) {
            return NULL; /* the agent is gone, and with it whoever could be waiting */
        }
    }
    return NULL;
}

enum corral_status corral_quota_on_pressure(struct corral_quota_client *q, corral_quota_pressure_fn fn,
                                            void *ctx, struct corral_error *err)
{
    stop_thread(q);
    if (!fn) {
        return CORRAL_OK;
    }
    CORRAL_TRY(need_holder(q, err));
    CORRAL_TRY(corral_quota_listen(q->quota, q->holder, err));
    q->fn = fn;
    q->ctx = ctx;
    atomic_store_explicit(&q->stop, false, memory_order_relaxed); /* no thread yet */
    int code = pthread_create(&q->thread, NULL, pressure_main, q);
    q->thread_runs = code == 0;
    return code == 0 ? CORRAL_OK : corral_fail_sys(err, code, "starting the pressure thread");
}
