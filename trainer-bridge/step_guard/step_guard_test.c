#include "base/file.h"
#include "quota/proof/verify.h"
#include "tests/check.h"
#include "trainer-bridge/step_guard/resident.h"
#include "trainer-bridge/step_guard/step_guard.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static char folder[64], path[96];
static struct corral_error err;
static struct corral_quota *agent, *quota;
static uint32_t holder, other; /* trainer, rollout */
static int fd;

/* a:0 has 100 MiB, headroom 10: trainer 30 … 70, rollout 40 … 50; eval is elsewhere. */
static void make_node(void)
{
    struct corral_ledger *plan = malloc(corral_ledger_bytes());
    uint32_t out;
    corral_ledger_init(plan);
    check_ok(corral_ledger_add_role(plan, "trainer", &out, &err));
    check_ok(corral_ledger_add_role(plan, "rollout", &out, &err));
    check_ok(corral_ledger_add_role(plan, "eval", &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:0", 100 * MIB, 10 * MIB, &out, &err));
    check_ok(corral_ledger_add_device(plan, "a:1", 100 * MIB, 0, &out, &err));
    check_ok(corral_ledger_set_limits(plan, 0, 0, 30 * MIB, 70 * MIB, &err));
    check_ok(corral_ledger_set_limits(plan, 0, 1, 40 * MIB, 50 * MIB, &err));
    check_ok(corral_ledger_set_limits(plan, 1, 2, 40 * MIB, 50 * MIB, &err));
    check_ok(corral_ledger_check_plan(plan, 1.3, &err));
    check_ok(corral_quota_create(plan, NULL, &fd, &agent, &err));
    free(plan);
}

static uint64_t drift_max = 64 * MIB;

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/corral-guard.XXXXXX");
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/chain", folder);
    make_node();
    check_ok(corral_quota_attach(fd, &quota, &err));
    check_ok(corral_quota_join(quota, "a:0", "trainer", &holder, &err));
    check_ok(corral_quota_join(quota, "a:0", "rollout", &other, &err));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    drift_max = 64 * MIB;
    corral_quota_detach(quota);
    corral_quota_detach(agent);
    close(fd);
    return corral_remove_tree(folder, NULL) == CORRAL_OK ? 0 : -1;
}

static struct corral_step_guard *make_guard(uint64_t step, uint32_t generation)
{
    struct corral_step_guard *g = NULL;
    struct corral_step_guard_config config = {
        .quota = quota,
        .holder = holder,
        .rank = 1,
        .generation = generation,
        .run = 77,
        .step = step,
        .chain_path = path,
        .fences = "ledger affinity",
        .drift_max = drift_max,
        .host_device = true,
    };
    check_ok(corral_step_guard_create(&config, &g, &err));
    return g;
}

static struct corral_proof_summary *verify(void)
{
    static struct corral_proof_summary s;
    check_ok(corral_proof_verify(path, NULL, 0, &s, &err));
    assert_string_equal(s.broken, "");
    return &s;
}

static void take(uint32_t h, uint64_t bytes)
{
    check_ok(corral_quota_reserve(quota, h, bytes, "test", &err));
    corral_quota_commit(quota, h, bytes);
}

static void a_step_leaves_a_record_of_what_happened(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 5);
    struct corral_proof_record r;
    take(other, 7 * MIB);
    check_ok(corral_step_guard_begin(g, 1, 50 * MIB, &err));
    take(holder, 45 * MIB);
    corral_quota_release(quota, holder, 5 * MIB);
    assert_int_equal(corral_quota_reserve(quota, other, 60 * MIB, "too much", &err), CORRAL_DENIED);
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_string_equal(r.why, "");
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN);
    assert_int_equal(r.role_count, 2); /* eval is not on this device */
    assert_int_equal(r.declared, 50 * MIB);
    assert_int_equal(r.own_peak, 45 * MIB);
    assert_int_equal(r.role[0].peak, 45 * MIB);
    assert_int_equal(r.role[0].used, 40 * MIB);
    assert_int_equal(r.role[1].peak, 7 * MIB);
    assert_int_equal(r.role[1].denied, 1);
    assert_int_equal(r.claim_peak, 100 * MIB); /* headroom 10 + booked 50 + rollout's floor 40 */
    assert_int_equal(r.slack_min, 0);
    assert_true(r.physical_read > 0);
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->proven, 1);
    assert_true(s->ended);
    assert_int_equal(s->generation, 5);
    assert_int_equal(s->run, 77);
}

