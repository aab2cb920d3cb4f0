/* Fences in depth: the same numbers that the ledger enforces, also given to the kernel and the driver where they can hold them. Each fence is tried, never assumed: a report says
 * live, absent (with why) or failed. One thread (the agent's, or rlctl doctor).
 *
 * Names, stable: "ledger", "interposer" (GPU), "mps" (pinned memory limit and thread percentage), "dmem" (cgroup v2 device memory), "cgroup-memory", "cpuset", "cpu" (cgroup compute share),
 * "rlimit" (tenants on host devices), "affinity". The cgroup fences are a second line: their limits leave room for code, libraries and stacks beside the quota, so that the ledger's
 * denial always comes first and nobody is killed for a denial.
 */
#ifndef CORRAL_QUOTA_FENCE_H
#define CORRAL_QUOTA_FENCE_H

#include "quota/ledger.h"
#include <sched.h>

#define CORRAL_FENCES_MAX 12
#define CORRAL_FENCE_ENV_MAX 8
#define CORRAL_FENCE_ENV_BYTES 512

enum corral_fence_state { CORRAL_FENCE_LIVE, CORRAL_FENCE_ABSENT, CORRAL_FENCE_FAILED };

struct corral_fence_status {
    char name[24];
    enum corral_fence_state state;
    char detail[200]; /* "limit 128 MiB, denied an allocation over it" or what is missing and what to do */
};
struct corral_fence_report {
    uint32_t count;
    struct corral_fence_status fence[CORRAL_FENCES_MAX];
};
/* "ledger ok · affinity ok · cgroup-memory: no permission" for people; returns out. And the live ones only, separated by spaces, for proof records. */
const char *corral_fence_report_line(const struct corral_fence_report *r, char *out, size_t out_bytes);
const char *corral_fence_report_live(const struct corral_fence_report *r, char *out, size_t out_bytes);
bool corral_fence_is_live(const struct corral_fence_report *r, const char *name);
/* Set or add a row: for who tries a fence from outside of this module (the interposer, by a canary process). */
void corral_fence_report_set(struct corral_fence_report *r, const char *name, enum corral_fence_state state,
                             const char *detail);

/* The program that answers to "canary --limit WITHIN OVER" with corral_cuda_limit_canary() (quota/cuda/canary_limit.h): "/proc/self/exe" for rlctl. Without it, "mps" and "dmem" are not tried and so
 * not live. Set once, before there are threads; the string is kept. */
void corral_fence_canary_is(const char *path);
/* How long one of them may take, 30 s unless told: MPS starts its server for the first client, and a first context takes seconds. A fence is tried with two of them, the second only when the first has ended. Set
 * before there are threads. */
void corral_fence_canary_wait(uint32_t ms);

/* What this machine could have, each tried with a process of its own in a group of its own that is removed again: for `rlctl doctor` and before a launch. Takes well under a second, and
 * with MPS or dmem as long as two processes need for their first context. All but "interposer", which takes a program started with it. */
enum corral_status corral_fences_try(struct corral_fence_report *out, struct corral_error *err);

/* Which cgroup controllers this process has, and of which version: "version 1: memory cpuset cpu; version 2: none". Returns out. */
const char *corral_fence_cgroups_line(char *out, size_t out_bytes);

/* The fences of one run on one node. */
struct corral_fences;
struct corral_fence_group_spec {
    const char *role, *device; /* "rollout", "a:3" */
    bool gpu;
    char gpu_uuid[64];  /* "GPU-…" */
    uint64_t bytes;     /* the role's ceiling on the device */
    uint32_t processes; /* how many share it */
    uint64_t
        overhead; /* per process beside the quota: code, libraries, stacks; 0: a default that is generous */
    uint32_t compute_percent; /* 100: no share to enforce */
    const cpu_set_t *cpus;    /* NULL: any */
    bool
        tenant; /* a program that does not know the ledger: on a host device the kernel's limit is the fence */
};
enum corral_status corral_fences_open(uint64_t run, const char *node, struct corral_fences **out,
                                      struct corral_error *err);
/* Removes every group; what still runs in them is killed first. Also removes groups that a killed agent of the same run left, and empty ones of any agent that is gone. */
void corral_fences_close(struct corral_fences *f);
/* Make the group of a (role, device). A fence that cannot be had is noted in the report, it is no error. */
enum corral_status corral_fences_add(struct corral_fences *f, const struct corral_fence_group_spec *spec,
                                     uint32_t *group, struct corral_error *err);
/* For starting a process in the group: "KEY=VALUE" strings to add (owned by f), and descriptors of cgroup.procs files: the child writes "0" into each before it executes. */
struct corral_fence_entry {
    uint32_t env_count, fd_count;
    const char *env[CORRAL_FENCE_ENV_MAX];
    int fd[4];
    uint64_t rlimit_data; /* 0: none */
};
void corral_fences_entry(const struct corral_fences *f, uint32_t group, struct corral_fence_entry *out);
/* A live change of the ceiling. */
enum corral_status corral_fences_resize(struct corral_fences *f, uint32_t group, uint64_t bytes,
                                        struct corral_error *err);
/* Only what some group asked for. The kernel's fences are being tried by a child since corral_fences_open(); this waits for its end, so it is best called late. */
void corral_fences_report(const struct corral_fences *f, struct corral_fence_report *out);

/* Groups of agents that are gone (killed together with their machine's session, say): none of a process that lives, and none of another pid namespace. */
struct corral_fence_leftover {
    char path[1024];
    char node[32];
    uint64_t run;
    uint32_t processes; /* still in it */
};
/* At most `max`; returns how many there are. */
uint32_t corral_fence_leftovers(struct corral_fence_leftover *out, uint32_t max);
/* Kill what is in it and remove it. Refused (CORRAL_STATE) when its agent lives after all. */
enum corral_status corral_fence_leftover_remove(const struct corral_fence_leftover *l,
                                                struct corral_error *err);

/* Pre-flight inside a worker: for each way memory is taken on its device, one allocation that must succeed and one over the quota that must be denied. CORRAL_OK only when every
 * one did as it must; the text names the first that did not. Charges are all returned. Host families: "host small", "host mapped"; GPU families: quota/cuda/canary.h. */
#define CORRAL_FENCE_PREFLIGHT_BYTES \
    (128 * 1024) /* the largest of them that must succeed: no smaller quota can be checked */
struct corral_quota;
enum corral_status corral_fence_preflight_host(struct corral_quota *q, uint32_t holder,
                                               struct corral_error *err);

#endif
