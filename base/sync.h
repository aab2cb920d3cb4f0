/* Waiting on a 32-bit word in shared memory (futex), with a deadline. Works across processes. */
#ifndef CORRAL_BASE_SYNC_H
#define CORRAL_BASE_SYNC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Sleep while *word == expected, until deadline_ns (CLOCK_MONOTONIC; UINT64_MAX: none). False on timeout. Spurious returns are possible: re-check. */
bool corral_futex_wait(const _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns);
void corral_futex_wake_all(_Atomic uint32_t *word);

#endif
