/* Checks that compare runs: equal seeds, batches of other sizes, subsets, the start of the next episode, snapshots. */
#include "base/clock.h"
#include "base/rng.h"
#include "rollout/env_host/backend.h"
#include "rollout/env_host/check_cases.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TRACE_STEPS = 400,
    TRACE_ENVS = 5,
    TRACE_MS = 1500,
    TAIL_STEPS = 60,
    AUTORESET_MS = 4000,
    AUTORESET_STEPS = 20000,
    AUTORESET_ENDS = 12
};

/* What each environment showed after its reset and after each of its steps, by key. */
struct trace {
    uint32_t steps;
    uint64_t print[TRACE_ENVS][TRACE_STEPS + 1];
};

static void need_determinism(const struct check *c)
{
    if (c->spec.flags & CORRAL_ENV_NONDETERMINISTIC) {
        check_skip(c, "it declares itself non-deterministic");
    }
}

/* Run keys[0..envs); steps 0: as many as fit into the time. Keys without a row in the trace run along unseen. */
static void run_trace(struct rig *r, const uint64_t *keys, struct trace *out, uint32_t steps)
{
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + TRACE_MS * CORRAL_NS_PER_MS;
    for (uint32_t e = 0; e < r->envs; e++) {
        r->key[e] = keys[e];
        r->t[e] = r->resets[e] = 0;
    }
    rig_reset(r, NULL, r->envs);
    out->steps = 0;
    for (;;) {
        for (uint32_t e = 0; e < r->envs; e++) {
            if (keys[e] < TRACE_ENVS) {
                out->print[keys[e]][out->steps] = rig_print(r, e);
            }
        }
        if (out->steps == (steps ? steps : TRACE_STEPS) ||
            (steps == 0 && corral_now_ns(&corral_clock_monotonic) >= deadline)) {
            return;
        }
        rig_advance(r);
        out->steps++;
    }
}

static void compare(const struct check *c, const struct trace *a, const struct trace *b, uint64_t key,
                    const char *when)
{
    for (uint32_t t = 0; t <= a->steps; t++) {
        if (a->print[key][t] != b->print[key][t]) {
            check_fail(c, "equal seeds and actions gave another result at step %u %s", t, when);
        }
    }
}

static const uint64_t plain_keys[TRACE_ENVS] = {0, 1, 2, 3, 4};

void check_determinism(struct check *c)
{
    need_determinism(c);
    static struct trace first, again;
    struct rig r, other;
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    run_trace(&r, plain_keys, &first, 0);
    run_trace(&r, plain_keys, &again, first.steps);
    for (uint64_t key = 0; key < TRACE_ENVS; key++) {
        compare(c, &first, &again, key, "after a second reset of the same batch");
    }
    rig_open(&other, c, TRACE_ENVS, RIG_LOOSE);
    run_trace(&other, plain_keys, &again, first.steps);
    for (uint64_t key = 0; key < TRACE_ENVS; key++) {
        compare(c, &first, &again, key, "in a second batch");
    }
    rig_close(&r);
    rig_close(&other);
    bool seeds_matter = false;
    for (uint32_t t = 0; t <= first.steps; t++) {
        seeds_matter |= first.print[0][t] != first.print[1][t];
    }
    check_pass(c, "%u steps repeated exactly, twice%s", first.steps,
               seeds_matter ? "" : " (all seeds give the same run)");
}

/* Alone, at other places among others, and while another batch runs in between. */
void check_batches(struct check *c)
{
    need_determinism(c);
    static struct trace first, again, noise;
    struct rig r, other;
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    run_trace(&r, plain_keys, &first, 0);
    rig_close(&r);
    rig_open(&r, c, 1, RIG_LOOSE);
    for (uint64_t key = 0; key < TRACE_ENVS; key++) {
        run_trace(&r, &key, &again, first.steps);
        compare(c, &first, &again, key, "when the environment is alone in its batch");
    }
    rig_close(&r);
    static const uint64_t mixed[9] = {40, 3, 41, 1, 42, 0, 4, 43, 2};
    rig_open(&r, c, 9, RIG_LOOSE);
    run_trace(&r, mixed, &again, first.steps);
    for (uint64_t key = 0; key < TRACE_ENVS; key++) {
        compare(c, &first, &again, key, "at another place in a larger batch");
    }
    rig_close(&r);
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    rig_open(&other, c, 3, RIG_LOOSE);
    static const uint64_t others[3] = {50, 51, 52};
    run_trace(&other, others, &noise, 1);
    rig_reset(&r, NULL, TRACE_ENVS);
    for (uint32_t t = 0; t <= first.steps; t++) {
        for (uint32_t e = 0; e < TRACE_ENVS; e++) {
            if (rig_print(&r, e) != first.print[e][t]) {
                check_fail(c,
                           "equal seeds and actions gave another result at step %u while a second batch was "
                           "in use; does it keep state outside its batch?",
                           t);
            }
        }
        rig_advance(&other);
        if (t < first.steps) {
            rig_advance(&r);
        }
    }
    rig_close(&r);
    rig_close(&other);
    check_pass(c, "%u steps are the same alone, in a batch of 9, and beside another batch", first.steps);
}

