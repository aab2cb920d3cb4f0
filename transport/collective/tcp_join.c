/* Listening, connecting, and the challenge that keeps strangers out. A stranger, a stalled or a half-open connection costs one
 * place among the pending ones until its time is up; it never stops the group from forming. */
#include "base/clock.h"
#include "base/hash.h"
#include "transport/collective/tcp.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TCP_MAGIC UINT32_C(0x54435143) /* "CQCT" */
#define TCP_VERSION 1
#define TCP_NONCE_BYTES 32
#define TCP_MAC_BYTES 32
#define PENDING_MAX (2 * CORRAL_COLLECTIVE_RANKS_MAX)
#define PENDING_MS_MAX 5000 /* for one connection to say who it is */
#define HOST_MAX 256

struct tcp_hello { /* rank 0 → rank r */
    uint32_t magic, version;
    uint8_t nonce[TCP_NONCE_BYTES];
};

struct tcp_join { /* rank r → rank 0 */
    uint32_t magic, version, rank, ranks, generation, reserved;
    uint8_t nonce[TCP_NONCE_BYTES];
    uint8_t mac[TCP_MAC_BYTES];
};

struct tcp_welcome {        /* rank 0 → rank r */
    uint32_t magic, status; /* enum corral_status: why it is refused, or CORRAL_OK */
    uint8_t mac[TCP_MAC_BYTES];
};

_Static_assert(sizeof(struct tcp_hello) == 40 && sizeof(struct tcp_join) == 88 &&
                   sizeof(struct tcp_welcome) == 40,
               "wire");

struct corral_collective_listener {
    int fd;
};

struct pending {
    int fd;
    uint64_t deadline_ns;
    uint8_t nonce[TCP_NONCE_BYTES];
    struct tcp_join join;
    size_t got;
};

struct lobby {
    const struct corral_tcp_identity *self;
    struct pending pending[PENDING_MAX];
    uint32_t pending_count;
    uint32_t joined;
    int *fd;
};

int corral_tcp_poll_ms(uint64_t deadline_ns)
{
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (now >= deadline_ns) {
        return 0;
    }
    uint64_t ms = (deadline_ns - now + CORRAL_NS_PER_MS - 1) / CORRAL_NS_PER_MS;
    return ms > 1000000 ? 1000000 : (int)ms;
}

/* What the two proofs are made over. The label keeps one side's proof from being played back as the other's. */
static void prove(const struct corral_tcp_identity *self, const char *label, const uint8_t *server_nonce,
                  const uint8_t *client_nonce, const uint32_t words[4], uint8_t mac[TCP_MAC_BYTES])
{
    struct {
        char label[32];
        uint8_t server_nonce[TCP_NONCE_BYTES], client_nonce[TCP_NONCE_BYTES];
        uint32_t words[4]; /* rank, ranks, generation, status */
    } text = {0};
    _Static_assert(sizeof text == 112, "wire");
    snprintf(text.label, sizeof text.label, "%s", label);
    memcpy(text.server_nonce, server_nonce, TCP_NONCE_BYTES);
    memcpy(text.client_nonce, client_nonce, TCP_NONCE_BYTES);
    memcpy(text.words, words, sizeof text.words);
    corral_hmac_sha256(self->secret, CORRAL_TCP_SECRET_BYTES, &text, sizeof text, mac);
}

static void prove_join(const struct corral_tcp_identity *self, const uint8_t *server_nonce,
                       const struct tcp_join *j, uint8_t mac[TCP_MAC_BYTES])
{
    const uint32_t words[4] = {j->rank, j->ranks, j->generation, 0};
    prove(self, "corral collective join 1", server_nonce, j->nonce, words, mac);
}

static void prove_welcome(const struct corral_tcp_identity *self, const uint8_t *server_nonce,
                          const struct tcp_join *j, uint32_t status, uint8_t mac[TCP_MAC_BYTES])
{
    const uint32_t words[4] = {j->rank, j->ranks, j->generation, status};
    prove(self, "corral collective welcome 1", server_nonce, j->nonce, words, mac);
}

static void set_no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* slower without, not wrong */
}

static void freeaddrinfop(struct addrinfo **list)
{
    if (*list) {
        freeaddrinfo(*list);
    }
}

static enum corral_status resolve(const char *host, const char *port, int flags, struct addrinfo **out,
                                  struct corral_error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    int rc = getaddrinfo(host, port, &hints, out);
    if (rc != 0) {
        return corral_fail(err, CORRAL_INVALID, "tcp collective: address %s port %s: %s", host, port,
                           gai_strerror(rc));
    }
    return CORRAL_OK;
}

