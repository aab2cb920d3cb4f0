#include "quota/cuda/elf.h"

/* The loader has made most of these absolute, but not in the vdso. */
static uintptr_t absolute(uintptr_t base, uintptr_t value)
{
    return value < base ? base + value : value;
}

static void read_dynamic(struct corral_elf *e, const ElfW(Dyn) * dynamic)
{
    size_t soname = 0;
    for (const ElfW(Dyn) *d = dynamic; d->d_tag != DT_NULL; d++) {
        uintptr_t at = absolute(e->base, d->d_un.d_ptr);
        switch (d->d_tag) {
        case DT_SYMTAB:
            e->symbols = (const void *)at;
            break;
        case DT_STRTAB:
            e->strings = (const void *)at;
            break;
        case DT_GNU_HASH:
            e->gnu_hash = (const void *)at;
            break;
        case DT_HASH:
            e->sysv_hash = (const void *)at;
            break;
        case DT_VERSYM:
            e->versions = (const void *)at;
            break;
        case DT_SONAME:
            soname = d->d_un.d_val;
            break;
        default:
            break;
        }
    }
    e->soname = soname != 0 && e->strings ? e->strings + soname : "";
}

struct visit {
    bool (*fn)(void *ctx, const struct corral_elf *object);
    void *ctx;
};

static int visit_object(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    const struct visit *v = ctx;
    struct corral_elf e = {.base = info->dlpi_addr,
                           .low = UINTPTR_MAX,
                           .path = info->dlpi_name ? info->dlpi_name : "",
                           .soname = ""};
    const ElfW(Dyn) *dynamic = NULL;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + p->p_vaddr;
        if (p->p_type == PT_LOAD) {
            e.low = start < e.low ? start : e.low;
            e.high = start + p->p_memsz > e.high ? start + p->p_memsz : e.high;
        } else if (p->p_type == PT_DYNAMIC) {
            dynamic = (const void *)start;
        }
    }
    if (!dynamic) {
        return 0;
    }
    read_dynamic(&e, dynamic);
    if (!e.symbols || !e.strings || (!e.gnu_hash && !e.sysv_hash)) {
        return 0;
    }
    return v->fn(v->ctx, &e);
}

bool corral_elf_each(bool (*fn)(void *ctx, const struct corral_elf *object), void *ctx)
{
    struct visit v = {.fn = fn, .ctx = ctx};
    return dl_iterate_phdr(visit_object, &v) != 0;
}

/* What the program was started with stands first in the loader's list and never leaves it. */
bool corral_elf_find_early(const char *soname, struct corral_elf *out)
{
    for (const struct link_map *m = _r_debug.r_map; m; m = m->l_next) {
        struct corral_elf e = {.base = m->l_addr, .path = m->l_name ? m->l_name : "", .soname = ""};
        if (m->l_ld) {
            read_dynamic(&e, m->l_ld);
        }
        if (e.symbols && e.strings && (e.gnu_hash || e.sysv_hash) && corral_elf_same(e.soname, soname)) {
            *out = e;
            return true;
        }
    }
    return false;
}

struct wanted {
    const char *soname;
    struct corral_elf *out;
};

static bool is_wanted(void *ctx, const struct corral_elf *object)
{
    const struct wanted *w = ctx;
    const char *name = object->soname[0] ? object->soname : object->path;
    for (const char *c = name; *c; c++) {
        name = *c == '/' ? c + 1 : name;
    }
    if (!corral_elf_same(name, w->soname)) {
        return false;
    }
    *w->out = *object;
    return true;
}

bool corral_elf_find(const char *soname, struct corral_elf *out)
{
    struct wanted w = {.soname = soname, .out = out};
    return corral_elf_each(is_wanted, &w);
}

