/* <corral/rollout.h>: environments from any program, in the manner of OpenRL's make / reset / step; and, at the end, trajectories to trainers. Link with libcorral.so. Plain C11, usable from C++.
 *
 *     struct corral_error err;
 *     struct corral_envs *envs;
 *     if (corral_make(&envs, "CartPole-v1", 64, NULL, &err) != CORRAL_OK) { puts(err.text); return 1; }
 *     const struct corral_envs_buffers *b = corral_envs_buffers(envs);
 *     corral_envs_reset(envs, &err);
 *     for (int t = 0; t < 1000; t++) {
 *         int32_t *action = b->action;
 *         for (uint32_t row = 0; row < b->rows; row++) { action[row] = decide(b->obs + row * b->obs_dim); }
 *         if (corral_envs_step(envs, &err) != CORRAL_OK) { puts(err.text); break; }
 *     }
 *     corral_envs_close(envs);
 *
 * ROWS. An environment with several agents has several rows: row = env * agents + agent. Every array below has one entry per row, but for status and episode_steps, which
 * have one per environment. The arrays are the library's, are written in place and do not move until corral_envs_close().
 *
 * EPISODES start again by themselves, whatever the plug-in declares: when one ends, `obs` already holds the first observation of the next and `final_obs` the last of the old
 * one. `terminated` (the task is over: the value of what follows is 0) and `truncated` (cut off: the value of final_obs) are separate, both may be set, and each row is
 * flagged once per episode. An episode ends when all rows of its environment have been flagged; until then, rows that are done rest with active = 0.
 *
 * VOID EPISODES. status[env] != 0 after a step: something outside the task failed (CORRAL_INFRA: a crash, a hang, a NaN, an environment that reports it; CORRAL_INVALID: bad
 * task data). Throw away what was recorded of that environment's running episode. Its rows have reward 0 and no flag, and show a new episode that has begun; with active = 0 it
 * could not begin yet and is tried again in later steps.
 *
 * SEEDS. Equal id, arguments, env_num, seed and worker give equal runs for equal actions, bit for bit, in both kinds of isolation.
 *
 * THREADS. One thread at a time per struct corral_envs; different ones are independent. No function prints, exits or installs signal handlers.
 */
#ifndef CORRAL_ROLLOUT_H
#define CORRAL_ROLLOUT_H

#include <corral/status.h>
#include <corral/trajectory.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct corral_envs;

enum corral_envs_isolation {
    CORRAL_ENVS_IN_PROCESS = 0, /* fastest; a plug-in that crashes takes the program along */
    CORRAL_ENVS_CHILD =
        1 /* the plug-in runs in a child process; a crash or hang voids episodes and is counted */
};

/* Every member but `size` may be 0. */
struct corral_make_options {
    size_t size; /* sizeof(struct corral_make_options) */
    const char
        *library; /* path of a plug-in .so; NULL: search CORRAL_ENV_PATH and the built-in ones for the id */
    const char *args_json; /* the environment's own arguments, a JSON object; NULL: "{}" */
    uint64_t seed;
    uint32_t worker;          /* tells apart programs that share a seed */
    uint32_t isolation;       /* enum corral_envs_isolation */
    uint32_t step_timeout_ms; /* CORRAL_ENVS_CHILD: a step or reset that takes longer is a hang; 0: 10 s */
    uint32_t restarts_max;    /* CORRAL_ENVS_CHILD: children started again, in a row, before step() fails */
};

enum corral_envs_action {
    CORRAL_ENVS_DISCRETE = 1,
    CORRAL_ENVS_MULTI_DISCRETE = 2,
    CORRAL_ENVS_CONTINUOUS = 3
};
#define CORRAL_ENVS_COMPONENTS_MAX 16

struct corral_envs_buffers {
    size_t size; /* as the library knows it; members are only ever added at the end */
    uint32_t envs, agents, rows, obs_dim;
    /* What a row decides: action_components numbers, int32 in [0, choices[i]) or (continuous) float32, clipped to [low[i], high[i]] for the environment only. */
    uint32_t action_kind; /* enum corral_envs_action */
    uint32_t action_components;
    uint32_t choices[CORRAL_ENVS_COMPONENTS_MAX];
    float low[CORRAL_ENVS_COMPONENTS_MAX], high[CORRAL_ENVS_COMPONENTS_MAX];
    uint32_t mask_bytes;           /* per row: the sum of choices, or 0 */
    uint32_t max_episode_steps;    /* 0: no limit */
    double reward_threshold;       /* mean return that counts as solved; NaN: none */
    const float *obs;              /* [rows][obs_dim] what to decide on now */
    void *action;                  /* [rows][action_components] you write this before corral_envs_step() */
    const float *reward;           /* [rows] of the last step */
    const uint8_t *terminated;     /* [rows] */
    const uint8_t *truncated;      /* [rows] */
    const uint8_t *active;         /* [rows] 1: this row decides in the next step */
    const uint8_t *mask;           /* [rows][mask_bytes] 1: legal now; NULL without masks */
    const float *final_obs;        /* [rows][obs_dim] valid where a flag is set */
    const int32_t *status;         /* [envs] 0, or an enum corral_status: the episode is void */
    const uint32_t *episode_steps; /* [envs] length of the running episode, or of the one that just ended */
};

