/* Memory of other processes: CUDA IPC, which names the owner's file in /proc, and external memory, which comes as a file. What is mapped here lives on when its owner dies. */
#include "tests/fakecuda/fake.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct ipc {
    pid_t pid;
    int fd, device; /* physical number */
    uint64_t bytes, block;
};
_Static_assert(sizeof(struct ipc) <= sizeof(CUipcMemHandle), "fits");

/* Move the bytes into a file that others can open, at the same addresses. Untouched pages stay untouched. */
static bool make_shareable(struct fake_object *o)
{
    static const char zeroes[4096];
    int fd = memfd_create("fakecuda-ipc", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)o->mapped) != 0) {
        close(fd);
        return false;
    }
    for (size_t at = 0; at < o->mapped; at += sizeof zeroes) {
        size_t n = o->mapped - at < sizeof zeroes ? o->mapped - at : sizeof zeroes;
        const char *page = (const char *)o->memory + at;
        if (memcmp(page, zeroes, n) != 0 && pwrite(fd, page, n, (off_t)at) != (ssize_t)n) {
            close(fd);
            return false;
        }
    }
    if (mmap(o->memory, o->mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        close(fd);
        return false;
    }
    o->fd = fd;
    return true;
}

static CUresult get_handle(CUipcMemHandle *out, CUdeviceptr pointer)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find_range(FAKE_POINTER, pointer);
    if (out == NULL || o == NULL || o->other != NULL || o->block == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (o->fd < 0 && !make_shareable(o)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct ipc h;
    memset(&h, 0, sizeof h);
    h.pid = getpid();
    h.fd = o->fd;
    h.device = (int)fake_device_physical(o->device);
    h.bytes = o->bytes;
    h.block = o->block;
    memset(out, 0, sizeof *out);
    memcpy(out, &h, sizeof h);
    return CUDA_SUCCESS;
}

struct same {
    uint64_t block;
    struct fake_object *found;
};

static void find_opened(struct fake_object *o, void *ctx)
{
    struct same *s = ctx;
    if (o->block == s->block && o->other == o) {
        s->found = o;
    }
}

static CUresult map_file(CUdeviceptr *out, int fd, uint64_t offset, uint64_t bytes, struct fake_object **made)
{
    void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
    struct fake_object *o = m != MAP_FAILED ? fake_add(FAKE_POINTER, (uint64_t)(uintptr_t)m) : NULL;
    if (o == NULL) {
        return CUDA_ERROR_MAP_FAILED;
    }
    o->memory = m;
    o->mapped = bytes;
    o->bytes = bytes;
    *out = o->key;
    *made = o;
    return CUDA_SUCCESS;
}

static CUresult open_handle(CUdeviceptr *out, CUipcMemHandle handle)
{
    FAKE_LOCKED;
    struct ipc h;
    memcpy(&h, &handle, sizeof h);
    struct fake_object *context = fake_current();
    if (out == NULL || h.bytes == 0 || context == NULL || h.pid == getpid()) {
        return context == NULL || h.pid == getpid() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_VALUE;
    }
    struct same again = {.block = h.block};
    fake_each(FAKE_POINTER, find_opened, &again);
    if (again.found != NULL) {
        again.found->refs++;
        *out = again.found->key;
        return CUDA_SUCCESS;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)h.pid, h.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || (uint64_t)st.st_size != h.bytes || !fake_block_share(h.block)) {
        if (fd >= 0) {
            close(fd);
        }
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct fake_object *o;
    CUresult r = map_file(out, fd, 0, h.bytes, &o);
    close(fd);
    if (r != CUDA_SUCCESS) {
        fake_block_unshare(h.block);
        return r;
    }
    o->context = context;
    o->block = h.block;
    o->shared = true;
    o->other = o; /* opened, not allocated: closed, not freed */
    o->device = context->device;
    for (CUdevice d = 0; fake_device_valid(d); d++) {
        o->device = fake_device_physical(d) == (uint32_t)h.device ? d : o->device;
    }
    return CUDA_SUCCESS;
}

static CUresult close_handle(CUdeviceptr pointer)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_POINTER, pointer);
    if (o == NULL || o->other != o) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (--o->refs == 0) {
        fake_release(o);
    }
    return CUDA_SUCCESS;
}

FAKE(cuIpcGetMemHandle, cuIpcGetMemHandle, 4010, (CUipcMemHandle * handle, CUdeviceptr pointer),
     get_handle(handle, pointer))
