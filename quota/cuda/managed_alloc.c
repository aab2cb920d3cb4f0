#include "quota/cuda/managed_alloc.h"
#include "quota/cuda/client.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Requests up to half a slab are rounded up to a power of two and share slabs of one size each; a slab goes back to the driver with its last piece. */
#define SLAB_BYTES ((size_t)2 << 20)
#define PIECE_SHIFT_MIN 6 /* 64 bytes, the alignment that is promised */
#define PIECE_SHIFT_MAX 20
#define CLASSES (PIECE_SHIFT_MAX - PIECE_SHIFT_MIN + 1)

struct piece {
    struct piece *next;
};
struct slab {
    struct slab *next;
    char *memory;
    struct piece *free;
    size_t used, fresh; /* pieces in use; pieces never handed out start here */
};
struct corral_managed_alloc {
    struct corral_allocator allocator;
    struct corral_cuda_client cuda;
    CUcontext context;
    pthread_mutex_t lock; /* guards what follows */
    struct slab *slabs[CLASSES];
    uint64_t used;
};

static enum corral_status take(struct corral_managed_alloc *a, size_t bytes, const char *what, void **out,
                               struct corral_error *err)
{
    CUdeviceptr p = 0;
    CUcontext popped;
    char text[32];
    CUresult r = a->cuda.cuCtxPushCurrent_v2(a->context);
    if (r == CUDA_SUCCESS) {
        r = a->cuda.cuMemAllocManaged(&p, bytes, CU_MEM_ATTACH_GLOBAL);
        (void)a->cuda.cuCtxPopCurrent_v2(&popped);
    }
    if (r == CUDA_ERROR_OUT_OF_MEMORY) {
        return corral_fail(err, CORRAL_DENIED, "%s: %zu bytes on the device were denied by the quota", what,
                           bytes);
    }
    if (r != CUDA_SUCCESS) {
        return corral_fail(err, CORRAL_INTERNAL, "%s: cannot allocate %zu bytes on the device: %s", what,
                           bytes, corral_cuda_client_error(&a->cuda, r, text));
    }
    *out = (void *)(uintptr_t)p; // NOLINT: managed memory has the same address here
    return CORRAL_OK;
}

static void give(struct corral_managed_alloc *a, const void *memory)
{
    CUcontext popped;
    if (a->cuda.cuCtxPushCurrent_v2(a->context) == CUDA_SUCCESS) {
        (void)a->cuda.cuMemFree_v2((CUdeviceptr)(uintptr_t)memory);
        (void)a->cuda.cuCtxPopCurrent_v2(&popped);
    }
}

/* Class of a request, or CLASSES: too large for a slab. */
static unsigned class_of(size_t bytes)
{
    unsigned class = 0;
    while (class < CLASSES && bytes > (size_t)1 << (class + PIECE_SHIFT_MIN)) {
        class ++;
    }
    return class;
}

static enum corral_status take_piece(struct corral_managed_alloc *a, unsigned class, const char *what,
                                     void **out, struct corral_error *err)
{
    size_t size = (size_t)1 << (class + PIECE_SHIFT_MIN);
    struct slab *s = a->slabs[class];
    while (s != NULL && s->free == NULL && s->fresh == SLAB_BYTES / size) {
        s = s->next;
    }
    if (s == NULL) {
        CORRAL_AUTO_FREE struct slab *fresh = calloc(1, sizeof *fresh);
        if (fresh == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "%s: out of memory", what);
        }
        void *memory;
        CORRAL_TRY(take(a, SLAB_BYTES, what, &memory, err));
        s = CORRAL_STEAL(fresh);
        s->memory = memory;
        s->next = a->slabs[class];
        a->slabs[class] = s;
    }
    void *piece = s->free != NULL ? (void *)s->free : (void *)(s->memory + s->fresh * size);
    if (s->free != NULL) {
        s->free = s->free->next;
    } else {
        s->fresh++;
    }
    s->used++;
    *out = piece;
    return CORRAL_OK;
}

