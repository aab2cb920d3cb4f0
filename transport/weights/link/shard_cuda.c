#include "transport/weights/link/shard_cuda.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    bool made, taken, lost; /* lost: the device did not answer in time */
    corral_cuda_stream stream;
    uint8_t *half[2];
    corral_cuda_event done[2];
    void *scratch; /* a bucket, for digests */
    uint64_t scratch_bytes;
};

struct device_shard {
    const struct corral_cuda *cuda;
    corral_cuda_context context;
    bool retained; /* the primary context of `device` */
    int device;
    corral_cuda_event after;
    pthread_mutex_t slots_lock; /* guards slot[].made, taken and lost */
    pthread_cond_t slot_free;
    struct slot slot[CORRAL_SHARD_CUDA_SLOTS];
};

/* ---- slots ---- */

static void drop_slot(const struct corral_cuda *cuda, struct slot *s)
{
    for (int h = 0; h < 2; h++) {
        if (s->done[h] != NULL) {
            cuda->cuEventDestroy(s->done[h]);
        }
        if (s->half[h] != NULL) {
            cuda->cuMemFreeHost(s->half[h]);
        }
    }
    if (s->stream != NULL) {
        cuda->cuStreamDestroy(s->stream);
    }
    free(s->scratch);
    *s = (struct slot){.taken = s->taken};
}

static enum corral_status make_slot_parts(const struct corral_cuda *cuda, struct slot *s,
                                          struct corral_error *err)
{
    CORRAL_CUDA_TRY(cuda, cuStreamCreate(&s->stream, CORRAL_CUDA_STREAM_NON_BLOCKING), err,
                    "cannot make a CUDA stream for weights");
    for (int h = 0; h < 2; h++) {
        CORRAL_CUDA_TRY(cuda, cuEventCreate(&s->done[h], CORRAL_CUDA_EVENT_NO_TIMING), err,
                        "cannot make a CUDA event for weights");
        void *memory = NULL;
        CORRAL_CUDA_TRY(cuda,
                        cuMemHostAlloc(&memory, CORRAL_SHARD_CUDA_HALF_BYTES, CORRAL_CUDA_HOST_PORTABLE), err,
                        "cannot pin host memory for weights");
        s->half[h] = memory;
    }
    s->made = true;
    return CORRAL_OK;
}

/* In the shard's context. */
static enum corral_status make_slot(const struct corral_cuda *cuda, struct slot *s, struct corral_error *err)
{
    enum corral_status status = make_slot_parts(cuda, s, err);
    if (status != CORRAL_OK) {
        drop_slot(cuda, s);
    }
    return status;
}

static enum corral_status take_slot(struct device_shard *d, struct slot **out, struct corral_error *err)
{
    struct slot *found = NULL;
    uint32_t lost = 0;
    pthread_mutex_lock(&d->slots_lock);
    while (found == NULL && lost < CORRAL_SHARD_CUDA_SLOTS) {
        lost = 0;
        for (uint32_t i = 0; found == NULL && i < CORRAL_SHARD_CUDA_SLOTS; i++) {
            struct slot *s = &d->slot[i];
            lost += s->lost;
            found = !s->taken && !s->lost ? s : NULL;
        }
        if (found == NULL && lost < CORRAL_SHARD_CUDA_SLOTS) {
            pthread_cond_wait(&d->slot_free, &d->slots_lock);
        }
    }
    if (found != NULL) {
        found->taken = true;
    }
    pthread_mutex_unlock(&d->slots_lock);
    if (found == NULL) {
        return corral_fail(err, CORRAL_TIMEOUT, "CUDA device %d has stopped answering", d->device);
    }
    *out = found;
    return CORRAL_OK;
}

static void give_slot(struct device_shard *d, struct slot *s, enum corral_status status)
{
    pthread_mutex_lock(&d->slots_lock);
    s->taken = false;
    s->lost = status == CORRAL_TIMEOUT;
    pthread_cond_broadcast(&d->slot_free);
    pthread_mutex_unlock(&d->slots_lock);
}

/* ---- moving ---- */

struct move {
    struct device_shard *d;
    const struct corral_link *link;
    struct slot *slot;
    struct corral_cuda_end shard;
    struct corral_link_cursor cursor;
    uint8_t *packed; /* out of the shard: next byte to write */
    uint64_t bytes[2];
};

/* Wait for a half's copies; out of the shard, hand on what they brought. */
static enum corral_status finish_half(struct move *m, int half, bool out, struct corral_error *err)
{
    if (m->bytes[half] == 0) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_cuda_wait(m->d->cuda, m->slot->done[half], CORRAL_SHARD_CUDA_TIMEOUT_NS, err));
    if (out) {
        memcpy(m->packed, m->slot->half[half], m->bytes[half]);
        m->packed += m->bytes[half];
    }
    m->bytes[half] = 0;
    return CORRAL_OK;
}

