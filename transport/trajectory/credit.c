#include "transport/trajectory/credit.h"
#include "base/error.h"
#include <assert.h>
#include <stdlib.h>

bool corral_credit_init(struct corral_credit *c, uint64_t buffer, uint64_t share, uint32_t accounts)
{
    *c = (struct corral_credit){.buffer = buffer, .share = share, .count = accounts};
    c->accounts = calloc(accounts, sizeof *c->accounts);
    c->live = calloc(accounts, sizeof *c->live);
    return c->accounts != NULL && c->live != NULL;
}

void corral_credit_free(struct corral_credit *c)
{
    free(c->accounts);
    free(c->live);
    c->accounts = NULL;
    c->live = NULL;
}

/* A want beyond the share waits for its own worker's fragments and must not hold up anybody else. With nothing held it has none to wait for, unless it is for more than one record: what was granted and sent
 * may not have been let in (a log that is full, a quota), and comes again. */
static void update_waits(struct corral_credit *c, struct corral_credit_account *a)
{
    uint64_t need = a->want > a->offset ? a->want - a->offset : 0;
    bool alone = a->held == 0 && !c->all_fit && a->limit - a->offset <= c->share;
    bool fits = need <= c->buffer && (c->share == 0 || alone || need + a->held <= c->share);
    bool waits = a->want > a->offset && fits;
    c->waiting += waits;
    c->waiting -= a->waits;
    a->waits = waits;
}

static void stop_waiting(struct corral_credit *c, struct corral_credit_account *a)
{
    a->want = 0;
    update_waits(c, a);
}

void corral_credit_open(struct corral_credit *c, uint32_t i)
{
    corral_credit_close(c, i);
    c->accounts[i].live = true;
    c->live[c->sessions++] = i;
}

void corral_credit_close(struct corral_credit *c, uint32_t i)
{
    struct corral_credit_account *a = &c->accounts[i];
    if (!a->live) {
        return;
    }
    stop_waiting(c, a);
    c->used -= a->limit - a->offset;
    *a = (struct corral_credit_account){.held = a->held, .largest = a->largest};
    for (uint32_t k = 0; k < c->sessions; k++) {
        if (c->live[k] == i) {
            c->live[k] = c->live[--c->sessions];
            return;
        }
    }
}

bool corral_credit_take(struct corral_credit *c, uint32_t i, uint64_t bytes)
{
    struct corral_credit_account *a = &c->accounts[i];
    if (!a->live || bytes > a->limit - a->offset) {
        return false;
    }
    a->offset += bytes; /* moves from granted to held: `used` stays */
    a->held += bytes;
    a->largest = CORRAL_MAX(a->largest, bytes);
    update_waits(c, a);
    return true;
}

void corral_credit_hold(struct corral_credit *c, uint32_t i, uint64_t bytes)
{
    c->accounts[i].held += bytes;
    c->accounts[i].largest = CORRAL_MAX(c->accounts[i].largest, bytes);
    c->used += bytes;
    update_waits(c, &c->accounts[i]);
}

void corral_credit_finish(struct corral_credit *c, uint32_t i, uint64_t bytes)
{
    assert(c->accounts[i].held >= bytes && c->used >= bytes);
    c->accounts[i].held -= bytes;
    c->used -= bytes;
    update_waits(c, &c->accounts[i]);
}

bool corral_credit_want(struct corral_credit *c, uint32_t i, uint64_t limit)
{
    struct corral_credit_account *a = &c->accounts[i];
    /* Nobody can have sent more than the limit; but all of that may be under way, or to be sent again. */
    if (!a->live || limit < a->offset || (limit > a->limit && limit - a->limit > c->buffer)) {
        return false;
    }
    if (limit <= a->limit) {
        a->raised = true; /* it has that much already and has not heard of it */
        return true;
    }
    if (a->want == 0) {
        a->want_serial = ++c->serial;
    }
    a->want = limit;
    update_waits(c, a);
    return true;
}

bool corral_credit_returned(struct corral_credit *c, uint32_t i, uint64_t limit)
{
    struct corral_credit_account *a = &c->accounts[i];
    if (!a->live || limit < a->offset || limit > a->limit) {
        return false;
    }
    c->used -= a->limit - limit;
    a->limit = limit;
    a->firm = limit;
    a->reclaiming = false;
    a->raised = false;
    update_waits(c, a);
    return true;
}

static void raise_limit(struct corral_credit *c, struct corral_credit_account *a, uint64_t by)
{
    a->limit += by;
    c->used += by;
    a->raised = true;
    assert(c->used <= c->buffer);
}

static struct corral_credit_account *longest_waiting(const struct corral_credit *c)
{
    struct corral_credit_account *oldest = NULL;
    for (uint32_t k = 0; k < c->sessions; k++) {
        struct corral_credit_account *a = &c->accounts[c->live[k]];
        if (a->waits && (oldest == NULL || a->want_serial < oldest->want_serial)) {
            oldest = a;
        }
    }
    return oldest;
}

static void call_back_idle(struct corral_credit *c, const struct corral_credit_account *except)
{
    for (uint32_t k = 0; k < c->sessions; k++) {
        struct corral_credit_account *a = &c->accounts[c->live[k]];
        if (a != except && !a->reclaiming && a->limit > a->offset && a->limit != a->firm) {
            a->reclaiming = true;
            a->reclaim_due = true;
        }
    }
}

static void serve_waiting(struct corral_credit *c)
{
    for (struct corral_credit_account *a = longest_waiting(c); a != NULL; a = longest_waiting(c)) {
        /* A limit that is being called back may not be raised under way: the answer would be ambiguous. */
        if (a->reclaiming) {
            return;
        }
        uint64_t need = a->want > a->limit ? a->want - a->limit : 0;
        if (c->used > c->buffer || need > c->buffer - c->used) {
            call_back_idle(c, a);
            return;
        }
        raise_limit(c, a, need);
        stop_waiting(c, a);
    }
}

uint64_t corral_credit_part(const struct corral_credit *c)
{
    return c->share != 0 ? c->share : c->buffer / CORRAL_MAX(c->sessions, 1u);
}

void corral_credit_top_up(struct corral_credit *c, uint32_t i)
{
    struct corral_credit_account *a = &c->accounts[i];
    if (!a->live || a->reclaiming || c->waiting > 0) {
        return;
    }
    uint64_t least = c->share == 0 || a->held == 0 ? a->largest : 0;
    uint64_t target = CORRAL_MIN(CORRAL_MAX(corral_credit_part(c), least), c->buffer);
    uint64_t reserved = a->limit - a->offset + a->held;
    if (reserved < target && c->used < c->buffer) {
        raise_limit(c, a, CORRAL_MIN(target - reserved, c->buffer - c->used));
    }
}

void corral_credit_share(struct corral_credit *c)
{
    serve_waiting(c);
    for (uint32_t k = 0; k < c->sessions && c->waiting == 0; k++) {
        corral_credit_top_up(c, c->live[k]);
    }
}
