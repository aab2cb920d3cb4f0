/* A job back into TOML, and the reference page: both are walks over the option table. */
#include "base/text.h"
#include "orchestrator/job/internal.h"
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COMMENT_COLUMN 48

static void print_string(FILE *to, const char *text)
{
    fputc('"', to);
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (*p == '"' || *p == '\\') {
            fprintf(to, "\\%c", *p);
        } else if (*p < 0x20 || *p == 0x7f) {
            fprintf(to, "\\u%04X", *p);
        } else {
            fputc(*p, to);
        }
    }
    fputc('"', to);
}

/* The shortest decimal that reads back as the same double, always with a point or an exponent. */
static void print_double(FILE *to, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    fprintf(to, "%s%s", text, strpbrk(text, ".e") == NULL ? ".0" : "");
}

static void print_json_as_toml(FILE *to, const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT: {
        const char *key;
        json_t *item;
        const char *comma = "";
        fputs("{", to);
        json_object_foreach((json_t *)(uintptr_t)v, key, item)
        {
            fputs(comma, to);
            fputc(' ', to);
            print_string(to, key);
            fputs(" = ", to);
            print_json_as_toml(to, item);
            comma = ",";
        }
        fputs(comma[0] != '\0' ? " }" : "}", to);
        return;
    }
    case JSON_ARRAY:
        fputc('[', to);
        for (size_t i = 0; i < json_array_size(v); i++) {
            fputs(i > 0 ? ", " : "", to);
            print_json_as_toml(to, json_array_get(v, i));
        }
        fputc(']', to);
        return;
    case JSON_STRING:
        print_string(to, json_string_value(v));
        return;
    case JSON_INTEGER:
        fprintf(to, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return;
    case JSON_REAL:
        print_double(to, json_real_value(v));
        return;
    case JSON_TRUE:
    case JSON_FALSE:
        fputs(json_is_true(v) ? "true" : "false", to);
        return;
    case JSON_NULL:
        return; /* TOML has no null, so args never hold one */
    }
}

static void print_args(FILE *to, const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    if (json != NULL) {
        print_json_as_toml(to, json);
    }
    json_decref(json);
}

static void print_list_u32(FILE *to, const uint32_t *list, uint32_t count)
{
    fputc('[', to);
    for (uint32_t i = 0; i < count; i++) {
        fprintf(to, "%s%u", i > 0 ? ", " : "", list[i]);
    }
    fputc(']', to);
}

static void print_gpus(FILE *to, const struct corral_job_node *n)
{
    for (uint32_t i = 0; i < n->gpu_count; i++) {
        if (n->gpu_index[i] != i) {
            print_list_u32(to, n->gpu_index, n->gpu_count);
            return;
        }
    }
    fprintf(to, "%u", n->gpu_count);
}

static void print_devices(FILE *to, const struct option_target *t)
{
    fputc('[', to);
    for (uint32_t i = 0; i < t->job->origins->item_count[t->index]; i++) {
        fputs(i > 0 ? ", " : "", to);
        print_string(to, t->job->origins->item[t->index][i].text);
    }
    fputc(']', to);
}

static void print_strings(FILE *to, const char *const *strings)
{
    fputc('[', to);
    for (uint32_t i = 0; strings[i] != NULL; i++) {
        fputs(i > 0 ? ", " : "", to);
        print_string(to, strings[i]);
    }
    fputc(']', to);
}

static void print_set(FILE *to, const char *const *choices, uint32_t mask)
{
    const char *names[33] = {NULL};
    uint32_t count = 0;
    for (uint32_t i = 0; choices[i] != NULL; i++) {
        if ((mask & 1u << i) != 0) {
            names[count++] = choices[i];
        }
    }
    print_strings(to, names);
}

