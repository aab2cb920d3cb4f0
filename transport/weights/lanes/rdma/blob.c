#include "transport/weights/lanes/rdma/blob.h"
#include <string.h>

#define MAGIC 0x4d445243u /* "CRDM" */
#define VERSION 1u

static void put(struct corral_lane_blob *b, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        b->data[b->bytes++] = (uint8_t)(value >> (8 * i));
    }
}

static void put_bytes(struct corral_lane_blob *b, const void *data, uint32_t bytes)
{
    memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

struct reader {
    const struct corral_lane_blob *blob;
    uint32_t at;
    bool ended; /* something was read past the end */
};

static const uint8_t *take_bytes(struct reader *r, uint32_t bytes)
{
    static const uint8_t nothing[16];
    if (r->ended || r->blob->bytes > CORRAL_LANE_BLOB_MAX || bytes > r->blob->bytes - r->at) {
        r->ended = true;
        return nothing;
    }
    r->at += bytes;
    return r->blob->data + r->at - bytes;
}

static uint64_t take(struct reader *r, unsigned bytes)
{
    const uint8_t *p = take_bytes(r, bytes);
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)p[i] << (8 * i);
    }
    return value;
}

static void head(struct corral_lane_blob *b, enum corral_rdma_blob_kind kind)
{
    b->bytes = 0;
    put(b, MAGIC, 4);
    put(b, VERSION, 2);
    put(b, kind, 1);
}

static enum corral_status check_head(struct reader *r, enum corral_rdma_blob_kind kind,
                                     struct corral_error *err)
{
    uint64_t magic = take(r, 4), version = take(r, 2), k = take(r, 1);
    if (r->ended || magic != MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: %u bytes that are no message of an rdma lane",
                           r->blob->bytes);
    }
    if (version != VERSION) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: the peer speaks version %u, this is %u",
                           (unsigned)version, VERSION);
    }
    if (k != kind) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: message %u where %u is due", (unsigned)k, kind);
    }
    return CORRAL_OK;
}

void corral_rdma_address_write(const struct corral_rdma_address *a, enum corral_rdma_blob_kind kind,
                               struct corral_lane_blob *out)
{
    head(out, kind);
    put(out, a->generation, 8);
    put(out, a->link.lo, 8);
    put(out, a->link.hi, 8);
    put(out, a->slot_bytes, 8);
    put(out, a->window, 1);
    put(out, a->rails, 1);
    put(out, a->streams, 1);
    for (uint32_t i = 0; i < a->rails; i++) {
        const struct corral_rdma_rail_address *r = &a->rail[i];
        put(out, r->ethernet, 1);
        put(out, r->mtu, 1);
        put(out, r->peer, 1);
        put(out, r->gid_type, 1);
        put(out, r->lid, 2);
        put_bytes(out, r->gid, sizeof(r->gid));
        put(out, r->rkey, 4);
        put(out, r->staging, 8);
        for (uint32_t s = 0; s < a->streams; s++) {
            put(out, r->qpn[s], 4);
            put(out, r->psn[s], 4);
        }
    }
}
_Static_assert(42 + CORRAL_RDMA_RAILS_MAX * (34 + 8 * CORRAL_RDMA_STREAMS_MAX) <= CORRAL_LANE_BLOB_MAX,
               "the largest offer fits");

static bool read_rail(struct reader *r, struct corral_rdma_rail_address *rail, uint32_t streams)
{
    uint64_t ethernet = take(r, 1);
    rail->ethernet = ethernet == 1;
    rail->mtu = (uint8_t)take(r, 1);
    rail->peer = (uint8_t)take(r, 1);
    rail->gid_type = (uint8_t)take(r, 1);
    rail->lid = (uint16_t)take(r, 2);
    memcpy(rail->gid, take_bytes(r, sizeof(rail->gid)), sizeof(rail->gid));
    rail->rkey = (uint32_t)take(r, 4);
    rail->staging = take(r, 8);
    bool good = ethernet <= 1 && rail->mtu >= IBV_MTU_256 && rail->mtu <= IBV_MTU_4096 &&
                rail->gid_type <= CORRAL_RDMA_GID_ROCE2 && rail->peer < CORRAL_RDMA_RAILS_MAX;
    for (uint32_t s = 0; s < streams; s++) {
        rail->qpn[s] = (uint32_t)take(r, 4);
        rail->psn[s] = (uint32_t)take(r, 4);
        good = good && rail->qpn[s] >> 24 == 0 && rail->psn[s] >> 24 == 0;
    }
    return good && !r->ended;
}

enum corral_status corral_rdma_address_read(const struct corral_lane_blob *blob,
                                            enum corral_rdma_blob_kind kind, struct corral_rdma_address *out,
                                            struct corral_error *err)
{
    struct reader r = {.blob = blob};
    struct corral_rdma_address a = {.generation = 0};
    CORRAL_TRY(check_head(&r, kind, err));
    a.generation = take(&r, 8);
    a.link.lo = take(&r, 8);
    a.link.hi = take(&r, 8);
    a.slot_bytes = take(&r, 8);
    a.window = (uint8_t)take(&r, 1);
    a.rails = (uint8_t)take(&r, 1);
    a.streams = (uint8_t)take(&r, 1);
    bool good = !r.ended && a.window >= 1 && a.window <= CORRAL_RDMA_WINDOW_MAX && a.rails >= 1 &&
                a.rails <= CORRAL_RDMA_RAILS_MAX && a.streams >= 1 && a.streams <= CORRAL_RDMA_STREAMS_MAX;
    for (uint32_t i = 0; good && i < a.rails; i++) {
        good = read_rail(&r, &a.rail[i], a.streams);
        /* Staging does not wrap around the end of the address space. */
        uint64_t staging;
        good = good && !__builtin_mul_overflow(a.slot_bytes, (uint64_t)a.window, &staging) &&
               !__builtin_add_overflow(a.rail[i].staging, staging, &staging);
    }
    if (!good || r.at != blob->bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: malformed %s of %u bytes",
                           kind == CORRAL_RDMA_OFFER ? "offer" : "answer", blob->bytes);
    }
    *out = a;
    return CORRAL_OK;
}

void corral_rdma_place_write(const struct corral_rdma_place *p, struct corral_lane_blob *out)
{
    head(out, CORRAL_RDMA_PLACE);
    put(out, p->generation, 8);
    put(out, p->push, 8);
    put(out, p->serial, 8);
}

enum corral_status corral_rdma_place_read(const struct corral_lane_blob *blob, struct corral_rdma_place *out,
                                          struct corral_error *err)
{
    struct reader r = {.blob = blob};
    CORRAL_TRY(check_head(&r, CORRAL_RDMA_PLACE, err));
    struct corral_rdma_place p = {.generation = take(&r, 8), .push = 0};
    p.push = take(&r, 8);
    p.serial = take(&r, 8);
    if (r.ended || r.at != blob->bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "rdma: malformed place of %u bytes", blob->bytes);
    }
    *out = p;
    return CORRAL_OK;
}
