#include "transport/trajectory/record/text_parts.h"
#include <inttypes.h>

#define VALUES_MAX 6u

struct steps {
    uint64_t steps, rows, row;
    struct text_column obs, action, reward, log_prob, value, terminated, truncated, valid, version;
};

/* The extents that everything else is compared with: of the first of these that is there. */
static bool extents(const struct corral_traj_record *r, uint32_t leads, uint64_t *steps, uint64_t *rows)
{
    static const char *const names[] = {"reward", "action", "obs", "log_prob"};
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct corral_traj_tensor *t = corral_traj_record_find(r, names[i]);
        if (t != NULL && t->dims >= leads) {
            *steps = t->shape[0];
            *rows = leads == 2 ? t->shape[1] : 1;
            return true;
        }
    }
    return false;
}

static bool steps_of(const struct corral_traj_record *r, uint32_t row, struct steps *s)
{
    const uint32_t leads = r->kind == CORRAL_TRAJ_FRAGMENT ? 2 : 1;
    *s = (struct steps){0};
    if (!extents(r, leads, &s->steps, &s->rows)) {
        return false;
    }
    const uint64_t shape[2] = {s->steps, s->rows};
    s->row = row < s->rows ? row : 0;
    s->obs = text_column_of(r, "obs", shape, leads);
    s->action = text_column_of(r, "action", shape, leads);
    s->reward = text_column_of(r, "reward", shape, leads);
    s->log_prob = text_column_of(r, "log_prob", shape, leads);
    s->value = text_column_of(r, "value", shape, leads);
    s->terminated = text_column_of(r, "terminated", shape, leads);
    s->truncated = text_column_of(r, "truncated", shape, leads);
    s->valid = text_column_of(r, "valid", shape, leads);
    s->version = text_column_of(r, "version", shape, 1);
    return true;
}

static bool set(const struct text_column *c, uint64_t at)
{
    return c->t != NULL && text_column_value(c, at) != 0;
}

static void put_number(FILE *out, const struct text_column *c, uint64_t at)
{
    if (c->t == NULL) {
        fputs("           ", out);
    } else {
        fprintf(out, "  %9.4g", text_column_value(c, at));
    }
}

static void put_step(FILE *out, const struct steps *s, uint64_t step, uint32_t values)
{
    const uint64_t at = step * s->rows + s->row;
    fprintf(out, "  %5" PRIu64, step);
    put_number(out, &s->reward, at);
    put_number(out, &s->log_prob, at);
    put_number(out, &s->value, at);
    fprintf(out, "  %c%c%c", set(&s->terminated, at) ? 'E' : '.', set(&s->truncated, at) ? 'C' : '.',
            s->valid.t == NULL || set(&s->valid, at) ? '.' : 'x');
    if (s->version.t != NULL) {
        fprintf(out, "  %7.0f", text_column_value(&s->version, step));
    } else {
        fputs("         ", out);
    }
    fputs("  ", out);
    if (s->action.t != NULL) {
        text_put_values(out, &s->action, at, values);
    }
    if (s->obs.t != NULL) {
        fputs(" <- ", out);
        text_put_values(out, &s->obs, at, values);
    }
    fputc('\n', out);
}

/* Of each row: what it earned in this record. */
static void put_returns(FILE *out, const struct steps *s, uint32_t columns)
{
    if (s->reward.t == NULL || s->reward.constant || s->rows == 1) {
        return;
    }
    fputs("  returns ", out);
    for (uint64_t row = 0; row < s->rows; row++) {
        double sum = 0;
        for (uint64_t step = 0; step < s->steps; step++) {
            sum += text_column_value(&s->reward, step * s->rows + row);
        }
        if (10 + (row + 1) * 10 > columns) {
            fprintf(out, " … of %" PRIu64 " rows", s->rows);
            break;
        }
        fprintf(out, " %9.4g", sum);
    }
    fputc('\n', out);
}

static void put_ended(FILE *out, const struct corral_traj_record *r, uint32_t columns)
{
    const struct corral_traj_tensor *t = corral_traj_record_find(r, "episode");
    if (t == NULL || t->dims != 2 || t->shape[1] != 2) {
        return;
    }
    fputs("  ended   ", out);
    for (uint64_t i = 0; i < t->shape[0]; i++) {
        if (10 + (i + 1) * 20 > columns) {
            fprintf(out, " … of %" PRIu64 " episodes", t->shape[0]);
            break;
        }
        fprintf(out, " %.4g in %.0f steps;", corral_traj_tensor_value(t, 2 * i),
                corral_traj_tensor_value(t, 2 * i + 1));
    }
    fputc('\n', out);
}

void text_steps(FILE *out, const struct corral_traj_record *r, const struct corral_traj_text_options *o)
{
    struct steps s;
    if (!steps_of(r, o->row, &s)) {
        return;
    }
    const uint32_t columns = o->everything ? UINT32_MAX : o->columns;
    if (r->kind == CORRAL_TRAJ_FRAGMENT) {
        put_returns(out, &s, columns);
        put_ended(out, r, columns);
        fprintf(out, "\n  row %" PRIu64 " of %" PRIu64 ", E: ended, C: cut off, x: not trained on\n", s.row,
                s.rows);
    } else {
        fputs("\n  E: ended, C: cut off, x: not trained on\n", out);
    }
    fputs("   step     reward   log-prob      value         version  action <- observation\n", out);
    const uint64_t half = o->rows_max / 2;
    const uint32_t values = o->everything ? UINT32_MAX : columns < 90 ? 3 : VALUES_MAX;
    for (uint64_t step = 0; step < s.steps; step++) {
        if (o->everything || s.steps <= o->rows_max || step < half || step >= s.steps - half) {
            put_step(out, &s, step, values);
        } else if (step == half) {
            fprintf(out, "      …  %" PRIu64 " steps more\n", s.steps - 2 * half);
        }
    }
}
