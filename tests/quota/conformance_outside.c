/* A process that is running, seen from another one: for programs that cannot compare themselves, such as PyTorch's (tests/gpu). */
#include "tests/quota/conformance.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the ledger has of the process (or, when NVML does not know it, of everybody) must stay the same around the reading. */
#define READINGS_MAX 200
static uint64_t of_process(const struct test *t, pid_t pid)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < t->ledger->holder_high; i++) {
        const struct corral_ledger_holder *h = &t->ledger->holder[i];
        sum += h->pid == pid && h->device == t->device ? h->committed + h->reserved : 0;
    }
    return sum;
}

void compare_outside(struct test *t, pid_t pid)
{
    for (int i = 0; i < READINGS_MAX; i++) {
        uint64_t counted = 0, one = of_process(t, pid), all = all_used(t);
        enum physical_source source = physical_count(&t->physical, PHYSICAL_OF_PROCESS, &counted);
        check("the process is charged", one > 0, true);
        if (one != of_process(t, pid) || all != all_used(t)) {
            continue;
        }
        if (!physical_judge(&t->physical, source, counted, PHYSICAL_EQUAL,
                            source == PHYSICAL_NVML_PROCESS ? one : all, "from outside")) {
            exit(1); // NOLINT: a test program
        }
        return;
    }
    skip("compare", "the ledger does not keep still long enough");
}

void be_compared(struct test *t)
{
    CUdeviceptr p;
    char pid[16];
    int status = 1;
    check("allocation", t->cuda.cuMemAlloc_v2(&p, 100 * MIB), 0);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "conformance", "compare", pid, (char *)NULL);
        _exit(127);
    }
    check("compared", waitpid(child, &status, 0) == child && WIFEXITED(status), true);
    if (WEXITSTATUS(status) != SKIPPED) {
        check("compared", WEXITSTATUS(status), 0);
    }
    check("free", t->cuda.cuMemFree_v2(p), 0);
}
