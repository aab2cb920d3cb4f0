/* <corral/trainer.h>: trajectories for trainers that are not Corral's own. A trainer rank opens a reader, rollout workers (<corral/rollout.h>, or Corral's own) stream records to it, and it takes batches. Link with libcorral. Plain C11,
 * usable from C++, loadable with dlopen or ctypes: opaque objects, structs that begin with their size.
 *
 *     struct corral_trainer_options o = {.size = sizeof o, .bind = "ipc:///run/me/traj-0", .run = run, .token = token, .workers = 2,
 *                                        .mode = CORRAL_TRAINER_GROUPS, .batch = 32, .group_size = 8};
 *     corral_trainer_open(&t, &o, &err);                           tell corral_trainer_endpoint(t) to the writers
 *     for (;;) {
 *         corral_trainer_next(t, 1000, &batch, &err);              CORRAL_AGAIN: err.text says for whom it waits
 *         for (i = 0; i < batch->count; i++) {
 *             corral_trainer_view(batch, i, &view, &err);          ... read view.record and its tensors, in place ...
 *         }
 *         ... gradient step ...
 *         corral_trainer_cursors(t, batch, bytes, &size, &err);    into the checkpoint, with the weights, before:
 *         corral_trainer_done(t, batch, version);                  acknowledges the batch's records; version: that of the weights now
 *     }
 *
 * EXACTLY ONCE. A record is kept by its worker until done(). The cursors of corral_trainer_cursors(t, batch) say what the steps up to that batch have used; a reader opened with them (options.cursors) hands out everything else once, and nothing of
 * that again, wherever the one before was killed. So save weights and cursors together, then call done(). A trainer that saves only every n-th step calls done() for the n batches after saving; they must fit the buffer together. What is
 * done and not saved is not trained on again after a restart, it is lost to the restored weights.
 *
 * MODES
 *   STREAM     `batch` records in the order they come. With `replay`, records go into a replay buffer and batches are sampled from it.
 *   FRAGMENTS  `batch` records of every one of `workers` workers, in their order: the same records give the same batches, whoever was faster.
 *   GROUPS     `batch` groups of `group_size` completions of one prompt, sorted by index. With `group_ordered`, ids are consecutive and groups come out by id: the same completions give the same batches.
 * With `pack_tokens`, a batch's records are also packed into bins of so many tokens (record.bin).
 *
 * EMPTY BATCHES. A batch may have count 0: nothing to train on, but records that were dropped (or went into the replay buffer) wait to be acknowledged. Treat it as any other: save if you save, then done().
 *
 * STALENESS is counted in weight versions from a record's oldest token (version_min). With `staleness_bounded`, a record that is more than max_staleness older than the version of the last done() is dropped and counted; length_ratio in the
 * statistics says what that does to lengths.
 *
 * OWNERSHIP. Options are copied. Records of a batch stay where they are until done(). THREADS: one at a time per reader. No function prints, exits or installs a signal handler. LIMITS: 1,024 workers; the buffer bounds what is
 * held, and workers wait when it is full.
 */
#ifndef CORRAL_TRAINER_H
#define CORRAL_TRAINER_H

#include <corral/status.h>
#include <corral/trajectory.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct corral_trainer;

enum corral_trainer_mode {
    CORRAL_TRAINER_STREAM = 0,
    CORRAL_TRAINER_FRAGMENTS = 1,
    CORRAL_TRAINER_GROUPS = 2
};
enum corral_trainer_replay {
    CORRAL_TRAINER_NO_REPLAY = 0,
    CORRAL_TRAINER_FIFO = 1,
    CORRAL_TRAINER_UNIFORM = 2,
    CORRAL_TRAINER_PRIORITISED = 3
};

