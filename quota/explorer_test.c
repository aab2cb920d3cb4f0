/* Model checking by exhaustion: the reachable states of a small ledger (two roles, three processes, tables of a few slots) under
 * every order of the public operations, each of them also killed at every step inside it and inside the repair that follows.
 * The functions are the real ones: the ledger's files are compiled here with small tables and their step points open. */
#include "tests/check.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CORRAL_LEDGER_DEVICES_MAX 1
#define CORRAL_LEDGER_ROLES_MAX 2
#define CORRAL_LEDGER_HOLDERS_MAX 4
#define CORRAL_LEDGER_STEPS_MAX 3
#define CORRAL_LEDGER_ALLOCATIONS_MAX 3
#define CORRAL_LEDGER_SHARES_MAX 4

static void ledger_step(void);
#define CORRAL_LEDGER_STEP() ledger_step()
#include "quota/ledger.c"
#include "quota/ledger_names.c"
#include "quota/ledger_plan.c"
#include "quota/ledger_repair.c"
#include "quota/ledger_share.c"
#include "quota/ledger_step.c"

#define PROCESSES 3
#define NOT_KILLED UINT32_MAX
#define STEPS_TRIED_MAX 200
#define REPAIRS_KILLED \
    3 /* every third step of a repair, another third for the next kill: all are met thousands of times */
#define SEEN_SLOTS (1u << 18)
#define OWN_ALLOCATIONS_MAX 2

static const uint32_t process_role[PROCESSES] = {0, 0, 1};
static const uint64_t limit_choice[2][2] = {{2, 5}, {1, 4}}; /* of role 0, live */

enum life { AWAY, ALIVE, DEAD };

struct world {
    struct corral_ledger ledger;
    enum life life[PROCESSES];
    uint32_t slot[PROCESSES];
};

static struct world now;
static jmp_buf killed;
static uint32_t steps_left = NOT_KILLED; /* until the kill */

static struct world *queue;
static uint32_t queue_count, queue_max;
static uint64_t *seen; /* open addressing; 0: free */
static uint64_t actions_done, kills_done;

static void ledger_step(void)
{
    atomic_signal_fence(memory_order_seq_cst);
    if (steps_left == NOT_KILLED) {
        return;
    }
    if (steps_left-- == 0) {
        steps_left = NOT_KILLED;
        longjmp(killed, 1);
    }
}

/* ---- what counts of a ledger: chains, peaks, counters and old names do not ---- */

static void normalise(struct corral_ledger *l)
{
    struct corral_ledger_device *d = &l->device[0];
    l->allocation_free = l->allocation_high = l->share_free = l->share_high = 0;
    memset(l->pending_field, 0, sizeof l->pending_field);
    d->window_claim = 0;
    for (uint32_t r = 0; r < CORRAL_LEDGER_ROLES_MAX; r++) {
        d->role[r].peak = d->role[r].denied = d->role[r].window_peak = d->role[r].wanted = 0;
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        l->holder[i].generation = 0;
        if (l->holder[i].pid == 0) {
            memset(&l->holder[i], 0, sizeof l->holder[i]);
        }
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_ALLOCATIONS_MAX; i++) {
        l->allocation[i].generation = l->allocation[i].next = 0;
        if (l->allocation[i].holder == 0) {
            memset(&l->allocation[i], 0, sizeof l->allocation[i]);
        }
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_SHARES_MAX; i++) {
        l->share[i].holder_generation = l->share[i].next = 0;
        if (l->share[i].allocation == 0) {
            memset(&l->share[i], 0, sizeof l->share[i]);
        }
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_STEPS_MAX; i++) {
        struct corral_ledger_window *w = &l->step[i];
        w->claim_peak = w->holder_peak = 0;
        memset(w->peak, 0, sizeof w->peak);
        memset(w->denied, 0, sizeof w->denied);
        if (w->holder == 0) {
            memset(w, 0, sizeof *w);
        }
    }
}

