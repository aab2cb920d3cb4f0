#include "transport/weights/link/shard.h"

#include "transport/weights/link/link.h"
#include <inttypes.h>

/* The plan's rank may need more than the buffer that the caller has brought. */
static enum corral_status check_fits(const struct corral_shard *shard, const struct corral_link *link,
                                     enum corral_link_side side, uint32_t bucket, struct corral_error *err)
{
    uint64_t need = side == CORRAL_LINK_SOURCE ? link->source_extent : link->destination_extent;
    if (shard->host == NULL || need > shard->bytes) {
        return corral_fail(err, CORRAL_INVALID,
                           "a shard of %" PRIu64 " bytes of host memory; the link from rank %u to rank %u "
                           "needs %" PRIu64,
                           shard->host == NULL ? 0 : shard->bytes, link->source, link->destination, need);
    }
    if (bucket >= link->buckets) {
        return corral_fail(err, CORRAL_INVALID, "bucket %u of a link that has %u", bucket, link->buckets);
    }
    return CORRAL_OK;
}

static enum corral_status host_gather(struct corral_shard *shard, const struct corral_link *link,
                                      uint32_t bucket, void *packed, struct corral_error *err)
{
    CORRAL_TRY(check_fits(shard, link, CORRAL_LINK_SOURCE, bucket, err));
    corral_link_pack(link, bucket, shard->host, packed);
    return CORRAL_OK;
}

static enum corral_status host_scatter(struct corral_shard *shard, const struct corral_link *link,
                                       uint32_t bucket, const void *packed, struct corral_error *err)
{
    CORRAL_TRY(check_fits(shard, link, CORRAL_LINK_DESTINATION, bucket, err));
    corral_link_unpack(link, bucket, packed, shard->host);
    return CORRAL_OK;
}

static enum corral_status host_fetch(struct corral_shard *shard, const struct corral_link *link,
                                     uint32_t bucket, void *packed, struct corral_error *err)
{
    CORRAL_TRY(check_fits(shard, link, CORRAL_LINK_DESTINATION, bucket, err));
    corral_link_fetch(link, bucket, shard->host, packed);
    return CORRAL_OK;
}

static enum corral_status host_digest(struct corral_shard *shard, const struct corral_link *link,
                                      enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                      struct corral_error *err)
{
    CORRAL_TRY(check_fits(shard, link, side, bucket, err));
    *out = corral_link_digest(link, bucket, side, shard->host);
    return CORRAL_OK;
}

const struct corral_shard_ops corral_shard_host_ops = {.name = "host",
                                                       .gather = host_gather,
                                                       .scatter = host_scatter,
                                                       .digest = host_digest,
                                                       .fetch = host_fetch};

struct corral_shard corral_shard_host(void *buffer, uint64_t bytes)
{
    return (struct corral_shard){
        .ops = &corral_shard_host_ops, .bytes = bytes, .host = buffer, .fd = -1, .device = -1};
}
