/* The JSON reader on any bytes: what it accepts is written and read back the same. */
#include "base/json.h"
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    json_t *value = NULL;
    if (corral_json_parse(&value, "fuzz", (const char *)data, bytes, NULL) != CORRAL_OK) {
        return 0;
    }
    char *text = NULL;
    size_t text_bytes = 0;
    FILE *to = open_memstream(&text, &text_bytes);
    json_t *back = NULL;
    if (to == NULL || corral_json_line(to, value, NULL) != CORRAL_OK || fclose(to) != 0 ||
        corral_json_parse(&back, "back", text, text_bytes, NULL) != CORRAL_OK || !json_equal(value, back)) {
        abort();
    }
    free(text);
    json_decref(back);
    json_decref(value);
    return 0;
}
