/* rlctl traj export. */
#include "cli/set_args.h"
#include "cli/traj_log.h"
#include "transport/trajectory/record/text.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

CORRAL_DEFINE_CLEANUP(struct traj_log, traj_log_close)
CORRAL_DEFINE_CLEANUP(struct traj_columns, traj_columns_close)

static bool is_whole(uint32_t dtype)
{
    return dtype == CORRAL_TRAJ_U8 || dtype == CORRAL_TRAJ_I32 || dtype == CORRAL_TRAJ_I64 ||
           dtype == CORRAL_TRAJ_U64 || dtype == CORRAL_TRAJ_U32;
}

/* 64-bit numbers do not go through a double. */
static void print_whole(FILE *to, const struct corral_traj_tensor *t, uint64_t i)
{
    int64_t value;
    if (t->dtype == CORRAL_TRAJ_U64 || t->dtype == CORRAL_TRAJ_I64) {
        memcpy(&value, (const char *)t->data + 8 * i, sizeof value);
        if (t->dtype == CORRAL_TRAJ_U64) {
            fprintf(to, "%" PRIu64, (uint64_t)value);
        } else {
            fprintf(to, "%" PRId64, value);
        }
    } else {
        fprintf(to, "%.0f", corral_traj_tensor_value(t, i));
    }
}

/* Row-major and flat; the shape stands in "tensors". */
static void print_values(FILE *to, const struct corral_traj_tensor *t, uint64_t bytes)
{
    uint64_t count = bytes / corral_traj_dtype_bytes(t->dtype);
    for (uint64_t i = 0; i < count; i++) {
        fputs(i > 0 ? ", " : "", to);
        double v = is_whole(t->dtype) ? 0 : corral_traj_tensor_value(t, i);
        if (is_whole(t->dtype)) {
            print_whole(to, t, i);
        } else if (!isfinite(v)) {
            fputs("null", to);
        } else {
            fprintf(to, "%.*g", t->dtype == CORRAL_TRAJ_F64 ? 17 : 9, v);
        }
    }
}

static enum corral_status print_object(FILE *to, const struct traj_entry *e, bool tensors,
                                       struct corral_error *err)
{
    json_t *o = traj_entry_json(e);
    CORRAL_AUTO_FREE char *text = o != NULL ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (text == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to print a record");
    }
    size_t n = strlen(text);
    fwrite(text, 1, n - 1, to); /* without the last brace */
    if (tensors) {
        fputs(",\"values\":{", to);
        for (uint32_t i = 0; i < e->record->tensor_count; i++) {
            const struct corral_traj_tensor *t = &e->record->tensors[i];
            json_t *name = json_string(t->name);
            CORRAL_AUTO_FREE char *quoted = json_dumps(name, JSON_ENCODE_ANY);
            json_decref(name);
            fprintf(to, "%s%s:[", i > 0 ? "," : "", quoted != NULL ? quoted : "\"\"");
            print_values(to, t, e->view->tensor_bytes[i]);
            fputc(']', to);
        }
        fputc('}', to);
    }
    fputs("}\n", to);
    return ferror(to) ? corral_fail_sys(err, errno, "cannot write the records") : CORRAL_OK;
}

static enum corral_status write_lines(struct traj_log *l, FILE *to, const struct traj_arguments *a,
                                      uint64_t *count, struct corral_error *err)
{
    for (;;) {
        struct traj_entry e;
        enum corral_status status = traj_log_next(l, &e, err);
        if (status == CORRAL_AGAIN) {
            return CORRAL_OK;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(print_object(to, &e, a->tensors, err));
        ++*count;
    }
}

static enum corral_status write_file(struct traj_log *l, const struct traj_arguments *a, uint64_t *count,
                                     struct corral_error *err)
{
    char temporary[PATH_MAX];
    int n = snprintf(temporary, sizeof temporary, "%s.tmp.%d", a->output, (int)getpid());
    if (n < 0 || (size_t)n >= sizeof temporary) {
        return corral_fail(err, CORRAL_INVALID, "%s: the path is too long", a->output);
    }
    FILE *to = fopen(temporary, "wxe");
    if (to == NULL) {
        return corral_fail_sys(err, errno, "cannot create %s", temporary);
    }
    enum corral_status status = write_lines(l, to, a, count, err);
    if (fclose(to) != 0 && status == CORRAL_OK) {
        status = corral_fail_sys(err, errno, "cannot write %s", temporary);
    }
    if (status == CORRAL_OK && rename(temporary, a->output) != 0) {
        status = corral_fail_sys(err, errno, "cannot rename %s to %s", temporary, a->output);
    }
    if (status != CORRAL_OK) {
        unlink(temporary);
    }
    return status;
}

static enum corral_status write_columns(struct traj_log *l, const struct traj_arguments *a, uint64_t *count,
                                        struct corral_error *err)
{
    CORRAL_CLEANUP(traj_columns_closep) struct traj_columns *c = NULL;
    CORRAL_TRY(traj_columns_open(&c, a->output, err));
    for (;;) {
        struct traj_entry e;
        enum corral_status status = traj_log_next(l, &e, err);
        if (status == CORRAL_AGAIN) {
            break;
        }
        CORRAL_TRY(status);
        CORRAL_TRY(traj_columns_add(c, &e, err));
        ++*count;
    }
    return traj_columns_write(c, a->format, err);
}

int traj_export(int argc, char **argv)
{
    struct traj_arguments a;
    struct corral_error err;
    int code = traj_parse(argc, argv, " format output no-tensors ", &a);
    if (code >= 0) {
        return code;
    }
    if (a.format == (enum traj_format) - 1) {
        return corral_cli_usage("traj export", "--format says how: jsonl, safetensors or npz");
    }
    if (a.format != TRAJ_JSONL && a.output == NULL) {
        return corral_cli_usage("traj export", "-o FILE says where to");
    }
    CORRAL_CLEANUP(traj_log_closep) struct traj_log *l = NULL;
    code = traj_open(&a, UINT64_MAX, &l);
    if (code >= 0) {
        return code;
    }
    uint64_t count = 0;
    enum corral_status status = a.format != TRAJ_JSONL ? write_columns(l, &a, &count, &err)
                                : a.output != NULL     ? write_file(l, &a, &count, &err)
                                                       : write_lines(l, stdout, &a, &count, &err);
    if (status != CORRAL_OK) {
        return corral_cli_fail(&err);
    }
    if (a.output != NULL) {
        fprintf(stderr, "%" PRIu64 " records in %s\n", count, a.output);
    }
    return cli_flush();
}
