#include "base/json.h"
#include "base/file.h"
#include <errno.h>
#include <math.h>

static enum corral_status check_size(const char *name, size_t bytes, struct corral_error *err)
{
    if (bytes > CORRAL_JSON_BYTES_MAX) {
        return corral_fail(err, CORRAL_INVALID, "%s: %zu bytes of JSON, more than the %u allowed", name,
                           bytes, CORRAL_JSON_BYTES_MAX);
    }
    return CORRAL_OK;
}

enum corral_status corral_json_parse(json_t **out, const char *name, const char *text, size_t bytes,
                                     struct corral_error *err)
{
    CORRAL_TRY(check_size(name, bytes, err));
    json_error_t why;
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    if (value == NULL && json_error_code(&why) == json_error_out_of_memory) {
        return corral_fail(err, CORRAL_NOMEM, "cannot parse %s: out of memory", name);
    }
    if (value == NULL) {
        /* Our own name for the place: jansson's counts from zero where nothing was read. */
        return corral_fail(err, CORRAL_INVALID, "%s:%d:%d: error: %s", name, CORRAL_MAX(why.line, 1),
                           CORRAL_MAX(why.column, 1), why.text);
    }
    *out = value;
    return CORRAL_OK;
}

enum corral_status corral_json_read_file(json_t **out, const char *path, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *text = NULL;
    size_t bytes = 0;
    CORRAL_TRY(corral_file_read(path, CORRAL_JSON_BYTES_MAX, &text, &bytes, err));
    return corral_json_parse(out, path, text, bytes, err);
}

static enum corral_status dump(FILE *to, const json_t *value, size_t flags, struct corral_error *err)
{
    CORRAL_AUTO_FREE char *text = json_dumps(value, flags | JSON_ENCODE_ANY);
    if (text == NULL) {
        return corral_fail(err, CORRAL_NOMEM, "cannot encode JSON: out of memory");
    }
    /* Flushed, so that a reader of the stream sees the line now and a full disk is noticed here. */
    if (fputs(text, to) == EOF || fputc('\n', to) == EOF || fflush(to) != 0) {
        return corral_fail_sys(err, errno, "cannot write JSON");
    }
    return CORRAL_OK;
}

enum corral_status corral_json_line(FILE *to, const json_t *value, struct corral_error *err)
{
    return dump(to, value, JSON_COMPACT, err);
}

enum corral_status corral_json_print(FILE *to, const json_t *value, struct corral_error *err)
{
    return dump(to, value, JSON_INDENT(2), err);
}

json_t *corral_json_real(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}
