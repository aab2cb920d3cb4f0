/* The carrier over ZeroMQ: one ROUTER. */
#include "transport/trajectory/receiver_private.h"
#include <unistd.h>

bool corral_traj_receiver_zmq_receive(struct corral_traj_receiver *r, struct corral_traj_incoming *in,
                                      bool *named)
{
    zmq_msg_t id;
    zmq_msg_init(&id);
    zmq_msg_init(&in->frame);
    in->frames = 0;
    bool any = zmq_msg_recv(&id, r->socket, ZMQ_DONTWAIT) >= 0;
    bool more = any && zmq_msg_more(&id) != 0;
    while (more) { /* frames after the first are read and thrown away */
        zmq_msg_t extra, *part = in->frames == 0 ? &in->frame : &extra;
        zmq_msg_init(&extra);
        bool got = zmq_msg_recv(part, r->socket, ZMQ_DONTWAIT) >= 0;
        more = got && zmq_msg_more(part) != 0;
        in->frames += got;
        zmq_msg_close(&extra);
    }
    *named = any && corral_zmq_route_parse(zmq_msg_data(&id), zmq_msg_size(&id), &in->route);
    zmq_msg_close(&id);
    return any;
}

enum corral_status corral_traj_receiver_tell(struct corral_traj_receiver *r, uint32_t route,
                                             const struct corral_traj_message *m, struct corral_error *err)
{
    const void *data;
    size_t bytes;
    corral_traj_encode(r->writer, m);
    CORRAL_TRY(corral_mpack_finish(r->writer, &data, &bytes, err));
    return corral_zmq_route_send(r->socket, route, data, bytes, err);
}

void corral_traj_receiver_zmq_wait(struct corral_traj_receiver *r, uint64_t timeout_ms)
{
    zmq_pollitem_t items[3] = {{.socket = r->socket, .events = ZMQ_POLLIN}};
    int count = 1;
    if (r->replaying) {
        count = 0; /* nobody is heard yet */
    } else if (r->door != NULL) {
        items[count++] = (zmq_pollitem_t){.fd = r->epoll, .events = ZMQ_POLLIN};
    }
    if (r->log != NULL && r->log->bell >= 0) {
        items[count++] = (zmq_pollitem_t){.fd = r->log->bell, .events = ZMQ_POLLIN};
    }
    zmq_poll(items, count, (long)timeout_ms);
    if (r->log != NULL && r->log->bell >= 0 && (items[count - 1].revents & ZMQ_POLLIN) != 0) {
        uint64_t rung;
        (void)!read(r->log->bell, &rung, sizeof rung);
    }
}
