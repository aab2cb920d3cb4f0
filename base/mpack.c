#include "base/mpack.h"
#include "base/mpack_scan.h"
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing ---- */

struct corral_mpack_writer {
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    bool failed; /* sticky: the bytes are of no use once one write is missing */
};

struct corral_mpack_writer *corral_mpack_writer_create(void)
{
    struct corral_mpack_writer *w = calloc(1, sizeof *w);
    if (w != NULL) {
        msgpack_sbuffer_init(&w->buffer);
        msgpack_packer_init(&w->packer, &w->buffer, msgpack_sbuffer_write);
    }
    return w;
}

void corral_mpack_writer_destroy(struct corral_mpack_writer *w)
{
    if (w != NULL) {
        msgpack_sbuffer_destroy(&w->buffer);
        free(w);
    }
}

void corral_mpack_writer_reset(struct corral_mpack_writer *w)
{
    msgpack_sbuffer_clear(&w->buffer);
    w->failed = false;
}

static void note(struct corral_mpack_writer *w, int rc)
{
    w->failed = w->failed || rc != 0;
}

void corral_mpack_map(struct corral_mpack_writer *w, uint32_t pairs)
{
    note(w, msgpack_pack_map(&w->packer, pairs));
}

void corral_mpack_array(struct corral_mpack_writer *w, uint32_t count)
{
    note(w, msgpack_pack_array(&w->packer, count));
}

void corral_mpack_str(struct corral_mpack_writer *w, const char *value)
{
    const size_t n = strlen(value);
    if (n > UINT32_MAX) {
        w->failed = true;
        return;
    }
    note(w, msgpack_pack_str(&w->packer, n));
    note(w, msgpack_pack_str_body(&w->packer, value, n));
}

void corral_mpack_u64(struct corral_mpack_writer *w, uint64_t value)
{
    note(w, msgpack_pack_uint64(&w->packer, value));
}

void corral_mpack_i64(struct corral_mpack_writer *w, int64_t value)
{
    note(w, msgpack_pack_int64(&w->packer, value));
}

void corral_mpack_f64(struct corral_mpack_writer *w, double value)
{
    note(w, msgpack_pack_double(&w->packer, value));
}

void corral_mpack_bool(struct corral_mpack_writer *w, bool value)
{
    note(w, value ? msgpack_pack_true(&w->packer) : msgpack_pack_false(&w->packer));
}

void corral_mpack_bin(struct corral_mpack_writer *w, const void *data, size_t bytes)
{
    if (bytes > UINT32_MAX) {
        w->failed = true;
        return;
    }
    note(w, msgpack_pack_bin(&w->packer, bytes));
    if (bytes > 0) {
        note(w, msgpack_pack_bin_body(&w->packer, data, bytes));
    }
}

void corral_mpack_kv_str(struct corral_mpack_writer *w, const char *key, const char *value)
{
    corral_mpack_str(w, key);
    corral_mpack_str(w, value);
}

void corral_mpack_kv_u64(struct corral_mpack_writer *w, const char *key, uint64_t value)
{
    corral_mpack_str(w, key);
    corral_mpack_u64(w, value);
}

void corral_mpack_kv_i64(struct corral_mpack_writer *w, const char *key, int64_t value)
{
    corral_mpack_str(w, key);
    corral_mpack_i64(w, value);
}

void corral_mpack_kv_f64(struct corral_mpack_writer *w, const char *key, double value)
{
    corral_mpack_str(w, key);
    corral_mpack_f64(w, value);
}

void corral_mpack_kv_bool(struct corral_mpack_writer *w, const char *key, bool value)
{
    corral_mpack_str(w, key);
    corral_mpack_bool(w, value);
}

void corral_mpack_kv_bin(struct corral_mpack_writer *w, const char *key, const void *data, size_t bytes)
{
    corral_mpack_str(w, key);
    corral_mpack_bin(w, data, bytes);
}

enum corral_status corral_mpack_finish(struct corral_mpack_writer *w, const void **data, size_t *bytes,
                                       struct corral_error *err)
{
    if (w->failed) {
        return corral_fail(err, CORRAL_NOMEM, "cannot encode a message: out of memory after %zu bytes",
                           w->buffer.size);
    }
    /* A map that declares three pairs and writes two is found here, and not by the peer. */
    struct corral_error why;
    if (corral_mpack_scan(w->buffer.data, w->buffer.size, UINT32_MAX, &why) != CORRAL_OK) {
        return corral_fail(err, CORRAL_INTERNAL, "cannot encode a message: %s", why.text);
    }
    *data = w->buffer.data;
    *bytes = w->buffer.size;
    return CORRAL_OK;
}

