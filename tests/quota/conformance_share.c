/* Memory that several processes or objects use: charged once, and as long as any of them has it. The owner is another process, in role "rollout"; quota-node --pair connects the two
 * by descriptor 9. It is killed while its memory is in use here: the charge moves to this process's role. */
#include "tests/quota/conformance.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PEER 9
#define SHARED_BYTES (64 * MIB)
#define WAIT_MS_MAX 60000

/* What the owner sends first; with a descriptor when `has_fd`. */
struct offer {
    pid_t pid;
    CUresult result;
    uint64_t bytes;
    CUipcMemHandle handle;
    bool has_fd;
};

static void send_offer(const struct offer *offer, int fd)
{
    struct offer copy = *offer;
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec io = {&copy, sizeof copy};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (offer->has_fd) {
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    check("offer sent", sendmsg(PEER, &m, 0), sizeof copy);
}

static struct offer receive_offer(int *fd)
{
    struct offer offer = {0};
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec io = {&offer, sizeof offer};
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    check("offer received", recvmsg(PEER, &m, 0), sizeof offer);
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *fd = -1;
    if (c != NULL && c->cmsg_type == SCM_RIGHTS) {
        memcpy(fd, CMSG_DATA(c), sizeof *fd);
    }
    return offer;
}

static CUresult create_shareable(struct test *t, uint64_t bytes, CUmemAllocationHandleType type,
                                 CUmemGenericAllocationHandle *handle)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = type,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    return t->cuda.cuMemCreate(handle, bytes, &prop, 0);
}

