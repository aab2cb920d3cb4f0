#include "cli/progress.h"
#include "base/clock.h"
#include "base/text.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PIPED_EVERY_NS CORRAL_NS_PER_S

const char *corral_progress_run_id(const char *run_path)
{
    const char *dash = strrchr(run_path, '-');
    return dash ? dash + 1 : run_path;
}

void corral_progress_shown_path(const char *path, char out[CORRAL_RUN_PATH_MAX])
{
    char here[CORRAL_RUN_PATH_MAX];
    size_t n = getcwd(here, sizeof here) ? strlen(here) : 0;
    bool below = n > 1 && strncmp(path, here, n) == 0 && path[n] == '/';
    snprintf(out, CORRAL_RUN_PATH_MAX, "%s", below ? path + n + 1 : path);
}

static uint32_t device_total(const struct corral_job *job, bool *gpus)
{
    uint32_t total = 0;
    *gpus = false;
    for (uint32_t i = 0; i < job->node_count; i++) {
        total += job->node[i].device_count;
        *gpus |= job->node[i].kind == CORRAL_DEVICE_GPU;
    }
    return total;
}

void corral_progress_header(struct corral_progress *p)
{
    if (p->quiet) {
        return;
    }
    const struct corral_job *job = p->job;
    bool gpus;
    uint32_t devices = device_total(job, &gpus);
    fprintf(stderr, "%s  run %s  %u node%s, %u %s device%s  %s\n", job->name,
            corral_progress_run_id(p->run_path), job->node_count, job->node_count == 1 ? "" : "s", devices,
            gpus ? "gpu" : "host", devices == 1 ? "" : "s", job->env.id);
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const struct corral_job_partition *part = &job->partition[i];
        char set[64], low[32], high[32];
        const bool tenant = part->role == CORRAL_ROLE_TENANT;
        uint32_t workers = tenant ? 1 : part->device_count * part->workers_per_device;
        corral_job_device_set(job, part, set, sizeof set);
        corral_format_bytes(part->floor, low, sizeof low);
        corral_format_bytes(part->ceiling, high, sizeof high);
        fprintf(stderr, "  %-9s %-16s floor %8s  ceiling %8s %s  %u %s%s", part->name, set, low, high,
                part->device_count > 1 ? "each" : "    ", workers, tenant ? "tenant" : "worker",
                workers == 1 ? "" : "s");
        if (part->role == CORRAL_ROLE_ROLLOUT) {
            fprintf(stderr, "   %u environments each, staleness ≤ %u", job->env.instances,
                    job->staleness.max_versions);
        }
        fputc('\n', stderr);
    }
}

void corral_progress_started(struct corral_progress *p, const struct corral_run_status *s)
{
    if (!p->quiet) {
        fprintf(stderr, "  fences    %s\n", s->fences);
        if (s->weights[0]) {
            fprintf(stderr, "  weights   %s\n", s->weights);
        }
    }
    p->printed_ns = corral_now_ns(&corral_clock_monotonic);
}

static void spark_add(struct corral_progress *p, const struct corral_run_status *s)
{
    if (isnan(s->window_return) || s->step == p->spark_step) {
        return;
    }
    p->spark_step = s->step;
    const uint32_t room = CORRAL_COUNT_OF(p->spark);
    if (p->spark_count == room) {
        memmove(p->spark, p->spark + 1, (room - 1) * sizeof p->spark[0]);
        p->spark_count--;
    }
    p->spark[p->spark_count++] = (float)s->window_return;
}

/* A bar for each of the newest `bars_max` returns. */
static const char *spark_text(const struct corral_progress *p, uint32_t bars_max, char *out, size_t out_bytes)
{
    static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    float low = INFINITY, high = -INFINITY;
    const uint32_t first = p->spark_count > bars_max ? p->spark_count - bars_max : 0;
    for (uint32_t i = first; i < p->spark_count; i++) {
        low = fminf(low, p->spark[i]);
        high = fmaxf(high, p->spark[i]);
    }
    out[0] = 0;
    size_t at = 0;
    for (uint32_t i = first; i < p->spark_count && at + 4 < out_bytes; i++) {
        float share = high > low ? (p->spark[i] - low) / (high - low) : 0;
        at += (size_t)snprintf(out + at, out_bytes - at, "%s", bars[(int)(share * 7.0f + 0.5f)]);
    }
    return out;
}

/* Columns of the terminal behind stderr, or many where it is none. A line that wraps could not be redrawn. */
static uint32_t columns(const struct corral_progress *p)
{
    struct winsize size;
    return p->terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 500;
}