/* False when the option has no value. */
static bool print_value(FILE *to, const struct option_target *t, const struct corral_option *o)
{
    const void *field = (const char *)t->base + o->offset;
    const char *strings[CORRAL_JOB_ARGV_MAX + 1];
    uint32_t u32 = 0;
    uint64_t u64 = 0;
    double real = 0;
    char text[48];
    switch (o->type) {
    case CORRAL_OPTION_NAME:
    case CORRAL_OPTION_STRING:
    case CORRAL_OPTION_PATH:
        if (o->def == NULL && *(const char *)field == '\0') {
            return false;
        }
        print_string(to, field);
        return true;
    case CORRAL_OPTION_U32:
        memcpy(&u32, field, sizeof u32);
        fprintf(to, "%u", u32);
        return true;
    case CORRAL_OPTION_ENUM:
        memcpy(&u32, field, sizeof u32);
        fprintf(to, "\"%s\"", o->choices[u32]);
        return true;
    case CORRAL_OPTION_U64:
        memcpy(&u64, field, sizeof u64);
        fprintf(to, "%" PRIu64, u64);
        return true;
    case CORRAL_OPTION_F64:
        memcpy(&real, field, sizeof real);
        if (!isnan(real)) {
            print_double(to, real);
        }
        return !isnan(real);
    case CORRAL_OPTION_BOOL:
        fputs(*(const bool *)field ? "true" : "false", to);
        return true;
    case CORRAL_OPTION_BYTES:
        memcpy(&u64, field, sizeof u64);
        if (u64 != UINT64_MAX) {
            fprintf(to, "\"%s\"", corral_format_bytes_exact(u64, text, sizeof text));
        }
        return u64 != UINT64_MAX;
    case CORRAL_OPTION_DURATION:
        memcpy(&u64, field, sizeof u64);
        fprintf(to, "\"%s\"", corral_format_duration_exact(u64, text, sizeof text));
        return true;
    case CORRAL_OPTION_WIDTHS:
        print_list_u32(to, t->job->model.hidden, t->job->model.hidden_count);
        return true;
    case CORRAL_OPTION_GPUS:
        print_gpus(to, t->base);
        return true;
    case CORRAL_OPTION_DEVICES:
        print_devices(to, t);
        return true;
    case CORRAL_OPTION_COMMAND:
        (void)corral_job_command(t->base, strings);
        print_strings(to, strings);
        return true;
    case CORRAL_OPTION_ENVIRONMENT:
        (void)corral_job_environment(t->base, strings);
        print_strings(to, strings);
        return true;
    case CORRAL_OPTION_SET:
        memcpy(&u32, field, sizeof u32);
        print_set(to, o->choices, u32);
        return true;
    case CORRAL_OPTION_ARGS:
        print_args(to, field);
        return true;
    }
    return false;
}

/* A comment ends with its line, whatever a file is called. */
static void print_in_comment(FILE *to, const char *text)
{
    for (const char *p = text; *p != '\0'; p++) {
        fputc((unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p, to);
    }
}

static void print_origin(FILE *to, const struct corral_job *job, const struct origin *at)
{
    switch (at->kind) {
    case ORIGIN_DEFAULT:
        fputs("default", to);
        return;
    case ORIGIN_FILE:
        print_in_comment(to, job->origins->file);
        fprintf(to, ":%u", at->line);
        return;
    case ORIGIN_SET:
        fputs("--set ", to);
        print_in_comment(to, job->origins->set_text[at->set]);
        return;
    case ORIGIN_MACHINE:
        fputs("this machine", to);
        return;
    case ORIGIN_DERIVED:
        fputs("follows from others", to);
        return;
    }
}

static enum corral_status print_option(FILE *to, const struct option_target *t, const struct corral_option *o,
                                       bool origins, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *value = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&value, &bytes);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the job: out of memory");
    }
    bool has_value = print_value(f, t, o);
    if (fclose(f) != 0) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the job: out of memory");
    }
    if (!has_value) {
        if (origins) {
            fprintf(to, "# %s: %s\n", o->name, o->unset);
        }
        return CORRAL_OK;
    }
    int width = fprintf(to, "%s = %s", o->name, value);
    if (origins) {
        fprintf(to, "%*s # ", width < COMMENT_COLUMN ? COMMENT_COLUMN - width : 0, "");
        print_origin(to, t->job, &t->origins[o - corral_options]);
    }
    fputc('\n', to);
    return CORRAL_OK;
}

static enum corral_status print_section(FILE *to, const struct option_target *t, const char *section,
                                        bool origins, struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_option_count; i++) {
        if (strcmp(corral_options[i].section, section) == 0) {
            CORRAL_TRY(print_option(to, t, &corral_options[i], origins, err));
        }
    }
    return CORRAL_OK;
}

