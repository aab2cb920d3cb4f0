#include "trainer-bridge/algorithms/segment.h"

float corral_segment_end_value(const struct corral_segment *s, size_t at)
{
    if (s->terminated[at]) {
        return 0.0f;
    }
    uint32_t low = 0, high = s->boundary_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (s->boundary_at[middle] < at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < s->boundary_count && s->boundary_at[low] == at ? s->boundary_value[low] : 0.0f;
}

void corral_segment_fold_rewards(const struct corral_segment *s, float *out)
{
    for (uint32_t row = 0; row < s->rows; row++) {
        float carried = 0.0f;
        for (uint32_t step = s->steps; step-- > 0;) {
            size_t at = (size_t)step * s->rows + row;
            if (s->terminated[at] || s->truncated[at]) {
                carried = 0.0f;
            }
            carried += s->reward[at];
            out[at] = 0.0f;
            if (corral_segment_is_valid(s, at)) {
                out[at] = carried;
                carried = 0.0f;
            }
        }
    }
}
