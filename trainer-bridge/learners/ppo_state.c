/* The learner's state as bytes: header, arrays, digest of all before it. Native byte order, which the magic number proves. */
#include "base/hash.h"
#include "trainer-bridge/learners/ppo_internal.h"
#include <string.h>

#define STATE_MAGIC UINT64_C(0x31306f7070726f63) /* "corppo01" */
#define STATE_VERSION 1u

struct state_header {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t bytes; /* of the whole state */
    struct corral_digest layout;
    uint64_t slots; /* in the return table; 0: none */
    uint64_t step, updates;
    uint64_t rng[4];
    double obs_count, return_count, return_mean, return_m2;
};
_Static_assert(sizeof(struct state_header) == 128, "the state format has no padding");
_Static_assert(sizeof(struct corral_return_entry) == 24, "the state format has no padding");

/* Of names, shapes and places, and what they mean: two layouts that agree can exchange weights. */
static struct corral_digest layout_digest(const struct corral_policy_layout *layout)
{
    struct {
        char name[64];
        uint64_t rank, shape[2], offset, count;
    } entry[CORRAL_POLICY_TENSORS_MAX + 1];
    memset(entry, 0, sizeof entry);
    for (uint32_t i = 0; i < layout->tensors; i++) {
        const struct corral_policy_tensor *t = &layout->tensor[i];
        strncpy(entry[i].name, t->name, sizeof entry[i].name - 1);
        entry[i].rank = t->rank;
        entry[i].shape[0] = t->shape[0];
        entry[i].shape[1] = t->shape[1];
        entry[i].offset = t->offset;
        entry[i].count = t->count;
    }
    entry[layout->tensors].rank = layout->spec.normalise_obs;
    entry[layout->tensors].shape[0] = layout->spec.activation;
    entry[layout->tensors].shape[1] = layout->spec.action.kind;
    return corral_digest_of(entry, sizeof entry);
}

struct piece {
    void *data;
    uint64_t bytes;
};

#define PIECES 6
static void pieces_of(const struct corral_ppo *p, struct piece out[PIECES])
{
    uint64_t trainable = p->layout.trainable_floats * sizeof(float),
             dim = p->layout.spec.obs_dim * sizeof(double);
    out[0] = (struct piece){p->weights, p->layout.floats * sizeof(float)};
    out[1] = (struct piece){p->adam_m, trainable};
    out[2] = (struct piece){p->adam_v, trainable};
    out[3] = (struct piece){p->obs_mean, dim};
    out[4] = (struct piece){p->obs_m2, dim};
    out[5] = (struct piece){p->returns.slots,
                            p->returns.slots ? CORRAL_RETURN_SLOTS * sizeof *p->returns.slots : 0};
}

uint64_t corral_ppo_state_bytes(const struct corral_ppo *p)
{
    struct piece pieces[PIECES];
    pieces_of(p, pieces);
    uint64_t bytes = sizeof(struct state_header) + sizeof(struct corral_digest);
    for (uint32_t i = 0; i < PIECES; i++) {
        bytes += pieces[i].bytes;
    }
    return bytes;
}

void corral_ppo_state_save(const struct corral_ppo *p, void *out)
{
    struct state_header header = {.magic = STATE_MAGIC,
                                  .version = STATE_VERSION,
                                  .header_bytes = sizeof header,
                                  .bytes = corral_ppo_state_bytes(p),
                                  .layout = layout_digest(&p->layout),
                                  .slots = p->returns.slots ? CORRAL_RETURN_SLOTS : 0,
                                  .step = p->now.step,
                                  .updates = p->now.updates,
                                  .obs_count = p->now.obs_count,
                                  .return_count = p->now.returns.count,
                                  .return_mean = p->now.returns.mean,
                                  .return_m2 = p->now.returns.m2};
    memcpy(header.rng, p->now.rng.s, sizeof header.rng);
    char *to = out;
    memcpy(to, &header, sizeof header);
    to += sizeof header;
    struct piece pieces[PIECES];
    pieces_of(p, pieces);
    for (uint32_t i = 0; i < PIECES; i++) {
        if (pieces[i].bytes > 0) {
            memcpy(to, pieces[i].data, pieces[i].bytes);
            to += pieces[i].bytes;
        }
    }
    struct corral_digest digest = corral_digest_of(out, header.bytes - sizeof digest);
    memcpy(to, &digest, sizeof digest);
}

static enum corral_status check(const struct corral_ppo *p, const struct state_header *h, const void *state,
                                uint64_t bytes, struct corral_error *err)
{
    if (h->magic != STATE_MAGIC || h->version != STATE_VERSION || h->header_bytes != sizeof *h) {
        return corral_fail(err, CORRAL_INVALID, "ppo state: not a version %u state of this byte order",
                           STATE_VERSION);
    }
    if (!corral_digest_equal(h->layout, layout_digest(&p->layout))) {
        return corral_fail(err, CORRAL_INVALID, "ppo state: of a policy with other tensors");
    }
    if (h->slots != (p->returns.slots ? CORRAL_RETURN_SLOTS : 0)) {
        return corral_fail(err, CORRAL_INVALID,
                           "ppo state: saved %s reward normalisation, this learner runs %s it",
                           h->slots ? "with" : "without", h->slots ? "without" : "with");
    }
    if (h->bytes != bytes || bytes != corral_ppo_state_bytes(p)) {
        return corral_fail(err, CORRAL_INVALID, "ppo state: %llu bytes, expected %llu",
                           (unsigned long long)bytes, (unsigned long long)corral_ppo_state_bytes(p));
    }
    struct corral_digest saved, found = corral_digest_of(state, bytes - sizeof found);
    memcpy(&saved, (const char *)state + bytes - sizeof saved, sizeof saved);
    if (!corral_digest_equal(saved, found)) {
        return corral_fail(err, CORRAL_INVALID, "ppo state: damaged (digest differs)");
    }
    return CORRAL_OK;
}

enum corral_status corral_ppo_state_load(struct corral_ppo *p, const void *state, uint64_t bytes,
                                         struct corral_error *err)
{
    struct state_header h;
    if (bytes < sizeof h + sizeof(struct corral_digest)) {
        return corral_fail(err, CORRAL_INVALID, "ppo state: %llu bytes are too few",
                           (unsigned long long)bytes);
    }
    memcpy(&h, state, sizeof h);
    CORRAL_TRY(check(p, &h, state, bytes, err));
    const char *from = (const char *)state + sizeof h;
    struct piece pieces[PIECES];
    pieces_of(p, pieces);
    for (uint32_t i = 0; i < PIECES; i++) {
        if (pieces[i].bytes > 0) {
            memcpy(pieces[i].data, from, pieces[i].bytes);
            from += pieces[i].bytes;
        }
    }
    p->now = (struct corral_ppo_counters){
        .step = h.step,
        .updates = h.updates,
        .obs_count = h.obs_count,
        .returns = {.count = h.return_count, .mean = h.return_mean, .m2 = h.return_m2},
    };
    memcpy(p->now.rng.s, h.rng, sizeof h.rng);
    p->returns.used = p->returns.changes_count = 0;
    for (uint32_t i = 0; p->returns.slots && i < CORRAL_RETURN_SLOTS; i++) {
        p->returns.used += p->returns.slots[i].used != 0;
    }
    return CORRAL_OK;
}