static void line_text(const struct corral_progress *p, const struct corral_run_status *s, char *out,
                      size_t out_bytes)
{
    char rate[48] = "", left[48] = "", spark[128], eval[64] = "", mean[32];
    if (s->steps_per_s > 0) {
        char count[32];
        snprintf(rate, sizeof rate, "  %s steps/s", corral_format_count(s->steps_per_s, count, sizeof count));
    }
    if (s->eta_ns != UINT64_MAX) {
        char eta[24];
        corral_format_duration(s->eta_ns, eta, sizeof eta);
        snprintf(left, sizeof left, "  left ≤ %s", eta);
    }
    if (s->evaluations) {
        snprintf(eval, sizeof eval, "  eval %s", corral_format_return(s->last_eval.mean, mean, sizeof mean));
    }
    if (s->step == 0) {
        snprintf(out, out_bytes, "%s", s->phase);
        return;
    }
    char head[80], tail[256];
    snprintf(head, sizeof head, "step %" PRIu64 "  return %s", s->step,
             corral_format_return(s->window_return, mean, sizeof mean));
    snprintf(tail, sizeof tail, "%s%s  v%" PRIu64 "  stale %.1f%s", eval, rate, s->version, s->staleness_mean,
             left);
    const size_t used = strlen(head) + strlen(tail) + 2, room = columns(p);
    const uint32_t bars = p->terminal && room > used ? (uint32_t)(room - used) : 0;
    if (used > room + 2) { /* "≤" is three bytes of one column */
        tail[0] = '\0';
    }
    snprintf(out, out_bytes, "%s%s%s%s", head, bars ? " " : "",
             bars ? spark_text(p, bars, spark, sizeof spark) : "", tail);
}

void corral_progress_update(struct corral_progress *p, const struct corral_run_status *s)
{
    if (p->quiet) {
        return;
    }
    char line[512];
    spark_add(p, s);
    if (s->restarts != p->restarts_told) {
        corral_progress_end(p);
        fprintf(stderr, "%s; started again (%u so far)\n", s->last_fault, s->restarts);
        p->restarts_told = s->restarts;
    }
    line_text(p, s, line, sizeof line);
    if (p->terminal) {
        fprintf(stderr, "\r\033[K%s", line);
        p->line_open = true;
        return;
    }
    uint64_t now = corral_now_ns(&corral_clock_monotonic);
    if (now - p->printed_ns >= PIPED_EVERY_NS) {
        p->printed_ns = now;
        fprintf(stderr, "%s\n", line);
    }
}

void corral_progress_end(struct corral_progress *p)
{
    if (p->line_open) {
        fprintf(stderr, "\r\033[K");
        p->line_open = false;
    }
}

static void print_outcome(const struct corral_run_status *s)
{
    char at[32], total[32];
    corral_format_duration(s->learned_ns, at, sizeof at);
    corral_format_duration(s->elapsed_ns, total, sizeof total);
    if (s->outcome == CORRAL_OUTCOME_LEARNED) {
        printf("learned   in %s: %s\n", at, s->reason);
    } else {
        printf("%-9s after %s: %s\n", corral_outcome_name(s->outcome), total, s->reason);
    }
}

static void print_returns(const struct corral_run_status *s)
{
    char before[32], after[32], low[32], high[32];
    if (s->evaluations) {
        printf("return    %s before, %s after (mean of %u evaluation episodes, version %" PRIu64
               "; min %s, max %s)\n",
               corral_format_return(s->first_eval.mean, before, sizeof before),
               corral_format_return(s->last_eval.mean, after, sizeof after), s->last_eval.episodes,
               s->last_eval.version, corral_format_return(s->last_eval.min, low, sizeof low),
               corral_format_return(s->last_eval.max, high, sizeof high));
    }
    if (s->episodes) {
        printf("training  %s over the first, %s over the last %u of %" PRIu64 " episodes\n",
               corral_format_return(s->first_return, before, sizeof before),
               corral_format_return(s->window_return, after, sizeof after), s->window_count, s->episodes);
    }
}

static void print_work(const struct corral_run_status *s)
{
    double trained_s =
        s->last_step_ns > s->first_step_ns ? (double)(s->last_step_ns - s->first_step_ns) / 1e9 : 0;
    char rate[32], first[32];
    corral_format_count(trained_s > 0 ? (double)(s->env_steps - s->first_env_steps) / trained_s : 0, rate,
                        sizeof rate);
    printf("work      %" PRIu64 " environment steps, %" PRIu64 " gradient steps", s->env_steps, s->step);
    if (s->first_step_ns) {
        printf(", the first after %s", corral_format_duration(s->first_step_ns, first, sizeof first));
    }
    if (trained_s > 0) {
        printf("; %s environment steps/s from then on", rate);
    }
    printf("\n");
    printf("weights   %" PRIu64 " versions pushed; staleness %.2f versions on average, %" PRIu64
           " at most, %" PRIu64 " fragments dropped\n",
           s->versions_pushed, s->staleness_mean, s->staleness_max, s->dropped_stale);
}

