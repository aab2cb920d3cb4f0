/* Columns of an export while they grow: traj_columns.c fills them, traj_file.c writes the file. */
#ifndef CORRAL_CLI_TRAJ_COLUMNS_H
#define CORRAL_CLI_TRAJ_COLUMNS_H

#include "cli/traj_log.h"
#include <limits.h>
#include <stdio.h>

#define TRAJ_COLUMN_NAME_MAX 160
#define TRAJ_COLUMNS_MAX 256

/* One value per record, or (`ragged`) a part of any shape. */
struct traj_column {
    char name[TRAJ_COLUMN_NAME_MAX];
    uint32_t dtype; /* enum corral_traj_dtype */
    bool ragged, touched;
    uint64_t elements;
    FILE *values, *ends,
        *shapes; /* unnamed files; of a ragged one also: where each record's part ends, in elements, and its shape */
    bool alike;    /* all parts have the same extents but for the first */
    uint32_t dims; /* of the first part */
    uint64_t shape[CORRAL_TRAJ_DIMS_MAX];
};

struct traj_columns {
    char path[PATH_MAX], folder[PATH_MAX];
    struct traj_column column[TRAJ_COLUMNS_MAX];
    uint32_t count;
    uint64_t records;
};

/* traj_file.c */
enum corral_status traj_file_write(struct traj_columns *c, enum traj_format format, struct corral_error *err);

#endif
