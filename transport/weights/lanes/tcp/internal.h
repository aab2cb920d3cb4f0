/* The tcp lane: several connections, a thread for each at both ends (docs/spec/weight-lanes.md). Internal to tcp/.
 *
 * A bucket is cut into pieces; each connection takes the next piece when it has sent the last, so a slow one holds nobody up. A piece goes from the source's memory
 * to the kernel and from the kernel to its place in the destination: nothing is packed but links of short runs and memory that is not the host's.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_TCP_INTERNAL_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_TCP_INTERNAL_H

#include "transport/weights/lanes/support.h"
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#define TCP_MAGIC 0x50544343u /* "CCTP" */
#define TCP_VERSION 1u
#define TCP_PIECE (1u << 20)  /* bytes of a piece at most */
#define TCP_PIECE_IOVECS 256u /* runs of a piece at most */
#define TCP_SHORT_RUN 1024u   /* links with shorter runs (on average) are packed */
#define TCP_RING 16u          /* buckets that the receiver has begun, when they need no staging */
#define TCP_ZERO_SENDS 128u   /* of a stream that the kernel may still read the memory of; a power of two */
#define TCP_ZERO_COPIED 4u    /* in a row: it does not pay here */
#define TCP_NEAR_BUFFER (512 << 10) /* of a socket, between two ends of one machine */
#define TCP_STRANGERS_MAX 16        /* connections that have not said who they are */

/* ---- wire.c: what both ends agree on ---- */

struct tcp_offer {
    struct sockaddr_storage address;
    socklen_t address_bytes;
    uint32_t streams;
    uint8_t token[CORRAL_LANE_TOKEN_BYTES];
};
void tcp_put_offer(struct corral_lane_blob *blob, const struct corral_link *link,
                   const struct tcp_offer *offer);
enum corral_status tcp_get_offer(const struct corral_lane_blob *blob, const struct corral_link *link,
                                 struct tcp_offer *offer, struct corral_error *err);

/* A connection's first bytes prove that its owner knows the offer's token, which itself never travels here. */
#define TCP_HELLO_BYTES 48
void tcp_put_hello(uint8_t out[TCP_HELLO_BYTES], const struct corral_link *link,
                   const uint8_t token[CORRAL_LANE_TOKEN_BYTES], uint32_t stream);
/* False: not one of ours. */
bool tcp_get_hello(const uint8_t in[TCP_HELLO_BYTES], const struct corral_link *link,
                   const uint8_t token[CORRAL_LANE_TOKEN_BYTES], uint32_t streams, uint32_t *stream);

/* Before each piece. */
#define TCP_FRAME_BYTES 48
struct tcp_frame {
    uint64_t push,
        number; /* number: the how manyth tx_send of the push, from 0: two sends of one bucket are told apart */
    uint64_t from;  /* in what is sent */
    uint64_t total; /* that is sent of the bucket: less than its size when it is encoded */
    uint32_t bucket, bytes;
};
void tcp_put_frame(uint8_t out[TCP_FRAME_BYTES], const struct tcp_frame *frame);
bool tcp_get_frame(const uint8_t in[TCP_FRAME_BYTES], const struct corral_link *link,
                   struct tcp_frame *frame);

enum corral_status tcp_parse_host(const char *host, struct sockaddr_storage *out, socklen_t *bytes,
                                  struct corral_error *err);
/* No delay, keep-alive, and an error when nothing is acknowledged for long. */
void tcp_tune(int fd);
/* Of a connection that is there. Between two ends of one machine buffers are kept small, so that what is in them is still in a cache when it is read. */
void tcp_settle(int fd);

/* ---- accept.c: the receiver's connections ---- */

enum corral_status tcp_listen(const char *host, int *out, struct tcp_offer *offer, struct corral_error *err);
/* Until `streams` connections have said a good hello; fd[] -1 before the call, and the caller's even after a failure. */
enum corral_status tcp_accept(int listener, const struct corral_link *link, const struct tcp_offer *offer,
                              uint32_t streams, uint64_t timeout_ns, int *fd, struct corral_error *err);

/* ---- tx.c, tx_stream.c, tx_zero.c: the sender ---- */

struct tcp_job { /* a bucket on its way */
    uint32_t bucket, outstanding;
    uint64_t end;
    struct corral_link_cursor cursor;
    const uint8_t *packed; /* or encoded; NULL: from the source's memory */
    bool done;
};

struct tcp_tx;

/* A stream that sends from the source's own pages. Its thread's, but for `polling`. The kernel numbers such sends from 0 on each connection and says later, in the connection's error queue, which numbers it has done with. */
struct tcp_zero {
    int wake;     /* eventfd: there is work, or an end */
    bool polling; /* the thread waits for it; guarded by the lane's lock */
    bool on;      /* sends ask for it; what was sent before is waited for all the same */
    bool gone, hung_up;
    uint32_t first, next; /* numbers: all before `first` are done with; of the next send */
    uint32_t pending, copied;
    struct {
        bool pending;
        uint64_t job;
    } send[TCP_ZERO_SENDS]; /* number n in send[n % TCP_ZERO_SENDS] */
};

