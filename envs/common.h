/* What the built-in environments share: JSON arguments, memory, snapshot heads, and one kernel compiled for several instruction sets.
 * Header-only, so that every plug-in stays a single shared object that needs nothing but <corral/env.h> and libm.
 */
#ifndef CORRAL_ENVS_COMMON_H
#define CORRAL_ENVS_COMMON_H

#include <corral/env.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- arguments: one flat JSON object of integers and arrays of integers ---- */

#define ARG_VALUES_MAX 1024

struct arg {
    const char *name;
    int64_t low, high;      /* of every value */
    bool list;              /* an array is accepted too */
    bool given, given_list; /* out */
    int64_t value;          /* in: the default; out: the single value */
    uint32_t count;         /* out: length of the array */
    int64_t *values;        /* out: room for ARG_VALUES_MAX, needed when `list` */
};

static inline const char *arg_space(const char *at)
{
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') {
        at++;
    }
    return at;
}

/* Reads a JSON integer in range at *at. */
static inline bool arg_integer(const char **at, const struct arg *arg, int64_t *out, char *error, size_t room)
{
    const char *c = *at;
    bool negative = *c == '-';
    c += negative;
    if (*c < '0' || *c > '9') {
        snprintf(error, room, "argument \"%s\": an integer is expected", arg->name);
        return false;
    }
    int64_t value = 0;
    while (*c >= '0' && *c <= '9' && value <= INT64_MAX / 100) {
        value = value * 10 + (*c++ - '0');
    }
    value = negative ? -value : value;
    if (*c == '.' || *c == 'e' || *c == 'E') {
        snprintf(error, room, "argument \"%s\": an integer is expected", arg->name);
        return false;
    }
    if ((*c >= '0' && *c <= '9') || value < arg->low || value > arg->high) {
        snprintf(error, room, "argument \"%s\": the range is %lld to %lld", arg->name, (long long)arg->low,
                 (long long)arg->high);
        return false;
    }
    *at = c;
    *out = value;
    return true;
}

static inline bool arg_list(const char **at, struct arg *arg, char *error, size_t room)
{
    const char *c = arg_space(*at + 1);
    arg->given_list = true;
    while (*c != ']') {
        if (arg->count == ARG_VALUES_MAX) {
            snprintf(error, room, "argument \"%s\": more than %d values", arg->name, ARG_VALUES_MAX);
            return false;
        }
        if (!arg_integer(&c, arg, &arg->values[arg->count], error, room)) {
            return false;
        }
        arg->count++;
        c = arg_space(c);
        if (*c == ',' && *arg_space(c + 1) != ']') {
            c = arg_space(c + 1);
        } else if (*c != ']') {
            snprintf(error, room, "argument \"%s\": ',' or ']' is expected", arg->name);
            return false;
        }
    }
    *at = c + 1;
    return true;
}

static inline struct arg *arg_find(const char *name, size_t length, struct arg *args, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (strlen(args[i].name) == length && memcmp(args[i].name, name, length) == 0) {
            return &args[i];
        }
    }
    return NULL;
}

/* Reads one `"name": value` at *at. */
static inline bool arg_member(const char **at, struct arg *args, uint32_t count, char *error, size_t room)
{
    const char *c = *at;
    const char *end = *c == '"' ? strchr(c + 1, '"') : NULL;
    if (end == NULL) {
        snprintf(error, room, "arguments: a quoted name is expected");
        return false;
    }
    size_t length = (size_t)(end - c - 1);
    struct arg *arg = arg_find(c + 1, length, args, count);
    if (arg == NULL) {
        int shown = length < 40 ? (int)length : 40;
        snprintf(error, room, "unknown argument \"%.*s\"", shown, c + 1);
        return false;
    }
    c = arg_space(end + 1);
    if (*c != ':' || arg->given) {
        snprintf(error, room, "argument \"%s\": %s", arg->name,
                 arg->given ? "given twice" : "':' is expected");
        return false;
    }
    arg->given = true;
    c = arg_space(c + 1);
    bool ok = *c == '[' && arg->list ? arg_list(&c, arg, error, room)
                                     : arg_integer(&c, arg, &arg->value, error, room);
    *at = c;
    return ok;
}

