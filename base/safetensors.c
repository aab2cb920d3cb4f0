#include "base/safetensors.h"

#include "base/file.h"
#include "base/json.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_BYTES_MAX 100000000u
#define PREFIX_BYTES 8u
/* Written files start their data on this boundary, so that a mapped file can be computed on in place. */
#define DATA_ALIGN 64u

struct corral_safetensors {
    char *name;
    void *mapping; /* NULL over the caller's memory */
    size_t mapping_bytes;
    void *aligned; /* a copy of the data, only when the file leaves a tensor misaligned for its type */
    json_t *header;
    json_t *metadata; /* borrowed from header; NULL if absent */
    struct corral_tensor *tensor;
    uint32_t count;
};

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {
    [CORRAL_DTYPE_U8] = {"U8", 1},           [CORRAL_DTYPE_I32] = {"I32", 4},
    [CORRAL_DTYPE_I64] = {"I64", 8},         [CORRAL_DTYPE_F16] = {"F16", 2},
    [CORRAL_DTYPE_BF16] = {"BF16", 2},       [CORRAL_DTYPE_F32] = {"F32", 4},
    [CORRAL_DTYPE_F64] = {"F64", 8},         [CORRAL_DTYPE_U64] = {"U64", 8},
    [CORRAL_DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [CORRAL_DTYPE_F8_E5M2] = {"F8_E5M2", 1},
    [CORRAL_DTYPE_BOOL] = {"BOOL", 1},       [CORRAL_DTYPE_I8] = {"I8", 1},
    [CORRAL_DTYPE_I16] = {"I16", 2},         [CORRAL_DTYPE_U16] = {"U16", 2},
    [CORRAL_DTYPE_U32] = {"U32", 4},
};

uint32_t corral_dtype_bytes(enum corral_dtype dtype)
{
    return (size_t)dtype < CORRAL_COUNT_OF(dtypes) ? dtypes[dtype].bytes : 0;
}

const char *corral_dtype_name(enum corral_dtype dtype)
{
    return (size_t)dtype < CORRAL_COUNT_OF(dtypes) ? dtypes[dtype].name : "?";
}

/* ---- reading ---- */

static void cleanup_json(json_t **j)
{
    json_decref(*j);
}

static void cleanup_file(struct corral_safetensors **f)
{
    corral_safetensors_close(*f);
}

static enum corral_status parse_dtype(const char *text, enum corral_dtype *out)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(dtypes); i++) {
        if (strcmp(text, dtypes[i].name) == 0) {
            *out = (enum corral_dtype)i;
            return CORRAL_OK;
        }
    }
    return CORRAL_UNSUPPORTED;
}

static bool json_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) {
        return false;
    }
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* Bytes that dtype x shape need. False on overflow. */
static bool shape_bytes(const struct corral_tensor *t, uint64_t *out)
{
    uint64_t bytes = corral_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < t->rank; i++) {
        if (t->shape[i] > INT64_MAX || __builtin_mul_overflow(bytes, t->shape[i], &bytes)) {
            return false;
        }
    }
    *out = bytes;
    return true;
}

static enum corral_status parse_shape(const char *file, const json_t *shape, struct corral_tensor *t,
                                      struct corral_error *err)
{
    if (!json_is_array(shape) || json_array_size(shape) > CORRAL_TENSOR_RANK_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: tensor '%s': shape is not an array of at most %d", file,
                           t->name, CORRAL_TENSOR_RANK_MAX);
    }
    t->rank = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->rank; i++) {
        if (!json_u64(json_array_get(shape, i), &t->shape[i])) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "%s: tensor '%s': shape[%u] is not a non-negative integer", file, t->name, i);
        }
    }
    return CORRAL_OK;
}

