#include "rollout/env_host/check_rig.h"
#include "base/rng.h"
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINE = 64, EDGE_BYTE = 0xA5 };

/* ---- reporting ---- */

void check_doing(const struct check *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->report->doing, sizeof c->report->doing, fmt, args);
    va_end(args);
}

CORRAL_PRINTF(3, 0)
static void say(const struct check *c, enum corral_check_result result, const char *fmt, va_list args)
{
    vsnprintf(c->report->text, sizeof c->report->text, fmt, args);
    c->report->result = result;
}

void check_pass(const struct check *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say(c, CORRAL_CHECK_OK, fmt, args);
    va_end(args);
}

noreturn void check_fail(const struct check *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say(c, CORRAL_CHECK_FAIL, fmt, args);
    va_end(args);
    _exit(0);
}

noreturn void check_skip(const struct check *c, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    say(c, CORRAL_CHECK_SKIPPED, fmt, args);
    va_end(args);
    _exit(0);
}

/* ---- guarded memory ---- */

static const struct rig *guarded; /* for the signal handler: the rig whose plug-in is running */

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    const struct rig *r = guarded;
    const char *at = info->si_addr;
    for (int i = 0; r != NULL && i < RIG_BUFFERS; i++) {
        const struct rig_memory *m = &r->memory[i];
        if (m->map == NULL || at < m->map || at >= m->map + m->map_bytes) {
            continue;
        }
        if (at < m->data) {
            check_fail(r->c, "it reached %td bytes before the beginning of `%s` while %s", m->data - at,
                       m->name, r->c->report->doing);
        }
        if (at >= m->data + m->bytes) {
            check_fail(r->c, "it reached %td bytes past the end of `%s` (%zu bytes) while %s",
                       at - (m->data + m->bytes) + 1, m->name, m->bytes, r->c->report->doing);
        }
        check_fail(r->c, "it wrote to `%s`, which it may only read, while %s", m->name, r->c->report->doing);
    }
    signal(number, SIG_DFL); /* returns to the same instruction and dies of it */
}

static void catch_faults(void)
{
    static char stack[64 << 10];
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigaltstack(&alternative, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

static void place(struct rig *r, int index, const char *name, size_t bytes, enum rig_placement placement,
                  bool read_only)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), lines = (bytes + LINE - 1) / LINE * LINE;
    size_t pages = (lines + page - 1) / page * page + (placement == RIG_LOOSE ? 2 * page : 0);
    char *map = mmap(NULL, pages + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        check_fail(r->c, "the check could not get %zu bytes of memory", pages);
    }
    mprotect(map, page, PROT_NONE);
    mprotect(map + page + pages, page, PROT_NONE);
    char *data = placement == RIG_AT_END ? map + page + pages - lines
                                         : map + page + (placement == RIG_LOOSE ? page : 0);
    memset(map + page, EDGE_BYTE, pages);
    memset(data, 0, bytes);
    r->memory[index] = (struct rig_memory){.name = name,
                                           .map = map,
                                           .data = data,
                                           .map_bytes = pages + 2 * page,
                                           .bytes = bytes,
                                           .read_only = read_only};
}

void rig_check_edges(const struct rig *r)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < RIG_BUFFERS; i++) {
        const struct rig_memory *m = &r->memory[i];
        if (m->map == NULL) {
            continue;
        }
        const char *first = m->map + page, *last = m->map + m->map_bytes - page;
        for (const char *at = first; at < last; at++) {
            if (at == m->data) {
                at += m->bytes;
            }
            if (at < last && (unsigned char)*at != EDGE_BYTE) {
                bool before = at < m->data;
                check_fail(r->c, "it wrote %td bytes %s `%s` (%zu bytes) while %s",
                           before ? m->data - at : at - (m->data + m->bytes) + 1,
                           before ? "before the beginning of" : "past the end of", m->name, m->bytes,
                           r->c->report->doing);
            }
        }
    }
}

/* The plug-in may read actions and nothing more. Whole pages, which hold nothing else. */
static void plugin_runs(struct rig *r, bool runs)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    guarded = runs ? r : NULL;
    for (int i = 0; i < RIG_BUFFERS; i++) {
        if (r->memory[i].read_only) {
            mprotect(r->memory[i].map + page, r->memory[i].map_bytes - 2 * page,
                     runs ? PROT_READ : PROT_READ | PROT_WRITE);
        }
    }
}

