/* One value of the job file: type, unit and range against its row of the table, then into its field. */
#include "base/text.h"
#include "orchestrator/job/internal.h"
#include <jansson.h>
#include <math.h>
#include <string.h>

/* toml++ refuses deeper nesting; this bounds our own recursion whatever it does. */
#define ARGS_DEPTH_MAX 40

enum corral_status job_error(const struct corral_job *job, const struct origin *at, struct corral_error *err,
                             const char *fmt, ...)
{
    char text[384];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const struct corral_job_origins *o = job->origins;
    if (at->kind == ORIGIN_SET) {
        return corral_fail(err, CORRAL_INVALID, "--set %.100s: error: %s", o->set_text[at->set], text);
    }
    return corral_fail(err, CORRAL_INVALID, "%s:%u:%u: error: %s", o->file, at->line != 0 ? at->line : 1,
                       at->column != 0 ? at->column : 1, text);
}

const struct origin *job_origin(const struct corral_job *job, const char *section, const char *name)
{
    return &job->origins->option[corral_option_find(section, name) - corral_options];
}

enum corral_status corral_job_error_at(const struct corral_job *job, const char *section, const char *key,
                                       struct corral_error *err)
{
    return job_error(job, job_origin(job, section, key), err, "%s", err->text);
}

bool job_name_valid(const char *name)
{
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");
    /* Worker and device names are made from these: "rollout-12", "a:3". */
    return length > 0 && name[length] == '\0' && length <= CORRAL_JOB_NAME_MAX - 8 && name[0] != '-';
}

static enum corral_status wrong_type(const struct option_target *t, const struct corral_option *o,
                                     const char *wanted, const struct corral_toml_node *v,
                                     const struct origin *at, struct corral_error *err)
{
    return job_error(t->job, at, err, "`%s%s` must be %s, not %s", t->prefix, o->name, wanted,
                     corral_toml_kind_name(corral_toml_kind(v)));
}

static void *field_of(const struct option_target *t, const struct corral_option *o)
{
    return (char *)t->base + o->offset;
}

/* A range limit the way the option is written. */
static const char *limit_text(const struct corral_option *o, double limit, char out[48])
{
    if (o->type == CORRAL_OPTION_BYTES) {
        return corral_format_bytes_exact(limit >= 9.2e18 ? (uint64_t)INT64_MAX : (uint64_t)limit, out, 48);
    }
    if (o->type == CORRAL_OPTION_DURATION) {
        return corral_format_duration_exact((uint64_t)limit, out, 48);
    }
    if (o->type == CORRAL_OPTION_F64) {
        snprintf(out, 48, "%.10g", limit);
    } else {
        snprintf(out, 48, "%lld", limit >= 9.2e18 ? (long long)INT64_MAX : (long long)limit);
    }
    return out;
}

static enum corral_status out_of_range(const struct option_target *t, const struct corral_option *o,
                                       const char *value, const struct origin *at, struct corral_error *err)
{
    char lo[48], hi[48];
    if (o->min == o->max) {
        return job_error(t->job, at, err, "`%s%s` must be %s, not %s", t->prefix, o->name,
                         limit_text(o, o->min, lo), value);
    }
    if (o->max >= 9.2e18) {
        return job_error(t->job, at, err, "`%s%s` must be at least %s, not %s", t->prefix, o->name,
                         limit_text(o, o->min, lo), value);
    }
    return job_error(t->job, at, err, "`%s%s` must be between %s and %s, not %s", t->prefix, o->name,
                     limit_text(o, o->min, lo), limit_text(o, o->max, hi), value);
}

static enum corral_status read_integer(const struct option_target *t, const struct corral_option *o,
                                       const struct corral_toml_node *v, const struct origin *at,
                                       uint64_t *out, struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_INTEGER) {
        return wrong_type(t, o, "an integer", v, at, err);
    }
    int64_t n = corral_toml_integer(v);
    if (n < 0 || (double)n < o->min || (double)n > o->max) {
        char text[32];
        snprintf(text, sizeof text, "%lld", (long long)n);
        return out_of_range(t, o, text, at, err);
    }
    *out = (uint64_t)n;
    return CORRAL_OK;
}

