/* Calls and objects. */
#include "tests/fakecuda/fake.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

extern struct fake_entry *const __start_fake_entries[] __attribute__((visibility("hidden")));
extern struct fake_entry *const __stop_fake_entries[] __attribute__((visibility("hidden")));

/* "name:a:b,name:a" → the fields of this name. False: not named. */
static bool setting(const char *variable, const char *name, char a[16], char b[16])
{
    const char *p = getenv(variable);
    size_t length = strlen(name);
    while (p != NULL) {
        if (strncmp(p, name, length) == 0 && p[length] == ':') {
            b[0] = '\0';
            return sscanf(p + length + 1, "%15[^:,]:%15[^,]", a, b) >= 1;
        }
        p = strchr(p, ',');
        p = p != NULL ? p + 1 : NULL;
    }
    return false;
}

static pthread_mutex_t preparing = PTHREAD_MUTEX_INITIALIZER;

static void prepare(struct fake_entry *e)
{
    char a[16], b[16];
    pthread_mutex_lock(&preparing);
    if (!atomic_load(&e->prepared)) {
        if (setting("CORRAL_FAKECUDA_FAULTS", e->symbol, a, b)) {
            e->fault_at = a[0] == '*' ? 0 : (int)strtol(a, NULL, 10);
            e->fault = (int)strtol(b, NULL, 10);
        }
        if (setting("CORRAL_FAKECUDA_DELAYS", e->symbol, a, b)) {
            e->delay_us = (int)strtol(a, NULL, 10);
        }
        atomic_store(&e->prepared, 1);
    }
    pthread_mutex_unlock(&preparing);
}

static bool initialised_already;
static pid_t initialised_in;

CUresult fake_enter(struct fake_entry *e, bool initialised)
{
    if (!atomic_load_explicit(&e->prepared, memory_order_acquire)) {
        prepare(e);
    }
    uint64_t call = atomic_fetch_add_explicit(&e->calls, 1, memory_order_relaxed) + 1;
    if (e->delay_us > 0) {
        nanosleep(&(struct timespec){e->delay_us / 1000000, e->delay_us % 1000000 * 1000L}, NULL);
    }
    if (e->fault != 0 && (e->fault_at == 0 || (uint64_t)e->fault_at == call)) {
        return (CUresult)e->fault;
    }
    return initialised && !initialised_already ? CUDA_ERROR_NOT_INITIALIZED : CUDA_SUCCESS;
}

uint64_t fakecuda_calls(const char *symbol)
{
    for (struct fake_entry *const *e = __start_fake_entries; e < __stop_fake_entries; e++) {
        if (strcmp((*e)->symbol, symbol) == 0) {
            return atomic_load(&(*e)->calls);
        }
    }
    return 0;
}

bool fakecuda_fail_next(const char *symbol, int result)
{
    for (struct fake_entry *const *e = __start_fake_entries; e < __stop_fake_entries; e++) {
        if (strcmp((*e)->symbol, symbol) == 0) {
            pthread_mutex_lock(&preparing);
            (*e)->fault_at = (int)atomic_load(&(*e)->calls) + 1;
            (*e)->fault = result;
            atomic_store(&(*e)->prepared, 1);
            pthread_mutex_unlock(&preparing);
            return true;
        }
    }
    return false;
}

/* ---- starting ---- */
static void in_child(void)
{
    initialised_already = false; /* a driver does not survive fork */
}

static CUresult start(unsigned flags)
{
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    FAKE_LOCKED;
    if (initialised_already) {
        return CUDA_SUCCESS;
    }
    if (initialised_in != 0) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (!fake_state_open() || !fake_state_join()) {
        return CUDA_ERROR_UNKNOWN;
    }
    if (!fake_device_valid(0)) {
        return CUDA_ERROR_NO_DEVICE;
    }
    pthread_atfork(NULL, NULL, in_child);
    initialised_in = getpid();
    initialised_already = true;
    return CUDA_SUCCESS;
}
FAKE_EARLY(cuInit, cuInit, 2000, (unsigned flags), start(flags))

