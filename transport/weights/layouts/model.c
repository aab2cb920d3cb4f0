#include "transport/weights/layouts/parameters.h"

#include "base/json.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define A_SIZE_MAX 1e9 /* of any one number of a config */
#define PARAMETERS_MAX 1e15

/* ---- known shapes ---- */

static const struct {
    const char *name;
    struct corral_layouts_model model;
} named[] = {
    {"qwen3-8b", {CORRAL_DTYPE_BF16, 36, 4096, 12288, 32, 8, 128, 151936, .tied = false, .qk_norm = true}},
    {"yi-9b", {CORRAL_DTYPE_BF16, 48, 4096, 11008, 32, 4, 128, 64000, .tied = false}},
};

enum corral_status corral_layouts_model_named(struct corral_layouts_model *out, const char *name,
                                              struct corral_error *err)
{
    char known[128] = "";
    for (size_t i = 0; i < CORRAL_COUNT_OF(named); i++) {
        if (strcmp(name, named[i].name) == 0) {
            *out = named[i].model;
            return CORRAL_OK;
        }
        size_t length = strlen(known);
        snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "", named[i].name);
    }
    return corral_fail(err, CORRAL_NOT_FOUND, "no model shape is called '%.40s'; there are %s", name, known);
}

enum corral_status corral_layouts_model_check(const struct corral_layouts_model *m, struct corral_error *err)
{
    const uint64_t size[] = {m->hidden, m->ffn, m->heads, m->kv_heads, m->head_dim, m->vocab};
    for (size_t i = 0; i < CORRAL_COUNT_OF(size); i++) {
        if (size[i] == 0 || size[i] > (uint64_t)A_SIZE_MAX) {
            return corral_fail(err, CORRAL_INVALID, "model: a size of %" PRIu64 " is not possible", size[i]);
        }
    }
    if (m->layers == 0 || m->layers > CORRAL_LAYOUTS_LAYERS_MAX || m->heads % m->kv_heads != 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "model: %u layers with %" PRIu64 " query and %" PRIu64
                           " key/value heads are not possible",
                           m->layers, m->heads, m->kv_heads);
    }
    double q = (double)m->heads * (double)m->head_dim, kv = (double)m->kv_heads * (double)m->head_dim;
    double total = m->layers * (double)m->hidden * (2 * q + 2 * kv + 3 * (double)m->ffn) +
                   2 * (double)m->vocab * (double)m->hidden;
    if (q > A_SIZE_MAX || total > PARAMETERS_MAX) {
        return corral_fail(err, CORRAL_INVALID, "model: %.3g parameters are not possible", total);
    }
    return CORRAL_OK;
}

/* ---- config.json ---- */

static void cleanup_json(json_t **j)
{
    json_decref(*j);
}

/* A whole number above 0, or `otherwise` where the key is absent or null and that is not 0. */
static enum corral_status get_size(const json_t *config, const char *name, const char *key,
                                   uint64_t otherwise, uint64_t *out, struct corral_error *err)
{
    const json_t *v = json_object_get(config, key);
    if ((v == NULL || json_is_null(v)) && otherwise > 0) {
        *out = otherwise;
        return CORRAL_OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) <= 0 || json_integer_value(v) > (json_int_t)A_SIZE_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: '%s' is missing or not a whole number above 0", name,
                           key);
    }
    *out = (uint64_t)json_integer_value(v);
    return CORRAL_OK;
}

static enum corral_status get_flag(const json_t *config, const char *name, const char *key, bool *out,
                                   struct corral_error *err)
{
    const json_t *v = json_object_get(config, key);
    if (v != NULL && !json_is_null(v)) {
        if (!json_is_boolean(v)) {
            return corral_fail(err, CORRAL_INVALID, "%s: '%s' is not true or false", name, key);
        }
        *out = json_is_true(v);
    }
    return CORRAL_OK;
}