static enum corral_status format_endpoint(int fd, char *out, size_t out_bytes, struct corral_error *err)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char host[HOST_MAX], port[16];
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0 ||
        getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return corral_fail(err, CORRAL_IO, "tcp collective: the listening address cannot be read");
    }
    int written = snprintf(out, out_bytes, strchr(host, ':') ? "tcp://[%s]:%s" : "tcp://%s:%s", host, port);
    if (written < 0 || (size_t)written >= out_bytes) {
        return corral_fail(err, CORRAL_INVALID, "tcp collective: no room for the endpoint in %zu bytes",
                           out_bytes);
    }
    return CORRAL_OK;
}

enum corral_status corral_collective_tcp_listen(const char *host, struct corral_collective_listener **out,
                                                char *endpoint, size_t endpoint_bytes,
                                                struct corral_error *err)
{
    CORRAL_CLEANUP(freeaddrinfop) struct addrinfo *list = NULL;
    CORRAL_TRY(resolve(host, "0", AI_PASSIVE, &list, err));
    CORRAL_AUTO_CLOSE int fd =
        socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, list->ai_protocol);
    if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, PENDING_MAX) != 0) {
        return corral_fail_sys(err, errno, "tcp collective: listen on %s", host);
    }
    char text[HOST_MAX + 32];
    CORRAL_TRY(format_endpoint(fd, text, CORRAL_MIN(sizeof text, endpoint_bytes), err));
    struct corral_collective_listener *l = calloc(1, sizeof *l);
    if (!l) {
        return corral_fail(err, CORRAL_NOMEM, "tcp collective: no memory");
    }
    strcpy(endpoint, text);
    l->fd = fd;
    fd = -1;
    *out = l;
    return CORRAL_OK;
}

void corral_collective_listener_destroy(struct corral_collective_listener *l)
{
    if (l) {
        close(l->fd);
    }
    free(l);
}

static void drop_pending(struct lobby *lobby, uint32_t i)
{
    if (lobby->pending[i].fd >= 0) {
        close(lobby->pending[i].fd);
    }
    lobby->pending[i] = lobby->pending[--lobby->pending_count];
}

static void accept_one(struct lobby *lobby, int listen_fd, uint64_t deadline_ns)
{
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return; /* gone again, or out of descriptors: the deadline will tell */
    }
    set_no_delay(fd);
    struct pending *p = &lobby->pending[lobby->pending_count];
    uint64_t limit = corral_now_ns(&corral_clock_monotonic) + PENDING_MS_MAX * CORRAL_NS_PER_MS;
    *p = (struct pending){.fd = fd, .deadline_ns = CORRAL_MIN(deadline_ns, limit)};
    corral_random_bytes(p->nonce, sizeof p->nonce);
    struct tcp_hello hello = {.magic = TCP_MAGIC, .version = TCP_VERSION};
    memcpy(hello.nonce, p->nonce, sizeof hello.nonce);
    /* A fresh connection has room for 40 bytes; one that has not is not worth waiting for. */
    if (send(fd, &hello, sizeof hello, MSG_NOSIGNAL) != (ssize_t)sizeof hello) {
        close(fd);
        return;
    }
    lobby->pending_count++;
}

static enum corral_status judge(const struct lobby *lobby, const struct tcp_join *j)
{
    const struct corral_tcp_identity *self = lobby->self;
    if (j->ranks != self->ranks || j->rank == 0 || j->rank >= self->ranks) {
        return CORRAL_INVALID;
    }
    if (j->generation != self->generation) {
        return CORRAL_STATE;
    }
    return lobby->fd[j->rank] >= 0 ? CORRAL_EXISTS : CORRAL_OK;
}

/* A whole join has come. Who cannot prove the secret gets no answer. True when the connection now belongs to a rank. */
static bool admit(struct lobby *lobby, struct pending *p)
{
    const struct tcp_join *j = &p->join;
    uint8_t mac[TCP_MAC_BYTES];
    prove_join(lobby->self, p->nonce, j, mac);
    if (j->magic != TCP_MAGIC || j->version != TCP_VERSION || !corral_bytes_equal(mac, j->mac, sizeof mac)) {
        return false;
    }
    struct tcp_welcome welcome = {.magic = TCP_MAGIC, .status = judge(lobby, j)};
    prove_welcome(lobby->self, p->nonce, j, welcome.status, welcome.mac);
    if (send(p->fd, &welcome, sizeof welcome, MSG_NOSIGNAL) != (ssize_t)sizeof welcome ||
        welcome.status != CORRAL_OK) {
        return false;
    }
    lobby->fd[j->rank] = p->fd;
    lobby->joined++;
    p->fd = -1;
    return true;
}

