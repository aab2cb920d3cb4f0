#include "transport/weights/lanes/tcp/internal.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <string.h>

#define OFFER_BYTES (CORRAL_LANE_BLOB_HEAD + 4 + 16 + 4 + CORRAL_LANE_TOKEN_BYTES)
#define KEEP_IDLE_S 5
#define KEEP_INTERVAL_S 2
#define KEEP_COUNT 3
#define USER_TIMEOUT_MS \
    30000 /* the push protocol's deadlines are shorter; this one frees a connection that everybody has forgotten */

void tcp_put_offer(struct corral_lane_blob *blob, const struct corral_link *link,
                   const struct tcp_offer *offer)
{
    corral_lane_blob_begin(blob, CORRAL_LANE_TCP, link);
    uint8_t *at = blob->data + CORRAL_LANE_BLOB_HEAD;
    bool six = offer->address.ss_family == AF_INET6;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&offer->address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&offer->address;
    uint16_t port = ntohs(six ? v6->sin6_port : v4->sin_port);
    corral_lane_put32(at, (uint32_t)port << 16 | (six ? 6 : 4));
    if (six) {
        memcpy(at + 4, &v6->sin6_addr, 16);
    } else {
        memcpy(at + 4, &v4->sin_addr, 4);
    }
    corral_lane_put32(at + 20, offer->streams);
    memcpy(at + 24, offer->token, sizeof offer->token);
    blob->bytes = OFFER_BYTES;
}

enum corral_status tcp_get_offer(const struct corral_lane_blob *blob, const struct corral_link *link,
                                 struct tcp_offer *offer, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_blob_check(blob, CORRAL_LANE_TCP, link, OFFER_BYTES, err));
    const uint8_t *at = blob->data + CORRAL_LANE_BLOB_HEAD;
    struct tcp_offer o = {.streams = corral_lane_get32(at + 20)};
    uint32_t family = corral_lane_get32(at) & 0xffff;
    in_port_t port = htons((uint16_t)(corral_lane_get32(at) >> 16));
    if ((family != 4 && family != 6) || port == 0 || o.streams == 0 || o.streams > CORRAL_LANE_STREAMS_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "the tcp lane's offer of %u streams is malformed",
                           o.streams);
    }
    if (family == 6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&o.address;
        v6->sin6_family = AF_INET6;
        v6->sin6_port = port;
        memcpy(&v6->sin6_addr, at + 4, 16);
        o.address_bytes = sizeof *v6;
    } else {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&o.address;
        v4->sin_family = AF_INET;
        v4->sin_port = port;
        memcpy(&v4->sin_addr, at + 4, 4);
        o.address_bytes = sizeof *v4;
    }
    memcpy(o.token, at + 24, sizeof o.token);
    *offer = o;
    return CORRAL_OK;
}

static void prove(uint8_t out[32], const struct corral_link *link,
                  const uint8_t token[CORRAL_LANE_TOKEN_BYTES], uint32_t stream)
{
    uint8_t text[36] = "corral tcp lane"; /* 16 with its NUL */
    corral_lane_put64(text + 16, link->hash.lo);
    corral_lane_put64(text + 24, link->hash.hi);
    corral_lane_put32(text + 32, stream);
    corral_hmac_sha256(token, CORRAL_LANE_TOKEN_BYTES, text, sizeof text, out);
}

void tcp_put_hello(uint8_t out[TCP_HELLO_BYTES], const struct corral_link *link,
                   const uint8_t token[CORRAL_LANE_TOKEN_BYTES], uint32_t stream)
{
    corral_lane_put32(out, TCP_MAGIC);
    corral_lane_put32(out + 4, TCP_VERSION);
    corral_lane_put32(out + 8, stream);
    corral_lane_put32(out + 12, 0);
    prove(out + 16, link, token, stream);
}

