#include "quota/fences/internal.h"
#include <stdio.h>
#include <string.h>

static struct corral_fence_status *find(struct corral_fence_report *r, const char *name)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (strcmp(r->fence[i].name, name) == 0) {
            return &r->fence[i];
        }
    }
    return NULL;
}

void corral_fence_report_set(struct corral_fence_report *r, const char *name, enum corral_fence_state state,
                             const char *detail)
{
    struct corral_fence_status *row = find(r, name);
    if (!row && r->count < CORRAL_FENCES_MAX) {
        row = &r->fence[r->count++];
    }
    if (row) {
        fence_text(row->name, sizeof row->name, "%s", name);
        fence_text(row->detail, sizeof row->detail, "%s", detail);
        row->state = state;
    }
}

bool corral_fence_is_live(const struct corral_fence_report *r, const char *name)
{
    for (uint32_t i = 0; i < r->count; i++) {
        if (strcmp(r->fence[i].name, name) == 0) {
            return r->fence[i].state == CORRAL_FENCE_LIVE;
        }
    }
    return false;
}

/* Appends; what does not fit is cut. */
static size_t append(char *out, size_t out_bytes, size_t used, const char *separator, const char *text)
{
    if (used < out_bytes) {
        int wrote = snprintf(out + used, out_bytes - used, "%s%s", used > 0 ? separator : "", text);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
    return used;
}

/* The part before a semicolon says what is missing; what to do about it is in `rlctl doctor`. */
const char *corral_fence_report_line(const struct corral_fence_report *r, char *out, size_t out_bytes)
{
    size_t used = 0;
    if (out_bytes > 0) {
        out[0] = '\0';
    }
    for (uint32_t i = 0; i < r->count; i++) {
        const struct corral_fence_status *f = &r->fence[i];
        char text[sizeof f->name + sizeof f->detail + 16];
        int brief = (int)strcspn(f->detail, ";");
        if (f->state == CORRAL_FENCE_LIVE) {
            fence_text(text, sizeof text, "%s ok", f->name);
        } else {
            fence_text(text, sizeof text, "%s%s: %.*s", f->name,
                       f->state == CORRAL_FENCE_FAILED ? " FAILED" : "", brief, f->detail);
        }
        used = append(out, out_bytes, used, " · ", text);
    }
    return out;
}

const char *corral_fence_report_live(const struct corral_fence_report *r, char *out, size_t out_bytes)
{
    size_t used = 0;
    if (out_bytes > 0) {
        out[0] = '\0';
    }
    for (uint32_t i = 0; i < r->count; i++) {
        if (r->fence[i].state == CORRAL_FENCE_LIVE) {
            used = append(out, out_bytes, used, " ", r->fence[i].name);
        }
    }
    return out;
}
