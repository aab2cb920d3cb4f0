/* Status codes and error text shared by every public Corral header.
 *
 * A function that can fail returns `enum corral_status` and takes `struct corral_error *err` last; `err` may be
 * NULL and is written only on failure. The caller owns the struct; nothing in it needs freeing, so it works when
 * memory is gone. Codes are grouped by what the caller can do next. They are stable: never renumbered.
 */
#ifndef CORRAL_STATUS_H
#define CORRAL_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#ifndef CORRAL_API
#if defined(__GNUC__)
#define CORRAL_API __attribute__((visibility("default")))
#else
#define CORRAL_API
#endif
#endif

enum corral_status {
    CORRAL_OK = 0,
    /* try again */
    CORRAL_AGAIN = 1,   /* nothing to do right now; not an error */
    CORRAL_TIMEOUT = 2, /* a deadline passed */
    /* change the request */
    CORRAL_INVALID = 3,     /* wrong argument, file, key or value */
    CORRAL_NOT_FOUND = 4,   /* the named thing does not exist */
    CORRAL_EXISTS = 5,      /* the named thing already exists or is in use */
    CORRAL_UNSUPPORTED = 6, /* known, but not available in this build or on this machine */
    CORRAL_STATE = 7,       /* called in the wrong state */
    /* free something */
    CORRAL_NOMEM = 8,  /* the system has no memory */
    CORRAL_DENIED = 9, /* the memory quota refuses: floor or ceiling of the role */
    /* repair something outside */
    CORRAL_IO = 10,       /* a system call failed; `sys` is its errno */
    CORRAL_PEER = 11,     /* the other side has gone */
    CORRAL_PROTOCOL = 12, /* a peer or file sent malformed data */
    CORRAL_INFRA = 13,    /* an environment's host failed; the episode is void, never a reward */
    /* report it */
    CORRAL_INTERNAL = 14,
};

struct corral_error {
    enum corral_status status;
    int sys; /* errno of the failed call, or 0 */
    char text[496];
};

/* The code's name in lower case with dashes, e.g. "not-found". Never NULL. */
CORRAL_API const char *corral_status_name(enum corral_status status);

#ifdef __cplusplus
}
#endif
#endif
