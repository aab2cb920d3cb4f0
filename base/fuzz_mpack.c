/* The message reader on any bytes: whatever it accepts can be walked through every getter. */
#include "base/mpack.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void walk(const struct corral_mpack_node *node, int depth)
{
    uint64_t u;
    int64_t i;
    double f;
    bool b;
    char text[32];
    const void *blob;
    size_t blob_bytes;
    const struct corral_mpack_node *inner;
    (void)corral_mpack_node_u64(node, &u, NULL);
    (void)corral_mpack_node_f64(node, &f, NULL);
    (void)corral_mpack_node_str(node, text, sizeof text, NULL);
    (void)corral_mpack_get_u64(node, "k", &u, NULL);
    (void)corral_mpack_get_i64(node, "k", &i, NULL);
    (void)corral_mpack_get_f64(node, "k", &f, NULL);
    (void)corral_mpack_get_bool(node, "k", &b, NULL);
    (void)corral_mpack_get_str(node, "k", text, sizeof text, NULL);
    (void)corral_mpack_get_bin(node, "k", &blob, &blob_bytes, NULL);
    if (depth > CORRAL_MPACK_DEPTH_MAX) {
        abort(); /* the scan let a value through that is too deep */
    }
    if (corral_mpack_get_node(node, "k", &inner, NULL) == CORRAL_OK) {
        walk(inner, depth + 1);
    }
    for (uint32_t n = 0; n < corral_mpack_count(node); n++) {
        walk(corral_mpack_at(node, n), depth + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    CORRAL_CLEANUP(corral_mpack_reader_destroyp) struct corral_mpack_reader *r = NULL;
    struct corral_error err = {0};
    const enum corral_status status = corral_mpack_read(&r, data, bytes, &err);
    if (status == CORRAL_OK) {
        walk(corral_mpack_root(r), 0);
    } else if (status != CORRAL_PROTOCOL && status != CORRAL_NOMEM) {
        abort();
    }
    return 0;
}
