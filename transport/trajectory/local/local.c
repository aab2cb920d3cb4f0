#include "transport/trajectory/local/local.h"
#include "base/clock.h"
#include "transport/bus/socket.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HELLO_MAGIC UINT32_C(0x484c5243)  /* "CRLH" */
#define ANSWER_MAGIC UINT32_C(0x414c5243) /* "CRLA" */
#define VERSION 1u
#define WAITING_MAX 16
#define BACKLOG 64
#define HELLO_NS (5 * CORRAL_NS_PER_S)
#define RING_FDS 3
#define FDS_MAX 8 /* more are cut off by the kernel, and the message with them refused */

struct hello_message {
    uint32_t magic, version;
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t first;
    char token[CORRAL_BUS_TOKEN_MAX];
};
static_assert(sizeof(struct hello_message) == 112, "docs/spec/trajectory-ring.md");

struct answer_message {
    uint32_t magic, refused;
    uint64_t acked, received;
    char reason[CORRAL_LOCAL_REASON_MAX];
};
static_assert(sizeof(struct answer_message) == 184, "docs/spec/trajectory-ring.md");

struct waiting {
    int fd;
    uint64_t until_ns;
};

struct corral_local_door {
    char path[CORRAL_LOCAL_PATH_MAX];
    char token[CORRAL_BUS_TOKEN_MAX];
    uint64_t run, strangers;
    int listening, epoll;
    bool bound;
    bool open; /* the listening socket is watched: there is room for callers */
    struct waiting waiting[WAITING_MAX];
    uint32_t count;
};

enum corral_status corral_local_path(const char *endpoint, char out[CORRAL_LOCAL_PATH_MAX],
                                     struct corral_error *err)
{
    if (!corral_zmq_is_ipc(endpoint)) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%s is not on this node", endpoint);
    }
    const char *path = endpoint + strlen("ipc://");
    char text[CORRAL_LOCAL_PATH_MAX];
    int n = snprintf(text, sizeof text, "%s.ring", path);
    if (path[0] == '@' || n < 0 || (size_t)n >= sizeof text) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%s leaves no room for a socket beside it", endpoint);
    }
    memcpy(out, text, sizeof text);
    return CORRAL_OK;
}

static void address_of(const char *path, struct sockaddr_un *address)
{
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, strnlen(path, sizeof address->sun_path - 1));
}