/* ---- the host's services ---- */

static void rig_log(void *ctx, int level, const char *message)
{
    (void)ctx, (void)level, (void)message;
}

/* The size goes before the memory, so that release() with another size is noticed. */
static void *rig_alloc(void *ctx, size_t bytes)
{
    struct rig *r = ctx;
    r->lent_ever++;
    if (r->refuse || bytes > PTRDIFF_MAX - 2 * LINE) {
        return NULL;
    }
    char *memory = aligned_alloc(LINE, (bytes + 2 * LINE - 1) / LINE * LINE + LINE);
    if (memory == NULL) {
        return NULL;
    }
    memset(memory, 0, bytes + LINE);
    memcpy(memory, &bytes, sizeof bytes);
    r->lent += bytes;
    return memory + LINE;
}

static void rig_release(void *ctx, void *memory, size_t bytes)
{
    struct rig *r = ctx;
    if (memory != NULL) {
        size_t lent;
        memcpy(&lent, (char *)memory - LINE, sizeof lent);
        r->lent_wrongly += lent != bytes;
        r->lent -= lent;
        free((char *)memory - LINE);
    }
}

/* ---- a batch ---- */

static void place_all(struct rig *r, enum rig_placement placement)
{
    struct corral_env_layout l;
    struct corral_error err = {0};
    if (corral_env_layout_build(&l, &r->c->spec, r->envs, &err) != CORRAL_OK) {
        check_fail(r->c, "%s", err.text);
    }
    r->rows = l.rows;
    place(r, 0, "obs", l.rows * l.obs_stride, placement, false);
    place(r, 1, "action", l.rows * l.action_stride, placement, true);
    place(r, 2, "reward", l.rows * sizeof(float), placement, false);
    place(r, 3, "terminated", l.rows, placement, false);
    place(r, 4, "truncated", l.rows, placement, false);
    place(r, 5, "active", l.rows, placement, false);
    place(r, 6, "final_obs", l.rows * l.obs_stride, placement, false);
    place(r, 7, "status", l.envs * sizeof(int32_t), placement, false);
    if (l.mask_stride) {
        place(r, 8, "mask", l.rows * l.mask_stride, placement, false);
    }
    r->io = (struct corral_env_buffers){.size = sizeof r->io,
                                        .envs = r->envs,
                                        .agents = r->agents,
                                        .obs_stride = l.obs_stride,
                                        .action_stride = l.action_stride,
                                        .mask_stride = l.mask_stride};
    r->io.obs = r->memory[0].data;
    r->io.action = r->memory[1].data;
    r->io.reward = (float *)(void *)r->memory[2].data;
    r->io.terminated = (uint8_t *)r->memory[3].data;
    r->io.truncated = (uint8_t *)r->memory[4].data;
    r->io.active = (uint8_t *)r->memory[5].data;
    r->io.final_obs = r->memory[6].data;
    r->io.status = (int32_t *)(void *)r->memory[7].data;
    r->io.mask = (uint8_t *)r->memory[8].data;
    memset(r->io.active, 1, r->rows);
}

enum corral_env_status rig_try_open(struct rig *r, const struct check *c, uint32_t envs,
                                    enum rig_placement placement, bool refuse_memory)
{
    *r = (struct rig){.c = c, .envs = envs, .agents = c->spec.agents, .refuse = refuse_memory};
    r->host = (struct corral_env_host){
        .size = sizeof r->host, .ctx = r, .log = rig_log, .alloc = rig_alloc, .release = rig_release};
    place_all(r, placement);
    r->done = calloc(r->rows, 1);
    if (r->done == NULL) {
        check_fail(c, "the check is out of memory");
    }
    for (uint32_t e = 0; e < envs; e++) {
        r->key[e] = e;
    }
    catch_faults();
    char text[256] = "";
    check_doing(c, "creating a batch of %u", envs);
    plugin_runs(r, true);
    enum corral_env_status status = c->def->ops.create(c->config->args_json ? c->config->args_json : "{}",
                                                       &r->io, &r->host, &r->env, text, sizeof text);
    plugin_runs(r, false);
    if (status == CORRAL_ENV_OK && r->env == NULL) {
        check_fail(c, "create() returned OK and no batch");
    }
    return status;
}

