/* The argument parser takes any text: it answers yes or no, with values in range, and writes nowhere else. */
#include "envs/common.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int64_t values[ARG_VALUES_MAX];
    struct arg args[] = {
        {.name = "size", .low = 2, .high = 32, .value = 8},
        {.name = "walls", .low = 0, .high = 1023, .list = true, .values = values},
        {.name = "x", .low = -5, .high = INT64_MAX},
    };
    char error[64] = "";
    char *text = malloc(size + 1);
    if (text == NULL) {
        return 0;
    }
    memcpy(text, data, size);
    text[size] = '\0';
    bool ok = args_parse(text, args, 3, error, sizeof error);
    bool in_range = args[0].value >= 2 && args[0].value <= 32 && args[1].count <= ARG_VALUES_MAX;
    for (uint32_t i = 0; i < args[1].count; i++) {
        in_range = in_range && values[i] >= 0 && values[i] <= 1023;
    }
    if ((ok && !in_range) || (!ok && error[0] == '\0')) {
        abort();
    }
    free(text);
    return 0;
}
