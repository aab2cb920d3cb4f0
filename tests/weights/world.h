/* A small trainer and its engines in processes of their own, for the fault soak: what they share, the model, and what each process does. */
#ifndef CORRAL_TESTS_WEIGHTS_WORLD_H
#define CORRAL_TESTS_WEIGHTS_WORLD_H

#include "base/error.h"
#include "tests/weights/proxy.h"
#include <corral/weights.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SENDERS 2u
#define REPLICAS 2u
#define TP 2u
#define RECEIVERS (REPLICAS * TP)
#define CARD_MAX 16384u
#define DEADLINE_MS 400u
#define READERS 2u /* threads per receiver */

struct world_card {
    _Atomic uint32_t serial; /* 0: none yet; written last (release) */
    uint64_t bytes;
    uint8_t data[CARD_MAX];
};

/* Of one sender: the driver writes `go`, the sender `done`, when the other fields are written (release, acquire). */
struct world_sender {
    _Atomic uint64_t done;
    enum corral_status status;
    struct corral_weights_result result;
    char text[200];
};

/* Of one receiver's place; it outlives the process. */
struct world_receiver {
    struct world_card card;
    _Atomic uint64_t reads, torn, regressed, wrong; /* wrong: a version that was never published */
    _Atomic uint64_t version;                       /* current in the live process */
    _Atomic uint64_t acquire_ns_max;                /* longest that a reader waited for a version to read */
    _Atomic uint64_t resent, aborted, pulls;
    _Atomic bool hidden; /* its card is not given to the trainer */
};

struct world {
    bool delta;         /* versions go as deltas; set before anybody is started */
    _Atomic bool pulls; /* who starts takes the current version from the same rank of the other engine */
    struct proxy_shared proxy;
    struct world_card trainer_card;
    _Atomic uint64_t go; /* the version to push: a futex would need 32 bits, so senders look every 300 µs */
    struct world_sender sender[SENDERS];
    struct world_receiver receiver[RECEIVERS];
};

/* The versions' content: word `id` of the model in `version`. With deltas one in WORLD_CHANGES changes from version to version. */
#define WORLD_CHANGES 16u
static inline uint64_t world_word(const struct world *w, uint64_t version, uint64_t id)
{
    uint64_t since = w->delta ? (version + WORLD_CHANGES - id % WORLD_CHANGES) % WORLD_CHANGES : 0;
    version -= CORRAL_MIN(version, since);
    uint64_t x = (version << 32 ^ id) * UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 29;
}

struct corral_weights_layout *world_layout(bool trainer);
/* For each word of the rank's range: its number in the model, UINT64_MAX where there is none. */
uint64_t *world_ids(bool trainer, uint32_t rank, uint64_t *words);

/* The processes. None returns. */
_Noreturn void world_send(struct world *w, uint32_t rank, uint64_t generation, const char *lanes,
                          bool proxied);
_Noreturn void world_receive(struct world *w, uint32_t index, const char *lanes);

#endif