/* Every member but size, bind, token and batch may be 0. */
struct corral_trainer_options {
    size_t size; /* sizeof(struct corral_trainer_options) */
    const char *
        bind; /* "ipc://PATH", or "tcp://ADDRESS:*" for a port of the system's choice; one trainer per address */
    uint64_t run;
    const char *token;          /* that writers must show */
    const char *secret_key;     /* Z85 CURVE secret key, which tcp:// needs; NULL with ipc:// */
    uint32_t workers;           /* writers, with indices below this; 0: unknown (not with FRAGMENTS) */
    uint32_t mode;              /* enum corral_trainer_mode */
    uint64_t buffer_bytes;      /* records held; 0: 256 MiB */
    uint64_t record_bytes_max;  /* the largest that a writer may send; 0: as the buffer allows */
    uint32_t batch;             /* STREAM: records; FRAGMENTS: records of each worker; GROUPS: groups */
    uint32_t shuffle;           /* 1: the order within a batch follows from `seed` and the batch's number */
    uint64_t seed;              /* of shuffling and sampling */
    uint64_t version;           /* of the weights at the start */
    uint32_t staleness_bounded; /* 1: drop what is older than max_staleness versions */
    uint32_t max_staleness;
    uint64_t pack_tokens; /* tokens of a bin; 0: no packing */

    uint32_t group_size;        /* completions of a prompt */
    uint32_t group_min;         /* a group that is late is used when it has this many; 0: group_size */
    uint32_t group_deadline_ms; /* from its first completion; 0: 10 minutes */
    uint32_t groups_max;        /* open at the same time; 0: 4 * batch */
    uint32_t group_ordered;     /* 1: ids are 0, 1, 2, …; see GROUPS */
    uint32_t
        group_replacements; /* how often a failed completion is asked for again (corral_trainer_replacement) */
    uint32_t drop_flat;     /* 1: groups in which all scores are equal are dropped */
    double flat_within;     /* scores this far apart count as equal */
    const char *score;      /* the score by its name; NULL: "reward" */

    uint32_t replay;                  /* enum corral_trainer_replay; STREAM only */
    uint32_t replay_items;            /* kept at most */
    uint64_t replay_bytes;            /* the same; 0: as buffer_bytes */
    uint32_t replay_times;            /* sampled this often, a record goes; 0: no limit */
    uint32_t replay_min;              /* records before the first batch; 0: batch */
    double replay_alpha, replay_beta; /* prioritised: exponents of priorities and importance weights */
    double samples_per_insert;        /* 0: no limit; else one side waits to keep this ratio … */
    double samples_error; /* … within so many samples; 0: the least there is, max(1, ratio) * batch */

    const void *cursors; /* as corral_trainer_cursors() gave them; NULL: from the beginning */
    uint64_t cursor_bytes;
};

struct corral_trainer_record {
    const void *data; /* the encoded record; corral_trainer_view() decodes it */
    uint64_t bytes;
    uint32_t worker, epoch;
    uint64_t sequence;
    uint64_t tokens, version_min;
    uint64_t group;
    uint32_t group_index, group_size;
    double score;
    uint32_t bin;       /* with pack_tokens */
    uint32_t times;     /* replay: it has been sampled, this time included; else 1 */
    double probability; /* replay: of being sampled; else 1 */
    double weight;      /* replay: importance weight; else 1 */
};

struct corral_trainer_group {
    uint64_t id;
    uint32_t first, count; /* records[first … first + count - 1], by group_index */
    uint32_t flat;         /* 1: all scores are equal */
    uint32_t reserved_;
    double mean, deviation; /* of the scores; n - 1 */
};

struct corral_trainer_batch {
    size_t size;     /* as the library knows it; members are only ever added at the end */
    uint64_t number; /* from 1, also over restarts from cursors */
    uint32_t count, group_count, bins;
    uint32_t
        settled; /* records beside these that done() acknowledges: dropped ones, or those that went into the replay buffer */
    const struct corral_trainer_record *records;
    const struct corral_trainer_group *groups; /* GROUPS */
    double padding;                            /* share of the bins' tokens that nothing fills */
    double staleness_mean;                     /* in versions, over records */
    uint64_t staleness_max, tokens;
};

struct corral_trainer_stats {
    size_t size; /* set it to sizeof(struct corral_trainer_stats) */
    uint64_t received, handed_out, acknowledged;
    uint64_t duplicates; /* sent again by their workers, or used already by the state that was restored */
    uint64_t lost;       /* acknowledged by an earlier reader whose saved cursors do not cover them */
    uint64_t malformed;  /* records that cannot be decoded or do not belong here; dropped */
    /* dropped by decision, by reason */
    uint64_t stale, late, surplus, failed, group_short, flat;
    uint64_t groups, groups_flat, groups_shortened, groups_dropped;
    uint64_t replay_items, replay_bytes;
    uint64_t held, held_bytes, batches_out;
    double mean_kept, mean_dropped,
        length_ratio; /* tokens of records kept and dropped, and mean kept / mean of all: 1 when dropping prefers no length */
    uint64_t trainer_waited_ns;  /* in corral_trainer_next, for records */
    uint64_t rollouts_waited_ns; /* while the limiter or the full buffer let nothing in */
    char waiting[192];           /* who waits for whom now, and why; "" when nobody does */
    char last_error[256];        /* of the last malformed record */
};

