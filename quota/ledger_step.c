#include "quota/ledger_internal.h"

/* Every open window of the device gets what the sub-window since the last boundary saw, and a new sub-window begins. Doing it
 * at any time, any number of times, changes no window's result. */
void corral_ledger_fold_windows(struct corral_ledger *l, uint32_t device)
{
    struct corral_ledger_device *d = &l->device[device];
    corral_ledger_note_peaks(l, device);
    for (uint32_t i = 0; i < CORRAL_LEDGER_STEPS_MAX; i++) {
        struct corral_ledger_window *w = &l->step[i];
        if (w->holder == 0 || w->device != device) {
            continue;
        }
        w->claim_peak = CORRAL_MAX(w->claim_peak, d->window_claim);
        for (uint32_t r = 0; r < role_count(l); r++) {
            w->peak[r] = CORRAL_MAX(w->peak[r], d->role[r].window_peak);
        }
        CORRAL_LEDGER_STEP();
    }
    for (uint32_t r = 0; r < role_count(l); r++) {
        d->role[r].window_peak = d->role[r].used;
    }
    CORRAL_LEDGER_STEP();
    d->window_claim = corral_ledger_claims(l, d, CORRAL_LEDGER_NONE);
    CORRAL_LEDGER_STEP();
}

void corral_ledger_finish_open(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    if (f[STEP_HOLDER] >= CORRAL_LEDGER_HOLDERS_MAX || f[STEP_SLOT] >= CORRAL_LEDGER_STEPS_MAX ||
        !holder_counts(l, &l->holder[f[STEP_HOLDER]])) {
        return;
    }
    struct corral_ledger_holder *h = &l->holder[f[STEP_HOLDER]];
    struct corral_ledger_window *w = &l->step[f[STEP_SLOT]];
    *w = (struct corral_ledger_window){.device = h->device,
                                       .step = f[STEP_NUMBER],
                                       .declared = f[STEP_DECLARED],
                                       .holder_peak = holder_use(h)};
    for (uint32_t r = 0; r < role_count(l); r++) {
        w->denied[r] = l->device[h->device].role[r].denied;
    }
    CORRAL_LEDGER_STEP();
    w->holder = (uint32_t)f[STEP_HOLDER] + 1;
    CORRAL_LEDGER_STEP();
    h->step = f[STEP_NUMBER];
    h->declared = f[STEP_DECLARED];
    h->step_slot = (uint32_t)f[STEP_SLOT] + 1;
    CORRAL_LEDGER_STEP();
    corral_ledger_recount(l, h->device);
}

void corral_ledger_finish_close(struct corral_ledger *l)
{
    const uint64_t *f = l->pending_field;
    if (f[STEP_HOLDER] >= CORRAL_LEDGER_HOLDERS_MAX || f[STEP_SLOT] >= CORRAL_LEDGER_STEPS_MAX ||
        !holder_counts(l, &l->holder[f[STEP_HOLDER]])) {
        return;
    }
    struct corral_ledger_holder *h = &l->holder[f[STEP_HOLDER]];
    h->step_slot = 0;
    h->declared = 0;
    CORRAL_LEDGER_STEP();
    l->step[f[STEP_SLOT]].holder = 0;
    CORRAL_LEDGER_STEP();
    corral_ledger_recount(l, h->device);
}

enum corral_status corral_ledger_open_step(struct corral_ledger *l, uint32_t holder, uint64_t step,
                                           uint64_t declared, struct corral_ledger_denial *why,
                                           struct corral_error *err)
{
    struct corral_ledger_holder *h = held(l, holder);
    const char *device = l->device[h->device].name;
    if (h->step_slot != 0) {
        return corral_fail(err, CORRAL_STATE, "step %llu on %s: step %llu is still open",
                           (unsigned long long)step, device, (unsigned long long)h->step);
    }
    uint32_t slot = 0;
    while (slot < CORRAL_LEDGER_STEPS_MAX && l->step[slot].holder != 0) {
        slot++;
    }
    if (slot == CORRAL_LEDGER_STEPS_MAX) {
        return corral_fail(err, CORRAL_NOMEM, "step %llu on %s: %d steps are open on the node already",
                           (unsigned long long)step, device, CORRAL_LEDGER_STEPS_MAX);
    }
    if (!corral_ledger_step_fits(l, holder, declared, why)) {
        holder_role(l, h)->denied++;
        return corral_fail(err, CORRAL_DENIED, "step %llu on %s: a peak of %llu bytes does not fit",
                           (unsigned long long)step, device, (unsigned long long)declared);
    }
    corral_ledger_fold_windows(l, h->device);
    uint64_t *f = l->pending_field;
    f[STEP_HOLDER] = holder;
    f[STEP_SLOT] = slot;
    f[STEP_NUMBER] = step;
    f[STEP_DECLARED] = declared;
    begin_change(l, PENDING_OPEN);
    corral_ledger_finish_open(l);
    end_change(l);
    return CORRAL_OK;
}

enum corral_status corral_ledger_close_step(struct corral_ledger *l, uint32_t holder,
                                            struct corral_ledger_window *out, struct corral_error *err)
{
    struct corral_ledger_holder *h = held(l, holder);
    if (h->step_slot == 0 || h->step_slot > CORRAL_LEDGER_STEPS_MAX) {
        return corral_fail(err, CORRAL_STATE, "no step of this process is open on %s",
                           l->device[h->device].name);
    }
    corral_ledger_fold_windows(l, h->device);
    struct corral_ledger_window window = l->step[h->step_slot - 1];
    for (uint32_t r = 0; r < role_count(l); r++) {
        window.denied[r] = subtract_floor(l->device[h->device].role[r].denied, window.denied[r]);
    }
    uint64_t *f = l->pending_field;
    f[STEP_HOLDER] = holder;
    f[STEP_SLOT] = h->step_slot - 1;
    begin_change(l, PENDING_CLOSE);
    corral_ledger_finish_close(l);
    end_change(l);
    if (out) {
        *out = window;
    }
    return CORRAL_OK;
}

void corral_ledger_set_phase(struct corral_ledger *l, uint32_t holder, uint64_t step,
                             enum corral_ledger_phase phase)
{
    struct corral_ledger_holder *h = held(l, holder);
    h->step = step;
    h->phase = (uint32_t)phase < CORRAL_PHASES ? phase : CORRAL_PHASE_NONE;
}

static uint64_t counted(uint64_t now, int64_t bytes)
{
    return bytes < 0 ? subtract_floor(now, 0 - (uint64_t)bytes) : add_saturating(now, (uint64_t)bytes);
}

void corral_ledger_count_spilled(struct corral_ledger *l, uint32_t holder, int64_t bytes)
{
    struct corral_ledger_holder *h = held(l, holder);
    struct corral_ledger_role *role = holder_role(l, h);
    uint64_t after = counted(h->spilled, bytes), total = role->spilled - h->spilled + after;
    h->spilled = after;
    CORRAL_LEDGER_STEP();
    role->spilled = total;
    CORRAL_LEDGER_STEP();
}

void corral_ledger_count_pinned(struct corral_ledger *l, uint32_t holder, int64_t bytes)
{
    struct corral_ledger_holder *h = held(l, holder);
    struct corral_ledger_role *role = holder_role(l, h);
    uint64_t after = counted(h->pinned, bytes), total = role->pinned - h->pinned + after;
    h->pinned = after;
    CORRAL_LEDGER_STEP();
    role->pinned = total;
    CORRAL_LEDGER_STEP();
}