/* Read what has come. True when the connection is finished with, one way or the other. */
static bool read_join(struct lobby *lobby, struct pending *p)
{
    ssize_t got = recv(p->fd, (char *)&p->join + p->got, sizeof p->join - p->got, 0);
    if (got <= 0) {
        return !(got < 0 && (errno == EAGAIN || errno == EINTR));
    }
    p->got += (size_t)got;
    if (p->got < sizeof p->join) {
        return false;
    }
    admit(lobby, p);
    return true;
}

static enum corral_status fail_missing(const struct lobby *lobby, struct corral_error *err)
{
    char list[200] = "";
    size_t at = 0;
    for (uint32_t r = 1; r < lobby->self->ranks && at + 8 < sizeof list; r++) {
        if (lobby->fd[r] < 0) {
            at += (size_t)snprintf(list + at, sizeof list - at, "%s%u", at ? ", " : "", r);
        }
    }
    return corral_fail(err, CORRAL_TIMEOUT,
                       "tcp collective: of %u ranks, these did not join in time: rank %s", lobby->self->ranks,
                       list);
}

static enum corral_status fill_lobby(struct lobby *lobby, int listen_fd, uint64_t deadline_ns,
                                     struct corral_error *err)
{
    while (lobby->joined + 1 < lobby->self->ranks) {
        struct pollfd p[PENDING_MAX + 1];
        uint64_t next = deadline_ns;
        for (uint32_t i = 0; i < lobby->pending_count; i++) {
            p[i] = (struct pollfd){.fd = lobby->pending[i].fd, .events = POLLIN};
            next = CORRAL_MIN(next, lobby->pending[i].deadline_ns);
        }
        uint32_t count = lobby->pending_count;
        p[count] = (struct pollfd){.fd = count < PENDING_MAX ? listen_fd : -1, .events = POLLIN};
        if (poll(p, count + 1, corral_tcp_poll_ms(next)) < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "tcp collective: wait for ranks");
        }
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        for (uint32_t i = count; i-- > 0;) { /* downwards: dropping one moves the last into its place */
            if ((p[i].revents && read_join(lobby, &lobby->pending[i])) ||
                now >= lobby->pending[i].deadline_ns) {
                drop_pending(lobby, i);
            }
        }
        if (p[count].revents) {
            accept_one(lobby, listen_fd, deadline_ns);
        }
        if (now >= deadline_ns && lobby->joined + 1 < lobby->self->ranks) {
            return fail_missing(lobby, err);
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_tcp_accept_all(struct corral_collective_listener *l,
                                         const struct corral_tcp_identity *self, uint64_t deadline_ns,
                                         int *fd, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct lobby *lobby = calloc(1, sizeof *lobby);
    if (!lobby) {
        return corral_fail(err, CORRAL_NOMEM, "tcp collective: no memory");
    }
    lobby->self = self;
    lobby->fd = fd;
    for (uint32_t r = 0; r < self->ranks; r++) {
        fd[r] = -1;
    }
    enum corral_status status = fill_lobby(lobby, l->fd, deadline_ns, err);
    while (lobby->pending_count > 0) {
        drop_pending(lobby, lobby->pending_count - 1);
    }
    for (uint32_t r = 0; status != CORRAL_OK && r < self->ranks; r++) {
        corral_cleanup_close(&fd[r]);
        fd[r] = -1;
    }
    return status;
}

/* "tcp://host:port" or "tcp://[host]:port". */
static enum corral_status split_endpoint(const char *endpoint, char host[HOST_MAX], char port[16],
                                         struct corral_error *err)
{
    const char *at = strncmp(endpoint, "tcp://", 6) == 0 ? endpoint + 6 : NULL;
    const char *colon = at ? strrchr(at, ':') : NULL;
    if (!colon || colon == at || !colon[1] || strlen(colon + 1) >= 16 || (size_t)(colon - at) >= HOST_MAX) {
        return corral_fail(err, CORRAL_INVALID, "tcp collective: endpoint \"%s\" is not tcp://host:port",
                           endpoint);
    }
    bool bracketed = at[0] == '[' && colon[-1] == ']' && colon - at > 2;
    size_t length = (size_t)(colon - at) - (bracketed ? 2 : 0);
    memcpy(host, at + (bracketed ? 1 : 0), length);
    host[length] = '\0';
    strcpy(port, colon + 1);
    return CORRAL_OK;
}

static enum corral_status wait_ready(int fd, short events, uint64_t deadline_ns, const char *endpoint,
                                     struct corral_error *err)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        int ms = corral_tcp_poll_ms(deadline_ns);
        int rc = poll(&p, 1, ms);
        if (rc > 0) {
            return CORRAL_OK;
        }
        if (rc < 0 && errno != EINTR) {
            return corral_fail_sys(err, errno, "tcp collective: wait for rank 0");
        }
        if (ms == 0) {
            return corral_fail(err, CORRAL_TIMEOUT, "tcp collective: rank 0 at %s did not answer in time",
                               endpoint);
        }
    }
}

