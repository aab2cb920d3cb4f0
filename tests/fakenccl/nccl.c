/* A libnccl.so.2 for tests, beside the fake driver: communicators of two ranks that really move bytes, over a Unix socket, asynchronously, and that hang, fail or die on demand (README.md). */
#include "transport/weights/lanes/nccl/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define OPS_MAX 256
#define IDS_MAX 64
#define GROUP_MAX 8
#define INVALID_ARGUMENT 4

struct op {
    nccl_comm comm;
    bool send;
    char *memory;
    size_t bytes;
    corral_cuda_stream stream;
};
struct ncclComm {
    struct nccl_id id;
    int rank, fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop, joined, fresh; /* fresh: the next question is answered "in progress" */
    int error;
    struct op op[OPS_MAX];
    uint64_t queued, done;
};

/* ---- what goes wrong on demand ---- */

static _Atomic bool released;

EXPORT void fakenccl_release(void);
void fakenccl_release(void)
{
    atomic_store(&released, true);
}

/* CORRAL_FAKENCCL="name:N,name": true at the Nth time (1 unless given). */
static bool fault(const char *name, uint64_t time)
{
    const char *p = getenv("CORRAL_FAKENCCL");
    size_t length = strlen(name);
    while (p != NULL) {
        if (strncmp(p, name, length) == 0 && (p[length] == ':' || p[length] == ',' || p[length] == '\0')) {
            return time == (p[length] == ':' ? strtoull(p + length + 1, NULL, 10) : 1);
        }
        p = strchr(p, ',');
        p = p != NULL ? p + 1 : NULL;
    }
    return false;
}

static void hang(void)
{
    while (!atomic_load(&released)) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void tell_driver(const char *what, void *stream)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    void (*tell)(void *) = driver != NULL ? (void (*)(void *))dlsym(driver, what) : NULL;
    if (tell != NULL) {
        tell(stream);
    }
    if (driver != NULL) {
        dlclose(driver);
    }
}

/* ---- ids: the name of a socket on which rank 0 listens ---- */

static pthread_mutex_t ids_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    struct nccl_id id;
    int fd;
} ids[IDS_MAX];
static uint32_t id_count;

static socklen_t address_of(const struct nccl_id *id, struct sockaddr_un *a)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    size_t length = strnlen(id->internal, sizeof a->sun_path - 1);
    memcpy(a->sun_path + 1, id->internal, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

EXPORT int ncclGetVersion(int *version);
int ncclGetVersion(int *version)
{
    *version = 22809;
    return NCCL_SUCCESS;
}

EXPORT int ncclGetUniqueId(struct nccl_id *id);
int ncclGetUniqueId(struct nccl_id *id)
{
    uint64_t name[2];
    struct sockaddr_un a;
    if (fault("id-hang", 1)) {
        hang();
    }
    if (getrandom(name, sizeof name, 0) != sizeof name) {
        return NCCL_SYSTEM_ERROR;
    }
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "fakenccl-%016llx%016llx", (unsigned long long)name[0],
             (unsigned long long)name[1]);
    socklen_t bytes = address_of(id, &a);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, bytes) != 0 || listen(fd, 1) != 0) {
        return NCCL_SYSTEM_ERROR;
    }
    pthread_mutex_lock(&ids_lock);
    ids[id_count % IDS_MAX].id = *id;
    ids[id_count++ % IDS_MAX].fd = fd;
    pthread_mutex_unlock(&ids_lock);
    return NCCL_SUCCESS;
}

static int take_listener(const struct nccl_id *id)
{
    int fd = -1;
    pthread_mutex_lock(&ids_lock);
    for (uint32_t i = 0; i < IDS_MAX && i < id_count; i++) {
        if (ids[i].fd > 0 && memcmp(&ids[i].id, id, sizeof *id) == 0) {
            fd = ids[i].fd;
            ids[i].fd = -1;
        }
    }
    pthread_mutex_unlock(&ids_lock);
    return fd;
}

