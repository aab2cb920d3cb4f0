/* Bit-exact deltas of bf16 weights on one core: model bytes per second of encoding, of applying in place, and of both one after the other, per fraction of changed elements, spread evenly or in rows. The
 * yardstick is memcpy of the same bytes in the same run (an encode reads twice as much, an apply writes little). Every round trip is compared with the new version. The last columns are what is moved of the model and what
 * that makes of 9B parameters (18 GB). A digest of the new version is not included: with or without deltas each side computes one per push. Then the same for the casts to fp8.
 * usage: delta_bench [MiB] [rounds]; figures are medians with their spread (min … max). */
#include "base/clock.h"
#include "base/rng.h"
#include "transport/weights/cast/cast.h"
#include "transport/weights/delta/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS_MAX 31
#define PART_BYTES (64u << 20)
#define ROW 4096u

struct figure {
    double median, min, max;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct figure summarise(double *sample, uint32_t rounds)
{
    qsort(sample, rounds, sizeof *sample, by_value);
    return (struct figure){.median = sample[rounds / 2], .min = sample[0], .max = sample[rounds - 1]};
}

/* Processor time of this thread: neighbours on the machine disturb it less than the clock on the wall. */
static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void must(enum corral_status status, const struct corral_error *err)
{
    if (status != CORRAL_OK) {
        fprintf(stderr, "delta_bench: %s\n", err->text);
        exit(1);
    }
}

static void *memory(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 4096, bytes) != 0) {
        fprintf(stderr, "delta_bench: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 1, bytes);
    return p;
}

struct load {
    uint16_t *base, *next, *shadow;
    uint8_t *delta;
    size_t bytes, room;
    uint32_t rounds;
    double memcpy_rate;
};

/* Each element with the same chance, or whole rows of 4,096 as rows of an embedding change. */
static void change(struct load *l, double fraction, bool rows)
{
    struct corral_rng rng;
    corral_rng_seed(&rng, 1);
    memcpy(l->next, l->base, l->bytes);
    size_t elements = l->bytes / 2;
    bool chosen = false;
    for (size_t i = 0; i < elements; i++) {
        if (!rows || i % ROW == 0) {
            chosen = fraction >= 1 || corral_rng_uniform(&rng) < fraction;
        }
        if (chosen) {
            l->next[i] ^= 1;
        }
    }
}

static struct corral_delta_part part_at(const struct load *l, size_t at)
{
    return (struct corral_delta_part){.element_bytes = 2,
                                      .first = at / 2,
                                      .elements = CORRAL_MIN(l->bytes - at, PART_BYTES) / 2,
                                      .total = l->bytes / 2,
                                      .base = {1, {1, 1}},
                                      .next = {2, {2, 2}}};
}

/* Part by part, as buckets go: encode, apply. Returns bytes moved. */
static size_t round_trip(const struct load *l, const struct corral_delta_kernels *k, double *encode_s,
                         double *apply_s, uint64_t *changed)
{
    struct corral_error err;
    size_t moved = 0;
    *encode_s = *apply_s = 0;
    *changed = 0;
    for (size_t at = 0; at < l->bytes; at += PART_BYTES) {
        struct corral_delta_part part = part_at(l, at);
        struct corral_delta_stats stats;
        size_t bytes;
        uint64_t begun = now_ns();
        must(corral_delta_encode_with(k, &part, l->base + at / 2, l->next + at / 2, l->delta, l->room, &bytes,
                                      &stats, &err),
             &err);
        uint64_t encoded = now_ns();
        must(corral_delta_apply_with(k, &part, l->delta, bytes, l->shadow + at / 2, l->shadow + at / 2, &err),
             &err);
        *encode_s += (double)(encoded - begun) / 1e9;
        *apply_s += (double)(now_ns() - encoded) / 1e9;
        *changed += stats.changed;
        moved += bytes;
    }
    return moved;
}

static void measure(struct load *l, const struct corral_delta_kernels *k, double fraction, bool rows)
{
    double encode[ROUNDS_MAX], apply[ROUNDS_MAX], both[ROUNDS_MAX];
    size_t moved = 0;
    uint64_t changed = 0;
    change(l, fraction, rows);
    for (uint32_t i = 0; i < l->rounds; i++) {
        double e, a, gb = (double)l->bytes / 1e9;
        memcpy(l->shadow, l->base, l->bytes);
        moved = round_trip(l, k, &e, &a, &changed);
        if (memcmp(l->shadow, l->next, l->bytes) != 0) {
            fprintf(stderr, "delta_bench: the round trip is not exact\n");
            exit(1);
        }
        encode[i] = gb / e;
        apply[i] = gb / a;
        both[i] = gb / (e + a);
    }
    struct figure e = summarise(encode, l->rounds), a = summarise(apply, l->rounds),
                  b = summarise(both, l->rounds);
    double part = (double)moved / (double)l->bytes;
    printf("%-7s %8.3f %% %-5s %6.2f (%.1f … %.1f) %7.2f (%.1f … %.1f) %6.2f (%.1f … %.1f) %5.2f %8.3f %% "
           "%8.0f MB\n",
           k->name, 100 * (double)changed / ((double)l->bytes / 2), rows ? "rows" : "even", e.median, e.min,
           e.max, a.median, a.min, a.max, b.median, b.min, b.max, b.median / l->memcpy_rate, 100 * part,
           part * 18e9 / 1e6);
}

static double memcpy_rate(const struct load *l)
{
    double rate[ROUNDS_MAX];
    for (uint32_t i = 0; i < l->rounds; i++) {
        uint64_t begun = now_ns();
        memcpy(l->shadow, l->base, l->bytes);
        rate[i] = (double)l->bytes / (double)(now_ns() - begun);
    }
    struct figure f = summarise(rate, l->rounds);
    printf("memcpy of %zu MiB: %.2f GB/s (%.2f … %.2f)\n", l->bytes >> 20, f.median, f.min, f.max);
    return f.median;
}

static void casts(const struct load *l)
{
    static const struct {
        const char *name;
        enum corral_cast_scaling scaling;
    } ways[] = {
        {"one scale", CORRAL_CAST_TENSOR}, {"1 × 128", CORRAL_CAST_BLOCKS}, {"128 × 128", CORRAL_CAST_TILES}};
    struct corral_error err;
    for (size_t i = 0; i < CORRAL_COUNT_OF(ways); i++) {
        struct corral_cast c = {.from = CORRAL_DTYPE_BF16,
                                .to = CORRAL_DTYPE_F8_E4M3,
                                .scaling = ways[i].scaling,
                                .rows = PART_BYTES / 2 / ROW,
                                .columns = ROW};
        double rate[ROUNDS_MAX];
        float *scales = memory(corral_cast_scale_count(&c) * sizeof *scales);
        for (uint32_t r = 0; r < l->rounds; r++) {
            uint64_t begun = now_ns();
            must(corral_cast_run(&c, l->base, l->shadow, scales, &err), &err);
            rate[r] = (double)PART_BYTES / (double)(now_ns() - begun);
        }
        struct figure f = summarise(rate, l->rounds);
        printf("bf16 to e4m3, %-10s %6.2f GB/s of bf16 (%.2f … %.2f), %.2f of memcpy\n", ways[i].name,
               f.median, f.min, f.max, f.median / l->memcpy_rate);
        free(scales);
    }
}

int main(int argc, char **argv)
{
    static const double fractions[] = {0, 0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1};
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 256;
    uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 7;
    if (mib < 64 || mib > 8192 || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: delta_bench [64 to 8192 MiB] [1 to %d rounds]\n", ROUNDS_MAX);
        return 2;
    }
    struct load l = {.bytes = mib << 20, .rounds = rounds};
    struct corral_delta_part largest = {.element_bytes = 2, .elements = PART_BYTES / 2};
    l.room = corral_delta_room(&largest);
    l.base = memory(l.bytes);
    l.next = memory(l.bytes);
    l.shadow = memory(l.bytes);
    l.delta = memory(l.room);
    struct corral_rng rng;
    corral_rng_seed(&rng, 2);
    for (size_t i = 0; i < l.bytes / 2; i++) {
        uint64_t r = corral_rng_next(&rng);
        l.base[i] = (uint16_t)((r & 0x807F) | (0x3C00 + (r >> 32) % 8 * 0x80));
    }
    l.memcpy_rate = memcpy_rate(&l);
    printf("GB/s of model bytes; both / memcpy; part of the model that is moved; of 9B\n");
    printf("kernels    changed          encode               apply                both           ratio   "
           "moved         9B\n");
    const struct corral_delta_kernels *all[DELTA_KERNELS_MAX];
    uint32_t kernels = corral_delta_kernels_all(all);
    for (uint32_t k = 0; k < kernels; k++) {
        bool best = k + 1 == kernels;
        for (size_t i = 0; i < CORRAL_COUNT_OF(fractions); i++) {
            if (best || fractions[i] == 0.01) {
                measure(&l, all[k], fractions[i], false);
            }
            if (best && fractions[i] > 0 && fractions[i] < 1) {
                measure(&l, all[k], fractions[i], true);
            }
        }
    }
    casts(&l);
    free(l.base);
    free(l.next);
    free(l.shadow);
    free(l.delta);
    return 0;
}
