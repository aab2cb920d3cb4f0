/* What several lanes need: the head of their blobs, events, deadlines, what a link's runs look like. Internal to lanes/. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_SUPPORT_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_SUPPORT_H

#include "transport/weights/lanes/lane.h"

#define CORRAL_LANE_WINDOW_DEFAULT 3
#define CORRAL_LANE_WINDOW_MAX 64
#define CORRAL_LANE_STREAMS_MAX 16
#define CORRAL_LANE_TOKEN_BYTES 32
#define CORRAL_LANE_BLOB_HEAD 24 /* bytes that corral_lane_blob_begin() writes */

/* Every blob begins with the lane's magic, its version and kind, and the link's hash: an offer of another link or lane is refused. */
void corral_lane_blob_begin(struct corral_lane_blob *blob, enum corral_lane_kind kind,
                            const struct corral_link *link);
/* CORRAL_PROTOCOL unless the blob is of this lane and link, and exactly `bytes` long. */
enum corral_status corral_lane_blob_check(const struct corral_lane_blob *blob, enum corral_lane_kind kind,
                                          const struct corral_link *link, uint32_t bytes,
                                          struct corral_error *err);
void corral_lane_put32(uint8_t *at, uint32_t value); /* little-endian */
void corral_lane_put64(uint8_t *at, uint64_t value);
uint32_t corral_lane_get32(const uint8_t *at);
uint64_t corral_lane_get64(const uint8_t *at);

/* Average length of the link's runs: short ones are packed rather than given to the kernel one by one. */
uint64_t corral_lane_run_bytes(const struct corral_link *link);
/* CORRAL_INVALID when the shard is smaller than what the link reads or writes of it. */
enum corral_status corral_lane_check_shard(const struct corral_shard *shard, const struct corral_link *link,
                                           enum corral_link_side side, struct corral_error *err);

/* What has arrived in staging, into the destination: packed when it is as long as the bucket, encoded when it is shorter. */
enum corral_status corral_lane_deliver(struct corral_shard *destination, const struct corral_link *link,
                                       uint32_t bucket, const void *staged, uint64_t bytes,
                                       struct corral_error *err);
/* CORRAL_STATE unless `bytes` may be an encoding's length. */
enum corral_status corral_lane_check_encoded(const struct corral_link *link, uint32_t bucket, uint64_t bytes,
                                             struct corral_error *err);

/* eventfd: any thread. */
void corral_lane_signal(int event);
bool corral_lane_drain(int event); /* whether it had been signalled since the last time */
enum corral_status corral_lane_event(int *out, struct corral_error *err);
/* A descriptor that is readable while one of the watched ones has `events`. */
enum corral_status corral_lane_watch(int *epoll, int fd, uint32_t events, struct corral_error *err);
/* Wait until it is readable or the deadline has passed. */
void corral_lane_wait(int epoll, uint64_t deadline_ns);
/* now + timeout, saturating. */
uint64_t corral_lane_deadline(uint64_t timeout_ns);
/* poll() one descriptor; false when the deadline passed first. */
bool corral_lane_poll(int fd, short events, uint64_t deadline_ns);
uint32_t corral_lane_window(const struct corral_lane_options *options);
uint64_t corral_lane_open_timeout(const struct corral_lane_options *options); /* 0: 5 s */
/* pthread_create with all signals blocked: they are the program's. */
struct corral_lane_thread {
    unsigned long id;
    bool started;
};
enum corral_status corral_lane_start(struct corral_lane_thread *thread, void *(*run)(void *), void *arg,
                                     struct corral_error *err);
void corral_lane_join(struct corral_lane_thread *thread);

#endif
