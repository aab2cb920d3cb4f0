#include "quota/proof/verify.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct restart {
    uint64_t record, step;
};

struct verifier {
    struct corral_proof_summary *s;
    struct corral_proof_record r;      /* the one at hand */
    struct corral_proof_record limits; /* the last that set them */
    bool begun, after_end;
    uint8_t *verdict; /* of step first_step + i */
    size_t steps, steps_max;
    const struct corral_proof_witness **witness; /* by count */
    size_t witnesses, next;
    const struct corral_proof_witness **missed; /* that did not match, to be judged at the end */
    size_t missed_count;
    struct restart *restart;
    size_t restarts, restarts_max;
};

/* A finding ends the reading; its text is the error's. */
static enum corral_status CORRAL_PRINTF(2, 3) wrong(struct corral_error *err, const char *fmt, ...)
{
    char text[300];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return corral_fail(err, CORRAL_INVALID, "%s", text);
}

static enum corral_status grow(void **array, size_t *max, size_t count, size_t size, struct corral_error *err)
{
    if (count < *max) {
        return CORRAL_OK;
    }
    size_t want = *max ? 2 * *max : 1024;
    void *more = realloc(*array, want * size);
    if (!more) {
        return corral_fail(err, CORRAL_NOMEM, "checking a proof chain");
    }
    *array = more;
    *max = want;
    return CORRAL_OK;
}

static enum corral_status take_limits(struct verifier *v, struct corral_error *err)
{
    struct corral_proof_summary *s = v->s;
    CORRAL_TRY(corral_proof_check(&v->r, err));
    if (v->r.type == CORRAL_PROOF_LIMITS &&
        (strcmp(v->r.device, s->device) != 0 || strcmp(v->r.own_role, s->own_role) != 0)) {
        return wrong(err, "limits of %s on %s, but the steps are of %s on %s", v->r.own_role, v->r.device,
                     s->own_role, s->device);
    }
    v->limits = v->r;
    for (uint32_t i = 0; i < v->r.role_count; i++) {
        if (strcmp(v->r.role[i].name, s->own_role) == 0) {
            s->own_ceiling = CORRAL_MAX(s->own_ceiling, v->r.role[i].ceiling);
        }
    }
    struct corral_proof_role old[CORRAL_LEDGER_ROLES_MAX];
    memcpy(old, s->role, sizeof old);
    uint32_t old_count = s->role_count;
    s->role_count = v->r.role_count;
    for (uint32_t i = 0; i < v->r.role_count; i++) {
        struct corral_proof_role *role = &s->role[i];
        *role = v->r.role[i];
        for (uint32_t k = 0; k < old_count; k++) {
            if (strcmp(old[k].name, role->name) == 0) {
                role->peak = old[k].peak;
                role->denied = old[k].denied;
                role->spilled = old[k].spilled;
            }
        }
    }
    return CORRAL_OK;
}

static enum corral_status on_begin(struct verifier *v, struct corral_error *err)
{
    struct corral_proof_summary *s = v->s;
    if (v->begun) {
        return wrong(err, "a second beginning");
    }
    v->begun = true;
    s->run = v->r.run;
    s->rank = v->r.rank;
    s->first_step = v->r.step + 1;
    s->last_step = v->r.step;
    snprintf(s->device, sizeof s->device, "%s", v->r.device);
    snprintf(s->own_role, sizeof s->own_role, "%s", v->r.own_role);
    memcpy(s->fences, v->r.fences, sizeof s->fences);
    return take_limits(v, err);
}

static enum corral_status on_restart(struct verifier *v, uint64_t n, struct corral_error *err)
{
    struct corral_proof_summary *s = v->s;
    if (v->r.run != s->run || v->r.rank != s->rank || strcmp(v->r.own_role, s->own_role) != 0) {
        return wrong(err, "a restart of another run, rank or role");
    }
    if (v->r.step > s->last_step || v->r.step + 1 < s->first_step) {
        return wrong(err,
                     "a restart after step %" PRIu64 ", but the records are of steps %" PRIu64 " to %" PRIu64,
                     v->r.step, s->first_step, s->last_step);
    }
    CORRAL_TRY(grow((void **)&v->restart, &v->restarts_max, v->restarts, sizeof *v->restart, err));
    v->restart[v->restarts++] = (struct restart){.record = n, .step = v->r.step};
    s->superseded += s->last_step - v->r.step;
    s->last_step = v->r.step;
    v->steps = (size_t)(s->last_step + 1 - s->first_step);
    if (s->doubt_step > s->last_step) {
        s->doubt_step = s->doubt_record = 0;
    }
    s->restarts++;
    snprintf(s->device, sizeof s->device, "%s", v->r.device);
    return take_limits(v, err);
}

