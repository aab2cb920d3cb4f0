#include "base/log.h"
#include "base/clock.h"
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A line fits PIPE_BUF, so lines of several processes sharing one pipe do not interleave. */
#define LINE_BYTES_MAX 4096
/* A string field longer than this once escaped is cut and ends in "..."; room stays for the other fields. */
#define STRING_BYTES_MAX 1024

static struct {
    enum corral_log_level lowest;
    bool json;
    int fd;
    char program[32];
} config = {.lowest = CORRAL_LOG_INFO, .fd = STDERR_FILENO};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

struct line {
    size_t used;
    bool overflow; /* something did not fit; cleared by dropping back to an earlier `used` */
    char text[LINE_BYTES_MAX];
};

/* What closes a line must always fit after whatever was accepted before it. */
#define LINE_TAIL_RESERVE 32

void corral_log_configure(enum corral_log_level lowest, bool json, int fd, const char *program)
{
    config.lowest = lowest;
    config.json = json;
    config.fd = fd;
    snprintf(config.program, sizeof config.program, "%s", program == NULL ? "" : program);
}

bool corral_log_level_parse(const char *name, enum corral_log_level *out)
{
    for (size_t i = 0; i < CORRAL_COUNT_OF(level_names); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (enum corral_log_level)i;
            return true;
        }
    }
    return false;
}

static void put(struct line *line, const char *text, size_t n)
{
    if (line->overflow || n > sizeof line->text - LINE_TAIL_RESERVE - line->used) {
        line->overflow = true;
        return;
    }
    memcpy(line->text + line->used, text, n);
    line->used += n;
}

static void put_text(struct line *line, const char *text)
{
    put(line, text, strlen(text));
}

CORRAL_PRINTF(2, 3) static void put_format(struct line *line, const char *fmt, ...)
{
    char text[64];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n > 0) {
        put(line, text, CORRAL_MIN((size_t)n, sizeof text - 1));
    }
}

/* Length of the printable, valid UTF-8 character at s, or 0: control characters (C1 ones too), stray and overlong bytes. */
static size_t printable_length(const unsigned char *s)
{
    if (s[0] < 0x80) {
        return s[0] >= 0x20 && s[0] != 0x7F ? 1 : 0;
    }
    size_t n = s[0] >= 0xF0 && s[0] <= 0xF4  ? 4
               : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
               : s[0] >= 0xC2 && s[0] < 0xE0 ? 2
                                             : 0;
    if (n == 0) {
        return 0;
    }
    uint32_t point = s[0] & (0xFFu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) { /* the terminating NUL stops here too */
            return 0;
        }
        point = point << 6 | (s[i] & 0x3Fu);
    }
    static const uint32_t smallest[5] = {0, 0, 0xA0, 0x800, 0x10000};
    if (point < smallest[n] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
        return 0;
    }
    /* U+2028 and U+2029 are line ends to some readers. */
    return point == 0x2028 || point == 0x2029 ? 0 : n;
}

static size_t escape_one(unsigned char c, bool json, char out[8])
{
    static const char short_escapes[] = "\nn\rr\tt\"\"\\\\";
    for (size_t i = 0; i + 1 < sizeof short_escapes; i += 2) {
        if ((char)c == short_escapes[i]) {
            out[0] = '\\';
            out[1] = short_escapes[i + 1];
            return 2;
        }
    }
    /* JSON has no byte escapes: a byte that is no text becomes the replacement character. */
    int n =
        json && c >= 0x80 ? snprintf(out, 8, "\\ufffd") : snprintf(out, 8, json ? "\\u%04x" : "\\x%02x", c);
    return (size_t)n;
}

static bool needs_quotes(const char *text)
{
    if (*text == '\0') {
        return true;
    }
    for (const unsigned char *s = (const unsigned char *)text; *s != '\0';) {
        size_t n = printable_length(s);
        if (n == 0 || *s == ' ' || *s == '"' || *s == '\\') {
            return true;
        }
        s += n;
    }
    return false;
}

