/* A record as JSON. It is written in every step, and between two steps a trainer leaves nothing of this in the caches: so the fields are rows of tables, which are read in order by one short
 * loop, and nothing calls the C library. No allocation. */
#include "quota/proof/internal.h"
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define ROW_BYTES 22 /* longest `,"key":` */
#define DIGITS 20    /* of a number */

struct out {
    char *at, *end;
    bool full;
};

enum kind { U32, U64, I64, TEXT, VERDICT, READING, ROLES };

struct field {
    char text[ROW_BYTES]; /* with comma, quotes and colon */
    uint8_t bytes, kind;
    uint16_t offset;
};

#define FIELD(type, key, kind, member)                                             \
    {                                                                              \
        ",\"" key "\":", sizeof(",\"" key "\":") - 1, kind, offsetof(type, member) \
    }
#define R(key, kind) FIELD(struct corral_proof_record, #key, kind, key)
#define ROLE(key, kind) FIELD(struct corral_proof_role, #key, kind, key)

static const struct field begin_fields[] = {R(baseline, U64), R(drift_max, U64), R(fences, TEXT)};
static const struct field step_fields[] = {
    R(verdict, VERDICT),     R(why, TEXT),        R(declared, U64),    R(own_peak, U64),
    R(claim_peak, U64),      R(slack_min, U64),   R(outside, U64),     R(physical_read, U64),
    R(physical_age_ns, U64), R(reading, READING), R(ledger, U64),      R(baseline, U64),
    R(drift, I64),           R(drift_max, U64),   R(device_used, U64), R(device_foreign, U64),
    R(fences, TEXT),         R(step_ns, U64),
};
static const struct field limit_fields[] = {
    R(device, TEXT),        FIELD(struct corral_proof_record, "role", TEXT, own_role),
    R(physical, U64),       R(headroom, U64),
    R(overcommit_ppm, U64), FIELD(struct corral_proof_record, "roles", ROLES, role),
};
/* Those behind the name. */
static const struct field role_fields[] = {ROLE(floor, U64), ROLE(ceiling, U64), ROLE(peak, U64),
                                           ROLE(used, U64),  ROLE(denied, U64),  ROLE(spilled, U64),
                                           ROLE(pinned, U64)};
#define ROLE_LIMITS 2 /* of them, in records that are not of a step */
static const struct field one_step[] = {R(step, U64)};
static const struct field head_fields[] = {R(rank, U32), R(generation, U32)};

/* There is always room for the NUL. */
static void put(struct out *o, const char *text, size_t bytes)
{
    if (o->full || (size_t)(o->end - o->at) <= bytes) {
        o->full = true;
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        o->at[i] = text[i];
    }
    o->at += bytes;
}

/* The first `bytes` of ROW_BYTES that may be read: where there is room for all of these, that is two moves. */
static void put_row(struct out *o, const char *text, size_t bytes)
{
    if (!o->full && (size_t)(o->end - o->at) > ROW_BYTES) {
        memcpy(o->at, text, ROW_BYTES);
        o->at += bytes;
    } else {
        put(o, text, bytes);
    }
}

