#include "tests/check.h"

#include "base/error.h"
#include "base/rng.h"
#include "transport/weights/link/stream.h"
#include <stdlib.h>
#include <string.h>

#define ROOM 4096u
#define EDGE 64u

static uint8_t from[ROOM + 2 * EDGE], to[ROOM + 2 * EDGE];

static void check(size_t source, size_t destination, size_t bytes)
{
    memset(to, 0xee, sizeof to);
    corral_stream_copy(to + destination, from + source, bytes);
    assert_memory_equal(to + destination, from + source, bytes);
    for (size_t i = 0; i < sizeof to; i++) {
        if (i < destination || i >= destination + bytes) {
            assert_int_equal(to[i], 0xee);
        }
    }
}

static void copies_exactly_the_bytes_whatever_the_alignment(void **state)
{
    (void)state;
    static const size_t length[] = {0, 1, 63, 64, 65, 127, 128, 129, 1000, 4096};
    uint64_t random = 7;
    for (size_t i = 0; i < sizeof from; i++) {
        from[i] = (uint8_t)corral_splitmix64(&random);
    }
    for (size_t source = 0; source < EDGE; source += 7) {
        for (size_t destination = 0; destination < EDGE; destination++) {
            for (size_t i = 0; i < CORRAL_COUNT_OF(length); i++) {
                check(source, destination, length[i]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_exactly_the_bytes_whatever_the_alignment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