static enum corral_status parse_tensor(const char *file, const char *name, const json_t *entry,
                                       const uint8_t *data, uint64_t data_bytes, struct corral_tensor *t,
                                       struct corral_error *err)
{
    if (strlen(name) >= CORRAL_TENSOR_NAME_MAX) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: tensor name '%.40s…' is longer than %d bytes", file,
                           name, CORRAL_TENSOR_NAME_MAX - 1);
    }
    strcpy(t->name, name);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (dtype == NULL) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: tensor '%s' has no dtype", file, name);
    }
    if (parse_dtype(dtype, &t->dtype) != CORRAL_OK) {
        return corral_fail(err, CORRAL_UNSUPPORTED, "%s: tensor '%s': dtype '%.16s' is not supported", file,
                           name, dtype);
    }
    CORRAL_TRY(parse_shape(file, json_object_get(entry, "shape"), t, err));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin = 0, end = 0, needed = 0;
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !json_u64(json_array_get(offsets, 0), &begin) || !json_u64(json_array_get(offsets, 1), &end) ||
        begin > end || end > data_bytes) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s: tensor '%s': data_offsets are not inside the %" PRIu64 " data bytes", file,
                           name, data_bytes);
    }
    if (!shape_bytes(t, &needed) || needed != end - begin) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s: tensor '%s': shape and dtype do not make %" PRIu64 " bytes", file, name,
                           end - begin);
    }
    t->data = data + begin;
    t->bytes = needed;
    return CORRAL_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct corral_tensor *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) {
        return p < q ? -1 : 1;
    }
    return (x->bytes > y->bytes) -
           (x->bytes < y->bytes); /* empty tensors stand before the one at their place */
}

static enum corral_status check_no_holes(const struct corral_safetensors *f, const uint8_t *data,
                                         uint64_t data_bytes, struct corral_error *err)
{
    const uint8_t *next = data;
    for (uint32_t i = 0; i < f->count; i++) {
        if (f->tensor[i].data != next) {
            return corral_fail(err, CORRAL_PROTOCOL,
                               "%s: tensor '%s' leaves a hole or overlaps the one before", f->name,
                               f->tensor[i].name);
        }
        next += f->tensor[i].bytes;
    }
    if (next != data + data_bytes) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %" PRIu64 " bytes after the last tensor", f->name,
                           (uint64_t)(data + data_bytes - next));
    }
    return CORRAL_OK;
}

static enum corral_status parse_metadata(struct corral_safetensors *f, json_t *metadata,
                                         struct corral_error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: __metadata__ is not an object", f->name);
    }
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value)) {
            return corral_fail(err, CORRAL_PROTOCOL, "%s: __metadata__ '%.64s' is not a string", f->name,
                               key);
        }
    }
    f->metadata = metadata;
    return CORRAL_OK;
}

static enum corral_status parse_tensors(struct corral_safetensors *f, const uint8_t *data,
                                        uint64_t data_bytes, struct corral_error *err)
{
    const char *key;
    json_t *value;
    f->tensor = calloc(json_object_size(f->header) + 1, sizeof *f->tensor);
    if (f->tensor == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory for the tensor table", f->name);
    }
    json_object_foreach(f->header, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            CORRAL_TRY(parse_metadata(f, value, err));
            continue;
        }
        CORRAL_TRY(parse_tensor(f->name, key, value, data, data_bytes, &f->tensor[f->count], err));
        f->count++;
    }
    qsort(f->tensor, f->count, sizeof *f->tensor, by_place);
    return check_no_holes(f, data, data_bytes, err);
}

/* The format does not align tensors. Callers compute on them in place, so a misaligned file is copied once here. */
static enum corral_status align_data(struct corral_safetensors *f, struct corral_error *err)
{
    bool aligned = true;
    for (uint32_t i = 0; i < f->count; i++) {
        aligned = aligned && (uintptr_t)f->tensor[i].data % corral_dtype_bytes(f->tensor[i].dtype) == 0;
    }
    if (aligned) {
        return CORRAL_OK;
    }
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < f->count; i++) {
        bytes += (f->tensor[i].bytes + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    }
    f->aligned = aligned_alloc(DATA_ALIGN, bytes + DATA_ALIGN);
    if (f->aligned == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory to align the tensors", f->name);
    }
    uint8_t *to = f->aligned;
    for (uint32_t i = 0; i < f->count; i++) {
        struct corral_tensor *t = &f->tensor[i];
        memcpy(to, t->data, t->bytes);
        t->data = to;
        to += (t->bytes + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    }
    return CORRAL_OK;
}

static enum corral_status parse(struct corral_safetensors *f, const void *file, size_t bytes,
                                struct corral_error *err)
{
    uint64_t header_bytes = 0;
    if (bytes < PREFIX_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: %zu bytes are too short for a safetensors file",
                           f->name, bytes);
    }
    memcpy(&header_bytes, file, sizeof header_bytes);
    header_bytes = le64toh(header_bytes);
    if (header_bytes > HEADER_BYTES_MAX || header_bytes > bytes - PREFIX_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: the header claims %" PRIu64 " bytes; the file has %zu",
                           f->name, header_bytes, bytes);
    }
    const char *header = (const char *)file + PREFIX_BYTES;
    enum corral_status status = corral_json_parse(&f->header, f->name, header, header_bytes, err);
    if (status != CORRAL_OK) {
        return status == CORRAL_NOMEM ? status : corral_error_prefix(err, status, "safetensors header");
    }
    if (!json_is_object(f->header)) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: the header is not a JSON object", f->name);
    }
    const uint8_t *data = (const uint8_t *)header + header_bytes;
    uint64_t data_bytes = bytes - PREFIX_BYTES - header_bytes;
    CORRAL_TRY(parse_tensors(f, data, data_bytes, err));
    return align_data(f, err);
}

