#include "trainer-bridge/step_guard/step_guard.h"
#include "base/clock.h"
#include "trainer-bridge/step_guard/resident.h"
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct corral_step_guard {
    struct corral_step_guard_config config;
    const struct corral_ledger *ledger; /* read without the lock: single fields are whole */
    struct corral_ledger_device now; /* the device at one moment: last read before the step, or at its end */
    uint32_t device, role;           /* in the ledger */
    struct corral_chain *chain;
    struct corral_resident resident;
    uint64_t baseline;
    uint64_t last_step, last_peak;
    uint32_t on_device[CORRAL_LEDGER_ROLES_MAX]; /* the ledger's numbers of the record's roles */
    struct corral_proof_record limits;           /* those in force: of the last record that set them */
    struct corral_proof_record record;           /* the one being made */
    uint64_t outside;                            /* at the end of the window */
    struct corral_ledger_window window;
    bool open, pending, ended; /* pending: closed, but its record could not be written yet */
    uint64_t step, declared, begun_ns;
    uint32_t unproven_marks; /* on the device when the step began */
    bool unproven_process;   /* one was there when the step began or ended, or came and went */
    char fences[256];
    struct corral_step_guard_counts counts;
};

static enum corral_status append(struct corral_step_guard *g, const struct corral_proof_record *r,
                                 struct corral_error *err)
{
    size_t room;
    char *body = corral_chain_draft(g->chain, &room);
    size_t bytes = corral_proof_write(r, body, room);
    if (bytes == 0) {
        return corral_fail(err, CORRAL_INTERNAL, "a proof record of step %" PRIu64 " cannot be written down",
                           r->step);
    }
    return corral_chain_append_draft(g->chain, bytes, err);
}

/* ---- what the ledger says ---- */

/* Limits read field by field while they change could be a mixture that was never in force, and no plan. */
static enum corral_status read_device(struct corral_step_guard *g, struct corral_error *err)
{
    return corral_quota_read_device(g->config.quota, g->device, &g->now, err);
}

static bool is_on_device(const struct corral_step_guard *g, const struct corral_ledger_device *d,
                         uint32_t role)
{
    return d->role[role].floor != 0 || d->role[role].ceiling != 0 || role == g->role;
}

static void read_limits(struct corral_step_guard *g, struct corral_proof_record *r)
{
    const struct corral_ledger_device *d = &g->now;
    r->physical = d->physical;
    r->headroom = d->headroom;
    r->overcommit_ppm = d->overcommit_ppm;
    r->role_count = 0;
    for (uint32_t i = 0; i < g->ledger->role_count && i < CORRAL_LEDGER_ROLES_MAX; i++) {
        if (!is_on_device(g, d, i)) {
            continue;
        }
        g->on_device[r->role_count] = i;
        struct corral_proof_role *role = &r->role[r->role_count++];
        memset(role, 0, sizeof *role);
        memcpy(role->name, g->ledger->role_name[i], sizeof role->name);
        role->floor = d->role[i].floor;
        role->ceiling = d->role[i].ceiling;
    }
}

/* Whether to take the lock and look properly: at the end every step does. */
static bool may_have_changed(const struct corral_step_guard *g)
{
    const struct corral_ledger_device *d = &g->ledger->device[g->device];
    const struct corral_proof_record *now = &g->limits;
    uint32_t count = 0;
    for (uint32_t i = 0; i < g->ledger->role_count && i < CORRAL_LEDGER_ROLES_MAX; i++) {
        if (!is_on_device(g, d, i)) {
            continue;
        }
        if (count == now->role_count || d->role[i].floor != now->role[count].floor ||
            d->role[i].ceiling != now->role[count].ceiling) {
            return true;
        }
        count++;
    }
    return count != now->role_count || d->physical != now->physical || d->headroom != now->headroom ||
           d->overcommit_ppm != now->overcommit_ppm;
}

