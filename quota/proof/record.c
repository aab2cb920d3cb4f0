#include "quota/proof/record.h"
#include "base/json.h"
#include "quota/proof/internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const types[] = {"begin", "step", "limits", "restart", "recovered", "end"};
static const char *const verdicts[] = {"proven", "unproven", "refused"};
static const char *const readings[] = {"", "peak", "anonymous", "device"};

const char *corral_proof_type_name(enum corral_proof_type type)
{
    return (size_t)type < CORRAL_COUNT_OF(types) ? types[type] : "?";
}

const char *corral_proof_verdict_name(enum corral_proof_verdict verdict)
{
    return (size_t)verdict < CORRAL_COUNT_OF(verdicts) ? verdicts[verdict] : "?";
}

const char *corral_proof_reading_name(enum corral_proof_reading reading)
{
    return (size_t)reading < CORRAL_COUNT_OF(readings) ? readings[reading] : "?";
}

/* ---- reading ---- */

struct in {
    const json_t *object;
    struct corral_error *err;
    enum corral_status status; /* the first failure */
};

static const json_t *need(struct in *in, const char *key, json_type type)
{
    const json_t *value = json_object_get(in->object, key);
    if (in->status == CORRAL_OK && (!value || json_typeof(value) != type)) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "%s `%s`", value ? "wrong type of" : "no", key);
    }
    return in->status == CORRAL_OK ? value : NULL;
}

static uint64_t get_u64(struct in *in, const char *key)
{
    const json_t *value = need(in, key, JSON_INTEGER);
    if (value && json_integer_value(value) < 0) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "`%s` is negative", key);
    }
    return in->status == CORRAL_OK ? (uint64_t)json_integer_value(value) : 0;
}

static uint32_t get_u32(struct in *in, const char *key)
{
    uint64_t value = get_u64(in, key);
    if (in->status == CORRAL_OK && value > UINT32_MAX) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "`%s` is too large", key);
    }
    return (uint32_t)value;
}

static int64_t get_i64(struct in *in, const char *key)
{
    const json_t *value = need(in, key, JSON_INTEGER);
    return value ? json_integer_value(value) : 0;
}

static void get_text(struct in *in, const char *key, char *out, size_t out_bytes)
{
    const json_t *value = need(in, key, JSON_STRING);
    size_t bytes = value ? json_string_length(value) : 0;
    const char *text = value ? json_string_value(value) : "";
    if (bytes >= out_bytes || strlen(text) != bytes) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "`%s` is too long", key);
        return;
    }
    memcpy(out, text, bytes + 1);
}

static uint32_t get_name(struct in *in, const char *key, const char *const *names, size_t count)
{
    char text[32] = "";
    get_text(in, key, text, sizeof text);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0) {
            return i;
        }
    }
    if (in->status == CORRAL_OK) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "`%s` is \"%s\", which is not known", key, text);
    }
    return 0;
}

static void get_role(struct in *in, enum corral_proof_type type, struct corral_proof_role *role)
{
    get_text(in, "name", role->name, sizeof role->name);
    role->floor = get_u64(in, "floor");
    role->ceiling = get_u64(in, "ceiling");
    if (type == CORRAL_PROOF_STEP) {
        role->peak = get_u64(in, "peak");
        role->used = get_u64(in, "used");
        role->denied = get_u64(in, "denied");
        role->spilled = get_u64(in, "spilled");
        role->pinned = get_u64(in, "pinned");
    }
}

static void get_limits(struct in *in, struct corral_proof_record *r)
{
    get_text(in, "device", r->device, sizeof r->device);
    get_text(in, "role", r->own_role, sizeof r->own_role);
    r->physical = get_u64(in, "physical");
    r->headroom = get_u64(in, "headroom");
    r->overcommit_ppm = get_u64(in, "overcommit_ppm");
    const json_t *roles = need(in, "roles", JSON_ARRAY);
    size_t count = roles ? json_array_size(roles) : 0;
    if (count > CORRAL_LEDGER_ROLES_MAX) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "%zu roles", count);
        return;
    }
    for (size_t i = 0; i < count && in->status == CORRAL_OK; i++) {
        struct in one = {.object = json_array_get(roles, i), .err = in->err};
        get_role(&one, r->type, &r->role[i]);
        in->status = one.status;
    }
    r->role_count = (uint32_t)count;
}