static bool same(const struct corral_ledger *a, const struct corral_ledger *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static uint64_t world_key(const struct world *w)
{
    static struct world key;
    memcpy(&key, w, sizeof key);
    normalise(&key.ledger);
    const unsigned char *bytes = (const unsigned char *)&key;
    uint64_t hash = UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = 0; i + 8 <= sizeof key; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof word);
        hash = (hash ^ word) * UINT64_C(0xff51afd7ed558ccd);
        hash ^= hash >> 32;
    }
    return hash | 1;
}

static void discover(void)
{
    uint64_t key = world_key(&now);
    uint32_t at = (uint32_t)(key >> 20) % SEEN_SLOTS;
    while (seen[at] != 0) {
        if (seen[at] == key) {
            return;
        }
        at = (at + 1) % SEEN_SLOTS;
    }
    if (queue_count < queue_max) {
        seen[at] = key;
        memcpy(&queue[queue_count++], &now, sizeof now);
    }
}

/* ---- the rules, written a second time from the holders alone ---- */

struct sums {
    uint64_t use[2], booked[2];
    uint32_t open;
};

static uint64_t model_booking(const struct corral_ledger_holder *h)
{
    uint64_t use = h->reserved + h->committed;
    return h->step_slot != 0 && h->declared > use ? h->declared - use : 0;
}

static struct sums add_up(const struct corral_ledger *l)
{
    struct sums s = {0};
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        const struct corral_ledger_holder *h = &l->holder[i];
        if (h->pid != 0) {
            s.use[h->role] += h->reserved + h->committed;
            s.booked[h->role] += model_booking(h);
            s.open += h->step_slot != 0;
        }
    }
    return s;
}

static uint64_t model_claim(const struct corral_ledger *l, const struct sums *s, uint32_t role)
{
    uint64_t taken = s->use[role] + s->booked[role];
    return taken > l->device[0].role[role].floor ? taken : l->device[0].role[role].floor;
}

/* May the holder grow by `bytes`; as a booking when `opens`. */
static bool model_fits(const struct corral_ledger *l, uint32_t holder, uint64_t bytes, bool opens)
{
    const struct corral_ledger_holder *h = &l->holder[holder];
    const struct corral_ledger_device *d = &l->device[0];
    struct sums s = add_up(l);
    uint64_t booking = model_booking(h);
    if (bytes <= booking) {
        return true;
    }
    uint64_t taken = s.use[h->role] + s.booked[h->role] + (bytes - booking);
    bool frozen = s.open > 0 && !opens && taken > d->role[h->role].floor;
    return !frozen && taken <= d->role[h->role].ceiling &&
           taken + model_claim(l, &s, 1 - h->role) + d->headroom <= d->physical;
}

/* ---- what must hold in every state ---- */

static struct corral_ledger saved;

/* The unused floor of a role can be taken by any of its processes, and what a step has booked by the one that booked it. */
static void check_promises(uint32_t p)
{
    struct corral_ledger *l = &now.ledger;
    if (now.life[p] != ALIVE) {
        return;
    }
    uint32_t holder = now.slot[p];
    const struct corral_ledger_role *role = &l->device[0].role[process_role[p]];
    uint64_t base = role->used + role->booked;
    uint64_t booked = booking_left(&l->holder[holder]);
    uint64_t promised = booked + (base < role->floor ? role->floor - base : 0);
    memcpy(&saved, l, sizeof saved);
    assert_int_equal(corral_ledger_reserve(l, holder, promised, NULL), CORRAL_OK);
    assert_true(corral_ledger_consistent(l));
    memcpy(l, &saved, sizeof saved);
}

static void check_world(void)
{
    const struct corral_ledger *l = &now.ledger;
    actions_done++;
    assert_true(corral_ledger_consistent(l));
    assert_true(corral_ledger_tables_consistent(l));
    struct sums s = add_up(l);
    uint64_t claims = l->device[0].headroom;
    for (uint32_t r = 0; r < 2; r++) {
        assert_int_equal(l->device[0].role[r].used, s.use[r]);
        assert_true(s.use[r] <= l->device[0].role[r].ceiling);
        claims += model_claim(l, &s, r);
    }
    assert_true(claims <= l->device[0].physical);
    for (uint32_t p = 0; p < PROCESSES; p++) {
        check_promises(p);
    }
}