void rig_open(struct rig *r, const struct check *c, uint32_t envs, enum rig_placement placement)
{
    enum corral_env_status status = rig_try_open(r, c, envs, placement, false);
    if (status != CORRAL_ENV_OK) {
        check_fail(c, "create() of %u environments failed: %s (%d)", envs, corral_env_status_name(status),
                   (int)status);
    }
}

void rig_close(struct rig *r)
{
    check_doing(r->c, "destroying a batch");
    plugin_runs(r, true);
    if (r->env != NULL) {
        r->c->def->ops.destroy(r->env);
    }
    plugin_runs(r, false);
    for (int i = 0; i < RIG_BUFFERS; i++) {
        if (r->memory[i].map != NULL) {
            munmap(r->memory[i].map, r->memory[i].map_bytes);
        }
    }
    free(r->done);
}

static void begun(struct rig *r, uint32_t e)
{
    r->length[e] = 0;
    r->ended[e] = false;
    memset(r->done + (size_t)e * r->agents, 0, r->agents);
}

static void check_status(const struct rig *r, const char *what, enum corral_env_status status,
                         const uint32_t *ids, uint32_t count)
{
    if (status != CORRAL_ENV_OK) {
        check_fail(r->c, "%s returned %s (%d)", what, corral_env_status_name(status), (int)status);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i;
        if (r->io.status[e] != CORRAL_ENV_OK) {
            check_fail(r->c, "status[%u] is %s (%d) after %s", e, corral_env_status_name(r->io.status[e]),
                       r->io.status[e], what);
        }
    }
}

static void reset_with(struct rig *r, const uint32_t *ids, uint32_t count, const uint64_t *seeds)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i;
        r->stream[e] = seeds[i];
        r->episode[e] = 0;
        begun(r, e);
    }
    check_doing(r->c, "in reset of %u environments", count);
    plugin_runs(r, true);
    enum corral_env_status status = r->c->def->ops.reset(r->env, ids, count, seeds);
    plugin_runs(r, false);
    check_status(r, "reset()", status, ids, count);
}

void rig_reset(struct rig *r, const uint32_t *ids, uint32_t count)
{
    uint64_t seeds[RIG_ENVS_MAX];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i;
        seeds[i] = corral_seed_derive(1, r->key[e], r->resets[e]++, 0);
    }
    reset_with(r, ids, count, seeds);
}

void rig_reset_seed(struct rig *r, uint32_t e, uint64_t seed)
{
    reset_with(r, &e, 1, &seed);
}

/* ---- actions: a function of the environment's key and its own step number ---- */

static int32_t choose(struct corral_rng *rng, const uint8_t *mask, uint32_t choices)
{
    uint32_t legal = 0;
    for (uint32_t i = 0; mask != NULL && i < choices; i++) {
        legal += mask[i] != 0;
    }
    uint32_t pick = (uint32_t)corral_rng_below(rng, legal ? legal : choices);
    if (legal == 0) {
        return (int32_t)pick;
    }
    uint32_t at = 0;
    while (mask[at] == 0 || pick-- > 0) {
        at++;
    }
    return (int32_t)at;
}

static void write_actions(struct rig *r, uint32_t e)
{
    const struct corral_env_spec *s = &r->c->spec;
    struct corral_rng rng;
    corral_rng_seed(&rng, corral_seed_derive(2, r->key[e], r->t[e], 0));
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        void *at = r->memory[1].data + row * r->io.action_stride;
        const uint8_t *mask = r->io.mask ? r->io.mask + row * r->io.mask_stride : NULL;
        for (uint32_t k = 0; k < s->components; k++) {
            if (s->action_kind == CORRAL_ENV_CONTINUOUS) {
                double low = isfinite(s->low[k]) ? (double)s->low[k] : fmin(-1, (double)s->high[k] - 1);
                double high = isfinite(s->high[k]) ? (double)s->high[k] : fmax(1, low + 1);
                ((float *)at)[k] =
                    fminf(fmaxf((float)corral_rng_range(&rng, low, high), s->low[k]), s->high[k]);
            } else {
                ((int32_t *)at)[k] = choose(&rng, mask, s->choices[k]);
                mask = mask ? mask + s->choices[k] : NULL;
            }
        }
    }
    r->t[e]++;
}