static const char *partition_of(const struct corral_job *job, enum corral_role role)
{
    for (uint32_t i = 0; i < job->partition_count; i++) {
        if (job->partition[i].role == role) {
            return job->partition[i].name;
        }
    }
    return "other";
}

/* What the proof chains say of the whole run: docs/spec/proof.md. */
static void print_proof(const struct corral_progress *p, const struct corral_run_status *s)
{
    const struct corral_run_proof *proof = &s->proof;
    char peak[32], ceiling[32];
    corral_format_bytes(proof->own_peak, peak, sizeof peak);
    corral_format_bytes(proof->own_ceiling, ceiling, sizeof ceiling);
    if (proof->steps + proof->refused + proof->unproven > 0) {
        bool all = proof->unproven == 0 && (!proof->verified || strcmp(proof->chain, "ok") == 0);
        printf("memory    %s peak in steps %s of %s; %s floor %s %" PRIu64 " steps (%" PRIu64
               " refused, %" PRIu64 " unproven); chain %s\n",
               partition_of(p->job, CORRAL_ROLE_TRAIN), peak, ceiling,
               partition_of(p->job, CORRAL_ROLE_ROLLOUT), all ? "intact in all" : "not shown intact in all",
               proof->steps, proof->refused, proof->unproven, proof->chain);
    }
    if (proof->doubt[0]) {
        printf("          unproven: %s\n", proof->doubt);
    }
}

static void print_memory(const struct corral_progress *p, const struct corral_run_status *s)
{
    for (uint32_t i = 0; i < p->job->partition_count; i++) {
        const struct corral_partition_memory *m = &s->memory[i];
        char peak[32], ceiling[32], low[32];
        corral_format_bytes(m->peak_max, peak, sizeof peak);
        const bool told = m->ceiling > 0; /* by an agent: as in force, after live changes too */
        corral_format_bytes(told ? m->ceiling : p->job->partition[i].ceiling, ceiling, sizeof ceiling);
        corral_format_bytes(told ? m->floor : p->job->partition[i].floor, low, sizeof low);
        printf("%-9s %-8s peak %s of %s per device, floor %s%s, %" PRIu64 " allocations denied\n",
               i == 0 && s->proof.steps == 0 ? "memory" : "", p->job->partition[i].name, peak, ceiling, low,
               s->violations == 0 ? " intact" : "", m->denied);
    }
    printf("          %" PRIu64 " violations of the memory fence\n", s->violations);
}

/* What a coarse split of the devices wastes. */
static void print_idle(const struct corral_run_status *s)
{
    bool first = true;
    for (uint32_t i = 0; i < s->group_count; i++) {
        const struct corral_device_group *g = &s->group[i];
        if (!isnan(g->idle)) {
            printf("%-9s %.0f %% of %s%s%s%s\n", first ? "idle" : "", 100 * g->idle, g->devices,
                   g->roles[0] ? " (" : "", g->roles, g->roles[0] ? ")" : "");
            first = false;
        }
    }
}

void corral_progress_summary(const struct corral_progress *p, const struct corral_run_status *s)
{
    print_outcome(s);
    print_returns(s);
    print_work(s);
    print_proof(p, s);
    print_memory(p, s);
    print_idle(s);
    if (s->restarts || s->void_episodes) {
        printf("faults    %u workers started again, %" PRIu64 " episodes void, %" PRIu64
               " fragments resent, %" PRIu64 " duplicates refused\n",
               s->restarts, s->void_episodes, s->resent, s->duplicates);
    }
    for (uint32_t i = 0; i < s->tenant_count; i++) {
        const struct corral_tenant_status *t = &s->tenant[i];
        printf("%-9s %s %s, %" PRIu64 " restart%s%s%s\n", i == 0 ? "tenants" : "",
               p->job->partition[t->partition].name, t->state, t->restarts, t->restarts == 1 ? "" : "s",
               t->reason[0] ? "; last: " : "", t->reason);
    }
    const char *id = corral_progress_run_id(p->run_path);
    printf("run       %s  (rlctl audit %s · rlctl status %s · rlctl logs %s · rlctl resume %s)\n",
           p->shown_path, id, id, id, id);
}
