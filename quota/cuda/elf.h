/* Symbols of the objects that are loaded in this process, read from their own dynamic tables, without dlsym (which libcorral-quota.so itself exports) and
 * without locks of our own. Any thread. An object that is unloaded meanwhile is the caller's risk (real.c pins those whose addresses are kept).
 */
#ifndef CORRAL_QUOTA_CUDA_ELF_H
#define CORRAL_QUOTA_CUDA_ELF_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* strcmp() == 0, by ourselves: dlsym is called while the first libraries start, and a sanitizer's or an interposer's strcmp may not be ready for us by then. */
static inline bool corral_elf_same(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

struct corral_elf {
    uintptr_t base, low, high; /* load address, first and last byte + 1 of what is mapped */
    const char *path;          /* as the loader knows it; "" for the program */
    const char *soname;        /* "" without one */
    const ElfW(Sym) * symbols;
    const char *strings;
    const uint32_t *gnu_hash, *sysv_hash;
    const ElfW(Half) * versions;
};

/* In the order of the loader's list, until fn returns true; that is returned. */
bool corral_elf_each(bool (*fn)(void *ctx, const struct corral_elf *object), void *ctx);
/* The first object of that soname or, without one, of that file name. */
bool corral_elf_find(const char *soname, struct corral_elf *out);
/* As above among what the program was started with, without the loader's lock or any function of libc: for use before anything is initialised. `low` and `high` are not known. */
bool corral_elf_find_early(const char *soname, struct corral_elf *out);
/* Address of a function that the object defines under its default version; NULL when it does not. */
void *corral_elf_function(const struct corral_elf *object, const char *name);
/* Every function it exports, until fn returns true. */
bool corral_elf_each_function(const struct corral_elf *object,
                              bool (*fn)(void *ctx, const char *name, void *address), void *ctx);
bool corral_elf_contains(const struct corral_elf *object, const void *address);

#endif
