/* The door of a trainer rank for rollout workers on the same node: where a worker hands its ring over. Messages: docs/spec/trajectory-ring.md, "Handing a ring over".
 *
 *     worker: call → answer → keep the link open as long as the ring is in use          trainer: next → welcome or refuse → keep the link
 *
 * A link is a connected Unix socket, and its end is the other side's end. Only processes of the same user get through, and only with the run's token. Nothing here waits.
 * THREADS: each door, each link: one. LIMITS: 16 callers that have not said hello yet, 5 s each; more wait in the kernel's queue.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_LOCAL_H
#define CORRAL_TRANSPORT_TRAJECTORY_LOCAL_H

#include "base/error.h"
#include "transport/bus/bus.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_LOCAL_PATH_MAX 108 /* of a Unix socket */
#define CORRAL_LOCAL_REASON_MAX 160

struct corral_local_hello {
    uint64_t run;
    uint32_t worker, epoch;
    uint64_t first; /* sequence of the ring's record number 0 */
};
struct corral_local_caller {
    struct corral_local_hello hello; /* run and token checked, nothing else */
    int link;
    int fd[3]; /* of the ring, as they came: corral_ring_attach() checks them */
};

/* Where the door of an ipc:// endpoint is. CORRAL_UNSUPPORTED: not ipc, or too long for a socket: use ZeroMQ. */
enum corral_status corral_local_path(const char *endpoint, char out[CORRAL_LOCAL_PATH_MAX],
                                     struct corral_error *err);

/* ---- trainer ---- */
struct corral_local_door;
/* Whoever was at this path before must be gone. */
enum corral_status corral_local_door_open(struct corral_local_door **out, const char *path, uint64_t run,
                                          const char *token, struct corral_error *err);
/* Callers that have been handed out keep their links. */
void corral_local_door_close(struct corral_local_door *d);
int corral_local_door_fd(
    const struct corral_local_door
        *d); /* readable: call next; and once a second or so whatever it is, for those who say nothing */
/* A worker that has said hello; the caller owns the link and the descriptors. CORRAL_AGAIN: none. Strangers are turned away in here and counted. */
enum corral_status corral_local_door_next(struct corral_local_door *d, uint64_t now_ns,
                                          struct corral_local_caller *out, struct corral_error *err);
uint64_t corral_local_door_strangers(const struct corral_local_door *d);
/* acked, received: sequences of the worker's epoch, as in the stream's welcome. CORRAL_PEER: it has gone. */
enum corral_status corral_local_welcome(int link, uint64_t acked, uint64_t received,
                                        struct corral_error *err);
/* Says why, and closes the link. */
void corral_local_refuse(int link, const char *reason);

/* ---- worker ---- */
/* CORRAL_NOT_FOUND: nobody is there: use ZeroMQ. CORRAL_AGAIN: too many callers. */
enum corral_status corral_local_call(int *link, const char *path, const struct corral_local_hello *hello,
                                     const char *token, const int fd[3], struct corral_error *err);
/* CORRAL_AGAIN: no answer yet. CORRAL_INVALID: refused, with the reason. CORRAL_PEER: it has gone. */
enum corral_status corral_local_answer(int link, uint64_t *acked, uint64_t *received,
                                       struct corral_error *err);

/* ---- both ---- */
bool corral_local_gone(int link); /* the other side has closed, or died */

#endif