static bool same_limits(const struct corral_proof_record *a, const struct corral_proof_record *b)
{
    bool same = a->physical == b->physical && a->headroom == b->headroom &&
                a->overcommit_ppm == b->overcommit_ppm && a->role_count == b->role_count;
    for (uint32_t i = 0; same && i < a->role_count; i++) {
        same = a->role[i].floor == b->role[i].floor && a->role[i].ceiling == b->role[i].ceiling &&
               strcmp(a->role[i].name, b->role[i].name) == 0;
    }
    return same;
}

/* Everything but the type and what is special to it. */
static void start_record(struct corral_step_guard *g, enum corral_proof_type type,
                         struct corral_proof_record *r)
{
    const size_t roles = offsetof(struct corral_proof_record, role), behind = roles + sizeof r->role;
    memset(r, 0, roles); /* the roles are read_limits()'s */
    memset((char *)r + behind, 0, sizeof *r - behind);
    r->type = type;
    r->run = g->config.run;
    r->rank = g->config.rank;
    r->generation = g->config.generation;
    r->wall_ns = corral_wall_ns();
    memcpy(r->device, g->ledger->device[g->device].name, sizeof r->device);
    memcpy(r->own_role, g->ledger->role_name[g->role], sizeof r->own_role);
    memcpy(r->fences, g->fences, sizeof r->fences);
    r->baseline = g->baseline;
    r->drift_max = g->config.drift_max;
    r->step = g->last_step;
    read_limits(g, r);
}

static enum corral_status note_limits(struct corral_step_guard *g, bool *changed, struct corral_error *err)
{
    read_limits(g, &g->record);
    *changed = !same_limits(&g->record, &g->limits);
    if (!*changed) {
        return CORRAL_OK;
    }
    start_record(g, CORRAL_PROOF_LIMITS, &g->record);
    CORRAL_TRY(append(g, &g->record, err));
    g->limits = g->record;
    return CORRAL_OK;
}

/* At that one moment: while the window is open, the sum of what is read here is at most its claim. */
static void read_use(const struct corral_step_guard *g, struct corral_proof_record *r)
{
    for (uint32_t i = 0; i < r->role_count; i++) {
        const struct corral_ledger_role *role = &g->now.role[g->on_device[i]];
        r->role[i].peak = r->role[i].used = role->used;
        r->role[i].spilled = role->spilled;
        r->role[i].pinned = role->pinned;
    }
}

static uint64_t used_outside(const struct corral_step_guard *g)
{
    uint64_t outside = 0;
    for (uint32_t i = 0; i < g->ledger->device_count && i < CORRAL_LEDGER_DEVICES_MAX; i++) {
        const struct corral_ledger_role *own = &g->ledger->device[i].role[g->role];
        outside += own->ceiling == 0 ? own->used : 0;
    }
    return outside;
}

/* Nobody has ever been marked on most devices, and then no holder need be looked at. */
static bool has_unproven(const struct corral_step_guard *g)
{
    return g->ledger->device[g->device].unproven_marks != 0 &&
           corral_quota_has_unproven(g->config.quota, g->device);
}

static uint64_t charged(const struct corral_step_guard *g)
{
    const struct corral_ledger_holder *h = &g->ledger->holder[g->config.holder];
    return h->committed + h->reserved;
}

/* ---- what is physically there ---- */

/* Every step asks the kernel anew, at its end. When even the most that has ever been resident proves the step, nothing else can have been there in its window, and what exactly
 * was resident at the end is of no consequence; otherwise that is read. */
static void read_own(struct corral_step_guard *g, struct corral_proof_record *r)
{
    uint64_t most = r->ledger + g->baseline + g->config.drift_max;
    uint64_t peak = g->resident.peak <= most ? corral_resident_peak(&g->resident) : 0;
    bool enough = peak != 0 && peak <= most;
    r->physical_read = enough ? peak : corral_resident_now(&g->resident);
    r->reading = enough ? CORRAL_PROOF_READING_PEAK : CORRAL_PROOF_READING_ANONYMOUS;
}

static uint64_t charged_here(const struct corral_step_guard *g)
{
    uint64_t mapped = g->ledger->holder[g->config.holder].kind_bytes[CORRAL_KIND_MAPPING], all = charged(g);
    return all > mapped ? all - mapped : 0;
}

