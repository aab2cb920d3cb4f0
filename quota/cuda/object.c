#include "quota/cuda/families.h"
#include <stdlib.h>
#include <unistd.h>

/* Guards the counts of all objects and their names in the table: several changes at once must be one. The driver is never called with it held. */
static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;

struct corral_cuda_object *corral_cuda_object_create(CUdevice device,
                                                     const struct corral_quota_charge *charge)
{
    struct corral_cuda_object *o = calloc(1, sizeof(*o));
    if (o == NULL) {
        return NULL;
    }
    o->charge = *charge;
    o->device = device;
    o->handles = 1;
    o->held_fd = -1;
    struct corral_quota *q = corral_cuda_quota();
    if (q != NULL && corral_cuda_is_charged(charge)) {
        corral_quota_keep(q, charge);
    }
    return o;
}

static void destroy(struct corral_cuda_object *o)
{
    struct corral_quota *q = corral_cuda_quota();
    if (o->multicast) {
        corral_cuda_bindings_gone(o->name);
    }
    if (o->held_fd >= 0) {
        close(o->held_fd);
    }
    if (o->pinned > 0) {
        corral_cuda_count_pinned(o->device, -(int64_t)o->pinned);
    }
    if (q != NULL && o->shared) {
        corral_quota_drop_share(q, o->share);
    }
    corral_cuda_uncharge(&o->charge);
    free(o);
}

static bool is_map(uint32_t space)
{
    return space == CORRAL_CUDA_MAPPING || space == CORRAL_CUDA_BINDING || space == CORRAL_CUDA_POINTER ||
           space == CORRAL_CUDA_MIPMAP;
}

static void put_name(uint32_t space, uint64_t name, struct corral_cuda_object *o, uint64_t tie,
                     uint64_t bytes)
{
    struct corral_quota_charge extent = corral_cuda_no_charge();
    extent.bytes = bytes;
    struct corral_cuda_record record = {.name = name,
                                        .space = space,
                                        .device = o->device,
                                        .charge = extent,
                                        .tie = tie,
                                        .aux = (uint64_t)(uintptr_t)o | CORRAL_CUDA_FROM_OBJECT};
    corral_cuda_put_back(&record);
}

void corral_cuda_object_put(uint32_t space, uint64_t name, struct corral_cuda_object *object, uint64_t tie)
{
    if (!is_map(space)) {
        object->space = space;
        object->name = name;
    }
    put_name(space, name, object, tie, 0);
}

void corral_cuda_object_put_mapping(CUdeviceptr pointer, uint64_t bytes, struct corral_cuda_object *object)
{
    put_name(CORRAL_CUDA_MAPPING, pointer, object, 0, bytes);
}

void corral_cuda_object_export_fd(struct corral_cuda_object *object, int fd)
{
    pthread_mutex_lock(&objects_lock);
    corral_cuda_export_fd(&object->charge, fd, &object->held_fd);
    pthread_mutex_unlock(&objects_lock);
}

/* Unreachable objects lose their name before the driver frees them, as the driver may use it again at once. */
static void unname(struct corral_cuda_object *o)
{
    struct corral_cuda_record record;
    if (corral_cuda_table_get(o->space, o->name, &record) && corral_cuda_object_of(&record) == o) {
        corral_cuda_table_take(o->space, o->name, &record);
    }
}

static bool unreachable(const struct corral_cuda_object *o)
{
    return o->handles == 0 && o->maps == 0;
}

struct corral_cuda_object *corral_cuda_object_pin(uint32_t space, uint64_t name)
{
    struct corral_cuda_record record;
    struct corral_cuda_object *o = NULL;
    pthread_mutex_lock(&objects_lock);
    if (corral_cuda_table_get(space, name, &record) &&
        (record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_OBJECT) {
        o = corral_cuda_object_of(&record);
        o->pins++;
    }
    pthread_mutex_unlock(&objects_lock);
    return o;
}

void corral_cuda_object_unpin(struct corral_cuda_object *object)
{
    pthread_mutex_lock(&objects_lock);
    object->pins--;
    bool last = unreachable(object) && object->pins == 0;
    pthread_mutex_unlock(&objects_lock);
    if (last) {
        destroy(object);
    }
}

void corral_cuda_object_add_handle(struct corral_cuda_object *object)
{
    pthread_mutex_lock(&objects_lock);
    object->handles++;
    pthread_mutex_unlock(&objects_lock);
}

void corral_cuda_object_add_map(struct corral_cuda_object *object)
{
    pthread_mutex_lock(&objects_lock);
    object->maps++;
    pthread_mutex_unlock(&objects_lock);
}

struct corral_cuda_closing corral_cuda_object_begin_close(uint32_t space, uint64_t name)
{
    struct corral_cuda_closing closing = {.map = is_map(space)};
    pthread_mutex_lock(&objects_lock);
    if (corral_cuda_table_get(space, name, &closing.record) &&
        (closing.record.aux & CORRAL_CUDA_FROM_MASK) == CORRAL_CUDA_FROM_OBJECT) {
        struct corral_cuda_object *o = corral_cuda_object_of(&closing.record);
        uint32_t *count = closing.map ? &o->maps : &o->handles;
        /* A handle without references is only in the table to be retained again; letting go of it once more is the driver's to refuse. */
        if (*count > 0) {
            closing.object = o;
            *count -= 1;
            o->pins++;
        }
    }
    if (closing.object != NULL && closing.map) {
        corral_cuda_table_take(space, name, &closing.record);
    }
    if (closing.object != NULL && unreachable(closing.object)) {
        unname(closing.object);
    }
    pthread_mutex_unlock(&objects_lock);
    return closing;
}

void corral_cuda_object_end_close(struct corral_cuda_closing *closing, bool freed)
{
    struct corral_cuda_object *o = closing->object;
    if (o == NULL) {
        return;
    }
    pthread_mutex_lock(&objects_lock);
    if (!freed) {
        bool was_unreachable = unreachable(o);
        *(closing->map ? &o->maps : &o->handles) += 1;
        if (was_unreachable) {
            put_name(o->space, o->name, o, 0, 0);
        }
        if (closing->map) {
            corral_cuda_put_back(&closing->record);
        }
    }
    pthread_mutex_unlock(&objects_lock);
    corral_cuda_object_unpin(o);
}

void corral_cuda_object_drop(struct corral_cuda_object *object, uint32_t space)
{
    pthread_mutex_lock(&objects_lock);
    if (is_map(space)) {
        object->maps--;
    } else {
        object->handles = 0; /* however often it was opened */
    }
    object->pins++;
    if (unreachable(object)) {
        unname(object);
    }
    pthread_mutex_unlock(&objects_lock);
    corral_cuda_object_unpin(object);
}

void corral_cuda_objects_forget_all(void)
{
    objects_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}
