/* What this process is under the node's quota: attached or closed, and its holder on each device. Attached at the first call that needs it, so that a program that
 * never touches a GPU is left alone; again in a forked child, which is a holder of its own.
 */
#include "quota/cuda/core.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum attachment { UNATTACHED, ATTACHED, NO_LEDGER };
#define NOT_JOINED 0 /* others: holder + 1 */
#define NOT_IN_LEDGER UINT32_MAX

/* `attachment` and the entries of `holder` and `index` are stored with release after what they stand for, and read with acquire. `lock` is held by who changes them. */
static struct {
    pthread_mutex_t lock;
    _Atomic(int) attachment;
    struct corral_quota *quota;
    uint32_t role;
    bool watches_forks;
    _Atomic(uint32_t) holder[CORRAL_LEDGER_DEVICES_MAX]; /* by device of the ledger */
    _Atomic(uint32_t)
        index[CORRAL_LEDGER_DEVICES_MAX]; /* by the driver's ordinal: device of the ledger + 1 */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Only this thread lives on in the child. The parent's attachment is left where it is: taking it apart is not safe here, and it gives nothing back. */
static void after_fork(void)
{
    corral_cuda_log_after_fork();
    pthread_mutex_init(&state.lock, NULL);
    atomic_store_explicit(&state.attachment, UNATTACHED, memory_order_relaxed);
    state.quota = NULL;
    for (uint32_t i = 0; i < CORRAL_LEDGER_DEVICES_MAX; i++) {
        atomic_store_explicit(&state.holder[i], NOT_JOINED, memory_order_relaxed);
    }
}

static enum attachment attach(void)
{
    int saved = errno;
    pthread_mutex_lock(&state.lock);
    int is = atomic_load_explicit(&state.attachment, memory_order_relaxed);
    if (is == UNATTACHED) {
        struct corral_error err;
        if (!state.watches_forks) {
            state.watches_forks = pthread_atfork(NULL, NULL, after_fork) == 0;
        }
        enum corral_status status = corral_quota_attach_environment(&state.quota, &state.role, &err);
        if (status != CORRAL_OK) {
            corral_cuda_log("gpu memory closed", "every allocation is denied: %s", err.text);
        }
        is = status == CORRAL_OK ? ATTACHED : NO_LEDGER;
        atomic_store_explicit(&state.attachment, is, memory_order_release);
    }
    pthread_mutex_unlock(&state.lock);
    errno = saved;
    return (enum attachment)is;
}

enum corral_cuda_mode corral_cuda_mode(void)
{
    int is = atomic_load_explicit(&state.attachment, memory_order_acquire);
    if (is == UNATTACHED) {
        is = attach();
    }
    enum corral_cuda_verdict verdict = corral_cuda_last_verdict();
    if (verdict == CORRAL_CUDA_UNCHECKED) {
        verdict = corral_cuda_check_driver();
    }
    return is == ATTACHED && verdict != CORRAL_CUDA_REFUSED ? CORRAL_CUDA_FENCED : CORRAL_CUDA_CLOSED;
}

struct corral_quota *corral_cuda_quota(void)
{
    return corral_cuda_mode() == CORRAL_CUDA_FENCED ? state.quota : NULL;
}

uint32_t corral_cuda_role(void)
{
    return state.role;
}

static bool join(uint32_t device, uint32_t *holder)
{
    int saved = errno;
    struct corral_error err;
    enum corral_status status = CORRAL_OK;
    pthread_mutex_lock(&state.lock);
    uint32_t is = atomic_load_explicit(&state.holder[device], memory_order_relaxed);
    if (is == NOT_JOINED) {
        status = corral_quota_join_index(state.quota, device, state.role, holder, &err);
        if (status == CORRAL_OK) {
            is = *holder + 1;
            if (corral_cuda_driver_unproven()) {
                corral_quota_add_flags(state.quota, *holder, CORRAL_HOLDER_UNPROVEN);
            }
            atomic_store_explicit(&state.holder[device], is, memory_order_release);
        }
    }
    pthread_mutex_unlock(&state.lock);
    if (status != CORRAL_OK) {
        corral_cuda_log("gpu memory denied", "cannot become a holder on the device: %s", err.text);
    }
    errno = saved;
    *holder = is - 1;
    return is != NOT_JOINED;
}

static bool holder_of(uint32_t device, uint32_t *holder)
{
    uint32_t is = atomic_load_explicit(&state.holder[device], memory_order_acquire);
    if (is != NOT_JOINED) {
        *holder = is - 1;
        return true;
    }
    return join(device, holder);
}

bool corral_cuda_holder_of_uuid(const uint8_t uuid[16], uint32_t *device, uint32_t *holder)
{
    struct corral_quota *quota = corral_cuda_quota();
    if (!quota) {
        return false;
    }
    uint32_t found = corral_ledger_find_uuid(corral_quota_ledger(quota), uuid);
    if (found >= CORRAL_LEDGER_DEVICES_MAX) {
        return false;
    }
    uint32_t is = atomic_load_explicit(&state.holder[found], memory_order_acquire);
    *holder = is == NOT_JOINED ? CORRAL_LEDGER_NONE : is - 1;
    *device = found;
    return true;
}

/* A slice of a device has a UUID of its own, which the newer function tells; the ledger may know it by that or by the whole device's. */
static uint32_t find_ordinal(CUdevice device)
{
    const struct corral_ledger *ledger = corral_quota_ledger(state.quota);
    CUuuid uuid;
    uint32_t found = NOT_IN_LEDGER;
    if (REAL(cuDeviceGetUuid_v2)(&uuid, device) == CUDA_SUCCESS) {
        found = corral_ledger_find_uuid(ledger, (const uint8_t *)uuid.bytes);
    }
    if (found == NOT_IN_LEDGER && REAL(cuDeviceGetUuid)(&uuid, device) == CUDA_SUCCESS) {
        found = corral_ledger_find_uuid(ledger, (const uint8_t *)uuid.bytes);
    }
    return found;
}

bool corral_cuda_ledger_device(CUdevice device, uint32_t *index)
{
    if (device < 0 || device >= CORRAL_LEDGER_DEVICES_MAX || corral_cuda_mode() != CORRAL_CUDA_FENCED) {
        return false;
    }
    uint32_t is = atomic_load_explicit(&state.index[device], memory_order_relaxed);
    if (is == 0) {
        uint32_t found = find_ordinal(device);
        if (found >= CORRAL_LEDGER_DEVICES_MAX) {
            return false;
        }
        is = found + 1;
        atomic_store_explicit(&state.index[device], is, memory_order_relaxed);
    }
    *index = is - 1;
    return true;
}

bool corral_cuda_holder(CUdevice device, uint32_t *holder)
{
    uint32_t index;
    return corral_cuda_ledger_device(device, &index) && holder_of(index, holder);
}

CUdevice corral_cuda_current_device(void)
{
    CUdevice device;
    return REAL(cuCtxGetDevice)(&device) == CUDA_SUCCESS ? device : -1;
}
