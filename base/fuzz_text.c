/* Quantities and names on any text: an accepted quantity prints exactly and parses back to itself. */
#include "base/text.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    CORRAL_AUTO_FREE char *text = malloc(bytes + 1);
    if (text == NULL) {
        return 0;
    }
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    static const char *const names[] = {"partition", "trainer", "rollout"};
    struct corral_error err;
    uint64_t value;
    uint64_t back;
    char exact[32];
    if (corral_parse_bytes(text, &value, &err) == CORRAL_OK &&
        (corral_parse_bytes(corral_format_bytes_exact(value, exact, sizeof exact), &back, &err) !=
             CORRAL_OK ||
         back != value)) {
        abort();
    }
    if (corral_parse_duration(text, &value, &err) == CORRAL_OK &&
        (corral_parse_duration(corral_format_duration_exact(value, exact, sizeof exact), &back, &err) !=
             CORRAL_OK ||
         back != value)) {
        abort();
    }
    (void)corral_parse_u64(text, &value);
    (void)corral_nearest(text, names, CORRAL_COUNT_OF(names));
    return 0;
}
