/* Virtual memory: reserved addresses, handles, mappings; multicast objects. A handle's memory is freed with its last reference and last mapping. */
#include "tests/fakecuda/fake.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct handle {
    CUmemAllocationProp prop;
    bool multicast;
    unsigned devices, devices_max;
    struct fake_object *bound; /* one memory handle at a time is enough here */
};

static struct handle *handle_of(const struct fake_object *o)
{
    return o->data;
}

static CUresult reserve(CUdeviceptr *out, size_t bytes, size_t alignment)
{
    if (out == NULL || bytes == 0 || bytes % FAKE_PAGE != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    uint64_t align = alignment > FAKE_PAGE ? alignment : FAKE_PAGE;
    /* More than asked for, so that an aligned part is inside; the rest goes back. */
    char *p = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    char *at =
        (char *)(uintptr_t)fake_round((uint64_t)(uintptr_t)p, align); // NOLINT: an address computed from p
    if (at > p) {
        munmap(p, (size_t)(at - p));
    }
    munmap(at + bytes, align - (size_t)(at - p));
    struct fake_object *o = fake_add(FAKE_RANGE, (uint64_t)(uintptr_t)at);
    if (o == NULL) {
        munmap(at, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->memory = at;
    o->mapped = bytes;
    *out = o->key;
    return CUDA_SUCCESS;
}

static CUresult unreserve(CUdeviceptr pointer, size_t bytes)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_find(FAKE_RANGE, pointer);
    if (o == NULL || o->mapped != bytes || o->maps > 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_release(o);
    return CUDA_SUCCESS;
}

/* The real driver's descriptors are of a device node, not of a file that is the memory: in a folder on a disk, ours are not told by their inode either. */
static int shareable_file(void)
{
    const char *folder = getenv("CORRAL_FAKECUDA_EXPORTS");
    if (folder == NULL) {
        return memfd_create("fakecuda", MFD_CLOEXEC);
    }
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/export-XXXXXX", folder) >= sizeof path) {
        return -1;
    }
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) {
        unlink(path);
    }
    return fd;
}

/* A file for what may be shared, plain shared memory otherwise (a file descriptor for each would be too many). */
static bool back(struct fake_object *o, uint64_t bytes, bool shareable)
{
    if (!shareable) {
        void *p =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        o->memory = p == MAP_FAILED ? NULL : p;
        o->mapped = p == MAP_FAILED ? 0 : bytes;
        return p != MAP_FAILED;
    }
    o->fd = shareable_file();
    return o->fd >= 0 && ftruncate(o->fd, (off_t)bytes) == 0;
}

static struct fake_object *new_handle(uint64_t *next_key)
{
    static uint64_t next = 1;
    struct fake_object *o = fake_add(FAKE_HANDLE, next);
    struct handle *h = calloc(1, sizeof *h);
    if (o == NULL || h == NULL) {
        free(h);
        if (o != NULL) {
            fake_remove(o);
        }
        return NULL;
    }
    o->data = h;
    *next_key = next++;
    return o;
}

static CUresult create(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *prop)
{
    if (out == NULL || prop == NULL || bytes == 0 || bytes % FAKE_PAGE != 0 ||
        prop->type != CU_MEM_ALLOCATION_TYPE_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool on_device = prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    if (on_device && !fake_device_valid(prop->location.id)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    FAKE_LOCKED;
    uint64_t key;
    struct fake_object *o = new_handle(&key);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    handle_of(o)->prop = *prop;
    o->device = on_device ? prop->location.id : -1;
    bool shareable = ((unsigned)prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0;
    if ((on_device && !fake_take(o, bytes)) || !back(o, bytes, shareable)) {
        fake_release(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = bytes;
    struct stat st;
    if (o->fd >= 0 && o->block != 0 && fstat(o->fd, &st) == 0) {
        fake_block_set_file(o->block, st.st_ino);
    }
    *out = key;
    return CUDA_SUCCESS;
}

static void let_go(struct fake_object *o)
{
    if (o->refs == 0 && o->maps == 0) {
        struct fake_object *bound = handle_of(o)->bound;
        if (bound != NULL) {
            bound->maps--;
            let_go(bound);
        }
        fake_release(o);
    }
}

static struct fake_object *live_handle(CUmemGenericAllocationHandle handle)
{
    struct fake_object *o = fake_find(FAKE_HANDLE, handle);
    return o != NULL && o->refs > 0 ? o : NULL;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
    FAKE_LOCKED;
    struct fake_object *o = live_handle(handle);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    o->refs--;
    let_go(o);
    return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle)
{
    FAKE_LOCKED;
    struct fake_object *o = live_handle(handle), *range = fake_find_range(FAKE_RANGE, pointer);
    if (o == NULL || range == NULL || bytes == 0 || bytes % FAKE_PAGE != 0 || offset % FAKE_PAGE != 0 ||
        bytes > o->bytes || offset > o->bytes - bytes || pointer - range->key > range->mapped - bytes ||
        fake_find_range(FAKE_MAPPING, pointer) != NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *m = fake_add(FAKE_MAPPING, pointer);
    if (m == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    void *at = (void *)(uintptr_t)pointer, *p; // NOLINT: inside the reserved range
    if (o->fd >= 0) {
        p = mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, o->fd, (off_t)offset);
    } else {
        /* An old size of 0 duplicates a shared mapping. */
        p = mremap((char *)o->memory + offset, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
        p = p != MAP_FAILED && mprotect(p, bytes, PROT_NONE) != 0 ? MAP_FAILED : p;
    }
    if (p == MAP_FAILED) {
        fake_remove(m);
        return CUDA_ERROR_MAP_FAILED;
    }
    m->memory = at;
    m->mapped = bytes;
    m->bytes = bytes;
    m->device = o->device;
    m->other = o;
    o->maps++;
    range->maps++;
    return CUDA_SUCCESS;
}

static CUresult unmap(CUdeviceptr pointer, size_t bytes)
{
    FAKE_LOCKED;
    /* Whole mappings, one or several side by side. */
    uint64_t seen = 0;
    while (seen < bytes) {
        const struct fake_object *m = fake_find(FAKE_MAPPING, pointer + seen);
        if (m == NULL || m->bytes > bytes - seen) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        seen += m->bytes;
    }
    for (seen = 0; seen < bytes;) {
        struct fake_object *m = fake_find(FAKE_MAPPING, pointer + seen), *o = m->other;
        /* Back to addresses without memory. */
        mmap(m->memory, m->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        fake_find_range(FAKE_RANGE, pointer + seen)->maps--;
        seen += m->bytes;
        fake_remove(m);
        o->maps--;
        let_go(o);
    }
    return CUDA_SUCCESS;
}

static CUresult set_access(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    FAKE_LOCKED;
    if (access == NULL || count == 0 || fake_find_range(FAKE_MAPPING, pointer) == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int protection = access[0].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_READ | PROT_WRITE
                     : access[0].flags == CU_MEM_ACCESS_FLAGS_PROT_READ    ? PROT_READ
                                                                           : PROT_NONE;
    return mprotect((void *)(uintptr_t)pointer, bytes, protection) == 0 ? CUDA_SUCCESS // NOLINT: mapped above
                                                                        : CUDA_ERROR_INVALID_VALUE;
}

static CUresult get_access(unsigned long long *flags, CUdeviceptr pointer)
{
    FAKE_LOCKED;
    if (flags == NULL || fake_find_range(FAKE_MAPPING, pointer) == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return CUDA_SUCCESS;
}

static CUresult export_handle(void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type)
{
    FAKE_LOCKED;
    const struct fake_object *o = live_handle(handle);
    if (out == NULL || o == NULL || o->fd < 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    int fd = fcntl(o->fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *(int *)out = fd;
    return CUDA_SUCCESS;
}

static CUresult import_handle(CUmemGenericAllocationHandle *out, void *os_handle,
                              CUmemAllocationHandleType type)
{
    int fd = (int)(intptr_t)os_handle;
    struct stat st;
    if (out == NULL || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || fstat(fd, &st) != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    uint64_t block, key;
    uint32_t device;
    if (!fake_block_by_file(st.st_ino, &block, &device) || !fake_block_share(block)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct fake_object *o = new_handle(&key);
    int copy = o != NULL ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (copy < 0) {
        fake_block_unshare(block);
        if (o != NULL) {
            fake_remove(o);
        }
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->block = block;
    o->shared = true;
    o->fd = copy;
    o->bytes = (uint64_t)st.st_size;
    for (CUdevice d = 0; fake_device_valid(d); d++) {
        o->device = fake_device_physical(d) == device ? d : o->device;
    }
    handle_of(o)->prop =
        (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                              .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                              .location = {CU_MEM_LOCATION_TYPE_DEVICE, o->device}};
    *out = key;
    return CUDA_SUCCESS;
}

static CUresult granularity(size_t *out)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = FAKE_PAGE;
    return CUDA_SUCCESS;
}

static CUresult properties(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    FAKE_LOCKED;
    const struct fake_object *o = live_handle(handle);
    if (prop == NULL || o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *prop = handle_of(o)->prop;
    return CUDA_SUCCESS;
}

static CUresult retain(CUmemGenericAllocationHandle *out, void *address)
{
    FAKE_LOCKED;
    struct fake_object *m = fake_find_range(FAKE_MAPPING, (uint64_t)(uintptr_t)address);
    if (out == NULL || m == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    m->other->refs++;
    *out = m->other->key;
    return CUDA_SUCCESS;
}

FAKE(cuMemAddressReserve, cuMemAddressReserve, 10020,
     (CUdeviceptr * pointer, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long flags),
     ((void)hint, (void)flags, reserve(pointer, bytes, alignment)))
FAKE(cuMemAddressFree, cuMemAddressFree, 10020, (CUdeviceptr pointer, size_t bytes),
     unreserve(pointer, bytes))
FAKE(cuMemCreate, cuMemCreate, 10020,
     (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp *prop,
      unsigned long long flags),
     ((void)flags, create(handle, bytes, prop)))
FAKE(cuMemRelease, cuMemRelease, 10020, (CUmemGenericAllocationHandle handle), release(handle))
FAKE(cuMemMap, cuMemMap, 10020,
     (CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
      unsigned long long flags),
     ((void)flags, map(pointer, bytes, offset, handle)))
FAKE(cuMemUnmap, cuMemUnmap, 10020, (CUdeviceptr pointer, size_t bytes), unmap(pointer, bytes))
FAKE(cuMemSetAccess, cuMemSetAccess, 10020,
     (CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc *access, size_t count),
     set_access(pointer, bytes, access, count))
FAKE(cuMemGetAccess, cuMemGetAccess, 10020,
     (unsigned long long *flags, const CUmemLocation *location, CUdeviceptr pointer),
     ((void)location, get_access(flags, pointer)))
FAKE(cuMemExportToShareableHandle, cuMemExportToShareableHandle, 10020,
     (void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
      unsigned long long flags),
     ((void)flags, export_handle(out, handle, type)))
FAKE(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle, 10020,
     (CUmemGenericAllocationHandle * handle, void *os_handle, CUmemAllocationHandleType type),
     import_handle(handle, os_handle, type))
FAKE(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity, 10020,
     (size_t * out, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option),
     ((void)prop, (void)option, granularity(out)))
FAKE(cuMemGetAllocationPropertiesFromHandle, cuMemGetAllocationPropertiesFromHandle, 10020,
     (CUmemAllocationProp * prop, CUmemGenericAllocationHandle handle), properties(prop, handle))
FAKE(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle, 11000,
     (CUmemGenericAllocationHandle * handle, void *address), retain(handle, address))
FAKE(cuMemMapArrayAsync, cuMemMapArrayAsync, 11010, (CUarrayMapInfo * list, unsigned count, CUstream stream),
     ((void)list, (void)count, (void)stream, CUDA_ERROR_NOT_SUPPORTED))
FAKE_PER_THREAD(cuMemMapArrayAsync_ptsz, cuMemMapArrayAsync, 11010,
                (CUarrayMapInfo * list, unsigned count, CUstream stream),
                ((void)list, (void)count, (void)stream, CUDA_ERROR_NOT_SUPPORTED))

/* ---- multicast: an object takes no memory of its own; what is bound to it stays ---- */
static CUresult multicast_create(CUmemGenericAllocationHandle *out, const CUmulticastObjectProp *prop)
{
    if (out == NULL || prop == NULL || prop->numDevices == 0 || prop->size == 0 ||
        prop->size % FAKE_PAGE != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    uint64_t key;
    struct fake_object *o = new_handle(&key);
    if (o == NULL || !back(o, prop->size, false)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = prop->size;
    o->device = -1;
    handle_of(o)->multicast = true;
    handle_of(o)->devices_max = prop->numDevices;
    *out = key;
    return CUDA_SUCCESS;
}

static struct fake_object *multicast(CUmemGenericAllocationHandle handle)
{
    struct fake_object *o = live_handle(handle);
    return o != NULL && handle_of(o)->multicast ? o : NULL;
}

static CUresult add_device(CUmemGenericAllocationHandle handle, CUdevice device)
{
    FAKE_LOCKED;
    struct fake_object *o = multicast(handle);
    if (o == NULL || !fake_device_valid(device) || handle_of(o)->devices == handle_of(o)->devices_max) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    handle_of(o)->devices++;
    return CUDA_SUCCESS;
}

static CUresult bind(CUmemGenericAllocationHandle handle, struct fake_object *memory, size_t bytes)
{
    struct fake_object *o = multicast(handle);
    if (o == NULL || memory == NULL || handle_of(memory)->multicast || bytes > memory->bytes ||
        handle_of(o)->devices < handle_of(o)->devices_max || handle_of(o)->bound != NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    handle_of(o)->bound = memory;
    memory->maps++;
    return CUDA_SUCCESS;
}

static CUresult bind_handle(CUmemGenericAllocationHandle handle, CUmemGenericAllocationHandle memory,
                            size_t bytes)
{
    FAKE_LOCKED;
    return bind(handle, live_handle(memory), bytes);
}

static CUresult bind_address(CUmemGenericAllocationHandle handle, CUdeviceptr memory, size_t bytes)
{
    FAKE_LOCKED;
    struct fake_object *m = fake_find_range(FAKE_MAPPING, memory);
    return bind(handle, m != NULL ? m->other : NULL, bytes);
}

static CUresult unbind(CUmemGenericAllocationHandle handle)
{
    FAKE_LOCKED;
    struct fake_object *o = multicast(handle);
    if (o == NULL || handle_of(o)->bound == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *memory = handle_of(o)->bound;
    handle_of(o)->bound = NULL;
    memory->maps--;
    let_go(memory);
    return CUDA_SUCCESS;
}

#define BIND_MEM \
    CUmemGenericAllocationHandle memory, size_t memory_offset, size_t bytes, unsigned long long flags
FAKE(cuMulticastCreate, cuMulticastCreate, 12010,
     (CUmemGenericAllocationHandle * handle, const CUmulticastObjectProp *prop),
     multicast_create(handle, prop))
FAKE(cuMulticastAddDevice, cuMulticastAddDevice, 12010,
     (CUmemGenericAllocationHandle handle, CUdevice device), add_device(handle, device))
FAKE(cuMulticastBindMem, cuMulticastBindMem, 12010,
     (CUmemGenericAllocationHandle handle, size_t offset, BIND_MEM),
     ((void)offset, (void)memory_offset, (void)flags, bind_handle(handle, memory, bytes)))
FAKE(cuMulticastBindMem_v2, cuMulticastBindMem, 13010,
     (CUmemGenericAllocationHandle handle, CUdevice device, size_t offset, BIND_MEM),
     ((void)device, (void)offset, (void)memory_offset, (void)flags, bind_handle(handle, memory, bytes)))
FAKE(cuMulticastBindAddr, cuMulticastBindAddr, 12010,
     (CUmemGenericAllocationHandle handle, size_t offset, CUdeviceptr memory, size_t bytes,
      unsigned long long flags),
     ((void)offset, (void)flags, bind_address(handle, memory, bytes)))
FAKE(cuMulticastBindAddr_v2, cuMulticastBindAddr, 13010,
     (CUmemGenericAllocationHandle handle, CUdevice device, size_t offset, CUdeviceptr memory, size_t bytes,
      unsigned long long flags),
     ((void)device, (void)offset, (void)flags, bind_address(handle, memory, bytes)))
FAKE(cuMulticastUnbind, cuMulticastUnbind, 12010,
     (CUmemGenericAllocationHandle handle, CUdevice device, size_t offset, size_t bytes),
     ((void)device, (void)offset, (void)bytes, unbind(handle)))
FAKE(cuMulticastGetGranularity, cuMulticastGetGranularity, 12010,
     (size_t * out, const CUmulticastObjectProp *prop, CUmulticastGranularity_flags option),
     ((void)prop, (void)option, granularity(out)))
