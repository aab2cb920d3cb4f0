#include "cli/traj_columns.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

CORRAL_DEFINE_CLEANUP(struct traj_columns, traj_columns_close)

static void close_spool(FILE *f)
{
    if (f != NULL) {
        fclose(f);
    }
}

void traj_columns_close(struct traj_columns *c)
{
    for (uint32_t i = 0; c != NULL && i < c->count; i++) {
        close_spool(c->column[i].values);
        close_spool(c->column[i].ends);
        close_spool(c->column[i].shapes);
    }
    free(c);
}

enum corral_status traj_columns_open(struct traj_columns **out, const char *path, struct corral_error *err)
{
    CORRAL_CLEANUP(traj_columns_closep) struct traj_columns *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to export");
    }
    if (strlen(path) >= sizeof c->path - 32) {
        return corral_fail(err, CORRAL_INVALID, "%s: the path is too long", path);
    }
    memcpy(c->path, path, strlen(path) + 1);
    const char *slash = strrchr(path, '/');
    size_t n = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    memcpy(c->folder, n > 0 ? path : ".", n > 0 ? n : 1);
    *out = CORRAL_STEAL(c);
    return CORRAL_OK;
}

/* On the disk that the export goes to, without a name, gone with the process. */
static enum corral_status spool(const struct traj_columns *c, FILE **out, struct corral_error *err)
{
    int fd = open(c->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) { /* a file system without unnamed files */
        char name[PATH_MAX + 32];
        snprintf(name, sizeof name, "%s/.export-XXXXXX", c->folder);
        fd = mkostemp(name, O_CLOEXEC);
        if (fd >= 0) {
            unlink(name);
        }
    }
    FILE *f = fd >= 0 ? fdopen(fd, "w+") : NULL;
    if (f == NULL) {
        int code = errno;
        corral_cleanup_close(&fd);
        return corral_fail_sys(err, code, "cannot make a temporary file in %s", c->folder);
    }
    *out = f;
    return CORRAL_OK;
}

static enum corral_status put(FILE *to, const void *data, uint64_t bytes, struct corral_error *err)
{
    return fwrite(data, 1, bytes, to) == bytes
               ? CORRAL_OK
               : corral_fail_sys(err, errno, "cannot write a temporary file of the export");
}

static enum corral_status fill(const struct traj_columns *c, struct traj_column *col,
                               struct corral_error *err)
{
    static const uint64_t zeros[CORRAL_TRAJ_DIMS_MAX];
    const double nan = NAN;
    CORRAL_TRY(spool(c, &col->values, err));
    if (col->ragged) {
        CORRAL_TRY(spool(c, &col->ends, err));
        CORRAL_TRY(spool(c, &col->shapes, err));
    }
    for (uint64_t i = 0; i < c->records; i++) { /* the records before had none */
        if (col->ragged) {
            CORRAL_TRY(put(col->ends, zeros, sizeof zeros[0], err));
            CORRAL_TRY(put(col->shapes, zeros, sizeof zeros, err));
        } else {
            CORRAL_TRY(put(col->values, &nan, sizeof nan, err)); /* only scores come later */
        }
    }
    return CORRAL_OK;
}

static enum corral_status column(struct traj_columns *c, const char *prefix, const char *name, uint32_t dtype,
                                 bool ragged, struct traj_column **out, struct corral_error *err)
{
    char full[TRAJ_COLUMN_NAME_MAX];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    for (uint32_t i = 0; i < c->count; i++) {
        struct traj_column *col = &c->column[i];
        if (strcmp(col->name, full) != 0) {
            continue;
        }
        if (col->dtype != dtype || col->ragged != ragged) {
            return corral_fail(err, CORRAL_INVALID,
                               "`%s` is not of one type in all records; filter by --env, or export as jsonl",
                               full);
        }
        *out = col;
        return CORRAL_OK;
    }
    if (c->count == TRAJ_COLUMNS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %d columns; filter by --env, or export as jsonl",
                           TRAJ_COLUMNS_MAX);
    }
    struct traj_column *col = &c->column[c->count];
    *col = (struct traj_column){.dtype = dtype, .ragged = ragged, .alike = true};
    memcpy(col->name, full, sizeof full);
    c->count++;
    *out = col;
    return fill(c, col, err);
}

