#include "tests/check.h"
#include "transport/weights/layouts/parameters.h"
#include "transport/weights/reshard/plan.h"

#include "base/rng.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the same by hand: gather everything, then cut as engines do ---- */

static uint32_t below(struct corral_rng *rng, uint32_t n)
{
    return (uint32_t)corral_rng_below(rng, n);
}

/* Bits of an element of a tensor: all different, none zero. */
static uint16_t value_of(uint32_t tensor, uint64_t element)
{
    return (uint16_t)(1 + (tensor * 7919u + element * 31u) % 65521u);
}

struct naive {
    uint8_t *data;
    uint64_t at, room;
};

static void pad(struct naive *n, uint64_t multiple)
{
    while (n->at % multiple != 0) {
        n->data[n->at++] = 0;
    }
}

/* Rows [r0, r1) and columns [c0, c1) of a tensor of `columns` columns; rows from `end` on are zero. */
static void put(struct naive *n, uint32_t tensor, uint64_t columns, uint64_t r0, uint64_t r1, uint64_t c0,
                uint64_t c1, uint64_t end)
{
    for (uint64_t r = r0; r < r1; r++) {
        for (uint64_t c = c0; c < c1; c++) {
            uint16_t v = r < end ? value_of(tensor, r * columns + c) : 0;
            assert_true(n->at + 2 <= n->room);
            memcpy(n->data + n->at, &v, 2);
            n->at += 2;
        }
    }
}

static uint32_t find(const struct corral_layout *l, int layer, const char *name)
{
    char full[CORRAL_TENSOR_NAME_MAX];
    if (layer < 0) {
        snprintf(full, sizeof full, "%s", name);
    } else {
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    }
    uint32_t index = corral_layout_find(l, full);
    if (index == UINT32_MAX) {
        fail_msg("no tensor %s", full);
    }
    return index;
}

/* q, k and v of one layer behind each other: of the weights (columns = hidden) or the biases (1). */
static void put_qkv(struct naive *n, const struct corral_layout *l, const struct corral_layouts_model *m,
                    int layer, const char *what, uint64_t columns, uint32_t tp, uint32_t t)
{
    char name[64];
    uint64_t d = m->head_dim, q = m->heads / tp * d;
    uint64_t kv_heads = m->kv_heads >= tp ? m->kv_heads / tp : 1;
    uint64_t kv_first = m->kv_heads >= tp ? t * kv_heads : t * m->kv_heads / tp;
    pad(n, 256);
    snprintf(name, sizeof name, "self_attn.q_proj.%s", what);
    put(n, find(l, layer, name), columns, t * q, (t + 1) * q, 0, columns, UINT64_MAX);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "self_attn.%c_proj.%s", "kv"[i], what);
        put(n, find(l, layer, name), columns, kv_first * d, (kv_first + kv_heads) * d, 0, columns,
            UINT64_MAX);
    }
}

static void put_gate_up(struct naive *n, const struct corral_layout *l, const struct corral_layouts_model *m,
                        int layer, const char *what, uint64_t columns, uint32_t tp, uint32_t t)
{
    char name[64];
    uint64_t f = m->ffn / tp;
    pad(n, 256);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "mlp.%s_proj.%s", i ? "up" : "gate", what);
        put(n, find(l, layer, name), columns, t * f, (t + 1) * f, 0, columns, UINT64_MAX);
    }
}

static void put_vector(struct naive *n, uint32_t tensor, uint64_t count)
{
    pad(n, 256);
    put(n, tensor, 1, 0, count, 0, 1, UINT64_MAX);
}

static void put_layer(struct naive *n, const struct corral_layout *l, const struct corral_layouts_model *m,
                      int layer, uint32_t tp, uint32_t t)
{
    uint64_t h = m->hidden, q = m->heads * m->head_dim, f = m->ffn;
    put_qkv(n, l, m, layer, "weight", h, tp, t);
    if (m->qkv_bias) {
        put_qkv(n, l, m, layer, "bias", 1, tp, t);
    }
    pad(n, 256);
    put(n, find(l, layer, "self_attn.o_proj.weight"), q, 0, h, t * q / tp, (t + 1) * q / tp, UINT64_MAX);
    if (m->o_bias) {
        put_vector(n, find(l, layer, "self_attn.o_proj.bias"), h);
    }
    if (m->qk_norm) {
        put_vector(n, find(l, layer, "self_attn.q_norm.weight"), m->head_dim);
        put_vector(n, find(l, layer, "self_attn.k_norm.weight"), m->head_dim);
    }
    put_gate_up(n, l, m, layer, "weight", h, tp, t);
    if (m->mlp_bias) {
        put_gate_up(n, l, m, layer, "bias", 1, tp, t);
    }
    pad(n, 256);
    put(n, find(l, layer, "mlp.down_proj.weight"), f, 0, h, t * f / tp, (t + 1) * f / tp, UINT64_MAX);
    if (m->mlp_bias) {
        put_vector(n, find(l, layer, "mlp.down_proj.bias"), h);
    }
    put_vector(n, find(l, layer, "input_layernorm.weight"), h);
    put_vector(n, find(l, layer, "post_attention_layernorm.weight"), h);
}