static enum corral_status set_number(const struct option_target *t, const struct corral_option *o,
                                     const struct corral_toml_node *v, const struct origin *at,
                                     struct corral_error *err)
{
    if (o->type == CORRAL_OPTION_F64) {
        enum corral_toml_kind kind = corral_toml_kind(v);
        if (kind != CORRAL_TOML_INTEGER && kind != CORRAL_TOML_FLOAT) {
            return wrong_type(t, o, "a number", v, at, err);
        }
        double d = kind == CORRAL_TOML_INTEGER ? (double)corral_toml_integer(v) : corral_toml_float(v);
        if (!(d >= o->min && d <= o->max)) {
            char text[32];
            snprintf(text, sizeof text, "%.10g", d);
            return out_of_range(t, o, text, at, err);
        }
        memcpy(field_of(t, o), &d, sizeof d);
        return CORRAL_OK;
    }
    uint64_t n = 0;
    CORRAL_TRY(read_integer(t, o, v, at, &n, err));
    if (o->type == CORRAL_OPTION_U32) {
        uint32_t narrow = (uint32_t)n;
        memcpy(field_of(t, o), &narrow, sizeof narrow);
    } else {
        memcpy(field_of(t, o), &n, sizeof n);
    }
    return CORRAL_OK;
}

static enum corral_status set_quantity(const struct option_target *t, const struct corral_option *o,
                                       const struct corral_toml_node *v, const struct origin *at,
                                       struct corral_error *err)
{
    bool bytes = o->type == CORRAL_OPTION_BYTES;
    if (corral_toml_kind(v) != CORRAL_TOML_STRING) {
        return wrong_type(t, o, bytes ? "a size such as \"64MiB\"" : "a duration such as \"30s\"", v, at,
                          err);
    }
    const char *text = corral_toml_string(v);
    uint64_t n = 0;
    struct corral_error why;
    if ((bytes ? corral_parse_bytes(text, &n, &why) : corral_parse_duration(text, &n, &why)) != CORRAL_OK) {
        return job_error(t->job, at, err, "`%s%s`: %.250s", t->prefix, o->name, why.text);
    }
    if ((double)n < o->min || (double)n > o->max) {
        return out_of_range(t, o, text, at, err);
    }
    memcpy(field_of(t, o), &n, sizeof n);
    return CORRAL_OK;
}

static enum corral_status set_enum(const struct option_target *t, const struct corral_option *o,
                                   const struct corral_toml_node *v, const struct origin *at,
                                   struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_STRING) {
        return wrong_type(t, o, "a string", v, at, err);
    }
    const char *text = corral_toml_string(v);
    char list[200] = "";
    uint32_t count = 0;
    for (; o->choices[count] != NULL; count++) {
        if (strcmp(o->choices[count], text) == 0) {
            memcpy(field_of(t, o), &count, sizeof count);
            return CORRAL_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s\"%s\"", count > 0 ? ", " : "", o->choices[count]);
    }
    const char *near = corral_nearest(text, o->choices, count);
    return job_error(t->job, at, err, "`%s%s` must be one of %s, not \"%.60s\"%s%s%s", t->prefix, o->name,
                     list, text, near != NULL ? "; did you mean \"" : "", near != NULL ? near : "",
                     near != NULL ? "\"?" : "");
}

static enum corral_status set_text(const struct option_target *t, const struct corral_option *o,
                                   const struct corral_toml_node *v, const struct origin *at,
                                   struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_STRING) {
        return wrong_type(t, o, "a string", v, at, err);
    }
    const char *text = corral_toml_string(v);
    size_t length = strlen(text);
    if (o->type == CORRAL_OPTION_NAME && !job_name_valid(text)) {
        return job_error(t->job, at, err,
                         "`%s%s` must be 1 to %d lower-case letters, digits and dashes, not \"%.60s\"",
                         t->prefix, o->name, CORRAL_JOB_NAME_MAX - 8, text);
    }
    char full[CORRAL_JOB_TEXT_MAX];
    if (o->type == CORRAL_OPTION_PATH && length > 0 && text[0] != '/' && t->job->folder[0] != '\0') {
        int n = snprintf(full, sizeof full, "%s/%s", t->job->folder,
                         strncmp(text, "./", 2) == 0 ? text + 2 : text);
        length = n > 0 && (size_t)n < sizeof full ? (size_t)n : o->size;
        text = full;
    }
    if (length >= o->size) {
        return job_error(t->job, at, err, "`%s%s` is longer than %zu bytes", t->prefix, o->name, o->size - 1);
    }
    memcpy(field_of(t, o), text, length + 1);
    return CORRAL_OK;
}