static struct corral_safetensors *file_new(const char *name)
{
    struct corral_safetensors *f = calloc(1, sizeof *f);
    if (f != NULL && (f->name = strdup(name)) == NULL) {
        free(f);
        return NULL;
    }
    return f;
}

enum corral_status corral_safetensors_open_memory(struct corral_safetensors **out, const char *name,
                                                  const void *data, size_t bytes, struct corral_error *err)
{
    CORRAL_CLEANUP(cleanup_file) struct corral_safetensors *f = file_new(name);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory", name);
    }
    CORRAL_TRY(parse(f, data, bytes, err));
    *out = CORRAL_STEAL(f);
    return CORRAL_OK;
}

enum corral_status corral_safetensors_open(struct corral_safetensors **out, const char *path,
                                           struct corral_error *err)
{
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        int sys = errno;
        enum corral_status status = corral_fail_sys(err, sys, "cannot open %s", path);
        return sys == ENOENT ? corral_fail(err, CORRAL_NOT_FOUND, "cannot open %s: no such file", path)
                             : status;
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return corral_fail_sys(err, errno, "cannot look at %s", path);
    }
    if (!S_ISREG(st.st_mode) || st.st_size < (off_t)PREFIX_BYTES) {
        return corral_fail(err, CORRAL_PROTOCOL,
                           "%s is not a safetensors file: not a regular file, or too short", path);
    }
    CORRAL_CLEANUP(cleanup_file) struct corral_safetensors *f = file_new(path);
    if (f == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "%s: out of memory", path);
    }
    void *mapping = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapping == MAP_FAILED) {
        return corral_fail_sys(err, errno, "cannot map %s", path);
    }
    f->mapping = mapping;
    f->mapping_bytes = (size_t)st.st_size;
    CORRAL_TRY(parse(f, mapping, f->mapping_bytes, err));
    *out = CORRAL_STEAL(f);
    return CORRAL_OK;
}

void corral_safetensors_close(struct corral_safetensors *f)
{
    if (f == NULL) {
        return;
    }
    if (f->mapping != NULL) {
        munmap(f->mapping, f->mapping_bytes);
    }
    json_decref(f->header);
    free(f->aligned);
    free(f->tensor);
    free(f->name);
    free(f);
}

uint32_t corral_safetensors_count(const struct corral_safetensors *f)
{
    return f->count;
}

const struct corral_tensor *corral_safetensors_at(const struct corral_safetensors *f, uint32_t i)
{
    return i < f->count ? &f->tensor[i] : NULL;
}

const struct corral_tensor *corral_safetensors_find(const struct corral_safetensors *f, const char *name)
{
    for (uint32_t i = 0; i < f->count; i++) {
        if (strcmp(f->tensor[i].name, name) == 0) {
            return &f->tensor[i];
        }
    }
    return NULL;
}

const char *corral_safetensors_metadata(const struct corral_safetensors *f, const char *key)
{
    return json_string_value(json_object_get(f->metadata, key));
}

/* ---- writing ---- */

