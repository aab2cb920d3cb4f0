/* Two nodes of a run of Corral's own beside the engines of world.h: a publisher with the first node's store, a receiver with the second one's, and readers of both, each in a process of its own. */
#ifndef CORRAL_TESTS_WEIGHTS_STORES_H
#define CORRAL_TESTS_WEIGHTS_STORES_H

#include "tests/weights/world.h"

#define STORES 2u
#define STORE_READERS 2u /* processes per store */

struct stores {
    int fd[STORES];          /* of the mappings, inherited */
    _Atomic uint32_t serial; /* of the receiver's endpoint; written last (release) */
    char endpoint[96];
    _Atomic uint64_t done; /* the version that the publisher is through with */
    _Atomic uint64_t pushed, deltas, aborted;
    struct {
        _Atomic uint64_t version, reads, torn, regressed;
    } reader[STORES][STORE_READERS];
};

void stores_make(struct stores *s);
bool stores_have(const struct stores *s, uint64_t version);
/* Empty, or what a reader saw that may not be. */
const char *stores_complaint(const struct stores *s);

/* The processes. None returns. */
_Noreturn void stores_publish(struct world *w, struct stores *s, uint64_t generation, const char *lanes);
_Noreturn void stores_receive(struct world *w, struct stores *s, const char *lanes);
_Noreturn void stores_read(struct world *w, struct stores *s, uint32_t store, uint32_t reader);

#endif
