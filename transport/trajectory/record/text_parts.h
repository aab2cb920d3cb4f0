/* What text.c and text_steps.c share. Private to record/. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEXT_PARTS_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEXT_PARTS_H

#include "transport/trajectory/record/text.h"
#include <stdbool.h>
#include <stddef.h>

/* A tensor as a column of a table: `per` numbers for each of its rows. t is NULL when the record has none that fits. */
struct text_column {
    const struct corral_traj_tensor *t;
    uint64_t per;
    bool constant; /* one row for all */
};
/* The tensor of that name whose first extents are these. */
struct text_column text_column_of(const struct corral_traj_record *r, const char *name, const uint64_t *leads,
                                  uint32_t lead_count);
double text_column_value(const struct text_column *c, uint64_t row);
uint64_t text_elements(const struct corral_traj_tensor *t);

/* Characters are shown in at most `columns` columns, an ellipsis at the end when they do not fit; line feeds as ⏎. Returns the columns used. */
uint32_t text_put(FILE *out, const char *text, size_t bytes, uint32_t columns);
/* How many bytes of `text` the next line has that fits into `columns`, broken at a line feed if there is one before that. */
size_t text_line(const char *text, size_t bytes, uint32_t columns);
void text_put_values(FILE *out, const struct text_column *c, uint64_t row, uint32_t count_max);

/* Turn by turn, for records with token_ids [T]. */
void text_tokens(FILE *out, const struct corral_traj_record *r, const struct corral_traj_text_options *o);
/* Step by step. */
void text_steps(FILE *out, const struct corral_traj_record *r, const struct corral_traj_text_options *o);

#endif