bool tcp_get_hello(const uint8_t in[TCP_HELLO_BYTES], const struct corral_link *link,
                   const uint8_t token[CORRAL_LANE_TOKEN_BYTES], uint32_t streams, uint32_t *stream)
{
    uint8_t proof[32];
    uint32_t index = corral_lane_get32(in + 8);
    if (corral_lane_get32(in) != TCP_MAGIC || corral_lane_get32(in + 4) != TCP_VERSION || index >= streams ||
        corral_lane_get32(in + 12) != 0) {
        return false;
    }
    prove(proof, link, token, index);
    *stream = index;
    return corral_bytes_equal(proof, in + 16, sizeof proof);
}

void tcp_put_frame(uint8_t out[TCP_FRAME_BYTES], const struct tcp_frame *frame)
{
    corral_lane_put32(out, TCP_MAGIC);
    corral_lane_put32(out + 4, frame->bucket);
    corral_lane_put64(out + 8, frame->push);
    corral_lane_put64(out + 16, frame->number);
    corral_lane_put64(out + 24, frame->from);
    corral_lane_put64(out + 32, frame->bytes);
    corral_lane_put64(out + 40, frame->total);
}

bool tcp_get_frame(const uint8_t in[TCP_FRAME_BYTES], const struct corral_link *link, struct tcp_frame *frame)
{
    struct tcp_frame f = {.bucket = corral_lane_get32(in + 4),
                          .push = corral_lane_get64(in + 8),
                          .number = corral_lane_get64(in + 16),
                          .from = corral_lane_get64(in + 24),
                          .total = corral_lane_get64(in + 40)};
    uint64_t bytes = corral_lane_get64(in + 32);
    if (corral_lane_get32(in) != TCP_MAGIC || bytes == 0 || bytes > TCP_PIECE || f.from > f.total ||
        bytes > f.total - f.from || f.total > corral_link_bucket_size(link, f.bucket)) {
        return false;
    }
    f.bytes = (uint32_t)bytes;
    *frame = f;
    return true;
}

enum corral_status tcp_parse_host(const char *host, struct sockaddr_storage *out, socklen_t *bytes,
                                  struct corral_error *err)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int failed = getaddrinfo(host, "0", &hints, &found);
    if (failed != 0) {
        return corral_fail(err, CORRAL_INVALID, "\"%s\" is not a numeric address: %s", host,
                           gai_strerror(failed));
    }
    memset(out, 0, sizeof *out);
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return CORRAL_OK;
}

static bool same_machine(int fd)
{
    struct sockaddr_storage here, there;
    socklen_t bytes = sizeof here, bytes_there = sizeof there;
    memset(&here, 0, sizeof here);
    memset(&there, 0, sizeof there);
    if (getsockname(fd, (struct sockaddr *)&here, &bytes) != 0 ||
        getpeername(fd, (struct sockaddr *)&there, &bytes_there) != 0 || here.ss_family != there.ss_family) {
        return false;
    }
    if (here.ss_family == AF_INET6) {
        return memcmp(&((struct sockaddr_in6 *)&here)->sin6_addr, &((struct sockaddr_in6 *)&there)->sin6_addr,
                      sizeof(struct in6_addr)) == 0;
    }
    in_addr_t a = ((struct sockaddr_in *)&here)->sin_addr.s_addr,
              b = ((struct sockaddr_in *)&there)->sin_addr.s_addr;
    return a == b || ntohl(b) >> 24 == IN_LOOPBACKNET;
}

void tcp_settle(int fd)
{
    if (same_machine(fd)) {
        (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){TCP_NEAR_BUFFER}, sizeof(int));
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){TCP_NEAR_BUFFER}, sizeof(int));
    }
}

void tcp_tune(int fd)
{
    /* Buffers are left alone here: the kernel grows them to what the path needs, and setting them ends that. */
    static const struct {
        int level, option, value;
    } all[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL_S},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(all); i++) {
        (void)setsockopt(fd, all[i].level, all[i].option, &all[i].value, sizeof all[i].value);
    }
}