static CUresult driver_version(int *version)
{
    if (version == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *version = 13000;
    return CUDA_SUCCESS;
}
FAKE_EARLY(cuDriverGetVersion, cuDriverGetVersion, 2020, (int *version), driver_version(version))

static const struct {
    CUresult code;
    const char *name, *text;
} results[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult describe(CUresult code, const char **out, bool name)
{
    for (size_t i = 0; out != NULL && i < sizeof results / sizeof results[0]; i++) {
        if (results[i].code == code) {
            *out = name ? results[i].name : results[i].text;
            return CUDA_SUCCESS;
        }
    }
    if (out != NULL) {
        *out = NULL;
    }
    return CUDA_ERROR_INVALID_VALUE;
}
FAKE_EARLY(cuGetErrorString, cuGetErrorString, 6000, (CUresult error, const char **text),
           describe(error, text, false))
FAKE_EARLY(cuGetErrorName, cuGetErrorName, 6000, (CUresult error, const char **text),
           describe(error, text, true))

/* ---- finding functions ---- */
static CUresult find_function(const char *symbol, void **out, int version, uint64_t flags,
                              CUdriverProcAddressQueryResult *status)
{
    if (symbol == NULL || out == NULL || flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    bool per_thread = flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    const struct fake_entry *best = NULL;
    bool known = false;
    for (struct fake_entry *const *p = __start_fake_entries; p < __stop_fake_entries; p++) {
        const struct fake_entry *e = *p;
        if (strcmp(e->base, symbol) != 0) {
            continue;
        }
        known = true;
        if (e->version > version || (e->per_thread && !per_thread)) {
            continue;
        }
        /* The newest that fits; of the same age, the one for the stream that was asked for. */
        if (best == NULL || e->version > best->version || (e->version == best->version && e->per_thread)) {
            best = e;
        }
    }
    *out = best != NULL ? best->function : NULL;
    if (status != NULL) {
        *status = best != NULL ? CU_GET_PROC_ADDRESS_SUCCESS
                  : known      ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                               : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        return CUDA_SUCCESS;
    }
    return best != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
FAKE_EARLY(cuGetProcAddress, cuGetProcAddress, 11030,
           (const char *symbol, void **out, int version, uint64_t flags),
           find_function(symbol, out, version, flags, NULL))
FAKE_EARLY(cuGetProcAddress_v2, cuGetProcAddress, 12000,
           (const char *symbol, void **out, int version, uint64_t flags,
            CUdriverProcAddressQueryResult *status),
           find_function(symbol, out, version, flags, status))

static CUresult no_table(const void **table)
{
    if (table != NULL) {
        *table = NULL;
    }
    return CUDA_ERROR_NOT_FOUND;
}
FAKE_EARLY(cuGetExportTable, cuGetExportTable, 3000, (const void **table, const CUuuid *id),
           ((void)id, no_table(table)))

/* ---- objects ---- */
#define BUCKETS 16384

static pthread_mutex_t objects_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static struct fake_object *bucket[BUCKETS];

int fake_lock_objects(void)
{
    pthread_mutex_lock(&objects_lock);
    return 0;
}

void fake_unlock_objects(int *unused)
{
    (void)unused;
    pthread_mutex_unlock(&objects_lock);
}

static struct fake_object **slot_of(uint64_t key)
{
    return &bucket[(key * UINT64_C(0x9e3779b97f4a7c15)) >> 50];
}
_Static_assert(BUCKETS == 1 << 14, "the top 14 bits choose the bucket");

struct fake_object *fake_add(enum fake_kind kind, uint64_t key)
{
    struct fake_object *o = calloc(1, sizeof *o);
    if (o == NULL) {
        return NULL;
    }
    o->kind = kind;
    o->key = key != 0 ? key : (uint64_t)(uintptr_t)o;
    o->fd = -1;
    o->refs = 1;
    o->next = *slot_of(o->key);
    *slot_of(o->key) = o;
    return o;
}

struct fake_object *fake_find(enum fake_kind kind, uint64_t key)
{
    struct fake_object *o = *slot_of(key);
    while (o != NULL && (o->kind != kind || o->key != key)) {
        o = o->next;
    }
    return o;
}

struct fake_object *fake_find_range(enum fake_kind kind, uint64_t address)
{
    struct fake_object *exact = fake_find(kind, address);
    for (size_t i = 0; exact == NULL && i < BUCKETS; i++) {
        for (struct fake_object *o = bucket[i]; exact == NULL && o != NULL; o = o->next) {
            uint64_t at = (uint64_t)(uintptr_t)o->memory;
            exact = o->kind == kind && address >= at && address - at < o->mapped ? o : NULL;
        }
    }
    return exact;
}

void fake_remove(struct fake_object *object)
{
    struct fake_object **p = slot_of(object->key);
    while (*p != object) {
        p = &(*p)->next;
    }
    *p = object->next;
    free(object->data);
    free(object);
}

void fake_each(enum fake_kind kind, void (*visit)(struct fake_object *, void *), void *ctx)
{
    for (size_t i = 0; i < BUCKETS; i++) {
        struct fake_object *next;
        for (struct fake_object *o = bucket[i]; o != NULL; o = next) {
            next = o->next;
            if (o->kind == kind) {
                visit(o, ctx);
            }
        }
    }
}

void fake_release(struct fake_object *o)
{
    if (o->block != 0) {
        (o->shared ? fake_block_unshare : fake_block_drop)(o->block);
    }
    if (o->mapped != 0) {
        munmap(o->memory, o->mapped);
    }
    if (o->fd >= 0) {
        close(o->fd);
    }
    fake_remove(o);
}

void *fake_map(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

bool fake_take(struct fake_object *o, uint64_t bytes)
{
    uint32_t device = fake_device_physical(o->device);
    if (fake_block_take(device, bytes, &o->block)) {
        o->bytes = bytes;
        return true;
    }
    fake_trim_pools();
    if (fake_block_take(device, bytes, &o->block)) {
        o->bytes = bytes;
        return true;
    }
    return false;
}
