/* Completion queues and their channels. */
#include "state.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

FAKE_EXPORT struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct fake_channel *c = calloc(1, sizeof(*c));
    if (c == NULL || fake_pipe(&c->base.fd, &c->write) != 0) {
        free(c);
        return NULL;
    }
    c->base.context = context;
    pthread_mutex_lock(&fake_nic.lock);
    fake_nic.live++;
    pthread_mutex_unlock(&fake_nic.lock);
    return &c->base;
}

FAKE_EXPORT int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    struct fake_channel *c = (struct fake_channel *)channel;
    pthread_mutex_lock(&fake_nic.lock);
    bool used = channel->refcnt > 0;
    fake_nic.live -= !used;
    pthread_mutex_unlock(&fake_nic.lock);
    if (used) {
        return EBUSY;
    }
    close(c->base.fd);
    close(c->write);
    free(c);
    return 0;
}

FAKE_EXPORT struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
                                         struct ibv_comp_channel *channel, int comp_vector)
{
    struct fake_cq *cq = calloc(1, sizeof(*cq));
    if (cq == NULL || cqe < 1 || comp_vector != 0 ||
        (cq->ring = calloc((size_t)cqe, sizeof(*cq->ring))) == NULL) {
        free(cq);
        errno = EINVAL;
        return NULL;
    }
    cq->base.context = context;
    cq->base.channel = channel;
    cq->base.cq_context = cq_context;
    cq->base.cqe = cqe;
    pthread_mutex_init(&cq->base.mutex, NULL);
    pthread_cond_init(&cq->base.cond, NULL);
    pthread_mutex_lock(&fake_nic.lock);
    if (channel != NULL) {
        channel->refcnt++;
    }
    cq->next = fake_nic.cqs;
    fake_nic.cqs = cq;
    fake_nic.live++;
    pthread_mutex_unlock(&fake_nic.lock);
    return &cq->base;
}

FAKE_EXPORT int ibv_destroy_cq(struct ibv_cq *base)
{
    struct fake_cq *cq = (struct fake_cq *)base, **at = &fake_nic.cqs;
    bool used = false;
    pthread_mutex_lock(&fake_nic.lock);
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        used |= qp->base.send_cq == base || qp->base.recv_cq == base;
    }
    /* The real one waits for the acknowledgements, for ever; a test is better served by an object that stays alive. */
    used |= cq->unacknowledged > 0;
    if (used) {
        pthread_mutex_unlock(&fake_nic.lock);
        return EBUSY;
    }
    while (*at != cq) {
        at = &(*at)->next;
    }
    *at = cq->next;
    fake_nic.live--;
    if (base->channel != NULL) {
        base->channel->refcnt--;
    }
    pthread_mutex_unlock(&fake_nic.lock);
    pthread_mutex_destroy(&cq->base.mutex);
    pthread_cond_destroy(&cq->base.cond);
    free(cq->ring);
    free(cq);
    return 0;
}

static void notify(struct fake_cq *cq)
{
    if (cq->armed && cq->base.channel != NULL) {
        struct ibv_cq *value = &cq->base;
        cq->armed = false;
        if (write(((struct fake_channel *)cq->base.channel)->write, &value, sizeof(value)) < 0) {
            abort(); /* one event per arming fits */
        }
    }
}

uint64_t fake_cq_advance(struct fake_cq *cq, uint64_t now_ns)
{
    while (cq->visible < cq->tail) {
        uint64_t at = cq->ring[cq->visible % (uint64_t)cq->base.cqe].at_ns;
        if (at > now_ns) {
            return at;
        }
        cq->visible++;
        notify(cq);
    }
    return 0;
}

static struct fake_qp *find_qp(uint32_t number)
{
    struct fake_qp *qp = fake_nic.qps;
    while (qp != NULL && qp->base.qp_num != number) {
        qp = qp->next;
    }
    return qp;
}

void fake_cq_add(struct ibv_cq *base, const struct ibv_wc *wc)
{
    struct fake_cq *cq = (struct fake_cq *)base;
    struct fake_faults *f = &fake_nic.faults;
    if (cq->tail - cq->head == (uint64_t)base->cqe) {
        fake_event((struct fake_context *)base->context, IBV_EVENT_CQ_ERR, base);
        return;
    }
    uint64_t now = fake_now_ns();
    struct fake_cqe *e = &cq->ring[cq->tail++ % (uint64_t)base->cqe];
    *e = (struct fake_cqe){*wc, now + f->delay_us * 1000};
    bool strikes = wc->status == IBV_WC_SUCCESS && ++f->completions == f->cqe_error;
    if (strikes) {
        e->wc.status = IBV_WC_GENERAL_ERR;
        e->wc.vendor_err = 0x7f;
    }
    fake_cq_advance(cq, now);
    struct fake_qp *qp = strikes ? find_qp(wc->qp_num) : NULL;
    if (qp != NULL) {
        fake_qp_fail(qp);
    }
}

int fake_poll_cq(struct ibv_cq *base, int count, struct ibv_wc *wc)
{
    struct fake_cq *cq = (struct fake_cq *)base;
    int n = 0;
    pthread_mutex_lock(&fake_nic.lock);
    while (n < count && cq->head < cq->visible) {
        wc[n++] = cq->ring[cq->head++ % (uint64_t)base->cqe].wc;
    }
    pthread_mutex_unlock(&fake_nic.lock);
    return n;
}

/* Only for completions from now on: those that are there already make no event. */
int fake_req_notify_cq(struct ibv_cq *base, int solicited_only)
{
    (void)solicited_only;
    pthread_mutex_lock(&fake_nic.lock);
    ((struct fake_cq *)base)->armed = true;
    pthread_mutex_unlock(&fake_nic.lock);
    return 0;
}

FAKE_EXPORT int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
    struct ibv_cq *value;
    if (read(channel->fd, &value, sizeof(value)) != (ssize_t)sizeof(value)) {
        return -1;
    }
    pthread_mutex_lock(&fake_nic.lock);
    ((struct fake_cq *)value)->unacknowledged++;
    pthread_mutex_unlock(&fake_nic.lock);
    *cq = value;
    *cq_context = value->cq_context;
    return 0;
}

FAKE_EXPORT void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int count)
{
    pthread_mutex_lock(&fake_nic.lock);
    ((struct fake_cq *)cq)->unacknowledged -= count;
    pthread_mutex_unlock(&fake_nic.lock);
}
