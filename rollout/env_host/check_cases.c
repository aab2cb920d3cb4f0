/* Checks of single batches: arguments, memory, numbers, flags, masks, edges, output. */
#include "rollout/env_host/check_cases.h"
#include "base/clock.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RUN_ENVS = 5, RUN_STEPS_MIN = 300, RUN_STEPS_MAX = 5000, RUN_MS = 2000 };

/* ---- set-up ---- */

void check_arguments(struct check *c)
{
    static char long_text[1 << 16], deep[4096];
    memset(long_text, 'x', sizeof long_text - 1);
    memset(deep, '[', sizeof deep - 1);
    const char *const bad[] = {"",
                               "{",
                               "}",
                               "[]",
                               "null",
                               "\"text\"",
                               "{\"\":",
                               "{\"no_such_argument\": [1, {\"a\": null}]}",
                               "{\"a\":1e999999}",
                               "{\"\\u0000\":0}",
                               "\xff\xfe{}",
                               "{}{}",
                               "{]}",
                               "{\"a\"",
                               deep,
                               long_text};
    uint32_t refused = 0;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[64];
        memset(text, 0x7e, sizeof text);
        text[0] = '\0';
        struct corral_env_spec spec = {.size = sizeof spec};
        check_doing(c, "describing with the arguments %.60s", bad[i]);
        enum corral_env_status status = c->def->ops.describe(bad[i], &spec, text, 32);
        for (size_t k = 32; k < sizeof text; k++) {
            if (text[k] != 0x7e) {
                check_fail(c, "describe() wrote past the 32 bytes of `error` for the arguments %.60s",
                           bad[i]);
            }
        }
        if (status != CORRAL_ENV_OK && memchr(text, '\0', 32) == NULL) {
            check_fail(c, "describe() left `error` without an end for the arguments %.60s", bad[i]);
        }
        if (status != CORRAL_ENV_OK && text[0] == '\0') {
            check_fail(c, "describe() refused the arguments %.60s and wrote no reason to `error`", bad[i]);
        }
        refused += status != CORRAL_ENV_OK;
    }
    check_pass(c, "%zu malformed texts: %u refused with a reason, none crashed", sizeof bad / sizeof bad[0],
               refused);
}

void check_create(struct check *c)
{
    static const uint32_t sizes[] = {1, 7, RIG_ENVS_MAX, 2};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct rig r;
        rig_open(&r, c, sizes[i], RIG_LOOSE);
        rig_reset(&r, NULL, r.envs);
        rig_close(&r);
    }
    check_doing(c, "destroying NULL");
    c->def->ops.destroy(NULL);
    check_pass(c, "batches of 1 to %d made, reset and destroyed", RIG_ENVS_MAX);
}

void check_memory(struct check *c)
{
    struct rig r;
    rig_open(&r, c, 3, RIG_LOOSE);
    rig_reset(&r, NULL, 3);
    for (int i = 0; i < 50; i++) {
        rig_advance(&r);
    }
    size_t ever = r.lent_ever;
    rig_close(&r);
    if (r.lent_wrongly > 0) {
        check_fail(c, "%zu calls of host->release had another size than host->alloc", r.lent_wrongly);
    }
    if (r.lent > 0) {
        check_fail(c, "destroy() left %zu bytes of host->alloc unreleased", r.lent);
    }
    if (ever == 0) {
        check_skip(c, "it does not use host->alloc, so its memory is not charged to the job");
    }
    check_doing(c, "creating a batch when host->alloc refuses");
    if (rig_try_open(&r, c, 3, RIG_LOOSE, true) != CORRAL_ENV_OK) {
        r.env = NULL;
    }
    rig_close(&r);
    if (r.lent > 0) {
        check_fail(c, "a create() that failed left %zu bytes unreleased", r.lent);
    }
    check_pass(c, "all of it given back, a refusal survived");
}

/* ---- aspects of a long run ---- */

static void look_finite(const struct check *c, const struct rig *r, uint32_t row, bool has_final)
{
    for (uint32_t i = 0; i < corral_env_obs_dim(&c->spec); i++) {
        if (!isfinite(rig_obs(r, r->io.obs, row, i))) {
            check_fail(c, "obs[%u] of row %u is %g %s", i, row, rig_obs(r, r->io.obs, row, i),
                       c->report->doing);
        }
        if (has_final && !isfinite(rig_obs(r, r->io.final_obs, row, i))) {
            check_fail(c, "final_obs[%u] of row %u is %g %s", i, row, rig_obs(r, r->io.final_obs, row, i),
                       c->report->doing);
        }
    }
    if (!isfinite(r->io.reward[row])) {
        check_fail(c, "the reward of row %u is %g or was not written %s", row, (double)r->io.reward[row],
                   c->report->doing);
    }
}