static void put_string(struct line *line, const char *text, bool json)
{
    if (text == NULL) {
        put_text(line, json ? "null" : "-");
        return;
    }
    const bool quoted = json || needs_quotes(text);
    const size_t start = line->used;
    put(line, "\"", quoted);
    const unsigned char *s = (const unsigned char *)text;
    while (*s != '\0' && !line->overflow) {
        if (line->used - start > STRING_BYTES_MAX) {
            put_text(line, "...");
            break;
        }
        size_t n = printable_length(s);
        if (n == 0 || *s == '"' || *s == '\\') {
            char escaped[8];
            put(line, escaped, escape_one(*s, json, escaped));
            s++;
        } else {
            put(line, (const char *)s, n);
            s += n;
        }
    }
    put(line, "\"", quoted);
}

static void put_value(struct line *line, const struct corral_log_field *f, bool json)
{
    switch (f->kind) {
    case CORRAL_FIELD_STR:
        put_string(line, f->value.str, json);
        return;
    case CORRAL_FIELD_I64:
        put_format(line, "%" PRId64, f->value.i64);
        return;
    case CORRAL_FIELD_U64:
        put_format(line, "%" PRIu64, f->value.u64);
        return;
    case CORRAL_FIELD_F64:
        if (json && !isfinite(f->value.f64)) {
            put_text(line, "null");
        } else {
            put_format(line, json ? "%.17g" : "%.6g", f->value.f64);
        }
        return;
    case CORRAL_FIELD_BOOL:
        put_text(line, f->value.boolean ? "true" : "false");
        return;
    }
}

static void put_head_text(struct line *line, enum corral_log_level level, const char *phrase,
                          const struct timespec *now)
{
    struct tm tm = {0};
    localtime_r(&now->tv_sec, &tm);
    put_format(line, "%02d:%02d:%02d.%03ld %-5s ", tm.tm_hour, tm.tm_min, tm.tm_sec, now->tv_nsec / 1000000,
               level_names[level]);
    if (config.program[0] != '\0') {
        put_text(line, config.program);
        put_text(line, ": ");
    }
    put_text(line, phrase);
}

static void put_head_json(struct line *line, enum corral_log_level level, const char *phrase,
                          const struct timespec *now)
{
    struct tm tm = {0};
    gmtime_r(&now->tv_sec, &tm);
    put_format(line, "{\"time\":\"%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ\"", tm.tm_year + 1900, tm.tm_mon + 1,
               tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, now->tv_nsec / 1000);
    put_format(line, ",\"level\":\"%s\"", level_names[level]);
    if (config.program[0] != '\0') {
        put_text(line, ",\"program\":");
        put_string(line, config.program, true);
    }
    put_text(line, ",\"event\":");
    put_string(line, phrase, true);
}

static void put_fields(struct line *line, const struct corral_log_field *fields, size_t count, bool json)
{
    for (size_t i = 0; i < count; i++) {
        const size_t before = line->used;
        if (json) {
            put_text(line, ",");
            put_string(line, fields[i].name, true);
            put_text(line, ":");
        } else {
            put_text(line, " ");
            put_text(line, fields[i].name);
            put_text(line, " ");
        }
        put_value(line, &fields[i], json);
        if (line->overflow) { /* a field is there whole or not at all */
            line->used = before;
            return;
        }
    }
}

void corral_log_write(enum corral_log_level level, const char *phrase, const struct corral_log_field *fields,
                      size_t count)
{
    if (level < config.lowest || (size_t)level >= CORRAL_COUNT_OF(level_names)) {
        return;
    }
    const int saved = errno;
    const uint64_t wall = corral_wall_ns();
    const struct timespec now = {.tv_sec = (time_t)(wall / CORRAL_NS_PER_S),
                                 .tv_nsec = (long)(wall % CORRAL_NS_PER_S)};
    struct line line;
    line.used = 0;
    line.overflow = false;
    const bool json = config.json;
    if (json) {
        put_head_json(&line, level, phrase, &now);
    } else {
        put_head_text(&line, level, phrase, &now);
    }
    put_fields(&line, fields, count, json);
    const char *tail =
        json ? (line.overflow ? ",\"truncated\":true}\n" : "}\n") : (line.overflow ? " truncated\n" : "\n");
    static_assert(sizeof ",\"truncated\":true}\n" <= LINE_TAIL_RESERVE, "the tail always fits");
    memcpy(line.text + line.used, tail, strlen(tail));
    line.used += strlen(tail);
    /* A log that cannot be written is no reason to fail; it is not retried, so a full pipe stalls nobody twice. */
    while (write(config.fd, line.text, line.used) < 0 && errno == EINTR) {
    }
    errno = saved;
}
