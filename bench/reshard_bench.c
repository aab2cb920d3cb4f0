/* Time to plan a weight push of a 9B model (the shape of Yi-1.5-9B, bf16): 8 trainer ranks that hold flat FSDP ranges → engines of tensor parallel 2, with fused qkv and gate_up. The baseline is
 * hashing the two layouts, which any scheme has to do before it may skip planning. usage: reshard_bench [yi-9b|qwen3-8b]. Median of the rounds with its spread. */
#include "base/clock.h"
#include "transport/weights/layouts/layouts.h"
#include "transport/weights/reshard/plan.h"
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 15
#define TRAINERS 8
#define ENGINES 4
#define TP 2

static void must(enum corral_status status, const struct corral_error *err)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "reshard_bench: %s\n", err->text);
        exit(1);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    struct corral_error err;
    struct corral_layouts_model model;
    struct corral_layout *from, *to;
    must(corral_layouts_model_named(&model, argc > 1 ? argv[1] : "yi-9b", &err), &err);
    must(corral_layouts_of_engines(&to, &model, ENGINES, TP, &err), &err);
    must(corral_layouts_of_trainer(&from, &model, CORRAL_LAYOUTS_FSDP, TRAINERS, &err), &err);
    double plan_ms[ROUNDS], hash_ms[ROUNDS];
    struct corral_reshard_plan *plan = NULL;
    uint64_t sink = 0;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        corral_reshard_plan_destroy(plan);
        uint64_t begun = corral_now_ns(&corral_clock_monotonic);
        must(corral_reshard_plan_build(from, to, &plan, &err), &err);
        uint64_t planned = corral_now_ns(&corral_clock_monotonic);
        sink += corral_layout_hash(from).lo + corral_layout_hash(to).lo;
        plan_ms[i] = (double)(planned - begun) / 1e6;
        hash_ms[i] = (double)(corral_now_ns(&corral_clock_monotonic) - planned) / 1e6;
    }
    qsort(plan_ms, ROUNDS, sizeof *plan_ms, by_value);
    qsort(hash_ms, ROUNDS, sizeof *hash_ms, by_value);
    uint64_t least = UINT64_MAX, most = 0;
    for (uint32_t r = 0; r < TRAINERS; r++) {
        least = CORRAL_MIN(least, plan->sent[r]);
        most = CORRAL_MAX(most, plan->sent[r]);
    }
    printf("model     %u tensors, %.2f GB to move to %u engines of TP%u\n", to->tensor_count,
           (double)plan->bytes / 1e9, ENGINES, TP);
    printf("plan      %.2f ms (%.2f … %.2f), %.1f × hashing both layouts (%.2f ms)%s\n", plan_ms[ROUNDS / 2],
           plan_ms[0], plan_ms[ROUNDS - 1], plan_ms[ROUNDS / 2] / hash_ms[ROUNDS / 2], hash_ms[ROUNDS / 2],
           sink == 1 ? " " : "");
    printf("copies    %u from %u + %u pieces; %.1f %% of the bytes need no packing; each rank sends %.2f to "
           "%.2f GB\n",
           plan->copy_count, from->piece_count, to->piece_count,
           100.0 * (double)plan->contiguous_bytes / (double)plan->bytes, (double)least / 1e9,
           (double)most / 1e9);
    corral_reshard_plan_destroy(plan);
    corral_layout_destroy(from);
    corral_layout_destroy(to);
    return 0;
}
