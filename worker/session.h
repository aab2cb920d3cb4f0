/* What every worker process has, whatever its role: the control connection, its slot on the node's board, its charge account in the node's
 * ledger, the node's weight store, and the reasons to stop. One thread.
 *
 * The agent starts a worker with everything it needs in a corral_worker_launch: names and numbers as arguments, shared mappings as inherited
 * descriptors. Nothing is looked up by name, so two runs on one machine cannot meet.
 */
#ifndef CORRAL_WORKER_SESSION_H
#define CORRAL_WORKER_SESSION_H

#include "quota/cuda/managed_alloc.h"
#include "quota/host_alloc.h"
#include "transport/board/board.h"
#include "transport/bus/bus.h"
#include "transport/weights/store.h"

struct corral_worker_launch {
    char name[CORRAL_BUS_NAME_MAX];      /* "rollout-3" */
    char node[CORRAL_BUS_NAME_MAX];      /* "a" */
    char device[CORRAL_LEDGER_NAME_MAX]; /* "a:6" */
    char role[CORRAL_LEDGER_NAME_MAX];   /* partition: the ledger's role */
    uint32_t index;                      /* among the job's workers of the same role; a trainer's rank */
    uint32_t count;                      /* how many there are of that role */
    uint32_t epoch;                      /* grows each time this worker is started */
    char endpoint[256];                  /* the coordinator's control endpoint */
    char token[CORRAL_BUS_TOKEN_MAX];
    uint64_t run;
    char server_key[41];        /* Z85 of a tcp:// endpoint, else "" */
    char server_secret_key[41]; /* trainers that bind tcp:// */
    uint8_t secret[32];         /* authenticates weight and collective connections */
    char host[256];             /* address other nodes reach this node at; "" when all are here */
    int ledger_fd, store_fd, board_fd, collective_fd, vault_fd; /* -1: not for this role */
    uint32_t board_slot;
    bool gpu; /* its device is a GPU: memory is managed memory under the interposer */
    uint64_t
        spill; /* trainers on host devices: bytes that may be taken beyond the quota instead of a denial */
};

struct corral_session {
    struct corral_worker_launch launch;
    void *zmq;
    struct corral_bus_client *bus;
    struct corral_board *board;
    struct corral_board_slot *slot;
    struct corral_quota *quota;
    uint32_t holder;
    struct corral_host_alloc *host_alloc;       /* host devices */
    struct corral_managed_alloc *managed_alloc; /* GPUs */
    const struct corral_allocator *memory;      /* everything the worker keeps is charged here */
    struct corral_weight_store *store;
    bool finish;            /* the coordinator asked this worker to end */
    bool finish_checkpoint; /* and to write a last checkpoint first (trainers) */
};

/* Attach to everything and log in. On failure nothing is left open. */
enum corral_status corral_session_open(struct corral_session *s, const struct corral_worker_launch *launch,
                                       uint32_t timeout_ms, struct corral_error *err);
void corral_session_close(struct corral_session *s);

/* Charge this worker with its part of a shared mapping that the agent made for it: bytes of the file / sharers. fd -1: nothing. On a GPU nothing either: it is host memory. Given back when the worker ends. */
enum corral_status corral_session_charge_mapping(struct corral_session *s, int fd, uint32_t sharers,
                                                 const char *what, struct corral_error *err);

/* What this worker is charged with on its device, as far as its allocations go; on a GPU with its contexts. Hot path. */
uint64_t corral_session_memory_used(const struct corral_session *s);

/* Called for every message but "finish", which the session handles. `message` is borrowed. A failure ends the worker. */
typedef enum corral_status (*corral_session_message_fn)(void *ctx, const char *type,
                                                        const struct corral_mpack_node *message,
                                                        struct corral_error *err);
/* Take in what the coordinator said; waits at most timeout_ms for the first message. Also beats. */
enum corral_status corral_session_poll(struct corral_session *s, uint32_t timeout_ms,
                                       corral_session_message_fn fn, void *ctx, struct corral_error *err);
/* Send a finished writer and reset it. */
enum corral_status corral_session_send(struct corral_session *s, struct corral_mpack_writer *message,
                                       struct corral_error *err);
/* Tell the coordinator why this worker gives up; best effort. */
void corral_session_report_failure(struct corral_session *s, const struct corral_error *reason);

#endif