static enum corral_status move_bucket(struct move *m, bool out, const uint8_t *in, struct corral_error *err)
{
    const struct corral_cuda *cuda = m->d->cuda;
    int half = 0;
    for (; m->cursor.at < m->cursor.end; half ^= 1) {
        CORRAL_TRY(finish_half(m, half, out, err));
        uint64_t bytes = CORRAL_MIN(m->cursor.end - m->cursor.at, (uint64_t)CORRAL_SHARD_CUDA_HALF_BYTES);
        struct corral_cuda_end staging = {(uint64_t)(uintptr_t)m->slot->half[half], CORRAL_CUDA_PACKED};
        if (!out) {
            memcpy(m->slot->half[half], in, bytes);
            in += bytes;
        }
        CORRAL_TRY(corral_cuda_copy_spans(cuda, m->link, &m->cursor, bytes, out ? m->shard : staging,
                                          out ? staging : m->shard, m->slot->stream, err));
        CORRAL_CUDA_TRY(cuda, cuEventRecord(m->slot->done[half], m->slot->stream), err,
                        "cannot record a CUDA event");
        m->bytes[half] = bytes;
    }
    CORRAL_TRY(finish_half(m, half, out, err));
    return finish_half(m, half ^ 1, out, err);
}

/* What was queued before a failure must not touch the staging of the next call. */
static enum corral_status settle(struct device_shard *d, struct slot *s)
{
    return d->cuda->cuEventRecord(s->done[0], s->stream) == CORRAL_CUDA_SUCCESS
               ? corral_cuda_wait(d->cuda, s->done[0], CORRAL_SHARD_CUDA_TIMEOUT_NS, NULL)
               : CORRAL_TIMEOUT;
}

static enum corral_status run_slot(struct device_shard *d, struct slot *s, struct move *m, bool out,
                                   const void *in, struct corral_error *err)
{
    CORRAL_CUDA_SCOPE struct corral_cuda_scope scope = {0};
    CORRAL_TRY(corral_cuda_enter(&scope, d->cuda, d->context, err));
    if (!s->made) {
        CORRAL_TRY(make_slot(d->cuda, s, err));
    }
    if (out && d->after != NULL) {
        CORRAL_CUDA_TRY(d->cuda, cuStreamWaitEvent(s->stream, d->after, 0), err,
                        "cannot wait for the event of the weights' producer");
    }
    m->slot = s;
    enum corral_status status = move_bucket(m, out, in, err);
    if (status != CORRAL_OK && status != CORRAL_TIMEOUT && settle(d, s) != CORRAL_OK) {
        /* The reason stays the first one; the slot counts as lost. */
        return CORRAL_TIMEOUT;
    }
    return status;
}

static enum corral_status move(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                               enum corral_link_side side, bool out, void *to, const void *from,
                               struct corral_error *err)
{
    struct device_shard *d = shard->ctx;
    struct slot *s = NULL;
    CORRAL_TRY(take_slot(d, &s, err));
    struct move m = {
        .d = d,
        .link = link,
        .shard = {shard->device_address,
                  side == CORRAL_LINK_SOURCE ? CORRAL_CUDA_SOURCE : CORRAL_CUDA_DESTINATION},
        .cursor = corral_link_seek(link, bucket),
        .packed = to,
    };
    enum corral_status status = run_slot(d, s, &m, out, from, err);
    give_slot(d, s, status);
    return status;
}

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    return move(shard, link, bucket, CORRAL_LINK_SOURCE, true, packed, NULL, err);
}

static enum corral_status scatter(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err)
{
    return move(shard, link, bucket, CORRAL_LINK_DESTINATION, false, NULL, packed, err);
}

static enum corral_status digest_with(struct device_shard *d, struct slot *s, struct move *m, uint32_t bucket,
                                      struct corral_digest *out, struct corral_error *err)
{
    uint64_t bytes = m->cursor.end - m->cursor.at;
    if (s->scratch_bytes < bytes) {
        free(s->scratch);
        s->scratch_bytes = 0;
        s->scratch = malloc(bytes);
        if (s->scratch == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "no memory for a bucket of %" PRIu64 " bytes", bytes);
        }
        s->scratch_bytes = bytes;
    }
    m->packed = s->scratch;
    CORRAL_TRY(run_slot(d, s, m, true, NULL, err));
    *out = corral_link_digest_packed(m->link, bucket, s->scratch);
    return CORRAL_OK;
}

static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    struct device_shard *d = shard->ctx;
    struct slot *s = NULL;
    CORRAL_TRY(take_slot(d, &s, err));
    struct move m = {
        .d = d,
        .link = link,
        .shard = {shard->device_address,
                  side == CORRAL_LINK_SOURCE ? CORRAL_CUDA_SOURCE : CORRAL_CUDA_DESTINATION},
        .cursor = corral_link_seek(link, bucket),
    };
    enum corral_status status = digest_with(d, s, &m, bucket, out, err);
    give_slot(d, s, status);
    return status;
}

const struct corral_shard_ops corral_shard_cuda_ops = {
    .name = "cuda", .gather = gather, .scatter = scatter, .digest = digest};

/* ---- opening ---- */

