#include "transport/weights/push/frame.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct shape {
    const char *name;
    uint32_t least, most; /* bytes of payload */
};

static const struct shape shapes[PUSH_TYPES] = {
    [PUSH_HELLO] = {"HELLO", PUSH_HELLO_BYTES, PUSH_HELLO_BYTES},
    [PUSH_CHALLENGE] = {"CHALLENGE", WIRE_NONCE_BYTES + WIRE_MAC_BYTES, WIRE_NONCE_BYTES + WIRE_MAC_BYTES},
    [PUSH_PROOF] = {"PROOF", WIRE_MAC_BYTES, WIRE_MAC_BYTES},
    [PUSH_WELCOME] = {"WELCOME", 20, 20 + PUSH_LANES_MAX},
    [PUSH_LANE] = {"LANE", 0, PUSH_LANE_NAME_MAX - 1},
    [PUSH_OFFER] = {"OFFER", 0, CORRAL_LANE_BLOB_MAX},
    [PUSH_NOLANE] = {"NOLANE", 4, 4 + PUSH_TEXT_MAX},
    [PUSH_ANSWER] = {"ANSWER", 0, CORRAL_LANE_BLOB_MAX},
    [PUSH_READY] = {"READY", 0, 0},
    [PUSH_PREPARE] = {"PREPARE", PUSH_PREPARE_BYTES, PUSH_PREPARE_BYTES},
    [PUSH_PLACE] = {"PLACE", PUSH_PLACE_HEAD, PUSH_PAYLOAD_MAX},
    [PUSH_SENT] = {"SENT", 24, 24},
    [PUSH_TAKEN] = {"TAKEN", 8, 8},
    [PUSH_STAGED] = {"STAGED", PUSH_STAGED_BYTES, PUSH_STAGED_BYTES},
    [PUSH_COMMIT] = {"COMMIT", 16, 16},
    [PUSH_APPLIED] = {"APPLIED", 24, 24},
    [PUSH_ABORTED] = {"ABORTED", PUSH_ABORTED_HEAD + 4, PUSH_ABORTED_HEAD + 4 + PUSH_TEXT_MAX},
    [PUSH_ABORT] = {"ABORT", 4, 4 + PUSH_TEXT_MAX},
    [PUSH_PASS] = {"PASS", 0, 0},
    [PUSH_WAIT] = {"WAIT", 0, 0},
    [PUSH_ERROR] = {"ERROR", 4, 4 + PUSH_TEXT_MAX},
    [PUSH_PULL] = {"PULL", 0, PUSH_LANES_MAX},
    [PUSH_PROBE] = {"PROBE", 17, 16 + PUSH_LANE_NAME_MAX - 1},
};

const char *push_type_name(uint32_t type)
{
    return type > 0 && type < PUSH_TYPES ? shapes[type].name : "?";
}

enum corral_status push_read_header(const uint8_t *from, struct push_frame *out, struct corral_error *err)
{
    struct push_frame f = {.type = wire_get_u32(from + 4),
                           .generation = wire_get_u64(from + 8),
                           .version = wire_get_u64(from + 16),
                           .bytes = wire_get_u32(from + 24)};
    if (wire_get_u32(from) != PUSH_MAGIC) {
        return corral_fail(err, CORRAL_PROTOCOL, "not a frame of the push protocol: magic %08x",
                           wire_get_u32(from));
    }
    if (f.type == 0 || f.type >= PUSH_TYPES || wire_get_u32(from + 28) != 0 ||
        f.bytes < shapes[f.type].least || f.bytes > shapes[f.type].most) {
        return corral_fail(err, CORRAL_PROTOCOL, "malformed push frame: type %u (%s) with %u bytes", f.type,
                           push_type_name(f.type), f.bytes);
    }
    *out = f;
    return CORRAL_OK;
}

void push_put_header(uint8_t *to, const struct push_frame *frame)
{
    wire_put_u32(to, PUSH_MAGIC);
    wire_put_u32(to + 4, frame->type);
    wire_put_u64(to + 8, frame->generation);
    wire_put_u64(to + 16, frame->version);
    wire_put_u32(to + 24, frame->bytes);
    wire_put_u32(to + 28, 0);
}

void push_put_hello(uint8_t to[PUSH_HELLO_BYTES], const struct push_hello *hello)
{
    wire_put_u32(to, hello->protocol);
    wire_put_u32(to + 4, hello->rank);
    wire_put_u32(to + 8, hello->ranks);
    wire_put_u32(to + 12, hello->leader);
    wire_put_u64(to + 16, hello->run);
    wire_put_u64(to + 24, hello->generation);
    wire_put_u64(to + 32, hello->bucket_bytes);
    wire_put_digest(to + 40, hello->plan);
    wire_put_digest(to + 56, hello->link);
    wire_put_u64(to + 72, hello->role);
    wire_put_u64(to + 80, hello->group);
    wire_put_u64(to + 88, hello->process);
    memcpy(to + 96, hello->nonce, WIRE_NONCE_BYTES);
}

