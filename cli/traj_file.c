/* A file of whole columns: safetensors, or the zip of .npy files that numpy calls npz (stored, always with zip64 fields). */
#include "base/json.h"
#include "cli/traj_columns.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20) /* a multiple of every element's size */
#define PARTS_MAX (3 * TRAJ_COLUMNS_MAX)

struct piece { /* one array of the file */
    char name[TRAJ_COLUMN_NAME_MAX + 16];
    uint32_t dtype, dims;
    uint64_t shape[CORRAL_TRAJ_DIMS_MAX];
    uint64_t bytes;
    FILE *from;
    bool lead;        /* a zero comes first: ends become offsets */
    uint64_t divisor; /* of each number: elements become rows; 1 */
    uint32_t crc;
    uint64_t at; /* npz: of its local header */
    char head[512];
    uint32_t head_bytes; /* npz: of the .npy header */
};

struct pieces {
    struct piece piece[PARTS_MAX];
    uint32_t count;
    uint8_t copy[COPY_BYTES];
};

/* ---- which arrays there are ---- */

static void ragged_pieces(struct pieces *p, const struct traj_column *col, uint64_t records)
{
    struct piece *values = &p->piece[p->count++], *offsets = &p->piece[p->count++];
    uint64_t row = 1;
    *values = (struct piece){
        .dtype = col->dtype, .dims = 1, .shape = {col->elements}, .from = col->values, .divisor = 1};
    snprintf(values->name, sizeof values->name, "%s", col->name);
    for (uint32_t d = 1; col->alike && d < col->dims; d++) {
        values->shape[d] = col->shape[d];
        values->dims = d + 1;
        row *= col->shape[d];
    }
    values->shape[0] /= row;
    values->bytes = col->elements * corral_traj_dtype_bytes(col->dtype);
    *offsets = (struct piece){.dtype = CORRAL_TRAJ_U64,
                              .dims = 1,
                              .shape = {records + 1},
                              .bytes = 8 * (records + 1),
                              .from = col->ends,
                              .lead = true,
                              .divisor = row};
    snprintf(offsets->name, sizeof offsets->name, "%s.offsets", col->name);
    if (!col->alike) {
        struct piece *shapes = &p->piece[p->count++];
        *shapes = (struct piece){.dtype = CORRAL_TRAJ_U64,
                                 .dims = 2,
                                 .shape = {records, CORRAL_TRAJ_DIMS_MAX},
                                 .bytes = 8 * CORRAL_TRAJ_DIMS_MAX * records,
                                 .from = col->shapes,
                                 .divisor = 1};
        snprintf(shapes->name, sizeof shapes->name, "%s.shape", col->name);
    }
}

static void list_pieces(struct pieces *p, const struct traj_columns *c)
{
    for (uint32_t i = 0; i < c->count; i++) {
        const struct traj_column *col = &c->column[i];
        if (col->ragged) {
            ragged_pieces(p, col, c->records);
            continue;
        }
        struct piece *one = &p->piece[p->count++];
        *one = (struct piece){.dtype = col->dtype,
                              .dims = 1,
                              .shape = {c->records},
                              .bytes = 8 * c->records,
                              .from = col->values,
                              .divisor = 1};
        snprintf(one->name, sizeof one->name, "%s", col->name);
    }
}

/* ---- moving bytes ---- */

static uint32_t crc_table[256];

static void crc_prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t v = i;
        for (int k = 0; k < 8; k++) {
            v = (v >> 1) ^ (v & 1 ? 0xedb88320u : 0);
        }
        crc_table[i] = v;
    }
}

static uint32_t crc_add(uint32_t crc, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < bytes; i++) {
        crc = crc_table[(crc ^ p[i]) & 0xff] ^ (crc >> 8);
    }
    return ~crc;
}

/* A piece's bytes to `to`, or, with `to` NULL, into its check sum. */
static enum corral_status pour(struct pieces *p, struct piece *one, FILE *to, struct corral_error *err)
{
    uint64_t left = one->bytes, lead = 0;
    rewind(one->from);
    if (one->lead) {
        one->crc = to == NULL ? crc_add(one->crc, &lead, sizeof lead) : one->crc;
        if (to != NULL) {
            fwrite(&lead, 1, sizeof lead, to);
        }
        left -= sizeof lead;
    }
    while (left > 0) {
        size_t n = fread(p->copy, 1, CORRAL_MIN(left, COPY_BYTES), one->from);
        if (n == 0) {
            return corral_fail(err, CORRAL_IO, "a temporary file of the export cannot be read back");
        }
        for (size_t i = 0; one->divisor > 1 && i < n; i += 8) {
            uint64_t v;
            memcpy(&v, p->copy + i, 8);
            v /= one->divisor;
            memcpy(p->copy + i, &v, 8);
        }
        if (to == NULL) {
            one->crc = crc_add(one->crc, p->copy, n);
        } else {
            fwrite(p->copy, 1, n, to);
        }
        left -= n;
    }
    return to != NULL && ferror(to) ? corral_fail_sys(err, errno, "cannot write the export") : CORRAL_OK;
}