static bool same_user(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

bool corral_local_gone(int link)
{
    struct pollfd p = {.fd = link, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0;
}

/* ---- door ---- */

void corral_local_door_close(struct corral_local_door *d)
{
    if (d == NULL) {
        return;
    }
    for (uint32_t i = 0; i < d->count; i++) {
        close(d->waiting[i].fd);
    }
    if (d->bound) {
        unlink(d->path);
    }
    corral_cleanup_close(&d->listening);
    corral_cleanup_close(&d->epoll);
    free(d);
}

CORRAL_DEFINE_CLEANUP(struct corral_local_door, corral_local_door_close)

static bool watch(const struct corral_local_door *d, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
    return epoll_ctl(d->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

enum corral_status corral_local_door_open(struct corral_local_door **out, const char *path, uint64_t run,
                                          const char *token, struct corral_error *err)
{
    if (strlen(path) >= CORRAL_LOCAL_PATH_MAX || strlen(token) >= CORRAL_BUS_TOKEN_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: path or token of a trajectory door is too long", path);
    }
    CORRAL_CLEANUP(corral_local_door_closep) struct corral_local_door *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "open a trajectory door");
    }
    struct sockaddr_un address;
    memcpy(d->path, path, strlen(path) + 1);
    memcpy(d->token, token, strlen(token) + 1);
    d->run = run;
    d->listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    d->epoll = epoll_create1(EPOLL_CLOEXEC);
    address_of(path, &address);
    if (d->listening < 0 || d->epoll < 0) {
        return corral_fail_sys(err, errno, "%s: open a trajectory door", path);
    }
    unlink(path); /* of a trainer that was killed */
    if (bind(d->listening, (struct sockaddr *)&address, sizeof address) != 0) {
        return corral_fail_sys(err, errno, "%s: open a trajectory door", path);
    }
    d->bound = true;
    if (chmod(path, 0600) != 0 || listen(d->listening, BACKLOG) != 0 || !watch(d, d->listening)) {
        return corral_fail_sys(err, errno, "%s: open a trajectory door", path);
    }
    d->open = true;
    *out = CORRAL_STEAL(d);
    return CORRAL_OK;
}

int corral_local_door_fd(const struct corral_local_door *d)
{
    return d->epoll;
}

uint64_t corral_local_door_strangers(const struct corral_local_door *d)
{
    return d->strangers;
}

/* Callers into the waiting room, as far as there is one. */
static void let_in(struct corral_local_door *d, uint64_t now_ns)
{
    while (d->count < WAITING_MAX) {
        int fd = accept4(d->listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            return;
        }
        if (!same_user(fd) || !watch(d, fd)) {
            d->strangers++;
            close(fd);
            continue;
        }
        d->waiting[d->count++] = (struct waiting){.fd = fd, .until_ns = now_ns + HELLO_NS};
    }
}

/* Callers that can't be let in do not make the door readable. */
static void mind_the_queue(struct corral_local_door *d)
{
    bool room = d->count < WAITING_MAX;
    if (room && !d->open) {
        d->open = watch(d, d->listening);
    } else if (!room && d->open) {
        d->open = epoll_ctl(d->epoll, EPOLL_CTL_DEL, d->listening, NULL) != 0;
    }
}

/* One message and what came with it. Bytes, 0: closed, -1: none yet or an error (errno). */
static ssize_t receive(int fd, void *to, size_t bytes, int fds[FDS_MAX], uint32_t *fd_count, bool *cut)
{
    union {
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec io = {.iov_base = to, .iov_len = bytes};
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;
    do {
        n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    *fd_count = 0;
    *cut = false;
    if (n < 0) {
        return n;
    }
    *cut = (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            uint32_t count = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds + *fd_count, CMSG_DATA(c), CORRAL_MIN(count, FDS_MAX - *fd_count) * sizeof(int));
            *fd_count += CORRAL_MIN(count, FDS_MAX - *fd_count);
        }
    }
    return n;
}

static const char *check_hello(const struct corral_local_door *d, const struct hello_message *h,
                               ssize_t bytes, uint32_t fd_count, bool cut)
{
    if (bytes != (ssize_t)sizeof *h || cut || h->magic != HELLO_MAGIC || fd_count != RING_FDS) {
        return "not a hello";
    }
    if (h->version != VERSION) {
        return "another version of the ring";
    }
    if (memchr(h->token, '\0', sizeof h->token) == NULL || !corral_zmq_token_equal(h->token, d->token)) {
        return "wrong token";
    }
    return h->run != d->run ? "another run" : NULL;
}

/* A caller's hello. True: it is out of the waiting room, and *out is filled when it said the right thing. */
static bool hear(struct corral_local_door *d, uint32_t i, uint64_t now_ns, struct corral_local_caller *out,
                 bool *good)
{
    struct hello_message h = {.magic = 0};
    int fd = d->waiting[i].fd, fds[FDS_MAX];
    uint32_t fd_count;
    bool cut;
    ssize_t n = receive(fd, &h, sizeof h, fds, &fd_count, &cut);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) && now_ns < d->waiting[i].until_ns) {
        return false;
    }
    d->waiting[i] = d->waiting[--d->count];
    (void)epoll_ctl(d->epoll, EPOLL_CTL_DEL, fd, NULL);
    const char *why = n > 0 ? check_hello(d, &h, n, fd_count, cut) : "it said nothing";
    *good = why == NULL;
    if (*good) {
        *out = (struct corral_local_caller){
            .hello = {.run = h.run, .worker = h.worker, .epoch = h.epoch, .first = h.first}, .link = fd};
        memcpy(out->fd, fds, sizeof out->fd);
        return true;
    }
    for (uint32_t k = 0; k < fd_count; k++) {
        close(fds[k]);
    }
    d->strangers++;
    corral_local_refuse(fd, why);
    return true;
}

enum corral_status corral_local_door_next(struct corral_local_door *d, uint64_t now_ns,
                                          struct corral_local_caller *out, struct corral_error *err)
{
    let_in(d, now_ns);
    for (uint32_t i = 0; i < d->count;) {
        bool good;
        if (!hear(d, i, now_ns, out, &good)) {
            i++;
        } else if (good) {
            mind_the_queue(d);
            return CORRAL_OK;
        }
    }
    mind_the_queue(d);
    return corral_fail(err, CORRAL_AGAIN, "no worker at the trajectory door");
}

