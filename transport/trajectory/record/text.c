#include "transport/trajectory/record/text.h"
#include "transport/trajectory/record/text_parts.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

#define COLUMNS 100u
#define COLUMNS_MIN 60u
#define ROWS 40u

static void put_facts(FILE *out, const struct corral_traj_record *r, uint32_t columns)
{
    fprintf(out, "%s", r->kind == CORRAL_TRAJ_FRAGMENT ? "fragment" : "episode");
    if (r->episode != 0) {
        fprintf(out, " %" PRIu64, r->episode);
    }
    fprintf(out, "  worker %u, life %u, sequence %" PRIu64 "  run %" PRIx64 "\n", r->worker, r->epoch,
            r->sequence, r->run);
    if (r->env[0] != 0 || r->task[0] != 0) {
        fputs("  env      ", out);
        const uint32_t used = text_put(out, r->env, strlen(r->env), columns - 11);
        fputs(r->env[0] != 0 && r->task[0] != 0 ? "  " : "", out);
        text_put(out, r->task, strlen(r->task), columns > used + 13 ? columns - used - 13 : 0);
        fputc('\n', out);
    }
    fputs("  length   ", out);
    if (r->turns != 0) {
        fprintf(out, "%u turn%s, ", r->turns, r->turns == 1 ? "" : "s");
    }
    fprintf(out, "%" PRIu64 " %s", r->tokens,
            r->kind == CORRAL_TRAJ_FRAGMENT ? "steps of all rows" : "tokens");
    if (r->finish[0] != 0) {
        fputs(", ended by ", out);
        text_put(out, r->finish, strlen(r->finish), 30);
    }
    fputc('\n', out);
    if (r->group_size != 0) {
        fprintf(out, "  group    %" PRIu64 ", %u of %u\n", r->group, r->group_index + 1, r->group_size);
    }
    if (r->version_min == r->version_max) {
        fprintf(out, "  weights  version %" PRIu64 "\n", r->version_max);
    } else {
        fprintf(out, "  weights  versions %" PRIu64 " to %" PRIu64 "\n", r->version_min, r->version_max);
    }
}

/* Words one after the other, in as many lines as it takes. */
static uint32_t wrap(FILE *out, const char *title, uint32_t at, uint32_t next, uint32_t columns)
{
    if (at == 0) {
        fprintf(out, "  %-8s ", title);
        return 11 + next;
    }
    if (at + 3 + next > columns) {
        fputs("\n           ", out);
        return 11 + next;
    }
    fputs("   ", out);
    return at + 3 + next;
}

static void put_scores(FILE *out, const struct corral_traj_record *r, uint32_t columns)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < r->score_count; i++) {
        char value[32];
        const int n = snprintf(value, sizeof value, " %.6g", r->scores[i].value);
        at = wrap(out, "scores", at, (uint32_t)strlen(r->scores[i].name) + (uint32_t)n, columns);
        fprintf(out, "%s%s", r->scores[i].name, value);
    }
    fputs(at > 0 ? "\n" : "", out);
}

static void put_tensors(FILE *out, const struct corral_traj_record *r, uint32_t columns)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        const struct corral_traj_tensor *t = &r->tensors[i];
        char shape[CORRAL_TRAJ_DIMS_MAX * 22 + 8] = "";
        size_t n = 0;
        for (uint32_t d = 0; d < t->dims; d++) {
            n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%" PRIu64, d == 0 ? "" : "x", t->shape[d]);
        }
        const uint32_t words = (uint32_t)(strlen(t->name) + strlen(corral_traj_dtype_name(t->dtype)) + n + 2);
        at = wrap(out, "tensors", at, words, columns);
        fprintf(out, "%s %s %s", t->name, corral_traj_dtype_name(t->dtype), shape);
    }
    fputs(at > 0 ? "\n" : "", out);
}

/* ---- token episodes ---- */

/* Tokens that follow each other in one turn, written by one side. */
struct span {
    uint64_t from, to, newest, oldest, chosen;
    double turn, reward, log_prob;
    uint32_t who; /* docs/spec/trajectory.md, `role` */
};

struct tokens {
    uint64_t count;
    struct text_column ids, turn, role, loss_mask, reward, log_prob, version;
    const struct corral_traj_tensor *text, *text_end;
};

static bool same(const struct text_column *c, uint64_t a, uint64_t b)
{
    return c->t == NULL || text_column_value(c, a) == text_column_value(c, b);
}

static struct span next_span(const struct tokens *k, uint64_t from)
{
    struct span s = {.from = from, .to = from, .oldest = UINT64_MAX};
    s.turn = k->turn.t == NULL ? NAN : text_column_value(&k->turn, from);
    s.who = k->role.t != NULL ? (uint32_t)fmin(fmax(text_column_value(&k->role, from), 0), 9) : 0;
    const bool agent = k->loss_mask.t != NULL && text_column_value(&k->loss_mask, from) != 0;
    s.who = k->role.t == NULL && agent ? 3 : s.who;
    while (s.to < k->count && same(&k->turn, from, s.to) && same(&k->role, from, s.to) &&
           same(&k->loss_mask, from, s.to)) {
        s.reward += k->reward.t == NULL || k->reward.constant ? 0 : text_column_value(&k->reward, s.to);
        if (k->log_prob.t != NULL && (k->loss_mask.t == NULL || agent)) {
            s.log_prob += text_column_value(&k->log_prob, s.to);
            s.chosen++;
        }
        if (k->version.t != NULL && k->version.t->dtype == CORRAL_TRAJ_U64) {
            const uint64_t v =
                ((const uint64_t *)k->version.t->data)[k->version.constant ? 0 : s.to * k->version.per];
            s.oldest = v < s.oldest ? v : s.oldest;
            s.newest = v > s.newest ? v : s.newest;
        }
        s.to++;
    }
    return s;
}