static struct naive naive_engine(const struct corral_layout *l, const struct corral_layouts_model *m,
                                 uint32_t tp, uint32_t t)
{
    struct naive n = {.room = 4u << 20};
    n.data = calloc(1, n.room);
    assert_non_null(n.data);
    uint64_t multiple = 64u * tp, vocab = (m->vocab + multiple - 1) / multiple * multiple / tp;
    for (int i = 0; i < (m->tied ? 1 : 2); i++) {
        pad(&n, 256);
        put(&n, find(l, -1, i ? "lm_head.weight" : "model.embed_tokens.weight"), m->hidden, t * vocab,
            (t + 1) * vocab, 0, m->hidden, m->vocab);
    }
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        put_layer(&n, l, m, (int)layer, tp, t);
    }
    put_vector(&n, find(l, -1, "model.norm.weight"), m->hidden);
    return n;
}

/* ---- sources ---- */

/* Fills what the pieces say is there. */
static void fill(const struct corral_layout *l, uint8_t **buffer)
{
    for (uint32_t i = 0; i < l->piece_count; i++) {
        const struct corral_piece *p = &l->piece[i];
        const struct corral_layout_tensor *t = &l->tensor[p->tensor];
        uint64_t columns = t->dims > 1 ? t->shape[1] : 1, across = t->dims > 1 ? p->box.count[1] : 1;
        uint64_t first = t->dims > 1 ? p->box.first[1] : 0;
        for (uint64_t r = 0; r < p->box.count[0]; r++) {
            for (uint64_t c = 0; c < across; c++) {
                uint16_t v = value_of(p->tensor, (p->box.first[0] + r) * columns + first + c);
                memcpy(buffer[p->rank] + p->offset + r * p->stride[0] + c * 2, &v, 2);
            }
        }
    }
}

/* The flat ranges, from first principles: rank r has elements [r * each, (r + 1) * each) of every parameter. */
static void check_flat(const struct corral_layout *l, uint8_t *const *buffer)
{
    for (uint32_t r = 0; r < l->ranks; r++) {
        uint64_t at = 0;
        for (uint32_t t = 0; t < l->tensor_count; t++) {
            uint64_t all = l->tensor[t].shape[0] * (l->tensor[t].dims > 1 ? l->tensor[t].shape[1] : 1);
            uint64_t each = (all + l->ranks - 1) / l->ranks;
            if (l->tensor[t].alias_of != t || r * each >= all) {
                continue;
            }
            at = (at + 255) / 256 * 256;
            for (uint64_t i = r * each; i < all && i < (r + 1) * each; i++, at += 2) {
                uint16_t v;
                memcpy(&v, buffer[r] + at, 2);
                assert_int_equal(v, value_of(t, i));
            }
        }
    }
}

static uint8_t **buffers_of(const struct corral_layout *l)
{
    uint8_t **buffer = calloc(l->ranks, sizeof *buffer);
    assert_non_null(buffer);
    for (uint32_t r = 0; r < l->ranks; r++) {
        buffer[r] = calloc(1, l->rank_bytes[r] + 1);
        assert_non_null(buffer[r]);
    }
    return buffer;
}

static void drop_buffers(uint8_t **buffer, uint32_t ranks)
{
    for (uint32_t r = 0; r < ranks; r++) {
        free(buffer[r]);
    }
    free(buffer);
}

static struct corral_layouts_model some_model(struct corral_rng *rng)
{
    static const uint32_t kv[] = {1, 2, 4, 8};
    struct corral_layouts_model m = {.dtype = CORRAL_DTYPE_BF16,
                                     .layers = 1 + below(rng, 2),
                                     .hidden = 1 + below(rng, 24),
                                     .ffn = 8 * (1 + below(rng, 4)),
                                     .heads = 8,
                                     .kv_heads = kv[below(rng, 4)],
                                     .head_dim = 1 + below(rng, 6),
                                     .vocab = 1 + below(rng, 700),
                                     .tied = below(rng, 2),
                                     .qk_norm = below(rng, 2),
                                     .qkv_bias = below(rng, 2),
                                     .o_bias = below(rng, 2),
                                     .mlp_bias = below(rng, 2)};
    return m;
}

