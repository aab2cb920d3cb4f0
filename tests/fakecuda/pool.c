/* Stream-ordered pools. A pool reserves whole chunks of 2 MiB, hands out parts of them, and keeps what is freed until it is trimmed or, above its release threshold, the next
 * synchronisation. A shareable pool's chunks lie in one file. Streams run at once here, so what is freed can be used again immediately. */
#include "tests/fakecuda/fake.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PART 512
#define SHARED_FILE_BYTES ((off_t)1 << 42)

struct part {
    uint64_t offset, bytes;
    bool taken;
    struct part *next;
};
struct chunk {
    char *memory;
    uint64_t bytes, block, file_offset;
    struct part *parts;
    struct chunk *next;
};
struct pool {
    CUmemPoolProps props;
    struct chunk *chunks;
    uint64_t threshold, reserved, reserved_high, used, used_high, file_end;
    bool destroyed, imported, is_default;
};
struct pooled {
    struct chunk *chunk;
    uint64_t offset;
};
/* What names a pointer of a shared pool for another process. */
struct exported {
    uint64_t block, file_offset, bytes;
};
_Static_assert(sizeof(struct exported) <= sizeof(CUmemPoolPtrExportData), "fits");

static struct fake_object *default_pool[FAKE_DEVICES_MAX], *chosen_pool[FAKE_DEVICES_MAX];

static struct pool *pool_of(const struct fake_object *o)
{
    return o->data;
}

static struct fake_object *find_pool(CUmemoryPool p)
{
    struct fake_object *o = fake_find(FAKE_POOL, (uint64_t)(uintptr_t)p);
    return o != NULL && !pool_of(o)->destroyed ? o : NULL;
}

static struct fake_object *new_pool(CUdevice device)
{
    struct fake_object *o = fake_add(FAKE_POOL, 0);
    struct pool *p = o != NULL ? calloc(1, sizeof *p) : NULL;
    if (o != NULL && p == NULL) {
        fake_remove(o);
    }
    if (p == NULL) {
        return NULL;
    }
    o->data = p;
    o->device = device;
    return o;
}

static struct fake_object *get_default(CUdevice device)
{
    if (default_pool[device] == NULL) {
        default_pool[device] = new_pool(device);
        if (default_pool[device] != NULL) {
            pool_of(default_pool[device])->is_default = true;
        }
    }
    return default_pool[device];
}

static struct fake_object *get_chosen(CUdevice device)
{
    return chosen_pool[device] != NULL ? chosen_pool[device] : get_default(device);
}

/* ---- chunks ---- */
static void free_chunk(struct pool *p, struct chunk *c)
{
    for (struct part *q = c->parts, *next; q != NULL; q = next) {
        next = q->next;
        free(q);
    }
    munmap(c->memory, c->bytes);
    if (c->block != 0) {
        fake_block_drop(c->block);
    }
    p->reserved -= c->bytes;
    free(c);
}

static void trim(struct pool *p, uint64_t keep)
{
    for (struct chunk **at = &p->chunks; *at != NULL && p->reserved > keep;) {
        struct chunk *c = *at;
        if (!c->parts->taken && c->parts->next == NULL) {
            *at = c->next;
            free_chunk(p, c);
        } else {
            at = &c->next;
        }
    }
}

static void trim_to_threshold(struct fake_object *o, void *ctx)
{
    (void)ctx;
    trim(pool_of(o), pool_of(o)->threshold);
}

static void trim_to_nothing(struct fake_object *o, void *ctx)
{
    (void)ctx;
    trim(pool_of(o), 0);
}

void fake_synchronised(void)
{
    fake_each(FAKE_POOL, trim_to_threshold, NULL);
}

void fake_trim_pools(void)
{
    fake_each(FAKE_POOL, trim_to_nothing, NULL);
}

static bool chunk_memory(struct fake_object *o, struct chunk *c)
{
    struct pool *p = pool_of(o);
    if (o->fd < 0) {
        c->memory = fake_map(c->bytes);
        return c->memory != NULL;
    }
    void *m =
        mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, o->fd, (off_t)p->file_end);
    c->memory = m == MAP_FAILED ? NULL : m;
    c->file_offset = p->file_end;
    p->file_end += c->bytes;
    return c->memory != NULL;
}

static struct chunk *grow(struct fake_object *o, uint64_t bytes)
{
    struct pool *p = pool_of(o);
    struct chunk *c = calloc(1, sizeof *c);
    struct part *whole = calloc(1, sizeof *whole);
    uint64_t size = fake_round(bytes, FAKE_PAGE);
    struct fake_object take = {.device = o->device};
    bool ok = c != NULL && whole != NULL && (p->props.maxSize == 0 || p->reserved + size <= p->props.maxSize);
    if (ok) {
        c->bytes = size;
        ok = chunk_memory(o, c);
    }
    if (ok && !fake_take(&take, size)) {
        munmap(c->memory, size);
        ok = false;
    }
    if (!ok) {
        free(c);
        free(whole);
        return NULL;
    }
    whole->bytes = size;
    c->block = take.block;
    c->parts = whole;
    c->next = p->chunks;
    p->chunks = c;
    p->reserved += size;
    p->reserved_high = p->reserved > p->reserved_high ? p->reserved : p->reserved_high;
    return c;
}

