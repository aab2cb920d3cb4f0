/* Model checking by exhaustion: every reachable state of a small ledger (two roles, three processes) under every order of
 * join, reserve, commit, rollback, release, leave, reap, and a kill at every step inside each of them and inside the
 * repair that follows. The functions are the real ones: ledger.c is compiled here with its step points open. */
#include "tests/check.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ledger_step(void);
#define CORRAL_LEDGER_STEP() ledger_step()
#include "quota/ledger.c"

#define PROCESSES 3
#define ROLES 2
#define NOT_KILLED UINT32_MAX
#define STATES_MAX (1u << 17)

static const uint64_t physical = 8, headroom = 1;
static const uint64_t role_floor[ROLES] = {2, 3}, role_ceiling[ROLES] = {5, 4};
static const uint32_t process_role[PROCESSES] = {0, 0, 1};

enum life { AWAY, ALIVE, DEAD };

/* What the outside world knows; the ledger's own slots must agree with it. */
struct process {
    enum life life;
    uint32_t slot;
    uint64_t reserved, committed;
};

struct world {
    struct corral_ledger_device device;
    struct corral_ledger_holder holder[PROCESSES];
    uint32_t holder_high;
    struct process process[PROCESSES];
};

static struct corral_ledger ledger;
static struct process process[PROCESSES];
static jmp_buf killed;
static uint32_t steps_left; /* until the kill; NOT_KILLED: never */

static struct world *queue;
static uint32_t queue_count;
static uint32_t *seen; /* open addressing: key + 1 */
static uint64_t actions_done;

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

static void save(struct world *w)
{
    w->device = ledger.device[0];
    memcpy(w->holder, ledger.holder, sizeof w->holder);
    w->holder_high = ledger.holder_high;
    memcpy(w->process, process, sizeof process);
}

static void restore(const struct world *w)
{
    ledger.device[0] = w->device;
    memcpy(ledger.holder, w->holder, sizeof w->holder);
    ledger.holder_high = w->holder_high;
    ledger.pending_holder = 0;
    memcpy(process, w->process, sizeof process);
}

static uint64_t model_used(uint32_t role)
{
    uint64_t used = 0;
    for (uint32_t p = 0; p < PROCESSES; p++) {
        if (process_role[p] == role && process[p].life != AWAY) {
            used += process[p].reserved + process[p].committed;
        }
    }
    return used;
}

/* Invariant 1 as the architecture states it, written a second time. */
static bool model_fits(uint32_t role, uint64_t bytes)
{
    uint64_t used = model_used(role), other = model_used(1 - role);
    uint64_t kept = other > role_floor[1 - role] ? other : role_floor[1 - role];
    return used + bytes <= role_ceiling[role] && used + bytes + kept + headroom <= physical;
}

static void check_floor_can_be_taken(uint32_t p)
{
    uint64_t used = model_used(process_role[p]);
    uint64_t floor = role_floor[process_role[p]];
    if (process[p].life != ALIVE || used >= floor) {
        return;
    }
    struct corral_ledger_holder before = ledger.holder[process[p].slot];
    struct corral_ledger_device device = ledger.device[0];
    assert_int_equal(corral_ledger_reserve(&ledger, process[p].slot, floor - used, NULL), CORRAL_OK);
    corral_ledger_rollback(&ledger, process[p].slot, floor - used);
    ledger.holder[process[p].slot] = before;
    ledger.device[0] = device;
}

static void check_world(void)
{
    actions_done++;
    assert_true(corral_ledger_consistent(&ledger));
    for (uint32_t r = 0; r < ROLES; r++) {
        uint64_t used = model_used(r);
        assert_int_equal(ledger.device[0].role[r].used, used);
        assert_true(used >= role_floor[r] || corral_ledger_slack(&ledger, 0, r) >= role_floor[r] - used);
    }
    for (uint32_t p = 0; p < PROCESSES; p++) {
        if (process[p].life != AWAY) {
            const struct corral_ledger_holder *h = &ledger.holder[process[p].slot];
            assert_int_equal(h->pid, (int)p + 1);
            assert_int_equal(h->reserved, process[p].reserved);
            assert_int_equal(h->committed, process[p].committed);
        }
        check_floor_can_be_taken(p);
    }
}

