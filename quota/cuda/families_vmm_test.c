/* Virtual memory management, IPC and external memory: what lives as long as the last of several references. */
#include "quota/cuda/tests/families.h"
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static CUmemGenericAllocationHandle create(CUdevice device, size_t bytes)
{
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
    EXPECT(CU(cuMemCreate)(&handle, bytes, &prop, 0) == CUDA_SUCCESS);
    return handle;
}

static CUdeviceptr map(CUmemGenericAllocationHandle handle, size_t bytes)
{
    CUdeviceptr p;
    EXPECT(CU(cuMemAddressReserve)(&p, bytes, 0, 0, 0) == CUDA_SUCCESS);
    EXPECT(CU(cuMemMap)(p, bytes, 0, handle, 0) == CUDA_SUCCESS);
    return p;
}

static void charges_the_device_it_lives_on(void)
{
    family_start(0);
    CUmemGenericAllocationHandle handle = create(1, 4 * MIB);
    EXPECT_BYTES(family_kind(1, CORRAL_KIND_VMM), 4 * MIB);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(1), 0);
}

static void release_before_unmap_stays_charged(void)
{
    family_start(0);
    CUmemGenericAllocationHandle handle = create(0, 4 * MIB);
    CUdeviceptr p = map(handle, 4 * MIB);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 4 * MIB);
    EXPECT(CU(cuMemUnmap)(p, 4 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
    EXPECT_BYTES(family_physical(0), CONTEXT);
}

static void unmap_before_release_stays_charged(void)
{
    family_start(0);
    CUmemGenericAllocationHandle handle = create(0, 4 * MIB);
    CUdeviceptr p = map(handle, 4 * MIB);
    CUdeviceptr q = map(handle, 4 * MIB);
    EXPECT(CU(cuMemUnmap)(p, 4 * MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuMemUnmap)(q, 4 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 4 * MIB);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
}

static void a_retained_handle_keeps_it_charged(void)
{
    CUmemGenericAllocationHandle again;
    family_start(0);
    CUmemGenericAllocationHandle handle = create(0, 4 * MIB);
    CUdeviceptr p = map(handle, 4 * MIB);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT(CU(cuMemRetainAllocationHandle)(&again, (void *)(uintptr_t)(p + MIB)) == CUDA_SUCCESS);
    EXPECT(CU(cuMemUnmap)(p, 4 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 4 * MIB);
    EXPECT(CU(cuMemRelease)(again) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
    EXPECT(CU(cuMemRelease)(again) != CUDA_SUCCESS);
}

static void a_failed_release_changes_nothing(void)
{
    family_start(0);
    CUmemGenericAllocationHandle handle = create(0, 4 * MIB);
    EXPECT((int)CU(cuMemRelease)(handle) == 999);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 4 * MIB);
    CUdeviceptr p = map(handle, 4 * MIB);
    EXPECT((int)CU(cuMemUnmap)(p, 4 * MIB) == 999);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 4 * MIB);
    EXPECT(CU(cuMemUnmap)(p, 4 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 0);
}

static void a_denied_creation_does_not_reach_the_driver(void)
{
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    family_start(0);
    EXPECT(CU(cuMemCreate)(&handle, CEILING, &prop, 0) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_calls("cuMemCreate"), 0);
    EXPECT_BYTES(family_denials(), 1);
}

static void a_growing_segment_is_charged_piece_by_piece(void)
{
    CUdeviceptr base;
    family_start(0);
    EXPECT(CU(cuMemAddressReserve)(&base, 64 * MIB, 0, 0, 0) == CUDA_SUCCESS);
    for (unsigned i = 0; i < 16; i++) {
        CUmemGenericAllocationHandle handle = create(0, 2 * MIB);
        EXPECT(CU(cuMemMap)(base + i * 2 * MIB, 2 * MIB, 0, handle, 0) == CUDA_SUCCESS);
        EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    }
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 32 * MIB);
    for (unsigned i = 8; i < 16; i++) {
        EXPECT(CU(cuMemUnmap)(base + i * 2 * MIB, 2 * MIB) == CUDA_SUCCESS);
    }
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_VMM), 16 * MIB);
    EXPECT_BYTES(family_physical(0), CONTEXT + 16 * MIB);
}