static void a_step_that_would_cross_is_refused_and_nothing_else_changes(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    assert_int_equal(corral_step_guard_begin(g, 1, 60 * MIB, &err),
                     CORRAL_DENIED); /* rollout's floor leaves 50 */
    assert_true(err.text[0] != 0);
    check_ok(corral_quota_reserve(quota, other, 50 * MIB, "borrowing is not frozen", &err));
    corral_quota_rollback(quota, other, 50 * MIB);
    check_ok(corral_step_guard_begin(g, 1, 50 * MIB, &err));
    assert_int_equal(corral_quota_reserve(quota, other, 45 * MIB, "frozen", &err), CORRAL_DENIED);
    check_ok(corral_step_guard_end(g, NULL, &err));
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->refused, 1);
    assert_int_equal(s->steps, 1);
    assert_int_equal(s->proven, 1);
}

static void an_abandoned_step_leaves_no_record_and_may_be_taken_again(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_chain_head before, after;
    corral_step_guard_head(g, &before);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    assert_int_equal(corral_step_guard_begin(g, 1, 0, &err), CORRAL_STATE);
    corral_step_guard_abandon(g);
    corral_step_guard_head(g, &after);
    assert_int_equal(after.count, before.count);
    assert_int_equal(corral_step_guard_end(g, NULL, &err), CORRAL_STATE);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, NULL, &err));
    assert_int_equal(corral_step_guard_begin(g, 3, 0, &err), CORRAL_STATE);
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->steps, 1);
}

static void memory_beside_the_ledger_makes_a_step_unproven(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN);
    check_ok(corral_step_guard_begin(g, 2, 0, &err));
    size_t bytes = 96 * MIB;
    char *hidden = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(hidden, MAP_FAILED);
    memset(hidden, 1, bytes);
    check_ok(corral_step_guard_end(g, &r, &err));
    munmap(hidden, bytes);
    assert_int_equal(r.verdict, CORRAL_PROOF_UNPROVEN);
    assert_non_null(strstr(r.why, "drift"));
    check_ok(corral_step_guard_begin(g, 3, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN);
    struct corral_step_guard_counts counts;
    corral_step_guard_counts(g, &counts);
    assert_int_equal(counts.proven, 2);
    assert_int_equal(counts.unproven, 1);
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->unproven, 1);
    assert_int_equal(s->doubt_step, 2);
}

/* The most that was ever resident tells less than what is, but costs less. */
static void what_is_resident_is_read_only_when_the_peak_does_not_prove_the_step(void **state)
{
    (void)state;
    const uint64_t limit[] = {UINT64_C(1) << 40, 0};
    struct utsname system;
    assert_int_equal(uname(&system), 0);
    const enum corral_proof_reading reading[] = {corral_resident_has_bound(system.release)
                                                     ? CORRAL_PROOF_READING_PEAK
                                                     : CORRAL_PROOF_READING_ANONYMOUS,
                                                 CORRAL_PROOF_READING_ANONYMOUS};
    uint64_t read[2];
    for (uint32_t i = 0; i < 2; i++) {
        struct corral_proof_record r;
        drift_max = limit[i];
        struct corral_step_guard *g = make_guard(i, 0);
        check_ok(corral_step_guard_begin(g, i + 1, 0, &err));
        check_ok(corral_step_guard_end(g, &r, &err));
        assert_int_equal(r.reading, reading[i]);
        assert_int_equal(r.physical_age_ns, 0);
        read[i] = r.physical_read;
        corral_step_guard_destroy(g);
    }
    assert_true(read[1] > 0 && (reading[0] == reading[1] || read[0] >= read[1])); /* an upper bound */
    assert_int_equal(verify()->steps, 2);
}

