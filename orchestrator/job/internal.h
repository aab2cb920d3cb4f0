/* Shared by the files of this folder only. */
#ifndef CORRAL_ORCHESTRATOR_JOB_INTERNAL_H
#define CORRAL_ORCHESTRATOR_JOB_INTERNAL_H

#include "base/toml.h"
#include "orchestrator/job/options.h"

#define CORRAL_JOB_ITEMS_MAX 64 /* strings in one `gpus` list */

enum origin_kind { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_SET, ORIGIN_MACHINE, ORIGIN_DERIVED };

struct origin {
    enum origin_kind kind;
    uint32_t line, column; /* ORIGIN_FILE */
    uint32_t set;          /* ORIGIN_SET: into sets */
};

/* One string of a `gpus` list, kept until every node is known. */
struct device_item {
    char text[256];
    struct origin at;
};

struct corral_job_origins {
    char file[CORRAL_JOB_TEXT_MAX]; /* as the user wrote it */
    const char *const *sets;        /* only during load */
    uint32_t set_count;
    char (*set_text)[160]; /* the --set arguments, cut, for printing */
    /* By row of the option table. */
    struct origin option[CORRAL_OPTIONS_MAX];
    struct origin node_option[CORRAL_JOB_NODES_MAX][CORRAL_OPTIONS_MAX];
    struct origin partition_option[CORRAL_JOB_PARTITIONS_MAX][CORRAL_OPTIONS_MAX];
    struct origin node[CORRAL_JOB_NODES_MAX];           /* its [[node]] */
    struct origin partition[CORRAL_JOB_PARTITIONS_MAX]; /* its header */
    uint32_t item_count[CORRAL_JOB_PARTITIONS_MAX];
    struct device_item item[CORRAL_JOB_PARTITIONS_MAX][CORRAL_JOB_ITEMS_MAX];
    uint8_t device_item[CORRAL_JOB_PARTITIONS_MAX]
                       [CORRAL_JOB_PARTITION_DEVICES_MAX]; /* which item named the device */
};

/* What one value belongs to: the struct its field is in, and how to name it in an error. */
struct option_target {
    struct corral_job *job;
    void *base;                            /* the job, a node or a partition */
    uint32_t index;                        /* of the node or partition */
    struct origin *origins;                /* of that object, by row */
    char prefix[CORRAL_JOB_NAME_MAX + 16]; /* "job.", "partition.trainer.", "" */
};

CORRAL_DEFINE_CLEANUP(struct corral_toml_doc, corral_toml_destroy)

struct option_target job_target_job(struct corral_job *job, const char *section);
struct option_target job_target_node(struct corral_job *job, uint32_t index);
struct option_target job_target_partition(struct corral_job *job, uint32_t index);
struct option_target job_target_tenant(struct corral_job *job, uint32_t index); /* of the partition it is */
/* "partition" or "tenant", as the file calls it. */
const char *job_partition_section(const struct corral_job_partition *p);
/* A key that is not in `section` (shown with `prefix`), and one that is not at the top; `below` is what follows it, or NULL. */
enum corral_status job_unknown_key(const struct corral_job *job, const char *section, const char *prefix,
                                   const char *key, const struct origin *at, struct corral_error *err);
enum corral_status job_unknown_section(const struct corral_job *job, const char *key, const char *below,
                                       const struct origin *at, struct corral_error *err);
/* One --set argument, the index-th. */
enum corral_status job_apply_set(struct corral_job *job, uint32_t index, const char *text,
                                 struct corral_error *err);

/* "FILE:LINE:COL: error: …" or "--set …: error: …"; always CORRAL_INVALID. */
enum corral_status job_error(const struct corral_job *job, const struct origin *at, struct corral_error *err,
                             const char *fmt, ...) CORRAL_PRINTF(4, 5);
/* Check one value and write its field. */
enum corral_status job_value_set(const struct option_target *t, const struct corral_option *o,
                                 const struct corral_toml_node *value, const struct origin *at,
                                 struct corral_error *err);
/* The value a missing option has: nothing to parse when the row has no default. */
void job_value_clear(void *base, const struct corral_option *o);
/* args: a TOML table as JSON text. */
enum corral_status job_args_json(const struct corral_job *job, const char *key,
                                 const struct corral_toml_node *table, const struct origin *at, char *out,
                                 size_t out_bytes, struct corral_error *err);
bool job_name_valid(const char *name); /* a-z 0-9 -, starts with a letter or digit, fits */

/* Nodes and partitions into devices; cross checks; derived values. In this order, after every value is in. */
enum corral_status job_resolve_devices(struct corral_job *job, const struct corral_inventory *machine,
                                       struct corral_error *err);
enum corral_status job_check(struct corral_job *job, struct corral_error *err);
/* Whether load must look at the machine: no [[node]], and a model that GPUs can train. */
bool job_wants_machine(const struct corral_job *job);

const struct origin *job_origin(const struct corral_job *job, const char *section, const char *name);

#endif
