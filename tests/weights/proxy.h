/* A TCP proxy that does what networks do: it delays, stalls, cuts and corrupts. TCP keeps the order, so it can't reorder.
 *
 * The programs under test know nothing of it: they are linked with -Wl,--wrap=connect, and in a process where proxy_use() was called every connection to 127.0.0.1 goes to the proxy instead. It tells where
 * each was meant to go by its source port, through a table in shared memory: so control connections and lanes' streams go through it alike.
 */
#ifndef CORRAL_TESTS_WEIGHTS_PROXY_H
#define CORRAL_TESTS_WEIGHTS_PROXY_H

#include <stdatomic.h>
#include <stdint.h>

enum proxy_fault {
    PROXY_NONE,
    PROXY_DELAY,
    PROXY_STALL,
    PROXY_CUT,
    PROXY_RESET,
    PROXY_CORRUPT,
    PROXY_FAULTS
};

/* In memory shared by all processes. */
struct proxy_shared {
    _Atomic uint16_t port;           /* where the proxy listens; 0: not yet */
    _Atomic uint16_t meant[1 << 16]; /* by source port: the port it is for */
    /* A fault: the members, then armed + 1 (release; the proxy acquires). It hits one connection, chosen by `pick`, after `at` more bytes in one direction. */
    _Atomic uint32_t armed;
    enum proxy_fault fault;
    uint32_t ms; /* delay, stall */
    uint64_t at, pick;
    _Atomic uint64_t hit[PROXY_FAULTS], connections, bytes;
};

/* Runs until killed. */
_Noreturn void proxy_run(struct proxy_shared *shared);
/* From now on this process connects through it. */
void proxy_use(struct proxy_shared *shared);

#endif
