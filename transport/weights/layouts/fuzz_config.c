/* Any text is a model's configuration or one error; a model that is accepted has a countable number of parameters, all of which can be named. */
#include "transport/weights/layouts/parameters.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct corral_error err = {0};
    struct corral_layouts_model m;
    if (corral_layouts_model_from_config(&m, "fuzz", (const char *)data, bytes, &err) != CORRAL_OK) {
        if (err.text[0] == '\0') {
            abort();
        }
        return 0;
    }
    for (uint32_t i = 0; i < corral_layouts_count(&m); i++) {
        struct parameter p;
        corral_layouts_parameter(&m, i, &p);
        if (p.name[0] == '\0' || p.rows == 0) {
            abort();
        }
    }
    return 0;
}
