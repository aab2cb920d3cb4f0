/* conformance_cuda_test LANE: the cases of the lanes' suite that move bytes, for lanes of device memory. Those with two processes fork after the driver was used, which the driver does not allow:
 * pair_test.c has them. Exits 77 with the reason when the lane is not available. */
#include "tests/check.h"

#include "transport/weights/lanes/conformance.h"
#include <stdio.h>

int main(int argc, char **argv)
{
    struct corral_error err;
    conformance.ops = argc == 2 ? corral_lane_named(argv[1]) : NULL;
    if (conformance.ops == NULL) {
        fprintf(stderr, "usage: %s cuda_ipc|nccl\n", argv[0]);
        return 2;
    }
    if (conformance.ops->available(&conformance.options, &err) != CORRAL_OK) {
        printf("skipped: %s\n", err.text);
        return CORRAL_TEST_SKIPPED;
    }
    return _cmocka_run_group_tests(argv[1], conformance_moves, conformance_moves_count, NULL, NULL) == 0 ? 0
                                                                                                         : 1;
}