static uint32_t world_key(void)
{
    uint32_t key = 0;
    for (uint32_t p = 0; p < PROCESSES; p++) {
        key = key * 3 + process[p].life;
        key = key * 8 + (uint32_t)process[p].reserved;
        key = key * 8 + (uint32_t)process[p].committed;
    }
    return key;
}

static void discover(void)
{
    uint32_t key = world_key() + 1;
    uint32_t at = (key * 2654435761u) % (4 * STATES_MAX);
    while (seen[at] != 0) {
        if (seen[at] == key) {
            return;
        }
        at = (at + 1) % (4 * STATES_MAX);
    }
    assert_true(queue_count < STATES_MAX);
    seen[at] = key;
    save(&queue[queue_count++]);
}

enum verb { JOIN, RESERVE, COMMIT, ROLLBACK, RELEASE, LEAVE, REAP };

struct action {
    enum verb verb;
    uint32_t process;
    uint64_t bytes;
};

static bool possible(const struct action *a)
{
    const struct process *p = &process[a->process];
    switch (a->verb) {
    case JOIN:
        return p->life == AWAY && a->bytes == 1;
    case RESERVE:
        return p->life == ALIVE;
    case COMMIT:
    case ROLLBACK:
        return p->life == ALIVE && p->reserved >= a->bytes;
    case RELEASE:
        return p->life == ALIVE && p->committed >= a->bytes;
    case LEAVE:
        return p->life == ALIVE && a->bytes == 1;
    case REAP:
        return p->life == DEAD && a->bytes == 1;
    }
    return false;
}

/* The real call. */
static enum corral_status perform(const struct action *a, uint32_t *slot)
{
    uint32_t holder = process[a->process].slot;
    switch (a->verb) {
    case JOIN:
        return corral_ledger_join(&ledger, 0, process_role[a->process], (pid_t)a->process + 1, 1, slot, NULL);
    case RESERVE:
        return corral_ledger_reserve(&ledger, holder, a->bytes, NULL);
    case COMMIT:
        corral_ledger_commit(&ledger, holder, a->bytes);
        return CORRAL_OK;
    case ROLLBACK:
        corral_ledger_rollback(&ledger, holder, a->bytes);
        return CORRAL_OK;
    case RELEASE:
        corral_ledger_release(&ledger, holder, a->bytes);
        return CORRAL_OK;
    case LEAVE:
    case REAP:
        corral_ledger_leave(&ledger, holder);
        return CORRAL_OK;
    }
    return CORRAL_INTERNAL;
}

/* What the call means. */
static void model(const struct action *a, uint32_t slot)
{
    struct process *p = &process[a->process];
    switch (a->verb) {
    case JOIN:
        *p = (struct process){.life = ALIVE, .slot = slot};
        break;
    case RESERVE:
        p->reserved += a->bytes;
        break;
    case COMMIT:
        p->reserved -= a->bytes;
        p->committed += a->bytes;
        break;
    case ROLLBACK:
        p->reserved -= a->bytes;
        break;
    case RELEASE:
        p->committed -= a->bytes;
        break;
    case LEAVE:
    case REAP:
        *p = (struct process){.life = AWAY};
        break;
    }
}

static void act(const struct action *a)
{
    uint32_t slot = 0;
    uint64_t denied = ledger.device[0].role[process_role[a->process]].denied;
    bool fits = a->verb != RESERVE || model_fits(process_role[a->process], a->bytes);
    enum corral_status status = perform(a, &slot);
    assert_int_equal(status, fits ? CORRAL_OK : CORRAL_DENIED);
    ledger.device[0].role[process_role[a->process]].denied = denied;
    if (status == CORRAL_OK) {
        model(a, slot);
    }
    check_world();
    discover();
}

