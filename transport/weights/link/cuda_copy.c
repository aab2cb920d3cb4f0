/* Spans of a bucket as as few copies as the driver allows: rows of equal length and distance on both sides are one. */
#include "transport/weights/link/shard_cuda.h"

#define CUDA_INVALID_VALUE 1

struct rows {
    uint64_t from, to, bytes, count, from_pitch, to_pitch;
};

static int copy_rows(const struct corral_cuda *cuda, const struct rows *r, corral_cuda_stream stream)
{
    if (r->count > 1) {
        struct corral_cuda_copy_2d copy = {.source_type = CORRAL_CUDA_MEMORY_UNIFIED,
                                           .source_device = r->from,
                                           .source_pitch = r->from_pitch,
                                           .to_type = CORRAL_CUDA_MEMORY_UNIFIED,
                                           .to_device = r->to,
                                           .to_pitch = r->to_pitch,
                                           .width = r->bytes,
                                           .height = r->count};
        int result = cuda->cuMemcpy2DAsync(&copy, stream);
        /* A driver may refuse a pitch that is not its own for copies inside a device. */
        if (result != CUDA_INVALID_VALUE) {
            return result;
        }
    }
    for (uint64_t i = 0; i < r->count; i++) {
        int result =
            cuda->cuMemcpyAsync(r->to + i * r->to_pitch, r->from + i * r->from_pitch, r->bytes, stream);
        if (result != CORRAL_CUDA_SUCCESS) {
            return result;
        }
    }
    return CORRAL_CUDA_SUCCESS;
}

static bool is_pitch(uint64_t pitch, uint64_t bytes)
{
    return pitch >= bytes && pitch <= CORRAL_CUDA_PITCH_MAX;
}

/* True when the run goes on with this span. */
static bool rows_add(struct rows *r, uint64_t from, uint64_t to, uint64_t bytes)
{
    if (r->count == 0 || bytes != r->bytes) {
        return false;
    }
    uint64_t from_pitch = from - r->from, to_pitch = to - r->to;
    if (r->count > 1) {
        from_pitch = from - (r->from + (r->count - 1) * r->from_pitch);
        to_pitch = to - (r->to + (r->count - 1) * r->to_pitch);
        if (from_pitch != r->from_pitch || to_pitch != r->to_pitch) {
            return false;
        }
    } else if (!is_pitch(from_pitch, bytes) || !is_pitch(to_pitch, bytes)) {
        return false;
    }
    r->from_pitch = from_pitch;
    r->to_pitch = to_pitch;
    r->count++;
    return true;
}

static uint64_t address_of(struct corral_cuda_end end, const struct corral_span *span, uint64_t packed)
{
    return end.address + (end.view == CORRAL_CUDA_SOURCE        ? span->source_offset
                          : end.view == CORRAL_CUDA_DESTINATION ? span->destination_offset
                                                                : packed);
}

enum corral_status corral_cuda_copy_spans(const struct corral_cuda *cuda, const struct corral_link *link,
                                          struct corral_link_cursor *cursor, uint64_t bytes,
                                          struct corral_cuda_end from, struct corral_cuda_end to,
                                          corral_cuda_stream stream, struct corral_error *err)
{
    struct corral_link_cursor part = *cursor;
    part.end = CORRAL_MIN(cursor->end, cursor->at + bytes);
    if (from.view == CORRAL_CUDA_PACKED && to.view == CORRAL_CUDA_PACKED) {
        CORRAL_CUDA_TRY(cuda, cuMemcpyAsync(to.address, from.address, part.end - part.at, stream), err,
                        "cannot copy weights on a CUDA device");
        *cursor = (struct corral_link_cursor){.at = cursor->end, .end = cursor->end};
        return CORRAL_OK;
    }
    struct rows rows = {0};
    struct corral_span span = {0};
    uint64_t packed = 0;
    bool more;
    do {
        more = corral_link_next(link, &part, &span);
        uint64_t a = more ? address_of(from, &span, packed) : 0, b = more ? address_of(to, &span, packed) : 0;
        if (more) {
            packed += span.bytes;
            if (rows_add(&rows, a, b, span.bytes)) {
                continue;
            }
        }
        if (rows.count > 0) {
            int result = copy_rows(cuda, &rows, stream);
            if (result != CORRAL_CUDA_SUCCESS) {
                return corral_cuda_fail(cuda, result, err, "cannot copy weights on a CUDA device");
            }
        }
        rows = (struct rows){.from = a, .to = b, .bytes = span.bytes, .count = 1};
    } while (more);
    part.end = cursor->end;
    *cursor = part;
    return CORRAL_OK;
}