/* Fills `args` from the text of a JSON object; NULL and "" stand for "{}". False: `error` says why. */
static inline bool args_parse(const char *json, struct arg *args, uint32_t count, char *error, size_t room)
{
    const char *c = arg_space(json == NULL || *json == '\0' ? "{}" : json);
    if (*c != '{') {
        snprintf(error, room, "arguments: a JSON object is expected");
        return false;
    }
    c = arg_space(c + 1);
    while (*c != '}') {
        if (!arg_member(&c, args, count, error, room)) {
            return false;
        }
        c = arg_space(c);
        if (*c == ',' && *arg_space(c + 1) == '"') {
            c = arg_space(c + 1);
        } else if (*c != '}') {
            snprintf(error, room, "arguments: ',' or '}' is expected");
            return false;
        }
    }
    if (*arg_space(c + 1) != '\0') {
        snprintf(error, room, "arguments: text after the closing '}'");
        return false;
    }
    return true;
}

/* ---- structs that carry their size ---- */

/* Copies what both sides know; the rest of `to` is zero. `size` is what the other side filled. */
static inline void sized_copy(void *to, size_t room, const void *from, uint32_t size)
{
    memset(to, 0, room);
    memcpy(to, from, size < room ? size : room);
}

static inline enum corral_env_status spec_write(struct corral_env_spec *out,
                                                const struct corral_env_spec *spec)
{
    uint32_t size = out->size < sizeof *spec ? out->size : (uint32_t)sizeof *spec;
    if (size < sizeof spec->size) {
        return CORRAL_ENV_INVALID;
    }
    memcpy(out, spec, size);
    out->size = size;
    return CORRAL_ENV_OK;
}

/* ---- memory: from the host when it lends any, so that the job's quota is charged ---- */

struct memory {
    struct corral_env_host host;
};

static inline void memory_open(struct memory *memory, const struct corral_env_host *host)
{
    memset(memory, 0, sizeof *memory);
    if (host != NULL) {
        sized_copy(&memory->host, sizeof memory->host, host, host->size);
    }
}

static inline void *memory_get(const struct memory *memory, size_t bytes)
{
    if (memory->host.alloc != NULL && memory->host.release != NULL) {
        return memory->host.alloc(memory->host.ctx, bytes);
    }
    return calloc(1, bytes);
}

static inline void memory_put(const struct memory *memory, void *block, size_t bytes)
{
    if (memory->host.alloc != NULL && memory->host.release != NULL) {
        memory->host.release(memory->host.ctx, block, bytes);
    } else {
        free(block);
    }
}

/* Hands out cache-line aligned arrays of a block; call it with block NULL to learn the size. */
struct carver {
    char *block;
    size_t used;
};

static inline void *carve(struct carver *carver, size_t count, size_t each)
{
    void *at = carver->block == NULL ? NULL : carver->block + carver->used;
    carver->used += (count * each + 63) / 64 * 64;
    return at;
}

static inline char *cache_aligned(void *block)
{
    return (char *)block + (64 - (uintptr_t)block % 64) % 64;
}

/* ---- buffers and ids ---- */

/* Rows must be whole 4-byte words, so that the kernels can use typed pointers. */
static inline bool buffers_fit(const struct corral_env_buffers *io, uint32_t agents, size_t obs_bytes,
                               size_t action_bytes, char *error, size_t room)
{
    const char *wrong = NULL;
    if (io->envs == 0 || io->agents != agents) {
        wrong = "wrong number of environments or agents";
    } else if (io->obs == NULL || io->action == NULL || io->reward == NULL || io->terminated == NULL ||
               io->truncated == NULL || io->final_obs == NULL) {
        wrong = "a buffer is missing";
    } else if (io->obs_stride < obs_bytes || io->action_stride < action_bytes || io->obs_stride % 4 != 0 ||
               io->action_stride % 4 != 0) {
        wrong = "a row stride is too small or no multiple of 4";
    }
    if (wrong != NULL) {
        snprintf(error, room, "%s", wrong);
    }
    return wrong == NULL;
}

