#include "transport/trajectory/fragment.h"

#define OBS_DIM_MAX (1u << 24)
#define ACTION_COMPONENTS_MAX 4096u
#define MASK_BYTES_MAX (1u << 24)

static enum corral_status check_range(const char *what, uint32_t value, uint32_t low, uint32_t high,
                                      struct corral_error *err)
{
    if (value < low || value > high) {
        return corral_fail(err, CORRAL_INVALID, "fragment: %s is %u, must be %u to %u", what, value, low,
                           high);
    }
    return CORRAL_OK;
}

enum corral_status corral_fragment_sizes(const struct corral_fragment *f,
                                         uint64_t bytes[CORRAL_FRAGMENT_FRAMES], struct corral_error *err)
{
    CORRAL_TRY(check_range("steps", f->steps, 1, CORRAL_FRAGMENT_STEPS_MAX, err));
    CORRAL_TRY(check_range("rows", f->rows, 1, CORRAL_FRAGMENT_ROWS_MAX, err));
    CORRAL_TRY(check_range("obs_dim", f->obs_dim, 1, OBS_DIM_MAX, err));
    CORRAL_TRY(check_range("action_components", f->action_components, 1, ACTION_COMPONENTS_MAX, err));
    CORRAL_TRY(check_range("mask_bytes", f->mask_bytes, 0, MASK_BYTES_MAX, err));
    uint64_t cells = (uint64_t)f->steps * f->rows; /* at most 2^32 */
    if (f->boundary_count > cells || f->episode_count > cells) {
        return corral_fail(err, CORRAL_INVALID,
                           "fragment: %u boundaries and %u episodes do not fit %u steps of %u rows",
                           f->boundary_count, f->episode_count, f->steps, f->rows);
    }
    /* No product below reaches 2^64: cells <= 2^32, every other factor <= 2^26. */
    const uint64_t need[CORRAL_FRAGMENT_FRAMES] = {
        cells * f->obs_dim * 4,
        cells * f->action_components * 4,
        cells * 4,
        cells * 4,
        cells,
        cells,
        cells,
        (uint64_t)f->steps * 8,
        cells * f->mask_bytes,
        (uint64_t)f->rows * f->obs_dim * 4,
        (uint64_t)f->boundary_count * 4,
        (uint64_t)f->boundary_count * f->obs_dim * 4,
        (uint64_t)f->episode_count * 2 * 4,
    };
    uint64_t total = 0;
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        total += need[i];
    }
    if (total > CORRAL_FRAGMENT_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "fragment: its tensors need %llu bytes, at most %u are allowed",
                           (unsigned long long)total, CORRAL_FRAGMENT_BYTES_MAX);
    }
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        bytes[i] = need[i];
    }
    return CORRAL_OK;
}

uint64_t corral_fragment_bytes(const struct corral_fragment *f)
{
    uint64_t bytes[CORRAL_FRAGMENT_FRAMES], total = CORRAL_FRAGMENT_HEADER_BYTES;
    if (corral_fragment_sizes(f, bytes, NULL) != CORRAL_OK) {
        return 0;
    }
    for (int i = 0; i < CORRAL_FRAGMENT_FRAMES; i++) {
        total += bytes[i];
    }
    return total;
}