static void look_obs(const struct check *c, const struct rig *r, uint32_t row, bool has_final)
{
    /* bounds are given as doubles; a float32 rounds to nearest */
    double slack_low = fabs(c->spec.obs_low) * 1e-6, slack_high = fabs(c->spec.obs_high) * 1e-6;
    for (uint32_t i = 0; i < corral_env_obs_dim(&c->spec); i++) {
        double x = rig_obs(r, r->io.obs, row, i), f = has_final ? rig_obs(r, r->io.final_obs, row, i) : x;
        double worst = f < c->spec.obs_low - slack_low || f > c->spec.obs_high + slack_high ? f : x;
        if (worst < c->spec.obs_low - slack_low || worst > c->spec.obs_high + slack_high) {
            check_fail(c, "element %u of an observation of row %u is %g, outside the declared [%g, %g], %s",
                       i, row, worst, c->spec.obs_low, c->spec.obs_high, c->report->doing);
        }
    }
}

static void look_reward(const struct check *c, const struct rig *r, uint32_t row)
{
    double x = (double)r->io.reward[row];
    if (x < c->spec.reward_low - fabs(c->spec.reward_low) * 1e-6 ||
        x > c->spec.reward_high + fabs(c->spec.reward_high) * 1e-6) {
        check_fail(c, "the reward of row %u is %g, outside the declared [%g, %g], %s", row, x,
                   c->spec.reward_low, c->spec.reward_high, c->report->doing);
    }
}

static void look_flags(const struct check *c, const struct rig *r, uint32_t row)
{
    const uint8_t *flags[2] = {r->io.terminated, r->io.truncated};
    static const char *const names[2] = {"terminated", "truncated"};
    for (int k = 0; k < 2; k++) {
        if (flags[k][row] == 0xEE) {
            check_fail(c, "%s of row %u was not written %s; every step must write it", names[k], row,
                       c->report->doing);
        }
        if (flags[k][row] > 1) {
            check_fail(c, "%s of row %u is %u, not 0 or 1, %s", names[k], row, flags[k][row],
                       c->report->doing);
        }
    }
}

static void look_mask(const struct check *c, const struct rig *r, uint32_t row)
{
    const uint8_t *mask = r->io.mask + row * r->io.mask_stride;
    for (uint32_t k = 0; k < c->spec.components; mask += c->spec.choices[k++]) {
        uint32_t legal = 0;
        for (uint32_t i = 0; i < c->spec.choices[k]; i++) {
            if (mask[i] > 1) {
                check_fail(c, "mask[%u] of row %u is %u, not 0 or 1, %s", i, row, mask[i], c->report->doing);
            }
            legal += mask[i];
        }
        if (legal == 0 && r->io.active[row]) {
            check_fail(c, "row %u is active and has no legal choice for component %u %s", row, k,
                       c->report->doing);
        }
    }
}

static void look_active(const struct check *c, const struct rig *r, uint32_t e)
{
    uint32_t active = 0;
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        if (r->io.active[row] > 1) {
            check_fail(c, "active of row %u is %u, not 0 or 1, %s", row, r->io.active[row], c->report->doing);
        }
        if (!r->io.active[row] && !(c->spec.flags & CORRAL_ENV_TURNS)) {
            check_fail(c, "active of row %u is 0 and the description lacks CORRAL_ENV_TURNS, %s", row,
                       c->report->doing);
        }
        active += r->io.active[row];
    }
    bool showing_last = r->ended[e] && c->spec.autoreset != CORRAL_ENV_AUTORESET_SAME_STEP;
    if (active == 0 && !showing_last) {
        check_fail(c, "no row of environment %u is active %s, so nobody can ever decide", e,
                   c->report->doing);
    }
}

