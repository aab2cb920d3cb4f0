/* Shared by the files of this folder: where cgroups are, the groups of a run, probes, MPS. See README.md. */
#ifndef CORRAL_QUOTA_FENCES_INTERNAL_H
#define CORRAL_QUOTA_FENCES_INTERNAL_H

#include "quota/cuda/canary_limit.h"
#include "quota/fences/fence.h"

#define FENCE_WHY_BYTES 200
#define FENCE_PATH_BYTES 1024
#define FENCE_MIB (UINT64_C(1) << 20)

/* snprintf into a field of fixed size; what does not fit is cut. */
void fence_text(char *out, size_t out_bytes, const char *fmt, ...) CORRAL_PRINTF(3, 4);

/* ---- cgroup_find.c: which hierarchy has which controller, and where this process is in it ---- */
enum cgroup_controller { CGROUP_MEMORY, CGROUP_CPUSET, CGROUP_CPU, CGROUP_DMEM, CGROUP_CONTROLLERS };
struct cgroup_place {
    bool found, v2;
    char mount[FENCE_PATH_BYTES]; /* where the hierarchy is mounted */
    char own[FENCE_PATH_BYTES];   /* this process's group there */
    char why[FENCE_WHY_BYTES];    /* not found: why */
};
struct cgroup_host {
    struct cgroup_place place[CGROUP_CONTROLLERS];
};
const char *
cgroup_controller_name(enum cgroup_controller c); /* the kernel's: "memory", "cpuset", "cpu", "dmem" */
/* From the texts of /proc/self/mountinfo and /proc/self/cgroup, which are data. */
void cgroup_find(const char *mountinfo, const char *membership, struct cgroup_host *out);
void cgroup_find_here(struct cgroup_host *out);

/* ---- cgroup_files.c ---- */
/* Write `text` as one value; 0 or an errno. */
int cgroup_write(const char *dir, const char *file, const char *text);
int cgroup_write_number(const char *dir, const char *file, uint64_t value);
/* The first line, without its end. False: not there. */
bool cgroup_read_line(const char *dir, const char *file, char *out, size_t out_bytes);
bool cgroup_read_number(const char *dir, const char *file, uint64_t *out);
bool cgroup_has_word(const char *list, const char *word);
/* What an error below `where` means, and what to do about it. */
void cgroup_explain(char why[FENCE_WHY_BYTES], int error, bool v2, const char *where);

/* ---- cgroup.c: the groups of one run on one node ---- */
/* Making and removing a group's folder; the stand-in of tests fills it with the files that a kernel would. 0 or an errno. */
struct cgroup_ops {
    int (*make)(const char *path);
    int (*remove)(const char *path);
};
extern const struct cgroup_ops cgroup_kernel_ops;

#define CGROUP_NAME_BYTES 192
struct cgroup_side {
    bool live, v2;
    char base[FENCE_PATH_BYTES]; /* own group + "/" + the tree's name */
    char mount[FENCE_PATH_BYTES];
    char why[FENCE_WHY_BYTES]; /* not live: what is missing and what to do */
};
struct cgroup_tree {
    const struct cgroup_ops *ops;
    char name[CGROUP_NAME_BYTES];
    struct cgroup_side side[CGROUP_CONTROLLERS];
};
/* Make the tree's folder in every hierarchy that lets us. What cannot be had is in side[].why; nothing fails. */
void cgroup_tree_open(struct cgroup_tree *t, const struct cgroup_host *host, const char *name,
                      const struct cgroup_ops *ops);
/* Kill what is in it, remove it. */
void cgroup_tree_close(struct cgroup_tree *t);
/* Version 2: does the group `own` have the controller to give? */
bool cgroup_offered(const char *own, const char *controller);
/* A group below the tree, in every live hierarchy. False: why. */
bool cgroup_group_make(const struct cgroup_tree *t, const char *group, char why[FENCE_WHY_BYTES]);
void cgroup_group_remove(const struct cgroup_tree *t, const char *group);
/* Set and read back. False: why. A controller that is not live: its own reason. `strict`: swap counts too. */
bool cgroup_set_memory(const struct cgroup_tree *t, const char *group, uint64_t bytes, bool strict,
                       char why[FENCE_WHY_BYTES]);
bool cgroup_set_cpus(const struct cgroup_tree *t, const char *group, const cpu_set_t *cpus,
                     char why[FENCE_WHY_BYTES]);
bool cgroup_set_cpu_share(const struct cgroup_tree *t, const char *group, uint64_t quota_us,
                          uint64_t period_us, char why[FENCE_WHY_BYTES]);
bool cgroup_set_dmem(const struct cgroup_tree *t, const char *group, const char *gpu_uuid, uint64_t bytes,
                     char why[FENCE_WHY_BYTES]);
/* A canary process in a group of its own, below the tree: on the GPU, "": the first one. FAILED: a limit was set and read back, and the driver does not keep to it. */
enum corral_fence_state cgroup_try_dmem(const struct cgroup_tree *t, const char *gpu_uuid,
                                        char why[FENCE_WHY_BYTES]);
/* What the group uses; UINT64_MAX: unknown. */
uint64_t cgroup_memory_used(const struct cgroup_tree *t, const char *group);
/* A counter of a keyed file ("oom_kill" of memory.events or memory.oom_control, "nr_throttled" of cpu.stat); 0 when it is not there. */
uint64_t cgroup_count(const struct cgroup_tree *t, enum cgroup_controller c, const char *group,
                      const char *key);