static void give_piece(struct corral_managed_alloc *a, unsigned class, void *memory)
{
    struct slab **at = &a->slabs[class];
    const char *p = memory;
    while (p < (*at)->memory || p >= (*at)->memory + SLAB_BYTES) {
        at = &(*at)->next;
    }
    struct slab *s = *at;
    struct piece *piece = memory;
    piece->next = s->free;
    s->free = piece;
    if (--s->used == 0) {
        *at = s->next;
        give(a, s->memory);
        free(s);
    }
}

static enum corral_status managed_alloc(void *ctx, size_t bytes, const char *what, void **out,
                                        struct corral_error *err)
{
    struct corral_managed_alloc *a = ctx;
    unsigned class = class_of(bytes);
    void *memory = NULL;
    pthread_mutex_lock(&a->lock);
    enum corral_status s =
        class < CLASSES ? take_piece(a, class, what, &memory, err) : take(a, bytes, what, &memory, err);
    a->used += s == CORRAL_OK ? bytes : 0;
    pthread_mutex_unlock(&a->lock);
    if (s == CORRAL_OK) {
        memset(memory, 0, bytes);
        *out = memory;
    }
    return s;
}

static void managed_release(void *ctx, void *memory, size_t bytes)
{
    struct corral_managed_alloc *a = ctx;
    unsigned class = class_of(bytes);
    if (memory == NULL) {
        return;
    }
    pthread_mutex_lock(&a->lock);
    a->used -= bytes;
    if (class < CLASSES) {
        give_piece(a, class, memory);
    } else {
        give(a, memory);
    }
    pthread_mutex_unlock(&a->lock);
}

/* By whose code an allocation would go: without the interposer nobody would charge it. */
static bool interposed(const struct corral_cuda_client *cuda)
{
    Dl_info where;
    void *function;
    memcpy(&function, &cuda->cuMemAllocManaged, sizeof function);
    if (dladdr(function, &where) == 0 || where.dli_fname == NULL) {
        return false;
    }
    const char *slash = strrchr(where.dli_fname, '/');
    return strncmp(slash != NULL ? slash + 1 : where.dli_fname, "libcorral-quota", 15) == 0;
}

enum corral_status corral_managed_alloc_create(struct corral_managed_alloc **out, struct corral_error *err)
{
    CORRAL_AUTO_FREE struct corral_managed_alloc *a = calloc(1, sizeof *a);
    if (a == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "out of memory");
    }
    CORRAL_TRY(corral_cuda_client_open(CORRAL_CUDA_ROUTE_DLSYM, &a->cuda, err));
    if (!interposed(&a->cuda)) {
        return corral_fail(
            err, CORRAL_UNSUPPORTED,
            "memory of the GPU would not be charged: libcorral-quota.so is not preloaded here");
    }
    char text[32];
    CUresult r = a->cuda.cuInit(0);
    r = r == CUDA_SUCCESS ? a->cuda.cuDevicePrimaryCtxRetain(&a->context, 0) : r;
    if (r != CUDA_SUCCESS) {
        enum corral_status s = r == CUDA_ERROR_OUT_OF_MEMORY ? CORRAL_DENIED : CORRAL_UNSUPPORTED;
        return corral_fail(err, s, "device 0 gives no context: %s",
                           corral_cuda_client_error(&a->cuda, r, text));
    }
    pthread_mutex_init(&a->lock, NULL);
    a->allocator = (struct corral_allocator){managed_alloc, managed_release, a};
    *out = CORRAL_STEAL(a);
    return CORRAL_OK;
}

void corral_managed_alloc_destroy(struct corral_managed_alloc *a)
{
    if (a == NULL) {
        return;
    }
    (void)a->cuda.cuDevicePrimaryCtxRelease_v2(0);
    corral_cuda_client_close(&a->cuda);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

const struct corral_allocator *corral_managed_allocator(const struct corral_managed_alloc *a)
{
    return &a->allocator;
}

uint64_t corral_managed_alloc_used(const struct corral_managed_alloc *a)
{
    struct corral_managed_alloc *locked;
    memcpy(&locked, &a, sizeof locked); /* the lock is not part of what is const to a caller */
    pthread_mutex_lock(&locked->lock);
    uint64_t used = a->used;
    pthread_mutex_unlock(&locked->lock);
    return used;
}
