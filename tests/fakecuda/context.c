/* Contexts: primary, created and green ones. */
#include "tests/fakecuda/fake.h"

#define HEAP_DEFAULT ((size_t)8 << 20) /* of a context, in its overhead */
#define STACK_MAX 64

static _Thread_local struct fake_object *stack[STACK_MAX];
static _Thread_local unsigned depth;
static struct fake_object *primary[FAKE_DEVICES_MAX];

static struct fake_object *as_context(CUcontext c)
{
    return fake_find(FAKE_CONTEXT, (uint64_t)(uintptr_t)c);
}

static CUcontext context_name(const struct fake_object *o)
{
    return o != NULL ? (CUcontext)(uintptr_t)o->key : NULL;
}

struct fake_object *fake_current(void)
{
    /* One that has been destroyed meanwhile by another thread is no context any more. */
    return depth > 0 ? as_context((CUcontext)stack[depth - 1]) : NULL;
}

/* An object's key is its own address, so a stack of keys is a stack of objects. */
static void push(struct fake_object *o)
{
    if (depth < STACK_MAX) {
        stack[depth++] = o;
    }
}

static CUresult create_context(struct fake_object **out, CUdevice device)
{
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    struct fake_object *o = fake_add(FAKE_CONTEXT, 0);
    if (o == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->device = device;
    o->maps = 0;
    o->mapped = 0;
    if (!fake_take(o, fake_state_context_bytes())) {
        fake_remove(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = o;
    return CUDA_SUCCESS;
}

static void end_if_in(struct fake_object *o, void *context)
{
    if (o->context == context) {
        fake_release(o);
    }
}

void fake_end_context(struct fake_object *context)
{
    static const enum fake_kind kinds[] = {FAKE_POINTER, FAKE_MANAGED, FAKE_ARRAY,      FAKE_MIPMAP,
                                           FAKE_MODULE,  FAKE_HOST,    FAKE_REGISTERED, FAKE_STREAM};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        fake_each(kinds[i], end_if_in, context);
    }
    fake_release(context);
}

static CUresult create_and_push(CUcontext *out, CUdevice device)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *o;
    CUresult r = create_context(&o, device);
    if (r == CUDA_SUCCESS) {
        push(o);
        *out = context_name(o);
    }
    return r;
}

static CUresult destroy_context(CUcontext c)
{
    FAKE_LOCKED;
    struct fake_object *o = as_context(c);
    if (o == NULL || o->flags != 0) { /* a primary or green context is not destroyed this way */
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (depth > 0 && stack[depth - 1] == o) {
        depth--;
    }
    fake_end_context(o);
    return CUDA_SUCCESS;
}

static CUresult retain_primary(CUcontext *out, CUdevice device)
{
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (primary[device] == NULL) {
        CUresult r = create_context(&primary[device], device);
        if (r != CUDA_SUCCESS) {
            return r;
        }
        primary[device]->flags = 1;
    } else {
        primary[device]->refs++;
    }
    *out = context_name(primary[device]);
    return CUDA_SUCCESS;
}

static CUresult release_primary(CUdevice device, bool reset)
{
    FAKE_LOCKED;
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (primary[device] == NULL) {
        return reset ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    }
    if (reset || --primary[device]->refs == 0) {
        fake_end_context(primary[device]);
        primary[device] = NULL;
    }
    return CUDA_SUCCESS;
}

static CUresult primary_state(CUdevice device, unsigned *flags, int *active)
{
    FAKE_LOCKED;
    if (!fake_device_valid(device)) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (flags != NULL) {
        *flags = 0;
    }
    if (active != NULL) {
        *active = primary[device] != NULL;
    }
    return CUDA_SUCCESS;
}

static CUresult push_current(CUcontext c)
{
    FAKE_LOCKED;
    struct fake_object *o = as_context(c);
    if (o == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    push(o);
    return CUDA_SUCCESS;
}

static CUresult pop_current(CUcontext *out)
{
    FAKE_LOCKED;
    if (depth == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    struct fake_object *o = fake_current();
    depth--;
    if (out != NULL) {
        *out = context_name(o);
    }
    return CUDA_SUCCESS;
}

static CUresult set_current(CUcontext c)
{
    FAKE_LOCKED;
    if (c != NULL && as_context(c) == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    depth -= depth > 0;
    if (c != NULL) {
        push(as_context(c));
    }
    return CUDA_SUCCESS;
}

static CUresult get_current(CUcontext *out)
{
    FAKE_LOCKED;
    if (out == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = context_name(fake_current());
    return CUDA_SUCCESS;
}

static CUresult context_device(CUdevice *out, CUcontext c)
{
    FAKE_LOCKED;
    const struct fake_object *o = c != NULL ? as_context(c) : fake_current();
    if (out == NULL || o == NULL) {
        return out == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    *out = o->device;
    return CUDA_SUCCESS;
}

static CUresult attach(CUcontext *out)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_current();
    if (out == NULL || o == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = context_name(o);
    return CUDA_SUCCESS;
}

/* A larger heap for kernels takes device memory beside the context's own. */
static CUresult set_limit(CUlimit limit, size_t value)
{
    FAKE_LOCKED;
    struct fake_object *o = fake_current();
    if (o == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (limit != CU_LIMIT_MALLOC_HEAP_SIZE) {
        return CUDA_SUCCESS;
    }
    size_t heap = value > HEAP_DEFAULT ? value : HEAP_DEFAULT;
    if (!fake_block_resize(o->block, fake_state_context_bytes() + (heap - HEAP_DEFAULT))) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    o->bytes = fake_state_context_bytes() + (heap - HEAP_DEFAULT);
    return CUDA_SUCCESS;
}

static CUresult get_limit(size_t *value, CUlimit limit)
{
    FAKE_LOCKED;
    const struct fake_object *o = fake_current();
    if (value == NULL || o == NULL) {
        return value == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_CONTEXT;
    }
    *value = limit == CU_LIMIT_MALLOC_HEAP_SIZE ? o->bytes - fake_state_context_bytes() + HEAP_DEFAULT : 1024;
    return CUDA_SUCCESS;
}

static CUresult synchronise(void)
{
    FAKE_LOCKED;
    if (fake_current() == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    fake_synchronised();
    return CUDA_SUCCESS;
}

FAKE(cuCtxCreate, cuCtxCreate, 2000, (CUcontext * context, unsigned flags, CUdevice device),
     ((void)flags, create_and_push(context, device)))
FAKE(cuCtxCreate_v2, cuCtxCreate, 3020, (CUcontext * context, unsigned flags, CUdevice device),
     ((void)flags, create_and_push(context, device)))
FAKE(cuCtxCreate_v3, cuCtxCreate, 11040,
     (CUcontext * context, CUexecAffinityParam *affinity, int affinities, unsigned flags, CUdevice device),
     ((void)affinity, (void)affinities, (void)flags, create_and_push(context, device)))
FAKE(cuCtxCreate_v4, cuCtxCreate, 12050,
     (CUcontext * context, CUctxCreateParams *params, unsigned flags, CUdevice device),
     ((void)params, (void)flags, create_and_push(context, device)))
FAKE(cuCtxDestroy, cuCtxDestroy, 2000, (CUcontext context), destroy_context(context))
FAKE(cuCtxDestroy_v2, cuCtxDestroy, 4000, (CUcontext context), destroy_context(context))
FAKE(cuCtxAttach, cuCtxAttach, 2000, (CUcontext * context, unsigned flags), ((void)flags, attach(context)))
FAKE(cuCtxDetach, cuCtxDetach, 2000, (CUcontext context), destroy_context(context))
FAKE(cuCtxPushCurrent, cuCtxPushCurrent, 2000, (CUcontext context), push_current(context))
FAKE(cuCtxPushCurrent_v2, cuCtxPushCurrent, 4000, (CUcontext context), push_current(context))
FAKE(cuCtxPopCurrent, cuCtxPopCurrent, 2000, (CUcontext * context), pop_current(context))
FAKE(cuCtxPopCurrent_v2, cuCtxPopCurrent, 4000, (CUcontext * context), pop_current(context))
FAKE(cuCtxSetCurrent, cuCtxSetCurrent, 4000, (CUcontext context), set_current(context))
FAKE(cuCtxGetCurrent, cuCtxGetCurrent, 4000, (CUcontext * context), get_current(context))
FAKE(cuCtxGetDevice, cuCtxGetDevice, 2000, (CUdevice * device), context_device(device, NULL))
FAKE(cuCtxGetDevice_v2, cuCtxGetDevice, 13000, (CUdevice * device, CUcontext context),
     context_device(device, context))
FAKE(cuCtxSynchronize, cuCtxSynchronize, 2000, (void), synchronise())
FAKE(cuCtxSetLimit, cuCtxSetLimit, 3010, (CUlimit limit, size_t value), set_limit(limit, value))
FAKE(cuCtxGetLimit, cuCtxGetLimit, 3010, (size_t * value, CUlimit limit), get_limit(value, limit))
FAKE(cuCtxEnablePeerAccess, cuCtxEnablePeerAccess, 4000, (CUcontext peer, unsigned flags),
     ((void)peer, (void)flags, CUDA_SUCCESS))
FAKE(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, (CUcontext * context, CUdevice device),
     retain_primary(context, device))
FAKE(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease, 7000, (CUdevice device),
     release_primary(device, false))
FAKE(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease, 11000, (CUdevice device),
     release_primary(device, false))
FAKE(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset, 7000, (CUdevice device), release_primary(device, true))
FAKE(cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxReset, 11000, (CUdevice device),
     release_primary(device, true))
FAKE(cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxGetState, 7000,
     (CUdevice device, unsigned *flags, int *active), primary_state(device, flags, active))
FAKE(cuDevicePrimaryCtxSetFlags, cuDevicePrimaryCtxSetFlags, 7000, (CUdevice device, unsigned flags),
     ((void)device, (void)flags, CUDA_SUCCESS))
FAKE(cuDevicePrimaryCtxSetFlags_v2, cuDevicePrimaryCtxSetFlags, 11000, (CUdevice device, unsigned flags),
     ((void)device, (void)flags, CUDA_SUCCESS))

/* ---- green contexts: a part of the processors, with an overhead of its own ---- */
static CUresult create_green(CUgreenCtx *out, CUdevResourceDesc resources, CUdevice device, unsigned flags)
{
    if (out == NULL || resources == NULL || flags != CU_GREEN_CTX_DEFAULT_STREAM) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    struct fake_object *context;
    CUresult r = create_context(&context, device);
    if (r != CUDA_SUCCESS) {
        return r;
    }
    context->flags = 2;
    struct fake_object *green = fake_add(FAKE_GREEN, 0);
    if (green == NULL) {
        fake_end_context(context);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    green->other = context;
    *out = (CUgreenCtx)(uintptr_t)green->key;
    return CUDA_SUCCESS;
}

static CUresult destroy_green(CUgreenCtx g)
{
    FAKE_LOCKED;
    struct fake_object *green = fake_find(FAKE_GREEN, (uint64_t)(uintptr_t)g);
    if (green == NULL) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    fake_end_context(green->other);
    fake_remove(green);
    return CUDA_SUCCESS;
}

static CUresult context_of_green(CUcontext *out, CUgreenCtx g)
{
    FAKE_LOCKED;
    const struct fake_object *green = fake_find(FAKE_GREEN, (uint64_t)(uintptr_t)g);
    if (out == NULL || green == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = context_name(green->other);
    return CUDA_SUCCESS;
}
FAKE(cuGreenCtxCreate, cuGreenCtxCreate, 12040,
     (CUgreenCtx * green, CUdevResourceDesc resources, CUdevice device, unsigned flags),
     create_green(green, resources, device, flags))
FAKE(cuGreenCtxDestroy, cuGreenCtxDestroy, 12040, (CUgreenCtx green), destroy_green(green))
FAKE(cuCtxFromGreenCtx, cuCtxFromGreenCtx, 12040, (CUcontext * context, CUgreenCtx green),
     context_of_green(context, green))
