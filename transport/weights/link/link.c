#include "transport/weights/link/internal.h"

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

/* The first copy that is not before (source, destination): the plan's copies are in that order. */
static uint32_t first_copy(const struct corral_reshard_plan *plan, uint32_t source, uint32_t destination)
{
    uint32_t low = 0, high = plan->copy_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct corral_reshard_copy *c = &plan->copy[middle];
        if (c->source < source || (c->source == source && c->destination < destination)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct corral_digest link_hash(const struct corral_reshard_plan *plan, const struct corral_link *l)
{
    uint64_t words[4] = {htole64(plan->hash.lo), htole64(plan->hash.hi),
                         htole64((uint64_t)l->destination << 32 | l->source), htole64(l->bucket_bytes)};
    return corral_digest_of(words, sizeof words);
}

static void measure(struct corral_link *l)
{
    for (uint32_t i = 0; i < l->copy_count; i++) {
        const struct corral_reshard_copy *c = &l->copy[i];
        uint64_t source = c->source_offset + c->run_bytes, destination = c->destination_offset + c->run_bytes;
        for (uint32_t d = 0; d < c->dims; d++) {
            source += (c->count[d] - 1) * c->source_stride[d];
            destination += (c->count[d] - 1) * c->destination_stride[d];
        }
        l->source_extent = CORRAL_MAX(l->source_extent, source);
        l->destination_extent = CORRAL_MAX(l->destination_extent, destination);
        l->start[i + 1] = l->start[i] + corral_reshard_copy_bytes(c);
    }
    l->bytes = l->start[l->copy_count];
}

enum corral_status corral_link_create(struct corral_link **out, const struct corral_reshard_plan *plan,
                                      uint32_t source, uint32_t destination, uint64_t bucket_bytes,
                                      struct corral_error *err)
{
    if (source >= plan->sources || destination >= plan->destinations) {
        return corral_fail(err, CORRAL_INVALID, "no link from rank %u to rank %u: the plan has %u to %u",
                           source, destination, plan->sources, plan->destinations);
    }
    if (bucket_bytes < CORRAL_BUCKET_BYTES_MIN || bucket_bytes > CORRAL_BUCKET_BYTES_MAX ||
        bucket_bytes % 4096 != 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "buckets of %" PRIu64 " bytes: it must be a multiple of 4096 from %u to %u",
                           bucket_bytes, CORRAL_BUCKET_BYTES_MIN, CORRAL_BUCKET_BYTES_MAX);
    }
    uint32_t first = first_copy(plan, source, destination), last = first;
    while (last < plan->copy_count && plan->copy[last].source == source &&
           plan->copy[last].destination == destination) {
        last++;
    }
    CORRAL_CLEANUP(corral_link_destroyp) struct corral_link *l = calloc(1, sizeof *l);
    uint64_t *start = calloc((size_t)(last - first) + 1, sizeof *start);
    if (l == NULL || start == NULL) {
        free(start);
        return corral_fail(err, CORRAL_NOMEM, "cannot make a link of %u copies: out of memory", last - first);
    }
    l->source = source;
    l->destination = destination;
    l->copy = plan->copy + first;
    l->copy_count = last - first;
    l->start = start;
    l->bucket_bytes = bucket_bytes;
    l->hash = link_hash(plan, l);
    measure(l);
    uint64_t buckets = l->bytes / bucket_bytes + (l->bytes % bucket_bytes != 0);
    if (buckets > CORRAL_LINK_BUCKETS_MAX) {
        return corral_fail(err, CORRAL_INVALID,
                           "the link from rank %u to rank %u is %" PRIu64 " buckets of %" PRIu64
                           " bytes; %u are allowed: use larger buckets",
                           source, destination, buckets, bucket_bytes, CORRAL_LINK_BUCKETS_MAX);
    }
    l->buckets = (uint32_t)buckets;
    *out = CORRAL_STEAL(l);
    return CORRAL_OK;
}

void corral_link_destroy(struct corral_link *link)
{
    if (link != NULL) {
        free(link->start);
        free(link);
    }
}

uint64_t corral_link_bucket_size(const struct corral_link *link, uint32_t bucket)
{
    if (bucket >= link->buckets) {
        return 0;
    }
    return CORRAL_MIN(link->bucket_bytes, link->bytes - bucket * link->bucket_bytes);
}

/* ---- going over a bucket ---- */

static void enter_copy(const struct corral_link *link, struct corral_link_cursor *cursor)
{
    memset(cursor->index, 0, sizeof cursor->index);
    cursor->in_run = 0;
    if (cursor->copy < link->copy_count) {
        cursor->source = link->copy[cursor->copy].source_offset;
        cursor->destination = link->copy[cursor->copy].destination_offset;
    }
}

struct corral_link_cursor corral_link_seek(const struct corral_link *link, uint32_t bucket)
{
    uint64_t at = bucket * link->bucket_bytes;
    struct corral_link_cursor cursor = {.at = at, .end = at + corral_link_bucket_size(link, bucket)};
    if (cursor.at == cursor.end) {
        return cursor;
    }
    uint32_t low = 0, high = link->copy_count; /* the last copy that starts at or before `at` */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (link->start[middle] <= at) {
            low = middle;
        } else {
            high = middle;
        }
    }
    cursor.copy = low;
    enter_copy(link, &cursor);
    const struct corral_reshard_copy *c = &link->copy[low];
    uint64_t runs = (at - link->start[low]) / c->run_bytes;
    cursor.in_run = (at - link->start[low]) % c->run_bytes;
    for (uint32_t d = c->dims; d-- > 0;) {
        cursor.index[d] = runs % c->count[d];
        runs /= c->count[d];
        cursor.source += cursor.index[d] * c->source_stride[d];
        cursor.destination += cursor.index[d] * c->destination_stride[d];
    }
    return cursor;
}

