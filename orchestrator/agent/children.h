/* Children that nobody here has started: what a process below leaves behind comes to the nearest ancestor that has asked for it (PR_SET_CHILD_SUBREAPER). */
#ifndef CORRAL_ORCHESTRATOR_CHILDREN_H
#define CORRAL_ORCHESTRATOR_CHILDREN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Whether a child is one that is known, and to be left alone. */
typedef bool (*corral_children_keep_fn)(void *ctx, pid_t pid);

/* Kill every other child of this process; NULL: every child. They are reaped by whoever waits for them. Returns how many are still to end. */
uint32_t corral_children_kill(corral_children_keep_fn keep, void *ctx);
/* Reap the others that have ended; never waits. */
void corral_children_reap(corral_children_keep_fn keep, void *ctx);

/* What the process `root[i]` and everything below it holds resident, for each of them; pages that several share count for each. 0: it has gone. One look through /proc. */
void corral_children_resident(const pid_t *root, uint32_t roots, uint64_t *bytes);

#endif