static struct part *fitting(struct chunk *c, uint64_t bytes)
{
    struct part *q = c->parts;
    while (q != NULL && (q->taken || q->bytes < bytes)) {
        q = q->next;
    }
    return q;
}

static CUresult allocate_in(CUdeviceptr *out, size_t asked, struct fake_object *o)
{
    struct pool *p = pool_of(o);
    if (asked > UINT64_C(1) << 46 || p->imported) {
        return p->imported ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint64_t bytes = fake_round(asked, PART);
    struct chunk *c = p->chunks;
    struct part *q = NULL;
    while (c != NULL && (q = fitting(c, bytes)) == NULL) {
        c = c->next;
    }
    c = c != NULL ? c : grow(o, bytes);
    q = q != NULL ? q : c != NULL ? c->parts : NULL;
    struct part *rest = calloc(1, sizeof *rest);
    struct pooled *data = calloc(1, sizeof *data);
    struct fake_object *a = q != NULL && rest != NULL && data != NULL
                                ? fake_add(FAKE_POOLED, (uint64_t)(uintptr_t)(c->memory + q->offset))
                                : NULL;
    if (a == NULL) {
        free(rest);
        free(data);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (q->bytes > bytes) {
        *rest = (struct part){q->offset + bytes, q->bytes - bytes, false, q->next};
        q->bytes = bytes;
        q->next = rest;
    } else {
        free(rest);
    }
    q->taken = true;
    *data = (struct pooled){c, q->offset};
    a->data = data;
    a->other = o;
    a->device = o->device;
    a->memory = c->memory + q->offset;
    a->mapped = asked; /* for finding it: the memory itself is the chunk's */
    a->bytes = asked;
    p->used += bytes;
    p->used_high = p->used > p->used_high ? p->used : p->used_high;
    *out = a->key;
    return CUDA_SUCCESS;
}

static void free_pool_if_done(struct fake_object *o)
{
    struct pool *p = pool_of(o);
    if (p->destroyed && p->used == 0) {
        trim(p, 0);
        fake_release(o);
    }
}

void fake_pool_forget(struct fake_object *a)
{
    struct fake_object *o = a->other;
    const struct pooled *at = a->data;
    if (at == NULL) { /* imported from another process */
        munmap(a->memory, a->flags);
        fake_release(a);
        return;
    }
    struct part *before = NULL, *q = at->chunk->parts;
    while (q->offset != at->offset) {
        before = q;
        q = q->next;
    }
    q->taken = false;
    pool_of(o)->used -= q->bytes;
    struct part *next = q->next;
    if (next != NULL && !next->taken) {
        q->bytes += next->bytes;
        q->next = next->next;
        free(next);
    }
    if (before != NULL && !before->taken) {
        before->bytes += q->bytes;
        before->next = q->next;
        free(q);
    }
    fake_remove(a);
    free_pool_if_done(o);
}

/* ---- functions ---- */
static CUresult allocate(CUdeviceptr *out, size_t bytes, struct fake_object *pool, CUstream stream)
{
    if (out == NULL || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *graph = fake_capturing(stream);
    if (graph != NULL) {
        return fake_capture_alloc(graph, out, bytes);
    }
    return pool != NULL ? allocate_in(out, bytes, pool) : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult allocate_async(CUdeviceptr *out, size_t bytes, CUstream stream)
{
    FAKE_LOCKED;
    const struct fake_object *context = fake_current();
    return context != NULL ? allocate(out, bytes, get_chosen(context->device), stream)
                           : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult allocate_from(CUdeviceptr *out, size_t bytes, CUmemoryPool pool, CUstream stream)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    return o != NULL ? allocate(out, bytes, o, stream) : CUDA_ERROR_INVALID_VALUE;
}

static CUresult free_async(CUdeviceptr pointer, CUstream stream)
{
    FAKE_LOCKED;
    struct fake_object *graph = fake_capturing(stream);
    if (graph != NULL) {
        return fake_capture_free(graph, pointer);
    }
    struct fake_object *in_graph = fake_find(FAKE_GRAPH_POINTER, pointer);
    if (in_graph != NULL) {
        return fake_graph_pointer_free(in_graph);
    }
    struct fake_object *a = fake_find(FAKE_POOLED, pointer);
    if (a == NULL) {
        struct fake_object *plain =
            fake_find(FAKE_POINTER, pointer); /* allowed for memory of cuMemAlloc too */
        if (plain == NULL || plain->other != NULL) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        fake_release(plain);
        return CUDA_SUCCESS;
    }
    fake_pool_forget(a);
    return CUDA_SUCCESS;
}

static CUresult create(CUmemoryPool *out, const CUmemPoolProps *props)
{
    if (out == NULL || props == NULL || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE || !fake_device_valid(props->location.id)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    FAKE_LOCKED;
    struct fake_object *o = new_pool(props->location.id);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pool_of(o)->props = *props;
    if (((unsigned)props->handleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) != 0) {
        o->fd = memfd_create("fakecuda-pool", MFD_CLOEXEC);
        if (o->fd < 0 || ftruncate(o->fd, SHARED_FILE_BYTES) != 0) {
            fake_release(o);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    *out = (CUmemoryPool)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult destroy(CUmemoryPool pool)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    if (o == NULL || pool_of(o)->is_default) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (chosen_pool[o->device] == o) {
        chosen_pool[o->device] = NULL;
    }
    pool_of(o)->destroyed = true;
    free_pool_if_done(o);
    return CUDA_SUCCESS;
}

static CUresult trim_to(CUmemoryPool pool, size_t keep)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    trim(pool_of(o), keep);
    return CUDA_SUCCESS;
}

static CUresult set_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, const void *value)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    if (o == NULL || value == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct pool *p = pool_of(o);
    if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
        p->threshold = *(const uint64_t *)value;
    } else if (attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH && *(const uint64_t *)value == 0) {
        p->reserved_high = p->reserved;
    } else if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH && *(const uint64_t *)value == 0) {
        p->used_high = p->used;
    } else if (attribute > CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult get_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value)
{
    FAKE_LOCKED;
    const struct fake_object *o = find_pool(pool);
    if (o == NULL || value == NULL || attribute < CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES ||
        attribute > CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct pool *p = pool_of(o);
    const uint64_t numbers[] = {p->threshold, p->reserved, p->reserved_high, p->used, p->used_high};
    if (attribute < CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
        *(int *)value = 1;
    } else {
        *(uint64_t *)value = numbers[attribute - CU_MEMPOOL_ATTR_RELEASE_THRESHOLD];
    }
    return CUDA_SUCCESS;
}

static CUresult set_for_device(CUdevice device, CUmemoryPool pool)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    if (o == NULL || !fake_device_valid(device) || o->device != device) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    chosen_pool[device] = o;
    return CUDA_SUCCESS;
}

static CUresult get_for_device(CUmemoryPool *out, CUdevice device, bool the_default)
{
    FAKE_LOCKED;
    if (out == NULL || !fake_device_valid(device)) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_DEVICE;
    }
    const struct fake_object *o = the_default ? get_default(device) : get_chosen(device);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUmemoryPool)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult get_for_place(CUmemoryPool *out, const CUmemLocation *place, bool the_default)
{
    if (place == NULL || place->type != CU_MEM_LOCATION_TYPE_DEVICE) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return get_for_device(out, place->id, the_default);
}

static CUresult export_pool(void *out, CUmemoryPool pool, CUmemAllocationHandleType type)
{
    FAKE_LOCKED;
    const struct fake_object *o = find_pool(pool);
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

static CUresult import_pool(CUmemoryPool *out, void *os_handle, CUmemAllocationHandleType type)
{
    FAKE_LOCKED;
    int fd = fcntl((int)(intptr_t)os_handle, F_DUPFD_CLOEXEC, 3);
    if (out == NULL || fd < 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
        if (fd >= 0) {
            close(fd);
        }
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct fake_object *o = new_pool(0);
    if (o == NULL) {
        close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->fd = fd;
    pool_of(o)->imported = true;
    *out = (CUmemoryPool)(uintptr_t)o->key;
    return CUDA_SUCCESS;
}

static CUresult export_pointer(CUmemPoolPtrExportData *out, CUdeviceptr pointer)
{
    FAKE_LOCKED;
    const struct fake_object *a = fake_find(FAKE_POOLED, pointer);
    const struct pooled *at = a != NULL ? a->data : NULL;
    if (out == NULL || at == NULL || a->other->fd < 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct exported e = {at->chunk->block, at->chunk->file_offset + at->offset, a->bytes};
    memset(out, 0, sizeof *out);
    memcpy(out, &e, sizeof e);
    return CUDA_SUCCESS;
}

static CUresult import_pointer(CUdeviceptr *out, CUmemoryPool pool, const CUmemPoolPtrExportData *data)
{
    FAKE_LOCKED;
    struct fake_object *o = find_pool(pool);
    if (out == NULL || data == NULL || o == NULL || !pool_of(o)->imported) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct exported e;
    memcpy(&e, data, sizeof e);
    uint64_t page = e.file_offset / 4096 * 4096, bytes = fake_round(e.bytes + (e.file_offset - page), 4096);
    if (bytes > UINT32_MAX || !fake_block_share(e.block)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    char *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, (off_t)page);
    struct fake_object *a =
        m != MAP_FAILED ? fake_add(FAKE_POOLED, (uint64_t)(uintptr_t)(m + (e.file_offset - page))) : NULL;
    if (a == NULL) {
        fake_block_unshare(e.block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    a->memory = m;
    a->flags = (uint32_t)bytes; /* mapped length; `mapped` would be unmapped from the pointer on */
    a->bytes = e.bytes;
    a->block = e.block;
    a->shared = true;
    a->other = o;
    *out = a->key;
    return CUDA_SUCCESS;
}

#include "tests/fakecuda/pool_exports.h"
