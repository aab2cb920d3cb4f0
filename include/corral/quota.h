/* Memory quotas for programs that Corral starts: trainers that bracket their gradient steps, engines that can shrink when asked, tools that want to know their limits.
 *
 * A process started by Corral under a quota finds everything in its environment; there is nothing to configure. Allocations need no call: on a GPU the driver interposer
 * charges them, on a host device the allocator does. Link with libcorral, or load it with dlopen or ctypes.
 *
 *     struct corral_quota_client *q;
 *     if (corral_quota_open(&q, &err) == CORRAL_OK) {
 *         for (step = 1; ; step++) {
 *             corral_step_begin(q, step, peak_bytes, &err);   CORRAL_DENIED: do not take this step
 *             ... forward, backward ...
 *             corral_step_end(q, NULL, &err);                 before the weights are saved or published
 *         }
 *         corral_quota_close(q);
 *     }
 *
 * Threads: one thread per client at a time; the pressure callback comes from a thread of the library's own. Sizes are bytes. No function exits, prints, or installs a signal handler.
 */
#ifndef CORRAL_QUOTA_H
#define CORRAL_QUOTA_H

#include <corral/status.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct corral_quota_client;

/* What one device grants this process's role. */
struct corral_quota_state {
    uint32_t size;   /* sizeof, set by the caller */
    char device[32]; /* "a:3" */
    char role[32];   /* "rollout" */
    uint64_t physical, floor, ceiling;
    uint64_t used;      /* by the role on the device */
    uint64_t used_here; /* of it, by this process */
    uint64_t available; /* what this process could take now */
    uint64_t denied;    /* refusals of the role on the device so far */
    uint64_t wanted;    /* others wait for this many bytes of what the role uses above its floor; 0: nobody */
    uint32_t frozen;    /* 1: a gradient step is open on the device, borrowing is frozen */
    uint32_t reserved_;
};

/* What one step left in the proof chain. */
struct corral_step_result {
    uint32_t size;    /* sizeof, set by the caller */
    uint32_t verdict; /* 0 proven, 1 unproven */
    uint64_t step, declared, peak, slack_min;
    int64_t drift;
    uint64_t record; /* its number in the chain */
    char hash[65];   /* of the record */
    char why[160];   /* when unproven */
};

/* CORRAL_NOT_FOUND: this process was not started under a quota. */
CORRAL_API enum corral_status corral_quota_open(struct corral_quota_client **out, struct corral_error *err);
/* Ends the proof chain of this process in order, when it wrote one. NULL is fine. */
CORRAL_API void corral_quota_close(struct corral_quota_client *q);
CORRAL_API enum corral_status corral_quota_state(struct corral_quota_client *q,
                                                 struct corral_quota_state *out, struct corral_error *err);

/* A trainer's gradient step. `peak` is the most this process will use until the end, what it has now included; 0 means the floor, or what is used if that is more.
 * CORRAL_DENIED: the step would take memory that is another role's, so it must not be taken; the refusal is in the proof chain. CORRAL_STATE: a step is open, or this process is not a trainer. */
CORRAL_API enum corral_status corral_step_begin(struct corral_quota_client *q, uint64_t step, uint64_t peak,
                                                struct corral_error *err);
/* Call before the step is made final. A failure means that the step could not be recorded and must not become final. `out` may be NULL. */
CORRAL_API enum corral_status corral_step_end(struct corral_quota_client *q, struct corral_step_result *out,
                                              struct corral_error *err);
/* Give the step up: nothing is recorded, borrowing is thawed. */
CORRAL_API void corral_step_abandon(struct corral_quota_client *q);

/* Tags for what is allocated from now on, and for denials. */
enum corral_quota_phase {
    CORRAL_QUOTA_PHASE_NONE = 0,
    CORRAL_QUOTA_PHASE_FORWARD = 2,
    CORRAL_QUOTA_PHASE_BACKWARD = 3,
    CORRAL_QUOTA_PHASE_OPTIMIZER = 4,
    CORRAL_QUOTA_PHASE_SYNC = 5,
    CORRAL_QUOTA_PHASE_ROLLOUT = 6,
    CORRAL_QUOTA_PHASE_EVAL = 7,
};
CORRAL_API void corral_quota_phase(struct corral_quota_client *q, enum corral_quota_phase phase);

/* Called when others wait for memory that this role uses above its floor: give back what you can spare of `wanted` bytes (shrink a cache), then return. They wait
 * memory.pressure_wait for it before they are denied. One callback per client; NULL takes it away. It must not call into this client. */
typedef void (*corral_quota_pressure_fn)(void *ctx, uint64_t wanted);
CORRAL_API enum corral_status corral_quota_on_pressure(struct corral_quota_client *q,
                                                       corral_quota_pressure_fn fn, void *ctx,
                                                       struct corral_error *err);

#ifdef __cplusplus
}
#endif
#endif