/* Descriptors of the group's cgroup.procs, one per hierarchy; close-on-exec. Returns how many. */
uint32_t cgroup_enter_fds(const struct cgroup_tree *t, const char *group, int fd[4]);
/* Pids in the group; at most `max`; returns how many it wrote. */
uint32_t cgroup_pids(const struct cgroup_tree *t, const char *group, pid_t *out, uint32_t max);
/* CPUs as the kernel lists them: "0-3,8". */
const char *cgroup_format_cpus(const cpu_set_t *cpus, char *out, size_t out_bytes);

/* ---- cgroup_remove.c ---- */
/* Kill everything below `path` through pidfds and remove the groups, deepest first. 0 or an errno. Absent is fine. */
int cgroup_remove_path(const struct cgroup_ops *ops, const char *path);
/* Processes below `path`, nested groups included. */
uint32_t cgroup_populated(const char *path);

/* "corral-RUN-PID-START-NAMESPACE-NODE": the process that made it can be told from a later one with its pid, and from one of another pid namespace. */
void cgroup_tree_name(uint64_t run, const char *node, char out[CGROUP_NAME_BYTES]);
struct cgroup_owner {
    uint64_t run, start_time, pid_namespace;
    pid_t pid;
    char node[32];
};
bool cgroup_parse_tree_name(const char *name, struct cgroup_owner *out);
/* The owner is certainly gone: same pid namespace, and no such process there. */
bool cgroup_owner_is_gone(const struct cgroup_owner *owner);
/* Calls fn for each folder with such a name below a mount of `host`. Bounded: depth and number of folders. */
typedef void (*cgroup_tree_fn)(void *ctx, const char *path, const struct cgroup_owner *owner);
void cgroup_each_tree(const struct cgroup_host *host, cgroup_tree_fn fn, void *ctx);
/* Only those directly below this process's own groups. */
void cgroup_each_own_tree(const struct cgroup_host *host, cgroup_tree_fn fn, void *ctx);

/* ---- probe.c: a throw-away child that runs into the fences ---- */
struct fence_probe_want {
    bool memory, cpuset, cpu;
    uint64_t memory_bytes; /* the limit; the child touches three times as much */
    int cpu_number;        /* the only one it may see */
};
struct fence_probe {
    pid_t pid;
    int pidfd, pipe;
    bool running;
    char group[64];
    struct fence_probe_want want;
    /* Once finished: */
    enum corral_fence_state memory, cpuset, cpu;
    char why_memory[FENCE_WHY_BYTES], why_cpuset[FENCE_WHY_BYTES], why_cpu[FENCE_WHY_BYTES];
};
/* Start the child in a group of its own. What the tree has no controller for is ABSENT with the tree's reason. */
void fence_probe_start(struct fence_probe *p, const struct cgroup_tree *t, const char *group,
                       const struct fence_probe_want *want);
/* Wait for its end (a few seconds at most, then it is killed and counts as failed), judge, remove the group. */
void fence_probe_finish(struct fence_probe *p, const struct cgroup_tree *t);

/* Does the ledger, the same code that everybody uses, deny what is over a quota? */
bool fence_try_ledger(char why[FENCE_WHY_BYTES]);
/* Run `fn` in a child and wait for it, three seconds at most. Its exit code, -signal, or INT_MIN: it could not be started or took too long. The child may only make
 * system calls: the parent may have threads. */
int fence_child(int (*fn)(void *ctx), void *ctx);

/* Forks, with the child dying if we do and its signals as they begin. 0 in the child; -1 and errno on failure. */
pid_t fence_fork(int *pidfd);
/* Waits for the end of a child; killed at the deadline. Its exit code, -signal, or INT_MIN: too late. */
int fence_reap(pid_t pid, int pidfd, uint64_t deadline_ns);

/* ---- canary.c: a process on a GPU under a limit that somebody else holds ---- */
/* Everything it says until it closes its output or the time is over. False: time is over. */
bool fence_read_answer(int fd, uint64_t deadline_ns, char *out, size_t out_bytes);
struct fence_canary_spec {
    const char *const *env; /* "KEY=VALUE" */
    size_t env_count;
    const int *enter; /* cgroup.procs files, as of cgroup_enter_fds() */
    uint32_t enter_count;
    uint64_t within, over; /* bytes; 0: not tried */
};
bool fence_canary_run(const struct fence_canary_spec *spec, struct corral_cuda_limit_result *out,
                      char why[FENCE_WHY_BYTES]);
/* From what a process without a limit found: a limit that would be crossed where there is memory beyond it. False: why. */
bool fence_canary_plan(const struct corral_cuda_limit_result *control, uint64_t *limit,
                       char why[FENCE_WHY_BYTES]);
void fence_canary_sizes(uint64_t limit, struct fence_canary_spec *spec);
bool fence_canary_judge(const struct corral_cuda_limit_result *r, uint64_t limit, char why[FENCE_WHY_BYTES]);

/* ---- mps.c ---- */
#define MPS_PIPE_BYTES 256
struct fence_mps {
    bool answers; /* the control daemon does */
    bool tried;   /* a process was started under its limits */
    bool live;    /* and a process was held to its memory limit */
    bool shares;  /* and to its thread percentage */
    char pipe[MPS_PIPE_BYTES];
    char why[FENCE_WHY_BYTES]; /* what was found */
};
/* Ask the control daemon of this user whether it lives. */
void fence_mps_detect(struct fence_mps *out);
/* The same, and try its limits on a GPU; "": the first one that there is. */
void fence_mps_try(const char *gpu_uuid, struct fence_mps *out);
/* "GPU-…=1234M", rounded up to whole MiB, and parsed back. False when the UUID or the size is not one. */
bool fence_mps_limit(const char *uuid, uint64_t bytes, char *out, size_t out_bytes);
bool fence_mps_parse_limit(const char *text, char uuid[64], uint64_t *bytes);
bool fence_uuid_valid(const char *uuid);

#endif
