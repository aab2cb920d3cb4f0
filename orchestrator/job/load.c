/* From text to a job: defaults, then the file, then --set, then what must hold over several values. */
#include "base/file.h"
#include "orchestrator/inventory/inventory.h"
#include "orchestrator/job/internal.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define SETS_MAX 256

/* ---- defaults: their TOML text goes through the same code as the file ---- */

static enum corral_status defaults_parse(struct corral_toml_doc **out, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot read the job: out of memory");
    }
    const char *section = "";
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if (strcmp(section, o->section) != 0) {
            section = o->section;
            fprintf(f, "[%s]\n", section);
        }
        if (o->def != NULL) {
            fprintf(f, "%s = %s\n", o->name, o->def);
        }
    }
    if (fclose(f) != 0) {
        return corral_fail(err, CORRAL_NOMEM, "cannot read the job: out of memory");
    }
    return corral_toml_parse(out, "option table", text, bytes, err);
}

static enum corral_status defaults_apply(const struct corral_toml_doc *defaults, const char *section,
                                         const struct option_target *t, struct corral_error *err)
{
    const struct origin at = {.kind = ORIGIN_DEFAULT};
    const struct corral_toml_node *root = corral_toml_root(defaults);
    const struct corral_toml_node *table = section[0] != '\0' ? corral_toml_table_get(root, section) : root;
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if (strcmp(o->section, section) != 0) {
            continue;
        }
        job_value_clear(t->base, o);
        const struct corral_toml_node *v = o->def != NULL ? corral_toml_table_get(table, o->name) : NULL;
        if (v != NULL) {
            CORRAL_TRY(job_value_set(t, o, v, &at, err));
        }
    }
    return CORRAL_OK;
}

/* ---- the file ---- */

static struct origin key_origin(const struct corral_toml_node *table, uint32_t i)
{
    return (struct origin){.kind = ORIGIN_FILE,
                           .line = corral_toml_table_key_line(table, i),
                           .column = corral_toml_table_key_column(table, i)};
}

static struct origin value_origin(const struct corral_toml_node *v)
{
    return (struct origin){.kind = ORIGIN_FILE, .line = corral_toml_line(v), .column = corral_toml_column(v)};
}

static enum corral_status read_keys(const char *section, const struct option_target *t,
                                    const struct corral_toml_node *table, struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_toml_table_size(table); i++) {
        const char *key = corral_toml_table_key(table, i);
        const struct corral_option *o = corral_option_find(section, key);
        if (o == NULL) {
            struct origin at = key_origin(table, i);
            return job_unknown_key(t->job, section, t->prefix, key, &at, err);
        }
        const struct corral_toml_node *v = corral_toml_table_at(table, i);
        struct origin at = value_origin(v);
        CORRAL_TRY(job_value_set(t, o, v, &at, err));
    }
    return CORRAL_OK;
}

static enum corral_status read_nodes(struct corral_job *job, const struct corral_toml_doc *defaults,
                                     const struct corral_toml_node *v, const struct origin *at,
                                     struct corral_error *err)
{
    uint32_t count = corral_toml_array_size(v);
    if (count == 0 || corral_toml_kind(corral_toml_array_at(v, 0)) != CORRAL_TOML_TABLE) {
        return job_error(job, at, err, "`node` must be written as [[node]]");
    }
    if (count > CORRAL_JOB_NODES_MAX) {
        return job_error(job, at, err, "more than %d nodes", CORRAL_JOB_NODES_MAX);
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_toml_node *table = corral_toml_array_at(v, i);
        job->origins->node[i] = value_origin(table);
        if (corral_toml_kind(table) != CORRAL_TOML_TABLE) {
            return job_error(job, at, err, "`node` must be written as [[node]]");
        }
        const struct option_target t = job_target_node(job, i);
        CORRAL_TRY(defaults_apply(defaults, "node", &t, err));
        job->node_count = i + 1;
        CORRAL_TRY(read_keys("node", &t, table, err));
        for (uint32_t k = 0; k < i; k++) {
            if (strcmp(job->node[k].name, job->node[i].name) == 0 && job->node[i].name[0] != '\0') {
                return job_error(job, &job->origins->node[i], err, "node `%s` is already defined on line %u",
                                 job->node[i].name, job->origins->node[k].line);
            }
        }
    }
    return CORRAL_OK;
}

