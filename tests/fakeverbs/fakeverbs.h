/* libibverbs.so.1 for tests: adapters made of a thread and Unix sockets. Same names, symbol versions and structures as rdma-core's, so that a program opens the one or the other and cannot tell.
 *
 * Real: ports and GIDs (and their types in a folder like sysfs), protection domains, memory regions with bounds, keys and rights, completion queues with channels, RC queue pairs with their states and
 * required attributes, SEND, RDMA WRITE, both with immediate, acknowledgements, go-back-N retransmission, RNR, errors that flush, asynchronous events. In one process or between processes of one network namespace.
 * A retry count of 7 retries for ever, as soft-RoCE does. A queue pair with requests under way, or completions that nobody has taken, cannot be destroyed.
 * Not there: everything else (READ, atomics, UD, SRQ, inline data, memory windows, the extended verbs).
 *
 * Environment: FAKEVERBS_DEVICES  "fake0:roce,fake1:roce" (the default), kinds roce, ib, down
 *              FAKEVERBS_FAULTS   as fakeverbs_faults()
 */
#ifndef CORRAL_TESTS_FAKEVERBS_H
#define CORRAL_TESTS_FAKEVERBS_H

/* Faults of this process, from now on: "name=number,…"; "" for none. -1: not understood.
 *   cqe_error=N     the Nth completion is an error, and its queue pair goes to ERR
 *   delay_us=N      completions are seen so much later
 *   drop=N          the Nth packet of a request is lost, once; it has to be sent again
 *   drop_after=N    every packet after the Nth is lost
 *   hold_odd_us=N   queue pairs with odd numbers send so much later: arrivals of several queue pairs change places
 *   rnr=N           the next N messages that need a receive find none
 *   corrupt=N       a bit of the Nth packet with payload is turned over in memory
 *   die_sent=N, die_received=N   SIGKILL to this process after so many bytes of payload
 *   port_err=N, device_fatal=N   the event, after the Nth packet sent; nothing is sent from then on
 *   ack_us=N        the acknowledgement timeout, instead of the queue pair's
 */
typedef int fakeverbs_faults_fn(const char *spec);
/* Objects not destroyed, or not allowed to be, and events not acknowledged. */
typedef unsigned fakeverbs_live_fn(void);
/* How many packets were sent again. */
typedef unsigned fakeverbs_resent_fn(void);

#endif
