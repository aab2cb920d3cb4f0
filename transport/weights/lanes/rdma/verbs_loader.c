#include "transport/weights/lanes/rdma/verbs_loader.h"
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct corral_verbs table;
static struct corral_error load_error;

static void *symbol(void *library, const char *name, const char *version)
{
    void *address = dlvsym(library, name, version);
    if (address == NULL) {
        corral_fail(&load_error, CORRAL_UNSUPPORTED, "libibverbs.so.1 has no %s of version %s", name,
                    version);
    }
    return address;
}

static void load(void)
{
    /* Never closed: threads of other lanes may be inside it, and it keeps lists of its own. */
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        corral_fail(&load_error, CORRAL_UNSUPPORTED,
                    "libibverbs cannot be loaded (%s): install libibverbs1 and ibverbs-providers",
                    why != NULL ? why : "no reason given");
        return;
    }
#define LOAD(result, name, version, parameters)                   \
    {                                                             \
        void *address = symbol(library, "ibv_" #name, (version)); \
        if (address == NULL) {                                    \
            return;                                               \
        }                                                         \
        memcpy(&table.name, &address, sizeof(address));           \
    }
    CORRAL_VERBS_FUNCTIONS(LOAD)
#undef LOAD
    void *iova2 = dlvsym(library, "ibv_reg_mr_iova2", "IBVERBS_1.8");
    memcpy(&table.reg_mr_iova2, &iova2, sizeof(iova2));
    /* A worker may fork (an isolated environment): without this, kernels before 5.12 give the child the pages that the adapter writes to. Not fatal where it fails: newer kernels copy at fork. */
    table.fork_init();
}

enum corral_status corral_verbs_load(const struct corral_verbs **out, struct corral_error *err)
{
    pthread_once(&once, load);
    if (load_error.status != CORRAL_OK) {
        return corral_fail(err, load_error.status, "%s", load_error.text);
    }
    *out = &table;
    return CORRAL_OK;
}
