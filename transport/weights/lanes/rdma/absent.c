/* The rdma lane of a build without the headers of libibverbs: it says so. */
#include "transport/weights/lanes/lane.h"

static enum corral_status refuse(struct corral_error *err)
{
    return corral_fail(
        err, CORRAL_UNSUPPORTED,
        "the rdma lane is not in this build: it was compiled without <infiniband/verbs.h> (libibverbs-dev)");
}

static enum corral_status available(const struct corral_lane_options *options, struct corral_error *err)
{
    (void)options;
    return refuse(err);
}

static enum corral_status rx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options, struct corral_lane_blob *offer,
                                  struct corral_error *err)
{
    (void)out, (void)link, (void)options, (void)offer;
    return refuse(err);
}

static enum corral_status tx_open(struct corral_lane **out, const struct corral_link *link,
                                  const struct corral_lane_options *options,
                                  const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                  struct corral_error *err)
{
    (void)out, (void)link, (void)options, (void)offer, (void)answer;
    return refuse(err);
}

/* Nothing can be opened, so nothing else can be called; closing accepts NULL. */
static void rx_close(struct corral_lane *rx, int32_t *tainted_pid)
{
    (void)rx;
    if (tainted_pid != NULL) {
        *tainted_pid = 0;
    }
}

static void tx_close(struct corral_lane *tx)
{
    (void)tx;
}

const struct corral_lane_ops corral_lane_rdma_ops = {
    .name = "rdma",
    .kind = CORRAL_LANE_RDMA,
    .available = available,
    .rx_open = rx_open,
    .rx_close = rx_close,
    .tx_open = tx_open,
    .tx_close = tx_close,
};
