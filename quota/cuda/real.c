/* The driver's own functions, read from the symbol table of the libcuda.so.1 that is loaded: never through the loader's scopes, where our hooks come first.
 *
 * No lock is held while the loader is asked (it has its own, and calls constructors under it): racing threads find the same and store the same.
 */
#include "quota/cuda/core.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

/* What a hook calls when the driver has no such function: reached through a weak reference or a main program's own table only. */
static CUresult absent(void)
{
    return CUDA_ERROR_NOT_FOUND;
}

/* A library's functions, once it has been seen. Stored with release, read with acquire: `ready` is stored last. */
struct real_library {
    const char *soname, *prefix;
    _Atomic(bool) ready;
    struct corral_elf elf; /* written by whoever wins `writing` */
    _Atomic(bool) writing;
};
static struct real_library driver = {.soname = CORRAL_CUDA_DRIVER, .prefix = "cu"};
static struct real_library nvml = {.soname = CORRAL_CUDA_NVML, .prefix = "nvml"};
static _Atomic(void *) real_functions[CORRAL_CUDA_SYMBOLS];

/* The addresses are kept for as long as the process lives, so the library has to stay. */
static void pin(const struct corral_elf *elf)
{
    int saved = errno;
    void *handle = dlopen(elf->path, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    if (handle) {
        dlclose(handle);
    } else {
        dlerror(); /* not the application's error */
    }
    errno = saved;
}

static void read_library(struct real_library *l)
{
    struct corral_elf elf;
    if (!corral_elf_find(l->soname, &elf)) {
        return;
    }
    pin(&elf);
    for (uint32_t i = 0; i < CORRAL_CUDA_SYMBOLS; i++) {
        const char *name = corral_cuda_rows[i].name;
        if (strncmp(name, l->prefix, strlen(l->prefix)) == 0) {
            atomic_store_explicit(&real_functions[i], corral_elf_function(&elf, name), memory_order_relaxed);
        }
    }
    if (!atomic_exchange_explicit(&l->writing, true, memory_order_acq_rel)) {
        l->elf = elf;
        atomic_store_explicit(&l->ready, true, memory_order_release); /* pairs with is_ready() */
    }
}

static bool is_ready(struct real_library *l)
{
    if (!atomic_load_explicit(&l->ready, memory_order_acquire)) {
        read_library(l);
        /* Somebody else is copying the few words of it at this moment. */
        while (atomic_load_explicit(&l->writing, memory_order_acquire) &&
               !atomic_load_explicit(&l->ready, memory_order_acquire)) {
            sched_yield();
        }
    }
    return atomic_load_explicit(&l->ready, memory_order_acquire);
}

static struct real_library *library_of(enum corral_cuda_symbol symbol)
{
    return corral_cuda_rows[symbol].name[0] == 'n' ? &nvml : &driver;
}

void *corral_cuda_real(enum corral_cuda_symbol symbol)
{
    void *found = atomic_load_explicit(&real_functions[symbol], memory_order_relaxed);
    if (!found && is_ready(library_of(symbol))) {
        found = atomic_load_explicit(&real_functions[symbol], memory_order_relaxed);
    }
    return found;
}

void *corral_cuda_call(enum corral_cuda_symbol symbol)
{
    void *found = corral_cuda_real(symbol);
    return found ? found : (void *)absent;
}

bool corral_cuda_driver(struct corral_elf *out)
{
    if (!is_ready(&driver)) {
        return false;
    }
    *out = driver.elf;
    return true;
}

void *corral_cuda_real_by_name(const char *library, const char *name)
{
    struct real_library *l = strcmp(library, CORRAL_CUDA_NVML) == 0 ? &nvml : &driver;
    return is_ready(l) ? corral_elf_function(&l->elf, name) : NULL;
}

/* In libc since 2.34, in libdl before. */
static void *in_libc(_Atomic(void *) *cache, const char *name)
{
    void *found = atomic_load_explicit(cache, memory_order_relaxed);
    if (!found) {
        static const char *const libraries[] = {"libc.so.6", "libdl.so.2"};
        struct corral_elf elf;
        for (size_t i = 0; i < 2 && !found; i++) {
            found = corral_elf_find_early(libraries[i], &elf) ? corral_elf_function(&elf, name) : NULL;
        }
        atomic_store_explicit(cache, found, memory_order_relaxed);
    }
    return found;
}

corral_dlsym_fn corral_cuda_libc_dlsym(void)
{
    static _Atomic(void *) cache;
    return (corral_dlsym_fn)in_libc(&cache, "dlsym");
}

corral_dlvsym_fn corral_cuda_libc_dlvsym(void)
{
    static _Atomic(void *) cache;
    return (corral_dlvsym_fn)in_libc(&cache, "dlvsym");
}