static struct corral_layout *some_trainer(const struct corral_layouts_model *m, uint64_t seed,
                                          struct corral_rng *rng)
{
    struct corral_error err = {0};
    struct corral_layout *l = NULL;
    enum corral_layouts_trainer kind = (enum corral_layouts_trainer)(seed % 3);
    uint32_t ranks = kind == CORRAL_LAYOUTS_TP ? 1u << below(rng, 4) : 1 + below(rng, 9);
    check_ok(corral_layouts_of_trainer(&l, m, kind, ranks, &err));
    return l;
}

static void run_plan(const struct corral_layout *from, uint8_t *const *source, const struct corral_layout *to,
                     uint8_t *const *destination)
{
    struct corral_error err = {0};
    CORRAL_CLEANUP(corral_reshard_plan_destroyp) struct corral_reshard_plan *plan = NULL;
    check_ok(corral_reshard_plan_build(from, to, &plan, &err));
    for (uint32_t i = 0; i < plan->copy_count; i++) {
        const struct corral_reshard_copy *c = &plan->copy[i];
        corral_reshard_copy_run(c, source[c->source], destination[c->destination]);
    }
}

/* ---- tests ---- */

static void engines_get_what_gathering_and_cutting_by_hand_gives(void **state)
{
    (void)state;
    struct corral_error err = {0};
    for (uint64_t seed = 0; seed < 150; seed++) {
        struct corral_rng rng;
        corral_rng_seed(&rng, seed);
        struct corral_layouts_model m = some_model(&rng);
        uint32_t tp = 1u << below(&rng, 4), engines = 1 + below(&rng, 2);
        CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = some_trainer(&m, seed, &rng);
        CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *to = NULL;
        check_ok(corral_layouts_of_engines(&to, &m, engines, tp, &err));
        uint8_t **source = buffers_of(from), **destination = buffers_of(to);
        fill(from, source);
        if (seed % 3 == CORRAL_LAYOUTS_FSDP) {
            check_flat(from, source);
        }
        run_plan(from, source, to, destination);
        uint64_t bytes;
        check_ok(corral_layouts_engine_bytes(&m, tp, &bytes, &err));
        for (uint32_t r = 0; r < to->ranks; r++) {
            struct naive n = naive_engine(to, &m, tp, r % tp);
            assert_int_equal(to->rank_bytes[r], n.at);
            assert_int_equal(bytes, n.at);
            if (memcmp(destination[r], n.data, n.at) != 0) {
                fail_msg("seed %llu, rank %u of tp %u: other bytes", (unsigned long long)seed, r, tp);
            }
            free(n.data);
        }
        drop_buffers(source, from->ranks);
        drop_buffers(destination, to->ranks);
    }
}

static void a_node_has_each_shard_once(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_rng rng;
    corral_rng_seed(&rng, 11);
    struct corral_layouts_model m = some_model(&rng);
    /* Three engines of two ranks: two on node 0, one across nodes 1 and 2. */
    static const uint32_t node_of[] = {0, 0, 0, 0, 1, 2};
    uint64_t offset[6], each;
    CORRAL_CLEANUP(corral_layout_destroyp) struct corral_layout *from = some_trainer(&m, 0, &rng), *to = NULL;
    check_ok(corral_layouts_of_nodes(&to, &m, 3, 2, node_of, 3, offset, &err));
    check_ok(corral_layouts_engine_bytes(&m, 2, &each, &err));
    assert_true(offset[0] == 0 && offset[1] == (each + 255) / 256 * 256);
    assert_true(offset[2] == 0 && offset[3] == UINT64_MAX && offset[4] == UINT64_MAX && offset[5] == 0);
    assert_int_equal(to->rank_bytes[0], offset[1] + each);
    assert_int_equal(to->rank_bytes[1], each);
    uint8_t **source = buffers_of(from), **destination = buffers_of(to);
    fill(from, source);
    run_plan(from, source, to, destination);
    for (uint32_t i = 0; i < 6; i++) {
        if (offset[i] != UINT64_MAX) {
            struct naive n = naive_engine(to, &m, 2, i % 2);
            assert_memory_equal(destination[i / 2] + offset[i], n.data, n.at);
            free(n.data);
        }
    }
    drop_buffers(source, from->ranks);
    drop_buffers(destination, to->ranks);
}