struct corral_envs_stats {
    size_t size; /* set it to sizeof(struct corral_envs_stats) */
    uint64_t steps, episodes;
    uint64_t voided;      /* episodes thrown away */
    uint64_t nonfinite;   /* of these, for a NaN or an infinity */
    uint64_t restarts;    /* children started again */
    char last_fault[256]; /* why the latest episode was voided */
};

/* Make env_num environments. options NULL: all defaults. Fails with CORRAL_NOT_FOUND when nobody offers `id` (the text names the nearest id and where it looked),
 * CORRAL_INVALID for arguments the environment refuses, CORRAL_INFRA when it cannot start. `id` may be NULL with a library that offers exactly one environment. */
CORRAL_API enum corral_status corral_make(struct corral_envs **out, const char *id, uint32_t env_num,
                                          const struct corral_make_options *options,
                                          struct corral_error *err);
/* Start a new episode everywhere. Call it once before the first step. */
CORRAL_API enum corral_status corral_envs_reset(struct corral_envs *envs, struct corral_error *err);
/* Take the actions, advance every environment by one step. CORRAL_INVALID: an action is out of range, masked or not finite; nothing was stepped, correct it and go on.
 * Other failures: the environments cannot go on. No allocation, no system call in process. */
CORRAL_API enum corral_status corral_envs_step(struct corral_envs *envs, struct corral_error *err);
/* The arrays. Valid until corral_envs_close(). */
CORRAL_API const struct corral_envs_buffers *corral_envs_buffers(const struct corral_envs *envs);
/* "CartPole-v1". */
CORRAL_API const char *corral_envs_id(const struct corral_envs *envs);
CORRAL_API enum corral_status corral_envs_stats(const struct corral_envs *envs, struct corral_envs_stats *out,
                                                struct corral_error *err);
/* The complete state of all environments. *bytes: in, the room in `buffer`; out, the bytes used or needed. buffer NULL only asks. CORRAL_UNSUPPORTED when the environment cannot. */
CORRAL_API enum corral_status corral_envs_snapshot(struct corral_envs *envs, void *buffer, uint64_t *bytes,
                                                   struct corral_error *err);
/* Go on from a snapshot taken with the same id, arguments and env_num, in this program or another. */
CORRAL_API enum corral_status corral_envs_restore(struct corral_envs *envs, const void *buffer,
                                                  uint64_t bytes, struct corral_error *err);
/* NULL is fine. Ends the child process, if there is one. */
CORRAL_API void corral_envs_close(struct corral_envs *envs);

/* ---- writing trajectories ----
 *
 * What was played goes to trainers as records (<corral/trajectory.h>), exactly once into training: the writer keeps each record until the trainer has acknowledged it, sends it again when the trainer comes back,
 * and the trainer knows what it has had by (worker, epoch, sequence). What is kept and what is on its way is bounded by window_bytes here and by the trainer's buffer there.
 *
 *     corral_traj_writer_open(&w, &options, &err);
 *     corral_traj_writer_write(w, CORRAL_TRAJ_ANY_RANK, &record, 10000, NULL, &err);       // copies the tensors, or, without a copy:
 *     corral_traj_writer_begin(w, CORRAL_TRAJ_ANY_RANK, &record, 10000, &err);             // tensors with data == NULL
 *     float *reward = corral_traj_writer_place(w, 2);                                      // are written in place
 *     corral_traj_writer_commit(w, &sequence, &err);
 *     corral_traj_writer_wait(w, 60000, &err);                                             // until all is acknowledged
 *     corral_traj_writer_close(w);
 *
 * THREADS. One thread at a time per writer, and no call from a child process after fork(). The library answers trainers inside these calls: a program that has nothing to write calls corral_traj_writer_poll() once a second or oftener.
 */
struct corral_traj_writer;