/* The ledger after a kill, as the world sees it: the process is dead unless it never got in or was already out, and its
 * charges are those from before or from after the action, never between. */
static void adopt_after_kill(const struct action *a)
{
    struct process *p = &process[a->process];
    const struct process before = *p;
    uint32_t slot = UINT32_MAX;
    for (uint32_t i = 0; i < PROCESSES; i++) {
        if (ledger.holder[i].pid == (int)a->process + 1) {
            slot = i;
        }
    }
    if (slot == UINT32_MAX) {
        assert_true(a->verb == JOIN || a->verb == LEAVE || a->verb == REAP);
        *p = (struct process){.life = AWAY};
        return;
    }
    const struct corral_ledger_holder *h = &ledger.holder[slot];
    bool as_before = h->reserved == before.reserved && h->committed == before.committed;
    if (a->verb == LEAVE || a->verb == REAP) {
        assert_true(as_before || (h->reserved == 0 && h->committed == 0));
    } else {
        model(a, slot);
        assert_true(as_before || (h->reserved == p->reserved && h->committed == p->committed));
    }
    *p = (struct process){.life = DEAD, .slot = slot, .reserved = h->reserved, .committed = h->committed};
}

/* Run the action, killed before its step `at`. False when it has fewer steps. */
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

static void repair_killed(volatile uint32_t at)
{
    steps_left = at;
    if (setjmp(killed) == 0) {
        corral_ledger_repair(&ledger);
        steps_left = NOT_KILLED;
    }
}

static void explore_kills(const struct action *a, const struct world *from)
{
    for (uint32_t at = 0; at < 32; at++) {
        for (uint32_t repair_at = 0; repair_at < 8; repair_at++) {
            restore(from);
            if (!act_killed(a, at)) {
                return;
            }
            repair_killed(repair_at);
            corral_ledger_repair(&ledger);
            adopt_after_kill(a);
            check_world();
            discover();
        }
    }
    fail_msg("an operation has more steps than the explorer tries");
}

static void explore(const struct world *from)
{
    for (uint32_t p = 0; p < PROCESSES; p++) {
        for (uint32_t verb = JOIN; verb <= REAP; verb++) {
            for (uint64_t bytes = 1; bytes <= 3; bytes++) {
                const struct action a = {.verb = (enum verb)verb, .process = p, .bytes = bytes};
                restore(from);
                if (!possible(&a)) {
                    continue;
                }
                act(&a);
                explore_kills(&a, from);
            }
        }
        restore(from);
        if (process[p].life == ALIVE) {
            process[p].life = DEAD; /* killed between operations */
            check_world();
            discover();
        }
    }
}

static void every_reachable_state_keeps_the_invariant_and_the_floors(void **state)
{
    (void)state;
    struct corral_error err;
    corral_ledger_init(&ledger);
    uint32_t out;
    steps_left = NOT_KILLED;
    check_ok(corral_ledger_add_device(&ledger, "a:0", physical, headroom, &out, &err));
    for (uint32_t r = 0; r < ROLES; r++) {
        check_ok(corral_ledger_add_role(&ledger, r == 0 ? "trainer" : "rollout", &out, &err));
        check_ok(corral_ledger_set_limits(&ledger, 0, r, role_floor[r], role_ceiling[r], &err));
    }
    check_ok(corral_ledger_check_plan(&ledger, 1.2, &err));
    queue = calloc(STATES_MAX, sizeof *queue);
    seen = calloc(4 * STATES_MAX, sizeof *seen);
    assert_non_null(queue);
    assert_non_null(seen);
    discover();
    for (uint32_t i = 0; i < queue_count; i++) {
        const struct world from = queue[i];
        explore(&from);
    }
    print_message("explored %u states, %llu actions\n", queue_count, (unsigned long long)actions_done);
    assert_true(queue_count > 1000);
    free(queue);
    free(seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_reachable_state_keeps_the_invariant_and_the_floors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
