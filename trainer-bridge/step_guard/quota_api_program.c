/* A trainer written outside, against <corral/quota.h> and libcorral alone. quota_api_test.c starts it under a quota.
 * usage: quota_api_program steps COUNT | none | state | pressure */
#include <corral/quota.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct corral_error err;

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", what, corral_status_name(err.status), err.text);
    return 1;
}

static int steps(struct corral_quota_client *q, long count)
{
    for (long i = 1; i <= count; i++) {
        struct corral_step_result result = {.size = sizeof result};
        if (corral_step_begin(q, (uint64_t)i, 1u << 20, &err) != CORRAL_OK) {
            return fail("begin");
        }
        corral_quota_phase(q, CORRAL_QUOTA_PHASE_BACKWARD);
        if (corral_step_end(q, &result, &err) != CORRAL_OK) {
            return fail("end");
        }
        if (result.step != (uint64_t)i || result.verdict != 0 || strlen(result.hash) != 64 || result.why[0]) {
            fprintf(stderr, "step %ld: verdict %u: %s\n", i, result.verdict, result.why);
            return 1;
        }
    }
    if (corral_step_begin(q, (uint64_t)count + 1, UINT64_C(1) << 40, &err) != CORRAL_DENIED) {
        return fail("a step beyond the ceiling was not refused");
    }
    if (corral_step_begin(q, (uint64_t)count + 1, 0, &err) != CORRAL_OK) {
        return fail("begin after the refusal");
    }
    corral_step_abandon(q);
    return corral_step_end(q, NULL, &err) == CORRAL_STATE ? 0 : fail("an abandoned step ended");
}

static int state(struct corral_quota_client *q)
{
    struct corral_quota_state s = {.size = sizeof s}, wrong = {.size = 0};
    if (corral_quota_state(q, &s, &err) != CORRAL_OK) {
        return fail("state");
    }
    if (corral_quota_state(q, &wrong, &err) != CORRAL_INVALID) {
        return fail("a struct without its size was taken");
    }
    if (corral_step_begin(q, 1, 0, &err) != CORRAL_STATE) {
        return fail("a process that is no trainer began a step");
    }
    printf("%s %s %llu %llu %llu %llu %u\n", s.device, s.role, (unsigned long long)s.floor,
           (unsigned long long)s.ceiling, (unsigned long long)s.used, (unsigned long long)s.available,
           s.frozen);
    return 0;
}

static void on_pressure(void *ctx, uint64_t wanted)
{
    char line[64];
    int bytes = snprintf(line, sizeof line, "%llu\n", (unsigned long long)wanted);
    if (write(*(int *)ctx, line, (size_t)bytes) != bytes) {
        _exit(3);
    }
}

/* Tells the test that it listens, passes on what it is asked for, ends when its input does. */
static int pressure(struct corral_quota_client *q)
{
    int out = STDOUT_FILENO;
    char byte;
    if (corral_quota_on_pressure(q, on_pressure, &out, &err) != CORRAL_OK) {
        return fail("on_pressure");
    }
    if (write(out, "listening\n", 10) != 10) {
        return 1;
    }
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    return corral_quota_on_pressure(q, NULL, NULL, &err) == CORRAL_OK ? 0 : fail("taking the callback away");
}

int main(int argc, char **argv)
{
    struct corral_quota_client *q = NULL;
    enum corral_status status = corral_quota_open(&q, &err);
    corral_quota_close(NULL);
    if (argc > 1 && strcmp(argv[1], "none") == 0) {
        return status == CORRAL_NOT_FOUND ? 0 : 1;
    }
    if (status != CORRAL_OK) {
        return fail("open");
    }
    int code = argc > 2 && strcmp(argv[1], "steps") == 0      ? steps(q, strtol(argv[2], NULL, 10))
               : argc > 1 && strcmp(argv[1], "pressure") == 0 ? pressure(q)
                                                              : state(q);
    corral_quota_close(q);
    return code;
}
