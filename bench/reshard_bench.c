/* Time to plan a weight push of a 9B model (the shape of Yi-1.5-9B, bf16): 8 trainer ranks that hold flat FSDP ranges → engines of tensor parallel 2, with fused qkv and gate_up. The baseline is
 * hashing the two layouts, which any scheme has to do before it may skip planning. Median of the rounds with its spread. */
#include "base/clock.h"
#include "transport/weights/reshard/plan.h"
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 15
#define LAYERS 48
#define HIDDEN 4096
#define HEADS 32
#define KV_HEADS 4
#define HEAD_DIM 128
#define FFN 11008
#define VOCAB 64000
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

static uint32_t add(struct corral_layout *l, const char *layer, const char *name, uint64_t rows,
                    uint64_t columns)
{
    struct corral_error err;
    char full[CORRAL_TENSOR_NAME_MAX];
    uint32_t t;
    snprintf(full, sizeof full, "%s%s", layer, name);
    must(corral_layout_add_tensor(l, full, CORRAL_DTYPE_BF16, columns ? 2 : 1, (uint64_t[]){rows, columns},
                                  &t, &err),
         &err);
    return t;
}

/* The rank's part of rows of several tensors, one after the other in one buffer: qkv, gate_up. */
static void fused_rows(struct corral_layout *l, const uint32_t *tensor, uint32_t count, uint32_t rank,
                       uint64_t *at)
{
    struct corral_error err;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t rows = l->tensor[tensor[i]].shape[0] / TP;
        must(corral_layout_add_slice(l, tensor[i], rank, 0, rank % TP * rows, rows, *at, &err), &err);
        *at += rows * l->tensor[tensor[i]].shape[1] * 2;
    }
}

static void columns(struct corral_layout *l, uint32_t tensor, uint32_t rank, uint64_t *at)
{
    struct corral_error err;
    uint64_t n = l->tensor[tensor].shape[1] / TP;
    must(corral_layout_add_slice(l, tensor, rank, 1, rank % TP * n, n, *at, &err), &err);
    *at += n * l->tensor[tensor].shape[0] * 2;
}

static void whole(struct corral_layout *l, uint32_t tensor, uint32_t rank, uint64_t *at)
{
    struct corral_error err;
    must(corral_layout_add_whole(l, tensor, rank, *at, &err), &err);
    *at += l->tensor[tensor].shape[0] * 2;
}

/* Tensors in the same order on both sides; the engine's ranks get their parts as they are added. */
static void engine_layer(struct corral_layout *l, const char *prefix, uint64_t *at)
{
    uint32_t qkv[3] = {add(l, prefix, "q_proj", HEADS * HEAD_DIM, HIDDEN),
                       add(l, prefix, "k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                       add(l, prefix, "v_proj", KV_HEADS * HEAD_DIM, HIDDEN)};
    uint32_t o = add(l, prefix, "o_proj", HIDDEN, HEADS * HEAD_DIM);
    uint32_t gate_up[2] = {add(l, prefix, "gate_proj", FFN, HIDDEN), add(l, prefix, "up_proj", FFN, HIDDEN)};
    uint32_t down = add(l, prefix, "down_proj", HIDDEN, FFN);
    uint32_t norm[2] = {add(l, prefix, "input_norm", HIDDEN, 0), add(l, prefix, "post_norm", HIDDEN, 0)};
    for (uint32_t r = 0; r < l->ranks; r++) {
        fused_rows(l, qkv, 3, r, &at[r]);
        columns(l, o, r, &at[r]);
        fused_rows(l, gate_up, 2, r, &at[r]);
        columns(l, down, r, &at[r]);
        whole(l, norm[0], r, &at[r]);
        whole(l, norm[1], r, &at[r]);
    }
}

static void build_engines(struct corral_layout *l)
{
    static uint64_t at[ENGINES * TP];
    uint32_t embed = add(l, "", "embed", VOCAB, HIDDEN), head = add(l, "", "lm_head", VOCAB, HIDDEN),
             norm = add(l, "", "norm", HIDDEN, 0);
    for (uint32_t r = 0; r < l->ranks; r++) {
        fused_rows(l, &embed, 1, r, &at[r]);
        fused_rows(l, &head, 1, r, &at[r]);
        whole(l, norm, r, &at[r]);
    }
    for (uint32_t i = 0; i < LAYERS; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "layers.%u.", i);
        engine_layer(l, prefix, at);
    }
}

/* Every tensor cut into equal flat ranges. */
static void build_trainers(struct corral_layout *l, const struct corral_layout *engines)
{
    struct corral_error err;
    uint64_t at[TRAINERS] = {0};
    for (uint32_t t = 0; t < engines->tensor_count; t++) {
        const struct corral_layout_tensor *e = &engines->tensor[t];
        uint32_t index = add(l, "", e->name, e->shape[0], e->dims == 2 ? e->shape[1] : 0);
        uint64_t elements = e->shape[0] * (e->dims == 2 ? e->shape[1] : 1), part = elements / TRAINERS;
        for (uint32_t r = 0; r < TRAINERS; r++) {
            must(corral_layout_add_flat(l, index, r, r * part, part, at[r], &err), &err);
            at[r] += part * 2;
        }
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    struct corral_error err;
    struct corral_layout *from, *to;
    must(corral_layout_create(&to, ENGINES * TP, &err), &err);
    build_engines(to);
    must(corral_layout_create(&from, TRAINERS, &err), &err);
    build_trainers(from, to);
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
