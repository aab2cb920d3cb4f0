#include "transport/weights/lanes/cuda_ipc/ipc.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- place ---- */

void ipc_place_write(struct corral_lane_blob *blob, const struct corral_link *link, const struct ipc_place *p)
{
    corral_lane_blob_begin(blob, CORRAL_LANE_CUDA_IPC, link);
    uint8_t *at = blob->data + CORRAL_LANE_BLOB_HEAD;
    corral_lane_put64(at, p->push);
    corral_lane_put32(at + 8, p->direct);
    corral_lane_put32(at + 12, p->window);
    memcpy(at + 16, &p->device, 16);
    memcpy(at + 32, &p->handle, 64);
    corral_lane_put64(at + 96, p->offset);
    corral_lane_put64(at + 104, p->address);
    corral_lane_put64(at + 112, p->bytes);
    blob->bytes = IPC_PLACE_BYTES;
}

enum corral_status ipc_place_read(const struct corral_lane_blob *blob, const struct corral_link *link,
                                  struct ipc_place *p, struct corral_error *err)
{
    CORRAL_TRY(corral_lane_blob_check(blob, CORRAL_LANE_CUDA_IPC, link, IPC_PLACE_BYTES, err));
    const uint8_t *at = blob->data + CORRAL_LANE_BLOB_HEAD;
    *p = (struct ipc_place){.push = corral_lane_get64(at),
                            .direct = corral_lane_get32(at + 8) != 0,
                            .window = corral_lane_get32(at + 12),
                            .offset = corral_lane_get64(at + 96),
                            .address = corral_lane_get64(at + 104),
                            .bytes = corral_lane_get64(at + 112)};
    memcpy(&p->device, at + 16, 16);
    memcpy(&p->handle, at + 32, 64);
    uint64_t need = p->direct ? link->destination_extent : p->window * ipc_slot_bytes(link);
    if (p->window == 0 || p->window > CORRAL_LANE_WINDOW_MAX || p->bytes < need) {
        return corral_fail(err, CORRAL_PROTOCOL, "the receiver's device memory does not fit the link");
    }
    return CORRAL_OK;
}

uint64_t ipc_slot_bytes(const struct corral_link *link)
{
    return CORRAL_MIN(link->bucket_bytes, (link->bytes + 511) / 512 * 512);
}

/* ---- memory that waits for a process to end ---- */

struct parked {
    struct parked *next;
    int process; /* pidfd */
    int ordinal;
    uint64_t address;
};
static pthread_mutex_t parked_lock = PTHREAD_MUTEX_INITIALIZER; /* guards parked */
static struct parked *parked;

static void free_on(int ordinal, uint64_t address)
{
    const struct corral_cuda *cuda = NULL;
    corral_cuda_context context;
    struct corral_cuda_scope scope = {0};
    if (corral_cuda_open(&cuda, NULL) != CORRAL_OK ||
        corral_cuda_primary(cuda, ordinal, &context, NULL) != CORRAL_OK) {
        return;
    }
    if (corral_cuda_enter(&scope, cuda, context, NULL) == CORRAL_OK) {
        /* Any context of the device will do for cuMemFree: addresses are unique. */
        cuda->cuMemFree(address);
    }
    corral_cuda_leave(&scope);
    cuda->cuDevicePrimaryCtxRelease(ordinal);
}

void ipc_park(int32_t pid, int ordinal, uint64_t address)
{
    struct parked *p = calloc(1, sizeof *p);
    int process = p != NULL && pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    if (process < 0) {
        /* It has ended already, or cannot be watched: then the memory stays until this process ends, rather than be written by a stranger. */
        bool gone = pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
        if (gone) {
            free_on(ordinal, address);
        }
        free(p);
        return;
    }
    *p = (struct parked){.process = process, .ordinal = ordinal, .address = address};
    pthread_mutex_lock(&parked_lock);
    p->next = parked;
    parked = p;
    pthread_mutex_unlock(&parked_lock);
}

void ipc_sweep(void)
{
    pthread_mutex_lock(&parked_lock);
    for (struct parked **at = &parked; *at != NULL;) {
        struct parked *p = *at;
        struct pollfd ended = {.fd = p->process, .events = POLLIN};
        if (poll(&ended, 1, 0) <= 0) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        close(p->process);
        free_on(p->ordinal, p->address);
        free(p);
    }
    pthread_mutex_unlock(&parked_lock);
}

enum corral_status ipc_available(const struct corral_lane_options *options, struct corral_error *err)
{
    (void)options;
    const struct corral_cuda *cuda = NULL;
    return corral_cuda_open(&cuda, err);
}