/* ---- subsets ---- */

struct saved {
    char *data[RIG_BUFFERS];
};

static void save(const struct rig *r, struct saved *s)
{
    for (int i = 0; i < RIG_BUFFERS; i++) {
        if (r->memory[i].map != NULL) {
            memcpy(s->data[i], r->memory[i].data, r->memory[i].bytes);
        }
    }
}

static void check_untouched(const struct rig *r, const struct saved *s, uint32_t e, const char *what)
{
    for (int i = 0; i < RIG_BUFFERS; i++) {
        const struct rig_memory *m = &r->memory[i];
        size_t each = m->bytes / r->envs, at = each * e;
        if (m->map != NULL && memcmp(m->data + at, s->data[i] + at, each) != 0) {
            check_fail(r->c, "%s changed `%s` of environment %u, which was not among its ids", what, m->name,
                       e);
        }
    }
}

void check_subsets(struct check *c)
{
    static struct trace first;
    bool compared = !(c->spec.flags & CORRAL_ENV_NONDETERMINISTIC);
    struct rig r;
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    run_trace(&r, plain_keys, &first, 0);
    rig_close(&r);
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    rig_reset(&r, NULL, TRACE_ENVS);
    struct saved s = {0};
    for (int i = 0; i < RIG_BUFFERS; i++) {
        s.data[i] = malloc(r.memory[i].bytes + 1);
        if (s.data[i] == NULL) {
            check_fail(c, "the check is out of memory");
        }
    }
    static const uint32_t orders[4][3] = {{4, 1, 3}, {0, 0, 0}, {2, 0, 4}, {3, 2, 1}};
    static const uint32_t counts[4] = {3, 1, 3, 3};
    for (uint32_t round = 0; round < 200 && r.t[1] < first.steps && r.t[4] < first.steps; round++) {
        const uint32_t *ids = orders[round % 4];
        uint32_t count = counts[round % 4];
        for (uint32_t i = 0; i < count; i++) {
            if (r.ended[ids[i]] && c->spec.autoreset == CORRAL_ENV_AUTORESET_OFF) {
                save(&r, &s);
                rig_reset(&r, &ids[i], 1);
                for (uint32_t e = 0; e < TRACE_ENVS; e++) {
                    if (e != ids[i]) {
                        check_untouched(&r, &s, e, "reset()");
                    }
                }
            }
        }
        save(&r, &s);
        rig_step(&r, ids, count);
        for (uint32_t e = 0; e < TRACE_ENVS; e++) {
            bool named = false;
            for (uint32_t i = 0; i < count; i++) {
                named |= ids[i] == e;
            }
            if (!named) {
                check_untouched(&r, &s, e, "step()");
            } else if (compared && r.t[e] <= first.steps && rig_print(&r, e) != first.print[e][r.t[e]]) {
                check_fail(c,
                           "environment %u is not the same at its step %" PRIu64 " when stepped in a subset",
                           e, r.t[e]);
            }
        }
    }
    save(&r, &s);
    static const uint32_t two[2] = {3, 1};
    rig_reset(&r, two, 2);
    check_untouched(&r, &s, 0, "reset()");
    check_untouched(&r, &s, 2, "reset()");
    check_untouched(&r, &s, 4, "reset()");
    rig_close(&r);
    for (int i = 0; i < RIG_BUFFERS; i++) {
        free(s.data[i]);
    }
    check_pass(c, "step and reset of a few ids leave the other rows alone");
}

/* ---- the next episode ---- */

/* episode_seed(s, k) depends on s ^ k * constant: this stream's episode 0 is episode k of stream s. */
static uint64_t stream_of_episode(uint64_t stream, uint64_t episode)
{
    return stream ^ (episode * UINT64_C(0xD1342543DE82EF95));
}

static bool poisoned(const struct rig *r, uint32_t row)
{
    const unsigned char *at = (const unsigned char *)r->io.final_obs + row * r->io.obs_stride;
    for (size_t i = 0; i < r->io.obs_stride; i++) {
        if (at[i] != 0x5A) {
            return false;
        }
    }
    return true;
}

