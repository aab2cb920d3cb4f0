/* Layouts (reshard/layout.h) of dense decoder-only language models as trainers and inference engines cut them: Llama, Qwen2, Qwen3, Mistral, Yi and what else has their shape. Tensors have
 * the names and shapes of their Hugging Face checkpoints.
 *
 * A trainer's ranks:   FSDP (each parameter flattened and cut into equal ranges, the last ones shorter), tensor parallel (q, k, v, gate, up, embeddings by rows, o and down by columns), or replicas.
 * An engine's ranks:   tensor parallel with fused weights: one qkv buffer (this rank's query heads, then its key heads, then its value heads; with fewer key/value heads than ranks, neighbouring ranks have
 *                      the same one), one gate_up buffer, o and down by columns, embedding and output rows padded to a multiple of 64 × tp and cut, norms whole. Rows of
 *                      padding are no piece: they keep what the buffer holds, zero.
 * A node's rank:       the buffers of all the engine ranks it has to feed, each tensor-parallel rank once whatever the number of its engines: one copy per node over the wire, and fan-out inside it.
 *
 * Parameters begin at multiples of 256 bytes. One thread; the results are the caller's, corral_layout_destroy ends them.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LAYOUTS_LAYOUTS_H
#define CORRAL_TRANSPORT_WEIGHTS_LAYOUTS_LAYOUTS_H

#include "transport/weights/reshard/layout.h"

#define CORRAL_LAYOUTS_ALIGN 256u
#define CORRAL_LAYOUTS_VOCAB_MULTIPLE 64u
#define CORRAL_LAYOUTS_LAYERS_MAX 1024u

struct corral_layouts_model {
    enum corral_dtype dtype;
    uint32_t layers;
    uint64_t hidden, ffn, heads, kv_heads, head_dim, vocab;
    bool tied;     /* lm_head is embed_tokens */
    bool qk_norm;  /* Qwen3: a norm of head_dim for queries and one for keys */
    bool qkv_bias; /* Qwen2 */
    bool o_bias, mlp_bias;
};

/* From the text of a config.json. CORRAL_UNSUPPORTED: another kind of model (experts, or a model_type that is not known to have this shape). */
enum corral_status corral_layouts_model_from_config(struct corral_layouts_model *out, const char *name,
                                                    const char *text, size_t bytes, struct corral_error *err);
/* "qwen3-8b", "yi-9b" (Yi-1.5-9B). CORRAL_NOT_FOUND names those that there are. */
enum corral_status corral_layouts_model_named(struct corral_layouts_model *out, const char *name,
                                              struct corral_error *err);
enum corral_status corral_layouts_model_check(const struct corral_layouts_model *m, struct corral_error *err);
/* Tied ones once. */
uint64_t corral_layouts_parameters(const struct corral_layouts_model *m);

enum corral_layouts_trainer { CORRAL_LAYOUTS_FSDP, CORRAL_LAYOUTS_REPLICATED, CORRAL_LAYOUTS_TP };
enum corral_status corral_layouts_of_trainer(struct corral_layout **out, const struct corral_layouts_model *m,
                                             enum corral_layouts_trainer kind, uint32_t ranks,
                                             struct corral_error *err);

/* Rank engine × tp + t is tensor-parallel rank t of that engine. */
enum corral_status corral_layouts_of_engines(struct corral_layout **out, const struct corral_layouts_model *m,
                                             uint32_t engines, uint32_t tp, struct corral_error *err);
/* Bytes of the largest engine rank's buffer, padding included; all have the same places. */
enum corral_status corral_layouts_engine_bytes(const struct corral_layouts_model *m, uint32_t tp,
                                               uint64_t *out, struct corral_error *err);

/* One rank per node. node_of[engine × tp + t] says where that engine rank runs. Where shard t lies in the node's buffer: offset[node × tp + t], UINT64_MAX where the node has none; `offset` may be NULL. */
enum corral_status corral_layouts_of_nodes(struct corral_layout **out, const struct corral_layouts_model *m,
                                           uint32_t engines, uint32_t tp, const uint32_t *node_of,
                                           uint32_t nodes, uint64_t *offset, struct corral_error *err);

#endif