static enum corral_status send_answer(int link, const struct answer_message *a, struct corral_error *err)
{
    ssize_t n;
    do {
        n = send(link, a, sizeof *a, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof *a) {
        return corral_fail(err, CORRAL_PEER, "a worker at the trajectory door has gone");
    }
    return CORRAL_OK;
}

enum corral_status corral_local_welcome(int link, uint64_t acked, uint64_t received, struct corral_error *err)
{
    return send_answer(
        link, &(struct answer_message){.magic = ANSWER_MAGIC, .acked = acked, .received = received}, err);
}

void corral_local_refuse(int link, const char *reason)
{
    struct answer_message a = {.magic = ANSWER_MAGIC, .refused = 1};
    snprintf(a.reason, sizeof a.reason, "%s", reason);
    (void)send_answer(link, &a, NULL);
    close(link);
}

/* ---- worker ---- */

static enum corral_status connect_to(const char *path, int *out, struct corral_error *err)
{
    struct sockaddr_un address;
    CORRAL_AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "%s: call at a trajectory door", path);
    }
    address_of(path, &address);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno == EAGAIN) {
            return corral_fail(err, CORRAL_AGAIN, "%s: too many callers at a trajectory door", path);
        }
        if (errno == ENOENT || errno == ECONNREFUSED) {
            return corral_fail(err, CORRAL_NOT_FOUND, "%s: nobody is at the trajectory door", path);
        }
        return corral_fail_sys(err, errno, "%s: call at a trajectory door", path);
    }
    if (!same_user(fd)) {
        return corral_fail(err, CORRAL_INVALID, "%s: the trajectory door is another user's", path);
    }
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

enum corral_status corral_local_call(int *link, const char *path, const struct corral_local_hello *hello,
                                     const char *token, const int fd[3], struct corral_error *err)
{
    if (strlen(path) >= CORRAL_LOCAL_PATH_MAX || strlen(token) >= CORRAL_BUS_TOKEN_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: path or token of a trajectory door is too long", path);
    }
    CORRAL_AUTO_CLOSE int socket_fd = -1;
    CORRAL_TRY(connect_to(path, &socket_fd, err));
    struct hello_message h = {.magic = HELLO_MAGIC,
                              .version = VERSION,
                              .run = hello->run,
                              .worker = hello->worker,
                              .epoch = hello->epoch,
                              .first = hello->first};
    memcpy(h.token, token, strlen(token) + 1);
    union {
        char bytes[CMSG_SPACE(RING_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof control);
    struct iovec io = {.iov_base = &h, .iov_len = sizeof h};
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(RING_FDS * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(c), fd, RING_FDS * sizeof(int));
    ssize_t n;
    do {
        n = sendmsg(socket_fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof h) {
        return corral_fail(err, CORRAL_PEER, "%s: whoever was at the trajectory door has gone", path);
    }
    *link = socket_fd;
    socket_fd = -1;
    return CORRAL_OK;
}

enum corral_status corral_local_answer(int link, uint64_t *acked, uint64_t *received,
                                       struct corral_error *err)
{
    struct answer_message a = {.magic = 0};
    int fds[FDS_MAX];
    uint32_t fd_count;
    bool cut;
    ssize_t n = receive(link, &a, sizeof a, fds, &fd_count, &cut);
    for (uint32_t i = 0; n > 0 && i < fd_count; i++) {
        close(fds[i]);
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        return corral_fail(err, CORRAL_AGAIN, "no answer from the trajectory door yet");
    }
    if (n <= 0) {
        return corral_fail(err, CORRAL_PEER, "whoever was at the trajectory door has gone");
    }
    if (n != (ssize_t)sizeof a || cut || fd_count != 0 || a.magic != ANSWER_MAGIC || a.refused > 1 ||
        (!a.refused && a.acked > a.received)) {
        return corral_fail(err, CORRAL_PROTOCOL, "the trajectory door gave no proper answer");
    }
    if (a.refused) {
        return corral_fail(err, CORRAL_INVALID, "the trajectory door is closed to this worker: %.*s",
                           (int)strnlen(a.reason, sizeof a.reason), a.reason);
    }
    *acked = a.acked;
    *received = a.received;
    return CORRAL_OK;
}
