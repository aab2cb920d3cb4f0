#include "model/carver.h"
#include "model/policy_internal.h"

static float *carve_rows(struct corral_carver *c, uint64_t features, uint64_t ld)
{
    return corral_carve(c, features * ld * sizeof(float));
}

static void place(struct corral_policy_workspace *ws, struct corral_carver *c,
                  const struct corral_policy_spec *spec, uint64_t ld, bool training)
{
    uint32_t logits = corral_action_logits(&spec->action), widest = logits;
    ws->scale = corral_carve(c, spec->obs_dim * sizeof(float));
    ws->x = carve_rows(c, spec->obs_dim, ld);
    for (uint32_t tower = 0; tower < 2; tower++) {
        for (uint32_t l = 0; l < spec->layers; l++) {
            ws->hidden[tower][l] = carve_rows(c, spec->hidden[l], ld);
            widest = CORRAL_MAX(widest, spec->hidden[l]);
        }
    }
    ws->logits = carve_rows(c, logits, ld);
    ws->prob = carve_rows(c, logits, ld);
    ws->component_entropy = carve_rows(c, spec->action.components, ld);
    ws->action = carve_rows(c, spec->action.components, ld);
    ws->value = carve_rows(c, 1, ld);
    ws->log_prob = carve_rows(c, 1, ld);
    ws->entropy = carve_rows(c, 1, ld);
    if (training) {
        ws->delta[0] = carve_rows(c, widest, ld);
        ws->delta[1] = carve_rows(c, widest, ld);
        ws->d_log_prob = carve_rows(c, 1, ld);
        ws->d_entropy = carve_rows(c, 1, ld);
    }
}

/* Every product of a forward pass; those of a backward pass have the same three sides. */
static void prepare_products(const struct corral_policy_spec *spec, uint32_t rows)
{
    uint32_t in = spec->obs_dim;
    for (uint32_t i = 0; i < spec->layers; i++) {
        corral_gemm_prepare_for(spec->hidden[i], in, rows);
        in = spec->hidden[i];
    }
    corral_gemm_prepare_for(corral_action_logits(&spec->action), in, rows);
}

enum corral_status corral_policy_workspace_create(struct corral_policy_workspace **out,
                                                  const struct corral_policy_layout *layout, uint32_t rows,
                                                  bool training, const struct corral_allocator *memory,
                                                  struct corral_error *err)
{
    if (rows < 1 || rows > CORRAL_POLICY_ROWS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "policy workspace: %u rows, must be 1 to %u", rows,
                           CORRAL_POLICY_ROWS_MAX);
    }
    prepare_products(&layout->spec, rows);
    uint64_t ld = (rows + (uint64_t)CORRAL_BATCH_ALIGN - 1) / CORRAL_BATCH_ALIGN * CORRAL_BATCH_ALIGN;
    struct corral_policy_workspace measure = {0};
    struct corral_carver c = {0};
    corral_carve(&c, sizeof measure);
    place(&measure, &c, &layout->spec, ld, training);
    void *block = NULL;
    CORRAL_TRY(corral_alloc(memory, c.used, "policy workspace", &block, err));
    struct corral_policy_workspace *ws = block;
    ws->memory = *memory;
    ws->bytes = c.used;
    ws->kernels = corral_kernels();
    ws->rows = rows;
    ws->training = training;
    c = (struct corral_carver){.base = block};
    corral_carve(&c, sizeof *ws);
    place(ws, &c, &layout->spec, ld, training);
    *out = ws;
    return CORRAL_OK;
}

void corral_policy_workspace_destroy(struct corral_policy_workspace *ws)
{
    if (ws) {
        struct corral_allocator memory = ws->memory;
        corral_release(&memory, ws, ws->bytes);
    }
}

uint32_t corral_policy_workspace_rows(const struct corral_policy_workspace *ws)
{
    return ws->rows;
}
