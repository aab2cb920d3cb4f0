#include "quota/cuda/overhead.h"
#include <errno.h>

struct account {
    pthread_mutex_t lock; /* from begin to end */
    struct corral_quota_charge charge;
    uint64_t context;  /* what the last one cost */
    uint64_t promised; /* expected by calls of this context: kept charged until it ends */
};

static struct account accounts[CORRAL_CUDA_DEVICES_MAX] = {
    [0 ... CORRAL_CUDA_DEVICES_MAX -
     1] = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .charge = {.holder = CORRAL_LEDGER_NONE, .allocation = CORRAL_LEDGER_NONE}},
};
/* The driver may call itself through our hooks; what it takes then is part of the call being measured. */
static _Thread_local bool inside;

/* What the ledger knows of the process (or of everybody) beside this process's overhead. */
static uint64_t accounted(uint32_t holder, enum corral_cuda_reading_source source, bool *managed)
{
    struct corral_quota *q = corral_cuda_quota();
    struct corral_ledger_holder h = {0};
    struct corral_ledger_device d;
    if (q == NULL || !corral_quota_read_holder(q, holder, &h)) {
        return 0;
    }
    *managed = h.kind_bytes[CORRAL_KIND_MANAGED] > 0;
    uint64_t bytes = h.committed + h.reserved;
    if (source == CORRAL_CUDA_READ_DEVICE && corral_quota_read_device(q, h.device, &d, NULL) == CORRAL_OK) {
        bytes = 0;
        for (uint32_t r = 0; r < corral_quota_ledger(q)->role_count; r++) {
            bytes += d.role[r].used;
        }
    }
    uint64_t overhead = h.kind_bytes[CORRAL_KIND_OVERHEAD];
    return bytes > overhead ? bytes - overhead : 0;
}

static struct corral_cuda_reading read_once(CUdevice device, bool node_locked)
{
    struct corral_cuda_reading r = {.source = CORRAL_CUDA_UNREAD};
    if (corral_cuda_physical_process(device, &r.used)) {
        r.source = CORRAL_CUDA_READ_PROCESS;
    } else if (node_locked && corral_cuda_physical_device(device, &r.used)) {
        r.source = CORRAL_CUDA_READ_DEVICE;
    }
    return r;
}

#define READINGS_MAX 4

/* Other threads allocate and free meanwhile: read until the ledger says the same before and after, a few times. What is freed is uncharged after the driver has freed it, and what is
 * taken is charged before, so what is left of the error is never taken for overhead. */
static struct corral_cuda_reading read_memory(CUdevice device, uint32_t holder, bool node_locked)
{
    struct corral_cuda_reading r;
    uint64_t before;
    int times = 0;
    do {
        before = accounted(holder, CORRAL_CUDA_READ_PROCESS, &r.managed);
        r = read_once(device, node_locked);
        r.accounted = accounted(holder, r.source, &r.managed);
    } while (r.source == CORRAL_CUDA_READ_PROCESS && r.accounted != before && ++times < READINGS_MAX);
    if (r.source == CORRAL_CUDA_READ_PROCESS) {
        r.accounted = CORRAL_MAX(r.accounted, before);
    }
    return r;
}

static bool reserve_estimate(struct corral_cuda_overhead *o, struct account *a)
{
    uint64_t estimate = o->of == CORRAL_CUDA_OVERHEAD_CONTEXT ? a->context : o->expected;
    o->charged = corral_cuda_is_charged(&a->charge) ? a->charge.bytes : 0;
    if (estimate == 0) {
        return true;
    }
    if (corral_cuda_is_charged(&a->charge)) {
        return corral_cuda_resize(o->device, &a->charge, a->charge.bytes + estimate, o->api);
    }
    if (!corral_cuda_reserve(o->device, estimate, CORRAL_KIND_OVERHEAD, o->api, &a->charge)) {
        a->charge = corral_cuda_no_charge();
        return false;
    }
    corral_quota_keep(corral_cuda_quota(), &a->charge);
    return true;
}

static bool begin(struct corral_cuda_overhead *o, uint32_t holder)
{
    struct account *a = &accounts[o->device];
    if (o->of == CORRAL_CUDA_OVERHEAD_CONTEXT || o->expected > 0) {
        pthread_mutex_lock(&a->lock);
    } else if (pthread_mutex_trylock(&a->lock) != 0) {
        return true; /* found when the next one is measured */
    }
    if (!reserve_estimate(o, a)) {
        pthread_mutex_unlock(&a->lock);
        return false;
    }
    o->measuring = inside = true;
    o->before = read_memory(o->device, holder, false);
    if (o->before.source == CORRAL_CUDA_UNREAD) {
        o->node_lock = corral_cuda_node_trylock(o->device);
        o->before = read_memory(o->device, holder, o->node_lock >= 0);
    }
    return true;
}

static bool start(struct corral_cuda_overhead *o, CUdevice device, const char *api)
{
    int saved = errno;
    uint32_t holder;
    if (inside) {
        return true;
    }
    if (device < 0 || device >= CORRAL_CUDA_DEVICES_MAX || corral_cuda_mode() != CORRAL_CUDA_FENCED ||
        !corral_cuda_holder(device, &holder)) {
        if (corral_cuda_initialised()) {
            corral_cuda_log("denied", "api=%s device=%d reason=\"no ledger\"", api, device);
        }
        return false;
    }
    bool ok = begin(o, holder);
    errno = saved;
    return ok;
}

