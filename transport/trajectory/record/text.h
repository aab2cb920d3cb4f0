/* One record as text that a person can read: where it comes from, its scores, and what happened, turn by turn (token episodes) or step by step (everything else). Used by `rlctl traj show`.
 * What a record says is data: control characters, escape sequences and text direction marks are shown, never passed on to the terminal.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEXT_H
#define CORRAL_TRANSPORT_TRAJECTORY_RECORD_TEXT_H

#include <corral/trajectory.h>
#include <stdio.h>

struct corral_traj_text_options {
    uint32_t columns; /* of the terminal; 0: 100. At least 60 */
    uint32_t
        rows_max; /* steps, or spans of tokens, and lines of what each says; 0: 40. The middle is left out */
    uint32_t row; /* of a fragment: whose steps are listed */
    uint32_t everything; /* 1: nothing is left out, lines are as long as they are */
};

/* `options` NULL: all defaults. Write errors are the stream's (ferror). A decoded record: any that corral_traj_record_decode() accepts. */
void corral_traj_text(FILE *out, const struct corral_traj_record *r,
                      const struct corral_traj_text_options *options);
/* The name of a dtype as docs/spec/trajectory.md has it: "f32". "?" when unknown. */
const char *corral_traj_dtype_name(uint32_t dtype);
/* Element i of a tensor as a number. Hot for nobody. */
double corral_traj_tensor_value(const struct corral_traj_tensor *t, uint64_t i);

#endif
