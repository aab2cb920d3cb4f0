#include "bench/weights_memory.h"
#include "base/rng.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SOURCE_WINDOW (64u << 20)
#define WINDOW_MIN (1u << 20)

/* ---- sources ---- */

static enum corral_status map_again(uint8_t *base, uint64_t bytes, int fd, struct corral_error *err)
{
    for (uint64_t at = 0; at < bytes; at += SOURCE_WINDOW) {
        if (mmap(base + at, SOURCE_WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
            MAP_FAILED) {
            return corral_fail_sys(err, errno, "mapping a window over %" PRIu64 " bytes", bytes);
        }
    }
    return CORRAL_OK;
}

enum corral_status bench_source(struct corral_shard *out, uint64_t bytes, uint64_t seed,
                                struct corral_error *err)
{
    uint64_t room = (bytes / SOURCE_WINDOW + 1) * SOURCE_WINDOW;
    CORRAL_AUTO_CLOSE int fd = memfd_create("source", MFD_CLOEXEC);
    uint8_t *base = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fd < 0 || ftruncate(fd, SOURCE_WINDOW) != 0 || base == MAP_FAILED) {
        return corral_fail_sys(err, errno, "making a source of %" PRIu64 " bytes", bytes);
    }
    CORRAL_TRY(map_again(base, room, fd, err));
    *out = corral_shard_host(base, bytes);
    bench_source_change(out, seed);
    return CORRAL_OK;
}

void bench_source_change(const struct corral_shard *source, uint64_t seed)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    for (uint64_t i = 0; i < CORRAL_MIN((uint64_t)SOURCE_WINDOW, source->bytes / 8 * 8 + 8) / 8; i++) {
        ((uint64_t *)source->host)[i] = corral_rng_next(&rng);
    }
}

void bench_source_step(struct corral_shard *source, struct corral_shard *before, double fraction,
                       uint64_t seed)
{
    uint64_t bytes = CORRAL_MIN((uint64_t)SOURCE_WINDOW, source->bytes), elements = bytes / 2;
    uint16_t *element = source->host;
    struct corral_rng rng;
    corral_rng_seed(&rng, seed);
    memcpy(before->host, source->host, bytes);
    for (uint64_t n = (uint64_t)((double)elements * fraction); n > 0; n--) {
        element[corral_rng_below(&rng, elements)] ^= (uint16_t)(1 + corral_rng_below(&rng, 127));
    }
}

/* ---- bases ---- */

static enum corral_status base_fetch(struct corral_shard *shard, const struct corral_link *link,
                                     uint32_t bucket, void *packed, struct corral_error *err)
{
    (void)err;
    const struct corral_shard *before = shard->ctx;
    corral_link_pack(link, bucket, before[link->source].host, packed);
    return CORRAL_OK;
}

struct corral_shard bench_base_shard(struct corral_shard *before, uint64_t bytes)
{
    static const struct corral_shard_ops ops = {.name = "before", .fetch = base_fetch};
    return (struct corral_shard){.ops = &ops, .bytes = bytes, .fd = -1, .device = -1, .ctx = before};
}

/* ---- destinations ---- */

struct window {
    const struct corral_link *link;
    uint64_t bytes;
    uint8_t *memory;
    struct corral_digest *digest; /* per bucket */
};
struct bench_destination {
    uint32_t count;
    struct window window[];
};

/* How far apart the first and the last byte of a bucket may lie, whichever bucket. */
static uint64_t reach_of(const struct corral_link *link)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < link->buckets; i++) {
        struct corral_link_cursor cursor = corral_link_seek(link, i);
        struct corral_span span;
        uint64_t first = UINT64_MAX, end = 0;
        while (corral_link_next(link, &cursor, &span)) {
            first = CORRAL_MIN(first, span.destination_offset);
            end = CORRAL_MAX(end, span.destination_offset + span.bytes);
        }
        most = CORRAL_MAX(most, end - first);
    }
    return most;
}

