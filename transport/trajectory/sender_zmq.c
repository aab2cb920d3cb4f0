/* The carrier over ZeroMQ: one DEALER per rank. One frame per message: ZeroMQ 4.3 aborts the process when a socket is closed just as its connection breaks inside a message of several
 * frames (session_base_t::clean_pipes; see its issue 3442). */
#include "transport/trajectory/sender_private.h"
#include <errno.h>
#include <string.h>

static bool zmq_carrier_send(struct corral_traj_rank *r, const void *data, size_t bytes)
{
    return zmq_send(r->socket, data, bytes, ZMQ_DONTWAIT) >= 0;
}

/* In ZeroMQ's thread. */
static void on_frame_gone(void *data, void *hint)
{
    struct corral_traj_block *block = hint;
    struct corral_traj_parcel *p = (struct corral_traj_parcel *)data - 1; /* the header is behind it */
    /* acquire pairs with the release of the reference that was taken for this frame: what the owner wrote before comes first */
    (void)atomic_load_explicit(&block->references, memory_order_acquire);
    atomic_fetch_sub_explicit(&p->lent, 1, memory_order_release);
    corral_traj_block_unref(block);
}

static bool zmq_carrier_send_parcel(struct corral_traj_rank *r, struct corral_traj_parcel *p)
{
    zmq_msg_t frame;
    atomic_fetch_add_explicit(&p->lent, 1, memory_order_relaxed); /* ordered by taking the reference */
    corral_traj_block_ref(p->block);
    if (zmq_msg_init_data(&frame, corral_traj_parcel_header(p), sizeof(struct corral_traj_batch) + p->bytes,
                          on_frame_gone, p->block) != 0) {
        on_frame_gone(corral_traj_parcel_header(p), p->block);
        return false;
    }
    if (zmq_msg_send(&frame, r->socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&frame);
        return false;
    }
    return true;
}

static bool zmq_carrier_receive(struct corral_traj_rank *r, void *buffer, size_t room, size_t *bytes)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    int rc;
    do {
        rc = zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT);
    } while (rc < 0 && zmq_errno() == EINTR);
    bool any = rc >= 0, single = any && zmq_msg_more(&part) == 0;
    while (rc >= 0 && zmq_msg_more(&part) != 0) {
        rc = zmq_msg_recv(&part, r->socket, ZMQ_DONTWAIT);
    }
    if (any) {
        *bytes = single && zmq_msg_size(&part) <= room ? zmq_msg_size(&part) : 0;
        memcpy(buffer, zmq_msg_data(&part), *bytes);
    }
    zmq_msg_close(&part);
    return any;
}

static void zmq_carrier_close(struct corral_traj_rank *r)
{
    corral_zmq_close(r->socket);
    r->socket = NULL;
}

const struct corral_traj_carrier corral_traj_carrier_zmq = {
    .send = zmq_carrier_send,
    .send_parcel = zmq_carrier_send_parcel,
    .receive = zmq_carrier_receive,
    .close = zmq_carrier_close,
};

static void close_socketp(void **socket)
{
    corral_zmq_close(*socket);
}

enum corral_status corral_traj_zmq_connect(struct corral_traj_sender *s, struct corral_traj_rank *r,
                                           const char *endpoint, struct corral_error *err)
{
    CORRAL_CLEANUP(close_socketp) void *socket = NULL;
    int yes = 1;
    CORRAL_TRY(corral_zmq_open(s->context, ZMQ_DEALER, CORRAL_TRAJ_CONTROL_BYTES_MAX, &socket, err));
    /* IMMEDIATE: nothing is queued for a connection that does not exist, so what a connection carries belongs to its own session. */
    if (zmq_setsockopt(socket, ZMQ_IMMEDIATE, &yes, sizeof yes) != 0) {
        return corral_fail_sys(err, zmq_errno(), "set ZMQ_IMMEDIATE");
    }
    CORRAL_TRY(corral_zmq_connect(socket, endpoint, s->server_key[0] != '\0' ? s->server_key : NULL, err));
    if (r->carrier != NULL) {
        r->carrier->close(r);
    }
    r->carrier = &corral_traj_carrier_zmq;
    r->socket = CORRAL_STEAL(socket);
    return CORRAL_OK;
}