struct tcp_tx_stream {
    struct tcp_tx *tx;
    int fd;
    struct tcp_zero zero;
    struct corral_lane_thread thread;
    struct tcp_frame frame;
    struct iovec iov[TCP_PIECE_IOVECS + 1];
};

struct tcp_tx {
    struct corral_lane base;
    int event;
    uint32_t window, streams;
    uint64_t run_bytes;
    uint8_t *packed; /* [window * bucket_bytes], when the link or the source needs it */
    struct corral_shard *source;
    uint64_t push, reported;
    bool active, broken;
    enum corral_lane_zero_copy zero_copy; /* NEVER also where the kernel cannot */
    pthread_mutex_t lock;                 /* guards all below */
    pthread_cond_t work;
    struct tcp_job job[CORRAL_LANE_WINDOW_MAX]; /* number n in job[n % window] */
    uint64_t sent, claiming, left;
    bool stop;
    int failed; /* errno */
    struct tcp_tx_stream stream[CORRAL_LANE_STREAMS_MAX];
};

enum corral_status tcp_start_tx(struct tcp_tx *tx, struct corral_error *err);
/* Waits until the kernel has taken all; 0 or the error number. */
int tcp_send_all(int fd, struct iovec *iov, uint32_t count, int flags);
/* Leaves of the iovec what `done` bytes were not enough for. */
void tcp_sent(struct iovec **iov, uint32_t *count, size_t done);
/* New work, or the end: with the lock held. */
void tcp_wake_tx(struct tcp_tx *tx);
/* One thing that was outstanding of the job is not any more. With the lock held. */
void tcp_finish(struct tcp_tx *tx, uint64_t number, int failed);
/* Cuts the connections when something may still be on its way in them, then waits for the threads. */
void tcp_stop_tx(struct tcp_tx *tx, bool cut);

/* tx_zero.c. On the stream's own thread, or when it has none. */
enum corral_status tcp_zero_open(struct tcp_tx_stream *s, struct corral_error *err);
/* Sends it all, from its own pages as long as `on`; 0 or the error number. */
int tcp_zero_send(struct tcp_tx_stream *s, struct iovec *iov, uint32_t count, uint64_t job);
/* Waits for work, taking in what the kernel has done with. With the lock held, which is given up meanwhile. */
void tcp_zero_idle(struct tcp_tx_stream *s);
/* Of a connection that was cut: makes the kernel let go of all pages. */
void tcp_zero_abort(struct tcp_tx_stream *s);

enum corral_status corral_tcp_tx_open(struct corral_lane **out, const struct corral_link *link,
                                      const struct corral_lane_options *options,
                                      const struct corral_lane_blob *offer, struct corral_lane_blob *answer,
                                      struct corral_error *err);
enum corral_status corral_tcp_tx_begin(struct corral_lane *lane, uint64_t push, struct corral_shard *source,
                                       const struct corral_lane_blob *place, struct corral_error *err);
enum corral_status corral_tcp_tx_send(struct corral_lane *lane, uint32_t bucket, struct corral_error *err);
enum corral_status corral_tcp_tx_send_encoded(struct corral_lane *lane, uint32_t bucket, const void *encoded,
                                              uint64_t bytes, struct corral_error *err);
enum corral_status corral_tcp_tx_progress(struct corral_lane *lane, uint64_t timeout_ns, uint64_t *left,
                                          struct corral_error *err);
enum corral_status corral_tcp_tx_end(struct corral_lane *lane, bool ok, struct corral_error *err);
void corral_tcp_tx_close(struct corral_lane *lane);

/* ---- rx.c, rx_stream.c: the receiver ---- */

struct tcp_entry { /* a bucket that is arriving; number n in entry[n % ring], one after the other */
    bool used;     /* a piece has come */
    uint32_t bucket;
    uint64_t number, total, claimed, got;
};

struct tcp_rx;
struct tcp_rx_stream {
    struct tcp_rx *rx;
    int fd;
    struct corral_lane_thread thread;
    bool writing, ended;
};

struct tcp_rx {
    struct corral_lane base;
    int listener, event;
    struct tcp_offer offer;
    uint32_t window, streams, slot_count;
    uint64_t open_timeout_ns, run_bytes;
    uint8_t *slots; /* [slot_count * slot_bytes], when the link or the destination needs it */
    uint64_t slot_bytes;
    struct corral_shard *destination;
    bool broken;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t room;
    uint64_t push, ended_push;
    bool active, staged, stop;
    uint8_t *host;
    uint32_t ring;
    struct tcp_entry entry[CORRAL_LANE_WINDOW_MAX];
    uint32_t complete[CORRAL_LANE_WINDOW_MAX], complete_first,
        complete_count; /* entries, as they completed */
    enum corral_status failed;
    struct corral_error failure;
    struct tcp_rx_stream stream[CORRAL_LANE_STREAMS_MAX];
};

enum corral_status tcp_start_rx(struct tcp_rx *rx, struct corral_error *err);
void tcp_stop_rx(struct tcp_rx *rx);

#endif