static void put_digits(struct out *o, uint64_t value)
{
    char digits[DIGITS + ROW_BYTES] = {0};
    size_t n = DIGITS;
    do {
        digits[--n] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    put_row(o, digits + n, DIGITS - n);
}

/* No reader would take more. */
static void put_u64(struct out *o, uint64_t value)
{
    o->full |= value > INT64_MAX;
    put_digits(o, value);
}

static void put_i64(struct out *o, int64_t value)
{
    put(o, "-", value < 0);
    put_digits(o, value < 0 ? -(uint64_t)value : (uint64_t)value);
}

/* Control characters and what is not ASCII are not needed in names and reasons: they become '?'. */
static void put_text(struct out *o, const char *text)
{
    put(o, "\"", 1);
    for (; *text; text++) {
        char c = *text >= 32 && *text < 127 ? *text : '?';
        if (c == '"' || c == '\\') {
            put(o, "\\", 1);
        }
        put(o, &c, 1);
    }
    put(o, "\"", 1);
}

static void put_fields(struct out *o, const void *from, const struct field *fields, size_t count);

static void put_roles(struct out *o, const struct corral_proof_record *r)
{
    put(o, "[", 1);
    for (uint32_t i = 0; i < r->role_count && i < CORRAL_LEDGER_ROLES_MAX; i++) {
        put(o, i ? ",{\"name\":" : "{\"name\":", i ? 9 : 8);
        put_text(o, r->role[i].name);
        put_fields(o, &r->role[i], role_fields,
                   r->type == CORRAL_PROOF_STEP ? CORRAL_COUNT_OF(role_fields) : ROLE_LIMITS);
        put(o, "}", 1);
    }
    put(o, "]", 1);
}

static void put_field(struct out *o, const void *from, const struct field *f)
{
    const char *at = (const char *)from + f->offset;
    switch ((enum kind)f->kind) {
    case U32:
        put_u64(o, *(const uint32_t *)(const void *)at);
        break;
    case U64:
        put_u64(o, *(const uint64_t *)(const void *)at);
        break;
    case I64:
        put_i64(o, *(const int64_t *)(const void *)at);
        break;
    case TEXT:
        put_text(o, at);
        break;
    case VERDICT:
        put_text(o, corral_proof_verdict_name(*(const enum corral_proof_verdict *)(const void *)at));
        break;
    case READING:
        put_text(o, corral_proof_reading_name(*(const enum corral_proof_reading *)(const void *)at));
        break;
    case ROLES:
        put_roles(o, from);
        break;
    }
}

static void put_fields(struct out *o, const void *from, const struct field *fields, size_t count)
{
    for (const struct field *f = fields; f < fields + count; f++) {
        if (f->kind == READING && *(const uint32_t *)(const void *)((const char *)from + f->offset) == 0) {
            continue; /* not said */
        }
        put_row(o, f->text, f->bytes);
        put_field(o, from, f);
    }
}

#define PUT_FIELDS(o, r, fields) put_fields(o, r, fields, CORRAL_COUNT_OF(fields))

static void put_begin(struct out *o, const struct corral_proof_record *r)
{
    static const char start[] = ",\"format\":1,\"run\":";
    char run[20];
    snprintf(run, sizeof run, "%016" PRIx64, r->run);
    put(o, start, sizeof start - 1);
    put_text(o, run);
    PUT_FIELDS(o, r, begin_fields);
}

size_t corral_proof_write(const struct corral_proof_record *r, char *out, size_t out_bytes)
{
    static const struct field wall[] = {R(wall_ns, U64)}, torn[] = {R(torn_bytes, U64)};
    struct out o = {.at = out, .end = out + out_bytes};
    put(&o, "{\"type\":", 8);
    put_text(&o, corral_proof_type_name(r->type));
    PUT_FIELDS(&o, r, wall);
    if (r->type == CORRAL_PROOF_RECOVERED) {
        PUT_FIELDS(&o, r, torn);
    } else {
        PUT_FIELDS(&o, r, head_fields);
    }
    if (r->type == CORRAL_PROOF_BEGIN || r->type == CORRAL_PROOF_RESTART) {
        put_begin(&o, r);
    }
    if (r->type != CORRAL_PROOF_RECOVERED && r->type != CORRAL_PROOF_LIMITS) {
        PUT_FIELDS(&o, r, one_step);
    }
    if (r->type == CORRAL_PROOF_STEP) {
        PUT_FIELDS(&o, r, step_fields);
    }
    if (corral_proof_has_limits(r->type)) {
        PUT_FIELDS(&o, r, limit_fields);
    }
    put(&o, "}", 1);
    if (o.full) {
        return 0;
    }
    *o.at = '\0';
    return (size_t)(o.at - out);
}
