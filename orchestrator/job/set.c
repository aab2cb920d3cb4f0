/* --set a.b=value: the path to an option, and its value as TOML or as bare text. */
#include "base/text.h"
#include "orchestrator/job/internal.h"
#include <ctype.h>
#include <string.h>

#define SET_BYTES_MAX 4096

struct set_path {
    char part[3][64];
    uint32_t count;
    const char *value;
};

static bool set_split(const char *text, struct set_path *out)
{
    const char *equals = strchr(text, '=');
    if (equals == NULL || strlen(text) > SET_BYTES_MAX) {
        return false;
    }
    const char *p = text;
    for (out->count = 0; out->count < 3; out->count++) {
        size_t n = strcspn(p, ".=");
        if (n == 0 || n >= sizeof out->part[0]) {
            return false;
        }
        memcpy(out->part[out->count], p, n);
        out->part[out->count][n] = '\0';
        p += n + 1;
        if (p[-1] == '=') {
            out->count++;
            out->value = p;
            return true;
        }
    }
    return false;
}

static enum corral_status set_target(struct corral_job *job, const struct set_path *path,
                                     const struct origin *at, struct option_target *t, const char **section,
                                     const char **key, struct corral_error *err)
{
    if (path->count == 1) {
        *t = job_target_job(job, "");
        *section = "";
        *key = path->part[0];
        return corral_option_find("", *key) != NULL ? CORRAL_OK
                                                    : job_unknown_section(job, *key, NULL, at, err);
    }
    const struct corral_option_section *s = corral_option_section_find(path->part[0]);
    if (s == NULL) {
        return job_unknown_section(job, path->part[0], path->count == 3 ? path->part[1] : NULL, at, err);
    }
    *section = s->name;
    *key = path->part[path->count - 1];
    if (s->kind == CORRAL_SECTION_TABLE) {
        *t = job_target_job(job, s->name);
        return path->count == 2
                   ? CORRAL_OK
                   : job_error(job, at, err, "unknown key `%s.%s.%s`", s->name, path->part[1], path->part[2]);
    }
    bool node = strcmp(s->name, "node") == 0;
    if (path->count != 3) {
        return job_error(job, at, err, "write %s.NAME.KEY=VALUE", s->name);
    }
    const char *names[CORRAL_JOB_NODES_MAX + CORRAL_JOB_PARTITIONS_MAX] = {NULL};
    uint32_t count = 0;
    for (uint32_t i = 0; i < (node ? job->node_count : job->partition_count); i++) {
        if (!node && strcmp(job_partition_section(&job->partition[i]), s->name) != 0) {
            continue;
        }
        const char *name = node ? job->node[i].name : job->partition[i].name;
        if (strcmp(name, path->part[1]) == 0) {
            *t = node                                           ? job_target_node(job, i)
                 : job->partition[i].role == CORRAL_ROLE_TENANT ? job_target_tenant(job, i)
                                                                : job_target_partition(job, i);
            return CORRAL_OK;
        }
        names[count++] = name;
    }
    const char *near = corral_nearest(path->part[1], names, count);
    return job_error(job, at, err, "no %s is called `%s`%s%s%s", s->name, path->part[1],
                     near != NULL ? "; did you mean `" : "", near != NULL ? near : "",
                     near != NULL ? "`?" : "");
}

/* Options whose value is text take the argument as it stands, so nobody has to quote twice in a shell. */
static bool takes_bare_text(enum corral_option_type type)
{
    switch (type) {
    case CORRAL_OPTION_NAME:
    case CORRAL_OPTION_STRING:
    case CORRAL_OPTION_PATH:
    case CORRAL_OPTION_BYTES:
    case CORRAL_OPTION_DURATION:
    case CORRAL_OPTION_ENUM:
    case CORRAL_OPTION_DEVICES:
        return true;
    default:
        return false;
    }
}

static enum corral_status set_value_parse(const struct corral_job *job, const struct corral_option *o,
                                          const char *value, const struct origin *at,
                                          struct corral_toml_doc **out, struct corral_error *err)
{
    char text[2 * SET_BYTES_MAX + 16];
    if (takes_bare_text(o->type) && value[0] != '"' && value[0] != '\'' && value[0] != '[' &&
        value[0] != '{') {
        char *p = stpcpy(text, "x = \"");
        for (const char *v = value; *v != '\0'; v++) {
            if (iscntrl((unsigned char)*v)) {
                return job_error(job, at, err, "the value holds a control character");
            }
            if (*v == '"' || *v == '\\') {
                *p++ = '\\';
            }
            *p++ = *v;
        }
        strcpy(p, "\"");
    } else {
        snprintf(text, sizeof text, "x = %s", value);
    }
    struct corral_error why;
    CORRAL_CLEANUP(corral_toml_destroyp) struct corral_toml_doc *doc = NULL;
    if (corral_toml_parse(&doc, "value", text, strlen(text), &why) != CORRAL_OK ||
        corral_toml_table_size(corral_toml_root(doc)) != 1 ||
        corral_toml_table_get(corral_toml_root(doc), "x") == NULL) {
        return job_error(job, at, err, "`%.60s` is not a value; write it as in the file", value);
    }
    *out = CORRAL_STEAL(doc);
    return CORRAL_OK;
}

enum corral_status job_apply_set(struct corral_job *job, uint32_t index, const char *text,
                                 struct corral_error *err)
{
    const struct origin at = {.kind = ORIGIN_SET, .set = index};
    struct set_path path;
    if (!set_split(text, &path)) {
        return job_error(job, &at, err, "write SECTION.KEY=VALUE");
    }
    struct option_target t;
    const char *section = NULL, *key = NULL;
    CORRAL_TRY(set_target(job, &path, &at, &t, &section, &key, err));
    const struct corral_option *o = corral_option_find(section, key);
    if (o == NULL) {
        return job_unknown_key(job, section, t.prefix, key, &at, err);
    }
    CORRAL_CLEANUP(corral_toml_destroyp) struct corral_toml_doc *doc = NULL;
    CORRAL_TRY(set_value_parse(job, o, path.value, &at, &doc, err));
    return job_value_set(&t, o, corral_toml_table_get(corral_toml_root(doc), "x"), &at, err);
}
