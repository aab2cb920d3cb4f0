/* conformance_test LANE [streams=N] [window=N] [host=ADDRESS] [device=NAME] [zero-copy=always|never]: the suite on one lane. Exits 77 with the reason when this machine or build has not got it. */
#include "tests/check.h"

#include "transport/weights/lanes/conformance.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool take_option(const char *argument, struct corral_lane_options *options)
{
    const char *value = strchr(argument, '=');
    if (value == NULL) {
        return false;
    }
    size_t name = (size_t)(value++ - argument);
    if (strncmp(argument, "streams", name) == 0) {
        options->streams = (uint32_t)strtoul(value, NULL, 10);
    } else if (strncmp(argument, "window", name) == 0) {
        options->window = (uint32_t)strtoul(value, NULL, 10);
    } else if (strncmp(argument, "host", name) == 0) {
        options->local_host = value;
    } else if (strncmp(argument, "device", name) == 0) {
        options->device = value;
    } else if (strcmp(argument, "zero-copy=always") == 0) {
        options->zero_copy = CORRAL_LANE_ZERO_COPY_ALWAYS;
    } else if (strcmp(argument, "zero-copy=never") == 0) {
        options->zero_copy = CORRAL_LANE_ZERO_COPY_NEVER;
    } else {
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct corral_error err;
    if (argc < 2) {
        fprintf(
            stderr,
            "usage: %s LANE [streams=N] [window=N] [host=ADDRESS] [device=NAME] [zero-copy=always|never]\n",
            argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        if (!take_option(argv[i], &conformance.options)) {
            fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
            return 2;
        }
    }
    conformance.ops = corral_lane_named(argv[1]);
    if (conformance.ops == NULL) {
        printf("skipped: this build has no lane called %s\n", argv[1]);
        return CORRAL_TEST_SKIPPED;
    }
    if (conformance.ops->available(&conformance.options, &err) != CORRAL_OK) {
        printf("skipped: %s\n", err.text);
        return CORRAL_TEST_SKIPPED;
    }
    struct CMUnitTest *all = calloc(conformance_moves_count + conformance_deaths_count, sizeof *all);
    if (all == NULL) {
        return 1;
    }
    memcpy(all, conformance_moves, conformance_moves_count * sizeof *all);
    memcpy(all + conformance_moves_count, conformance_deaths, conformance_deaths_count * sizeof *all);
    int failed =
        _cmocka_run_group_tests(argv[1], all, conformance_moves_count + conformance_deaths_count, NULL, NULL);
    free(all);
    return failed == 0 ? 0 : 1;
}
