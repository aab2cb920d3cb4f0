/* Programs find the driver's functions in many ways; each of them has to end at our hook and nowhere else.
 *
 *  - linked with libcuda: the exported hooks have the driver's names and come first.
 *  - dlsym, dlvsym (also of libcudart, static or shared, and of ctypes): the functions of dlsym_x86_64.S ask here. Only where libc's answer is the driver's own
 *    function is it replaced; any other library's function of that name stays what it is.
 *  - cuGetProcAddress: the driver's answer is replaced by the hook of exactly that variant.
 */
#include "quota/cuda/core.h"

#include <dlfcn.h>
#include <errno.h>

/* What the trampolines export. */
extern void *corral_cuda_own_dlsym(void *handle, const char *name) __asm__("dlsym");
extern void *corral_cuda_own_dlvsym(void *handle, const char *name, const char *version) __asm__("dlvsym");

struct corral_cuda_answer {
    void *address;
    uintptr_t final; /* 0: jump to `address`, libc's function */
};
struct corral_cuda_answer corral_cuda_answer_dlsym(void *handle, const char *name, const void *caller);
struct corral_cuda_answer corral_cuda_answer_dlvsym(void *handle, const char *name, const char *version,
                                                    const void *caller);

/* A name that is ours to answer, and the function it hides: NULL when that is not loaded or has no such function. */
struct target {
    void *hook, *real;
};

/* Names that are looked up all day long leave here after a comparison of two letters. */
static bool find_target(const char *name, struct target *out)
{
    if (name[0] == 'd') {
        if (corral_elf_same(name, "dlsym")) {
            *out = (struct target){(void *)corral_cuda_own_dlsym, (void *)corral_cuda_libc_dlsym()};
            return true;
        }
        if (corral_elf_same(name, "dlvsym")) {
            *out = (struct target){(void *)corral_cuda_own_dlvsym, (void *)corral_cuda_libc_dlvsym()};
            return true;
        }
        return false;
    }
    if (!(name[0] == 'c' && name[1] == 'u') && !(name[0] == 'n' && name[1] == 'v')) {
        return false;
    }
    enum corral_cuda_symbol symbol = corral_cuda_find(name);
    if (symbol == CORRAL_CUDA_SYMBOLS || !corral_cuda_rows[symbol].hook) {
        return false;
    }
    out->hook = corral_cuda_rows[symbol].hook;
    out->real = corral_cuda_real(symbol);
    return true;
}

static void *ask_libc(void *handle, const char *name, const char *version)
{
    return version ? corral_cuda_libc_dlvsym()(handle, name, version)
                   : corral_cuda_libc_dlsym()(handle, name);
}

/* What RTLD_NEXT would find for a caller: the first definition in the loader's list after the caller's own object. */
struct next_search {
    const void *caller;
    const char *name;
    bool past_caller;
    void *found;
};

static bool search_next(void *ctx, const struct corral_elf *object)
{
    struct next_search *s = ctx;
    if (!s->past_caller) {
        s->past_caller = corral_elf_contains(object, s->caller);
        return false;
    }
    s->found = corral_elf_function(object, s->name);
    return s->found != NULL;
}

static bool answer_next(const struct target *t, const char *name, const void *caller, void **out)
{
    struct next_search s = {.caller = caller, .name = name};
    corral_elf_each(search_next, &s);
    *out = t->hook;
    return t->real && s.found == t->real;
}

/* libc's answer in the caller's place, for anything but RTLD_NEXT; the hook where that is the driver's function. */
static bool answer_handle(const struct target *t, void *handle, const char *name, const char *version,
                          void **out)
{
    void *found = ask_libc(handle, name, version);
    if (found != t->hook) {
        *out = t->hook;
        return found && found == t->real;
    }
    /* The scope has our hook in it. Without us it would have had the driver's function, if there were one; otherwise what comes after us. */
    *out = t->real ? t->hook : ask_libc(RTLD_NEXT, name, version);
    return true;
}

/* What the driver looks up for itself is its own business. */
static bool is_driver(const void *caller)
{
    struct corral_elf elf;
    return corral_cuda_driver(&elf) && corral_elf_contains(&elf, caller);
}

static bool answer(void *handle, const char *name, const char *version, const void *caller, void **out)
{
    struct target t;
    int saved = errno;
    if (!name || !find_target(name, &t)) {
        return false;
    }
    bool final = !is_driver(caller) && (handle == RTLD_NEXT ? answer_next(&t, name, caller, out)
                                                            : answer_handle(&t, handle, name, version, out));
    errno = saved;
    return final;
}

struct corral_cuda_answer corral_cuda_answer_dlsym(void *handle, const char *name, const void *caller)
{
    struct corral_cuda_answer a = {.final = 1};
    if (!answer(handle, name, NULL, caller, &a.address)) {
        a = (struct corral_cuda_answer){.address = (void *)corral_cuda_libc_dlsym()};
    }
    return a;
}

