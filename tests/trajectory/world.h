/* A small trajectory plane in processes of their own, for the fault soak: what they share, what a record is, and what each process does.
 *
 * The driver is the parent of all and the only one that forks. A coordinator orders what has died to be started again and tells producers where consumers are. Producers stream records to every consumer. A consumer
 * has a log, a ledger of what it consumed and checkpoints that say up to where both count.
 */
#ifndef CORRAL_TESTS_TRAJECTORY_WORLD_H
#define CORRAL_TESTS_TRAJECTORY_WORLD_H

#include "tests/weights/proxy.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PRODUCERS_MAX 4u
#define CONSUMERS_MAX 4u
#define ROLES_MAX (PRODUCERS_MAX + CONSUMERS_MAX)
#define EPOCHS_MAX 65536u
#define TOKEN "soak-token"
#define RUN UINT64_C(0x50a4)
#define PAYLOAD_MAX (128u << 10)
#define RECORD_MAX (PAYLOAD_MAX + 4096u) /* with its header and what it counts for */
#define PATH_BYTES 128

/* Exit statuses. Any other end that is not a kill of the driver's is an error. */
#define EXIT_COMPLAINT 2
#define EXIT_DISK 4 /* a consumer that can't write */

enum carrier { CARRIER_IPC, CARRIER_TCP, CARRIER_RING };
enum finish { RUN_ON, PRODUCERS_END, CONSUMERS_END };

/* A place in which processes follow each other: producers first, then consumers. Written by the driver, but for what says otherwise. */
struct world_role {
    _Atomic uint64_t started, alive; /* lives so far; 1 while the last of them lives */
    _Atomic uint64_t ordered;        /* the coordinator: lives wanted */
    _Atomic uint64_t done;           /* 1: ended as it should */
    _Atomic uint64_t cut;            /* connections are to be cut so often */
    _Atomic uint64_t cuts;           /* sockets cut; the process */
};

struct world_consumer {
    _Atomic uint32_t bound, published; /* tcp port; 1 for what has a path. The consumer; the coordinator */
    _Atomic uint64_t lose_newest;      /* the driver: the next life does not find the newest checkpoint */
    _Atomic uint64_t hold_until_ns;    /* the driver: no checkpoint before */
    _Atomic uint64_t disk_faults;      /* the driver: so often it may end with EXIT_DISK */
    /* the consumer */
    _Atomic uint64_t saved; /* records consumed, as of the last checkpoint */
    _Atomic uint64_t saves, rollbacks, disk_ends;
    _Atomic uint64_t received, replayed, duplicates, unlogged, gaps, denied;
    _Atomic uint64_t rings; /* taken over */
};

/* One stream: epoch of a producer to one consumer. The producer's; what it stores here survives it. */
struct world_stream {
    _Atomic uint64_t sent;  /* may have been sent up to here: stored before */
    _Atomic uint64_t acked; /* it was told that up to here all is acknowledged */
};

struct world_producer {
    _Atomic uint32_t epoch; /* of the last life */
    _Atomic uint64_t resent, acked;
    struct world_stream stream[EPOCHS_MAX][CONSUMERS_MAX];
};

struct world {
    uint64_t seed;
    uint32_t producers, consumers;
    enum carrier carrier;
    bool soak; /* full rate: small records, large buffers, rare checkpoints */
    char folder[64];
    char public_key[41], secret_key[41];
    struct proxy_shared proxy;
    struct world_role role[ROLES_MAX];
    struct world_producer producer[PRODUCERS_MAX];
    struct world_consumer consumer[CONSUMERS_MAX];
    _Atomic uint32_t finish;
    _Atomic uint32_t complaints; /* the first writes the text, and then `complained` (release) */
    _Atomic uint32_t complained;
    char complaint[512];
};

uint64_t world_now_ns(void);
void world_nap_us(uint64_t us);
/* The soak has failed: the first complaint of all processes is kept. */
void world_complain(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Complains and ends this process. */
_Noreturn void world_die(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Warnings of this process go to a file in the soak's folder, which is kept when it fails. */
void world_log(const struct world *w, const char *program);
/* Shuts this process's connections down when the driver wants it; `seen` is the caller's. */
void world_cut(struct world_role *role, uint64_t *seen);

/* ---- records ---- */
/* The payload follows from the identity alone. */
uint32_t record_bytes(const struct world *w, uint32_t worker, uint32_t epoch, uint32_t rank,
                      uint64_t sequence);
void record_fill(const struct world *w, uint32_t worker, uint32_t epoch, uint32_t rank, uint64_t sequence,
                 void *out, uint32_t bytes);

/* ---- the ledger: what consumers append and the driver reads ---- */
struct ledger_entry { /* consecutive records of a stream, consumed one after the other */
    uint32_t worker, epoch;
    uint64_t first;
    uint32_t count, reserved;
    uint64_t digest; /* sum of the payloads' XXH3 */
};
void world_path(const struct world *w, uint32_t rank, const char *name, char out[PATH_BYTES]);
/* Rank's records are consumed in the order they were handed out; of others, in any order. */
static inline bool world_in_order(const struct world *w, uint32_t rank)
{
    return w->soak || rank % 2 == 0;
}
/* Bytes of the ledger that count. False: there is no checkpoint. */
bool checkpoint_ledger_bytes(const struct world *w, uint32_t rank, uint64_t *bytes);

/* ---- processes ---- */
_Noreturn void producer_run(struct world *w, uint32_t worker);
_Noreturn void consumer_run(struct world *w, uint32_t rank);
_Noreturn void coordinator_run(struct world *w);

/* ---- verify.c ---- */
struct verdict {
    uint64_t streams, acked, consumed, unacked; /* unacked: consumed although nobody was told */
    uint64_t log_bytes;
};
/* Every acknowledged record was consumed once, none twice, in order, with the right payload; files are what they should be. */
bool verify_ledgers(struct world *w, struct verdict *out);

#endif
