#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "orchestrator/run/run_folder.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT 1

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Exactly 2 * bytes lower-case hex digits. */
static bool unhex(const char *text, uint8_t *out, size_t bytes)
{
    if (strlen(text) != 2 * bytes) {
        return false;
    }
    for (size_t i = 0; i < bytes; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

enum corral_status corral_launch_file_write(const char *path, const struct corral_launch_file *f,
                                            struct corral_error *err)
{
    char run[24], secret[65];
    snprintf(run, sizeof run, "%016" PRIx64, f->run);
    corral_hex(f->secret, sizeof f->secret, secret);
    json_t *root =
        json_pack("{s:i, s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "format", FORMAT, "run", run,
                  "incarnation", (json_int_t)f->incarnation, "token", f->token, "secret", secret, "endpoint",
                  f->endpoint, "endpoint_tcp", f->endpoint_tcp, "server_public_key", f->server_public_key,
                  "server_secret_key", f->server_secret_key, "resume", f->resume);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    CORRAL_AUTO_FREE char *owned = text;
    if (!owned) {
        return corral_fail(err, CORRAL_NOMEM, "writing %s", path);
    }
    return corral_file_write_atomic(path, owned, strlen(owned), 0600, false, err);
}

static bool take_text(const json_t *root, const char *key, char *out, size_t out_bytes)
{
    const json_t *value = json_object_get(root, key);
    size_t length = json_string_length(value);
    if (!json_is_string(value) || length >= out_bytes || strlen(json_string_value(value)) != length) {
        return false;
    }
    memcpy(out, json_string_value(value), length + 1);
    return true;
}

static bool take_number(const json_t *root, const char *key, uint32_t *out)
{
    const json_t *value = json_object_get(root, key);
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > UINT32_MAX) {
        return false;
    }
    *out = (uint32_t)json_integer_value(value);
    return true;
}

static bool take_all(const json_t *root, struct corral_launch_file *f)
{
    char run[17], secret[65];
    uint8_t run_bytes[8];
    uint32_t format;
    bool good =
        take_number(root, "format", &format) && format == FORMAT &&
        take_number(root, "incarnation", &f->incarnation) && take_text(root, "run", run, sizeof run) &&
        unhex(run, run_bytes, sizeof run_bytes) && take_text(root, "secret", secret, sizeof secret) &&
        unhex(secret, f->secret, sizeof f->secret) && take_text(root, "token", f->token, sizeof f->token) &&
        f->token[0] && take_text(root, "endpoint", f->endpoint, sizeof f->endpoint) &&
        take_text(root, "endpoint_tcp", f->endpoint_tcp, sizeof f->endpoint_tcp) &&
        take_text(root, "server_public_key", f->server_public_key, sizeof f->server_public_key) &&
        take_text(root, "server_secret_key", f->server_secret_key, sizeof f->server_secret_key) &&
        take_text(root, "resume", f->resume, sizeof f->resume);
    for (size_t i = 0; good && i < sizeof run_bytes; i++) {
        f->run = f->run << 8 | run_bytes[i];
    }
    return good;
}

enum corral_status corral_launch_file_read(const char *path, struct corral_launch_file *f,
                                           struct corral_error *err)
{
    json_t *root = NULL;
    CORRAL_TRY(corral_json_read_file(&root, path, err));
    struct corral_launch_file out = {0};
    bool good = take_all(root, &out);
    json_decref(root);
    if (!good) {
        return corral_fail(err, CORRAL_PROTOCOL, "%s: not a launch file of this version", path);
    }
    *f = out;
    return CORRAL_OK;
}
