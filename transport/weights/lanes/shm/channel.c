#include "transport/weights/lanes/shm/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BACKLOG 16
#define CALLERS_MAX 64 /* turned away before we give up */

static socklen_t address_of(const uint8_t name[SHM_NAME_BYTES], struct sockaddr_un *address)
{
    char hex[2 * SHM_NAME_BYTES + 1];
    corral_hex(name, SHM_NAME_BYTES, hex);
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    /* Abstract: the leading NUL stays, no file to leave behind. */
    size_t prefix = sizeof "corral-lane-" - 1;
    memcpy(address->sun_path + 1, "corral-lane-", prefix);
    memcpy(address->sun_path + 1 + prefix, hex, sizeof hex - 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + prefix + sizeof hex - 1);
}

static enum corral_status make_socket(int *out, struct corral_error *err)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return corral_fail_sys(err, errno, "cannot make a Unix socket for the shm lane");
    }
    *out = fd;
    return CORRAL_OK;
}

enum corral_status shm_listen(const uint8_t name[SHM_NAME_BYTES], int *out, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = -1;
    struct sockaddr_un address;
    CORRAL_TRY(make_socket(&fd, err));
    socklen_t length = address_of(name, &address);
    if (bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, BACKLOG) != 0) {
        return corral_fail_sys(err, errno, "cannot listen for the sender of the shm lane");
    }
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

static bool readable(int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    return fd >= 0 && poll(&p, 1, 0) > 0 && (p.revents & (events | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

bool shm_gone(const struct shm_peer *peer)
{
    return readable(peer->socket, POLLRDHUP) || readable(peer->pidfd, POLLIN);
}

void shm_hang_up(struct shm_peer *peer)
{
    corral_cleanup_close(&peer->socket);
    corral_cleanup_close(&peer->pidfd);
    *peer = (struct shm_peer){.socket = -1, .pidfd = -1};
}

enum corral_status shm_watch_peer(int *epoll, const struct shm_peer *peer, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_watch(epoll, peer->socket, EPOLLRDHUP, err));
    return peer->pidfd < 0 ? CORRAL_OK : corral_lane_watch(epoll, peer->pidfd, EPOLLIN, err);
}

/* Who is at the other end, as the kernel says. False: another user. */
static bool know_peer(int fd, struct shm_peer *out)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || peer.uid != geteuid()) {
        return false;
    }
    *out = (struct shm_peer){.socket = fd, .pidfd = -1};
    int process =
        peer.pid > 0 ? (int)syscall(SYS_pidfd_open, peer.pid, 0) : -1; /* close-on-exec as it comes */
    /* Hung up: the process has died, and the number may be another's by now. */
    if (process >= 0 && readable(fd, POLLRDHUP)) {
        close(process);
        process = -1;
    }
    out->pidfd = process;
    out->pid = process >= 0 ? peer.pid : 0;
    return true;
}

enum corral_status shm_call(const uint8_t name[SHM_NAME_BYTES], const uint8_t *hello, struct shm_peer *out,
                            struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = -1;
    struct sockaddr_un address;
    CORRAL_TRY(make_socket(&fd, err));
    socklen_t length = address_of(name, &address);
    if (connect(fd, (struct sockaddr *)&address, length) != 0) {
        if (errno == ECONNREFUSED) {
            return corral_fail(err, CORRAL_UNSUPPORTED,
                               "the receiver's shm socket is not on this machine (or in another network "
                               "namespace): use another lane");
        }
        return corral_fail_sys(err, errno, "cannot connect to the receiver of the shm lane");
    }
    struct shm_peer peer; /* first: a stranger is not shown the token */
    if (!know_peer(fd, &peer)) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "the shm lane's receiver belongs to another user");
    }
    fd = -1;
    if (send(peer.socket, hello, SHM_HELLO_BYTES, MSG_NOSIGNAL) != SHM_HELLO_BYTES) {
        enum corral_status status = corral_fail_sys(err, errno, "cannot greet the receiver of the shm lane");
        shm_hang_up(&peer);
        return status;
    }
    *out = peer;
    return CORRAL_OK;
}

void shm_hello(const struct corral_link *link, const uint8_t token[CORRAL_LANE_TOKEN_BYTES],
               uint8_t hello[SHM_HELLO_BYTES])
{
    corral_lane_put32(hello, SHM_MAGIC);
    corral_lane_put32(hello + 4, SHM_VERSION);
    corral_lane_put64(hello + 8, link->hash.lo);
    corral_lane_put64(hello + 16, link->hash.hi);
    memcpy(hello + 24, token, CORRAL_LANE_TOKEN_BYTES);
}

