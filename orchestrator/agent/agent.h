/* The agent of one node: makes the node's shared mappings (memory ledger, weight store, board, collective segment, trainers' vaults), starts the node's workers with
 * them, watches and reaps them, receives weights from other nodes, and reports to the coordinator. Its current directory is the run folder. It starts its
 * workers at once; the coordinator decides everything after that. It ends, and with it every worker (PDEATHSIG), when the coordinator says stop or has been silent for
 * fault.dead_after. */
#ifndef CORRAL_ORCHESTRATOR_AGENT_H
#define CORRAL_ORCHESTRATOR_AGENT_H

#include "base/error.h"

/* Run until told to stop. `node` names one of the job's nodes. */
enum corral_status corral_agent_run(const char *node, struct corral_error *err);

#endif