/* Older kernels leave pages uncounted with every thread: nothing can be added that makes a peak an upper bound. */
static void a_peak_is_asked_only_of_kernels_that_count_per_cpu(void **state)
{
    (void)state;
    static const struct {
        const char *release;
        bool has_bound;
    } kernels[] = {
        {"6.2.0", true},
        {"6.12.3-amd64", true},
        {"7.0", true},
        {"10.1.0", true},
        {"6.1.0-18-amd64", false},
        {"5.15.0-101-generic", false},
        {"4.18.0-553.el8", false},
        {"", false},
        {"x", false},
        {"6", false},
    };
    for (size_t i = 0; i < CORRAL_COUNT_OF(kernels); i++) {
        assert_int_equal(corral_resident_has_bound(kernels[i].release), kernels[i].has_bound);
    }
    struct corral_resident r;
    check_ok(corral_resident_open(&r, &err));
    r.has_bound = false;
    assert_int_equal(corral_resident_peak(&r), 0);
    assert_true(corral_resident_now(&r) > 0);
    r.has_bound = true;
    assert_true(corral_resident_peak(&r) > corral_resident_now(&r));
    corral_resident_close(&r);
}

/* A peak that is past hides nothing below it: memory that comes back later is found. */
static void memory_below_an_earlier_peak_is_found(void **state)
{
    (void)state;
    size_t bytes = 96 * MIB;
    struct corral_step_guard *g = make_guard(0, 1);
    for (uint64_t step = 1; step <= 4; step++) {
        struct corral_proof_record r;
        bool hides = step % 2 == 1;
        check_ok(corral_step_guard_begin(g, step, 0, &err));
        char *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_ptr_not_equal(m, MAP_FAILED);
        memset(m, 1, hides ? bytes : MIB);
        check_ok(corral_step_guard_end(g, &r, &err));
        munmap(m, bytes);
        assert_int_equal(r.verdict, hides ? CORRAL_PROOF_UNPROVEN : CORRAL_PROOF_PROVEN);
        assert_int_equal(r.reading, CORRAL_PROOF_READING_ANONYMOUS);
    }
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->unproven, 2);
}

static void a_gpu_without_a_reading_proves_nothing(void **state)
{
    (void)state;
    struct corral_step_guard *g = NULL;
    struct corral_proof_record r;
    struct corral_step_guard_config config = {.quota = quota,
                                              .holder = holder,
                                              .chain_path = path,
                                              .fences = "ledger interposer",
                                              .drift_max = MIB};
    check_ok(corral_step_guard_create(&config, &g, &err));
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_UNPROVEN);
    assert_int_equal(r.reading, CORRAL_PROOF_READING_DEVICE);
    assert_non_null(strstr(r.why, "no physical reading"));
    corral_step_guard_destroy(g);
}

static void a_live_change_of_limits_is_recorded_before_the_step(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, NULL, &err));
    check_ok(corral_quota_change_limits(agent, 0, 1, 30 * MIB, 45 * MIB, &err));
    check_ok(corral_step_guard_begin(g, 2, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.role[1].floor, 30 * MIB);
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN);
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->head.count, 5); /* begin, step, limits, step, end */
    assert_int_equal(s->role[1].ceiling, 45 * MIB);
}