static enum corral_status read_partitions(struct corral_job *job, const struct corral_toml_doc *defaults,
                                          const struct corral_toml_node *v, struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_toml_table_size(v); i++) {
        struct origin at = key_origin(v, i);
        const char *name = corral_toml_table_key(v, i);
        const struct corral_toml_node *table = corral_toml_table_at(v, i);
        if (corral_toml_kind(table) != CORRAL_TOML_TABLE) {
            return job_error(job, &at, err, "`partition.%.60s` must be a table: write [partition.NAME]",
                             name);
        }
        if (!job_name_valid(name)) {
            return job_error(job, &at, err,
                             "partition name \"%.60s\" must be 1 to %d lower-case letters, digits and dashes",
                             name, CORRAL_JOB_NAME_MAX - 8);
        }
        if (i >= CORRAL_JOB_PARTITIONS_MAX) {
            return job_error(job, &at, err, "more than %d partitions and tenants", CORRAL_JOB_PARTITIONS_MAX);
        }
        strcpy(job->partition[i].name, name);
        job->origins->partition[i] = at;
        const struct option_target t = job_target_partition(job, i);
        CORRAL_TRY(defaults_apply(defaults, "partition", &t, err));
        job->partition_count = i + 1;
        CORRAL_TRY(read_keys("partition", &t, table, err));
    }
    return CORRAL_OK;
}

/* A tenant is a partition of its own kind; partitions have been read. */
static enum corral_status read_tenants(struct corral_job *job, const struct corral_toml_doc *defaults,
                                       const struct corral_toml_node *v, const struct origin *at,
                                       struct corral_error *err)
{
    uint32_t count = corral_toml_kind(v) == CORRAL_TOML_ARRAY ? corral_toml_array_size(v) : 0;
    if (count == 0) {
        return job_error(job, at, err, "`tenant` must be written as [[tenant]]");
    }
    for (uint32_t i = 0; i < count; i++) {
        const struct corral_toml_node *table = corral_toml_array_at(v, i);
        const uint32_t p = job->partition_count;
        struct origin where = value_origin(table);
        if (corral_toml_kind(table) != CORRAL_TOML_TABLE) {
            return job_error(job, at, err, "`tenant` must be written as [[tenant]]");
        }
        if (p >= CORRAL_JOB_PARTITIONS_MAX) {
            return job_error(job, &where, err, "more than %d partitions and tenants",
                             CORRAL_JOB_PARTITIONS_MAX);
        }
        job->origins->partition[p] = where;
        job->partition[p].role = CORRAL_ROLE_TENANT;
        job->partition[p].shared = true;
        job->partition[p].workers_per_device = 1;
        const struct option_target t = job_target_tenant(job, p);
        CORRAL_TRY(defaults_apply(defaults, "tenant", &t, err));
        job->partition_count = p + 1;
        CORRAL_TRY(read_keys("tenant", &t, table, err));
    }
    return CORRAL_OK;
}

static enum corral_status read_section(struct corral_job *job, const struct corral_toml_doc *defaults,
                                       const struct corral_option_section *section,
                                       const struct corral_toml_node *v, const struct origin *at,
                                       struct corral_error *err)
{
    if (strcmp(section->name, "tenant") == 0) {
        return read_tenants(job, defaults, v, at, err);
    }
    if (section->kind == CORRAL_SECTION_ARRAY) {
        return read_nodes(job, defaults, v, at, err);
    }
    if (corral_toml_kind(v) != CORRAL_TOML_TABLE) {
        return job_error(job, at, err, "`%s` must be a table: write [%s%s]", section->name, section->name,
                         section->kind == CORRAL_SECTION_NAMED ? ".NAME" : "");
    }
    if (section->kind == CORRAL_SECTION_NAMED) {
        return read_partitions(job, defaults, v, err);
    }
    const struct option_target t = job_target_job(job, section->name);
    return read_keys(section->name, &t, v, err);
}

