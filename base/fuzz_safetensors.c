/* Any bytes are a safetensors file or one error; every byte of every tensor of a file can be read. */
#include "base/safetensors.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct corral_error err = {0};
    struct corral_safetensors *f = NULL;
    if (corral_safetensors_open_memory(&f, "fuzz", data, bytes, &err) != CORRAL_OK) {
        if (err.text[0] == '\0') {
            abort();
        }
        return 0;
    }
    uint32_t sum = 0;
    for (uint32_t i = 0; i < corral_safetensors_count(f); i++) {
        const struct corral_tensor *t = corral_safetensors_at(f, i);
        if (corral_safetensors_find(f, t->name) != t ||
            (uintptr_t)t->data % corral_dtype_bytes(t->dtype) != 0) {
            abort();
        }
        for (uint64_t k = 0; k < t->bytes; k++) {
            sum += ((const uint8_t *)t->data)[k];
        }
    }
    (void)corral_safetensors_metadata(f, "format");
    corral_safetensors_close(f);
    return sum == UINT32_MAX ? -1 : 0;
}
