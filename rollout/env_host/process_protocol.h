/* What a vector and its child share: one memory file. The first CONTROL_BYTES hold struct corral_process_control, the rest the buffers. Both sides are the same
 * build; the child is nevertheless not trusted: the parent copies what it reads and checks it.
 *
 * A command: the parent fills the arguments, then raises `command`. The child works, fills the results, sets `done` to the command's number and raises `event`.
 * In between the child may ask for memory: it fills request_*, raises `event` and waits for `answer`.
 */
#ifndef CORRAL_ROLLOUT_PROCESS_PROTOCOL_H
#define CORRAL_ROLLOUT_PROCESS_PROTOCOL_H

#include "rollout/env_host/backend.h"
#include <assert.h>
#include <stdatomic.h>

#define CORRAL_PROCESS_MAGIC 0x43454831u
#define CORRAL_PROCESS_CONTROL_BYTES (128u << 10)
/* Descriptors the child starts with. */
enum { CORRAL_PROCESS_FD_SHARED = 3, CORRAL_PROCESS_FD_SNAPSHOT = 4, CORRAL_PROCESS_FD_PARENT = 5 };

enum corral_process_op {
    CORRAL_PROCESS_LOAD = 1, /* id, library, args → id, path, spec, has_snapshots */
    CORRAL_PROCESS_CREATE,   /* layout: map the buffers and make the batch */
    CORRAL_PROCESS_RESET,
    CORRAL_PROCESS_STEP,
    CORRAL_PROCESS_SNAPSHOT, /* id → bytes; the state is in the snapshot file when it was made */
    CORRAL_PROCESS_RESTORE,  /* id, bytes; the state is in the snapshot file */
    CORRAL_PROCESS_QUIT
};

enum corral_process_request {
    CORRAL_PROCESS_ASK_NOTHING,
    CORRAL_PROCESS_ASK_CHARGE,
    CORRAL_PROCESS_ASK_RELEASE
};

struct corral_process_control {
    uint32_t magic, bytes;
    _Atomic uint32_t command, event, done, answer;
    /* arguments */
    uint32_t op, all, count, env;
    uint64_t room;
    struct corral_env_layout layout;
    char library[CORRAL_ENV_PATH_BYTES];
    /* results; status: enum corral_status of LOAD, enum corral_env_status of the others */
    int32_t status;
    uint32_t has_snapshots;
    uint64_t result_bytes;
    char id[CORRAL_ENV_ID_BYTES];
    struct corral_env_spec spec;
    char text[480];
    /* a request of the child */
    _Atomic uint32_t request;
    uint32_t granted;
    uint64_t request_bytes;
    char args[CORRAL_ENV_ARGS_BYTES_MAX + 1];
};
static_assert(sizeof(struct corral_process_control) <= CORRAL_PROCESS_CONTROL_BYTES,
              "the control part holds it all");

#endif