static void check_ended_same_step(const struct check *c, const struct rig *r, uint32_t e)
{
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        if ((r->io.terminated[row] || r->io.truncated[row]) && poisoned(r, row)) {
            check_fail(c, "row %u ended at step %" PRIu64 " and its final_obs was not written", row, r->t[e]);
        }
    }
}

static void expect_episode(const struct check *c, const struct rig *r, struct rig *reference, uint32_t e,
                           uint64_t episode, const char *where)
{
    if (c->spec.flags & CORRAL_ENV_NONDETERMINISTIC) {
        return;
    }
    rig_reset_seed(reference, 0, stream_of_episode(r->stream[e], episode));
    if (rig_print_view(reference, 0) != rig_print_view(r, e)) {
        check_fail(c,
                   "after an episode ended, %s does not show the first observation (obs, active, mask) of "
                   "episode %" PRIu64 " as corral_env_episode_seed(stream seed, %" PRIu64
                   ") gives it: did it not start again, or draw from elsewhere?",
                   where, episode, episode);
    }
}

static void expect_quiet(const struct check *c, const struct rig *r, uint32_t e)
{
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        if (r->io.reward[row] != 0 || r->io.terminated[row] || r->io.truncated[row]) {
            check_fail(
                c,
                "the step that resets row %u reports reward %g, terminated %u, truncated %u instead of zeros",
                row, (double)r->io.reward[row], r->io.terminated[row], r->io.truncated[row]);
        }
    }
}

void check_autoreset(struct check *c)
{
    static const char *const modes[] = {"", "same-step", "next-step", "off"};
    struct rig r, reference;
    rig_open(&r, c, TRACE_ENVS, RIG_LOOSE);
    rig_open(&reference, c, 1, RIG_LOOSE);
    r.poison = true;
    rig_reset(&r, NULL, TRACE_ENVS);
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + AUTORESET_MS * CORRAL_NS_PER_MS;
    uint32_t ends = 0, steps = 0;
    for (; ends < AUTORESET_ENDS && steps < AUTORESET_STEPS &&
           corral_now_ns(&corral_clock_monotonic) < deadline;
         steps++) {
        bool ended_before[TRACE_ENVS];
        memcpy(ended_before, r.ended, sizeof ended_before);
        rig_advance(&r);
        for (uint32_t e = 0; e < TRACE_ENVS; e++) {
            if (ended_before[e] && c->spec.autoreset == CORRAL_ENV_AUTORESET_NEXT_STEP) {
                expect_quiet(c, &r, e);
                expect_episode(c, &r, &reference, e, r.episode[e], "the step after it");
            }
            if (!r.ended[e]) {
                continue;
            }
            ends++;
            if (c->spec.autoreset == CORRAL_ENV_AUTORESET_SAME_STEP) {
                check_ended_same_step(c, &r, e);
                expect_episode(c, &r, &reference, e, r.episode[e] + 1, "obs");
            }
            if (c->spec.autoreset == CORRAL_ENV_AUTORESET_OFF) {
                rig_reset(&r, &e, 1);
                expect_episode(c, &r, &reference, e, 0, "reset()");
            }
        }
    }
    rig_close(&r);
    rig_close(&reference);
    if (ends == 0) {
        check_skip(c, "no episode ended in %u random steps of %d environments", steps, TRACE_ENVS);
    }
    check_pass(c, "%s, as declared: %u episodes ended and the next began as they should",
               modes[c->spec.autoreset], ends);
}

/* ---- snapshots ---- */

static size_t take_snapshot(const struct check *c, struct rig *r, uint32_t e, char **out)
{
    char none[8];
    size_t bytes = 0;
    check_doing(c, "asking how large a snapshot is");
    enum corral_env_status status = c->def->ops.snapshot(r->env, e, none, &bytes);
    if (status != CORRAL_ENV_TOO_SMALL || bytes == 0 || bytes > CORRAL_ENV_SNAPSHOT_BYTES_MAX) {
        check_fail(c,
                   "snapshot() without room returned %s and %zu bytes; too-small and the bytes needed (at "
                   "most %u) are expected",
                   corral_env_status_name(status), bytes, CORRAL_ENV_SNAPSHOT_BYTES_MAX);
    }
    char *buffer = malloc(bytes + 64);
    if (buffer == NULL) {
        check_fail(c, "the check is out of memory");
    }
    memset(buffer + bytes, 0x7e, 64);
    size_t used = bytes;
    check_doing(c, "taking a snapshot");
    status = c->def->ops.snapshot(r->env, e, buffer, &used);
    if (status != CORRAL_ENV_OK || used > bytes) {
        check_fail(c, "snapshot() with the %zu bytes it asked for returned %s and %zu bytes", bytes,
                   corral_env_status_name(status), used);
    }
    for (size_t i = 0; i < 64; i++) {
        if (buffer[bytes + i] != 0x7e) {
            check_fail(c, "snapshot() wrote past its buffer of %zu bytes", bytes);
        }
    }
    *out = buffer;
    return used;
}