/* A second process of another role on the trainer's device, marked as running on a driver that is not hooked in full. */
static void an_unproven_process_on_the_device_makes_steps_unproven(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    struct corral_quota *elsewhere = NULL, *here = NULL;
    uint32_t on_another, on_this;
    check_ok(corral_quota_attach(fd, &elsewhere, &err));
    check_ok(corral_quota_join(elsewhere, "a:1", "eval", &on_another, &err));
    corral_quota_add_flags(elsewhere, on_another, CORRAL_HOLDER_UNPROVEN);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN); /* another device */
    check_ok(corral_step_guard_begin(g, 2, 0, &err));
    check_ok(corral_quota_attach(fd, &here, &err));
    check_ok(corral_quota_join(here, "a:0", "rollout", &on_this, &err));
    corral_quota_add_flags(here, on_this, CORRAL_HOLDER_UNPROVEN);
    corral_quota_detach(here); /* came and went inside the step */
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_UNPROVEN);
    assert_non_null(strstr(r.why, "nobody hooks"));
    check_ok(corral_step_guard_begin(g, 3, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN); /* it is gone */
    check_ok(corral_quota_attach(fd, &here, &err));
    check_ok(corral_quota_join(here, "a:0", "rollout", &on_this, &err));
    corral_quota_add_flags(here, on_this, CORRAL_HOLDER_UNPROVEN);
    for (uint64_t step = 4; step <= 5; step++) {
        check_ok(corral_step_guard_begin(g, step, 0, &err));
        check_ok(corral_step_guard_end(g, &r, &err));
        assert_int_equal(r.verdict, CORRAL_PROOF_UNPROVEN);
    }
    check_ok(corral_step_guard_begin(g, 6, 0, &err));
    corral_quota_detach(here); /* was there when it began */
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.verdict, CORRAL_PROOF_UNPROVEN);
    corral_quota_detach(elsewhere);
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->unproven, 4);
}

static void shared_mappings_do_not_hide_drift(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    struct corral_quota_charge charge;
    check_ok(corral_quota_take(quota, holder, 20 * MIB, CORRAL_KIND_MAPPING, "store", &charge, &err));
    corral_quota_keep(quota, &charge);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, &r, &err));
    assert_int_equal(r.own_peak, 20 * MIB);
    assert_int_equal(r.ledger, 0);
    assert_int_equal(r.verdict, CORRAL_PROOF_PROVEN);
    corral_step_guard_destroy(g);
}

/* Ceilings go back and forth so that a mixture of two moments would break the plan's rules. */
static void limits_that_change_all_the_time_are_never_mixed_up(void **state)
{
    (void)state;
    pid_t changer = fork();
    if (changer == 0) {
        if (corral_quota_attach(fd, &agent, &err) != CORRAL_OK) { /* after fork, one of its own */
            _exit(1);
        }
        for (;;) {
            (void)corral_quota_change_limits(agent, 0, 0, 30 * MIB, 50 * MIB, NULL);
            (void)corral_quota_change_limits(agent, 0, 1, 40 * MIB, 80 * MIB, NULL);
            (void)corral_quota_change_limits(agent, 0, 1, 40 * MIB, 50 * MIB, NULL);
            (void)corral_quota_change_limits(agent, 0, 0, 30 * MIB, 80 * MIB, NULL);
        }
    }
    struct corral_step_guard *g = make_guard(0, 1);
    uint64_t step = 0, last = 0, changes = 0;
    while (step < 3000 || (changes < 50 && step < 1000000)) { /* until the changer has had its turn, too */
        check_ok(corral_step_guard_begin(g, ++step, 0, &err));
        check_ok(corral_step_guard_end(g, NULL, &err));
        uint64_t now = corral_quota_ledger(quota)->device[0].role[0].ceiling;
        changes += now != last;
        last = now;
    }
    kill(changer, SIGKILL);
    waitpid(changer, NULL, 0);
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->steps, step);
    assert_true(s->limit_changes > 0);
    assert_int_equal(s->own_ceiling, 80 * MIB);
}

static void a_reading_is_compared_with_the_charge_of_the_same_moment(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    for (uint64_t step = 1; step <= 20; step++) {
        check_ok(corral_step_guard_begin(g, step, 40 * MIB, &err));
        take(holder, MIB);
        check_ok(corral_step_guard_end(g, &r, &err));
        assert_int_equal(r.ledger, step * MIB);
        assert_int_equal(r.physical_age_ns, 0);
        assert_int_equal(r.drift, (int64_t)(r.physical_read - r.ledger - r.baseline));
    }
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->steps, 20);
}