/* CORRAL_STATE: another trainer receives at that ipc:// address. */
CORRAL_API enum corral_status corral_trainer_open(struct corral_trainer **out,
                                                  const struct corral_trainer_options *options,
                                                  struct corral_error *err);
/* Acknowledges nothing: what is not done comes again. Waits up to 100 ms after the last done(), so that workers read of it. The last acknowledgements may still not reach one that is busy; these send again to whoever opens with the saved cursors. NULL is fine. */
CORRAL_API void corral_trainer_close(struct corral_trainer *t);
/* What writers connect to. */
CORRAL_API const char *corral_trainer_endpoint(const struct corral_trainer *t);

/* The next batch. CORRAL_AGAIN: none within timeout_ms; the text says what is missing. Several may be out at a time. CORRAL_NOMEM: nothing was lost; call again when there is memory. */
CORRAL_API enum corral_status corral_trainer_next(struct corral_trainer *t, uint32_t timeout_ms,
                                                  const struct corral_trainer_batch **out,
                                                  struct corral_error *err);
/* Record i of a batch, decoded in place. */
CORRAL_API enum corral_status corral_trainer_view(const struct corral_trainer_batch *batch, uint32_t i,
                                                  struct corral_traj_view *view, struct corral_error *err);
/* The step that used the batch is final. Its records are acknowledged and their memory is free once the batches before it are done too. `version`: of the newest weights now; never smaller than before. A batch that is
 * done already, or none of this reader's, changes nothing. */
CORRAL_API void corral_trainer_done(struct corral_trainer *t, const struct corral_trainer_batch *batch,
                                    uint64_t version);
/* Before done(): new priorities of the batch's records (prioritised replay). CORRAL_INVALID: one is negative or not finite. */
CORRAL_API enum corral_status corral_trainer_priorities(struct corral_trainer *t,
                                                        const struct corral_trainer_batch *batch,
                                                        const double *priority, struct corral_error *err);
/* GROUPS: a completion that failed and is to be made again. Returns 0 when there is none. */
CORRAL_API int corral_trainer_replacement(struct corral_trainer *t, uint64_t *group, uint32_t *index);

/* Where the streams stand once `batch` and all batches before it are done; NULL: as of what is done. *bytes: room in `out`, then what was written, or what it takes when `out` is NULL or too small (CORRAL_INVALID). CORRAL_INVALID too when the batch is done already. */
CORRAL_API enum corral_status corral_trainer_cursors(const struct corral_trainer *t,
                                                     const struct corral_trainer_batch *batch, void *out,
                                                     uint64_t *bytes, struct corral_error *err);
CORRAL_API enum corral_status corral_trainer_stats(const struct corral_trainer *t,
                                                   struct corral_trainer_stats *out,
                                                   struct corral_error *err);

/* ---- packing on its own, for trainers that spread a batch over their ranks ---- */

struct corral_trainer_packing {
    size_t size;     /* sizeof(struct corral_trainer_packing) */
    uint64_t budget; /* tokens of a bin */
    uint32_t ranks;
    uint32_t
        equal_bins; /* 1: as many bins on each rank, and round k has bins of like cost (collectives inside a pass) */
    double cost_linear,
        cost_quadratic; /* cost of a sequence of n tokens: linear * n + quadratic * n * n; both 0: n */
    /* out */
    uint32_t bins, rounds;
    double padding;   /* share of the bins' tokens that nothing fills */
    double imbalance; /* the slowest rank's cost over the mean, less 1 */
};
/* Sequence i goes to bin round[i] of rank[i]. CORRAL_INVALID: one of 0 tokens or above the budget is named. */
CORRAL_API enum corral_status corral_trainer_pack(struct corral_trainer_packing *p, const uint64_t *tokens,
                                                  uint32_t count, uint32_t *rank, uint32_t *round,
                                                  struct corral_error *err);

#ifdef __cplusplus
}
#endif
#endif
