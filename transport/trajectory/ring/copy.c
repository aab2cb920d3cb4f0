/* Moving bytes between two processors' caches. A store to a line that the other side has read must first take it away there, one line at a time: tens to hundreds of nanoseconds each. Two ways around it:
 * large records are stored past the caches, small ones are put back to memory by the consumer when it is done with them. Both are hints; on another processor they are plain copies and nothing. */
#include "transport/trajectory/ring/layout.h"

#include <string.h>

#define STREAM_BYTES_MIN 2048u
#define FORGET_BYTES_MAX (STREAM_BYTES_MIN + RING_HEADER_BYTES) /* above, the producer streams */

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

void corral_ring_copy(void *to, const void *from, uint64_t bytes)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    uint64_t head = -(uintptr_t)d & RING_LOW;
    if (bytes < STREAM_BYTES_MIN) {
        memcpy(to, from, bytes);
        return;
    }
    memcpy(d, s, head);
    uint64_t i = head;
    for (; i + 64 <= bytes; i += 64) {
        for (int k = 0; k < 64; k += 16) {
            _mm_stream_si128((__m128i *)(d + i + k), _mm_loadu_si128((const __m128i *)(s + i + k)));
        }
    }
    memcpy(d + i, s + i, bytes - i);
    _mm_sfence(); /* streamed stores are not ordered by the release of the commit */
}

static bool has_clflushopt(void)
{
    unsigned a, b = 0, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_CLFLUSHOPT) != 0;
}

__attribute__((target("clflushopt"))) void ring_forget(const void *at, uint64_t bytes)
{
    static _Atomic int known; /* 0: not looked yet, 1: no, 2: yes; relaxed: every thread finds the same */
    int have = atomic_load_explicit(&known, memory_order_relaxed);
    if (__builtin_expect(have == 0, 0)) {
        have = has_clflushopt() ? 2 : 1;
        atomic_store_explicit(&known, have, memory_order_relaxed);
    }
    if (have == 2 && bytes <= FORGET_BYTES_MAX) {
        for (uint64_t i = 0; i < bytes; i += 64) {
            _mm_clflushopt((void *)((uintptr_t)at + i));
        }
    }
}

#else

void corral_ring_copy(void *to, const void *from, uint64_t bytes)
{
    memcpy(to, from, bytes);
}

void ring_forget(const void *at, uint64_t bytes)
{
    (void)at;
    (void)bytes;
}

#endif
