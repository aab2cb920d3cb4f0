/* Staleness bounded before the work is done: a rollout begins only with a lease, and leases are granted only while what runs and what waits to be trained on is at most what the trainer uses up in
 * 1 + max_staleness versions. Staleness is counted in weight versions from the oldest token, so a lease has the version it was granted at.
 *
 *     grant when   running + queued + tokens <= (1 + max_staleness) * per_version        (one lease is granted whenever there is nothing at all)
 *
 * With rollouts of equal length this alone keeps everything within max_staleness, when a version uses up per_version tokens, oldest first. A rollout that runs much longer than others is overtaken by them and may become too old:
 * corral_lease_late() says how many running ones would be if the trainer took its step now, so that it can wait for them for a while (by name); what is too old in the end is dropped, counted, and reported in length_bias.h.
 *
 * Tokens are estimates when granted and real when arrived. The leases of a worker that is not seen for ttl_ns expire; its tokens are free for others again. Time and versions are passed in. One thread; nothing is
 * allocated after create. */
#ifndef CORRAL_TRAINER_LEASE_H
#define CORRAL_TRAINER_LEASE_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

#define CORRAL_LEASE_WORKERS_MAX 1024u
#define CORRAL_LEASES_MAX (1u << 20)

struct corral_leases;
struct corral_lease_config {
    uint64_t per_version; /* tokens (or records, or whatever is counted) that one version is made from */
    uint32_t max_staleness;
    uint32_t leases_max; /* running at the same time */
    uint64_t ttl_ns;     /* 0: leases do not expire */
};
struct corral_lease_stats {
    uint64_t running, running_tokens, queued_tokens, capacity;
    uint64_t granted, refused, arrived, voided, expired;
};

enum corral_status corral_leases_create(struct corral_leases **out, const struct corral_lease_config *config,
                                        struct corral_error *err);
void corral_leases_destroy(struct corral_leases *l);
/* `version`: the weights it begins with; never smaller than at an earlier grant. CORRAL_AGAIN: too much is under way; the text says how much of what. */
enum corral_status corral_lease_grant(struct corral_leases *l, uint32_t worker, uint64_t tokens,
                                      uint64_t version, uint64_t now_ns, uint64_t *lease,
                                      struct corral_error *err);
/* The worker lives: its leases hold for another ttl_ns. */
void corral_lease_seen(struct corral_leases *l, uint32_t worker, uint64_t now_ns);
/* The rollout is here, with so many tokens, and waits to be trained on. False: the lease had expired (or never was); its tokens count as queued all the same. */
bool corral_lease_arrived(struct corral_leases *l, uint64_t lease, uint64_t tokens);
/* Nothing will come of it: the environment failed. */
bool corral_lease_void(struct corral_leases *l, uint64_t lease);
/* Trained on, or dropped. */
void corral_lease_consumed(struct corral_leases *l, uint64_t tokens);
/* Ends the leases of workers that were not seen for ttl_ns; how many. */
uint32_t corral_lease_expire(struct corral_leases *l, uint64_t now_ns);
/* Ends the leases of one worker, which is known to be gone. */
uint32_t corral_lease_end_worker(struct corral_leases *l, uint32_t worker);
/* Running ones that would be too old in any step after the one that `version` weights take now. */
uint32_t corral_lease_late(const struct corral_leases *l, uint64_t version);
void corral_lease_stats(const struct corral_leases *l, struct corral_lease_stats *out);

CORRAL_DEFINE_CLEANUP(struct corral_leases, corral_leases_destroy)

#endif
