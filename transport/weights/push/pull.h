/* A receiver's other way to the current version: from a receiver that has it, when the trainer is not about to push (one that joins late or was started again, one that missed a version whose trainer has died). Peers serve
 * from what they have, without the trainer and without holding up their own pushes. Also: measuring lanes between two nodes over the same port and login. docs/spec/weight-push.md, Visitors.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_PUSH_PULL_H
#define CORRAL_TRANSPORT_WEIGHTS_PUSH_PULL_H

#include "transport/weights/lanes/probe.h"
#include "transport/weights/push/push.h"

#define CORRAL_PULL_PEERS_MAX 64
#define CORRAL_PULL_ENDPOINT_MAX 96
#define CORRAL_PUSH_VISITORS_MAX 4 /* that a receiver serves at a time */

/* Takes the newest version above the receiver's own from one of `peers` (endpoints of receivers with the same plan and rank, tried in turn), in the background. What came of it is in the receiver's status: version and pulls,
 * or last_error. A push that begins meanwhile goes first and ends the pull. CORRAL_EXISTS: a pull is under way. Any thread. */
enum corral_status corral_push_receiver_pull(struct corral_push_receiver *r, const char *const *peers,
                                             uint32_t count, uint64_t timeout_ns, struct corral_error *err);

/* Which lanes later logins may use, in place of the options': "tcp". Connections that stand keep theirs. Any thread. */
enum corral_status corral_push_receiver_set_lanes(struct corral_push_receiver *r, const char *lanes,
                                                  struct corral_error *err);

/* Measures a lane from here to the node of a receiver, as corral_lane_probe_send does; the receiver takes 1 GiB at most. Blocks for options->timeout_ns at most. CORRAL_UNSUPPORTED, with the reason: either side has not got it. */
enum corral_status corral_push_probe(const char *endpoint, const struct corral_push_identity *identity,
                                     const struct corral_lane_ops *ops,
                                     const struct corral_lane_probe_options *options,
                                     struct corral_lane_probe_result *result, struct corral_error *err);

#endif
