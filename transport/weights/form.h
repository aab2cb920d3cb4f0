/* The form in which the weights of a built-in learner are kept in stores and travel: as they are, or with their matrices in another precision, half or a quarter of the bytes. What a learner has goes through
 * _encode once per version, before anything is digested or sent, and readers get it back with _decode: every worker of every node acts on the same numbers, and digests are over what was cast to.
 * Which tensors are cast, to what bits, and how scales are named is what <corral/weights.h> does with a cast without a pattern (cast/source.h). Any thread; encode and decode allocate nothing.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_FORM_H
#define CORRAL_TRANSPORT_WEIGHTS_FORM_H

#include "transport/weights/manifest.h"

enum corral_weight_cast {
    CORRAL_WEIGHT_CAST_NONE,
    CORRAL_WEIGHT_CAST_BF16,
    CORRAL_WEIGHT_CAST_F16,
    CORRAL_WEIGHT_CAST_FP8, /* E4M3, with a scale per 128 elements of a row */
    CORRAL_WEIGHT_CASTS
};

struct corral_weight_form;

/* `from`: as the learner has them; not kept. CORRAL_INVALID: a tensor that cannot be cast. */
enum corral_status corral_weight_form_create(struct corral_weight_form **out,
                                             const struct corral_manifest *from, enum corral_weight_cast cast,
                                             struct corral_error *err);
void corral_weight_form_destroy(struct corral_weight_form *f);
CORRAL_DEFINE_CLEANUP(struct corral_weight_form, corral_weight_form_destroy)
/* As stores have them; the form's. */
const struct corral_manifest *corral_weight_form_manifest(const struct corral_weight_form *f);
/* False: both sides are the same bytes, and nothing need be copied. */
bool corral_weight_form_casts(const struct corral_weight_form *f);
/* Of the learner's bytes. */
uint64_t corral_weight_form_source_bytes(const struct corral_weight_form *f);
/* What changes as one, for deltas: bytes of the elements that are most. */
uint32_t corral_weight_form_element_bytes(const struct corral_weight_form *f);
/* `image` has the manifest's bytes and was zero at first: what lies between tensors stays as it is. */
enum corral_status corral_weight_form_encode(const struct corral_weight_form *f, const void *weights,
                                             void *image, struct corral_error *err);
enum corral_status corral_weight_form_decode(const struct corral_weight_form *f, const void *image,
                                             void *weights, struct corral_error *err);

#endif