static void get_step(struct in *in, struct corral_proof_record *r)
{
    r->verdict = (enum corral_proof_verdict)get_name(in, "verdict", verdicts, CORRAL_COUNT_OF(verdicts));
    get_text(in, "why", r->why, sizeof r->why);
    r->declared = get_u64(in, "declared");
    r->own_peak = get_u64(in, "own_peak");
    r->claim_peak = get_u64(in, "claim_peak");
    r->slack_min = get_u64(in, "slack_min");
    r->outside = get_u64(in, "outside");
    r->physical_read = get_u64(in, "physical_read");
    r->physical_age_ns = get_u64(in, "physical_age_ns");
    if (json_object_get(in->object, "reading")) { /* earlier records do not say */
        r->reading = (enum corral_proof_reading)get_name(in, "reading", readings, CORRAL_COUNT_OF(readings));
    }
    r->ledger = get_u64(in, "ledger");
    r->baseline = get_u64(in, "baseline");
    r->drift = get_i64(in, "drift");
    r->drift_max = get_u64(in, "drift_max");
    r->device_used = get_u64(in, "device_used");
    r->device_foreign = get_u64(in, "device_foreign");
    get_text(in, "fences", r->fences, sizeof r->fences);
    r->step_ns = get_u64(in, "step_ns");
}

static void get_begin(struct in *in, struct corral_proof_record *r)
{
    char run[20] = "";
    uint64_t format = get_u64(in, "format");
    if (in->status == CORRAL_OK && format != 1) {
        in->status =
            corral_fail(in->err, CORRAL_UNSUPPORTED, "format %" PRIu64 "; this program reads 1", format);
    }
    get_text(in, "run", run, sizeof run);
    if (in->status == CORRAL_OK && (strlen(run) != 16 || strspn(run, "0123456789abcdef") != 16)) {
        in->status = corral_fail(in->err, CORRAL_PROTOCOL, "`run` is not 16 hex digits");
    }
    r->run = strtoull(run, NULL, 16);
    r->baseline = get_u64(in, "baseline");
    r->drift_max = get_u64(in, "drift_max");
    get_text(in, "fences", r->fences, sizeof r->fences);
}

static enum corral_status read_object(const json_t *object, struct corral_proof_record *r,
                                      struct corral_error *err)
{
    struct in in = {.object = object, .err = err};
    r->type = (enum corral_proof_type)get_name(&in, "type", types, CORRAL_COUNT_OF(types));
    r->wall_ns = get_u64(&in, "wall_ns");
    if (r->type == CORRAL_PROOF_RECOVERED) {
        r->torn_bytes = get_u64(&in, "torn_bytes");
        return in.status;
    }
    r->rank = get_u32(&in, "rank");
    r->generation = get_u32(&in, "generation");
    if (r->type == CORRAL_PROOF_BEGIN || r->type == CORRAL_PROOF_RESTART) {
        get_begin(&in, r);
    }
    if (r->type != CORRAL_PROOF_LIMITS) {
        r->step = get_u64(&in, "step");
    }
    if (r->type == CORRAL_PROOF_STEP) {
        get_step(&in, r);
    }
    if (corral_proof_has_limits(r->type)) {
        get_limits(&in, r);
    }
    return in.status;
}

enum corral_status corral_proof_parse(const char *body, size_t bytes, struct corral_proof_record *out,
                                      struct corral_error *err)
{
    json_t *object = NULL;
    CORRAL_TRY(corral_json_parse(&object, "proof record", body, bytes, err));
    CORRAL_AUTO_FREE struct corral_proof_record *r = calloc(1, sizeof *r);
    enum corral_status status = !r ? corral_fail(err, CORRAL_NOMEM, "reading a proof record")
                                : json_is_object(object) ? read_object(object, r, err)
                                                         : corral_fail(err, CORRAL_PROTOCOL, "not an object");
    json_decref(object);
    if (status == CORRAL_OK) {
        *out = *r;
    }
    return status;
}

/* ---- invariant 1 from the record's own numbers ---- */