#define CORRAL_TRAJ_ANY_RANK UINT32_MAX

struct corral_traj_writer_options {
    size_t size;  /* sizeof(struct corral_traj_writer_options) */
    uint64_t run; /* the run's number and token, as the trainers have them */
    const char *token;
    uint32_t worker; /* this writer's index among all writers of the run, from 0, below 1,024 */
    uint32_t
        epoch; /* which life of that writer: larger than any before. 0: the seconds since 2020, which is right unless it is started twice in a second or the clock goes back */
    const char *const
        *endpoints; /* where trainer rank i receives: "ipc:///path" or "tcp://host:port"; at most 64 */
    uint32_t endpoint_count;
    uint32_t io_threads;    /* 0: 1 */
    const char *server_key; /* CURVE public key (Z85) of the trainers, for tcp; NULL: ipc only */
    uint64_t window_bytes;  /* most bytes kept unacknowledged; 0: 64 MiB */
};

struct corral_traj_writer_stats {
    size_t size; /* set it to sizeof(struct corral_traj_writer_stats) */
    uint64_t written, acked, resent;
    uint64_t unacked_bytes;
    uint64_t blocked,
        blocked_ns; /* how often and how long begin() and write() found no room, at the trainer or in the window */
};

/* Does not wait for the trainers: they may start later. Everything in the options is copied. */
CORRAL_API enum corral_status corral_traj_writer_open(struct corral_traj_writer **out,
                                                      const struct corral_traj_writer_options *options,
                                                      struct corral_error *err);
/* Room for `record`, with its header and the tensors that have data written there. Its identity is the writer's business. rank: the trainer rank that gets it; with CORRAL_TRAJ_ANY_RANK, all members of
 * a group go to one, the same from every writer of the run (docs/spec/trajectory-stream.md), and other records to each in turn. Waits at most timeout_ms for room: CORRAL_TIMEOUT (CORRAL_AGAIN with 0), and the text says who has none. Of two begins before a commit, the later counts; when it fails, nothing is begun.
 * CORRAL_INVALID: the record is malformed or larger than the window or the trainer's buffer, or the trainer refuses this writer (the text says why). */
CORRAL_API enum corral_status corral_traj_writer_begin(struct corral_traj_writer *w, uint32_t rank,
                                                       const struct corral_traj_record *record,
                                                       uint32_t timeout_ms, struct corral_error *err);
/* Where tensor i of the record that was begun lies, aligned to 64 bytes; NULL when there is none. */
CORRAL_API void *corral_traj_writer_place(struct corral_traj_writer *w, uint32_t i);
/* It is complete: send it. *sequence (may be NULL): its number among this writer's records to that rank, from 1. CORRAL_STATE: nothing was begun. */
CORRAL_API enum corral_status corral_traj_writer_commit(struct corral_traj_writer *w, uint64_t *sequence,
                                                        struct corral_error *err);
/* begin and commit; every tensor has data. */
CORRAL_API enum corral_status corral_traj_writer_write(struct corral_traj_writer *w, uint32_t rank,
                                                       const struct corral_traj_record *record,
                                                       uint32_t timeout_ms, uint64_t *sequence,
                                                       struct corral_error *err);
/* Take in what the trainers say and send what is due, small records that were gathered included; waits at most timeout_ms for something to come. CORRAL_OK also when nothing came.
 * CORRAL_INVALID: a trainer refuses this writer; told once. */
CORRAL_API enum corral_status corral_traj_writer_poll(struct corral_traj_writer *w, uint32_t timeout_ms,
                                                      struct corral_error *err);
/* Until everything that was committed is acknowledged: trained on, or durable in the trainer's log. CORRAL_TIMEOUT otherwise. */
CORRAL_API enum corral_status corral_traj_writer_wait(struct corral_traj_writer *w, uint32_t timeout_ms,
                                                      struct corral_error *err);
/* Trainer rank `rank` is at another address now. What it has not acknowledged is sent there. (One that comes back at the same address is found without this.) */
CORRAL_API enum corral_status corral_traj_writer_connect(struct corral_traj_writer *w, uint32_t rank,
                                                         const char *endpoint, struct corral_error *err);
CORRAL_API enum corral_status corral_traj_writer_stats(const struct corral_traj_writer *w,
                                                       struct corral_traj_writer_stats *out,
                                                       struct corral_error *err);
/* Drops what is not acknowledged: corral_traj_writer_wait() first. NULL is fine. */
CORRAL_API void corral_traj_writer_close(struct corral_traj_writer *w);

#ifdef __cplusplus
}
#endif
#endif