/* ---- the communicator's own thread ---- */

static bool stopped(struct ncclComm *c)
{
    pthread_mutex_lock(&c->lock);
    bool stop = c->stop;
    pthread_mutex_unlock(&c->lock);
    return stop;
}

static bool wait_for(struct ncclComm *c, int fd, short events)
{
    while (!stopped(c)) {
        struct pollfd p = {.fd = fd, .events = events};
        if (poll(&p, 1, 20) > 0) {
            return true;
        }
    }
    return false;
}

static int meet(struct ncclComm *c)
{
    struct sockaddr_un a;
    socklen_t bytes = address_of(&c->id, &a);
    if (c->rank != 0) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&a, bytes) != 0) {
            close(fd);
            return -1;
        }
        return fd;
    }
    int listener = take_listener(&c->id), fd = -1;
    if (listener >= 0 && wait_for(c, listener, POLLIN)) {
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    }
    if (listener >= 0) {
        close(listener);
    }
    return fd;
}

static bool transfer(struct ncclComm *c, const struct op *op)
{
    for (size_t at = 0; at < op->bytes;) {
        if (!wait_for(c, c->fd, op->send ? POLLOUT : POLLIN)) {
            return false;
        }
        ssize_t n = op->send ? send(c->fd, op->memory + at, op->bytes - at, MSG_NOSIGNAL | MSG_DONTWAIT)
                             : recv(c->fd, op->memory + at, op->bytes - at, MSG_DONTWAIT);
        if (n > 0) {
            at += (size_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return false;
        }
    }
    return true;
}

static void set_error(struct ncclComm *c, int error)
{
    pthread_mutex_lock(&c->lock);
    c->error = error;
    pthread_mutex_unlock(&c->lock);
}

static void run_op(struct ncclComm *c, const struct op *op, uint64_t number)
{
    if (fault("die", number)) {
        raise(SIGKILL);
    }
    if (fault("error", number)) {
        set_error(c, NCCL_SYSTEM_ERROR);
    }
    if (fault("stall", number) || fault("error", number)) {
        while (!stopped(c)) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        return;
    }
    if (!transfer(c, op)) {
        set_error(c, NCCL_REMOTE_ERROR);
        return;
    }
    tell_driver("fakecuda_work_done", op->stream);
    pthread_mutex_lock(&c->lock);
    c->done++;
    pthread_mutex_unlock(&c->lock);
}

static void *run(void *arg)
{
    struct ncclComm *c = arg;
    if (fault("init-stall", 1)) {
        while (!stopped(c)) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        return NULL;
    }
    int fd = meet(c);
    pthread_mutex_lock(&c->lock);
    c->fd = fd;
    c->joined = fd >= 0;
    c->error = fd >= 0 ? c->error : NCCL_REMOTE_ERROR;
    uint64_t next = 0;
    while (!c->stop) {
        if (next == c->queued || c->error != NCCL_SUCCESS) {
            pthread_cond_wait(&c->changed, &c->lock);
            continue;
        }
        struct op op = c->op[next++ % OPS_MAX];
        pthread_mutex_unlock(&c->lock);
        run_op(c, &op, next);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* ---- the API ---- */

EXPORT int ncclCommInitRankConfig(nccl_comm *out, int ranks, struct nccl_id id, int rank,
                                  struct nccl_config *config);
int ncclCommInitRankConfig(nccl_comm *out, int ranks, struct nccl_id id, int rank, struct nccl_config *config)
{
    if (ranks != 2 || rank < 0 || rank > 1 || config == NULL || config->magic != NCCL_CONFIG_MAGIC ||
        config->blocking != 0) {
        return INVALID_ARGUMENT;
    }
    if (fault("init-hang", 1)) {
        hang();
    }
    struct ncclComm *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NCCL_SYSTEM_ERROR;
    }
    c->id = id;
    c->rank = rank;
    c->fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    if (pthread_create(&c->thread, NULL, run, c) != 0) {
        free(c);
        return NCCL_SYSTEM_ERROR;
    }
    *out = c;
    return NCCL_IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(nccl_comm c, int *result);
int ncclCommGetAsyncError(nccl_comm c, int *result)
{
    pthread_mutex_lock(&c->lock);
    *result = c->error != NCCL_SUCCESS ? c->error : !c->joined || c->fresh ? NCCL_IN_PROGRESS : NCCL_SUCCESS;
    c->fresh = false;
    pthread_mutex_unlock(&c->lock);
    return NCCL_SUCCESS;
}

EXPORT int ncclCommAbort(nccl_comm c);
int ncclCommAbort(nccl_comm c)
{
    if (fault("abort-hang", 1)) {
        hang();
    }
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    for (uint64_t i = c->done; i < c->queued; i++) {
        tell_driver("fakecuda_work_done", c->op[i % OPS_MAX].stream); /* its kernels end */
    }
    if (c->fd >= 0) {
        close(c->fd);
    }
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
    return NCCL_SUCCESS;
}

static _Thread_local struct op group[GROUP_MAX];
static _Thread_local uint32_t grouped;
static _Atomic uint64_t groups;

EXPORT int ncclGroupStart(void);
int ncclGroupStart(void)
{
    grouped = 0;
    return NCCL_SUCCESS;
}

EXPORT int ncclGroupEnd(void);
int ncclGroupEnd(void)
{
    if (fault("group-hang", atomic_fetch_add(&groups, 1) + 1)) {
        hang();
    }
    for (uint32_t i = 0; i < grouped; i++) {
        struct ncclComm *c = group[i].comm;
        tell_driver("fakecuda_work_begin", group[i].stream);
        pthread_mutex_lock(&c->lock);
        c->op[c->queued++ % OPS_MAX] = group[i];
        c->fresh = true;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->lock);
    }
    grouped = 0;
    return NCCL_IN_PROGRESS;
}

static int add(bool send, char *memory, size_t bytes, int peer, nccl_comm c, corral_cuda_stream stream)
{
    if (grouped == GROUP_MAX || c == NULL || peer != 1 - c->rank) {
        return INVALID_ARGUMENT;
    }
    group[grouped++] =
        (struct op){.comm = c, .send = send, .memory = memory, .bytes = bytes, .stream = stream};
    return NCCL_SUCCESS;
}

EXPORT int ncclSend(const void *memory, size_t count, int type, int peer, nccl_comm comm,
                    corral_cuda_stream stream);
int ncclSend(const void *memory, size_t count, int type, int peer, nccl_comm comm, corral_cuda_stream stream)
{
    return type == NCCL_TYPE_INT8 ? add(true, (char *)(uintptr_t)memory, count, peer, comm, stream)
                                  : INVALID_ARGUMENT;
}

EXPORT int ncclRecv(void *memory, size_t count, int type, int peer, nccl_comm comm,
                    corral_cuda_stream stream);
int ncclRecv(void *memory, size_t count, int type, int peer, nccl_comm comm, corral_cuda_stream stream)
{
    return type == NCCL_TYPE_INT8 ? add(false, memory, count, peer, comm, stream) : INVALID_ARGUMENT;
}

EXPORT const char *ncclGetErrorString(int result);
const char *ncclGetErrorString(int result)
{
    return result == NCCL_REMOTE_ERROR   ? "remote process exited or there was a network error"
           : result == NCCL_SYSTEM_ERROR ? "unhandled system error"
           : result == INVALID_ARGUMENT  ? "invalid argument"
                                         : "no error";
}

EXPORT const char *ncclGetLastError(nccl_comm comm);
const char *ncclGetLastError(nccl_comm comm)
{
    (void)comm;
    return "";
}