enum corral_status shm_accept(int listener, const uint8_t *hello, uint64_t timeout_ns, struct shm_peer *out,
                              struct corral_error *err)
{
    uint64_t deadline = corral_lane_deadline(timeout_ns);
    for (int i = 0; i < CALLERS_MAX && corral_lane_poll(listener, POLLIN, deadline); i++) {
        CORRAL_AUTO_CLOSE int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        uint8_t theirs[SHM_HELLO_BYTES + 1];
        /* The sender says hello before its answer leaves, so it is here already. */
        if (fd < 0 || recv(fd, theirs, sizeof theirs, MSG_DONTWAIT) != SHM_HELLO_BYTES ||
            !corral_bytes_equal(theirs, hello, SHM_HELLO_BYTES) || !know_peer(fd, out)) {
            continue;
        }
        fd = -1;
        return CORRAL_OK;
    }
    return corral_fail(err, CORRAL_PEER, "the sender of the shm lane did not connect");
}

enum corral_status shm_send(int socket, const struct shm_message *message, const int *fd, uint32_t count,
                            struct corral_error *err)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(SHM_FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)message, .iov_len = sizeof *message};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.room,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(c), fd, count * sizeof(int));
    if (sendmsg(socket, &m, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof *message) {
        if (errno == EPIPE || errno == ECONNRESET) {
            return corral_fail(err, CORRAL_PEER, "the sender of the shm lane has gone");
        }
        return corral_fail_sys(err, errno, "cannot hand memory to the sender of the shm lane");
    }
    return CORRAL_OK;
}

/* What came with the message, at most SHM_FDS_MAX. */
static uint32_t fds_of(struct msghdr *m, int *fd)
{
    uint32_t n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int one;
            memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof one);
            if (n < SHM_FDS_MAX) {
                fd[n++] = one;
            } else {
                close(one);
            }
        }
    }
    return n;
}

enum corral_status shm_receive(int socket, uint64_t deadline_ns, struct shm_message *message, int *fd,
                               uint32_t count, struct corral_error *err)
{
    if (!corral_lane_poll(socket, POLLIN, deadline_ns)) {
        return corral_fail(err, CORRAL_TIMEOUT, "the receiver of the shm lane hands out no memory");
    }
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(SHM_FDS_MAX * sizeof(int))];
    } control = {0};
    struct shm_message got;
    struct iovec iov = {.iov_base = &got, .iov_len = sizeof got};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n <= 0) {
        return corral_fail(err, CORRAL_PEER, "the receiver of the shm lane has gone");
    }
    int got_fd[SHM_FDS_MAX];
    uint32_t fds = fds_of(&m, got_fd);
    if (n != (ssize_t)sizeof got || got.magic != SHM_MAGIC || fds != count ||
        (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
        for (uint32_t i = 0; i < fds; i++) {
            close(got_fd[i]);
        }
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver of the shm lane sent a malformed message");
    }
    memcpy(fd, got_fd, count * sizeof(int));
    *message = got;
    return CORRAL_OK;
}

enum corral_status shm_memory(const char *name, uint64_t bytes, int *out, struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 || fallocate(fd, 0, 0, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, SHM_SEALS) != 0) {
        return corral_fail_sys(err, errno, "cannot make %" PRIu64 " bytes of shared memory for the shm lane",
                               bytes);
    }
    *out = fd;
    fd = -1;
    return CORRAL_OK;
}

bool shm_sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0;
}

enum corral_status shm_map(int fd, uint64_t bytes_min, void **out, uint64_t *bytes, struct corral_error *err)
{
    struct stat st;
    if (!shm_sealed(fd) || fstat(fd, &st) != 0 || st.st_size <= 0 || (uint64_t)st.st_size < bytes_min) {
        return corral_fail(
            err, CORRAL_PROTOCOL,
            "the shm lane was given memory that is too small, or not sealed against shrinking");
    }
    void *base = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map %jd bytes for the shm lane", (intmax_t)st.st_size);
    }
    (void)madvise(base, (size_t)st.st_size, MADV_DONTFORK);
    *out = base;
    *bytes = (uint64_t)st.st_size;
    return CORRAL_OK;
}
