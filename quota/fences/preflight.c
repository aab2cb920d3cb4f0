/* Pre-flight of a worker on a host device. Every family of the host allocator is made to succeed once and to be refused once, by the code and the ledger that the worker
 * will use. The refusals are rehearsed: asked as if the whole ceiling were taken already, so that they are right however little the family asks for, and neither counted nor logged as trouble. */
#include "quota/fences/internal.h"
#include "quota/host_alloc.h"
#include <string.h>

struct family {
    const char *name;
    size_t bytes;
};
static const struct family families[] = {{"host small", 4096}, {"host mapped", CORRAL_FENCE_PREFLIGHT_BYTES}};

/* Memory that was refused after all must be a quota's doing, not damage. */
static enum corral_status must_succeed(const struct corral_allocator *a, const struct family *f,
                                       struct corral_error *err)
{
    void *memory = NULL;
    enum corral_status status = a->alloc(a->ctx, f->bytes, "pre-flight", &memory, err);
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "pre-flight, %s: an allocation within the quota was refused",
                                   f->name);
    }
    volatile unsigned char *bytes = memory;
    bytes[0] = 0xa5;
    bytes[f->bytes - 1] = 0x5a;
    bool holds = bytes[0] == 0xa5 && bytes[f->bytes - 1] == 0x5a;
    a->release(a->ctx, memory, f->bytes);
    return holds ? CORRAL_OK
                 : corral_fail(err, CORRAL_INTERNAL, "pre-flight, %s: memory does not keep what is written",
                               f->name);
}

static enum corral_status must_be_denied(struct corral_quota *q, uint64_t ceiling,
                                         const struct corral_allocator *a, const struct family *f,
                                         struct corral_error *err)
{
    void *memory = NULL;
    struct corral_error denial;
    corral_quota_rehearse(q, ceiling);
    enum corral_status status = a->alloc(a->ctx, f->bytes, "pre-flight", &memory, &denial);
    corral_quota_rehearse(q, 0);
    if (status == CORRAL_OK) {
        a->release(a->ctx, memory, f->bytes);
        return corral_fail(err, CORRAL_INTERNAL,
                           "pre-flight, %s: an allocation over the quota was not denied", f->name);
    }
    if (status != CORRAL_DENIED) {
        return corral_fail(err, status,
                           "pre-flight, %s: an allocation over the quota was not denied but failed: %s",
                           f->name, denial.text);
    }
    return CORRAL_OK;
}

enum corral_status corral_fence_preflight_host(struct corral_quota *q, uint32_t holder,
                                               struct corral_error *err)
{
    const struct corral_ledger *l = corral_quota_ledger(q);
    if (holder >= CORRAL_LEDGER_HOLDERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "pre-flight: there is no holder %u", holder);
    }
    const struct corral_ledger_holder *h = &l->holder[holder];
    uint32_t device = h->device, role = h->role;
    if (h->pid == 0 || device >= l->device_count || role >= l->role_count) {
        return corral_fail(err, CORRAL_INVALID, "pre-flight: holder %u holds nothing", holder);
    }
    uint64_t before = h->reserved + h->committed;
    struct corral_host_alloc *host = NULL;
    CORRAL_TRY(corral_host_alloc_create(q, holder, &host, err));
    const struct corral_allocator *a = corral_host_allocator(host);
    enum corral_status status = CORRAL_OK;
    for (size_t i = 0; i < CORRAL_COUNT_OF(families) && status == CORRAL_OK; i++) {
        status = must_succeed(a, &families[i], err);
        if (status == CORRAL_OK) {
            status = must_be_denied(q, l->device[device].role[role].ceiling, a, &families[i], err);
        }
    }
    corral_host_alloc_destroy(host);
    uint64_t after = h->reserved + h->committed;
    if (status == CORRAL_OK && after != before) {
        status =
            corral_fail(err, CORRAL_INTERNAL, "pre-flight: the ledger kept %lld bytes of what was given back",
                        (long long)(after - before));
    }
    return status;
}