static void known_models_have_their_published_sizes(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_layouts_model m;
    check_ok(corral_layouts_model_named(&m, "qwen3-8b", &err));
    assert_int_equal(corral_layouts_parameters(&m), 8190735360);
    check_ok(corral_layouts_model_named(&m, "yi-9b", &err));
    assert_int_equal(corral_layouts_parameters(&m), 8829407232);
    check_status(corral_layouts_model_named(&m, "gpt", &err), CORRAL_NOT_FOUND);
    assert_non_null(strstr(err.text, "yi-9b"));
}

static enum corral_status parse(const char *text, struct corral_layouts_model *m, struct corral_error *err)
{
    return corral_layouts_model_from_config(m, "config.json", text, strlen(text), err);
}

#define REST                                                                           \
    "\"intermediate_size\":12288,\"num_hidden_layers\":36,\"num_attention_heads\":32," \
    "\"num_key_value_heads\":8,\"vocab_size\":151936,\"torch_dtype\":\"bfloat16\"}"

static void reads_a_config(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_layouts_model m, known;
    check_ok(corral_layouts_model_named(&known, "qwen3-8b", &err));
    check_ok(parse("{\"model_type\":\"qwen3\",\"attention_bias\":false,\"tie_word_embeddings\":false,"
                   "\"head_dim\":128,\"rope_scaling\":null,\"hidden_size\":4096," REST,
                   &m, &err));
    assert_int_equal(corral_layouts_parameters(&m), corral_layouts_parameters(&known));
    assert_true(m.qk_norm && !m.qkv_bias && !m.tied && m.head_dim == 128);
    check_ok(
        parse("{\"model_type\":\"qwen2\",\"tie_word_embeddings\":true,\"hidden_size\":2048," REST, &m, &err));
    assert_true(m.tied && m.qkv_bias && !m.o_bias && !m.qk_norm && m.head_dim == 64);
    check_ok(
        parse("{\"model_type\":\"llama\",\"attention_bias\":true,\"mlp_bias\":true,\"hidden_size\":64," REST,
              &m, &err));
    assert_true(m.qkv_bias && m.o_bias && m.mlp_bias);
}

static void refuses_configs_that_it_does_not_understand(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum corral_status status;
    } bad[] = {
        {"[]", CORRAL_INVALID},
        {"{\"hidden_size\":4096," REST, CORRAL_INVALID},
        {"{\"model_type\":\"mixtral\",\"hidden_size\":4096," REST, CORRAL_UNSUPPORTED},
        {"{\"model_type\":\"llama\"," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"hidden_size\":-1," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"hidden_size\":4e3," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"hidden_size\":9223372036854775807," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"hidden_size\":16," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"head_dim\":64,\"hidden_size\":1000000000," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"tie_word_embeddings\":1,\"hidden_size\":64," REST, CORRAL_INVALID},
        {"{\"model_type\":\"llama\",\"dtype\":\"int8\",\"hidden_size\":64}", CORRAL_UNSUPPORTED},
    };
    for (uint32_t i = 0; i < CORRAL_COUNT_OF(bad); i++) {
        struct corral_error err = {0};
        struct corral_layouts_model m;
        if (parse(bad[i].text, &m, &err) != bad[i].status) {
            fail_msg("%s: %s", bad[i].text, err.text);
        }
    }
}

static void refuses_cuts_that_do_not_come_out_even(void **state)
{
    (void)state;
    struct corral_error err = {0};
    struct corral_layout *l = NULL;
    struct corral_layouts_model m;
    uint64_t offset[4];
    check_ok(corral_layouts_model_named(&m, "yi-9b", &err));
    check_status(corral_layouts_of_engines(&l, &m, 1, 3, &err), CORRAL_INVALID);
    check_status(corral_layouts_of_engines(&l, &m, 1, 0, &err), CORRAL_INVALID);
    check_status(corral_layouts_of_engines(&l, &m, 1u << 31, 2, &err), CORRAL_INVALID);
    check_status(corral_layouts_of_nodes(&l, &m, 2, 1, (const uint32_t[]){0, 2}, 2, offset, &err),
                 CORRAL_INVALID);
    check_status(corral_layouts_of_nodes(&l, &m, 0, 1, (const uint32_t[]){0}, 1, offset, &err),
                 CORRAL_INVALID);
    m.kv_heads = 3;
    check_status(corral_layouts_of_trainer(&l, &m, CORRAL_LAYOUTS_FSDP, 2, &err), CORRAL_INVALID);
    assert_null(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engines_get_what_gathering_and_cutting_by_hand_gives),
        cmocka_unit_test(a_node_has_each_shard_once),
        cmocka_unit_test(known_models_have_their_published_sizes),
        cmocka_unit_test(reads_a_config),
        cmocka_unit_test(refuses_configs_that_it_does_not_understand),
        cmocka_unit_test(refuses_cuts_that_do_not_come_out_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
