/* Runs one body on every rank of a group of any implementation, as threads or as forked processes. Bodies report by the line
 * number of what failed (EXPECT), since assertions belong to the test's own thread. */
#ifndef CORRAL_TRANSPORT_COLLECTIVE_TEST_RANKS_H
#define CORRAL_TRANSPORT_COLLECTIVE_TEST_RANKS_H

#include "transport/collective/collective.h"
#include <stdatomic.h>
#include <stdbool.h>

enum test_kind { TEST_SELF, TEST_SHM, TEST_TCP };

struct test_lane {
    enum test_kind kind;
    bool forked;
    uint32_t ranks, timeout_ms;
};

/* Shared by all ranks, zeroed for each run. */
struct test_shared {
    _Atomic uint32_t arrived, finished;
};

typedef int (*test_body_fn)(struct corral_collective *c, struct test_shared *shared);

#define EXPECT(condition)    \
    do {                     \
        if (!(condition)) {  \
            return __LINE__; \
        }                    \
    } while (0)

#define TEST_DIED (-9) /* the rank's process was killed */

/* result[r]: 0, the failing line, or TEST_DIED. */
void test_run_ranks(const struct test_lane *lane, test_body_fn body, int *result);
/* As above, and every result must be 0. */
void test_all_ranks(const struct test_lane *lane, test_body_fn body);

#endif
