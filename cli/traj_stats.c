/* rlctl traj stats. */
#include "base/text.h"
#include "cli/run_view.h"
#include "cli/set_args.h"
#include "cli/traj_log.h"
#include "transport/trajectory/record/text.h"
#include "transport/trajectory/wal/wal.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX (1u << 20)
#define VERSION_LINES 12 /* of the table for people; --json has all */

CORRAL_DEFINE_CLEANUP(struct traj_log, traj_log_close)

struct spread {
    uint64_t count;
    double sum, least, most;
};

struct row {
    uint64_t key, sub; /* worker and epoch, rank; a version; or none, and a name */
    char name[CORRAL_TRAJ_TEXT_MAX + 1];
    uint64_t records, bytes, missing, repeated, last_sequence;
    struct spread tokens, episodes, staleness; /* episodes: their lengths */
};

struct table {
    struct row *rows;
    uint32_t count, room;
};

struct stats {
    struct table envs, workers, versions;
    struct table scores; /* the spread is in `tokens` */
    struct row all;
    uint64_t newest[TRAJ_RANKS_MAX]; /* weight version seen so far, by rank */
};

static void spread_add(struct spread *s, double v)
{
    if (isnan(v)) {
        return;
    }
    s->least = s->count == 0 || v < s->least ? v : s->least;
    s->most = s->count == 0 || v > s->most ? v : s->most;
    s->sum += v;
    s->count++;
}

static double mean(const struct spread *s)
{
    return s->count > 0 ? s->sum / (double)s->count : NAN;
}

/* Searched from the end: what came last comes again. */
static enum corral_status find(struct table *t, uint64_t key, uint64_t sub, const char *name,
                               struct row **out, struct corral_error *err)
{
    for (uint32_t i = t->count; i > 0; i--) {
        struct row *r = &t->rows[i - 1];
        if (r->key == key && r->sub == sub && strcmp(r->name, name) == 0) {
            *out = r;
            return CORRAL_OK;
        }
    }
    if (t->count == t->room) {
        uint32_t room = t->room > 0 ? t->room * 2 : 64;
        struct row *grown = room > ROWS_MAX ? NULL : realloc(t->rows, room * sizeof *grown);
        if (grown == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "no memory for statistics of more than %u kinds", t->count);
        }
        t->rows = grown;
        t->room = room;
    }
    *out = &t->rows[t->count++];
    **out = (struct row){.key = key, .sub = sub};
    snprintf((*out)->name, sizeof(*out)->name, "%s", name);
    return CORRAL_OK;
}

static enum corral_status score(struct stats *s, const char *name, double value, struct corral_error *err)
{
    struct row *row;
    CORRAL_TRY(find(&s->scores, 0, 0, name, &row, err));
    spread_add(&row->tokens, value);
    return CORRAL_OK;
}

/* What ended in it: a whole trajectory, or what a fragment lists. */
static enum corral_status add_episodes(struct stats *s, const struct corral_traj_record *r, struct row **rows,
                                       uint32_t count, struct corral_error *err)
{
    if (r->kind == CORRAL_TRAJ_EPISODE) {
        for (uint32_t k = 0; k < count; k++) {
            spread_add(&rows[k]->episodes, (double)r->tokens);
        }
        return CORRAL_OK;
    }
    const struct corral_traj_tensor *t = corral_traj_record_find(r, "episode");
    for (uint64_t i = 0; t != NULL && t->dims == 2 && t->shape[1] == 2 && i < t->shape[0]; i++) {
        CORRAL_TRY(score(s, "return", corral_traj_tensor_value(t, 2 * i), err));
        for (uint32_t k = 0; k < count; k++) {
            spread_add(&rows[k]->episodes, corral_traj_tensor_value(t, 2 * i + 1));
        }
    }
    return CORRAL_OK;
}

/* Sequences of one worker's life go up by one in the log of its rank; filters leave some out on purpose. */
static void follow_sequence(struct row *w, uint64_t sequence)
{
    if (w->last_sequence != 0 && sequence > w->last_sequence + 1) {
        w->missing += sequence - w->last_sequence - 1;
    }
    w->repeated += sequence <= w->last_sequence;
    w->last_sequence = CORRAL_MAX(w->last_sequence, sequence);
}