static enum corral_status get_kind(const json_t *config, const char *name, struct corral_layouts_model *m,
                                   struct corral_error *err)
{
    const char *kind = json_string_value(json_object_get(config, "model_type"));
    if (kind == NULL) {
        return corral_fail(err, CORRAL_INVALID, "%s: 'model_type' is missing", name);
    }
    m->qk_norm = strcmp(kind, "qwen3") == 0;
    m->qkv_bias = strcmp(kind, "qwen2") == 0;
    if (!m->qk_norm && !m->qkv_bias && strcmp(kind, "llama") != 0 && strcmp(kind, "mistral") != 0) {
        return corral_fail(err, CORRAL_UNSUPPORTED,
                           "%s: the layout of model_type '%.40s' is not known; llama, mistral, qwen2 and "
                           "qwen3 are",
                           name, kind);
    }
    bool bias = false;
    CORRAL_TRY(get_flag(config, name, "attention_bias", &bias, err));
    m->qkv_bias |= bias;
    m->o_bias = bias; /* of qwen2, whose key this is not, only q, k and v have one */
    return get_flag(config, name, "mlp_bias", &m->mlp_bias, err);
}

static enum corral_status get_dtype(const json_t *config, const char *name, struct corral_layouts_model *m,
                                    struct corral_error *err)
{
    static const struct {
        const char *name;
        enum corral_dtype dtype;
    } types[] = {
        {"bfloat16", CORRAL_DTYPE_BF16}, {"float16", CORRAL_DTYPE_F16}, {"float32", CORRAL_DTYPE_F32}};
    const json_t *v = json_object_get(config, "torch_dtype");
    const char *text = json_string_value(v != NULL ? v : json_object_get(config, "dtype"));
    for (size_t i = 0; text != NULL && i < CORRAL_COUNT_OF(types); i++) {
        if (strcmp(text, types[i].name) == 0) {
            m->dtype = types[i].dtype;
            return CORRAL_OK;
        }
    }
    return corral_fail(err, CORRAL_UNSUPPORTED,
                       "%s: 'torch_dtype' is '%.40s'; bfloat16, float16 and float32 are possible", name,
                       text ? text : "");
}

enum corral_status corral_layouts_model_from_config(struct corral_layouts_model *out, const char *name,
                                                    const char *text, size_t bytes, struct corral_error *err)
{
    CORRAL_CLEANUP(cleanup_json) json_t *c = NULL;
    struct corral_layouts_model m = {0};
    uint64_t layers = 0;
    CORRAL_TRY(corral_json_parse(&c, name, text, bytes, err));
    if (!json_is_object(c)) {
        return corral_fail(err, CORRAL_INVALID, "%s is not a JSON object", name);
    }
    CORRAL_TRY(get_kind(c, name, &m, err));
    CORRAL_TRY(get_dtype(c, name, &m, err));
    CORRAL_TRY(get_size(c, name, "hidden_size", 0, &m.hidden, err));
    CORRAL_TRY(get_size(c, name, "intermediate_size", 0, &m.ffn, err));
    CORRAL_TRY(get_size(c, name, "num_hidden_layers", 0, &layers, err));
    CORRAL_TRY(get_size(c, name, "num_attention_heads", 0, &m.heads, err));
    CORRAL_TRY(get_size(c, name, "num_key_value_heads", m.heads, &m.kv_heads, err));
    CORRAL_TRY(get_size(c, name, "head_dim", m.hidden / m.heads, &m.head_dim, err));
    CORRAL_TRY(get_size(c, name, "vocab_size", 0, &m.vocab, err));
    CORRAL_TRY(get_flag(c, name, "tie_word_embeddings", &m.tied, err));
    m.layers = (uint32_t)layers;
    enum corral_status status = corral_layouts_model_check(&m, err);
    if (status != CORRAL_OK) {
        return corral_error_prefix(err, status, "%s", name);
    }
    *out = m;
    return CORRAL_OK;
}

/* ---- parameters ---- */

/* One layer's, in order; those that the model lacks are skipped. */
enum {
    Q,
    K,
    V,
    Q_BIAS,
    K_BIAS,
    V_BIAS,
    O,
    O_BIAS,
    Q_NORM,
    K_NORM,
    GATE,
    UP,
    GATE_BIAS,
    UP_BIAS,
    DOWN,
    DOWN_BIAS,
    INPUT_NORM,
    POST_NORM,
    SLOTS
};

