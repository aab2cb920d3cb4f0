/* Whatever bytes a peer sends as a record: decoding ends; what is accepted encodes again to a record that says the same; msgpack-c accepts its map; a fragment view of it can be read to
 * its last byte.
 */
#include "base/mpack.h"
#include "transport/trajectory/fragment.h"
#include "transport/trajectory/record/prologue.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

/* What the decoder says of the bytes must be there: the sanitizer sees every one being read. */
static uint64_t read_all(const struct corral_traj_view *v)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < v->record.tensor_count; i++) {
        const uint8_t *p = v->tensors[i].data;
        for (uint64_t k = 0; k < v->tensor_bytes[i]; k++) {
            sum += p[k];
        }
    }
    return sum;
}

static void encode_again(const struct corral_traj_record *r)
{
    static struct corral_traj_view again;
    uint64_t bytes, same;
    must(corral_traj_record_bytes(r, &bytes, NULL) == CORRAL_OK);
    void *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, bytes);
    must(memory != NULL && corral_traj_record_encode(r, memory, bytes, NULL) == CORRAL_OK);
    must(corral_traj_record_decode(memory, bytes, &again, NULL) == CORRAL_OK);
    must(corral_traj_record_bytes(&again.record, &same, NULL) == CORRAL_OK && same == bytes);
    must(again.record.tensor_count == r->tensor_count && again.record.score_count == r->score_count &&
         strcmp(again.record.task, r->task) == 0 && again.record.tokens == r->tokens);
    free(memory);
}

/* The input as it is; or, when it begins with an odd byte, its rest as the map of a record whose prologue is right and which has as many 64 bytes of tensors as the second byte says. */
static uint8_t *record_of(const uint8_t *data, size_t *bytes)
{
    const bool map = *bytes > 2 && data[0] % 2 == 1 && *bytes <= CORRAL_TRAJ_HEADER_MAX;
    const size_t map_bytes = map ? *bytes - 2 : 0;
    const size_t size =
        map ? CORRAL_TRAJ_PROLOGUE_BYTES + corral_traj_align(map_bytes) + 64u * data[1] : *bytes;
    uint8_t *memory = aligned_alloc(CORRAL_TRAJ_ALIGN, corral_traj_align(size + 1));
    must(memory != NULL);
    memset(memory, 0, size);
    if (map) {
        *(struct corral_traj_prologue *)(void *)memory =
            (struct corral_traj_prologue){.magic = CORRAL_TRAJ_RECORD_MAGIC,
                                          .format = CORRAL_TRAJ_RECORD_FORMAT,
                                          .header_bytes = (uint32_t)map_bytes,
                                          .bytes = size};
        memcpy(memory + CORRAL_TRAJ_PROLOGUE_BYTES, data + 2, map_bytes);
    } else {
        memcpy(memory, data, size);
    }
    *bytes = size;
    return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct corral_traj_view view;
    uint8_t *memory = record_of(data, &bytes);
    struct corral_error err;
    const enum corral_status status = corral_traj_record_decode(memory, bytes, &view, &err);
    must(status == CORRAL_OK || status == CORRAL_PROTOCOL);
    if (status == CORRAL_OK) {
        CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
        const struct corral_traj_prologue *p = (const void *)memory;
        must(corral_mpack_read(&r, memory + sizeof *p, p->header_bytes, NULL) == CORRAL_OK);
        struct corral_fragment f;
        if (corral_fragment_of(&view.record, &f, NULL) == CORRAL_OK) {
            must(corral_fragment_bytes(&f) > 0);
        }
        static volatile uint64_t sink;
        sink = read_all(&view);
        (void)sink;
        encode_again(&view.record);
    }
    for (uint32_t i = 0; i < 3 && bytes >= CORRAL_TRAJ_PROLOGUE_BYTES; i++) {
        const struct corral_traj_prologue *p = (const void *)memory;
        if (p->bytes <= bytes) {
            const uint8_t *place = corral_traj_record_place(memory, i);
            must(place == NULL || (place >= memory && place < memory + bytes));
        }
    }
    free(memory);
    return 0;
}
