/* What the kernel says of this process's memory. Read in every step; docs/spec/proof.md says what for. One thread. */
#ifndef CORRAL_TRAINER_RESIDENT_H
#define CORRAL_TRAINER_RESIDENT_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

struct corral_resident {
    int statm_fd; /* -1: not open */
    uint64_t page_bytes;
    bool has_bound;     /* it is known how much that is at most: only then is a peak one */
    uint64_t uncounted; /* what the kernel may not have added up yet */
    uint64_t peak;      /* the last that corral_resident_peak() was told; the kernel's does not fall */
};

enum corral_status corral_resident_open(struct corral_resident *r, struct corral_error *err);
void corral_resident_close(struct corral_resident *r);
/* Whether a kernel of this release ("6.1.0-18-amd64") counts per CPU: before 6.2 each thread kept pages to itself, and how many have a thread is not known here. */
bool corral_resident_has_bound(const char *release);
/* Anonymous resident memory: what is resident without what is shared. 0: no reading. */
uint64_t corral_resident_now(const struct corral_resident *r);
/* At most this much has ever been resident of the process, shared pages and program text included. 0: the kernel does not tell, or not exactly enough. Costs a fifth of corral_resident_now(). */
uint64_t corral_resident_peak(struct corral_resident *r);

#endif