/* However short the steps are, and though the ledger says the same all the time. */
static void every_step_has_a_reading_of_its_own(void **state)
{
    (void)state;
    const size_t bytes = 8 * MIB;
    struct corral_step_guard *g = make_guard(0, 1);
    struct corral_proof_record r;
    uint64_t before = 0;
    char *memory[6];
    for (uint64_t step = 1; step <= CORRAL_COUNT_OF(memory); step++) {
        check_ok(corral_step_guard_begin(g, step, 40 * MIB, &err));
        char *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(m != MAP_FAILED);
        memory[step - 1] = memset(m, 1, bytes);
        check_ok(corral_step_guard_end(g, &r, &err));
        assert_true(r.physical_read >= before + (step > 1 ? bytes / 2 : 1));
        before = r.physical_read;
    }
    for (size_t i = 0; i < CORRAL_COUNT_OF(memory); i++) {
        munmap(memory[i], bytes);
    }
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->steps, CORRAL_COUNT_OF(memory));
}

/* A trainer outside, which does not number its own lives: it is killed inside the write of a record, then inside the first write of its next life. */
static void a_torn_end_does_not_hide_the_life_before_it(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 0);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, NULL, &err));
    corral_step_guard_destroy(g);
    for (uint32_t life = 2; life <= 4; life++) {
        FILE *f = fopen(path, "ae");
        fputs("0123456789abcdef torn", f);
        fclose(f);
        if (life == 3) { /* it came as far as the note of the torn end */
            struct corral_chain *chain = NULL;
            check_ok(corral_chain_open(path, &chain, &err));
            corral_chain_close(chain);
            continue;
        }
        g = make_guard(life / 2, life == 4 ? 1 : 0); /* numbered or not */
        check_ok(corral_step_guard_begin(g, life / 2 + 1, 0, &err));
        check_ok(corral_step_guard_end(g, NULL, &err));
        corral_step_guard_destroy(g);
        const struct corral_proof_summary *s = verify();
        assert_int_equal(s->steps, life / 2 + 1);
    }
}

static void a_beginning_torn_twice_is_still_a_beginning(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(path, "ae");
        fputs("0123456789abcdef torn", f);
        fclose(f);
        struct corral_chain *chain = NULL;
        check_ok(corral_chain_open(path, &chain, &err));
        corral_chain_close(chain);
    }
    struct corral_step_guard *g = make_guard(0, 0);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    check_ok(corral_step_guard_end(g, NULL, &err));
    corral_step_guard_destroy(g);
    assert_int_equal(verify()->steps, 1);
}

/* A data loader's worker that cleans up what it found when it was forked. */
static void a_child_that_ends_the_guard_ends_nothing(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    for (uint64_t step = 1; step <= 4; step++) {
        if (step % 2 == 0) { /* inside a step and between two */
            check_ok(corral_step_guard_begin(g, step, 0, &err));
        }
        pid_t child = fork();
        if (child == 0) {
            bool refused = corral_step_guard_begin(g, step, 0, &err) == CORRAL_STATE;
            corral_step_guard_destroy(g);
            _exit(refused ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        if (step % 2 == 1) {
            check_ok(corral_step_guard_begin(g, step, 0, &err));
        }
        check_ok(corral_step_guard_end(g, NULL, &err));
    }
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->proven, 4);
    assert_true(s->ended);
}

static void an_open_step_at_the_end_was_not_taken(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 1);
    check_ok(corral_step_guard_begin(g, 1, 0, &err));
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->steps, 0);
    assert_int_equal(s->refused, 1);
    assert_true(s->ended);
    check_ok(corral_quota_reserve(quota, other, 50 * MIB, "borrowing is thawed", &err));
    corral_quota_rollback(quota, other, 50 * MIB);
}