FAKE(cuIpcOpenMemHandle, cuIpcOpenMemHandle, 4010,
     (CUdeviceptr * pointer, CUipcMemHandle handle, unsigned flags),
     ((void)flags, open_handle(pointer, handle)))
FAKE(cuIpcOpenMemHandle_v2, cuIpcOpenMemHandle, 11000,
     (CUdeviceptr * pointer, CUipcMemHandle handle, unsigned flags),
     ((void)flags, open_handle(pointer, handle)))
FAKE(cuIpcCloseMemHandle, cuIpcCloseMemHandle, 4010, (CUdeviceptr pointer), close_handle(pointer))

/* ---- external memory ---- */
int fakecuda_foreign(int device, uint64_t bytes)
{
    struct stat st;
    uint64_t block;
    int fd = memfd_create("fakecuda-foreign", MFD_CLOEXEC);
    if (fd < 0 || !fake_device_valid(device) || ftruncate(fd, (off_t)bytes) != 0 || fstat(fd, &st) != 0 ||
        !fake_block_take(fake_device_physical(device), bytes, &block)) {
        close(fd);
        return -1;
    }
    fake_block_set_file(block, st.st_ino);
    return fd;
}

static CUresult import(CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *d)
{
    struct stat st;
    if (out == NULL || d == NULL || d->type != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD ||
        fstat(d->handle.fd, &st) != 0 || d->size == 0 || (uint64_t)st.st_size < d->size) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    uint64_t block;
    uint32_t device;
    if (!fake_block_by_file(st.st_ino, &block, &device) || !fake_block_share(block)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct fake_object *o = fake_add(FAKE_EXTERNAL, 0);
    if (o == NULL) {
        fake_block_unshare(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->block = block;
    o->shared = true;
    o->fd = d->handle.fd; /* the driver owns it from here on */
    o->bytes = d->size;
    *out = (CUexternalMemory)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult map_buffer(CUdeviceptr *out, CUexternalMemory memory,
                           const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *d)
{
    FAKE_LOCKED;
    const struct fake_object *e = fake_find(FAKE_EXTERNAL, (uint64_t)(uintptr_t)memory);
    if (out == NULL || d == NULL || e == NULL || d->size == 0 || d->size > e->bytes ||
        d->offset > e->bytes - d->size || d->offset % 4096 != 0 || !fake_block_share(e->block)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *o;
    CUresult r = map_file(out, e->fd, d->offset, d->size, &o);
    if (r != CUDA_SUCCESS) {
        fake_block_unshare(e->block);
        return r;
    }
    o->block = e->block;
    o->shared = true;
    o->context = fake_current();
    return CUDA_SUCCESS;
}

static CUresult map_mipmap(CUmipmappedArray *out, CUexternalMemory memory,
                           const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *d)
{
    FAKE_LOCKED;
    const struct fake_object *e = fake_find(FAKE_EXTERNAL, (uint64_t)(uintptr_t)memory);
    if (out == NULL || d == NULL || e == NULL || d->numLevels == 0 || !fake_block_share(e->block)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *o = fake_add(FAKE_MIPMAP, 0);
    if (o == NULL) {
        fake_block_unshare(e->block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->block = e->block;
    o->shared = true;
    o->context = fake_current();
    *out = (CUmipmappedArray)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult destroy(CUexternalMemory memory)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_EXTERNAL, (uint64_t)(uintptr_t)memory);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_release(o);
    return CUDA_SUCCESS;
}

FAKE(cuImportExternalMemory, cuImportExternalMemory, 10000,
     (CUexternalMemory * memory, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *descriptor),
     import(memory, descriptor))
FAKE(cuExternalMemoryGetMappedBuffer, cuExternalMemoryGetMappedBuffer, 10000,
     (CUdeviceptr * pointer, CUexternalMemory memory, const CUDA_EXTERNAL_MEMORY_BUFFER_DESC *descriptor),
     map_buffer(pointer, memory, descriptor))
FAKE(cuExternalMemoryGetMappedMipmappedArray, cuExternalMemoryGetMappedMipmappedArray, 10000,
     (CUmipmappedArray * mipmap, CUexternalMemory memory,
      const CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC *descriptor),
     map_mipmap(mipmap, memory, descriptor))
FAKE(cuDestroyExternalMemory, cuDestroyExternalMemory, 10000, (CUexternalMemory memory), destroy(memory))
