/* The models that the weights benchmark pushes: "9b" and "yi-9b" (Yi-1.5-9B), "qwen3-8b", "tiny". */
#ifndef CORRAL_BENCH_WEIGHTS_MODEL_H
#define CORRAL_BENCH_WEIGHTS_MODEL_H

#include "transport/weights/reshard/layout.h"

/* bf16. The trainer: 8 ranks, each tensor cut into flat ranges; the engine: tensor parallel 2, fused qkv and gate_up. */
enum corral_status bench_model(const char *name, struct corral_layout **trainer,
                               struct corral_layout **engine, struct corral_error *err);

#endif