/* ---- between processes ---- */
static void send_bytes(int to, const void *data, size_t bytes)
{
    EXPECT(write(to, data, bytes) == (ssize_t)bytes);
}

static void receive_bytes(int from, void *data, size_t bytes)
{
    EXPECT(read(from, data, bytes) == (ssize_t)bytes);
}

static void send_fd(int to, int fd)
{
    char byte = 'f', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec io = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    EXPECT(sendmsg(to, &m, 0) == 1);
}

static int receive_fd(int from)
{
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec io = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    EXPECT(recvmsg(from, &m, 0) == 1);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    EXPECT(c != NULL && c->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

/* The owner's side: it talks over descriptor 9. */
#define PEER 9
static void ipc_owner(void)
{
    CUdeviceptr p;
    CUipcMemHandle handle;
    char byte;
    family_start(0);
    EXPECT(CU(cuMemAlloc_v2)(&p, 8 * MIB) == CUDA_SUCCESS);
    EXPECT(CU(cuIpcGetMemHandle)(&handle, p) == CUDA_SUCCESS);
    send_bytes(PEER, &handle, sizeof(handle));
    receive_bytes(PEER, &byte, 1);
    if (byte == 'k') {
        raise(SIGKILL);
    }
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    send_bytes(PEER, "f", 1);
    receive_bytes(PEER, &byte, 1);
}

static pid_t start_owner(const char *name, int *peer)
{
    int pair[2];
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    EXPECT(dup2(pair[1], PEER) == PEER);
    close(pair[1]);
    pid_t pid = family_spawn(name, NULL);
    close(PEER);
    *peer = pair[0];
    return pid;
}

static CUdeviceptr open_handle(int peer)
{
    CUipcMemHandle handle;
    CUdeviceptr p;
    receive_bytes(peer, &handle, sizeof(handle));
    EXPECT(CU(cuIpcOpenMemHandle_v2)(&p, handle, 1) == CUDA_SUCCESS);
    return p;
}

static void shared_memory_is_charged_to_its_owner_only(void)
{
    int peer;
    char byte;
    pid_t owner = start_owner("ipc_owner", &peer);
    family_start(0);
    CUdeviceptr p = open_handle(peer);
    EXPECT_BYTES(family_used(0), 2 * CONTEXT + 8 * MIB);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_EXTERNAL), 0);
    send_bytes(peer, "f", 1);
    receive_bytes(peer, &byte, 1);
    /* The owner has freed it, and it is still mapped here. */
    EXPECT_BYTES(family_used(0), 2 * CONTEXT + 8 * MIB);
    EXPECT(CU(cuIpcCloseMemHandle)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), 2 * CONTEXT);
    send_bytes(peer, "x", 1);
    EXPECT_BYTES((uint64_t)family_wait(owner), 0);
}