bool corral_cuda_overhead_begin(struct corral_cuda_overhead *o, CUdevice device,
                                enum corral_cuda_overhead_of of, const char *api)
{
    *o = (struct corral_cuda_overhead){.device = device, .of = of, .api = api, .node_lock = -1};
    return start(o, device, api);
}

bool corral_cuda_overhead_begin_expecting(struct corral_cuda_overhead *o, CUdevice device, uint64_t expected,
                                          const char *api)
{
    *o = (struct corral_cuda_overhead){.device = device,
                                       .of = CORRAL_CUDA_OVERHEAD_OTHER,
                                       .api = api,
                                       .expected = expected,
                                       .node_lock = -1};
    return start(o, device, api);
}

/* Where the process's use can be read, everything that the ledger does not know of is overhead, kernels loaded later included. Managed memory counts in the ledger wherever it is, so
 * with some of it only the difference over the call is right. */
static uint64_t measure(const struct corral_cuda_overhead *o, const struct corral_cuda_reading *after,
                        bool managed)
{
    if (after->source == CORRAL_CUDA_READ_PROCESS && !managed) {
        return after->used > after->accounted ? after->used - after->accounted : 0;
    }
    int64_t change =
        (int64_t)(after->used - o->before.used) - (int64_t)(after->accounted - o->before.accounted);
    return change < 0 && (uint64_t)-change > o->charged ? 0 : o->charged + (uint64_t)change;
}

/* What the call itself took, where that can be read of this process alone. */
static uint64_t taken(const struct corral_cuda_overhead *o, const struct corral_cuda_reading *after,
                      uint64_t bytes)
{
    if (after->source != CORRAL_CUDA_READ_PROCESS) {
        return 0;
    }
    if (o->before.source != CORRAL_CUDA_READ_PROCESS) {
        return bytes; /* its first context */
    }
    int64_t grown =
        (int64_t)(after->used - o->before.used) - (int64_t)(after->accounted - o->before.accounted);
    return grown > 0 ? (uint64_t)grown : 0;
}

static uint64_t charge_of(struct corral_cuda_overhead *o, struct account *a,
                          const struct corral_cuda_reading *after, bool changed)
{
    uint64_t bytes = o->charged;
    /* The process was not listed before its first context. */
    bool first = o->before.source != CORRAL_CUDA_READ_PROCESS && after->source == CORRAL_CUDA_READ_PROCESS;
    if (changed && after->source != CORRAL_CUDA_UNREAD && (first || after->source == o->before.source)) {
        bytes = measure(o, after, !first && after->managed);
    } else if (changed && corral_cuda_is_charged(&a->charge)) {
        bytes = a->charge.bytes; /* nothing to be read: the estimate stands */
    }
    if (changed && o->of == CORRAL_CUDA_OVERHEAD_CONTEXT && bytes > o->charged) {
        a->context = bytes - o->charged;
    }
    if (changed && o->ends_context) {
        a->promised = 0;
    }
    if (changed && o->expected > 0) {
        a->promised = o->charged + o->expected;
    }
    return bytes > 0 ? CORRAL_MAX(bytes, a->promised) : 0;
}

static void settle(struct corral_cuda_overhead *o, struct account *a, bool changed)
{
    uint32_t holder;
    if (!corral_cuda_holder(o->device, &holder)) {
        return;
    }
    struct corral_cuda_reading after = read_memory(o->device, holder, o->node_lock >= 0);
    uint64_t bytes = charge_of(o, a, &after, changed);
    uint64_t short_by = corral_cuda_settle_quietly(o->device, &a->charge, bytes, CORRAL_KIND_OVERHEAD);
    o->taken = changed ? CORRAL_MIN(short_by, taken(o, &after, bytes)) : 0;
    if (short_by > 0 && !(o->can_be_undone && o->taken > 0)) {
        corral_cuda_log_uncharged(o->device, short_by, o->api);
    }
}

bool corral_cuda_overhead_end(struct corral_cuda_overhead *o, bool changed)
{
    int saved = errno;
    if (o->measuring) {
        struct account *a = &accounts[o->device];
        settle(o, a, changed);
        corral_cuda_node_unlock(o->node_lock);
        inside = false;
        pthread_mutex_unlock(&a->lock);
    }
    errno = saved;
    return !o->can_be_undone || o->taken == 0;
}

void corral_cuda_overhead_undone(const struct corral_cuda_overhead *o)
{
    struct corral_cuda_overhead again;
    struct corral_quota_charge charge;
    if (corral_cuda_overhead_begin(&again, o->device, CORRAL_CUDA_OVERHEAD_OTHER, o->api)) {
        (void)corral_cuda_overhead_end(&again, true);
    }
    /* Counted and told as any denial is. There may be room by now: then the caller's answer came a moment too early. */
    uint64_t room = 0;
    uint32_t holder;
    if (corral_cuda_quota() != NULL && corral_cuda_holder(o->device, &holder)) {
        room = corral_quota_available(corral_cuda_quota(), holder);
    }
    if (corral_cuda_take(o->device, room + o->taken, CORRAL_KIND_OVERHEAD, o->api, &charge)) {
        corral_cuda_rollback(&charge);
    }
}

void corral_cuda_overhead_forget_all(void)
{
    inside = false;
    for (uint32_t i = 0; i < CORRAL_CUDA_DEVICES_MAX; i++) {
        accounts[i] = (struct account){.lock = PTHREAD_MUTEX_INITIALIZER, .charge = corral_cuda_no_charge()};
    }
}
