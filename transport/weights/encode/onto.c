#include "transport/weights/encode/onto.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    (void)shard, (void)link, (void)bucket, (void)packed;
    return corral_fail(err, CORRAL_UNSUPPORTED, "the shadow of a version is no source");
}

static enum corral_status scatter(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err)
{
    const struct corral_onto *onto = shard->ctx;
    return onto->shadow->ops->scatter(onto->shadow, link, bucket, packed, err);
}

static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    const struct corral_onto *onto = shard->ctx;
    return onto->shadow->ops->digest(onto->shadow, link, side, bucket, out, err);
}

static enum corral_status decode(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 const void *encoded, uint64_t bytes, struct corral_error *err)
{
    struct corral_onto *onto = shard->ctx;
    uint64_t size = corral_link_bucket_size(link, bucket);
    struct corral_delta_part says, holds;
    if (bytes > onto->bucket_bytes || size > onto->bucket_bytes) {
        return corral_fail(err, CORRAL_STATE, "bucket %u is larger than the buffers", bucket);
    }
    memcpy(onto->encoded, encoded, bytes);
    if (corral_delta_peek(onto->encoded, bytes, &says, NULL) != CORRAL_OK || size % says.element_bytes != 0) {
        onto->refused++;
        return CORRAL_OK;
    }
    holds = (struct corral_delta_part){.element_bytes = says.element_bytes,
                                       .elements = size / says.element_bytes,
                                       .total = size / says.element_bytes,
                                       .base = onto->holds,
                                       .next = {.version = onto->next}};
    CORRAL_TRY(onto->base->ops->fetch(onto->base, link, bucket, onto->packed, err));
    if (corral_delta_apply(&holds, onto->encoded, bytes, onto->packed, onto->packed, NULL) != CORRAL_OK) {
        onto->refused++;
        return CORRAL_OK;
    }
    return onto->shadow->ops->scatter(onto->shadow, link, bucket, onto->packed, err);
}

static const struct corral_shard_ops ops = {
    .name = "onto", .gather = gather, .scatter = scatter, .digest = digest, .decode = decode};

enum corral_status corral_onto_begin(struct corral_onto *onto, const struct corral_link *link,
                                     struct corral_shard *shadow, struct corral_shard *base,
                                     struct corral_delta_version holds, uint64_t next,
                                     struct corral_error *err)
{
    uint64_t bytes = CORRAL_MAX(CORRAL_MIN(link->bytes, link->bucket_bytes), 1u);
    if (onto->packed == NULL) {
        onto->packed = malloc(bytes);
    }
    if (onto->encoded == NULL) {
        onto->encoded = malloc(bytes);
    }
    if (onto->packed == NULL || onto->encoded == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for deltas: two buckets of %" PRIu64 " bytes",
                           bytes);
    }
    onto->bucket_bytes = bytes;
    onto->shadow = shadow;
    onto->base = base;
    onto->holds = holds;
    onto->next = next;
    onto->refused = 0;
    onto->shard =
        (struct corral_shard){.ops = &ops, .bytes = shadow->bytes, .fd = -1, .device = -1, .ctx = onto};
    return CORRAL_OK;
}

uint64_t corral_onto_memory(const struct corral_onto *onto)
{
    return onto->packed != NULL && onto->encoded != NULL ? 2 * onto->bucket_bytes : 0;
}

void corral_onto_clear(struct corral_onto *onto)
{
    free(onto->packed);
    free(onto->encoded);
    onto->packed = onto->encoded = NULL;
}