/* ---- actions ---- */

enum verb {
    JOIN,
    TAKE,
    KEEP,
    GIVE_BACK,
    RESIZE,
    RESERVE,
    COMMIT,
    ROLL_BACK,
    RELEASE,
    OPEN,
    CLOSE,
    EXPORT,
    IMPORT,
    DROP_SHARE,
    LEAVE,
    REAP,
    LIMITS,
    VERBS
};

struct action {
    enum verb verb;
    uint32_t process;
    uint32_t at;    /* allocation or share */
    uint64_t bytes; /* or which limits */
};

static uint32_t own_allocations(uint32_t p)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < CORRAL_LEDGER_ALLOCATIONS_MAX; i++) {
        count += now.ledger.allocation[i].holder == now.slot[p] + 1;
    }
    return count;
}

static bool owns(uint32_t p, uint32_t allocation)
{
    const struct corral_ledger_allocation *a = &now.ledger.allocation[allocation];
    return a->holder == now.slot[p] + 1 && !a->orphan;
}

/* Untagged bytes of a holder: its sums less its table entries. */
static uint64_t untagged(uint32_t p, bool committed)
{
    const struct corral_ledger_holder *h = &now.ledger.holder[now.slot[p]];
    uint64_t bytes = committed ? h->committed : h->reserved;
    for (uint32_t i = 0; i < CORRAL_LEDGER_ALLOCATIONS_MAX; i++) {
        const struct corral_ledger_allocation *a = &now.ledger.allocation[i];
        if (a->holder == now.slot[p] + 1 && (a->committed == CORRAL_LEDGER_COMMITTED) == committed) {
            bytes -= a->bytes;
        }
    }
    return bytes;
}

static const struct corral_ledger_share *share_in_use(uint32_t at)
{
    return at < CORRAL_LEDGER_SHARES_MAX && now.ledger.share[at].allocation != 0 ? &now.ledger.share[at]
                                                                                 : NULL;
}

static bool possible_for_living(const struct action *a)
{
    const struct corral_ledger_holder *h = &now.ledger.holder[now.slot[a->process]];
    const struct corral_ledger_share *s = share_in_use(a->at);
    bool owned = a->at < CORRAL_LEDGER_ALLOCATIONS_MAX && owns(a->process, a->at);
    switch (a->verb) {
    case TAKE:
        return a->at == 0 && own_allocations(a->process) < OWN_ALLOCATIONS_MAX;
    case KEEP:
        return a->bytes == 1 && owned && now.ledger.allocation[a->at].committed == 0;
    case GIVE_BACK:
        return a->bytes == 1 && owned;
    case RESIZE:
        return owned && a->bytes != 2;
    case EXPORT:
        return a->bytes == 1 && owned;
    case RESERVE:
        return a->at == 0 && a->bytes == 1;
    case COMMIT:
    case ROLL_BACK:
        return a->at == 0 && a->bytes == 1 && untagged(a->process, false) > 0;
    case RELEASE:
        return a->at == 0 && a->bytes == 1 && untagged(a->process, true) > 0;
    case OPEN:
        return a->at == 0 && a->bytes >= 2 && h->step_slot == 0;
    case CLOSE:
        return a->at == 0 && a->bytes == 1 && h->step_slot != 0;
    case IMPORT:
        return a->bytes == 1 && s && s->holder == 0 && !owns(a->process, s->allocation - 1);
    case DROP_SHARE:
        return a->bytes == 1 && s && s->holder == now.slot[a->process] + 1;
    case LEAVE:
        return a->at == 0 && a->bytes == 1;
    default:
        return false;
    }
}

static bool possible(const struct action *a)
{
    bool once = a->at == 0 && a->bytes == 1;
    switch (a->verb) {
    case JOIN:
        return once && now.life[a->process] == AWAY;
    case REAP:
        return once && now.life[a->process] == DEAD;
    case LIMITS:
        return a->process == 0 && a->at == 0 && a->bytes <= 2;
    default:
        return now.life[a->process] == ALIVE && possible_for_living(a);
    }
}