static enum corral_status same_limits(const struct verifier *v, struct corral_error *err)
{
    const struct corral_proof_record *a = &v->limits, *b = &v->r;
    bool same = a->physical == b->physical && a->headroom == b->headroom &&
                a->overcommit_ppm == b->overcommit_ppm && a->role_count == b->role_count &&
                strcmp(a->device, b->device) == 0 && strcmp(a->own_role, b->own_role) == 0;
    for (uint32_t i = 0; same && i < a->role_count; i++) {
        same = strcmp(a->role[i].name, b->role[i].name) == 0 && a->role[i].floor == b->role[i].floor &&
               a->role[i].ceiling == b->role[i].ceiling;
    }
    return same ? CORRAL_OK : wrong(err, "step %" PRIu64 ": its limits are not those in force", b->step);
}

static void count_step(struct verifier *v)
{
    struct corral_proof_summary *s = v->s;
    const struct corral_proof_record *r = &v->r;
    s->own_peak = CORRAL_MAX(s->own_peak, r->own_peak);
    s->declared_max = CORRAL_MAX(s->declared_max, r->declared);
    s->slack_min = CORRAL_MIN(s->slack_min, r->slack_min);
    s->drift_max = CORRAL_MAX(s->drift_max, r->drift);
    memcpy(s->fences, r->fences, sizeof s->fences);
    for (uint32_t i = 0; i < r->role_count; i++) {
        struct corral_proof_role *role = &s->role[i]; /* same order: the limits are the same */
        role->peak = CORRAL_MAX(role->peak, r->role[i].peak);
        role->denied += r->role[i].denied;
        role->used = r->role[i].used;
        role->spilled = CORRAL_MAX(role->spilled, r->role[i].spilled);
        s->denied += r->role[i].denied;
        s->spilled_max = CORRAL_MAX(s->spilled_max, r->role[i].spilled);
    }
}

static enum corral_status on_step(struct verifier *v, uint64_t n, struct corral_error *err)
{
    struct corral_proof_summary *s = v->s;
    const struct corral_proof_record *r = &v->r;
    if (r->step != s->last_step + 1) {
        return wrong(err, "step %" PRIu64 " after step %" PRIu64, r->step, s->last_step);
    }
    CORRAL_TRY(same_limits(v, err));
    if (r->verdict == CORRAL_PROOF_REFUSED) {
        s->refused_last = true;
        if (s->refused++ == 0) {
            s->refused_record = n;
            memcpy(s->refusal, r->why, sizeof s->refusal);
        }
        return CORRAL_OK;
    }
    struct corral_error bad;
    if (corral_proof_check(r, &bad) != CORRAL_OK && r->verdict == CORRAL_PROOF_PROVEN) {
        return wrong(err, "step %" PRIu64 ": %s", r->step, bad.text);
    }
    CORRAL_TRY(grow((void **)&v->verdict, &v->steps_max, v->steps, 1, err));
    v->verdict[v->steps++] = (uint8_t)r->verdict;
    s->last_step = r->step;
    s->refused_last = false;
    if (r->verdict == CORRAL_PROOF_UNPROVEN && s->doubt_step == 0) {
        s->doubt_step = r->step;
        s->doubt_record = n;
        memcpy(s->doubt, r->why, sizeof s->doubt);
    }
    count_step(v);
    return CORRAL_OK;
}

static enum corral_status on_record(struct verifier *v, uint64_t n, struct corral_error *err)
{
    enum corral_proof_type type = v->r.type;
    if (type == CORRAL_PROOF_RECOVERED) {
        return CORRAL_OK;
    }
    if (!v->begun && type != CORRAL_PROOF_BEGIN) {
        return wrong(err, "a chain must begin with \"begin\", not \"%s\"", corral_proof_type_name(type));
    }
    if (v->begun && v->r.rank != v->s->rank) {
        return wrong(err, "it is of rank %u, the chain of rank %u", v->r.rank, v->s->rank);
    }
    if (v->s->ended && type != CORRAL_PROOF_RESTART) {
        return wrong(err, "\"%s\" after the end", corral_proof_type_name(type));
    }
    bool born = type == CORRAL_PROOF_BEGIN || type == CORRAL_PROOF_RESTART;
    if (v->begun && (born ? v->r.generation <= v->s->generation : v->r.generation != v->s->generation)) {
        return wrong(err, "generation %u after generation %u", v->r.generation, v->s->generation);
    }
    v->s->generation = v->r.generation;
    v->s->ended = type == CORRAL_PROOF_END;
    switch (type) {
    case CORRAL_PROOF_BEGIN:
        return on_begin(v, err);
    case CORRAL_PROOF_RESTART:
        return on_restart(v, n, err);
    case CORRAL_PROOF_LIMITS:
        v->s->limit_changes++;
        return take_limits(v, err);
    case CORRAL_PROOF_STEP:
        return on_step(v, n, err);
    default:
        return v->r.step == v->s->last_step
                   ? CORRAL_OK
                   : wrong(err, "the end after step %" PRIu64 ", the records after %" PRIu64, v->r.step,
                           v->s->last_step);
    }
}