static enum corral_status add(struct stats *s, const struct traj_entry *e, bool sequences,
                              struct corral_error *err)
{
    const struct corral_traj_record *r = e->record;
    struct row *rows[4] = {&s->all};
    CORRAL_TRY(find(&s->envs, 0, 0, r->env, &rows[1], err));
    CORRAL_TRY(find(&s->workers, (uint64_t)r->worker << 32 | r->epoch, e->rank, "", &rows[2], err));
    CORRAL_TRY(find(&s->versions, r->version_max, 0, "", &rows[3], err));
    uint64_t *newest = &s->newest[e->rank];
    *newest = CORRAL_MAX(*newest, r->version_max);
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(rows); i++) {
        rows[i]->records++;
        rows[i]->bytes += e->bytes;
        spread_add(&rows[i]->tokens, (double)r->tokens);
        spread_add(&rows[i]->staleness, (double)(*newest - r->version_min));
    }
    if (sequences) {
        follow_sequence(rows[2], r->sequence);
    }
    for (uint32_t i = 0; i < r->score_count; i++) {
        CORRAL_TRY(score(s, r->scores[i].name, r->scores[i].value, err));
    }
    return add_episodes(s, r, rows, CORRAL_COUNT_OF(rows), err);
}

static json_t *spread_json(const struct spread *s)
{
    return s->count == 0 ? json_null()
                         : json_pack("{s:I, s:o, s:o, s:o}", "count", (json_int_t)s->count, "mean",
                                     corral_json_real(mean(s)), "min", corral_json_real(s->least), "max",
                                     corral_json_real(s->most));
}

static json_t *row_json(const struct row *r)
{
    return json_pack("{s:I, s:I, s:o, s:o, s:o}", "records", (json_int_t)r->records, "bytes",
                     (json_int_t)r->bytes, "tokens", spread_json(&r->tokens), "episode_length",
                     spread_json(&r->episodes), "staleness", spread_json(&r->staleness));
}

static json_t *workers_json(const struct table *t)
{
    json_t *workers = json_array();
    for (uint32_t i = 0; i < t->count; i++) {
        const struct row *r = &t->rows[i];
        json_t *o = row_json(r);
        json_object_set_new(o, "worker", json_integer((json_int_t)(r->key >> 32)));
        json_object_set_new(o, "epoch", json_integer((json_int_t)(uint32_t)r->key));
        json_object_set_new(o, "rank", json_integer((json_int_t)r->sub));
        json_object_set_new(o, "last_sequence", json_integer((json_int_t)r->last_sequence));
        json_object_set_new(o, "missing", json_integer((json_int_t)r->missing));
        json_object_set_new(o, "repeated", json_integer((json_int_t)r->repeated));
        json_array_append_new(workers, o);
    }
    return workers;
}

static enum corral_status print_json(const struct stats *s, struct corral_error *err)
{
    json_t *envs = json_object(), *versions = json_array(), *scores = json_object();
    for (uint32_t i = 0; i < s->envs.count; i++) {
        json_object_set_new(envs, s->envs.rows[i].name, row_json(&s->envs.rows[i]));
    }
    for (uint32_t i = 0; i < s->versions.count; i++) {
        json_t *o = row_json(&s->versions.rows[i]);
        json_object_set_new(o, "version", json_integer((json_int_t)s->versions.rows[i].key));
        json_array_append_new(versions, o);
    }
    for (uint32_t i = 0; i < s->scores.count; i++) {
        json_object_set_new(scores, s->scores.rows[i].name, spread_json(&s->scores.rows[i].tokens));
    }
    json_t *o = json_pack("{s:o, s:o, s:o, s:o, s:o}", "all", row_json(&s->all), "env", envs, "worker",
                          workers_json(&s->workers), "version", versions, "score", scores);
    enum corral_status status = o != NULL ? corral_json_print(stdout, o, err)
                                          : corral_fail(err, CORRAL_NOMEM, "no memory to print statistics");
    json_decref(o);
    return status;
}