/* The real call. */
static enum corral_status perform(const struct action *a, uint32_t *slot)
{
    struct corral_ledger *l = &now.ledger;
    uint32_t holder = now.slot[a->process], out;
    uint64_t key[2] = {a->at + 1, a->process};
    struct corral_ledger_window window;
    switch (a->verb) {
    case JOIN:
        return corral_ledger_join(l, 0, process_role[a->process], (pid_t)a->process + 1, 1, slot, NULL);
    case TAKE:
        return corral_ledger_take(l, holder, a->bytes, CORRAL_KIND_DEVICE, &out, NULL);
    case KEEP:
        corral_ledger_keep(l, a->at);
        return CORRAL_OK;
    case GIVE_BACK:
        corral_ledger_give_back(l, a->at);
        return CORRAL_OK;
    case RESIZE:
        return corral_ledger_resize(l, a->at, a->bytes, NULL);
    case RESERVE:
        return corral_ledger_reserve(l, holder, a->bytes, NULL);
    case COMMIT:
        corral_ledger_commit(l, holder, 1);
        return CORRAL_OK;
    case ROLL_BACK:
        corral_ledger_rollback(l, holder, 1);
        return CORRAL_OK;
    case RELEASE:
        corral_ledger_release(l, holder, 1);
        return CORRAL_OK;
    case OPEN:
        return corral_ledger_open_step(l, holder, 7, a->bytes + 1, NULL, NULL);
    case CLOSE:
        return corral_ledger_close_step(l, holder, &window, NULL);
    case EXPORT:
        return corral_ledger_export(l, a->at, key, NULL);
    case IMPORT:
        return corral_ledger_import(l, holder, l->share[a->at].key, &out, NULL);
    case DROP_SHARE:
        corral_ledger_drop_share(l, a->at);
        return CORRAL_OK;
    case LEAVE:
    case REAP:
        corral_ledger_leave(l, holder);
        return CORRAL_OK;
    case LIMITS:
        return corral_ledger_change_limits(l, 0, 0, limit_choice[a->bytes - 1][0],
                                           limit_choice[a->bytes - 1][1], NULL);
    default:
        return CORRAL_INTERNAL;
    }
}

/* What the call must answer, where the rules decide it. */
static enum corral_status expected(const struct action *a, enum corral_status got)
{
    const struct corral_ledger *l = &now.ledger;
    uint32_t holder = now.slot[a->process];
    switch (a->verb) {
    case TAKE:
    case RESERVE:
        return model_fits(l, holder, a->bytes, false) ? CORRAL_OK : CORRAL_DENIED;
    case RESIZE:
        return a->bytes <= l->allocation[a->at].bytes ||
                       model_fits(l, holder, a->bytes - l->allocation[a->at].bytes, false)
                   ? CORRAL_OK
                   : CORRAL_DENIED;
    case OPEN: {
        uint64_t use = l->holder[holder].reserved + l->holder[holder].committed;
        uint64_t more = a->bytes + 1 > use ? a->bytes + 1 - use : 0;
        return model_fits(l, holder, more, true) ? CORRAL_OK : CORRAL_DENIED;
    }
    case EXPORT:
    case IMPORT: /* the share table may be full, or the name taken */
    case LIMITS:
        return got;
    default:
        return CORRAL_OK;
    }
}

static void note_life(const struct action *a, uint32_t slot)
{
    if (a->verb == JOIN) {
        now.life[a->process] = ALIVE;
        now.slot[a->process] = slot;
    } else if (a->verb == LEAVE || a->verb == REAP) {
        now.life[a->process] = AWAY;
        now.slot[a->process] = 0;
    }
}

/* Run the action to its end and judge it. False when it was refused and so changed nothing that counts. */
static void act(const struct action *a, const struct world *from)
{
    uint32_t slot = 0;
    enum corral_status want = expected(a, CORRAL_OK);
    enum corral_status status = perform(a, &slot);
    if (a->verb != EXPORT && a->verb != IMPORT && a->verb != LIMITS) {
        assert_int_equal(status, want);
    }
    if (status == CORRAL_OK) {
        note_life(a, slot);
    } else {
        static struct corral_ledger before, after;
        memcpy(&before, &from->ledger, sizeof before);
        memcpy(&after, &now.ledger, sizeof after);
        normalise(&before);
        normalise(&after);
        assert_true(same(&before, &after));
    }
    check_world();
    discover();
}