static void put_said(FILE *out, const char *text, size_t bytes, const struct corral_traj_text_options *o)
{
    uint32_t lines = 0;
    for (size_t at = 0; at < bytes; lines++) {
        if (!o->everything && lines == o->rows_max / 4 + 2) {
            fprintf(out, "        | … %zu bytes more\n", bytes - at);
            return;
        }
        const size_t n = text_line(text + at, bytes - at, o->everything ? UINT32_MAX : o->columns - 11);
        fputs("        | ", out);
        text_put(out, text + at, n, UINT32_MAX);
        fputc('\n', out);
        at += n;
        at += at < bytes && text[at] == '\n';
    }
}

static void put_span(FILE *out, const struct tokens *k, const struct span *s,
                     const struct corral_traj_text_options *o)
{
    static const char *const who[] = {"", "system", "user", "agent", "tool"};
    char turn[24] = "", log_prob[24] = "", version[48] = "";
    if (!isnan(s->turn)) {
        snprintf(turn, sizeof turn, "%.0f", s->turn);
    }
    if (s->chosen > 0) {
        snprintf(log_prob, sizeof log_prob, "%.3f", s->log_prob / (double)s->chosen);
    }
    if (s->oldest < s->newest) {
        snprintf(version, sizeof version, "%" PRIu64 "-%" PRIu64, s->oldest, s->newest);
    } else if (s->oldest == s->newest) {
        snprintf(version, sizeof version, "%" PRIu64, s->newest);
    }
    fprintf(out, "  %5.5s  %-6s  %7" PRIu64 "  %9.4g  %9s  %s\n", turn, s->who < 5 ? who[s->who] : "?",
            s->to - s->from, s->reward, log_prob, version);
    if (k->text != NULL) {
        const uint32_t *end = k->text_end->data;
        const uint64_t bytes = text_elements(k->text);
        const uint64_t from = s->from == 0 ? 0 : end[s->from - 1], to = end[s->to - 1];
        if (from <= to && to <= bytes) { /* whoever wrote it may have got that wrong */
            put_said(out, (const char *)k->text->data + from, to - from, o);
        }
        return;
    }
    fputs("        | ids ", out);
    const uint64_t shown = !o->everything && s->to - s->from > 12 ? 12 : s->to - s->from;
    for (uint64_t i = 0; i < shown; i++) {
        fprintf(out, "%s%.0f", i == 0 ? "" : " ", text_column_value(&k->ids, s->from + i));
    }
    fputs(shown < s->to - s->from ? " …\n" : "\n", out);
}

static struct tokens tokens_of(const struct corral_traj_record *r)
{
    const struct corral_traj_tensor *ids = corral_traj_record_find(r, "token_ids");
    const uint64_t count = ids->shape[0];
    struct tokens k = {.count = count,
                       .ids = text_column_of(r, "token_ids", &count, 1),
                       .turn = text_column_of(r, "turn", &count, 1),
                       .role = text_column_of(r, "role", &count, 1),
                       .loss_mask = text_column_of(r, "loss_mask", &count, 1),
                       .reward = text_column_of(r, "reward", &count, 1),
                       .log_prob = text_column_of(r, "log_prob", &count, 1),
                       .version = text_column_of(r, "version", &count, 1),
                       .text = corral_traj_record_find(r, "text"),
                       .text_end = corral_traj_record_find(r, "text_end")};
    k.reward.constant &= count != 1;
    const bool spoken = k.text != NULL && k.text_end != NULL && k.text->dtype == CORRAL_TRAJ_U8 &&
                        k.text_end->dtype == CORRAL_TRAJ_U32 && k.text_end->dims == 1 &&
                        k.text_end->shape[0] == count;
    k.text = spoken ? k.text : NULL;
    return k;
}

void text_tokens(FILE *out, const struct corral_traj_record *r, const struct corral_traj_text_options *o)
{
    const struct tokens k = tokens_of(r);
    uint64_t spans = 0, i = 0;
    for (uint64_t at = 0; at < k.count; spans++) {
        at = next_span(&k, at).to;
    }
    fputs("\n   turn  who      tokens     reward   log-prob  version\n", out);
    const uint64_t half = o->rows_max / 2;
    for (uint64_t at = 0; at < k.count; i++) {
        const struct span s = next_span(&k, at);
        at = s.to;
        if (o->everything || spans <= o->rows_max || i < half || i >= spans - half) {
            put_span(out, &k, &s, o);
        } else if (i == half) {
            fprintf(out, "      …  %" PRIu64 " spans more\n", spans - 2 * half);
        }
    }
}

void corral_traj_text(FILE *out, const struct corral_traj_record *r,
                      const struct corral_traj_text_options *options)
{
    struct corral_traj_text_options o = options == NULL ? (struct corral_traj_text_options){0} : *options;
    o.columns = o.columns == 0 ? COLUMNS : o.columns < COLUMNS_MIN ? COLUMNS_MIN : o.columns;
    o.rows_max = o.rows_max == 0 ? ROWS : o.rows_max < 2 ? 2 : o.rows_max;
    const struct corral_traj_tensor *ids = corral_traj_record_find(r, "token_ids");
    put_facts(out, r, o.everything ? UINT32_MAX : o.columns);
    put_scores(out, r, o.columns);
    put_tensors(out, r, o.columns);
    if (ids != NULL && ids->dims == 1 && r->kind == CORRAL_TRAJ_EPISODE) {
        text_tokens(out, r, &o);
    } else {
        text_steps(out, r, &o);
    }
}
