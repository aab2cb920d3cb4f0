#include "orchestrator/agent/gpu_claim.h"
#include "tests/check.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void a_gpu_belongs_to_one_agent_until_it_lets_go(void **state)
{
    (void)state;
    char mine[64], other[64];
    snprintf(mine, sizeof mine, "GPU-test-%d", (int)getpid());
    snprintf(other, sizeof other, "GPU-test-%d-other", (int)getpid());
    struct corral_error err;
    int first = -1, second = -1, third = -1;
    assert_int_equal(corral_gpu_claim(mine, &first, &err), CORRAL_OK);
    assert_int_equal(corral_gpu_claim(mine, &second, &err), CORRAL_EXISTS);
    assert_non_null(strstr(err.text, "is fenced by another run on this machine"));
    assert_int_equal(second, -1);
    assert_int_equal(corral_gpu_claim(other, &third, &err), CORRAL_OK);
    close(first);
    assert_int_equal(corral_gpu_claim(mine, &second, &err), CORRAL_OK);
    close(second);
    close(third);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpu_belongs_to_one_agent_until_it_lets_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