/* The process is dead where it still has a slot, gone where it has none. */
static void bury(const struct action *a)
{
    if (a->verb == LIMITS) {
        return; /* the agent's, which holds nothing */
    }
    for (uint32_t i = 0; i < CORRAL_LEDGER_HOLDERS_MAX; i++) {
        const struct corral_ledger_holder *h = &now.ledger.holder[i];
        if (h->pid == (int)a->process + 1 && !h->left) {
            now.life[a->process] = DEAD;
            now.slot[a->process] = i;
            return;
        }
    }
    now.life[a->process] = AWAY;
    now.slot[a->process] = 0;
}

/* False when the action has fewer steps. */
static bool act_killed(const struct action *a, volatile uint32_t at)
{
    uint32_t slot = 0;
    steps_left = at;
    if (setjmp(killed) == 0) {
        enum corral_status status = perform(a, &slot);
        steps_left = NOT_KILLED;
        (void)status;
        return false;
    }
    return true;
}

/* False when the repair came to its end before the kill. */
static bool repair_killed(volatile uint32_t at)
{
    steps_left = at;
    if (setjmp(killed) == 0) {
        corral_ledger_repair(&now.ledger);
        steps_left = NOT_KILLED;
        return false;
    }
    return true;
}

static void repaired(const struct corral_ledger *l, struct corral_ledger *out)
{
    memcpy(out, l, sizeof *out);
    corral_ledger_repair(out);
    normalise(out);
}

static void explain_torn(const struct action *a, uint32_t at, const struct corral_ledger *got,
                         const struct corral_ledger *before, const struct corral_ledger *after)
{
    for (size_t i = 0; i < sizeof *got; i++) {
        const unsigned char *g = (const unsigned char *)got + i;
        unsigned char b = ((const unsigned char *)before)[i], w = ((const unsigned char *)after)[i];
        if (*g != b || *g != w) {
            print_message("byte %zu: %u, before %u, after %u\n", i, *g, b, w);
        }
    }
    fail_msg("verb %d of process %u (%u, %llu), killed at step %u: neither whole nor absent", (int)a->verb,
             a->process, a->at, (unsigned long long)a->bytes, at);
}

/* Whatever is left of a killed operation must repair to what was before it, or to what it would have made. */
static void explore_kills(const struct action *a, const struct world *from, uint32_t shift)
{
    static struct corral_ledger before, after, torn, got;
    uint32_t slot;
    repaired(&from->ledger, &before);
    memcpy(&now, from, sizeof now);
    perform(a, &slot);
    repaired(&now.ledger, &after);
    for (uint32_t at = 0;; at++) {
        assert_true(at < STEPS_TRIED_MAX);
        memcpy(&now, from, sizeof now);
        if (!act_killed(a, at)) {
            return;
        }
        memcpy(&torn, &now.ledger, sizeof torn);
        repaired(&torn, &got);
        bool whole = same(&got, &after);
        if (!whole && !same(&got, &before)) {
            explain_torn(a, at, &got, &before, &after);
        }
        for (uint32_t repair_at = (shift + at) % REPAIRS_KILLED;; repair_at += REPAIRS_KILLED) {
            assert_true(repair_at < STEPS_TRIED_MAX);
            memcpy(&now.ledger, &torn, sizeof torn);
            bool again = repair_killed(repair_at);
            repaired(&now.ledger, &got);
            assert_true(same(&got, whole ? &after : &before));
            kills_done++;
            if (!again) {
                break;
            }
        }
        bury(a);
        check_world();
        discover();
    }
}