static void read_physical(struct corral_step_guard *g, struct corral_proof_record *r)
{
    r->ledger = charged_here(g);
    if (g->config.host_device) {
        read_own(g, r);
    } else {
        const struct corral_ledger_holder *h = &g->ledger->holder[g->config.holder];
        const struct corral_ledger_device *d = &g->now;
        uint64_t now = corral_now_ns(&corral_clock_monotonic);
        r->reading = CORRAL_PROOF_READING_DEVICE;
        r->physical_read = h->physical;
        r->physical_age_ns = h->physical_ns && now > h->physical_ns ? now - h->physical_ns : 0;
        r->device_used = d->physical_used;
        r->device_foreign = d->physical_foreign;
        /* The reading is from this window or from just before it. */
        r->ledger = CORRAL_MAX(r->own_peak, g->last_peak);
    }
    r->drift = r->physical_read ? (int64_t)(r->physical_read - r->ledger - r->baseline) : 0;
}

/* ---- verdict ---- */

static bool names(const char *list, const char *name)
{
    size_t bytes = strlen(name);
    for (const char *at = strstr(list, name); at; at = strstr(at + 1, name)) {
        if ((at == list || at[-1] == ' ') && (at[bytes] == ' ' || at[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

static void judge(const struct corral_step_guard *g, bool limits_changed, struct corral_proof_record *r)
{
    struct corral_error found = {0};
    r->verdict = CORRAL_PROOF_PROVEN;
    if (r->physical_read == 0) {
        snprintf(r->why, sizeof r->why, "no physical reading of this process");
    } else if (r->physical_age_ns > CORRAL_PROOF_READING_AGE_MAX_NS) {
        snprintf(r->why, sizeof r->why, "the physical reading is %.1f s old",
                 (double)r->physical_age_ns / 1e9);
    } else if (r->drift > 0 && (uint64_t)r->drift > r->drift_max) {
        snprintf(r->why, sizeof r->why,
                 "drift: %" PRId64 " bytes more than the ledger and the baseline say, %" PRIu64
                 " are allowed",
                 r->drift, r->drift_max);
    } else if (r->device_foreign > r->drift_max) {
        snprintf(r->why, sizeof r->why, "processes that the ledger does not know use %" PRIu64 " bytes of %s",
                 r->device_foreign, r->device);
    } else if (g->unproven_process) {
        snprintf(r->why, sizeof r->why,
                 "a process on %s runs by permission on a driver with functions that nobody hooks",
                 r->device);
    } else if (!g->config.host_device && !names(r->fences, "interposer")) {
        snprintf(r->why, sizeof r->why, "the interposer is not live");
    } else if (corral_proof_check(r, &found) != CORRAL_OK) {
        snprintf(r->why, sizeof r->why, "%s%.110s", limits_changed ? "limits changed during the step: " : "",
                 found.text);
    }
    if (r->why[0]) {
        r->verdict = CORRAL_PROOF_UNPROVEN;
    }
}

/* ---- the life of a guard ---- */

/* Generations grow over all lives of a rank. */
static enum corral_status number_life(struct corral_step_guard *g, struct corral_error *err)
{
    const char *last = corral_chain_last(g->chain);
    uint32_t generation = 0;
    if (last[0]) {
        CORRAL_TRY(corral_proof_parse(last, strlen(last), &g->record, err));
        generation = g->record.generation;
    }
    g->config.generation = CORRAL_MAX(g->config.generation, generation + 1);
    return CORRAL_OK;
}

static enum corral_status open_chain(struct corral_step_guard *g, struct corral_error *err)
{
    CORRAL_TRY(corral_chain_open(g->config.chain_path, &g->chain, err));
    CORRAL_TRY(number_life(g, err));
    bool begun = corral_chain_last(g->chain)[0] != '\0';
    CORRAL_TRY(corral_chain_reserve(g->chain, err));
    CORRAL_TRY(read_device(g, err));
    start_record(g, begun ? CORRAL_PROOF_RESTART : CORRAL_PROOF_BEGIN, &g->record);
    CORRAL_TRY(append(g, &g->record, err));
    g->limits = g->record;
    return corral_chain_sync(g->chain, err);
}

static enum corral_status measure_baseline(struct corral_step_guard *g, struct corral_error *err)
{
    if (!g->config.host_device) {
        return CORRAL_OK;
    }
    CORRAL_TRY(corral_resident_open(&g->resident, err));
    uint64_t now = corral_resident_now(&g->resident), known = charged_here(g);
    g->baseline = now > known ? now - known : 0;
    return CORRAL_OK;
}

enum corral_status corral_step_guard_create(const struct corral_step_guard_config *config,
                                            struct corral_step_guard **out, struct corral_error *err)
{
    struct corral_step_guard *g = calloc(1, sizeof *g);
    if (!g) {
        return corral_fail(err, CORRAL_NOMEM, "step guard");
    }
    g->config = *config;
    g->resident.statm_fd = -1;
    g->last_step = config->step;
    g->ledger = corral_quota_ledger(config->quota);
    g->device = g->ledger->holder[config->holder].device;
    g->role = g->ledger->holder[config->holder].role;
    (void)snprintf(g->fences, sizeof g->fences, "%s",
                   config->fences && config->fences[0] ? config->fences : "ledger");
    enum corral_status status = measure_baseline(g, err);
    if (status == CORRAL_OK) {
        status = open_chain(g, err);
    }
    if (status != CORRAL_OK) {
        g->ended = true; /* what was not begun does not end */
        corral_step_guard_destroy(g);
        return status;
    }
    *out = g;
    return CORRAL_OK;
}

static void close_window(struct corral_step_guard *g)
{
    struct corral_ledger_window window;
    if (g->open) {
        (void)corral_quota_close_step(g->config.quota, g->config.holder, &window, NULL);
        g->open = false;
    }
}

static enum corral_status record_refusal(struct corral_step_guard *g, uint64_t step, const char *why,
                                         struct corral_error *err)
{
    bool changed;
    CORRAL_TRY(read_device(g, err));
    CORRAL_TRY(note_limits(g, &changed, err));
    struct corral_proof_record *r = &g->record;
    start_record(g, CORRAL_PROOF_STEP, r);
    read_use(g, r);
    r->outside = used_outside(g);
    r->step = step;
    r->declared = g->declared;
    r->own_peak = charged(g);
    r->verdict = CORRAL_PROOF_REFUSED;
    snprintf(r->why, sizeof r->why, "%.150s", why);
    CORRAL_TRY(append(g, r, err));
    g->counts.refused++;
    return CORRAL_OK;
}

enum corral_status corral_step_guard_begin(struct corral_step_guard *g, uint64_t step, uint64_t declared,
                                           struct corral_error *err)
{
    if (g->open || g->pending || g->ended) {
        return corral_fail(err, CORRAL_STATE,
                           g->ended ? "the proof chain has ended" : "step %" PRIu64 " is still open",
                           g->step);
    }
    if (step != g->last_step + 1) {
        return corral_fail(err, CORRAL_STATE, "step %" PRIu64 " cannot follow step %" PRIu64, step,
                           g->last_step);
    }
    const struct corral_ledger_device *live = &g->ledger->device[g->device];
    CORRAL_TRY(corral_chain_reserve(g->chain, err));
    if (may_have_changed(g)) {
        bool changed;
        CORRAL_TRY(read_device(g, err));
        CORRAL_TRY(note_limits(g, &changed, err));
    }
    g->unproven_marks = live->unproven_marks;
    g->unproven_process = has_unproven(g);
    declared = declared ? declared : g->config.declared;
    declared = declared ? declared : live->role[g->role].floor;
    g->step = step;
    g->declared = CORRAL_MAX(declared, charged(g));
    struct corral_error why = {0};
    enum corral_status status =
        corral_quota_open_step(g->config.quota, g->config.holder, step, g->declared, &why);
    if (status == CORRAL_DENIED) {
        CORRAL_TRY(record_refusal(g, step, why.text, err));
    }
    if (status != CORRAL_OK) {
        return corral_fail(err, status, "%s", why.text);
    }
    g->open = true;
    g->begun_ns = corral_now_ns(&corral_clock_monotonic);
    return CORRAL_OK;
}

/* The limits record of a change inside the window comes before the step's, which is checked against it. */
static enum corral_status make_record(struct corral_step_guard *g, struct corral_error *err)
{
    const struct corral_ledger_window *w = &g->window;
    bool changed;
    CORRAL_TRY(note_limits(g, &changed, err));
    struct corral_proof_record *r = &g->record;
    start_record(g, CORRAL_PROOF_STEP, r);
    read_use(g, r);
    for (uint32_t i = 0; i < r->role_count; i++) {
        uint32_t index = g->on_device[i];
        r->role[i].peak = w->peak[index];
        r->role[i].denied = w->denied[index];
    }
    r->step = g->step;
    r->declared = w->declared;
    r->claim_peak = w->claim_peak;
    r->own_peak = w->holder_peak;
    r->outside = g->outside;
    r->slack_min = r->physical > w->claim_peak ? r->physical - w->claim_peak : 0;
    r->step_ns = corral_now_ns(&corral_clock_monotonic) - g->begun_ns;
    read_physical(g, r);
    judge(g, changed, r);
    return CORRAL_OK;
}

enum corral_status corral_step_guard_end(struct corral_step_guard *g, struct corral_proof_record *record,
                                         struct corral_error *err)
{
    if (!g->open && !g->pending) {
        return corral_fail(err, CORRAL_STATE, "no step is open");
    }
    if (g->open) {
        CORRAL_TRY(read_device(g, err));
        g->outside = used_outside(g);
        CORRAL_TRY(corral_quota_close_step(g->config.quota, g->config.holder, &g->window, err));
        g->unproven_process |=
            has_unproven(g) || g->ledger->device[g->device].unproven_marks != g->unproven_marks;
        g->open = false;
        g->pending = true;
    }
    CORRAL_TRY(make_record(g, err));
    CORRAL_TRY(append(g, &g->record, err));
    g->pending = false;
    g->last_step = g->step;
    g->last_peak = g->record.own_peak;
    g->counts.proven += g->record.verdict == CORRAL_PROOF_PROVEN;
    g->counts.unproven += g->record.verdict == CORRAL_PROOF_UNPROVEN;
    if (record) {
        *record = g->record;
    }
    return CORRAL_OK;
}

void corral_step_guard_abandon(struct corral_step_guard *g)
{
    close_window(g);
    g->pending = false;
}

void corral_step_guard_head(const struct corral_step_guard *g, struct corral_chain_head *out)
{
    corral_chain_head(g->chain, out);
}

void corral_step_guard_counts(const struct corral_step_guard *g, struct corral_step_guard_counts *out)
{
    *out = g->counts;
}

enum corral_status corral_step_guard_sync(struct corral_step_guard *g, struct corral_error *err)
{
    return corral_chain_sync(g->chain, err);
}

enum corral_status corral_step_guard_finish(struct corral_step_guard *g, struct corral_chain_head *head,
                                            struct corral_error *err)
{
    if (g->open) {
        close_window(g);
        CORRAL_TRY(record_refusal(g, g->step, "the trainer ended inside the step", err));
    }
    g->pending = false;
    if (!g->ended) {
        start_record(g, CORRAL_PROOF_END, &g->record);
        CORRAL_TRY(append(g, &g->record, err));
        g->ended = true;
    }
    CORRAL_TRY(corral_chain_sync(g->chain, err));
    if (head) {
        corral_chain_head(g->chain, head);
    }
    return CORRAL_OK;
}

void corral_step_guard_destroy(struct corral_step_guard *g)
{
    if (!g) {
        return;
    }
    if (g->chain && !g->ended) {
        (void)corral_step_guard_finish(g, NULL, NULL);
    }
    close_window(g);
    corral_chain_close(g->chain);
    corral_resident_close(&g->resident);
    free(g);
}