void push_get_hello(const uint8_t from[PUSH_HELLO_BYTES], struct push_hello *out)
{
    *out = (struct push_hello){.protocol = wire_get_u32(from),
                               .rank = wire_get_u32(from + 4),
                               .ranks = wire_get_u32(from + 8),
                               .leader = wire_get_u32(from + 12),
                               .run = wire_get_u64(from + 16),
                               .generation = wire_get_u64(from + 24),
                               .bucket_bytes = wire_get_u64(from + 32),
                               .plan = wire_get_digest(from + 40),
                               .link = wire_get_digest(from + 56),
                               .role = wire_get_u64(from + 72),
                               .group = wire_get_u64(from + 80),
                               .process = wire_get_u64(from + 88)};
    memcpy(out->nonce, from + 96, WIRE_NONCE_BYTES);
}

void push_mac(const uint8_t secret[32], const char *label, const uint8_t hello[PUSH_HELLO_BYTES],
              const uint8_t nonce_r[WIRE_NONCE_BYTES], uint8_t out[WIRE_MAC_BYTES])
{
    uint8_t text[32 + PUSH_HELLO_BYTES + WIRE_NONCE_BYTES];
    size_t n = strnlen(label, 32);
    memcpy(text, label, n);
    memcpy(text + n, hello, PUSH_HELLO_BYTES);
    memcpy(text + n + PUSH_HELLO_BYTES, nonce_r, WIRE_NONCE_BYTES);
    corral_hmac_sha256(secret, 32, text, n + PUSH_HELLO_BYTES + WIRE_NONCE_BYTES, out);
}

void push_put_prepare(uint8_t to[PUSH_PREPARE_BYTES], const struct push_prepare *prepare)
{
    wire_put_u64(to, prepare->push);
    wire_put_u64(to + 8, prepare->base);
    wire_put_u64(to + 16, prepare->bytes);
    wire_put_digest(to + 24, prepare->known);
    wire_put_digest(to + 40, prepare->base_digest);
    wire_put_u64(to + 56, prepare->patience_ns);
}

void push_get_prepare(const uint8_t from[PUSH_PREPARE_BYTES], struct push_prepare *out)
{
    *out = (struct push_prepare){.push = wire_get_u64(from),
                                 .base = wire_get_u64(from + 8),
                                 .bytes = wire_get_u64(from + 16),
                                 .known = wire_get_digest(from + 24),
                                 .base_digest = wire_get_digest(from + 40),
                                 .patience_ns = wire_get_u64(from + 56)};
}

uint32_t push_put_error(uint8_t *to, const struct corral_error *why)
{
    uint32_t n = (uint32_t)strnlen(why->text, PUSH_TEXT_MAX);
    wire_put_u32(to, (uint32_t)why->status);
    memcpy(to + 4, why->text, n);
    return 4 + n;
}

enum corral_status push_get_error(const uint8_t *payload, uint32_t bytes, const char *says,
                                  struct corral_error *err)
{
    char text[PUSH_TEXT_MAX + 1] = "";
    for (uint32_t i = 4; i < bytes && i - 4 < PUSH_TEXT_MAX; i++) {
        text[i - 4] = (char)(payload[i] >= ' ' && payload[i] != 0x7f ? payload[i] : '?');
    }
    /* Only what the caller decides on is taken over; a peer cannot make us wait or believe that all is well. */
    uint32_t status = wire_get_u32(payload);
    enum corral_status as = status == CORRAL_INVALID   ? CORRAL_INVALID
                            : status == CORRAL_TIMEOUT ? CORRAL_TIMEOUT
                            : status == CORRAL_STATE   ? CORRAL_STATE
                                                       : CORRAL_PEER;
    return corral_fail(err, as, "%s: %s", says, text);
}

/* ---- lists of lanes ---- */

/* The i-th name; false at the end or when a name is too long. */
static bool name_at(const char *list, uint32_t i, char out[PUSH_LANE_NAME_MAX])
{
    for (; i > 0; i--) {
        list = strchr(list, ',');
        if (list == NULL) {
            return false;
        }
        list++;
    }
    size_t n = strcspn(list, ",");
    if (n == 0 || n >= PUSH_LANE_NAME_MAX) {
        return false;
    }
    memcpy(out, list, n);
    out[n] = '\0';
    return true;
}

bool push_lane_listed(const char *list, const char *name)
{
    char at[PUSH_LANE_NAME_MAX];
    for (uint32_t i = 0; name_at(list, i, at); i++) {
        if (strcmp(at, name) == 0) {
            return true;
        }
    }
    return false;
}

