#include "transport/weights/encode/base.h"

#include "base/clock.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ELEMENT_BYTES 2u

enum state { UNKNOWN, ENCODED, FULL };

struct encoded {
    void *data;
    uint64_t bytes;
    enum state state;
};

struct corral_base {
    const struct corral_link *link;
    struct corral_base_options o;
    struct corral_delta_version version;
    uint64_t next; /* version of the push under way; 0: none */
    uint8_t *copy; /* NULL: not needed yet, or never */
    uint8_t *now, *before, *out;
    uint64_t bucket_bytes, encoded_bytes, gather_ns;
    struct encoded *bucket;
};

enum corral_status corral_base_create(struct corral_base **out, const struct corral_link *link,
                                      const struct corral_base_options *options, struct corral_error *err)
{
    uint32_t e = options->element_bytes;
    if (e != 0 && e != 1 && e != 2 && e != 4 && e != 8) {
        return corral_fail(err, CORRAL_INVALID, "deltas of elements of %u bytes: 1, 2, 4 and 8 are possible",
                           e);
    }
    CORRAL_CLEANUP(corral_base_destroyp) struct corral_base *b = calloc(1, sizeof *b);
    if (b == NULL || (b->bucket = calloc((size_t)link->buckets + 1, sizeof *b->bucket)) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the base of deltas of %u buckets",
                           link->buckets);
    }
    b->link = link;
    b->o = *options;
    b->o.element_bytes = e == 0 ? ELEMENT_BYTES : e;
    b->o.encoded_max = options->encoded_max == 0 ? link->bytes / 4 : options->encoded_max;
    b->bucket_bytes = CORRAL_MIN(link->bytes, link->bucket_bytes);
    *out = CORRAL_STEAL(b);
    return CORRAL_OK;
}

void corral_base_destroy(struct corral_base *b)
{
    if (b == NULL) {
        return;
    }
    if (b->bucket != NULL) {
        corral_base_end(b);
    }
    free(b->bucket);
    free(b->copy);
    free(b->now);
    free(b->before);
    free(b->out);
    free(b);
}

struct corral_delta_version corral_base_version(const struct corral_base *b)
{
    return b->version;
}

uint64_t corral_base_memory(const struct corral_base *b)
{
    uint64_t buffers = (uint64_t)(b->now != NULL) + (b->before != NULL) + (b->out != NULL);
    return (b->copy != NULL ? b->link->bytes : 0) + buffers * b->bucket_bytes + b->encoded_bytes;
}

uint64_t corral_base_memory_max(const struct corral_base *b)
{
    return (b->o.memory == NULL ? CORRAL_MAX(b->link->bytes, 1u) : 0) + 3 * b->bucket_bytes +
           b->o.encoded_max;
}

uint64_t corral_base_gather_ns(const struct corral_base *b)
{
    return b->gather_ns;
}

void corral_base_end(struct corral_base *b)
{
    if (b->next == 0) {
        return; /* nothing has been encoded since */
    }
    for (uint32_t i = 0; i < b->link->buckets; i++) {
        free(b->bucket[i].data);
        b->bucket[i] = (struct encoded){.state = UNKNOWN};
    }
    b->encoded_bytes = 0;
    b->next = 0;
}

void corral_base_begin(struct corral_base *b, uint64_t version)
{
    corral_base_end(b);
    b->next = version;
}

static enum corral_status get(uint8_t **buffer, uint64_t bytes, struct corral_error *err)
{
    if (*buffer == NULL && (*buffer = malloc(bytes)) == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for a delta: %" PRIu64 " bytes", bytes);
    }
    return CORRAL_OK;
}

static struct corral_delta_part part_of(const struct corral_base *b, uint32_t bucket,
                                        struct corral_digest next)
{
    uint64_t size = corral_link_bucket_size(b->link, bucket);
    uint32_t e = size % b->o.element_bytes == 0 ? b->o.element_bytes : 1;
    return (struct corral_delta_part){.element_bytes = e,
                                      .elements = size / e,
                                      .total = size / e,
                                      .base = b->version,
                                      .next = {.version = b->next, .digest = next}};
}