/* Offers 64 MiB, and dies when it is told to. */
void share_owner(struct test *t, const char *what)
{
    struct offer offer = {.pid = getpid(), .bytes = SHARED_BYTES};
    CUdeviceptr p;
    CUmemGenericAllocationHandle handle;
    int fd = -1;
    char byte;
    if (strcmp(what, "ipc") == 0) {
        check("owner's allocation", t->cuda.cuMemAlloc_v2(&p, SHARED_BYTES), 0);
        offer.result = DRIVER(cuIpcGetMemHandle)(&offer.handle, p);
    } else {
        check("owner's allocation",
              create_shareable(t, SHARED_BYTES, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, &handle), 0);
        offer.result =
            DRIVER(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        offer.has_fd = offer.result == CUDA_SUCCESS;
    }
    send_offer(&offer, fd);
    check("told to die", read(PEER, &byte, 1), 1);
    raise(SIGKILL);
}

/* ---- the importer ---- */
struct importer {
    struct test *t;
    struct offer offer;
    int fd, pidfd;
    uint32_t owner_role;
    uint64_t before; /* of this role */
    enum physical_bound bound;
};

static uint64_t owner_used(const struct importer *i)
{
    return i->t->ledger->device[i->t->device].role[i->owner_role].used;
}

/* Before this process starts the driver: where NVML does not know processes, a context is measured by the device's use, one process at a time. */
void share_await_owner(void)
{
    struct pollfd p = {.fd = PEER, .events = POLLIN};
    check("the owner has made its offer", poll(&p, 1, WAIT_MS_MAX) == 1 && (p.revents & POLLIN) != 0, true);
}

static struct importer meet_owner(struct test *t, const char *what, enum physical_bound bound)
{
    struct importer i = {.t = t, .bound = bound};
    char text[32];
    i.offer = receive_offer(&i.fd);
    if (i.offer.result == CUDA_ERROR_NOT_SUPPORTED || i.offer.result == CUDA_ERROR_NOT_PERMITTED) {
        skip(what, corral_cuda_client_error(&t->cuda, i.offer.result, text));
    }
    check("export", i.offer.result, CUDA_SUCCESS);
    i.owner_role = corral_ledger_find_role(t->ledger, "rollout");
    i.pidfd = (int)syscall(SYS_pidfd_open, i.offer.pid, 0);
    check("the owner is there", i.pidfd >= 0, true);
    i.before = role_of(t)->used;
    check("the owner is charged", owner_used(&i) >= i.offer.bytes, true);
    compare_all(t, PHYSICAL_EQUAL, "before the import");
    return i;
}

/* Not before it is really gone: its descriptors close earlier. */
static void kill_owner(const struct importer *i)
{
    struct pollfd p = {.fd = i->pidfd, .events = POLLIN};
    check("owner told", write(PEER, "k", 1), 1);
    check("the owner has died", poll(&p, 1, WAIT_MS_MAX), 1);
    close(i->pidfd);
}

static bool may_compare_files(pid_t other)
{
    return syscall(SYS_kcmp, (long)getpid(), (long)other, (long)KCMP_VM, 0L, 0L) >= 0;
}

/* Charged to its owner alone while that lives. */
static void check_shared(const struct importer *i, const char *what)
{
    const struct corral_ledger_role *mine = role_of(i->t);
    if (mine->used != i->before && i->fd >= 0 && !may_compare_files(i->offer.pid)) {
        check("unrecognised memory is charged here too", mine->used >= i->before + i->offer.bytes, true);
        skip(what, "kcmp is not permitted here, so the owner's descriptor is not recognised: counted twice, "
                   "which is safe");
    }
    check("imported: this role pays nothing", (long long)mine->used, (long long)i->before);
    check("imported: the owner pays", owner_used(i) >= i->offer.bytes, true);
    compare_all(i->t, PHYSICAL_EQUAL, "imported");
}

static void check_moved(const struct importer *i)
{
    kill_owner(i);
    be_denied(i->t); /* whoever needs the room finds the death out */
    check("owner dead: nothing of it is left", (long long)owner_used(i), 0);
    check("owner dead: what is used here is charged here", (long long)role_of(i->t)->used,
          (long long)(i->before + i->offer.bytes));
    compare_all(i->t, i->bound, "owner dead");
}

static void check_gone(const struct importer *i)
{
    check("let go of: not charged any more", (long long)role_of(i->t)->used, (long long)i->before);
    compare_all(i->t, PHYSICAL_EQUAL, "let go of");
}

void share_ipc(struct test *t)
{
    /* The real driver promises nothing about memory whose exporter has gone; the charge stays as long as it may be there. */
    struct importer i = meet_owner(t, "ipc", PHYSICAL_AT_MOST);
    CUdeviceptr p;
    check("cuIpcOpenMemHandle",
          DRIVER(cuIpcOpenMemHandle_v2)(&p, i.offer.handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS), 0);
    check_shared(&i, "ipc");
    check_moved(&i);
    check("cuIpcCloseMemHandle", DRIVER(cuIpcCloseMemHandle)(p), 0);
    check_gone(&i);
}

void share_descriptor(struct test *t)
{
    struct importer i = meet_owner(t, "shareable", PHYSICAL_EQUAL);
    CUmemGenericAllocationHandle handle;
    CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr p;
    check("cuMemImportFromShareableHandle",
          DRIVER(cuMemImportFromShareableHandle)(&handle, (void *)(intptr_t)i.fd,
                                                 CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
          0);
    close(i.fd);
    check("cuMemAddressReserve", DRIVER(cuMemAddressReserve)(&p, i.offer.bytes, 0, 0, 0), 0);
    check("cuMemMap", DRIVER(cuMemMap)(p, i.offer.bytes, 0, handle, 0), 0);
    check("cuMemSetAccess", DRIVER(cuMemSetAccess)(p, i.offer.bytes, &access, 1), 0);
    check_shared(&i, "shareable");
    check_moved(&i);
    check("cuMemRelease", t->cuda.cuMemRelease(handle), 0);
    check("still mapped: still charged", (long long)role_of(t)->used, (long long)(i.before + i.offer.bytes));
    compare_all(t, PHYSICAL_EQUAL, "still mapped");
    check("cuMemUnmap", DRIVER(cuMemUnmap)(p, i.offer.bytes), 0);
    check("cuMemAddressFree", DRIVER(cuMemAddressFree)(p, i.offer.bytes), 0);
    check_gone(&i);
}

void share_external(struct test *t)
{
    struct importer i = meet_owner(t, "external", PHYSICAL_EQUAL);
    CUDA_EXTERNAL_MEMORY_HANDLE_DESC d = {
        .type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .handle.fd = i.fd, .size = i.offer.bytes};
    CUDA_EXTERNAL_MEMORY_BUFFER_DESC b = {.size = i.offer.bytes};
    CUexternalMemory memory;
    CUdeviceptr p;
    char text[32], why[128];
    CUresult r = DRIVER(cuImportExternalMemory)(&memory, &d); /* the driver owns the descriptor then */
    if (r != CUDA_SUCCESS) {
        check("not imported: not charged", (long long)role_of(t)->used, (long long)i.before);
        compare_all(t, PHYSICAL_EQUAL, "not imported");
        snprintf(why, sizeof why,
                 "this driver does not take cuMemCreate's descriptors as external memory (%s)",
                 corral_cuda_client_error(&t->cuda, r, text));
        skip("external", why);
    }
    check("cuExternalMemoryGetMappedBuffer", DRIVER(cuExternalMemoryGetMappedBuffer)(&p, memory, &b), 0);
    check_shared(&i, "external");
    check_moved(&i);
    check("cuDestroyExternalMemory", DRIVER(cuDestroyExternalMemory)(memory), 0);
    check("still mapped: still charged", (long long)role_of(t)->used, (long long)(i.before + i.offer.bytes));
    check("free of the mapped buffer", t->cuda.cuMemFree_v2(p), 0);
    check_gone(&i);
}

/* ---- multicast ---- */
struct multicast {
    CUmemGenericAllocationHandle object, memory;
    uint64_t bytes;
};

static void need_multicast(void)
{
    int supported = 0;
    if (DRIVER(cuDeviceGetAttribute)(&supported, CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED, 0) !=
            CUDA_SUCCESS ||
        supported == 0) {
        skip("multicast", "the device has no multicast objects");
    }
}

/* An object for all devices (two at most), with memory of device 0 that nothing but the object keeps. */
static struct multicast bind_memory(struct test *t, const char *when)
{
    int count = 0;
    char text[32], why[128];
    check("devices", t->cuda.cuDeviceGetCount(&count), 0);
    CUmulticastObjectProp prop = {.numDevices = count > 1 ? 2 : 1, .size = SHARED_BYTES};
    struct multicast m = {0};
    size_t piece = PAGE;
    check("granularity", DRIVER(cuMulticastGetGranularity)(&piece, &prop, CU_MULTICAST_GRANULARITY_MINIMUM),
          0);
    m.bytes = prop.size = (SHARED_BYTES + piece - 1) / piece * piece;
    uint64_t before = role_of(t)->used;
    CUresult r = DRIVER(cuMulticastCreate)(&m.object, &prop);
    for (unsigned d = 0; r == CUDA_SUCCESS && d < prop.numDevices; d++) {
        r = DRIVER(cuMulticastAddDevice)(m.object, (CUdevice)d);
    }
    if (r != CUDA_SUCCESS) {
        snprintf(why, sizeof why, "the driver makes no object for %u of the devices here (%s)",
                 prop.numDevices, corral_cuda_client_error(&t->cuda, r, text));
        skip("multicast", why);
    }
    check("a multicast object has no memory", (long long)role_of(t)->used, (long long)before);
    check("memory", create_shareable(t, m.bytes, CU_MEM_HANDLE_TYPE_NONE, &m.memory), 0);
    r = DRIVER(cuMulticastBindMem)(m.object, 0, m.memory, 0, m.bytes, 0);
    check("bound", r, CUDA_SUCCESS);
    check("memory's handle released", t->cuda.cuMemRelease(m.memory), 0);
    check("bound memory stays charged", (long long)role_of(t)->used, (long long)(before + m.bytes));
    compare(t, PHYSICAL_EQUAL, when);
    return m;
}

void share_multicast(struct test *t)
{
    need_multicast();
    uint64_t before = role_of(t)->used;
    struct multicast m = bind_memory(t, "bound to a multicast object");
    check("unbound", DRIVER(cuMulticastUnbind)(m.object, 0, 0, m.bytes), 0);
    check("unbound memory is not charged", (long long)role_of(t)->used, (long long)before);
    compare(t, PHYSICAL_EQUAL, "unbound");
    check("object released", t->cuda.cuMemRelease(m.object), 0);

    m = bind_memory(t, "bound to another multicast object");
    check("object released with memory", t->cuda.cuMemRelease(m.object), 0);
    check("memory goes with its object", (long long)role_of(t)->used, (long long)before);
    compare(t, PHYSICAL_EQUAL, "the object is gone");
}