/* ---- reading ---- */

struct corral_mpack_reader {
    msgpack_unpacked unpacked;
};

/* A node is msgpack-c's own object, under a name that keeps its header out of ours. */
static const struct corral_mpack_node *as_node(const msgpack_object *object)
{
    return (const struct corral_mpack_node *)object;
}

static const msgpack_object *as_object(const struct corral_mpack_node *node)
{
    return (const msgpack_object *)node;
}

enum corral_status corral_mpack_read(struct corral_mpack_reader **out, const void *data, size_t bytes,
                                     struct corral_error *err)
{
    CORRAL_TRY(corral_mpack_scan(data, bytes, CORRAL_MPACK_OBJECTS_MAX, err));
    struct corral_mpack_reader *r = malloc(sizeof *r);
    if (r == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot decode a message of %zu bytes: out of memory", bytes);
    }
    msgpack_unpacked_init(&r->unpacked);
    size_t used = 0;
    const msgpack_unpack_return rc = msgpack_unpack_next(&r->unpacked, data, bytes, &used);
    enum corral_status status = CORRAL_OK;
    if (rc == MSGPACK_UNPACK_NOMEM_ERROR) {
        status = corral_fail(err, CORRAL_NOMEM, "cannot decode a message of %zu bytes: out of memory", bytes);
    } else if (rc != MSGPACK_UNPACK_SUCCESS || used != bytes) {
        status =
            corral_fail(err, CORRAL_PROTOCOL, "malformed message: cannot be decoded past byte %zu", used);
    } else if (r->unpacked.data.type != MSGPACK_OBJECT_MAP) {
        status = corral_fail(err, CORRAL_PROTOCOL, "malformed message at byte 0: not a map");
    }
    if (status != CORRAL_OK) {
        corral_mpack_reader_destroy(r);
        return status;
    }
    *out = r;
    return CORRAL_OK;
}

void corral_mpack_reader_destroy(struct corral_mpack_reader *r)
{
    if (r != NULL) {
        msgpack_unpacked_destroy(&r->unpacked);
        free(r);
    }
}

const struct corral_mpack_node *corral_mpack_root(const struct corral_mpack_reader *r)
{
    return as_node(&r->unpacked.data);
}

/* The scan has made sure that every key is a string. NULL: absent. `count` is how often the key is there. */
static const msgpack_object *look_up(const msgpack_object *map, const char *key, uint32_t *count)
{
    const msgpack_object *found = NULL;
    const size_t n = strlen(key);
    *count = 0;
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        if (kv->key.via.str.size == n && memcmp(kv->key.via.str.ptr, key, n) == 0) {
            found = &kv->val;
            ++*count;
        }
    }
    return found;
}

static enum corral_status get(const struct corral_mpack_node *node, const char *key,
                              const msgpack_object **out, struct corral_error *err)
{
    const msgpack_object *map = as_object(node);
    if (map == NULL || map->type != MSGPACK_OBJECT_MAP) {
        return corral_fail(err, CORRAL_PROTOCOL, "malformed message: a map with the key `%s` was expected",
                           key);
    }
    uint32_t count;
    const msgpack_object *found = look_up(map, key, &count);
    if (count != 1) {
        return corral_fail(err, CORRAL_PROTOCOL, "malformed message: the key `%s` is %s", key,
                           count == 0 ? "missing" : "there more than once");
    }
    *out = found;
    return CORRAL_OK;
}

/* `key` is NULL for an array element. */
static enum corral_status wrong(const char *key, const char *problem, struct corral_error *err)
{
    if (key == NULL) {
        return corral_fail(err, CORRAL_PROTOCOL, "malformed message: an array element %s", problem);
    }
    return corral_fail(err, CORRAL_PROTOCOL, "malformed message: the value of `%s` %s", key, problem);
}

static enum corral_status value_u64(const msgpack_object *o, const char *key, uint64_t *out,
                                    struct corral_error *err)
{
    if (o == NULL || o->type != MSGPACK_OBJECT_POSITIVE_INTEGER) {
        return wrong(key, "is not an unsigned integer", err);
    }
    *out = o->via.u64;
    return CORRAL_OK;
}

static enum corral_status value_i64(const msgpack_object *o, const char *key, int64_t *out,
                                    struct corral_error *err)
{
    if (o != NULL && o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER) {
        *out = o->via.i64;
        return CORRAL_OK;
    }
    if (o == NULL || o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > INT64_MAX) {
        return wrong(key, "is not a signed 64-bit integer", err);
    }
    *out = (int64_t)o->via.u64;
    return CORRAL_OK;
}