static enum corral_status set_widths(const struct option_target *t, const struct corral_option *o,
                                     const struct corral_toml_node *v, const struct origin *at,
                                     struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_ARRAY) {
        return wrong_type(t, o, "a list of integers", v, at, err);
    }
    uint32_t count = corral_toml_array_size(v);
    if (count == 0 || count > CORRAL_POLICY_LAYERS_MAX) {
        return job_error(t->job, at, err, "`%s%s` must have 1 to %d layers, not %u", t->prefix, o->name,
                         CORRAL_POLICY_LAYERS_MAX, count);
    }
    uint32_t widths[CORRAL_POLICY_LAYERS_MAX] = {0};
    for (uint32_t i = 0; i < count; i++) {
        uint64_t n = 0;
        CORRAL_TRY(read_integer(t, o, corral_toml_array_at(v, i), at, &n, err));
        widths[i] = (uint32_t)n;
    }
    memcpy(t->job->model.hidden, widths, sizeof widths);
    t->job->model.hidden_count = count;
    return CORRAL_OK;
}

static enum corral_status set_gpus(const struct option_target *t, const struct corral_option *o,
                                   const struct corral_toml_node *v, const struct origin *at,
                                   struct corral_error *err)
{
    struct corral_job_node *node = t->base;
    uint32_t index[CORRAL_JOB_NODE_DEVICES_MAX] = {0};
    uint32_t count = 0;
    if (corral_toml_kind(v) == CORRAL_TOML_ARRAY) {
        count = corral_toml_array_size(v);
        if (count > CORRAL_JOB_NODE_DEVICES_MAX) {
            return job_error(t->job, at, err, "`%s%s` lists more than %d GPUs", t->prefix, o->name,
                             CORRAL_JOB_NODE_DEVICES_MAX);
        }
        for (uint32_t i = 0; i < count; i++) {
            uint64_t n = 0;
            CORRAL_TRY(read_integer(t, o, corral_toml_array_at(v, i), at, &n, err));
            index[i] = (uint32_t)n;
            for (uint32_t k = 0; k < i; k++) {
                if (index[k] == index[i]) {
                    return job_error(t->job, at, err, "`%s%s` lists GPU %u twice", t->prefix, o->name,
                                     index[i]);
                }
            }
        }
    } else if (corral_toml_kind(v) == CORRAL_TOML_INTEGER) {
        uint64_t n = 0;
        CORRAL_TRY(read_integer(t, o, v, at, &n, err));
        count = (uint32_t)n;
        for (uint32_t i = 0; i < count; i++) {
            index[i] = i;
        }
    } else {
        return wrong_type(t, o, "a count or a list of indices", v, at, err);
    }
    node->gpu_count = count;
    memcpy(node->gpu_index, index, sizeof index);
    return CORRAL_OK;
}

static enum corral_status set_devices(const struct option_target *t, const struct corral_option *o,
                                      const struct corral_toml_node *v, const struct origin *at,
                                      struct corral_error *err)
{
    bool list = corral_toml_kind(v) == CORRAL_TOML_ARRAY;
    /* --set partition.eval.gpus=a:3 is one string; in the file a list says what it is. */
    if (!list && (at->kind != ORIGIN_SET || corral_toml_kind(v) != CORRAL_TOML_STRING)) {
        return wrong_type(t, o, "a list such as [\"a:0-3\"]", v, at, err);
    }
    uint32_t count = list ? corral_toml_array_size(v) : 1;
    if (count == 0 || count > CORRAL_JOB_ITEMS_MAX) {
        return job_error(t->job, at, err, "`%s%s` must list 1 to %d sets of devices", t->prefix, o->name,
                         CORRAL_JOB_ITEMS_MAX);
    }
    struct corral_job_origins *origins = t->job->origins;
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_toml_node *e = list ? corral_toml_array_at(v, i) : v;
        struct origin where = *at;
        if (at->kind == ORIGIN_FILE) {
            where.line = corral_toml_line(e);
            where.column = corral_toml_column(e);
        }
        if (corral_toml_kind(e) != CORRAL_TOML_STRING) {
            return wrong_type(t, o, "a list of strings such as [\"a:0-3\"]", e, &where, err);
        }
        struct device_item *item = &origins->item[t->index][i];
        if (strlen(corral_toml_string(e)) >= sizeof item->text) {
            return job_error(t->job, &where, err, "`%s%s` holds a string that is too long", t->prefix,
                             o->name);
        }
        strcpy(item->text, corral_toml_string(e));
        item->at = where;
    }
    origins->item_count[t->index] = count;
    return CORRAL_OK;
}