static enum corral_status add_tensor(json_t *header, const char *path, const struct corral_tensor *t,
                                     uint64_t offset, struct corral_error *err)
{
    uint64_t needed = 0;
    if (t->rank > CORRAL_TENSOR_RANK_MAX || corral_dtype_bytes(t->dtype) == 0 || !shape_bytes(t, &needed) ||
        needed != t->bytes || (t->data == NULL && t->bytes > 0)) {
        return corral_fail(err, CORRAL_INVALID,
                           "cannot write %s: tensor '%s' has a shape that does not match its bytes", path,
                           t->name);
    }
    if (t->name[0] == '\0' || strnlen(t->name, sizeof t->name) == sizeof t->name ||
        strcmp(t->name, "__metadata__") == 0 || json_object_get(header, t->name) != NULL) {
        return corral_fail(err, CORRAL_INVALID,
                           "cannot write %s: tensor name '%.64s' is empty, reserved or used twice", path,
                           t->name);
    }
    json_t *shape = json_array();
    for (uint32_t i = 0; i < t->rank; i++) {
        json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", corral_dtype_name(t->dtype), "shape", shape,
                              "data_offsets", (json_int_t)offset, (json_int_t)(offset + t->bytes));
    bool whole = json_array_size(json_object_get(entry, "shape")) == t->rank;
    if (json_object_set_new(header, t->name, entry) != 0 || !whole) {
        return corral_fail(err, CORRAL_NOMEM,
                           "cannot write %s: out of memory, or tensor name '%s' is not UTF-8", path, t->name);
    }
    return CORRAL_OK;
}

static enum corral_status build_header(json_t *header, const char *path, const struct corral_tensor *tensors,
                                       uint32_t count, const struct corral_safetensors_pair *metadata,
                                       uint32_t metadata_count, uint64_t *data_bytes,
                                       struct corral_error *err)
{
    if (metadata_count > 0) {
        json_t *object = json_object();
        if (json_object_set_new(header, "__metadata__", object) != 0) {
            return corral_fail(err, CORRAL_NOMEM, "cannot write %s: out of memory", path);
        }
        for (uint32_t i = 0; i < metadata_count; i++) {
            if (json_object_set_new(object, metadata[i].key, json_string(metadata[i].value)) != 0) {
                return corral_fail(err, CORRAL_INVALID, "cannot write %s: metadata '%.64s' is not UTF-8 text",
                                   path, metadata[i].key);
            }
        }
    }
    uint64_t offset = 0;
    for (uint32_t i = 0; i < count; i++) {
        CORRAL_TRY(add_tensor(header, path, &tensors[i], offset, err));
        if (__builtin_add_overflow(offset, tensors[i].bytes, &offset) || offset > INT64_MAX / 2) {
            return corral_fail(err, CORRAL_INVALID, "cannot write %s: the tensors are too large", path);
        }
    }
    *data_bytes = offset;
    return CORRAL_OK;
}

enum corral_status corral_safetensors_write(const char *path, const struct corral_tensor *tensors,
                                            uint32_t count, const struct corral_safetensors_pair *metadata,
                                            uint32_t metadata_count, bool durable, struct corral_error *err)
{
    uint64_t data_bytes = 0;
    CORRAL_CLEANUP(cleanup_json) json_t *header = json_object();
    if (header == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot write %s: out of memory", path);
    }
    CORRAL_TRY(build_header(header, path, tensors, count, metadata, metadata_count, &data_bytes, err));
    CORRAL_AUTO_FREE char *text = json_dumps(header, JSON_COMPACT | JSON_PRESERVE_ORDER);
    if (text == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot write %s: out of memory", path);
    }
    size_t text_bytes = strlen(text);
    size_t start = (PREFIX_BYTES + text_bytes + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
    CORRAL_AUTO_FREE uint8_t *file = malloc(start + data_bytes);
    if (file == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot write %s: no memory for %" PRIu64 " bytes", path,
                           data_bytes);
    }
    uint64_t prefix = htole64(start - PREFIX_BYTES);
    memcpy(file, &prefix, sizeof prefix);
    memcpy(file + PREFIX_BYTES, text, text_bytes);
    memset(file + PREFIX_BYTES + text_bytes, ' ', start - PREFIX_BYTES - text_bytes);
    uint8_t *to = file + start;
    for (uint32_t i = 0; i < count; i++) {
        if (tensors[i].bytes > 0) {
            memcpy(to, tensors[i].data, tensors[i].bytes);
        }
        to += tensors[i].bytes;
    }
    return corral_file_write_atomic(path, file, start + data_bytes, 0644, durable, err);
}
