/* A file system that remembers what it was asked to do, and from that makes folders as a power cut could have left them: what was synced is there; of
 * everything else, any sector of 512 bytes, any change of a file's size and any change of the folder may or may not be. */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_TEST_POWER_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_TEST_POWER_H

#include "base/rng.h"
#include "transport/trajectory/wal/files.h"

struct power;

/* What is in the folder now counts as durable. */
struct power *power_create(const char *folder);
void power_destroy(struct power *p);
struct wal_files power_files(struct power *p);
/* Events so far: the moments at which the power can be cut. */
uint64_t power_now(struct power *p);
/* Fills the empty folder `to`. `keep` in [0, 1]: how likely each thing that was not synced has reached the disk. */
void power_cut(struct power *p, uint64_t at, double keep, struct corral_rng *rng, const char *to);

#endif