/* A list of strings, one after the other with their NULs. `check` says what is wrong with one of them, or NULL. */
static enum corral_status set_strings(const struct option_target *t, const struct corral_option *o,
                                      const struct corral_toml_node *v, const struct origin *at,
                                      const char *(*check)(uint32_t i, const char *text), uint32_t *count_out,
                                      struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_ARRAY) {
        return wrong_type(t, o, "a list of strings", v, at, err);
    }
    char packed[CORRAL_JOB_TEXT_MAX] = {0};
    uint32_t count = corral_toml_array_size(v);
    size_t used = 0;
    if (count > CORRAL_JOB_ARGV_MAX || (count == 0 && o->required)) {
        return job_error(t->job, at, err, "`%s%s` must have %u to %d strings", t->prefix, o->name,
                         o->required ? 1u : 0u, CORRAL_JOB_ARGV_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_toml_node *e = corral_toml_array_at(v, i);
        if (corral_toml_kind(e) != CORRAL_TOML_STRING) {
            return wrong_type(t, o, "a list of strings", e, at, err);
        }
        const char *text = corral_toml_string(e);
        const char *wrong = check(i, text);
        if (wrong != NULL) {
            return job_error(t->job, at, err, "`%s%s` %s", t->prefix, o->name, wrong);
        }
        size_t length = strlen(text);
        if (length + 1 > sizeof packed - used) {
            return job_error(t->job, at, err, "`%s%s` is longer than %zu bytes", t->prefix, o->name,
                             sizeof packed);
        }
        memcpy(packed + used, text, length + 1);
        used += length + 1;
    }
    memcpy(field_of(t, o), packed, sizeof packed);
    *count_out = count;
    return CORRAL_OK;
}

static const char *check_command(uint32_t i, const char *text)
{
    return i == 0 && text[0] == '\0' ? "must begin with a program" : NULL;
}

/* What fences a process off is the agent's to say. */
static const char *check_environment(uint32_t i, const char *text)
{
    static const char *const ours[] = {
        "CORRAL_", "CUDA_VISIBLE_DEVICES=", "CUDA_DEVICE_ORDER=", "CUDA_MPS_", "LD_PRELOAD=", "LD_AUDIT="};
    (void)i;
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text) {
        return "must hold \"KEY=VALUE\" strings";
    }
    for (size_t k = 0; k < CORRAL_COUNT_OF(ours); k++) {
        if (strncmp(text, ours[k], strlen(ours[k])) == 0) {
            return "may not set CORRAL_*, CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER, CUDA_MPS_*, LD_PRELOAD or "
                   "LD_AUDIT: they belong to the fences";
        }
    }
    return NULL;
}

static enum corral_status set_choices(const struct option_target *t, const struct corral_option *o,
                                      const struct corral_toml_node *v, const struct origin *at,
                                      struct corral_error *err)
{
    if (corral_toml_kind(v) != CORRAL_TOML_ARRAY) {
        return wrong_type(t, o, "a list of strings", v, at, err);
    }
    uint32_t mask = 0, known = 0;
    char list[200] = "";
    for (; o->choices[known] != NULL; known++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s\"%s\"", known > 0 ? ", " : "", o->choices[known]);
    }
    for (uint32_t i = 0; i < corral_toml_array_size(v); i++) {
        const struct corral_toml_node *e = corral_toml_array_at(v, i);
        if (corral_toml_kind(e) != CORRAL_TOML_STRING) {
            return wrong_type(t, o, "a list of strings", e, at, err);
        }
        uint32_t k = 0;
        while (k < known && strcmp(o->choices[k], corral_toml_string(e)) != 0) {
            k++;
        }
        if (k == known) {
            const char *near = corral_nearest(corral_toml_string(e), o->choices, known);
            return job_error(t->job, at, err, "`%s%s` may name %s, not \"%.60s\"%s%s%s", t->prefix, o->name,
                             list, corral_toml_string(e), near != NULL ? "; did you mean \"" : "",
                             near != NULL ? near : "", near != NULL ? "\"?" : "");
        }
        mask |= 1u << k;
    }
    memcpy(field_of(t, o), &mask, sizeof mask);
    return CORRAL_OK;
}

