/* The parameters of a model, one after the other, and how each is cut. What the layouts loop over. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LAYOUTS_PARAMETERS_H
#define CORRAL_TRANSPORT_WEIGHTS_LAYOUTS_PARAMETERS_H

#include "transport/weights/layouts/layouts.h"

enum cut {
    CUT_NONE,   /* every rank has all of it */
    CUT_ROWS,   /* equal parts */
    CUT_VOCAB,  /* rows, after padding */
    CUT_Q,      /* rows, heads of head_dim */
    CUT_KV,     /* rows, key/value heads, which several ranks share when there are fewer of them */
    CUT_COLUMNS /* equal parts of dimension 1 */
};

struct parameter {
    char name[CORRAL_TENSOR_NAME_MAX];
    uint64_t rows, columns; /* columns 0: one dimension */
    enum cut cut;
    bool fused; /* lies right behind the one before: k after q, v after k, up after gate */
    bool tied;  /* lm_head of a tied model: another name of the embedding */
};

/* Parameters of the whole model; index 0 is the embedding, 1 lm_head, the last the final norm. */
uint32_t corral_layouts_count(const struct corral_layouts_model *m);
void corral_layouts_parameter(const struct corral_layouts_model *m, uint32_t index, struct parameter *out);

#endif