/* `runs` turns further in the innermost loop, which has at least that many left; carries into the loops around it and then into the next copy. */
static void next_run(const struct corral_link *link, struct corral_link_cursor *cursor, uint64_t runs)
{
    const struct corral_reshard_copy *c = &link->copy[cursor->copy];
    cursor->in_run = 0;
    for (uint32_t d = c->dims; d-- > 0;) {
        cursor->index[d] += runs;
        cursor->source += runs * c->source_stride[d];
        cursor->destination += runs * c->destination_stride[d];
        if (cursor->index[d] < c->count[d]) {
            return;
        }
        cursor->index[d] = 0;
        cursor->source -= c->count[d] * c->source_stride[d];
        cursor->destination -= c->count[d] * c->destination_stride[d];
        runs = 1;
    }
    cursor->copy++;
    enter_copy(link, cursor);
}

static void take(const struct corral_link *link, struct corral_link_cursor *cursor, uint64_t bytes)
{
    cursor->at += bytes;
    cursor->in_run += bytes;
    if (cursor->in_run == link->copy[cursor->copy].run_bytes) {
        next_run(link, cursor, 1);
    }
}

static uint64_t run_left(const struct corral_link *link, const struct corral_link_cursor *cursor)
{
    return CORRAL_MIN(link->copy[cursor->copy].run_bytes - cursor->in_run, cursor->end - cursor->at);
}

bool corral_link_next(const struct corral_link *link, struct corral_link_cursor *cursor,
                      struct corral_span *span)
{
    if (cursor->at >= cursor->end) {
        return false;
    }
    struct corral_span s = {.source_offset = cursor->source + cursor->in_run,
                            .destination_offset = cursor->destination + cursor->in_run};
    do {
        uint64_t bytes = run_left(link, cursor);
        s.bytes += bytes;
        take(link, cursor, bytes);
    } while (cursor->at < cursor->end && cursor->source + cursor->in_run == s.source_offset + s.bytes &&
             cursor->destination + cursor->in_run == s.destination_offset + s.bytes);
    *span = s;
    return true;
}

bool corral_link_next_rows(const struct corral_link *link, struct corral_link_cursor *cursor,
                           struct corral_link_rows *rows)
{
    if (cursor->at >= cursor->end) {
        return false;
    }
    const struct corral_reshard_copy *c = &link->copy[cursor->copy];
    struct corral_link_rows r = {.source = cursor->source + cursor->in_run,
                                 .destination = cursor->destination + cursor->in_run,
                                 .bytes = run_left(link, cursor),
                                 .count = 1};
    if (c->dims == 0 || r.bytes < c->run_bytes) {
        take(link, cursor, r.bytes);
        *rows = r;
        return true;
    }
    uint32_t inner = c->dims - 1;
    r.count = CORRAL_MIN(c->count[inner] - cursor->index[inner], (cursor->end - cursor->at) / c->run_bytes);
    r.source_stride = c->source_stride[inner];
    r.destination_stride = c->destination_stride[inner];
    cursor->at += r.count * r.bytes;
    next_run(link, cursor, r.count);
    *rows = r;
    return true;
}

uint32_t corral_link_iovec(const struct corral_link *link, struct corral_link_cursor *cursor,
                           enum corral_link_side side, void *base, struct iovec *iov, uint32_t room)
{
    uint32_t n = 0;
    struct corral_span span;
    while (n < room && corral_link_next(link, cursor, &span)) {
        uint64_t offset = side == CORRAL_LINK_SOURCE ? span.source_offset : span.destination_offset;
        iov[n++] = (struct iovec){.iov_base = (uint8_t *)base + offset, .iov_len = span.bytes};
    }
    return n;
}
