/* The option table: one row per key of the job file. Everything that knows the keys reads it: the parser, config show, the reference, completion. */
#ifndef CORRAL_ORCHESTRATOR_JOB_OPTIONS_H
#define CORRAL_ORCHESTRATOR_JOB_OPTIONS_H

#include "orchestrator/job/job.h"

#define CORRAL_OPTIONS_MAX 192

enum corral_option_type {
    CORRAL_OPTION_NAME,        /* a-z 0-9 -, not empty; char[] */
    CORRAL_OPTION_STRING,      /* char[] */
    CORRAL_OPTION_PATH,        /* char[], made absolute from the job file's folder */
    CORRAL_OPTION_U32,         /* uint32_t */
    CORRAL_OPTION_U64,         /* uint64_t */
    CORRAL_OPTION_F64,         /* double; unset = NaN */
    CORRAL_OPTION_BOOL,        /* bool */
    CORRAL_OPTION_BYTES,       /* uint64_t; unset = UINT64_MAX */
    CORRAL_OPTION_DURATION,    /* uint64_t nanoseconds */
    CORRAL_OPTION_ENUM,        /* a C enum: index into choices */
    CORRAL_OPTION_WIDTHS,      /* list of integers: job->model.hidden */
    CORRAL_OPTION_GPUS,        /* count or list of indices: node->gpu_count, gpu_index */
    CORRAL_OPTION_DEVICES,     /* list of "NODE:0-3": partition->device */
    CORRAL_OPTION_COMMAND,     /* list of strings: partition->command */
    CORRAL_OPTION_ENVIRONMENT, /* list of "KEY=VALUE": partition->environment */
    CORRAL_OPTION_SET,         /* list of choices: uint32_t bit mask */
    CORRAL_OPTION_ARGS,        /* inline table: char[] of JSON */
};

struct corral_option {
    const char *
        section; /* "" for top-level keys, "node" for [[node]], "partition" for [partition.NAME], "tenant" for [[tenant]] */
    const char *name;
    enum corral_option_type type;
    bool required;
    const char *def;            /* TOML text; NULL = required, or none */
    const char *unset;          /* what happens without a value, when def is NULL and it is not required */
    double min, max;            /* numbers, bytes, nanoseconds, list elements */
    const char *const *choices; /* enums: NULL-terminated */
    const char *help;
    size_t offset, size; /* of the field in struct corral_job, corral_job_node or corral_job_partition */
};

enum corral_section_kind { CORRAL_SECTION_TABLE, CORRAL_SECTION_ARRAY, CORRAL_SECTION_NAMED };
struct corral_option_section {
    const char *name;
    enum corral_section_kind kind;
    const char *help;
};

extern const struct corral_option corral_options[];
extern const uint32_t corral_option_count;
extern const struct corral_option_section corral_option_sections[];
extern const uint32_t corral_option_section_count;

/* NULL when there is none. */
const struct corral_option *corral_option_find(const char *section, const char *name);
const struct corral_option_section *corral_option_section_find(const char *name);
const char *
corral_option_type_name(enum corral_option_type type); /* for the reference: "size", "duration", … */

#endif