struct position {
    uint64_t key, stream, resets, episode, t;
    uint32_t length;
    bool ended;
};

static struct position position_of(const struct rig *r, uint32_t e)
{
    return (struct position){r->key[e], r->stream[e], r->resets[e], r->episode[e],
                             r->t[e],   r->length[e], r->ended[e]};
}

static void go_to(const struct check *c, struct rig *r, uint32_t e, const struct position *p,
                  const uint8_t *done, const char *snapshot, size_t bytes)
{
    check_doing(c, "restoring a snapshot");
    enum corral_env_status status = c->def->ops.restore(r->env, e, snapshot, bytes);
    if (status != CORRAL_ENV_OK) {
        check_fail(c, "restore() of its own snapshot returned %s", corral_env_status_name(status));
    }
    r->key[e] = p->key;
    r->stream[e] = p->stream;
    r->resets[e] = p->resets;
    r->episode[e] = p->episode;
    r->t[e] = p->t;
    r->length[e] = p->length;
    r->ended[e] = p->ended;
    memcpy(r->done + (size_t)e * r->agents, done, r->agents);
}

static void compare_tail(const struct check *c, struct rig *r, uint32_t e, uint64_t view,
                         const uint64_t *tail, const char *when)
{
    if (rig_print_view(r, e) != view) {
        check_fail(c, "restore() did not write obs, active and mask as they were %s", when);
    }
    for (uint32_t t = 0; t < TAIL_STEPS; t++) {
        rig_advance(r);
        if (rig_print(r, e) != tail[t]) {
            check_fail(c, "the run went on differently %u steps after restore() %s", t + 1, when);
        }
    }
}

void check_snapshot(struct check *c)
{
    if (!(c->spec.flags & CORRAL_ENV_SNAPSHOTS)) {
        check_skip(c, "it declares no snapshots");
    }
    need_determinism(c);
    struct rig r, fresh;
    uint8_t done[CORRAL_ENV_AGENTS_MAX];
    uint64_t tail[TAIL_STEPS];
    uint32_t e = 1;
    size_t bytes = 0;
    rig_open(&r, c, 3, RIG_LOOSE);
    rig_reset(&r, NULL, 3);
    for (uint32_t start = 0; start < 48;
         start++) { /* from several points, some of them near an episode's end */
        rig_advance(&r);
        if (start % 9 != 0 || (r.ended[e] && c->spec.autoreset != CORRAL_ENV_AUTORESET_SAME_STEP)) {
            continue; /* the runtime takes snapshots when the next episode has begun */
        }
        char *snapshot = NULL;
        bytes = take_snapshot(c, &r, e, &snapshot);
        struct position p = position_of(&r, e);
        memcpy(done, r.done + (size_t)e * r.agents, r.agents);
        uint64_t view = rig_print_view(&r, e);
        for (uint32_t t = 0; t < TAIL_STEPS; t++) {
            rig_advance(&r);
            tail[t] = rig_print(&r, e);
        }
        go_to(c, &r, e, &p, done, snapshot, bytes);
        compare_tail(c, &r, e, view, tail, "into the same batch");
        rig_open(&fresh, c, 3, RIG_LOOSE);
        rig_reset(&fresh, NULL, 3);
        go_to(c, &fresh, e, &p, done, snapshot, bytes);
        compare_tail(c, &fresh, e, view, tail, "into a fresh batch");
        check_doing(c, "restoring a snapshot that was cut short");
        if (c->def->ops.restore(fresh.env, e, snapshot, bytes - 1) == CORRAL_ENV_OK ||
            c->def->ops.restore(fresh.env, e, snapshot, 0) == CORRAL_ENV_OK) {
            check_fail(c, "restore() accepted a snapshot that was cut short");
        }
        rig_close(&fresh);
        free(snapshot);
    }
    rig_close(&r);
    check_pass(c, "%zu bytes each; runs continue exactly, in the same batch and in a fresh one", bytes);
}