static void explore(const struct world *from, uint32_t shift)
{
    for (uint32_t p = 0; p < PROCESSES; p++) {
        for (uint32_t verb = 0; verb < VERBS; verb++) {
            for (uint32_t at = 0; at < CORRAL_LEDGER_SHARES_MAX; at++) {
                for (uint64_t bytes = 1; bytes <= 3; bytes++) {
                    const struct action a = {.verb = (enum verb)verb, .process = p, .at = at, .bytes = bytes};
                    memcpy(&now, from, sizeof now);
                    if (possible(&a)) {
                        act(&a, from);
                        explore_kills(&a, from, shift);
                    }
                }
            }
        }
        memcpy(&now, from, sizeof now);
        if (now.life[p] == ALIVE) {
            now.life[p] = DEAD; /* killed between operations */
            check_world();
            discover();
        }
    }
}

/* ---- where to begin ---- */

static void plan_ledger(void)
{
    struct corral_error err;
    struct corral_ledger *l = &now.ledger;
    uint32_t out;
    memset(&now, 0, sizeof now);
    corral_ledger_init(l);
    check_ok(corral_ledger_add_device(l, "a:0", 8, 1, &out, &err));
    check_ok(corral_ledger_add_role(l, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(l, "rollout", &out, &err));
    check_ok(corral_ledger_set_limits(l, 0, 0, 2, 5, &err));
    check_ok(corral_ledger_set_limits(l, 0, 1, 3, 4, &err));
    check_ok(corral_ledger_check_plan(l, 1.2, &err));
}

static void begin_with(const struct action *actions, size_t count)
{
    plan_ledger();
    for (size_t i = 0; i < count; i++) {
        uint32_t slot = 0;
        assert_true(possible(&actions[i]));
        assert_int_equal(perform(&actions[i], &slot), CORRAL_OK);
        note_life(&actions[i], slot);
    }
    check_world();
    discover();
}

/* Breadth first from the empty ledger meets every short history; the others begin inside what takes long to reach. */
static void begin(void)
{
    static const struct action shared[] = {
        {JOIN, 0, 0, 1}, {JOIN, 1, 0, 1},   {JOIN, 2, 0, 1},   {TAKE, 0, 0, 2},
        {KEEP, 0, 0, 1}, {EXPORT, 0, 0, 1}, {IMPORT, 2, 0, 1}, {IMPORT, 1, 0, 1},
    };
    static const struct action stepping[] = {
        {JOIN, 0, 0, 1}, {JOIN, 1, 0, 1}, {JOIN, 2, 0, 1}, {TAKE, 0, 0, 1}, {OPEN, 0, 0, 2}, {TAKE, 2, 0, 2},
    };
    /* The rollout role is full, so the dead trainer's memory stays the trainers', held for its importer. */
    static const struct action held_for[] = {
        {JOIN, 0, 0, 1},   {JOIN, 1, 0, 1}, {JOIN, 2, 0, 1},    {TAKE, 0, 0, 2},  {EXPORT, 0, 0, 1},
        {IMPORT, 2, 0, 1}, {TAKE, 2, 0, 3}, {RESERVE, 2, 0, 1}, {LEAVE, 0, 0, 1},
    };
    begin_with(NULL, 0);
    begin_with(shared, CORRAL_COUNT_OF(shared));
    begin_with(stepping, CORRAL_COUNT_OF(stepping));
    begin_with(held_for, CORRAL_COUNT_OF(held_for));
    assert_int_equal(now.ledger.holder[0].left, 1);
}

static void every_reachable_state_keeps_the_promises(void **state)
{
    (void)state;
    const char *states = getenv("CORRAL_EXPLORER_STATES"); /* more, by hand */
    queue_max = states ? (uint32_t)strtoul(states, NULL, 10) : 12000;
    assert_in_range(queue_max, 10, SEEN_SLOTS / 2);
    queue = calloc(queue_max, sizeof *queue);
    seen = calloc(SEEN_SLOTS, sizeof *seen);
    assert_non_null(queue);
    assert_non_null(seen);
    begin();
    for (uint32_t i = 0; i < queue_count; i++) {
        static struct world from;
        memcpy(&from, &queue[i], sizeof from);
        explore(&from, i);
    }
    print_message("explored %u states, %llu actions, %llu kills\n", queue_count,
                  (unsigned long long)actions_done, (unsigned long long)kills_done);
    assert_true(queue_count > 1000);
    free(queue);
    free(seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_reachable_state_keeps_the_promises),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
