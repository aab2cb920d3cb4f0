#include "transport/weights/link/stream.h"

#include "base/error.h"
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>

#define LINE 64u

/* `lines` of 64 bytes to where a line begins. Wider registers than these change nothing: memory is what both wait for. */
static void copy_lines(uint8_t *to, const uint8_t *from, size_t lines)
{
    for (; lines > 0; lines--, to += LINE, from += LINE) {
        __m128i a = _mm_loadu_si128((const __m128i *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_stream_si128((__m128i *)to, a);
        _mm_stream_si128((__m128i *)(to + 16), b);
        _mm_stream_si128((__m128i *)(to + 32), c);
        _mm_stream_si128((__m128i *)(to + 48), d);
    }
}

__attribute__((target("avx"))) static void copy_lines_avx(uint8_t *to, const uint8_t *from, size_t lines)
{
    for (; lines > 0; lines--, to += LINE, from += LINE) {
        __m256i a = _mm256_loadu_si256((const __m256i *)from);
        __m256i b = _mm256_loadu_si256((const __m256i *)(from + 32));
        _mm256_stream_si256((__m256i *)to, a);
        _mm256_stream_si256((__m256i *)(to + 32), b);
    }
}

void corral_stream_copy(void *to, const void *from, size_t bytes)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    /* A line goes past the caches only when all of it is written. */
    size_t head = CORRAL_MIN(-(uintptr_t)out % LINE, bytes);
    memcpy(out, in, head);
    size_t lines = (bytes - head) / LINE, done = head + lines * LINE;
    if (__builtin_cpu_supports("avx")) {
        copy_lines_avx(out + head, in + head, lines);
    } else {
        copy_lines(out + head, in + head, lines);
    }
    _mm_sfence(); /* such stores pass others: without it a release store could be seen before them */
    memcpy(out + done, in + done, bytes - done);
}
#else
void corral_stream_copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
#endif
