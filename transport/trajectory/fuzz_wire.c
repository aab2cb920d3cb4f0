/* Whatever bytes a peer sends as a frame: checking it ends; a control message that is accepted encodes to one that says the same; the records of a batch that is accepted fill it exactly, and each can be
 * given to the decoder, whose view of a fragment, if it is one, has sizes that can be computed.
 */
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/wire.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void control(const uint8_t *data, size_t bytes)
{
    struct corral_traj_message m, again;
    const void *out;
    size_t out_bytes;
    if (corral_traj_decode(data, bytes, &m, NULL) != CORRAL_OK) {
        return;
    }
    CORRAL_CLEANUP(corral_mpack_writer_destroyp)
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    must(w != NULL);
    corral_traj_encode(w, &m);
    must(corral_mpack_finish(w, &out, &out_bytes, NULL) == CORRAL_OK);
    must(corral_traj_decode(out, out_bytes, &again, NULL) == CORRAL_OK);
    must(again.session == m.session && again.type == m.type);
}

static void record(const uint8_t *data, uint64_t bytes)
{
    static struct corral_traj_view view;
    struct corral_fragment f;
    void *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, bytes);
    must(memory != NULL);
    memcpy(memory, data, bytes);
    if (corral_traj_record_decode(memory, bytes, &view, NULL) == CORRAL_OK &&
        corral_fragment_of(&view.record, &f, NULL) == CORRAL_OK) {
        must(corral_fragment_bytes(&f) > 0);
    }
    free(memory);
}

static void batch(const uint8_t *data, size_t bytes)
{
    struct corral_traj_batch b;
    struct corral_traj_prologue first;
    if (corral_traj_batch_check(data, bytes, &b, &first, NULL) != CORRAL_OK) {
        return;
    }
    size_t at = sizeof b;
    for (uint32_t i = 0; i < b.count; i++) {
        must(bytes - at >= CORRAL_TRAJ_PROLOGUE_BYTES);
        const uint64_t n = corral_traj_record_size(data + at);
        must(n >= CORRAL_TRAJ_PROLOGUE_BYTES && n <= bytes - at);
        record(data + at, n);
        at += n;
    }
    must(at == bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (corral_traj_is_batch(data, bytes)) {
        batch(data, bytes);
    } else {
        control(data, bytes);
    }
    return 0;
}
