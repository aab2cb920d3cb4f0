#include "bench/weights_model.h"
#include "transport/weights/layouts/layouts.h"

#include <string.h>

#define TRAINERS 8u
#define TP 2u

static const struct corral_layouts_model tiny = {.dtype = CORRAL_DTYPE_BF16,
                                                 .layers = 2,
                                                 .hidden = 256,
                                                 .ffn = 512,
                                                 .heads = 8,
                                                 .kv_heads = 4,
                                                 .head_dim = 32,
                                                 .vocab = 1024,
                                                 .qk_norm = true};

enum corral_status bench_model(const char *name, struct corral_layout **trainer,
                               struct corral_layout **engine, struct corral_error *err)
{
    struct corral_layouts_model m = tiny;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = NULL;
    if (strcmp(name, "tiny") != 0) {
        CORRAL_TRY(corral_layouts_model_named(&m, strcmp(name, "9b") == 0 ? "yi-9b" : name, err));
    }
    CORRAL_TRY(corral_layouts_of_trainer(&from, &m, CORRAL_LAYOUTS_FSDP, TRAINERS, err));
    CORRAL_TRY(corral_layouts_of_engines(engine, &m, 1, TP, err));
    *trainer = CORRAL_STEAL(from);
    return CORRAL_OK;
}