/* ---- stepping ---- */

static void note_end(struct rig *r, uint32_t e)
{
    bool next_step = r->c->spec.autoreset == CORRAL_ENV_AUTORESET_NEXT_STEP;
    if (r->ended[e] && next_step) { /* this was the step that resets */
        r->episode[e]++;
        begun(r, e);
        return;
    }
    if (r->ended[e]) { /* same-step: the next episode had begun already */
        r->episode[e]++;
        begun(r, e);
    }
    r->length[e]++;
    uint32_t over = 0;
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        r->done[row] |= r->io.terminated[row] == 1 || r->io.truncated[row] == 1;
        over += r->done[row];
    }
    r->ended[e] = over == r->agents;
}

void rig_step(struct rig *r, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t e = ids ? ids[i] : i;
        write_actions(r, e);
        for (uint32_t row = e * r->agents; r->poison && row < (e + 1) * r->agents; row++) {
            r->io.reward[row] = NAN;
            r->io.terminated[row] = r->io.truncated[row] = 0xEE;
            memset((char *)r->io.final_obs + row * r->io.obs_stride, 0x5A, r->io.obs_stride);
        }
    }
    check_doing(r->c, "in step %" PRIu64 " of environment %u", count ? r->t[ids ? ids[0] : 0] : 0,
                ids && count ? ids[0] : 0);
    plugin_runs(r, true);
    enum corral_env_status status = r->c->def->ops.step(r->env, ids, count);
    plugin_runs(r, false);
    check_status(r, "step()", status, ids, count);
    for (uint32_t i = 0; i < count; i++) {
        note_end(r, ids ? ids[i] : i);
    }
}

void rig_advance(struct rig *r)
{
    uint32_t ended[RIG_ENVS_MAX], count = 0;
    for (uint32_t e = 0; e < r->envs; e++) {
        if (r->ended[e] && r->c->spec.autoreset == CORRAL_ENV_AUTORESET_OFF) {
            ended[count++] = e;
        }
    }
    if (count > 0) {
        rig_reset(r, ended, count);
    }
    rig_step(r, NULL, r->envs);
}

/* ---- looking ---- */

double rig_obs(const struct rig *r, const void *rows, uint32_t row, uint32_t element)
{
    const void *at = (const char *)rows + row * r->io.obs_stride;
    switch (r->c->spec.obs_dtype) {
    case CORRAL_ENV_F32:
        return (double)((const float *)at)[element];
    case CORRAL_ENV_F64:
        return ((const double *)at)[element];
    case CORRAL_ENV_I32:
        return ((const int32_t *)at)[element];
    case CORRAL_ENV_U8:
        return ((const uint8_t *)at)[element];
    }
    return 0;
}

static uint64_t mix(uint64_t seen, const void *data, size_t bytes)
{
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++) {
        seen = (seen ^ at[i]) * UINT64_C(0x100000001B3); /* FNV-1a */
    }
    return seen;
}

uint64_t rig_print_view(const struct rig *r, uint32_t e)
{
    size_t first = (size_t)e * r->agents, n = r->agents;
    uint64_t seen = mix(UINT64_C(0xCBF29CE484222325), (const char *)r->io.obs + first * r->io.obs_stride,
                        n * r->io.obs_stride);
    seen = mix(seen, r->io.active + first, n);
    return r->io.mask ? mix(seen, r->io.mask + first * r->io.mask_stride, n * r->io.mask_stride) : seen;
}

uint64_t rig_print(const struct rig *r, uint32_t e)
{
    size_t first = (size_t)e * r->agents, n = r->agents;
    uint64_t seen = mix(rig_print_view(r, e), r->io.reward + first, n * sizeof(float));
    return mix(mix(seen, r->io.terminated + first, n), r->io.truncated + first, n);
}