bool push_common_lane(const char *ours, const char *theirs, uint32_t n, char out[PUSH_LANE_NAME_MAX])
{
    char at[PUSH_LANE_NAME_MAX];
    for (uint32_t i = 0; name_at(ours, i, at); i++) {
        if (push_lane_listed(theirs, at) && n-- == 0) {
            memcpy(out, at, sizeof at);
            return true;
        }
    }
    return false;
}

/* ---- digests ---- */

struct corral_digest push_link_digest(const struct corral_link *link, const struct corral_digest *bucket)
{
    struct corral_digest_state state;
    uint8_t word[16];
    corral_digest_begin(&state);
    wire_put_digest(word, link->hash);
    corral_digest_add(&state, word, 16);
    wire_put_u64(word, link->buckets);
    corral_digest_add(&state, word, 8);
    for (uint32_t i = 0; i < link->buckets; i++) {
        wire_put_digest(word, bucket[i]);
        corral_digest_add(&state, word, 16);
    }
    return corral_digest_end(&state);
}

struct corral_digest push_version_digest(const struct corral_reshard_plan *plan, uint32_t rank,
                                         const struct corral_digest *link)
{
    struct corral_digest_state state;
    uint8_t word[16];
    corral_digest_begin(&state);
    wire_put_digest(word, plan->hash);
    corral_digest_add(&state, word, 16);
    wire_put_u32(word, rank);
    wire_put_u32(word + 4, plan->sources);
    corral_digest_add(&state, word, 8);
    for (uint32_t source = 0; source < plan->sources; source++) {
        wire_put_digest(word, link[source]);
        corral_digest_add(&state, word, 16);
    }
    return corral_digest_end(&state);
}

/* ---- a connection's bytes ---- */

uint32_t push_io_room(const struct push_io *io)
{
    return PUSH_OUT_BYTES - (io->out_to - io->out_from);
}

enum corral_status push_io_queue(struct push_io *io, const struct push_frame *frame, const void *payload,
                                 struct corral_error *err)
{
    uint32_t need = PUSH_HEADER_BYTES + frame->bytes;
    if (push_io_room(io) < need) {
        return corral_fail(err, CORRAL_AGAIN, "%s waits: the peer does not read",
                           push_type_name(frame->type));
    }
    if (PUSH_OUT_BYTES - io->out_to < need) {
        memmove(io->out, io->out + io->out_from, io->out_to - io->out_from);
        io->out_to -= io->out_from;
        io->out_from = 0;
    }
    push_put_header(io->out + io->out_to, frame);
    if (frame->bytes > 0) {
        memcpy(io->out + io->out_to + PUSH_HEADER_BYTES, payload, frame->bytes);
    }
    io->out_to += need;
    return CORRAL_OK;
}

enum corral_status push_io_flush(struct push_io *io, struct corral_error *err)
{
    while (io->out_from < io->out_to) {
        ssize_t n =
            send(io->fd, io->out + io->out_from, io->out_to - io->out_from, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) {
            return CORRAL_OK; /* POLLOUT goes on */
        }
        if (n < 0) {
            return corral_fail(err, CORRAL_PEER, "the connection broke: %s", strerrordesc_np(errno));
        }
        io->out_from += (uint32_t)n;
    }
    io->out_from = io->out_to = 0;
    return CORRAL_OK;
}

enum corral_status push_io_receive(struct push_io *io, struct corral_error *err)
{
    if (io->in_from > 0) {
        memmove(io->in, io->in + io->in_from, io->in_to - io->in_from);
        io->in_to -= io->in_from;
        io->in_from = 0;
    }
    if (io->in_to == PUSH_IN_BYTES) {
        return CORRAL_AGAIN; /* full of frames that wait */
    }
    ssize_t n = recv(io->fd, io->in + io->in_to, PUSH_IN_BYTES - io->in_to, MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR
                   ? CORRAL_AGAIN
                   : corral_fail(err, CORRAL_PEER, "the connection broke: %s", strerrordesc_np(errno));
    }
    if (n == 0) {
        return corral_fail(err, CORRAL_PEER, "the other end closed the connection");
    }
    io->in_to += (uint32_t)n;
    return CORRAL_OK;
}

enum corral_status push_io_next(struct push_io *io, struct push_frame *frame, const uint8_t **payload,
                                struct corral_error *err)
{
    uint32_t have = io->in_to - io->in_from;
    if (have < PUSH_HEADER_BYTES) {
        return CORRAL_AGAIN;
    }
    struct push_frame f;
    CORRAL_TRY(push_read_header(io->in + io->in_from, &f, err));
    if (have - PUSH_HEADER_BYTES < f.bytes) {
        return CORRAL_AGAIN;
    }
    *frame = f;
    *payload = io->in + io->in_from + PUSH_HEADER_BYTES;
    io->in_from += PUSH_HEADER_BYTES + f.bytes;
    return CORRAL_OK;
}