static enum corral_status read_root(struct corral_job *job, const struct corral_toml_doc *defaults,
                                    const struct corral_toml_node *root, struct corral_error *err)
{
    const struct option_target top = job_target_job(job, "");
    const struct corral_toml_node *tenants = NULL; /* after the partitions, wherever they stand */
    struct origin tenants_at = {.kind = ORIGIN_FILE};
    for (uint32_t i = 0; i < corral_toml_table_size(root); i++) {
        const char *key = corral_toml_table_key(root, i);
        const struct corral_toml_node *v = corral_toml_table_at(root, i);
        struct origin at = key_origin(root, i);
        const struct corral_option *o = corral_option_find("", key);
        if (o != NULL) {
            at = value_origin(v);
            CORRAL_TRY(job_value_set(&top, o, v, &at, err));
            continue;
        }
        const struct corral_option_section *section = corral_option_section_find(key);
        if (section == NULL) {
            return job_unknown_section(job, key, corral_toml_table_key(v, 0), &at, err);
        }
        if (strcmp(key, "tenant") == 0) {
            tenants = v;
            tenants_at = at;
            continue;
        }
        CORRAL_TRY(read_section(job, defaults, section, v, &at, err));
    }
    return tenants == NULL
               ? CORRAL_OK
               : read_section(job, defaults, corral_option_section_find("tenant"), tenants, &tenants_at, err);
}

/* ---- what is missing ---- */

static enum corral_status check_required(const struct corral_job *job, const char *section,
                                         const struct option_target *t, const struct origin *where,
                                         struct corral_error *err)
{
    for (uint32_t i = 0; i < corral_option_count; i++) {
        const struct corral_option *o = &corral_options[i];
        if (o->required && strcmp(o->section, section) == 0 && t->origins[i].kind == ORIGIN_DEFAULT) {
            return job_error(job, where, err, "missing key `%s%s`", t->prefix, o->name);
        }
    }
    return CORRAL_OK;
}

static enum corral_status check_all_required(struct corral_job *job, const struct corral_toml_node *root,
                                             struct corral_error *err)
{
    const struct origin top = {.kind = ORIGIN_FILE, .line = 1, .column = 1};
    struct option_target t = job_target_job(job, "");
    CORRAL_TRY(check_required(job, "", &t, &top, err));
    for (uint32_t i = 0; i < corral_option_section_count; i++) {
        if (corral_option_sections[i].kind != CORRAL_SECTION_TABLE) {
            continue;
        }
        const struct corral_toml_node *table = corral_toml_table_get(root, corral_option_sections[i].name);
        const struct origin where = table != NULL ? value_origin(table) : top;
        t = job_target_job(job, corral_option_sections[i].name);
        CORRAL_TRY(check_required(job, corral_option_sections[i].name, &t, &where, err));
    }
    for (uint32_t i = 0; i < job->node_count; i++) {
        t = job_target_node(job, i);
        CORRAL_TRY(check_required(job, "node", &t, &job->origins->node[i], err));
    }
    for (uint32_t i = 0; i < job->partition_count; i++) {
        const bool tenant = job->partition[i].role == CORRAL_ROLE_TENANT;
        t = tenant ? job_target_tenant(job, i) : job_target_partition(job, i);
        CORRAL_TRY(
            check_required(job, tenant ? "tenant" : "partition", &t, &job->origins->partition[i], err));
    }
    return CORRAL_OK;
}

/* ---- load ---- */

void corral_job_destroy(struct corral_job *job)
{
    if (job != NULL && job->origins != NULL) {
        free(job->origins->set_text);
        free(job->origins);
    }
    free(job);
}

static enum corral_status job_create(const struct corral_job_text *source, struct corral_job **out,
                                     struct corral_error *err)
{
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = calloc(1, sizeof *job);
    if (job != NULL) {
        job->origins = calloc(1, sizeof *job->origins);
    }
    if (job != NULL && job->origins != NULL) {
        job->origins->set_text = calloc(source->set_count + 1u, sizeof *job->origins->set_text);
    }
    if (job == NULL || job->origins == NULL || job->origins->set_text == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot read %s: out of memory", source->name);
    }
    snprintf(job->origins->file, sizeof job->origins->file, "%s", source->name);
    job->origins->set_count = source->set_count;
    for (uint32_t i = 0; i < source->set_count; i++) {
        snprintf(job->origins->set_text[i], sizeof *job->origins->set_text, "%s", source->sets[i]);
    }
    if (source->folder != NULL) {
        if (strlen(source->folder) >= sizeof job->folder) {
            return corral_fail(err, CORRAL_INVALID, "the path of %s is too long", source->name);
        }
        strcpy(job->folder, source->folder);
    }
    *out = CORRAL_STEAL(job);
    return CORRAL_OK;
}

