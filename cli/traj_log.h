/* The trajectory logs of a run (RUN/traj/rank-N/) as one list of decoded records, with filters. For `rlctl traj` only; nothing here writes. */
#ifndef CORRAL_CLI_TRAJ_LOG_H
#define CORRAL_CLI_TRAJ_LOG_H

#include "base/json.h"
#include "cli/cli.h"
#include <corral/trajectory.h>
#include <stdint.h>

#define TRAJ_RANKS_MAX 1024

struct traj_filter { /* UINT64_MAX, NULL: any */
    const char *env;
    uint64_t rank, worker, epoch, sequence, episode, position, group;
    uint64_t version_from, version_to; /* records with any action in between; 0 and UINT64_MAX: all */
};
#define TRAJ_FILTER_ANY                           \
    ((struct traj_filter){.rank = UINT64_MAX,     \
                          .worker = UINT64_MAX,   \
                          .epoch = UINT64_MAX,    \
                          .sequence = UINT64_MAX, \
                          .episode = UINT64_MAX,  \
                          .position = UINT64_MAX, \
                          .group = UINT64_MAX,    \
                          .version_to = UINT64_MAX})

struct traj_entry { /* until the next call */
    uint32_t rank;
    uint64_t position, bytes;
    const struct corral_traj_record *record;
    const struct corral_traj_view *view;
};

struct traj_log;

/* `last`: begin so many records before the end of each rank's log; UINT64_MAX: at its beginning. */
enum corral_status traj_log_open(struct traj_log **out, const char *run_path,
                                 const struct traj_filter *filter, uint64_t last, struct corral_error *err);
void traj_log_close(struct traj_log *l);
/* Rank by rank. CORRAL_AGAIN: the end, for now. */
enum corral_status traj_log_next(struct traj_log *l, struct traj_entry *out, struct corral_error *err);
/* Ranks that have begun to log since are looked for. */
enum corral_status traj_log_look_again(struct traj_log *l, struct corral_error *err);
uint32_t traj_log_ranks(const struct traj_log *l);
/* "RUN/traj/rank-N" of the i-th rank that has a log. */
const char *traj_log_folder(const struct traj_log *l, uint32_t i);

/* What a record says about itself, tensors without their values. */
json_t *traj_entry_json(const struct traj_entry *e);

/* traj_columns.c, traj_file.c: one file of whole columns. */
enum traj_format { TRAJ_JSONL, TRAJ_SAFETENSORS, TRAJ_NPZ };
struct traj_columns;
/* Columns grow in unnamed files beside `path`, which appears when all is there. */
enum corral_status traj_columns_open(struct traj_columns **out, const char *path, struct corral_error *err);
void traj_columns_close(struct traj_columns *c);
enum corral_status traj_columns_add(struct traj_columns *c, const struct traj_entry *e,
                                    struct corral_error *err);
enum corral_status traj_columns_write(struct traj_columns *c, enum traj_format format,
                                      struct corral_error *err);

/* The subcommands; argv[0] is their name. */
int traj_tail(int argc, char **argv);
int traj_show(int argc, char **argv);
int traj_stats(int argc, char **argv);
int traj_export(int argc, char **argv);

/* Options that all four share. Returns an exit code, or -1 to go on. */
struct traj_arguments {
    const char *command, *dir, *run, *output;
    struct traj_filter filter;
    uint64_t lines, row;
    enum traj_format format;
    bool json, follow, everything, tensors;
};
int traj_parse(int argc, char **argv, const char *accepted, struct traj_arguments *out);
/* Finds the run and opens its logs. Returns an exit code, or -1 to go on. */
int traj_open(const struct traj_arguments *a, uint64_t last, struct traj_log **out);

#endif
