/* The prober: measures a lane to a receiver's node over the receiver's own port and login. */
#include "transport/weights/push/pull.h"
#include "transport/weights/push/visit.h"

#include "base/clock.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_NS (20 * CORRAL_NS_PER_S)
#define SILENCE_NS (5 * CORRAL_NS_PER_S)
#define BYTES (UINT64_C(256) << 20)
#define BUCKET_BYTES (UINT64_C(2) << 20)

static enum corral_status ask(struct visit *v, const char *endpoint,
                              const struct corral_push_identity *identity, const struct corral_lane_ops *ops,
                              const struct corral_lane_probe_options *o, struct corral_error *err)
{
    struct visit_welcome welcome;
    struct push_frame f;
    const uint8_t *answer;
    uint8_t payload[16 + PUSH_LANE_NAME_MAX];
    size_t n = strlen(ops->name);
    if (n >= PUSH_LANE_NAME_MAX) {
        return corral_fail(err, CORRAL_INVALID, "lane name too long: %.40s", ops->name);
    }
    CORRAL_TRY(
        visit_login(v, endpoint, identity, (struct push_hello){.role = PUSH_ROLE_PROBER}, &welcome, err));
    wire_put_u64(payload, o->bytes);
    wire_put_u64(payload + 8, o->bucket_bytes);
    memcpy(payload + 16, ops->name, n);
    CORRAL_TRY(visit_say(v, PUSH_PROBE, 0, payload, 16 + (uint32_t)n, err));
    CORRAL_TRY(visit_expect(v, 1u << PUSH_READY, &f, &answer, err));
    CORRAL_TRY(visit_say(v, PUSH_READY, 0, NULL, 0, err));
    return v->io.out_to == 0 ? CORRAL_OK : corral_fail(err, CORRAL_PEER, "%s does not read", endpoint);
}

enum corral_status corral_push_probe(const char *endpoint, const struct corral_push_identity *identity,
                                     const struct corral_lane_ops *ops,
                                     const struct corral_lane_probe_options *options,
                                     struct corral_lane_probe_result *result, struct corral_error *err)
{
    struct corral_lane_probe_options o = *options;
    o.bytes = o.bytes ? o.bytes : BYTES;
    o.bucket_bytes = o.bucket_bytes ? o.bucket_bytes : BUCKET_BYTES;
    o.timeout_ns = o.timeout_ns ? o.timeout_ns : TIMEOUT_NS;
    CORRAL_AUTO_FREE struct visit *v = calloc(1, sizeof *v);
    if (!v) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to probe a lane");
    }
    *v = (struct visit){.io = {.fd = -1},
                        .peer = endpoint,
                        .stop_fd = -1,
                        .deadline_ns = corral_now_ns(&corral_clock_monotonic) + o.timeout_ns,
                        .silence_ns = SILENCE_NS};
    enum corral_status status = ops->available(&o.lane, err);
    if (status == CORRAL_OK) {
        status = ask(v, endpoint, identity, ops, &o, err);
    }
    if (status == CORRAL_OK) {
        status = corral_lane_probe_send(v->io.fd, ops, &o, result, err);
    }
    if (v->io.fd >= 0) {
        close(v->io.fd);
    }
    return status;
}
