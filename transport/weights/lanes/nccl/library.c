#include "transport/weights/lanes/nccl/library.h"

#include <dlfcn.h>
#include <pthread.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct nccl functions;
static struct corral_error failed; /* CORRAL_OK when the library is there */

#define ENTRY(name)                        \
    {                                      \
#name, offsetof(struct nccl, name) \
    }
static const struct {
    const char *symbol;
    size_t offset;
} entries[] = {
    ENTRY(ncclGetVersion),        ENTRY(ncclGetUniqueId),  ENTRY(ncclCommInitRankConfig),
    ENTRY(ncclCommGetAsyncError), ENTRY(ncclCommAbort),    ENTRY(ncclGroupStart),
    ENTRY(ncclGroupEnd),          ENTRY(ncclSend),         ENTRY(ncclRecv),
    ENTRY(ncclGetErrorString),    ENTRY(ncclGetLastError),
};

static enum corral_status open_library(struct corral_error *err)
{
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        return corral_fail(err, CORRAL_UNSUPPORTED, "no NCCL: %s", why != NULL ? why : "libnccl.so.2");
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(entries); i++) {
        void *symbol = dlsym(library, entries[i].symbol);
        if (symbol == NULL) {
            return corral_fail(err, CORRAL_UNSUPPORTED,
                               "libnccl.so.2 has no %s: it is older than NCCL 2.14, which the lane needs",
                               entries[i].symbol);
        }
        *(void **)(void *)((char *)&functions + entries[i].offset) = symbol;
    }
    int version = 0;
    if (functions.ncclGetVersion(&version) != NCCL_SUCCESS || version < (int)NCCL_CONFIG_VERSION) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "libnccl.so.2 is version %d; the lane needs %u", version,
                           NCCL_CONFIG_VERSION);
    }
    return CORRAL_OK;
}

static void open_once(void)
{
    struct corral_error err = {0};
    if (open_library(&err) != CORRAL_OK) {
        failed = err;
    }
}

enum corral_status nccl_open(const struct nccl **out, struct corral_error *err)
{
    pthread_once(&once, open_once);
    if (failed.status != CORRAL_OK) {
        return corral_fail(err, failed.status, "%s", failed.text);
    }
    *out = &functions;
    return CORRAL_OK;
}

enum corral_status nccl_fail(const struct nccl *nccl, int result, nccl_comm comm, struct corral_error *err,
                             const char *what)
{
    const char *text = nccl->ncclGetErrorString(result);
    const char *last = comm != NULL ? nccl->ncclGetLastError(comm) : NULL;
    bool peer = result == NCCL_REMOTE_ERROR || result == NCCL_SYSTEM_ERROR;
    return corral_fail(err, peer ? CORRAL_PEER : CORRAL_IO, "%s: NCCL: %.100s (%d)%s%.160s", what,
                       text != NULL ? text : "", result, last != NULL && last[0] != '\0' ? ": " : "",
                       last != NULL ? last : "");
}