static void look(const struct check *c, const struct rig *r, uint32_t e, bool stepped)
{
    bool same_step = c->spec.autoreset == CORRAL_ENV_AUTORESET_SAME_STEP;
    for (uint32_t row = e * r->agents; row < (e + 1) * r->agents; row++) {
        bool has_final = stepped && same_step && (r->io.terminated[row] || r->io.truncated[row]);
        switch ((enum check_aspect)c->aspect) {
        case ASPECT_FINITE:
            look_finite(c, r, row, has_final);
            break;
        case ASPECT_OBS_BOUNDS:
            look_obs(c, r, row, has_final);
            break;
        case ASPECT_REWARD_BOUNDS:
            if (stepped && r->length[e] > 0) { /* resets report 0, whatever the bounds */
                look_reward(c, r, row);
            }
            break;
        case ASPECT_FLAGS:
            look_flags(c, r, row);
            break;
        case ASPECT_MASKS:
            look_mask(c, r, row);
            break;
        case ASPECT_LIMIT:
        case ASPECT_ACTIVE:
            break;
        }
    }
    if (c->aspect == ASPECT_ACTIVE) {
        look_active(c, r, e);
    }
    if (c->aspect == ASPECT_LIMIT && (r->length[e] > c->spec.max_episode_steps ||
                                      (r->length[e] == c->spec.max_episode_steps && !r->ended[e]))) {
        check_fail(c,
                   "an episode of environment %u is not over after %u steps; the description says "
                   "max_episode_steps = %u",
                   e, r->length[e], c->spec.max_episode_steps);
    }
}

static void skip_what_does_not_apply(const struct check *c)
{
    if (c->aspect == ASPECT_MASKS && !(c->spec.flags & CORRAL_ENV_MASKS)) {
        check_skip(c, "it declares no masks");
    }
    if (c->aspect == ASPECT_LIMIT && c->spec.max_episode_steps == 0) {
        check_skip(c, "it declares no limit");
    }
    if (c->aspect == ASPECT_OBS_BOUNDS && isinf(c->spec.obs_low) && isinf(c->spec.obs_high)) {
        check_skip(c, "it declares no bounds");
    }
    if (c->aspect == ASPECT_REWARD_BOUNDS && isinf(c->spec.reward_low) && isinf(c->spec.reward_high)) {
        check_skip(c, "it declares no bounds");
    }
}

void check_aspect(struct check *c)
{
    skip_what_does_not_apply(c);
    struct rig r;
    rig_open(&r, c, RUN_ENVS, RIG_LOOSE);
    r.poison = c->aspect == ASPECT_FINITE || c->aspect == ASPECT_FLAGS;
    rig_reset(&r, NULL, RUN_ENVS);
    for (uint32_t e = 0; e < RUN_ENVS; e++) {
        look(c, &r, e, false);
    }
    uint64_t limit = (uint64_t)c->spec.max_episode_steps * 3, steps = limit < RUN_STEPS_MIN   ? RUN_STEPS_MIN
                                                                      : limit > RUN_STEPS_MAX ? RUN_STEPS_MAX
                                                                                              : limit;
    uint64_t deadline = corral_now_ns(&corral_clock_monotonic) + RUN_MS * CORRAL_NS_PER_MS, done = 0;
    uint32_t ended = 0, longest = 0;
    for (; done < steps && corral_now_ns(&corral_clock_monotonic) < deadline; done++) {
        rig_advance(&r);
        for (uint32_t e = 0; e < RUN_ENVS; e++) {
            look(c, &r, e, true);
            ended += r.ended[e];
            longest = r.length[e] > longest ? r.length[e] : longest;
        }
    }
    rig_close(&r);
    check_pass(c, "%" PRIu64 " steps of %d environments, %u episodes ended, the longest took %u steps", done,
               RUN_ENVS, ended, longest);
}

/* ---- edges and output ---- */

void check_edges(struct check *c)
{
    for (int placement = RIG_AT_START; placement <= RIG_AT_END; placement++) {
        struct rig r;
        rig_open(&r, c, RUN_ENVS, (enum rig_placement)placement);
        rig_reset(&r, NULL, RUN_ENVS);
        rig_check_edges(&r);
        for (int t = 0; t < RUN_STEPS_MIN; t++) {
            rig_advance(&r);
            rig_check_edges(&r);
        }
        rig_close(&r);
    }
    check_pass(c, "no access before, after or against the rules of the buffers");
}

void check_stdout(struct check *c)
{
    struct rig r;
    rig_open(&r, c, 2, RIG_LOOSE);
    rig_reset(&r, NULL, 2);
    for (int t = 0; t < 50; t++) {
        rig_advance(&r);
    }
    rig_close(&r);
    fflush(NULL);
    off_t bytes = lseek(c->captured_stdout, 0, SEEK_END);
    if (bytes > 0) {
        char text[80] = "";
        ssize_t n = pread(c->captured_stdout, text, sizeof text - 1, 0);
        text[n > 0 ? n : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        check_fail(c, "it wrote %lld bytes to stdout, which belongs to the program: %s", (long long)bytes,
                   text);
    }
    check_pass(c, "nothing written");
}