/* A sum that saturates: a record may claim anything. */
static uint64_t plus(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static enum corral_status check_limits(const struct corral_proof_record *r, struct corral_error *err)
{
    uint64_t floors = r->headroom, ceilings = 0;
    for (uint32_t i = 0; i < r->role_count; i++) {
        const struct corral_proof_role *role = &r->role[i];
        if (role->floor > role->ceiling) {
            return corral_fail(err, CORRAL_INVALID, "%s: floor %" PRIu64 " > ceiling %" PRIu64, role->name,
                               role->floor, role->ceiling);
        }
        floors = plus(floors, role->floor);
        ceilings = plus(ceilings, role->ceiling);
    }
    if (floors > r->physical) {
        return corral_fail(err, CORRAL_INVALID, "floors + headroom %" PRIu64 " > physical %" PRIu64, floors,
                           r->physical);
    }
    double share = (double)r->overcommit_ppm / 1e6;
    if (r->overcommit_ppm && (double)ceilings > share * (double)r->physical + 1) {
        return corral_fail(err, CORRAL_INVALID, "ceilings %" PRIu64 " > %.3f x physical %" PRIu64, ceilings,
                           share, r->physical);
    }
    return CORRAL_OK;
}

/* The window's highest claim is at least what any one role's peak makes of it beside the others' floors: a claim that is too small to be true hides something. */
static enum corral_status check_claim(const struct corral_proof_record *r, struct corral_error *err)
{
    uint64_t floors = r->headroom, now = r->headroom;
    for (uint32_t i = 0; i < r->role_count; i++) {
        const struct corral_proof_role *role = &r->role[i];
        floors = plus(floors, role->floor);
        now = plus(now, CORRAL_MAX(role->floor, role->used));
    }
    if (r->claim_peak > r->physical) {
        return corral_fail(err, CORRAL_INVALID, "claims %" PRIu64 " > physical %" PRIu64 ": a floor was lent",
                           r->claim_peak, r->physical);
    }
    for (uint32_t i = 0; i < r->role_count; i++) {
        const struct corral_proof_role *role = &r->role[i];
        uint64_t least = plus(floors, role->peak > role->floor ? role->peak - role->floor : 0);
        if (role->peak > role->ceiling) {
            return corral_fail(err, CORRAL_INVALID, "%s: peak %" PRIu64 " > ceiling %" PRIu64, role->name,
                               role->peak, role->ceiling);
        }
        if (role->used > role->peak) {
            return corral_fail(err, CORRAL_INVALID, "%s: used %" PRIu64 " > peak %" PRIu64, role->name,
                               role->used, role->peak);
        }
        if (least > r->claim_peak) {
            return corral_fail(err, CORRAL_INVALID,
                               "claims %" PRIu64 " < %" PRIu64
                               ", the floors + headroom + what %s peaked above its own",
                               r->claim_peak, least, role->name);
        }
    }
    if (now > r->claim_peak) {
        return corral_fail(err, CORRAL_INVALID,
                           "claims %" PRIu64 " < %" PRIu64 ", what was used or guaranteed at the end",
                           r->claim_peak, now);
    }
    if (r->slack_min != r->physical - r->claim_peak) {
        return corral_fail(err, CORRAL_INVALID, "slack %" PRIu64 " != physical - claims %" PRIu64,
                           r->slack_min, r->physical - r->claim_peak);
    }
    return CORRAL_OK;
}

static enum corral_status check_own(const struct corral_proof_record *r, struct corral_error *err)
{
    const struct corral_proof_role *own = NULL;
    for (uint32_t i = 0; i < r->role_count; i++) {
        own = strcmp(r->role[i].name, r->own_role) == 0 ? &r->role[i] : own;
    }
    if (!own) {
        return corral_fail(err, CORRAL_INVALID, "role %s of the trainer is not among those on %s",
                           r->own_role, r->device);
    }
    if (r->own_peak > own->peak) {
        return corral_fail(err, CORRAL_INVALID, "own peak %" PRIu64 " > %s's peak %" PRIu64, r->own_peak,
                           own->name, own->peak);
    }
    if (r->outside > 0) {
        return corral_fail(err, CORRAL_INVALID,
                           "%s uses %" PRIu64 " bytes on devices where it was granted none", own->name,
                           r->outside);
    }
    return CORRAL_OK;
}

static enum corral_status check_drift(const struct corral_proof_record *r, struct corral_error *err)
{
    int64_t drift = (int64_t)(r->physical_read - r->ledger - r->baseline);
    if (r->physical_read > 0 && r->drift != drift) {
        return corral_fail(err, CORRAL_INVALID, "drift %" PRId64 " != read - ledger - baseline %" PRId64,
                           r->drift, drift);
    }
    if (r->verdict != CORRAL_PROOF_PROVEN) {
        return CORRAL_OK;
    }
    if (r->physical_read == 0 || (r->drift > 0 && (uint64_t)r->drift > r->drift_max)) {
        return corral_fail(err, CORRAL_INVALID,
                           "called proven with drift %" PRId64 " of at most %" PRIu64
                           " and a physical reading of %" PRIu64,
                           r->drift, r->drift_max, r->physical_read);
    }
    if (r->physical_age_ns > CORRAL_PROOF_READING_AGE_MAX_NS) {
        return corral_fail(err, CORRAL_INVALID,
                           "called proven with a physical reading of %" PRIu64 " ns before",
                           r->physical_age_ns);
    }
    if (r->device_foreign > r->drift_max) {
        return corral_fail(err, CORRAL_INVALID, "called proven with %" PRIu64 " bytes of unknown processes",
                           r->device_foreign);
    }
    return r->why[0] ? corral_fail(err, CORRAL_INVALID, "called proven although: %s", r->why) : CORRAL_OK;
}

enum corral_status corral_proof_check(const struct corral_proof_record *r, struct corral_error *err)
{
    if (!corral_proof_has_limits(r->type)) {
        return CORRAL_OK;
    }
    CORRAL_TRY(check_limits(r, err));
    if (r->type != CORRAL_PROOF_STEP || r->verdict == CORRAL_PROOF_REFUSED) {
        return CORRAL_OK;
    }
    CORRAL_TRY(check_claim(r, err));
    CORRAL_TRY(check_own(r, err));
    return check_drift(r, err);
}
