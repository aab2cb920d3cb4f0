/* For tests: this very program as the canary process of limits, on the fake driver, and a stand-in for NVIDIA's control program with the file of its daemon. */
#ifndef CORRAL_QUOTA_FENCES_TEST_CANARY_H
#define CORRAL_QUOTA_FENCES_TEST_CANARY_H

#include "quota/fences/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* First in main(): true when it was started as a canary, with the exit code. */
static inline bool test_canary(int argc, char **argv, int *code)
{
    struct corral_cuda_limit_result result;
    struct corral_error err = {0};
    char text[CORRAL_CUDA_LIMIT_TEXT];
    if (argc != 5 || strcmp(argv[1], "canary") != 0 || strcmp(argv[2], "--limit") != 0) {
        return false;
    }
    *code = corral_cuda_limit_canary(strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), &result,
                                     &err) == CORRAL_OK
                ? 0
                : 1;
    if (*code == 0) {
        corral_cuda_limit_write(&result, text);
    }
    printf("%s", *code == 0 ? text : err.text);
    return true;
}

/* "GPU-…" of the fake driver's device 0, for processes that share `state_file`. */
static inline void test_fake_gpu(const char *state_file)
{
    setenv("LD_LIBRARY_PATH", FAKE_DRIVER, 1);
    setenv("CORRAL_FAKECUDA_STATE", state_file, 1);
    corral_fence_canary_is("/proc/self/exe");
}

static inline void test_no_gpu(void)
{
    corral_fence_canary_is(NULL);
    unsetenv("CORRAL_FAKECUDA_STATE");
    unsetenv("LD_LIBRARY_PATH");
}

static inline void test_gpu_uuid(char uuid[64])
{
    char why[FENCE_WHY_BYTES] = "";
    struct corral_cuda_limit_result r = {0};
    const struct fence_canary_spec spec = {0};
    if (!fence_canary_run(&spec, &r, why)) {
        fail_msg("%s", why);
    }
    memcpy(uuid, r.uuid, sizeof r.uuid);
}

#endif
