/* The parent's side of one child process: its life, its death, and calls to it. Used by vec_process.c only. */
#ifndef CORRAL_ROLLOUT_PROCESS_CHILD_H
#define CORRAL_ROLLOUT_PROCESS_CHILD_H

#include "rollout/env_host/process_protocol.h"
#include <sys/types.h>

#define CORRAL_PROCESS_CHARGES_MAX 4096

struct corral_process_charge {
    uint64_t bytes;
    void *memory;
};

struct corral_process {
    struct corral_env_backend base;
    const struct corral_allocator *memory;
    bool charges_real; /* there is a quota behind the allocator */
    struct corral_process_control *control;
    void *block;
    void *block_charge; /* accounts for the shared buffers; never touched */
    int shared, snapshot;
    int parent_fd; /* pidfd of this process, for the child to watch */
    int pidfd;
    pid_t pid; /* 0: no child */
    char program[CORRAL_ENV_PATH_BYTES];
    char library[CORRAL_ENV_PATH_BYTES];
    uint32_t step_timeout_ms, restarts_max, restarts_in_a_row;
    uint64_t good_steps;
    uint32_t sequence;
    struct corral_process_charge charges[CORRAL_PROCESS_CHARGES_MAX];
};

enum corral_status corral_process_spawn(struct corral_process *p, struct corral_error *err);
/* Kill and reap, at once. No child is fine. */
void corral_process_kill(struct corral_process *p);
/* Let the plug-in destroy its batch, then kill what is left. */
void corral_process_quit(struct corral_process *p);
/* Have the child do `op` within step_timeout_ms + extra_ms. CORRAL_INFRA: it died or hung, and is gone. */
enum corral_status corral_process_command(struct corral_process *p, enum corral_process_op op,
                                          uint32_t extra_ms, const char *doing, struct corral_error *err);

#endif