static bool has(const struct corral_layouts_model *m, uint32_t slot)
{
    switch (slot) {
    case Q_BIAS:
    case K_BIAS:
    case V_BIAS:
        return m->qkv_bias;
    case O_BIAS:
        return m->o_bias;
    case Q_NORM:
    case K_NORM:
        return m->qk_norm;
    case GATE_BIAS:
    case UP_BIAS:
    case DOWN_BIAS:
        return m->mlp_bias;
    default:
        return true;
    }
}

static uint32_t per_layer(const struct corral_layouts_model *m)
{
    uint32_t count = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        count += has(m, slot);
    }
    return count;
}

uint32_t corral_layouts_count(const struct corral_layouts_model *m)
{
    return 3 + m->layers * per_layer(m);
}

static void of_layer(const struct corral_layouts_model *m, uint32_t layer, uint32_t slot,
                     struct parameter *out)
{
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, h = m->hidden, f = m->ffn;
    const struct {
        const char *name;
        uint64_t rows, columns;
        enum cut cut;
        bool fused;
    } table[SLOTS] = {
        [Q] = {"self_attn.q_proj.weight", q, h, CUT_Q, false},
        [K] = {"self_attn.k_proj.weight", kv, h, CUT_KV, true},
        [V] = {"self_attn.v_proj.weight", kv, h, CUT_KV, true},
        [Q_BIAS] = {"self_attn.q_proj.bias", q, 0, CUT_Q, false},
        [K_BIAS] = {"self_attn.k_proj.bias", kv, 0, CUT_KV, true},
        [V_BIAS] = {"self_attn.v_proj.bias", kv, 0, CUT_KV, true},
        [O] = {"self_attn.o_proj.weight", h, q, CUT_COLUMNS, false},
        [O_BIAS] = {"self_attn.o_proj.bias", h, 0, CUT_NONE, false},
        [Q_NORM] = {"self_attn.q_norm.weight", m->head_dim, 0, CUT_NONE, false},
        [K_NORM] = {"self_attn.k_norm.weight", m->head_dim, 0, CUT_NONE, false},
        [GATE] = {"mlp.gate_proj.weight", f, h, CUT_ROWS, false},
        [UP] = {"mlp.up_proj.weight", f, h, CUT_ROWS, true},
        [GATE_BIAS] = {"mlp.gate_proj.bias", f, 0, CUT_ROWS, false},
        [UP_BIAS] = {"mlp.up_proj.bias", f, 0, CUT_ROWS, true},
        [DOWN] = {"mlp.down_proj.weight", h, f, CUT_COLUMNS, false},
        [DOWN_BIAS] = {"mlp.down_proj.bias", h, 0, CUT_NONE, false},
        [INPUT_NORM] = {"input_layernorm.weight", h, 0, CUT_NONE, false},
        [POST_NORM] = {"post_attention_layernorm.weight", h, 0, CUT_NONE, false},
    };
    snprintf(out->name, sizeof out->name, "model.layers.%u.%s", layer, table[slot].name);
    out->rows = table[slot].rows;
    out->columns = table[slot].columns;
    out->cut = table[slot].cut;
    out->fused = table[slot].fused;
}

void corral_layouts_parameter(const struct corral_layouts_model *m, uint32_t index, struct parameter *out)
{
    *out = (struct parameter){.rows = m->vocab, .columns = m->hidden, .cut = CUT_VOCAB};
    if (index < 2) {
        strcpy(out->name, index == 0 ? "model.embed_tokens.weight" : "lm_head.weight");
        out->tied = index == 1 && m->tied;
        return;
    }
    uint32_t in_layer = per_layer(m), layer = (index - 2) / in_layer, left = (index - 2) % in_layer;
    if (layer == m->layers) {
        *out = (struct parameter){.name = "model.norm.weight", .rows = m->hidden, .cut = CUT_NONE};
        return;
    }
    uint32_t slot = 0;
    while (!has(m, slot) || left-- > 0) {
        slot++;
    }
    of_layer(m, layer, slot, out);
}

uint64_t corral_layouts_parameters(const struct corral_layouts_model *m)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < corral_layouts_count(m); i++) {
        struct parameter p;
        corral_layouts_parameter(m, i, &p);
        sum += p.tied ? 0 : p.rows * CORRAL_MAX(p.columns, 1u);
    }
    return sum;
}