static void print_row(const char *name, const struct row *r)
{
    char bytes[32], length[64] = "-";
    if (r->episodes.count > 0) {
        snprintf(length, sizeof length, "%.4g (%.4g-%.4g)", mean(&r->episodes), r->episodes.least,
                 r->episodes.most);
    }
    printf("%-22s %8" PRIu64 " %10s %12.0f %9" PRIu64 "  %-24s %6.2f (%.0f)\n", name, r->records,
           corral_format_bytes(r->bytes, bytes, sizeof bytes), r->tokens.sum, r->episodes.count, length,
           mean(&r->staleness), r->staleness.most);
}

static void print_text(const struct stats *s)
{
    char name[CORRAL_TRAJ_TEXT_MAX + 1];
    printf("%-22s %8s %10s %12s %9s  %-24s %s\n", "", "records", "bytes", "tokens", "episodes",
           "length (min-max)", "staleness (max)");
    print_row("all", &s->all);
    for (uint32_t i = 0; i < s->envs.count; i++) {
        print_row(corral_view_plain(s->envs.rows[i].name, name, sizeof name), &s->envs.rows[i]);
    }
    for (uint32_t i = 0; i < s->workers.count; i++) {
        const struct row *r = &s->workers.rows[i];
        snprintf(name, sizeof name, "worker %u.%u > rank %u", (uint32_t)(r->key >> 32), (uint32_t)r->key,
                 (uint32_t)r->sub);
        print_row(name, r);
        if (r->missing + r->repeated > 0) {
            printf("%-22s %" PRIu64 " missing, %" PRIu64 " repeated\n", "", r->missing, r->repeated);
        }
    }
    uint32_t skipped = s->versions.count > VERSION_LINES ? s->versions.count - VERSION_LINES : 0;
    if (skipped > 0) {
        printf("(%u weight versions before)\n", skipped);
    }
    for (uint32_t i = skipped; i < s->versions.count; i++) {
        snprintf(name, sizeof name, "v%" PRIu64, s->versions.rows[i].key);
        print_row(name, &s->versions.rows[i]);
    }
    for (uint32_t i = 0; i < s->scores.count; i++) {
        const struct spread *v = &s->scores.rows[i].tokens;
        printf("score %-16s %8" PRIu64 "  mean %.6g  min %.6g  max %.6g\n", s->scores.rows[i].name, v->count,
               mean(v), v->least, v->most);
    }
}

static int by_key(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

static void stats_free(struct stats **s)
{
    if (*s != NULL) {
        free((*s)->envs.rows);
        free((*s)->workers.rows);
        free((*s)->versions.rows);
        free((*s)->scores.rows);
        free(*s);
    }
}

static enum corral_status collect(struct traj_log *l, struct stats *s, bool sequences,
                                  struct corral_error *err)
{
    for (;;) {
        struct traj_entry e;
        enum corral_status status = traj_log_next(l, &e, err);
        if (status == CORRAL_AGAIN) {
            if (s->versions.count > 1) { /* each rank's log has them in its own order */
                qsort(s->versions.rows, s->versions.count, sizeof s->versions.rows[0], by_key);
            }
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(add(s, &e, sequences, err));
    }
}

int traj_stats(int argc, char **argv)
{
    struct traj_arguments a;
    struct corral_error err = {0};
    int code = traj_parse(argc, argv, "", &a);
    if (code >= 0) {
        return code;
    }
    CORRAL_CLEANUP(traj_log_closep) struct traj_log *l = NULL;
    CORRAL_CLEANUP(stats_free) struct stats *s = calloc(1, sizeof *s);
    if (s == NULL) {
        corral_fail(&err, CORRAL_NOMEM, "no memory for statistics");
        return corral_cli_fail(&err);
    }
    code = traj_open(&a, UINT64_MAX, &l);
    if (code >= 0) {
        return code;
    }
    const struct traj_filter *f = &a.filter;
    bool sequences = (f->sequence & f->episode & f->group & f->position & f->version_to) == UINT64_MAX &&
                     f->version_from == 0 && f->env == NULL;
    enum corral_status status = collect(l, s, sequences, &err);
    if (status == CORRAL_OK && a.json) {
        status = print_json(s, &err);
    } else if (status == CORRAL_OK) {
        print_text(s);
    }
    return status == CORRAL_OK ? cli_flush() : corral_cli_fail(&err);
}