/* ---- safetensors ---- */

static enum corral_status safetensors(struct pieces *p, FILE *to, struct corral_error *err)
{
    static const char *const names[] = {
        [CORRAL_TRAJ_U8] = "U8",           [CORRAL_TRAJ_I32] = "I32",   [CORRAL_TRAJ_I64] = "I64",
        [CORRAL_TRAJ_F16] = "F16",         [CORRAL_TRAJ_BF16] = "BF16", [CORRAL_TRAJ_F32] = "F32",
        [CORRAL_TRAJ_F64] = "F64",         [CORRAL_TRAJ_U64] = "U64",   [CORRAL_TRAJ_F8_E4M3] = "F8_E4M3",
        [CORRAL_TRAJ_F8_E5M2] = "F8_E5M2", [CORRAL_TRAJ_U32] = "U32"};
    json_t *o = json_pack("{s:{s:s}}", "__metadata__", "format", "corral-trajectories-1");
    uint64_t at = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        json_t *shape = json_array();
        for (uint32_t d = 0; d < p->piece[i].dims; d++) {
            json_array_append_new(shape, json_integer((json_int_t)p->piece[i].shape[d]));
        }
        json_object_set_new(o, p->piece[i].name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype", names[p->piece[i].dtype], "shape",
                                      shape, "data_offsets", (json_int_t)at,
                                      (json_int_t)(at + p->piece[i].bytes)));
        at += p->piece[i].bytes;
    }
    CORRAL_AUTO_FREE char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    if (text == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory for the header of the export");
    }
    uint64_t bytes = strlen(text), padded = (bytes + 7) / 8 * 8;
    fwrite(&padded, 1, sizeof padded, to);
    fprintf(to, "%s%*s", text, (int)(padded - bytes), "");
    for (uint32_t i = 0; i < p->count; i++) {
        CORRAL_TRY(pour(p, &p->piece[i], to, err));
    }
    return CORRAL_OK;
}

/* ---- npz ---- */

/* What numpy has no type for comes as its bits, and the name says so. */
static const char *npy_type(struct piece *one)
{
    static const struct {
        const char *type, *bits;
    } types[] = {[CORRAL_TRAJ_U8] = {"|u1", ""},
                 [CORRAL_TRAJ_I32] = {"<i4", ""},
                 [CORRAL_TRAJ_I64] = {"<i8", ""},
                 [CORRAL_TRAJ_F16] = {"<f2", ""},
                 [CORRAL_TRAJ_BF16] = {"<u2", ".bf16"},
                 [CORRAL_TRAJ_F32] = {"<f4", ""},
                 [CORRAL_TRAJ_F64] = {"<f8", ""},
                 [CORRAL_TRAJ_U64] = {"<u8", ""},
                 [CORRAL_TRAJ_F8_E4M3] = {"|u1", ".f8_e4m3"},
                 [CORRAL_TRAJ_F8_E5M2] = {"|u1", ".f8_e5m2"},
                 [CORRAL_TRAJ_U32] = {"<u4", ""}};
    strncat(one->name, types[one->dtype].bits, sizeof one->name - strlen(one->name) - 1);
    return types[one->dtype].type;
}

static void npy_head(struct piece *one)
{
    char dict[320];
    int n = snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': False, 'shape': (", npy_type(one));
    for (uint32_t d = 0; d < one->dims; d++) {
        n += snprintf(dict + n, sizeof dict - (size_t)n, "%" PRIu64 ", ", one->shape[d]);
    }
    n += snprintf(dict + n, sizeof dict - (size_t)n, ")}");
    uint32_t whole = (uint32_t)(10 + n + 1 + 63) / 64 * 64;
    uint16_t length = (uint16_t)(whole - 10);
    memcpy(one->head, "\x93NUMPY\x01\x00", 8);
    memcpy(one->head + 8, &length, 2);
    memset(one->head + 10, ' ', length);
    memcpy(one->head + 10, dict, (size_t)n);
    one->head[whole - 1] = '\n';
    one->head_bytes = whole;
}

static void put16(FILE *to, uint16_t v)
{
    fwrite(&v, 1, sizeof v, to);
}
static void put32(FILE *to, uint32_t v)
{
    fwrite(&v, 1, sizeof v, to);
}
static void put64(FILE *to, uint64_t v)
{
    fwrite(&v, 1, sizeof v, to);
}