static void goes_on_after_an_earlier_life(void **state)
{
    (void)state;
    struct corral_step_guard *g = make_guard(0, 0);
    for (uint64_t i = 1; i <= 3; i++) {
        check_ok(corral_step_guard_begin(g, i, 0, &err));
        check_ok(corral_step_guard_end(g, NULL, &err));
    }
    corral_step_guard_destroy(g);
    g = make_guard(2, 0); /* its state was saved after step 2 */
    check_ok(corral_step_guard_begin(g, 3, 0, &err));
    check_ok(corral_step_guard_end(g, NULL, &err));
    corral_step_guard_destroy(g);
    const struct corral_proof_summary *s = verify();
    assert_int_equal(s->steps, 3);
    assert_int_equal(s->superseded, 1);
    assert_int_equal(s->generation, 2);
}

/* A trainer: its state is the last step it made final, in shared memory. */
static void trainer_life(uint64_t *state_step, uint32_t generation)
{
    check_ok(corral_quota_attach(fd, &quota, &err));
    check_ok(corral_quota_join(quota, "a:0", "trainer", &holder, &err));
    struct corral_step_guard *g = make_guard(*state_step, generation);
    for (;;) {
        uint64_t step = *state_step + 1;
        check_ok(corral_step_guard_begin(g, step, 0, &err));
        take(holder, MIB);
        corral_quota_release(quota, holder, MIB);
        check_ok(corral_step_guard_end(g, NULL, &err));
        *(volatile uint64_t *)state_step = step;
    }
}

static void a_trainer_killed_anywhere_leaves_a_chain_that_verifies(void **state)
{
    (void)state;
    uint64_t *step = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(step, MAP_FAILED);
    unsigned seed = 7;
    for (uint32_t life = 1; life <= 30; life++) {
        uint64_t from = *step;
        pid_t child = fork();
        if (child == 0) {
            trainer_life(step, life);
            _exit(1);
        }
        uint64_t until = from + 1 + (unsigned)rand_r(&seed) % 20;
        while (*(volatile uint64_t *)step < until && waitpid(child, NULL, WNOHANG) == 0) {
        }
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        corral_quota_reap_pid(agent, child);
        const struct corral_proof_summary *s = verify();
        assert_true(s->last_step == *step || s->last_step == *step + 1); /* recorded before it was final */
        assert_true(s->last_step >= until);
        assert_int_equal(s->unproven, 0);
        assert_int_equal(corral_quota_ledger(agent)->device[0].steps_open, 0);
    }
    munmap(step, 4096);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_step_leaves_a_record_of_what_happened),
        T(a_step_that_would_cross_is_refused_and_nothing_else_changes),
        T(an_abandoned_step_leaves_no_record_and_may_be_taken_again),
        T(memory_beside_the_ledger_makes_a_step_unproven),
        T(what_is_resident_is_read_only_when_the_peak_does_not_prove_the_step),
        T(a_peak_is_asked_only_of_kernels_that_count_per_cpu),
        T(memory_below_an_earlier_peak_is_found),
        T(a_gpu_without_a_reading_proves_nothing),
        T(a_live_change_of_limits_is_recorded_before_the_step),
        T(an_unproven_process_on_the_device_makes_steps_unproven),
        T(shared_mappings_do_not_hide_drift),
        T(limits_that_change_all_the_time_are_never_mixed_up),
        T(a_reading_is_compared_with_the_charge_of_the_same_moment),
        T(every_step_has_a_reading_of_its_own),
        T(a_torn_end_does_not_hide_the_life_before_it),
        T(a_beginning_torn_twice_is_still_a_beginning),
        T(a_child_that_ends_the_guard_ends_nothing),
        T(an_open_step_at_the_end_was_not_taken),
        T(goes_on_after_an_earlier_life),
        T(a_trainer_killed_anywhere_leaves_a_chain_that_verifies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