enum corral_status corral_job_print(const struct corral_job *job, bool origins, FILE *to,
                                    struct corral_error *err)
{
    /* The walk only reads; option_target is shared with the parser, which writes. */
    struct corral_job *j = (struct corral_job *)(uintptr_t)job;
    struct option_target t = {.job = j, .base = j, .origins = j->origins->option};
    CORRAL_TRY(print_section(to, &t, "", origins, err));
    for (uint32_t s = 0; s < corral_option_section_count; s++) {
        const struct corral_option_section *section = &corral_option_sections[s];
        if (section->kind == CORRAL_SECTION_TABLE) {
            fprintf(to, "\n[%s]\n", section->name);
            CORRAL_TRY(print_section(to, &t, section->name, origins, err));
        } else if (strcmp(section->name, "node") == 0) {
            for (uint32_t i = 0; i < j->node_count; i++) {
                const struct option_target n = {
                    .job = j, .base = &j->node[i], .index = i, .origins = j->origins->node_option[i]};
                fputs("\n[[node]]\n", to);
                CORRAL_TRY(print_section(to, &n, section->name, origins, err));
            }
        } else {
            for (uint32_t i = 0; i < j->partition_count; i++) {
                if (strcmp(job_partition_section(&j->partition[i]), section->name) != 0) {
                    continue;
                }
                const struct option_target p = {.job = j,
                                                .base = &j->partition[i],
                                                .index = i,
                                                .origins = j->origins->partition_option[i]};
                if (section->kind == CORRAL_SECTION_ARRAY) {
                    fputs("\n[[tenant]]\n", to);
                } else {
                    fprintf(to, "\n[partition.%s]\n", j->partition[i].name);
                }
                CORRAL_TRY(print_section(to, &p, section->name, origins, err));
            }
        }
    }
    return ferror(to) != 0 ? corral_fail(err, CORRAL_IO, "cannot write the job") : CORRAL_OK;
}

enum corral_status corral_job_text_of(const struct corral_job *job, char **out, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the job: out of memory");
    }
    enum corral_status status = corral_job_print(job, false, f, err);
    if (fclose(f) != 0) {
        return corral_fail(err, CORRAL_NOMEM, "cannot print the job: out of memory");
    }
    CORRAL_TRY(status);
    *out = CORRAL_STEAL(text);
    return CORRAL_OK;
}

/* ---- reference ---- */

static void reference_limit(FILE *to, const struct corral_option *o, double limit)
{
    char text[48];
    if (o->type == CORRAL_OPTION_BYTES) {
        fputs(corral_format_bytes_exact((uint64_t)limit, text, sizeof text), to);
    } else if (o->type == CORRAL_OPTION_DURATION) {
        fputs(corral_format_duration_exact((uint64_t)limit, text, sizeof text), to);
    } else {
        fprintf(to, "%.10g", limit);
    }
}

static void reference_range(FILE *to, const struct corral_option *o)
{
    if (o->choices != NULL) {
        for (uint32_t i = 0; o->choices[i] != NULL; i++) {
            fprintf(to, "%s`%s`", i > 0 ? ", " : "", o->choices[i]);
        }
        return;
    }
    if ((o->min == 0 && o->max == 0) || o->min <= -1e300) {
        return;
    }
    if (o->max >= 9.2e18) {
        fputs("at least ", to);
        reference_limit(to, o, o->min);
        return;
    }
    reference_limit(to, o, o->min);
    if (o->max != o->min) {
        fputs(" … ", to);
        reference_limit(to, o, o->max);
    }
}

static void reference_rows(FILE *to, const char *section)
{
    fputs("\n| key | type | default | range | |\n|---|---|---|---|---|\n", to);
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if (strcmp(o->section, section) != 0) {
            continue;
        }
        fprintf(to, "| `%s` | %s | ", o->name, corral_option_type_name(o->type));
        if (o->def != NULL) {
            fprintf(to, "`%s`", o->def);
        } else {
            fputs(o->required ? "required" : o->unset, to);
        }
        fputs(" | ", to);
        reference_range(to, o);
        fprintf(to, " | %s |\n", o->help);
    }
}

enum corral_status corral_job_reference(FILE *to, struct corral_error *err)
{
    fputs("# Job file reference\n\nPrinted by `rlctl config reference` from the option table. Strict TOML: "
          "an unknown key is an "
          "error.\nSizes carry their unit (`\"18GiB\"`, `\"64MiB\"`), durations too (`\"30s\"`, "
          "`\"250ms\"`).\n",
          to);
    reference_rows(to, "");
    for (uint32_t s = 0; s < corral_option_section_count; s++) {
        const struct corral_option_section *section = &corral_option_sections[s];
        const char *open = section->kind == CORRAL_SECTION_ARRAY ? "[[" : "[";
        const char *close = section->kind == CORRAL_SECTION_ARRAY   ? "]]"
                            : section->kind == CORRAL_SECTION_NAMED ? ".NAME]"
                                                                    : "]";
        fprintf(to, "\n## %s%s%s\n%s\n", open, section->name, close, section->help);
        reference_rows(to, section->name);
    }
    return ferror(to) != 0 ? corral_fail(err, CORRAL_IO, "cannot write the reference") : CORRAL_OK;
}