enum corral_status bench_destination_create(struct bench_destination **out, struct corral_link *const *links,
                                            uint32_t count, struct corral_error *err)
{
    struct bench_destination *d = calloc(1, sizeof *d + count * sizeof d->window[0]);
    for (uint32_t i = 0; d && i < count; i++) {
        struct window *w = &d->window[i];
        w->link = links[i];
        w->bytes = (reach_of(links[i]) / WINDOW_MIN + 1) * WINDOW_MIN;
        w->memory = mmap(NULL, w->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        w->digest = calloc((size_t)links[i]->buckets + 1, sizeof *w->digest);
        if (w->memory == MAP_FAILED || !w->digest) {
            return corral_fail(err, CORRAL_NOMEM, "no memory for a window of %" PRIu64 " bytes", w->bytes);
        }
        d->count++;
    }
    if (!d) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for %u windows", count);
    }
    *out = d;
    return CORRAL_OK;
}

void bench_destination_forget(struct bench_destination *d)
{
    for (uint32_t i = 0; i < d->count; i++) {
        memset(d->window[i].digest, 0, d->window[i].link->buckets * sizeof *d->window[i].digest);
    }
}

uint64_t bench_destination_memory(const struct bench_destination *d)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        bytes += d->window[i].bytes;
    }
    return bytes;
}

/* Runs of the window that a span covers: two when it goes over the end. */
static uint64_t run_at(const struct window *w, uint64_t offset, uint64_t left, uint8_t **at)
{
    uint64_t within = offset % w->bytes;
    *at = w->memory + within;
    return CORRAL_MIN(left, w->bytes - within);
}

static struct corral_digest digest_window(const struct window *w, uint32_t bucket)
{
    struct corral_digest_state state;
    const struct corral_link *link = w->link;
    uint64_t head[3] = {htole64(link->hash.lo), htole64(link->hash.hi), htole64(bucket)};
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_span span;
    corral_digest_begin(&state);
    corral_digest_add(&state, head, sizeof head);
    while (corral_link_next(link, &cursor, &span)) {
        for (uint64_t done = 0; done < span.bytes;) {
            uint8_t *at;
            uint64_t n = run_at(w, span.destination_offset + done, span.bytes - done, &at);
            corral_digest_add(&state, at, n);
            done += n;
        }
    }
    return corral_digest_end(&state);
}

static enum corral_status scatter(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                  const void *packed, struct corral_error *err)
{
    (void)err;
    const struct bench_destination *d = shard->ctx;
    const struct window *w = &d->window[link->source];
    const uint8_t *from = packed;
    struct corral_link_cursor cursor = corral_link_seek(link, bucket);
    struct corral_span span;
    while (corral_link_next(link, &cursor, &span)) {
        for (uint64_t done = 0; done < span.bytes;) {
            uint8_t *at;
            uint64_t n = run_at(w, span.destination_offset + done, span.bytes - done, &at);
            memcpy(at, from, n);
            from += n;
            done += n;
        }
    }
    w->digest[bucket] = digest_window(w, bucket);
    return CORRAL_OK;
}

static enum corral_status digest(struct corral_shard *shard, const struct corral_link *link,
                                 enum corral_link_side side, uint32_t bucket, struct corral_digest *out,
                                 struct corral_error *err)
{
    (void)side, (void)err;
    *out = bench_destination_digest(shard->ctx, link->source, bucket);
    return CORRAL_OK;
}

static enum corral_status gather(struct corral_shard *shard, const struct corral_link *link, uint32_t bucket,
                                 void *packed, struct corral_error *err)
{
    (void)shard, (void)link, (void)bucket, (void)packed;
    return corral_fail(err, CORRAL_UNSUPPORTED, "a destination only");
}

struct corral_shard bench_destination_shard(struct bench_destination *d, uint64_t bytes)
{
    static const struct corral_shard_ops ops = {
        .name = "windows", .gather = gather, .scatter = scatter, .digest = digest};
    return (struct corral_shard){.ops = &ops, .bytes = bytes, .fd = -1, .device = -1, .ctx = d};
}

struct corral_digest bench_destination_digest(const struct bench_destination *d, uint32_t source,
                                              uint32_t bucket)
{
    return d->window[source].digest[bucket];
}