/* Everything but the machine: nodes and partitions are still text. */
static enum corral_status job_read(const struct corral_job_text *source, struct corral_job **out,
                                   struct corral_error *err)
{
    if (source->set_count > SETS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "more than %d --set arguments", SETS_MAX);
    }
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_CLEANUP(corral_toml_destroyp) struct corral_toml_doc *defaults = NULL;
    CORRAL_CLEANUP(corral_toml_destroyp) struct corral_toml_doc *doc = NULL;
    CORRAL_TRY(job_create(source, &job, err));
    CORRAL_TRY(defaults_parse(&defaults, err));
    for (uint32_t i = 0; i < corral_option_section_count; i++) {
        if (corral_option_sections[i].kind == CORRAL_SECTION_TABLE) {
            const struct option_target t = job_target_job(job, corral_option_sections[i].name);
            CORRAL_TRY(defaults_apply(defaults, corral_option_sections[i].name, &t, err));
        }
    }
    CORRAL_TRY(corral_toml_parse(&doc, source->name, source->text, source->bytes, err));
    CORRAL_TRY(read_root(job, defaults, corral_toml_root(doc), err));
    for (uint32_t i = 0; i < source->set_count; i++) {
        CORRAL_TRY(job_apply_set(job, i, source->sets[i], err));
    }
    CORRAL_TRY(check_all_required(job, corral_toml_root(doc), err));
    *out = CORRAL_STEAL(job);
    return CORRAL_OK;
}

static enum corral_status job_finish(struct corral_job *job, const struct corral_inventory *machine,
                                     struct corral_error *err)
{
    CORRAL_TRY(job_resolve_devices(job, machine, err));
    return job_check(job, err);
}

enum corral_status corral_job_load_text(const struct corral_job_text *source, struct corral_job **out,
                                        struct corral_error *err)
{
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    CORRAL_TRY(job_read(source, &job, err));
    CORRAL_TRY(job_finish(job, source->machine, err));
    *out = CORRAL_STEAL(job);
    return CORRAL_OK;
}

enum corral_status corral_job_load(const char *path, const char *const *sets, uint32_t set_count,
                                   struct corral_job **out, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes = 0;
    CORRAL_TRY(corral_file_read(path, CORRAL_TOML_FILE_BYTES_MAX, &text, &bytes, err));
    char full[PATH_MAX];
    if (realpath(path, full) == NULL) {
        return corral_fail_sys(err, errno, "cannot resolve the path of %s", path);
    }
    char folder[PATH_MAX];
    strcpy(folder, full);
    char *slash = strrchr(folder, '/');
    slash[slash == folder ? 1 : 0] = '\0';
    CORRAL_CLEANUP(corral_job_destroyp) struct corral_job *job = NULL;
    const struct corral_job_text source = {
        .name = path, .text = text, .bytes = bytes, .folder = folder, .sets = sets, .set_count = set_count};
    CORRAL_TRY(job_read(&source, &job, err));
    if (strlen(full) >= sizeof job->path) {
        return corral_fail(err, CORRAL_INVALID, "the path of %s is too long", path);
    }
    strcpy(job->path, full);
    CORRAL_AUTO_FREE struct corral_inventory *machine = NULL;
    if (job_wants_machine(job)) {
        machine = malloc(sizeof *machine);
        if (machine == NULL) {
            return corral_fail(err, CORRAL_NOMEM, "cannot look at this machine: out of memory");
        }
        CORRAL_TRY(corral_inventory_read(machine, err));
    }
    CORRAL_TRY(job_finish(job, machine, err));
    *out = CORRAL_STEAL(job);
    return CORRAL_OK;
}
