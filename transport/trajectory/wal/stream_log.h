/* A log folder behind a receiver's log hook (transport/trajectory/log.h): what one trainer rank has been sent, durable before it is acknowledged.
 *
 * LOW-WATER MARK: all records up to it were finished by steps that are saved. Whoever writes a checkpoint notes the mark with it; when that checkpoint is the oldest that is kept, the
 * log is trimmed up to the mark, because a resume hands out what is beyond the cursors that were saved with it. One thread: the receiver's.
 */
#ifndef CORRAL_TRANSPORT_TRAJECTORY_WAL_STREAM_LOG_H
#define CORRAL_TRANSPORT_TRAJECTORY_WAL_STREAM_LOG_H

#include "transport/trajectory/log.h"
#include "transport/trajectory/wal/wal.h"

struct corral_stream_log;

enum corral_status corral_stream_log_open(struct corral_stream_log **out, const struct corral_wal_options *o,
                                          struct corral_error *err);
/* After the receiver that uses it. Syncs what was appended. */
enum corral_status corral_stream_log_close(struct corral_stream_log *l, struct corral_error *err);
const struct corral_traj_log *corral_stream_log_hook(const struct corral_stream_log *l);
/* The oldest position that is there, and how many beyond the mark: right after opening, what may come again. */
uint64_t corral_stream_log_first(const struct corral_stream_log *l);
uint64_t corral_stream_log_waiting(const struct corral_stream_log *l);
uint64_t corral_stream_log_low(const struct corral_stream_log *l);
enum corral_status corral_stream_log_trim(struct corral_stream_log *l, uint64_t position,
                                          struct corral_error *err);

#endif
