#include "quota/cuda/client.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const char *corral_cuda_route_name(enum corral_cuda_route route)
{
    static const char *const names[CORRAL_CUDA_ROUTES] = {"plain", "dlsym", "cuGetProcAddress",
                                                          "cuGetProcAddress-per-thread"};
    return route < CORRAL_CUDA_ROUTES ? names[route] : "?";
}

static void *look_up(void *library, const char *base, int version, enum corral_cuda_route route)
{
    cuGetProcAddress_v2_fn v2 = NULL;
    void *found = dlsym(library, "cuGetProcAddress_v2"), *out = NULL;
    memcpy(&v2, &found, sizeof v2);
    uint64_t flags = route == CORRAL_CUDA_ROUTE_LOOKUP ? CU_GET_PROC_ADDRESS_LEGACY_STREAM
                                                       : CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    return v2 != NULL && v2(base, &out, version, flags, NULL) == CUDA_SUCCESS ? out : NULL;
}

static void *find(void *library, const char *symbol, const char *base, int version,
                  enum corral_cuda_route route)
{
    if (route == CORRAL_CUDA_ROUTE_DLSYM) {
        return dlsym(library, symbol);
    }
    return route == CORRAL_CUDA_ROUTE_PLAIN ? dlsym(RTLD_DEFAULT, symbol)
                                            : look_up(library, base, version, route);
}

enum corral_status corral_cuda_client_open(enum corral_cuda_route route, struct corral_cuda_client *out,
                                           struct corral_error *err)
{
    struct corral_cuda_client c = {0};
    /* Global, so that what it exports is what a program linked with it would see. */
    c.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (c.library == NULL) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "no CUDA driver: libcuda.so.1 cannot be loaded");
    }
    const char *missing = NULL;
    void *found;
#define CORRAL_CUDA_CLIENT_LOAD(name, base, version)      \
    found = find(c.library, #name, base, version, route); \
    memcpy(&c.name, &found, sizeof c.name);               \
    missing = found == NULL && missing == NULL ? #name : missing;
    CORRAL_CUDA_CLIENT_FUNCTIONS(CORRAL_CUDA_CLIENT_LOAD)
#undef CORRAL_CUDA_CLIENT_LOAD
    if (missing != NULL) {
        dlclose(c.library);
        return corral_fail(err, CORRAL_UNSUPPORTED, "the CUDA driver has no %s (looked up by %s)", missing,
                           corral_cuda_route_name(route));
    }
    *out = c;
    return CORRAL_OK;
}

void corral_cuda_client_close(struct corral_cuda_client *c)
{
    /* Unloading a driver that has run takes its threads' code away; the handle is left open on purpose. */
    memset(c, 0, sizeof *c);
}

const char *corral_cuda_client_error(const struct corral_cuda_client *c, CUresult result, char text[32])
{
    const char *name = NULL;
    if (c->cuGetErrorName(result, &name) == CUDA_SUCCESS && name != NULL) {
        return name;
    }
    snprintf(text, 32, "CUDA error %d", (int)result);
    return text;
}