static enum corral_status number(struct traj_columns *c, const char *name, uint64_t value,
                                 struct corral_error *err)
{
    struct traj_column *col;
    CORRAL_TRY(column(c, "record.", name, CORRAL_TRAJ_U64, false, &col, err));
    col->touched = true;
    return put(col->values, &value, sizeof value, err);
}

static enum corral_status part(struct traj_columns *c, const char *prefix, const struct corral_traj_tensor *t,
                               uint64_t bytes, struct corral_error *err)
{
    struct traj_column *col;
    CORRAL_TRY(column(c, prefix, t->name, t->dtype, true, &col, err));
    uint64_t shape[CORRAL_TRAJ_DIMS_MAX] = {0};
    memcpy(shape, t->shape, t->dims * sizeof shape[0]);
    if (col->elements == 0) {
        col->dims = t->dims;
        memcpy(col->shape, shape, sizeof shape);
    }
    col->alike = col->alike && col->dims == t->dims &&
                 memcmp(col->shape + 1, shape + 1, sizeof shape - sizeof shape[0]) == 0;
    col->elements += bytes / corral_traj_dtype_bytes(t->dtype);
    col->touched = true;
    CORRAL_TRY(put(col->values, t->data, bytes, err));
    CORRAL_TRY(put(col->ends, &col->elements, sizeof col->elements, err));
    return put(col->shapes, shape, sizeof shape, err);
}

static enum corral_status text(struct traj_columns *c, const char *name, const char *value,
                               struct corral_error *err)
{
    uint64_t bytes = strlen(value);
    struct corral_traj_tensor t = {
        .name = name, .dtype = CORRAL_TRAJ_U8, .dims = 1, .shape = {bytes}, .data = value};
    return part(c, "record.", &t, bytes, err);
}

static enum corral_status header(struct traj_columns *c, const struct traj_entry *e, struct corral_error *err)
{
    const struct corral_traj_record *r = e->record;
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"rank", e->rank},
                   {"position", e->position},
                   {"run", r->run},
                   {"worker", r->worker},
                   {"epoch", r->epoch},
                   {"sequence", r->sequence},
                   {"kind", r->kind},
                   {"turns", r->turns},
                   {"group", r->group},
                   {"group_index", r->group_index},
                   {"group_size", r->group_size},
                   {"episode", r->episode},
                   {"version_min", r->version_min},
                   {"version_max", r->version_max},
                   {"tokens", r->tokens}};
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(numbers); i++) {
        CORRAL_TRY(number(c, numbers[i].name, numbers[i].value, err));
    }
    CORRAL_TRY(text(c, "env", r->env, err));
    CORRAL_TRY(text(c, "task", r->task, err));
    return text(c, "finish", r->finish, err);
}

/* What this record has not. */
static enum corral_status fill_gaps(struct traj_columns *c, struct corral_error *err)
{
    static const uint64_t zeros[CORRAL_TRAJ_DIMS_MAX];
    const double nan = NAN;
    for (uint32_t i = 0; i < c->count; i++) {
        struct traj_column *col = &c->column[i];
        if (!col->touched && col->ragged) {
            CORRAL_TRY(put(col->ends, &col->elements, sizeof col->elements, err));
            CORRAL_TRY(put(col->shapes, zeros, sizeof zeros, err));
        } else if (!col->touched) {
            CORRAL_TRY(put(col->values, &nan, sizeof nan, err));
        }
        col->touched = false;
    }
    c->records++;
    return CORRAL_OK;
}

enum corral_status traj_columns_add(struct traj_columns *c, const struct traj_entry *e,
                                    struct corral_error *err)
{
    const struct corral_traj_record *r = e->record;
    CORRAL_TRY(header(c, e, err));
    for (uint32_t i = 0; i < r->score_count; i++) {
        struct traj_column *col;
        CORRAL_TRY(column(c, "score.", r->scores[i].name, CORRAL_TRAJ_F64, false, &col, err));
        CORRAL_TRY(put(col->values, &r->scores[i].value, sizeof r->scores[i].value, err));
        col->touched = true;
    }
    for (uint32_t i = 0; i < r->tensor_count; i++) {
        CORRAL_TRY(part(c, "", &r->tensors[i], e->view->tensor_bytes[i], err));
    }
    return fill_gaps(c, err);
}

enum corral_status traj_columns_write(struct traj_columns *c, enum traj_format format,
                                      struct corral_error *err)
{
    return traj_file_write(c, format, err);
}
