/* Which struct a key fills, and what was probably meant by one that does not exist. */
#include "base/text.h"
#include "orchestrator/job/internal.h"
#include <string.h>

#define CANDIDATES_MAX CORRAL_OPTIONS_MAX

struct option_target job_target_job(struct corral_job *job, const char *section)
{
    struct option_target t = {.job = job, .base = job, .origins = job->origins->option};
    if (section[0] != '\0') {
        snprintf(t.prefix, sizeof t.prefix, "%s.", section);
    }
    return t;
}

struct option_target job_target_node(struct corral_job *job, uint32_t index)
{
    struct option_target t = {
        .job = job, .base = &job->node[index], .index = index, .origins = job->origins->node_option[index]};
    snprintf(t.prefix, sizeof t.prefix, "node.");
    return t;
}

struct option_target job_target_partition(struct corral_job *job, uint32_t index)
{
    struct option_target t = {.job = job,
                              .base = &job->partition[index],
                              .index = index,
                              .origins = job->origins->partition_option[index]};
    snprintf(t.prefix, sizeof t.prefix, "partition.%s.", job->partition[index].name);
    return t;
}

struct option_target job_target_tenant(struct corral_job *job, uint32_t index)
{
    struct option_target t = job_target_partition(job, index);
    snprintf(t.prefix, sizeof t.prefix, "tenant.");
    return t;
}

const char *job_partition_section(const struct corral_job_partition *p)
{
    return p->role == CORRAL_ROLE_TENANT ? "tenant" : "partition";
}

/* ---- names that do not exist ---- */

/* The same key in another section is the likeliest slip when nothing in this one is near. */
static const struct corral_option *same_name_elsewhere(const char *name)
{
    for (uint32_t i = 0; i < corral_option_count; i++) {
        if (strcmp(corral_options[i].name, name) == 0 && corral_options[i].section[0] != '\0') {
            return &corral_options[i];
        }
    }
    return NULL;
}

enum corral_status job_unknown_key(const struct corral_job *job, const char *section, const char *prefix,
                                   const char *key, const struct origin *at, struct corral_error *err)
{
    const char *names[CANDIDATES_MAX] = {NULL};
    uint32_t count = 0;
    for (uint32_t i = 0; i < corral_option_count; i++) {
        if (strcmp(corral_options[i].section, section) == 0) {
            names[count++] = corral_options[i].name;
        }
    }
    const char *near = corral_nearest(key, names, count);
    if (near != NULL) {
        return job_error(job, at, err, "unknown key `%s%.60s`; did you mean `%s%s`?", prefix, key, prefix,
                         near);
    }
    const struct corral_option *other = same_name_elsewhere(key);
    if (other != NULL) {
        return job_error(job, at, err, "unknown key `%s%.60s`; did you mean `%s.%s%s`?", prefix, key,
                         other->section, strcmp(other->section, "partition") == 0 ? "NAME." : "",
                         other->name);
    }
    return job_error(job, at, err, "unknown key `%s%.60s`", prefix, key);
}

/* A wrong name at the top: `[partion.trainer]` is shown with what stands below it. */
enum corral_status job_unknown_section(const struct corral_job *job, const char *key, const char *below,
                                       const struct origin *at, struct corral_error *err)
{
    const char *names[CANDIDATES_MAX] = {NULL};
    uint32_t count = 0;
    for (uint32_t i = 0; i < corral_option_section_count; i++) {
        names[count++] = corral_option_sections[i].name;
    }
    names[count++] = "schema";
    const char *near = corral_nearest(key, names, count);
    bool named = near != NULL && strcmp(near, "partition") == 0 && below != NULL;
    const char *dot = named ? "." : "", *tail = named ? below : "";
    if (near != NULL) {
        return job_error(job, at, err, "unknown key `%.60s%s%.40s`; did you mean `%s%s%.40s`?", key, dot,
                         tail, near, dot, tail);
    }
    const struct corral_option *other = same_name_elsewhere(key);
    if (other != NULL) {
        return job_error(job, at, err, "unknown key `%.60s`; did you mean `%s.%s%s`?", key, other->section,
                         strcmp(other->section, "partition") == 0 ? "NAME." : "", other->name);
    }
    return job_error(job, at, err, "unknown key `%.60s`", key);
}
