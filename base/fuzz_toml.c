/* Any bytes are a document or one error with a place; every node of a document can be visited. */
#include "base/toml.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void visit(const struct corral_toml_node *n)
{
    if (corral_toml_kind(n) == CORRAL_TOML_STRING && corral_toml_string(n) == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < corral_toml_table_size(n); i++) {
        if (corral_toml_table_get(n, corral_toml_table_key(n, i)) != corral_toml_table_at(n, i)) {
            abort();
        }
        visit(corral_toml_table_at(n, i));
    }
    for (uint32_t i = 0; i < corral_toml_array_size(n); i++) {
        visit(corral_toml_array_at(n, i));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct corral_error err;
    struct corral_toml_doc *doc = NULL;
    enum corral_status status = corral_toml_parse(&doc, "fuzz", (const char *)data, bytes, &err);
    if (status == CORRAL_OK) {
        visit(corral_toml_root(doc));
        corral_toml_destroy(doc);
    } else if (status != CORRAL_INVALID || strncmp(err.text, "fuzz:", 5) != 0 ||
               strchr(err.text, '\n') != NULL) {
        abort();
    }
    return 0;
}