static enum corral_status check_memory(const struct corral_cuda *cuda, uint64_t address, uint64_t bytes,
                                       int *device, struct corral_error *err)
{
    for (int end = 0; end < 2; end++) {
        uint64_t at = end == 0 ? address : address + bytes - 1;
        unsigned type = 0;
        int ordinal = -1;
        if (cuda->cuPointerGetAttribute(&type, CORRAL_CUDA_POINTER_MEMORY_TYPE, at) != CORRAL_CUDA_SUCCESS ||
            type != CORRAL_CUDA_MEMORY_DEVICE ||
            cuda->cuPointerGetAttribute(&ordinal, CORRAL_CUDA_POINTER_ORDINAL, at) != CORRAL_CUDA_SUCCESS) {
            return corral_fail(err, CORRAL_INVALID, "%#" PRIx64 " is not memory of a CUDA device", at);
        }
        if (*device >= 0 && ordinal != *device) {
            return corral_fail(err, CORRAL_INVALID, "%#" PRIx64 " is memory of CUDA device %d, not of %d", at,
                               ordinal, *device);
        }
        *device = ordinal;
    }
    return CORRAL_OK;
}

enum corral_status corral_shard_cuda_open(struct corral_shard *out, uint64_t address, uint64_t bytes,
                                          int device, corral_cuda_context context, struct corral_error *err)
{
    const struct corral_cuda *cuda = NULL;
    CORRAL_TRY(corral_cuda_open(&cuda, err));
    if (address == 0 || bytes == 0 || bytes > UINT64_MAX - address) {
        return corral_fail(err, CORRAL_INVALID, "no device memory: %" PRIu64 " bytes at %#" PRIx64, bytes,
                           address);
    }
    CORRAL_TRY(check_memory(cuda, address, bytes, &device, err));
    struct device_shard *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a shard");
    }
    *d = (struct device_shard){.cuda = cuda, .context = context, .device = device};
    if (context == NULL) {
        enum corral_status status = corral_cuda_primary(cuda, device, &d->context, err);
        if (status != CORRAL_OK) {
            free(d);
            return status;
        }
        d->retained = true;
    }
    pthread_mutex_init(&d->slots_lock, NULL);
    pthread_cond_init(&d->slot_free, NULL);
    *out = (struct corral_shard){.ops = &corral_shard_cuda_ops,
                                 .bytes = bytes,
                                 .fd = -1,
                                 .device_address = address,
                                 .device = device,
                                 .ctx = d};
    return CORRAL_OK;
}

void corral_shard_cuda_close(struct corral_shard *shard)
{
    if (shard == NULL || shard->ops != &corral_shard_cuda_ops) {
        return;
    }
    struct device_shard *d = shard->ctx;
    bool lost = false;
    struct corral_cuda_scope scope = {0};
    bool entered = corral_cuda_enter(&scope, d->cuda, d->context, NULL) == CORRAL_OK;
    for (uint32_t i = 0; i < CORRAL_SHARD_CUDA_SLOTS; i++) {
        lost = lost || d->slot[i].lost;
        if (entered && d->slot[i].made && !d->slot[i].lost) {
            drop_slot(d->cuda, &d->slot[i]);
        }
    }
    corral_cuda_leave(&scope);
    /* A device that does not answer keeps its context, and with it the memory it may still write to. */
    if (d->retained && !lost) {
        d->cuda->cuDevicePrimaryCtxRelease(d->device);
    }
    pthread_mutex_destroy(&d->slots_lock);
    pthread_cond_destroy(&d->slot_free);
    free(d);
    memset(shard, 0, sizeof *shard);
    shard->fd = -1;
    shard->device = -1;
}

void corral_shard_cuda_after(struct corral_shard *shard, corral_cuda_event event)
{
    ((struct device_shard *)shard->ctx)->after = event;
}

uint64_t corral_shard_cuda_memory(struct corral_shard *shard)
{
    struct device_shard *d = shard->ctx;
    uint64_t bytes = 0;
    pthread_mutex_lock(&d->slots_lock);
    for (uint32_t i = 0; i < CORRAL_SHARD_CUDA_SLOTS; i++) {
        const struct slot *s = &d->slot[i];
        /* A slot in use may be in the making: count it as made. */
        bytes += s->taken || s->made ? 2 * (uint64_t)CORRAL_SHARD_CUDA_HALF_BYTES : 0;
        bytes += s->taken ? 0 : s->scratch_bytes;
    }
    pthread_mutex_unlock(&d->slots_lock);
    return bytes;
}

corral_cuda_context corral_shard_cuda_context(const struct corral_shard *shard)
{
    return ((const struct device_shard *)shard->ctx)->context;
}

enum corral_status corral_shard_cuda_order(const struct corral_shard *shard, corral_cuda_stream stream,
                                           struct corral_error *err)
{
    const struct device_shard *d = shard->ctx;
    if (d->after != NULL) {
        CORRAL_CUDA_TRY(d->cuda, cuStreamWaitEvent(stream, d->after, 0), err,
                        "cannot wait for the event of the weights' producer");
    }
    return CORRAL_OK;
}