#define ZIP_VERSION 45       /* zip64 */
#define ZIP_1980 0x0021u     /* 1 January: the same export is the same bytes */
#define ZIP_IN_64 UINT32_MAX /* see the zip64 field */

static void zip_common(FILE *to, const struct piece *one)
{
    put16(to, 0); /* flags */
    put16(to, 0); /* stored */
    put16(to, 0);
    put16(to, ZIP_1980);
    put32(to, one->crc);
    put32(to, ZIP_IN_64);
    put32(to, ZIP_IN_64);
    put16(to, (uint16_t)(strlen(one->name) + 4));
}

static void zip_local(FILE *to, const struct piece *one)
{
    uint64_t size = one->head_bytes + one->bytes;
    put32(to, 0x04034b50);
    put16(to, ZIP_VERSION);
    zip_common(to, one);
    put16(to, 20);
    fprintf(to, "%s.npy", one->name);
    put16(to, 1);
    put16(to, 16);
    put64(to, size);
    put64(to, size);
}

static void zip_central(FILE *to, const struct piece *one)
{
    uint64_t size = one->head_bytes + one->bytes;
    put32(to, 0x02014b50);
    put16(to, ZIP_VERSION);
    put16(to, ZIP_VERSION);
    zip_common(to, one);
    put16(to, 28);
    put16(to, 0); /* comment */
    put16(to, 0); /* disk */
    put16(to, 0);
    put32(to, 0);
    put32(to, ZIP_IN_64);
    fprintf(to, "%s.npy", one->name);
    put16(to, 1);
    put16(to, 24);
    put64(to, size);
    put64(to, size);
    put64(to, one->at);
}

static void zip_end(FILE *to, const struct pieces *p, uint64_t from, uint64_t end)
{
    put32(to, 0x06064b50); /* zip64 end of central directory */
    put64(to, 44);
    put16(to, ZIP_VERSION);
    put16(to, ZIP_VERSION);
    put32(to, 0);
    put32(to, 0);
    put64(to, p->count);
    put64(to, p->count);
    put64(to, end - from);
    put64(to, from);
    put32(to, 0x07064b50); /* where that is */
    put32(to, 0);
    put64(to, end);
    put32(to, 1);
    put32(to, 0x06054b50);
    put16(to, 0);
    put16(to, 0);
    put16(to, UINT16_MAX);
    put16(to, UINT16_MAX);
    put32(to, ZIP_IN_64);
    put32(to, ZIP_IN_64);
    put16(to, 0);
}

static enum corral_status npz(struct pieces *p, FILE *to, struct corral_error *err)
{
    crc_prepare();
    for (uint32_t i = 0; i < p->count; i++) {
        struct piece *one = &p->piece[i];
        npy_head(one);
        one->crc = crc_add(0, one->head, one->head_bytes);
        CORRAL_TRY(pour(p, one, NULL, err));
        one->at = (uint64_t)ftello(to);
        zip_local(to, one);
        fwrite(one->head, 1, one->head_bytes, to);
        CORRAL_TRY(pour(p, one, to, err));
    }
    uint64_t from = (uint64_t)ftello(to);
    for (uint32_t i = 0; i < p->count; i++) {
        zip_central(to, &p->piece[i]);
    }
    zip_end(to, p, from, (uint64_t)ftello(to));
    return CORRAL_OK;
}

static enum corral_status write_to(struct traj_columns *c, struct pieces *p, enum traj_format format,
                                   const char *path, struct corral_error *err)
{
    FILE *to = fopen(path, "wxe");
    if (to == NULL) {
        return corral_fail_sys(err, errno, "cannot create %s", path);
    }
    list_pieces(p, c);
    enum corral_status status = format == TRAJ_NPZ ? npz(p, to, err) : safetensors(p, to, err);
    if ((ferror(to) | fclose(to)) != 0 && status == CORRAL_OK) {
        status = corral_fail_sys(err, errno, "cannot write %s", path);
    }
    return status;
}

enum corral_status traj_file_write(struct traj_columns *c, enum traj_format format, struct corral_error *err)
{
    char temporary[PATH_MAX + 32];
    CORRAL_AUTO_FREE struct pieces *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "no memory to write %s", c->path);
    }
    snprintf(temporary, sizeof temporary, "%s.tmp.%d", c->path, (int)getpid());
    enum corral_status status = write_to(c, p, format, temporary, err);
    if (status == CORRAL_OK && rename(temporary, c->path) != 0) {
        status = corral_fail_sys(err, errno, "cannot rename %s to %s", temporary, c->path);
    }
    if (status != CORRAL_OK) {
        unlink(temporary);
    }
    return status;
}