struct corral_cuda_answer corral_cuda_answer_dlvsym(void *handle, const char *name, const char *version,
                                                    const void *caller)
{
    struct corral_cuda_answer a = {.final = 1};
    if (!version || !answer(handle, name, version, caller, &a.address)) {
        a = (struct corral_cuda_answer){.address = (void *)corral_cuda_libc_dlvsym()};
    }
    return a;
}

/* ---- cuGetProcAddress ---- */

/* How well a variant answers what was asked for: the stream flavour first, then the newest that is not too new. 0: too new. */
static uint32_t fitness(const struct corral_cuda_row *row, int version, uint64_t flags)
{
    bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
    bool same_stream = (row->stream != CORRAL_CUDA_LEGACY) == per_thread;
    return row->version > (uint32_t)version ? 0 : row->version + 1 + (same_stream ? UINT32_C(1) << 24 : 0);
}

/* The variant whose address the driver gave. Several may share one. */
static enum corral_cuda_symbol variant_by_address(uint16_t base, const void *address, int version,
                                                  uint64_t flags)
{
    enum corral_cuda_symbol best = CORRAL_CUDA_SYMBOLS;
    for (uint32_t i = 0; i < CORRAL_CUDA_SYMBOLS; i++) {
        const struct corral_cuda_row *row = &corral_cuda_rows[i];
        if (row->base == base && corral_cuda_real((enum corral_cuda_symbol)i) == address &&
            (best == CORRAL_CUDA_SYMBOLS ||
             fitness(row, version, flags) > fitness(&corral_cuda_rows[best], version, flags))) {
            best = (enum corral_cuda_symbol)i;
        }
    }
    return best;
}

/* The driver may answer with an address that it exports under no name: then it is the variant that fits best. A flavour for per-thread streams is never what somebody got who
 * did not ask for it. */
static enum corral_cuda_symbol variant_by_version(uint16_t base, int version, uint64_t flags)
{
    bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
    enum corral_cuda_symbol best = CORRAL_CUDA_SYMBOLS;
    uint32_t best_fitness = 0;
    for (uint32_t i = 0; i < CORRAL_CUDA_SYMBOLS; i++) {
        const struct corral_cuda_row *row = &corral_cuda_rows[i];
        if (row->base == base && row->class != CORRAL_CUDA_ALIAS &&
            (row->stream == CORRAL_CUDA_LEGACY || per_thread) &&
            fitness(row, version, flags) > best_fitness) {
            best = (enum corral_cuda_symbol)i;
            best_fitness = fitness(row, version, flags);
        }
    }
    return best;
}

struct export_search {
    const void *address;
    const char *name;
};

static bool is_export(void *ctx, const char *name, void *address)
{
    struct export_search *s = ctx;
    if (address != s->address) {
        return false;
    }
    s->name = name;
    return true;
}

/* The driver exports it under a name that the table does not have: a variant newer than the table. */
static bool is_unknown_export(const void *address)
{
    struct corral_elf elf;
    struct export_search s = {.address = address};
    return corral_cuda_driver(&elf) && corral_elf_each_function(&elf, is_export, &s) &&
           corral_cuda_find(s.name) == CORRAL_CUDA_SYMBOLS;
}

/* What the program gets in place of the driver's answer. False: it must not have this function. */
static bool replace(const char *name, int version, uint64_t flags, void **address)
{
    enum corral_cuda_symbol any = corral_cuda_find_base(name);
    if (any != CORRAL_CUDA_SYMBOLS) {
        uint16_t base = corral_cuda_rows[any].base;
        enum corral_cuda_symbol variant = variant_by_address(base, *address, version, flags);
        if (variant == CORRAL_CUDA_SYMBOLS && !is_unknown_export(*address)) {
            variant = variant_by_version(base, version, flags);
        }
        if (variant != CORRAL_CUDA_SYMBOLS) {
            void *hook = corral_cuda_rows[variant].hook;
            *address = hook ? hook : *address;
            return true;
        }
    }
    if (!corral_cuda_could_allocate(name) || corral_cuda_unknown_allowed()) {
        return true;
    }
    corral_cuda_log("driver function withheld",
                    "cuGetProcAddress: %s of version %d is not known here and could allocate", name, version);
    return false;
}

CUresult cuGetProcAddress(const char *symbol, void **out, int version, uint64_t flags)
{
    CUresult result = REAL(cuGetProcAddress)(symbol, out, version, flags);
    if (result == CUDA_SUCCESS && symbol && out && *out && !replace(symbol, version, flags, out)) {
        *out = NULL;
        return CUDA_ERROR_NOT_FOUND;
    }
    return result;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags,
                             CUdriverProcAddressQueryResult *status)
{
    CUresult result = REAL(cuGetProcAddress_v2)(symbol, out, version, flags, status);
    if (result == CUDA_SUCCESS && symbol && out && *out && !replace(symbol, version, flags, out)) {
        *out = NULL;
        if (!status) {
            return CUDA_ERROR_NOT_FOUND;
        }
        *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    }
    return result;
}
