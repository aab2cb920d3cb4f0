/* What a receiver needs of a log that makes records durable (transport/trajectory/wal/ is one). With a log, a record is acknowledged to its worker when the log says that it is
 * durable, whether or not it has been handed out or finished. All functions are called from the receiver's thread. None may be NULL.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_LOG_H
#define CORRAL_TRANSPORT_TRAJECTORY_LOG_H

#include "transport/trajectory/item.h"

struct corral_traj_log {
    void *ctx;
    /* Takes a copy. Positions grow by one from record to record, replayed ones included. A failure is not acknowledged: the worker keeps the record and is asked for it again, so that workers
     * wait while the log can't take any more. */
    enum corral_status (*append)(void *ctx, const struct corral_traj_item *item, uint64_t *position,
                                 struct corral_error *err);
    /* Everything up to *position survives. Cheap: called often. Fails when the log is broken: nothing is acknowledged from then on. */
    enum corral_status (*durable)(void *ctx, uint64_t *position, struct corral_error *err);
    /* eventfd that is readable when durable() grew or fails; the receiver reads it. -1: none, durable() is asked every 50 ms. */
    int bell;
    /* At start: what an earlier receiver logged, oldest first; item->data until the next call. CORRAL_AGAIN at the end, after which it is not called again. */
    enum corral_status (*next)(void *ctx, struct corral_traj_item *item, uint64_t *position,
                               struct corral_error *err);
    /* The record at that position was trained on or dropped, by a step that is committed. In any order, each once. */
    void (*finished)(void *ctx, uint64_t position);
};

#endif