static void the_owners_death_moves_the_charge_to_the_importer(void)
{
    int peer;
    CUdeviceptr other;
    pid_t owner = start_owner("ipc_owner", &peer);
    family_start(0);
    CUdeviceptr p = open_handle(peer);
    send_bytes(peer, "k", 1);
    EXPECT_BYTES((uint64_t)family_wait(owner), 1000 + SIGKILL);
    /* Whoever needs the room finds the death out. */
    EXPECT(CU(cuMemAlloc_v2)(&other, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_used(0), CONTEXT + 8 * MIB);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_DEVICE), 8 * MIB);
    EXPECT_BYTES(family_physical(0), CONTEXT + 8 * MIB);
    EXPECT(CU(cuIpcCloseMemHandle)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void opened_twice_is_closed_twice(void)
{
    int peer;
    CUipcMemHandle handle;
    CUdeviceptr p, q;
    pid_t owner = start_owner("ipc_owner", &peer);
    family_start(0);
    receive_bytes(peer, &handle, sizeof(handle));
    EXPECT(CU(cuIpcOpenMemHandle_v2)(&p, handle, 1) == CUDA_SUCCESS);
    CUresult again = CU(cuIpcOpenMemHandle_v2)(&q, handle, 1);
    send_bytes(peer, "k", 1);
    EXPECT_BYTES((uint64_t)family_wait(owner), 1000 + SIGKILL);
    EXPECT(CU(cuIpcCloseMemHandle)(p) == CUDA_SUCCESS);
    if (again == CUDA_SUCCESS) {
        EXPECT(CU(cuIpcCloseMemHandle)(q) == CUDA_SUCCESS);
    }
    CUdeviceptr other;
    EXPECT(CU(cuMemAlloc_v2)(&other, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void vmm_owner(void)
{
    int fd;
    char byte;
    family_start(0);
    CUmemGenericAllocationHandle handle = create(0, 6 * MIB);
    EXPECT(CU(cuMemExportToShareableHandle)(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0) ==
           CUDA_SUCCESS);
    send_fd(PEER, fd);
    close(fd);
    receive_bytes(PEER, &byte, 1);
    raise(SIGKILL);
}

static void an_exported_allocation_is_recognised_by_its_descriptor(void)
{
    int peer;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr other;
    pid_t owner = start_owner("vmm_owner", &peer);
    family_start(0);
    int fd = receive_fd(peer);
    EXPECT(CU(cuMemImportFromShareableHandle)(&handle, (void *)(intptr_t)fd,
                                              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == CUDA_SUCCESS);
    close(fd);
    CUdeviceptr p = map(handle, 6 * MIB);
    EXPECT_BYTES(family_used(0), 2 * CONTEXT + 6 * MIB);
    send_bytes(peer, "k", 1);
    EXPECT_BYTES((uint64_t)family_wait(owner), 1000 + SIGKILL);
    EXPECT(CU(cuMemAlloc_v2)(&other, CEILING) == CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_BYTES(family_used(0), CONTEXT + 6 * MIB);
    EXPECT(CU(cuMemRelease)(handle) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT + 6 * MIB);
    EXPECT(CU(cuMemUnmap)(p, 6 * MIB) == CUDA_SUCCESS);
    EXPECT_BYTES(family_used(0), CONTEXT);
}

static void external_memory_is_charged_until_the_last_of_it_goes(void)
{
    CUexternalMemory memory;
    CUdeviceptr p;
    family_start(0);
    int fd = ((int (*)(int, uint64_t))family_symbol("fakecuda_foreign"))(0, 4 * MIB);
    EXPECT(fd >= 0);
    CUDA_EXTERNAL_MEMORY_HANDLE_DESC d = {
        .type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .handle.fd = fd, .size = 4 * MIB};
    CUDA_EXTERNAL_MEMORY_BUFFER_DESC b = {.size = 4 * MIB};
    EXPECT(CU(cuImportExternalMemory)(&memory, &d) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_EXTERNAL), 4 * MIB);
    EXPECT(CU(cuExternalMemoryGetMappedBuffer)(&p, memory, &b) == CUDA_SUCCESS);
    EXPECT(CU(cuDestroyExternalMemory)(memory) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_EXTERNAL), 4 * MIB);
    EXPECT(CU(cuMemFree_v2)(p) == CUDA_SUCCESS);
    EXPECT_BYTES(family_kind(0, CORRAL_KIND_EXTERNAL), 0);
}

#define CASE(name)                     \
    {                                  \
#name, NULL, name, false, NULL \
    }
static const struct family_case cases[] = {
    CASE(charges_the_device_it_lives_on),
    CASE(release_before_unmap_stays_charged),
    CASE(unmap_before_release_stays_charged),
    CASE(a_retained_handle_keeps_it_charged),
    {"a_failed_release_changes_nothing", "cuMemRelease:1:999,cuMemUnmap:1:999",
     a_failed_release_changes_nothing, false, NULL},
    CASE(a_denied_creation_does_not_reach_the_driver),
    CASE(a_growing_segment_is_charged_piece_by_piece),
    CASE(shared_memory_is_charged_to_its_owner_only),
    CASE(the_owners_death_moves_the_charge_to_the_importer),
    CASE(opened_twice_is_closed_twice),
    CASE(an_exported_allocation_is_recognised_by_its_descriptor),
    CASE(external_memory_is_charged_until_the_last_of_it_goes),
    {"ipc_owner", NULL, ipc_owner, true, NULL}, /* parts of others */
    {"vmm_owner", NULL, vmm_owner, true, NULL},
};

int main(int argc, char **argv)
{
    return family_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]) - (argc > 1 ? 0 : 2));
}
