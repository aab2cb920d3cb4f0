#include "base/error.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const status_names[] = {
    [CORRAL_OK] = "ok",
    [CORRAL_AGAIN] = "again",
    [CORRAL_TIMEOUT] = "timeout",
    [CORRAL_INVALID] = "invalid",
    [CORRAL_NOT_FOUND] = "not-found",
    [CORRAL_EXISTS] = "exists",
    [CORRAL_UNSUPPORTED] = "unsupported",
    [CORRAL_STATE] = "state",
    [CORRAL_NOMEM] = "no-memory",
    [CORRAL_DENIED] = "denied",
    [CORRAL_IO] = "io",
    [CORRAL_PEER] = "peer",
    [CORRAL_PROTOCOL] = "protocol",
    [CORRAL_INFRA] = "infra",
    [CORRAL_INTERNAL] = "internal",
};

const char *corral_status_name(enum corral_status status)
{
    size_t i = (size_t)status;
    if (i >= CORRAL_COUNT_OF(status_names) || status_names[i] == NULL) {
        return "unknown";
    }
    return status_names[i];
}

/* A text cut in the middle of a UTF-8 character would be refused by JSON encoders further on: drop the stump. */
static void trim_broken_tail(char *text)
{
    size_t n = strlen(text);
    size_t start = n;
    while (start > 0 && n - start < 3 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t want = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (want > 1 && n - (start - 1) < want) {
        text[start - 1] = '\0';
    }
}

/* The arguments may point into err->text, so the text is composed aside. */
CORRAL_PRINTF(2, 0)
static void set_text(struct corral_error *err, const char *fmt, va_list args, const char *tail_separator,
                     const char *tail)
{
    char text[sizeof err->text];
    int n = vsnprintf(text, sizeof text, fmt, args);
    size_t used = n < 0 ? 0 : CORRAL_MIN((size_t)n, sizeof text - 1);
    text[used] = '\0';
    if (tail != NULL) {
        snprintf(text + used, sizeof text - used, "%s%s", tail_separator, tail);
    }
    trim_broken_tail(text);
    memcpy(err->text, text, strlen(text) + 1);
}

enum corral_status corral_fail(struct corral_error *err, enum corral_status status, const char *fmt, ...)
{
    if (err == NULL) {
        return status;
    }
    int saved = errno;
    va_list args;
    va_start(args, fmt);
    set_text(err, fmt, args, "", NULL);
    va_end(args);
    err->status = status;
    err->sys = 0;
    errno = saved;
    return status;
}

enum corral_status corral_fail_sys(struct corral_error *err, int sys_errno, const char *fmt, ...)
{
    if (err == NULL) {
        return CORRAL_IO;
    }
    int saved = errno;
    char unknown[32];
    const char *reason = strerrordesc_np(sys_errno);
    if (reason == NULL) {
        snprintf(unknown, sizeof unknown, "error %d", sys_errno);
        reason = unknown;
    }
    va_list args;
    va_start(args, fmt);
    set_text(err, fmt, args, ": ", reason);
    va_end(args);
    err->status = CORRAL_IO;
    err->sys = sys_errno;
    errno = saved;
    return CORRAL_IO;
}

enum corral_status corral_error_prefix(struct corral_error *err, enum corral_status status, const char *fmt,
                                       ...)
{
    if (err == NULL) {
        return status;
    }
    int saved = errno;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    old[sizeof old - 1] = '\0';
    va_list args;
    va_start(args, fmt);
    set_text(err, fmt, args, ": ", old);
    va_end(args);
    if (err->status == CORRAL_OK) {
        err->status = status;
    }
    errno = saved;
    return err->status;
}

void corral_cleanup_free(void *pointer_to_pointer)
{
    void *p;
    memcpy(&p, pointer_to_pointer, sizeof p);
    free(p);
}

void corral_cleanup_close(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;
        close(*fd);
        errno = saved;
    }
}