static enum corral_status on_body(void *ctx, uint64_t n, const char *body, size_t bytes, const char *hash,
                                  struct corral_error *err)
{
    struct verifier *v = ctx;
    v->s->broken_record = n; /* should it turn out so */
    CORRAL_TRY(corral_proof_parse(body, bytes, &v->r, err));
    CORRAL_TRY(on_record(v, n, err));
    for (; v->next < v->witnesses && v->witness[v->next]->count <= n; v->next++) {
        const struct corral_proof_witness *w = v->witness[v->next];
        if (w->count == n && strcmp(w->hash, hash) != 0) {
            v->missed[v->missed_count++] = w;
        }
    }
    v->s->head.count = n;
    memcpy(v->s->head.hash, hash, CORRAL_CHAIN_HASH_HEX);
    return CORRAL_OK;
}

static int by_count(const void *a, const void *b)
{
    const struct corral_proof_witness *x = *(const struct corral_proof_witness *const *)a;
    const struct corral_proof_witness *y = *(const struct corral_proof_witness *const *)b;
    return (x->count > y->count) - (x->count < y->count);
}

/* A power cut may take records that were noted but not yet synced. Then the run went on from an earlier step, and says so in a restart. */
static bool excused(const struct verifier *v, const struct corral_proof_witness *w)
{
    for (size_t i = 0; i < v->restarts && !w->durable; i++) {
        if (v->restart[i].record <= w->count && v->restart[i].step < w->step) {
            return true;
        }
    }
    return false;
}

static void judge_witnesses(struct verifier *v)
{
    struct corral_proof_summary *s = v->s;
    for (; v->next < v->witnesses; v->next++) {
        v->missed[v->missed_count++] = v->witness[v->next]; /* beyond the end */
    }
    for (size_t i = 0; i < v->missed_count; i++) {
        const struct corral_proof_witness *w = v->missed[i];
        if (w->count == 0) {
            continue;
        }
        /* Records of a tail that was cut may also be noted beyond the present end. */
        if (excused(v, w)) {
            s->lost++;
            continue;
        }
        s->broken_record = CORRAL_MIN(w->count, s->head.count + 1);
        snprintf(s->broken, sizeof s->broken,
                 w->count > s->head.count ? "the chain was cut short: it has %" PRIu64
                                            " records, and record %" PRIu64 " (step %" PRIu64 ") was reported"
                                          : "record %2$" PRIu64 " (step %3$" PRIu64
                                            ") is not the one that was reported; the chain has %1$" PRIu64,
                 s->head.count, w->count, w->step);
        return;
    }
}

static enum corral_status open_verifier(struct verifier *v, const struct corral_proof_witness *witness,
                                        size_t count, struct corral_error *err)
{
    v->witness = calloc(count + 1, sizeof *v->witness);
    v->missed = calloc(count + 1, sizeof *v->missed);
    if (!v->witness || !v->missed) {
        return corral_fail(err, CORRAL_NOMEM, "checking a proof chain");
    }
    for (size_t i = 0; i < count; i++) {
        v->witness[i] = &witness[i];
    }
    v->witnesses = count;
    qsort(v->witness, count, sizeof *v->witness, by_count);
    return CORRAL_OK;
}

static void close_verifier(struct verifier *v)
{
    free(v->verdict);
    free(v->witness);
    free(v->missed);
    free(v->restart);
    free(v);
}

static void finish(struct verifier *v)
{
    struct corral_proof_summary *s = v->s;
    s->broken_record = 0;
    s->steps = v->steps;
    for (size_t i = 0; i < v->steps; i++) {
        s->proven += v->verdict[i] == CORRAL_PROOF_PROVEN;
    }
    s->unproven = s->steps - s->proven;
}

enum corral_status corral_proof_verify(const char *path, const struct corral_proof_witness *witness,
                                       size_t witness_count, struct corral_proof_summary *out,
                                       struct corral_error *err)
{
    struct verifier *v = calloc(1, sizeof *v);
    CORRAL_AUTO_FREE struct corral_proof_summary *s = calloc(1, sizeof *s);
    if (!v || !s) {
        free(v);
        return corral_fail(err, CORRAL_NOMEM, "checking a proof chain");
    }
    v->s = s;
    s->slack_min = UINT64_MAX;
    struct corral_error found = {0};
    enum corral_status status = open_verifier(v, witness, witness_count, &found);
    if (status == CORRAL_OK) {
        status = corral_chain_read(path, on_body, v, NULL, &s->torn_bytes, &found);
    }
    uint64_t broken_record = s->head.count + 1;
    finish(v);
    if (status == CORRAL_INVALID || status == CORRAL_PROTOCOL || status == CORRAL_UNSUPPORTED) {
        char where[32];
        snprintf(where, sizeof where, ": record %" PRIu64 ": ", broken_record);
        const char *text =
            strstr(found.text, where); /* the chain's own errors name file and record already */
        s->broken_record = broken_record;
        snprintf(s->broken, sizeof s->broken, "%s", text ? text + strlen(where) : found.text);
        status = CORRAL_OK;
    } else if (status == CORRAL_OK) {
        judge_witnesses(v);
    }
    close_verifier(v);
    if (status != CORRAL_OK) {
        return corral_fail(err, status, "%s", found.text);
    }
    *out = *s;
    return CORRAL_OK;
}
