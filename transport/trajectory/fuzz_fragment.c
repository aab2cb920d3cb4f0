/* Whatever bytes a peer sends as a header: decoding ends, and what it accepts has sizes that can be computed and encodes again. */
#include "transport/trajectory/wire.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct corral_traj_message m, again;
    uint64_t sizes[CORRAL_FRAGMENT_FRAMES], offsets[CORRAL_FRAGMENT_FRAMES], total;
    if (corral_traj_decode(data, bytes, &m, NULL) != CORRAL_OK) {
        return 0;
    }
    if (corral_traj_check_frame(&m, bytes, sizes, offsets, &total, NULL) == CORRAL_OK &&
        (total + CORRAL_TRAJ_AREA_BYTES != bytes || bytes > corral_fragment_bytes(&m.fragment))) {
        abort();
    }
    struct corral_mpack_writer *w = corral_mpack_writer_create();
    uint8_t area[CORRAL_TRAJ_AREA_BYTES];
    const void *out = area;
    size_t out_bytes = sizeof area;
    if (w != NULL) {
        enum corral_status status;
        if (m.type == CORRAL_TRAJ_FRAGMENT) {
            status = corral_traj_encode_area(w, &m, area, NULL);
        } else {
            corral_traj_encode(w, &m);
            status = corral_mpack_finish(w, &out, &out_bytes, NULL);
        }
        if (status == CORRAL_OK && (corral_traj_decode(out, out_bytes, &again, NULL) != CORRAL_OK ||
                                    again.session != m.session || again.type != m.type)) {
            abort();
        }
    }
    corral_mpack_writer_destroy(w);
    return 0;
}