static enum corral_status value_f64(const msgpack_object *o, const char *key, double *out,
                                    struct corral_error *err)
{
    switch (o == NULL ? MSGPACK_OBJECT_NIL : o->type) {
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        *out = o->via.f64;
        return CORRAL_OK;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        *out = (double)o->via.u64;
        return CORRAL_OK;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        *out = (double)o->via.i64;
        return CORRAL_OK;
    default:
        return wrong(key, "is not a number", err);
    }
}

static enum corral_status value_str(const msgpack_object *o, const char *key, char *out, size_t out_bytes,
                                    struct corral_error *err)
{
    if (o == NULL || o->type != MSGPACK_OBJECT_STR) {
        return wrong(key, "is not a string", err);
    }
    const size_t n = o->via.str.size;
    if (n >= out_bytes) {
        return wrong(key, "is too long a string", err);
    }
    if (n > 0 && memchr(o->via.str.ptr, '\0', n) != NULL) {
        return wrong(key, "is a string with a NUL byte in it", err);
    }
    if (n > 0) {
        memcpy(out, o->via.str.ptr, n);
    }
    out[n] = '\0';
    return CORRAL_OK;
}

enum corral_status corral_mpack_get_str(const struct corral_mpack_node *map, const char *key, char *out,
                                        size_t out_bytes, struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    return value_str(o, key, out, out_bytes, err);
}

enum corral_status corral_mpack_get_u64(const struct corral_mpack_node *map, const char *key, uint64_t *out,
                                        struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    return value_u64(o, key, out, err);
}

enum corral_status corral_mpack_get_i64(const struct corral_mpack_node *map, const char *key, int64_t *out,
                                        struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    return value_i64(o, key, out, err);
}

enum corral_status corral_mpack_get_f64(const struct corral_mpack_node *map, const char *key, double *out,
                                        struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    return value_f64(o, key, out, err);
}

enum corral_status corral_mpack_get_bool(const struct corral_mpack_node *map, const char *key, bool *out,
                                         struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    if (o->type != MSGPACK_OBJECT_BOOLEAN) {
        return wrong(key, "is not a boolean", err);
    }
    *out = o->via.boolean;
    return CORRAL_OK;
}

enum corral_status corral_mpack_get_bin(const struct corral_mpack_node *map, const char *key,
                                        const void **out, size_t *bytes, struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    if (o->type != MSGPACK_OBJECT_BIN) {
        return wrong(key, "is not binary data", err);
    }
    *out = o->via.bin.ptr;
    *bytes = o->via.bin.size;
    return CORRAL_OK;
}

enum corral_status corral_mpack_get_node(const struct corral_mpack_node *map, const char *key,
                                         const struct corral_mpack_node **out, struct corral_error *err)
{
    const msgpack_object *o = NULL;
    CORRAL_TRY(get(map, key, &o, err));
    if (o->type != MSGPACK_OBJECT_MAP && o->type != MSGPACK_OBJECT_ARRAY) {
        return wrong(key, "is not a map or an array", err);
    }
    *out = as_node(o);
    return CORRAL_OK;
}

bool corral_mpack_has(const struct corral_mpack_node *map, const char *key)
{
    const msgpack_object *o = as_object(map);
    uint32_t count;
    return o != NULL && o->type == MSGPACK_OBJECT_MAP && look_up(o, key, &count) != NULL;
}

uint32_t corral_mpack_count(const struct corral_mpack_node *array)
{
    const msgpack_object *o = as_object(array);
    return o != NULL && o->type == MSGPACK_OBJECT_ARRAY ? o->via.array.size : 0;
}

const struct corral_mpack_node *corral_mpack_at(const struct corral_mpack_node *array, uint32_t i)
{
    return i < corral_mpack_count(array) ? as_node(&as_object(array)->via.array.ptr[i]) : NULL;
}

enum corral_status corral_mpack_node_u64(const struct corral_mpack_node *n, uint64_t *out,
                                         struct corral_error *err)
{
    return value_u64(as_object(n), NULL, out, err);
}

enum corral_status corral_mpack_node_f64(const struct corral_mpack_node *n, double *out,
                                         struct corral_error *err)
{
    return value_f64(as_object(n), NULL, out, err);
}

enum corral_status corral_mpack_node_str(const struct corral_mpack_node *n, char *out, size_t out_bytes,
                                         struct corral_error *err)
{
    return value_str(as_object(n), NULL, out, out_bytes, err);
}