static inline bool ids_valid(const uint32_t *ids, uint32_t count, uint32_t envs)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; ids != NULL && i < count; i++) {
        bad |= ids[i] >= envs;
    }
    return bad == 0;
}

/* ---- snapshots ---- */

/* Every snapshot starts with this head, in the byte order of the machine. */
struct snapshot_head {
    uint32_t kind; /* four letters, the first in the lowest byte */
    uint32_t version;
    uint64_t stream_seed;
    uint64_t episode;
    uint32_t steps;    /* taken in this episode */
    uint32_t reserved; /* 0 */
};
_Static_assert(sizeof(struct snapshot_head) == 32, "the snapshot layout is documented");

#define SNAPSHOT_KIND(a, b, c, d) \
    ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define SNAPSHOT_VERSION 1u

static inline enum corral_env_status snapshot_room(const void *buffer, size_t *bytes, size_t need)
{
    size_t room = *bytes;
    *bytes = need;
    return buffer == NULL || room < need ? CORRAL_ENV_TOO_SMALL : CORRAL_ENV_OK;
}

/* step_limit: a live episode has taken fewer steps than that. */
static inline bool snapshot_head_read(struct snapshot_head *head, const void *buffer, size_t bytes,
                                      size_t need, uint32_t kind, uint32_t step_limit)
{
    if (buffer == NULL || bytes != need) {
        return false;
    }
    memcpy(head, buffer, sizeof *head);
    return head->kind == kind && head->version == SNAPSHOT_VERSION && head->reserved == 0 &&
           head->steps < step_limit;
}

/* ---- one kernel, several instruction sets ----
 * KERNEL_VARIANTS(name) compiles the always-inline function `name(env, lo, hi)` for each set; name_pick() chooses once, at create(). The results are the
 * same bit for bit: only elementwise IEEE operations, and contraction into fused multiply-adds is off. Chosen by hand because a load-time resolver
 * (target_clones) runs before a sanitizer's runtime is ready. */

/* Runs block(env, at, width, packed) over [lo, hi) with constant widths. A width of one is the same arithmetic without vectors. */
#define BLOCK_ROWS 32
#define RUN_BLOCKS(block, env, lo, hi)                                 \
    uint32_t at = (lo);                                                \
    for (; (env)->packed && (hi)-at >= BLOCK_ROWS; at += BLOCK_ROWS) { \
        block((env), at, BLOCK_ROWS, true);                            \
    }                                                                  \
    for (; (env)->packed && (hi)-at >= 8; at += 8) {                   \
        block((env), at, 8, true);                                     \
    }                                                                  \
    for (; at < (hi); at++) {                                          \
        block((env), at, 1, false);                                    \
    }

#define INLINE_KERNEL static inline __attribute__((always_inline)) void

struct corral_env;
typedef void (*kernel_fn)(struct corral_env *env, uint32_t lo, uint32_t hi);

#if defined(__x86_64__)
#define KERNEL_VARIANTS(name)                                                                               \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2"))) static void name##_v4(               \
        struct corral_env *env, uint32_t lo, uint32_t hi)                                                   \
    {                                                                                                       \
        name(env, lo, hi);                                                                                  \
    }                                                                                                       \
    __attribute__((target("avx2"))) static void name##_v3(struct corral_env *env, uint32_t lo, uint32_t hi) \
    {                                                                                                       \
        name(env, lo, hi);                                                                                  \
    }                                                                                                       \
    KERNEL_PLAIN(name)                                                                                      \
    static kernel_fn name##_pick(void)                                                                      \
    {                                                                                                       \
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&                      \
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {                     \
            return name##_v4;                                                                               \
        }                                                                                                   \
        return __builtin_cpu_supports("avx2") ? name##_v3 : name##_plain;                                   \
    }
#else
#define KERNEL_VARIANTS(name)          \
    KERNEL_PLAIN(name)                 \
    static kernel_fn name##_pick(void) \
    {                                  \
        return name##_plain;           \
    }
#endif
#define KERNEL_PLAIN(name)                                                     \
    static void name##_plain(struct corral_env *env, uint32_t lo, uint32_t hi) \
    {                                                                          \
        name(env, lo, hi);                                                     \
    }

#endif