/* The bucket as it is in the base. */
static enum corral_status before(struct corral_base *b, uint32_t bucket, const uint8_t **out,
                                 struct corral_error *err)
{
    if (b->o.memory == NULL) {
        *out = b->copy + bucket * b->link->bucket_bytes;
        return CORRAL_OK;
    }
    CORRAL_TRY(get(&b->before, b->bucket_bytes, err));
    CORRAL_TRY(b->o.memory->ops->gather(b->o.memory, b->link, bucket, b->before, err));
    *out = b->before;
    return CORRAL_OK;
}

static enum corral_status encode(struct corral_base *b, struct corral_shard *source, uint32_t bucket,
                                 struct corral_digest *digest, struct corral_error *err)
{
    struct encoded *e = &b->bucket[bucket];
    uint64_t size = corral_link_bucket_size(b->link, bucket), room = size / 4 * 3;
    const uint8_t *base = NULL;
    size_t bytes = 0;
    CORRAL_TRY(get(&b->now, b->bucket_bytes, err));
    CORRAL_TRY(get(&b->out, b->bucket_bytes, err));
    CORRAL_TRY(before(b, bucket, &base, err));
    uint64_t start = corral_now_ns(&corral_clock_monotonic);
    CORRAL_TRY(source->ops->gather(source, b->link, bucket, b->now, err));
    b->gather_ns += corral_now_ns(&corral_clock_monotonic) - start;
    *digest = corral_link_digest_packed(b->link, bucket, b->now);
    e->state = FULL;
    room = CORRAL_MIN(room, b->o.encoded_max - CORRAL_MIN(b->encoded_bytes, b->o.encoded_max));
    struct corral_delta_part part = part_of(b, bucket, *digest);
    enum corral_status status = corral_delta_encode(&part, base, b->now, b->out, room, &bytes, NULL, err);
    if (status == CORRAL_AGAIN) {
        return CORRAL_OK;
    }
    CORRAL_TRY(status);
    e->data = malloc(bytes);
    if (e->data == NULL) { /* then in full */
        return CORRAL_OK;
    }
    memcpy(e->data, b->out, bytes);
    e->bytes = bytes;
    e->state = ENCODED;
    b->encoded_bytes += bytes;
    return CORRAL_OK;
}

enum corral_status corral_base_encode(struct corral_base *b, struct corral_shard *source, uint32_t bucket,
                                      const void **encoded, uint64_t *bytes, struct corral_digest *digest,
                                      bool *digested, struct corral_error *err)
{
    if (b->version.version == 0 || b->next <= b->version.version || bucket >= b->link->buckets) {
        return corral_fail(err, CORRAL_STATE,
                           "bucket %u of version %" PRIu64 " cannot be encoded on version %" PRIu64, bucket,
                           b->next, b->version.version);
    }
    struct encoded *e = &b->bucket[bucket];
    if (e->state == UNKNOWN) {
        CORRAL_TRY(encode(b, source, bucket, digest, err));
        *digested = true;
    }
    *encoded = e->data;
    *bytes = e->bytes;
    return CORRAL_OK;
}

/* One bucket of the copy up to the version under way. */
static enum corral_status renew(struct corral_base *b, struct corral_shard *source, uint32_t bucket,
                                struct corral_error *err)
{
    const struct encoded *e = &b->bucket[bucket];
    uint8_t *at = b->copy + bucket * b->link->bucket_bytes;
    if (e->state != ENCODED) {
        return source->ops->gather(source, b->link, bucket, at, err);
    }
    struct corral_delta_part holds = part_of(b, bucket, (struct corral_digest){0});
    return corral_delta_apply(&holds, e->data, e->bytes, at, at, err);
}

enum corral_status corral_base_keep(struct corral_base *b, struct corral_shard *source, uint64_t version,
                                    struct corral_digest digest, struct corral_error *err)
{
    enum corral_status status = CORRAL_OK;
    if (b->o.memory == NULL) {
        status = get(&b->copy, CORRAL_MAX(b->link->bytes, 1u), err);
    }
    for (uint32_t i = 0; b->copy != NULL && i < b->link->buckets && status == CORRAL_OK; i++) {
        status = renew(b, source, i, err);
    }
    bool kept = status == CORRAL_OK;
    b->version.version = kept ? version : 0;
    b->version.digest = kept ? digest : (struct corral_digest){0};
    corral_base_end(b);
    return status;
}