/* Defined here, a function, and of the version that a plain reference means. */
static bool is_function(const struct corral_elf *e, uint32_t i)
{
    const ElfW(Sym) *s = &e->symbols[i];
    bool hidden = e->versions && (e->versions[i] & 0x8000U) != 0;
    return ELF64_ST_TYPE(s->st_info) == STT_FUNC && s->st_shndx != SHN_UNDEF && s->st_value != 0 && !hidden;
}

static void *function_at(const struct corral_elf *e, uint32_t i)
{
    return (void *)(e->base + e->symbols[i].st_value);
}

/* The layout of DT_GNU_HASH: counts, a Bloom filter of `words` words, buckets, and for each symbol from `first` its hash with the chain's end in bit 0. */
struct gnu_hash {
    uint32_t buckets, first;
    const uint32_t *bucket, *chain;
};

static struct gnu_hash gnu_hash_of(const struct corral_elf *e)
{
    const uint32_t *h = e->gnu_hash;
    const uint32_t *bucket = h + 4 + (size_t)h[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    return (struct gnu_hash){.buckets = h[0], .first = h[1], .bucket = bucket, .chain = bucket + h[0]};
}

static void *find_by_gnu_hash(const struct corral_elf *e, const char *name)
{
    struct gnu_hash g = gnu_hash_of(e);
    uint32_t hash = 5381;
    for (const unsigned char *c = (const unsigned char *)name; *c; c++) {
        hash = hash * 33 + *c;
    }
    uint32_t i = g.buckets ? g.bucket[hash % g.buckets] : 0;
    for (; i >= g.first && i != 0; i++) {
        uint32_t h = g.chain[i - g.first];
        if ((h | 1U) == (hash | 1U) && is_function(e, i) &&
            corral_elf_same(e->strings + e->symbols[i].st_name, name)) {
            return function_at(e, i);
        }
        if (h & 1U) {
            break;
        }
    }
    return NULL;
}

static void *find_by_sysv_hash(const struct corral_elf *e, const char *name)
{
    uint32_t hash = 0;
    for (const unsigned char *c = (const unsigned char *)name; *c; c++) {
        hash = (hash << 4) + *c;
        hash = (hash ^ ((hash & 0xf0000000U) >> 24)) & 0x0fffffffU;
    }
    uint32_t buckets = e->sysv_hash[0];
    const uint32_t *bucket = e->sysv_hash + 2, *chain = bucket + buckets;
    for (uint32_t i = buckets ? bucket[hash % buckets] : 0; i != 0; i = chain[i]) {
        if (is_function(e, i) && corral_elf_same(e->strings + e->symbols[i].st_name, name)) {
            return function_at(e, i);
        }
    }
    return NULL;
}

void *corral_elf_function(const struct corral_elf *object, const char *name)
{
    return object->gnu_hash ? find_by_gnu_hash(object, name) : find_by_sysv_hash(object, name);
}

static uint32_t symbol_count(const struct corral_elf *e)
{
    if (!e->gnu_hash) {
        return e->sysv_hash[1];
    }
    struct gnu_hash g = gnu_hash_of(e);
    uint32_t last = 0;
    for (uint32_t b = 0; b < g.buckets; b++) {
        last = g.bucket[b] > last ? g.bucket[b] : last;
    }
    if (last < g.first) {
        return g.first;
    }
    while ((g.chain[last - g.first] & 1U) == 0) {
        last++;
    }
    return last + 1;
}

bool corral_elf_each_function(const struct corral_elf *object,
                              bool (*fn)(void *ctx, const char *name, void *address), void *ctx)
{
    uint32_t count = symbol_count(object);
    for (uint32_t i = 1; i < count; i++) {
        if (is_function(object, i) &&
            fn(ctx, object->strings + object->symbols[i].st_name, function_at(object, i))) {
            return true;
        }
    }
    return false;
}

bool corral_elf_contains(const struct corral_elf *object, const void *address)
{
    return (uintptr_t)address >= object->low && (uintptr_t)address < object->high;
}
