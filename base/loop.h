/* The event loop of a program: libevent hidden behind descriptors, timers, signals and ZeroMQ sockets. One thread.
 * A callback records an event and returns quickly. ZeroMQ's descriptor is edge-triggered: corral_loop_zmq_kick() must be
 * called after sending on a watched socket from outside its own callback, or the loop stalls; transport/bus does it.
 */
#ifndef CORRAL_BASE_LOOP_H
#define CORRAL_BASE_LOOP_H

#include "base/error.h"
#include <stdbool.h>
#include <stdint.h>

struct corral_loop;
struct corral_loop_watch; /* one descriptor, timer, signal or socket; owned by the loop until removed */

enum corral_status corral_loop_create(struct corral_loop **out, struct corral_error *err);
void corral_loop_destroy(struct corral_loop *loop); /* removes what is still watched */
/* Run until corral_loop_stop(). Returns CORRAL_OK, or CORRAL_IO when the back end fails. */
enum corral_status corral_loop_run(struct corral_loop *loop, struct corral_error *err);
/* Handle what is ready, waiting at most timeout_ms (0: do not wait). */
enum corral_status corral_loop_once(struct corral_loop *loop, int timeout_ms, struct corral_error *err);
void corral_loop_stop(struct corral_loop *loop);

typedef void (*corral_loop_fd_fn)(void *ctx, int fd, bool readable, bool writable);
typedef void (*corral_loop_timer_fn)(void *ctx);
typedef void (*corral_loop_signal_fn)(void *ctx, int signo);
typedef void (*corral_loop_zmq_fn)(
    void *ctx, void *zmq_socket); /* called while the socket is readable; read at least one message */

enum corral_status corral_loop_watch_fd(struct corral_loop *loop, int fd, bool read, bool write,
                                        corral_loop_fd_fn fn, void *ctx, struct corral_loop_watch **out,
                                        struct corral_error *err);
/* First after first_ms, then every period_ms (0: once; the watch must still be removed). */
enum corral_status corral_loop_timer(struct corral_loop *loop, uint32_t first_ms, uint32_t period_ms,
                                     corral_loop_timer_fn fn, void *ctx, struct corral_loop_watch **out,
                                     struct corral_error *err);
enum corral_status corral_loop_signal(struct corral_loop *loop, int signo, corral_loop_signal_fn fn,
                                      void *ctx, struct corral_loop_watch **out, struct corral_error *err);
enum corral_status corral_loop_zmq(struct corral_loop *loop, void *zmq_socket, corral_loop_zmq_fn fn,
                                   void *ctx, struct corral_loop_watch **out, struct corral_error *err);
void corral_loop_zmq_kick(struct corral_loop_watch *w);
void corral_loop_remove(struct corral_loop_watch *w); /* NULL is fine; allowed inside its own callback */
/* libevent's event_base, for orchestrator/coordinator/http.c alone. */
void *corral_loop_event_base(struct corral_loop *loop);

#endif