static json_t *json_of(const struct corral_toml_node *v, uint32_t depth)
{
    if (depth > ARGS_DEPTH_MAX) {
        return NULL;
    }
    switch (corral_toml_kind(v)) {
    case CORRAL_TOML_STRING:
        return json_string(corral_toml_string(v));
    case CORRAL_TOML_INTEGER:
        return json_integer(corral_toml_integer(v));
    case CORRAL_TOML_FLOAT:
        return json_real(corral_toml_float(v)); /* NULL for NaN and infinities */
    case CORRAL_TOML_BOOL:
        return json_boolean(corral_toml_bool(v));
    case CORRAL_TOML_ARRAY: {
        json_t *array = json_array();
        for (uint32_t i = 0; i < corral_toml_array_size(v); i++) {
            if (json_array_append_new(array, json_of(corral_toml_array_at(v, i), depth + 1)) != 0) {
                json_decref(array);
                return NULL;
            }
        }
        return array;
    }
    case CORRAL_TOML_TABLE: {
        json_t *object = json_object();
        for (uint32_t i = 0; i < corral_toml_table_size(v); i++) {
            if (json_object_set_new(object, corral_toml_table_key(v, i),
                                    json_of(corral_toml_table_at(v, i), depth + 1)) != 0) {
                json_decref(object);
                return NULL;
            }
        }
        return object;
    }
    case CORRAL_TOML_DATE:
        break;
    }
    return NULL;
}

enum corral_status job_args_json(const struct corral_job *job, const char *key,
                                 const struct corral_toml_node *table, const struct origin *at, char *out,
                                 size_t out_bytes, struct corral_error *err)
{
    json_t *json = json_of(table, 0);
    CORRAL_AUTO_FREE char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (text == NULL) {
        return job_error(job, at, err, "`%s` holds a value that JSON cannot: a date, a time, nan or inf",
                         key);
    }
    if (strlen(text) >= out_bytes) {
        return job_error(job, at, err, "`%s` is longer than %zu bytes as JSON", key, out_bytes - 1);
    }
    strcpy(out, text);
    return CORRAL_OK;
}

enum corral_status job_value_set(const struct option_target *t, const struct corral_option *o,
                                 const struct corral_toml_node *value, const struct origin *at,
                                 struct corral_error *err)
{
    switch (o->type) {
    case CORRAL_OPTION_NAME:
    case CORRAL_OPTION_STRING:
    case CORRAL_OPTION_PATH:
        CORRAL_TRY(set_text(t, o, value, at, err));
        break;
    case CORRAL_OPTION_U32:
    case CORRAL_OPTION_U64:
    case CORRAL_OPTION_F64:
        CORRAL_TRY(set_number(t, o, value, at, err));
        break;
    case CORRAL_OPTION_BYTES:
    case CORRAL_OPTION_DURATION:
        CORRAL_TRY(set_quantity(t, o, value, at, err));
        break;
    case CORRAL_OPTION_BOOL: {
        if (corral_toml_kind(value) != CORRAL_TOML_BOOL) {
            return wrong_type(t, o, "true or false", value, at, err);
        }
        bool b = corral_toml_bool(value);
        memcpy(field_of(t, o), &b, sizeof b);
        break;
    }
    case CORRAL_OPTION_ENUM:
        CORRAL_TRY(set_enum(t, o, value, at, err));
        break;
    case CORRAL_OPTION_WIDTHS:
        CORRAL_TRY(set_widths(t, o, value, at, err));
        break;
    case CORRAL_OPTION_GPUS:
        CORRAL_TRY(set_gpus(t, o, value, at, err));
        break;
    case CORRAL_OPTION_DEVICES:
        CORRAL_TRY(set_devices(t, o, value, at, err));
        break;
    case CORRAL_OPTION_COMMAND:
        CORRAL_TRY(set_strings(t, o, value, at, check_command,
                               &((struct corral_job_partition *)t->base)->command_count, err));
        break;
    case CORRAL_OPTION_ENVIRONMENT:
        CORRAL_TRY(set_strings(t, o, value, at, check_environment,
                               &((struct corral_job_partition *)t->base)->environment_count, err));
        break;
    case CORRAL_OPTION_SET:
        CORRAL_TRY(set_choices(t, o, value, at, err));
        break;
    case CORRAL_OPTION_ARGS: {
        char key[64];
        snprintf(key, sizeof key, "%s%s", t->prefix, o->name);
        if (corral_toml_kind(value) != CORRAL_TOML_TABLE) {
            return wrong_type(t, o, "a table such as { size = 4 }", value, at, err);
        }
        CORRAL_TRY(job_args_json(t->job, key, value, at, field_of(t, o), o->size, err));
        break;
    }
    }
    t->origins[o - corral_options] = *at;
    return CORRAL_OK;
}

void job_value_clear(void *base, const struct corral_option *o)
{
    void *field = (char *)base + o->offset;
    if (o->type == CORRAL_OPTION_F64) {
        const double none = NAN;
        memcpy(field, &none, sizeof none);
    } else if (o->type == CORRAL_OPTION_BYTES) {
        const uint64_t none = UINT64_MAX;
        memcpy(field, &none, sizeof none);
    }
}