static enum corral_status open_connection(const char *endpoint, uint64_t deadline_ns, int *out,
                                          struct corral_error *err)
{
    char host[HOST_MAX], port[16];
    CORRAL_TRY(split_endpoint(endpoint, host, port, err));
    CORRAL_CLEANUP(freeaddrinfop) struct addrinfo *list = NULL;
    CORRAL_TRY(resolve(host, port, 0, &list, err));
    CORRAL_AUTO_CLOSE int fd =
        socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, list->ai_protocol);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "tcp collective: connect to %s", endpoint);
    }
    int cause = connect(fd, list->ai_addr, list->ai_addrlen) == 0 ? 0 : errno;
    if (cause == EINPROGRESS) {
        CORRAL_TRY(wait_ready(fd, POLLOUT, deadline_ns, endpoint, err));
        socklen_t length = sizeof cause;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &cause, &length) != 0) {
            cause = errno;
        }
    }
    if (cause != 0) {
        corral_fail_sys(err, cause, "tcp collective: connect to rank 0 at %s", endpoint);
        return corral_error_prefix(err, CORRAL_IO, "rank 0 is not there");
    }
    set_no_delay(fd);
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

static enum corral_status receive_all(int fd, void *data, size_t bytes, uint64_t deadline_ns,
                                      const char *endpoint, struct corral_error *err)
{
    for (size_t got = 0; got < bytes;) {
        ssize_t n = recv(fd, (char *)data + got, bytes - got, 0);
        if (n > 0) {
            got += (size_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            CORRAL_TRY(wait_ready(fd, POLLIN, deadline_ns, endpoint, err));
        } else {
            return corral_fail(
                err, CORRAL_PEER,
                "tcp collective: rank 0 at %s closed the connection: it has gone, or the secret differs",
                endpoint);
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_welcome(const struct tcp_welcome *w, const uint8_t *server_nonce,
                                        const struct tcp_join *j, const struct corral_tcp_identity *self,
                                        const char *endpoint, struct corral_error *err)
{
    uint8_t mac[TCP_MAC_BYTES];
    prove_welcome(self, server_nonce, j, w->status, mac);
    if (w->magic != TCP_MAGIC || !corral_bytes_equal(mac, w->mac, sizeof mac)) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "tcp collective: who answers at %s cannot prove to be rank 0", endpoint);
    }
    switch (w->status) {
    case CORRAL_OK:
        return CORRAL_OK;
    case CORRAL_STATE:
        return corral_fail(err, CORRAL_STATE, "tcp collective: rank 0 at %s is not of generation %u",
                           endpoint, self->generation);
    case CORRAL_EXISTS:
        return corral_fail(err, CORRAL_EXISTS, "tcp collective: rank %u has already joined at %s", self->rank,
                           endpoint);
    default:
        return corral_fail(err, CORRAL_INVALID, "tcp collective: rank 0 at %s has no rank %u of %u", endpoint,
                           self->rank, self->ranks);
    }
}

enum corral_status corral_tcp_connect(const char *endpoint, const struct corral_tcp_identity *self,
                                      uint64_t deadline_ns, int *out, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = -1;
    CORRAL_TRY(open_connection(endpoint, deadline_ns, &fd, err));
    struct tcp_hello hello;
    CORRAL_TRY(receive_all(fd, &hello, sizeof hello, deadline_ns, endpoint, err));
    if (hello.magic != TCP_MAGIC || hello.version != TCP_VERSION) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "tcp collective: who answers at %s is not a rank 0 of version %d", endpoint,
                           TCP_VERSION);
    }
    struct tcp_join join = {.magic = TCP_MAGIC,
                            .version = TCP_VERSION,
                            .rank = self->rank,
                            .ranks = self->ranks,
                            .generation = self->generation};
    corral_random_bytes(join.nonce, sizeof join.nonce);
    prove_join(self, hello.nonce, &join, join.mac);
    if (send(fd, &join, sizeof join, MSG_NOSIGNAL) != (ssize_t)sizeof join) {
        return corral_fail(err, CORRAL_PEER, "tcp collective: rank 0 at %s has gone", endpoint);
    }
    struct tcp_welcome welcome;
    CORRAL_TRY(receive_all(fd, &welcome, sizeof welcome, deadline_ns, endpoint, err));
    CORRAL_TRY(check_welcome(&welcome, hello.nonce, &join, self, endpoint, err));
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}
