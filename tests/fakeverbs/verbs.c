/* Devices, memory and asynchronous events. */
#include "state.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The header turns these names into inline functions for its users. */
#undef ibv_reg_mr
#undef ibv_query_port

static struct fake_device devices[FAKE_DEVICES_MAX];
static unsigned device_count;

static void read_devices(void)
{
    const char *p = getenv("FAKEVERBS_DEVICES");
    p = p != NULL ? p : "fake0:roce,fake1:roce";
    device_count = 0;
    while (*p != '\0' && device_count < FAKE_DEVICES_MAX) {
        struct fake_device *d = &devices[device_count];
        size_t n = strcspn(p, ","), name = strcspn(p, ":,");
        memset(d, 0, sizeof(*d));
        d->number = device_count++;
        d->kind = strncmp(p + name, ":ib", 3) == 0     ? FAKE_IB
                  : strncmp(p + name, ":down", 5) == 0 ? FAKE_DOWN
                                                       : FAKE_ROCE;
        d->base.node_type = IBV_NODE_CA;
        d->base.transport_type = IBV_TRANSPORT_IB;
        snprintf(d->base.name, sizeof(d->base.name), "%.*s", (int)(name < 32 ? name : 32), p);
        snprintf(d->base.dev_name, sizeof(d->base.dev_name), "uverbs%u", d->number);
        snprintf(d->base.ibdev_path, sizeof(d->base.ibdev_path), "%s", FAKEVERBS_SYSFS);
        p += n + (p[n] == ',');
    }
}

__attribute__((constructor)) static void faults_of_environment(void)
{
    if (fake_faults_set(getenv("FAKEVERBS_FAULTS")) != 0) {
        fputs("FAKEVERBS_FAULTS is not understood\n", stderr);
        abort();
    }
}

FAKE_EXPORT int ibv_fork_init(void)
{
    return 0;
}

FAKE_EXPORT struct ibv_device **ibv_get_device_list(int *count)
{
    pthread_mutex_lock(&fake_nic.lock);
    if (device_count == 0) {
        read_devices();
    }
    pthread_mutex_unlock(&fake_nic.lock);
    struct ibv_device **list = calloc(device_count + 1, sizeof(*list));
    for (unsigned i = 0; list != NULL && i < device_count; i++) {
        list[i] = &devices[i].base;
    }
    if (count != NULL) {
        *count = list != NULL ? (int)device_count : 0;
    }
    return list;
}

FAKE_EXPORT void ibv_free_device_list(struct ibv_device **list)
{
    free(list);
}

FAKE_EXPORT const char *ibv_get_device_name(struct ibv_device *device)
{
    return device->name;
}

FAKE_EXPORT __be64 ibv_get_device_guid(struct ibv_device *device)
{
    return ((struct fake_device *)device)->number + 1;
}

int fake_pipe(int *read_end, int *write_end)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        return -1;
    }
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    *read_end = fds[0];
    *write_end = fds[1];
    return 0;
}

FAKE_EXPORT struct ibv_context *ibv_open_device(struct ibv_device *device)
{
    struct fake_context *c = calloc(1, sizeof(*c));
    if (c == NULL || fake_pipe(&c->base.async_fd, &c->async_write) != 0) {
        free(c);
        return NULL;
    }
    c->base.device = device;
    c->base.cmd_fd = -1;
    c->base.num_comp_vectors = 1;
    pthread_mutex_init(&c->base.mutex, NULL);
    c->base.ops.poll_cq = fake_poll_cq;
    c->base.ops.req_notify_cq = fake_req_notify_cq;
    c->base.ops.post_send = fake_post_send;
    c->base.ops.post_recv = fake_post_recv;
    pthread_mutex_lock(&fake_nic.lock);
    c->next = fake_nic.contexts;
    fake_nic.contexts = c;
    fake_nic.live++;
    bool started = fake_nic_start() == 0;
    pthread_mutex_unlock(&fake_nic.lock);
    if (!started) {
        abort();
    }
    return &c->base;
}

FAKE_EXPORT int ibv_close_device(struct ibv_context *context)
{
    struct fake_context *c = (struct fake_context *)context, **at = &fake_nic.contexts;
    pthread_mutex_lock(&fake_nic.lock);
    while (*at != c) {
        at = &(*at)->next;
    }
    *at = c->next;
    fake_nic.live--;
    bool last = fake_nic.contexts == NULL;
    pthread_mutex_unlock(&fake_nic.lock);
    if (last) {
        fake_stop_thread();
    }
    close(c->base.async_fd);
    close(c->async_write);
    pthread_mutex_destroy(&c->base.mutex);
    free(c);
    return 0;
}

FAKE_EXPORT int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    (void)context;
    memset(attr, 0, sizeof(*attr));
    snprintf(attr->fw_ver, sizeof(attr->fw_ver), "fake");
    attr->max_qp = 4096;
    attr->max_qp_wr = 16384;
    attr->max_cqe = 1 << 20;
    attr->max_sge = FAKE_SGE_MAX;
    attr->max_mr = 4096;
    attr->max_mr_size = UINT64_MAX;
    attr->phys_port_cnt = 1;
    return 0;
}

FAKE_EXPORT int ibv_query_port(struct ibv_context *context, uint8_t port,
                               struct _compat_ibv_port_attr *compat)
{
    const struct fake_device *d = (const struct fake_device *)context->device;
    if (port != 1) {
        return EINVAL;
    }
    struct ibv_port_attr attr = {
        .state = d->kind == FAKE_DOWN ? IBV_PORT_DOWN : IBV_PORT_ACTIVE,
        .max_mtu = IBV_MTU_4096,
        .active_mtu = d->number % 2 == 0 ? IBV_MTU_4096 : IBV_MTU_1024,
        .gid_tbl_len = 16,
        .max_msg_sz = 1u << 30,
        .pkey_tbl_len = 1,
        .lid = d->kind == FAKE_IB ? (uint16_t)(d->number + 1) : 0,
        .phys_state = 5,
        .active_width = 2,
        .active_speed = 32,
        .link_layer = d->kind == FAKE_IB ? IBV_LINK_LAYER_INFINIBAND : IBV_LINK_LAYER_ETHERNET,
    };
    /* As far as the structure went in 2011, which is what this version of the function fills. */
    memcpy((void *)compat, &attr, offsetof(struct ibv_port_attr, port_cap_flags2));
    return 0;
}

/* 0: fe80 version 1, 1: fe80 version 2, 2: 10.0.0.n version 1, 3: 10.0.0.n version 2; FAKEVERBS_SYSFS has the types. */
int fake_gid(const struct fake_device *device, int index, union ibv_gid *out)
{
    memset(out, 0, sizeof(*out));
    if (device->kind != FAKE_IB && index >= FAKE_GIDS) {
        return index < 16 ? 0 : -1; /* an empty entry */
    }
    if (index < 2) {
        out->raw[0] = 0xfe;
        out->raw[1] = 0x80;
        out->raw[15] = (uint8_t)(device->number + 1);
        return 0;
    }
    out->raw[10] = out->raw[11] = 0xff;
    out->raw[12] = 10;
    out->raw[15] = (uint8_t)(device->number + 1);
    return 0;
}

FAKE_EXPORT int ibv_query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid)
{
    return port == 1 && index >= 0 ? fake_gid((const struct fake_device *)context->device, index, gid) : -1;
}

/* ---- memory ---- */

FAKE_EXPORT struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    struct ibv_pd *pd = calloc(1, sizeof(*pd));
    if (pd != NULL) {
        pd->context = context;
        pthread_mutex_lock(&fake_nic.lock);
        fake_nic.live++;
        pthread_mutex_unlock(&fake_nic.lock);
    }
    return pd;
}

FAKE_EXPORT int ibv_dealloc_pd(struct ibv_pd *pd)
{
    bool used = false;
    pthread_mutex_lock(&fake_nic.lock);
    for (struct fake_mr *mr = fake_nic.mrs; mr != NULL; mr = mr->next) {
        used |= mr->base.pd == pd;
    }
    for (struct fake_qp *qp = fake_nic.qps; qp != NULL; qp = qp->next) {
        used |= qp->base.pd == pd;
    }
    fake_nic.live -= !used;
    pthread_mutex_unlock(&fake_nic.lock);
    if (used) {
        return EBUSY;
    }
    free(pd);
    return 0;
}

FAKE_EXPORT struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
                                            unsigned access)
{
    static uint32_t keys;
    bool remote = (access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) != 0;
    struct fake_mr *mr = calloc(1, sizeof(*mr));
    if (mr == NULL || length == 0 || iova != (uintptr_t)addr ||
        (remote && (access & IBV_ACCESS_LOCAL_WRITE) == 0)) {
        free(mr);
        errno = EINVAL;
        return NULL;
    }
    pthread_mutex_lock(&fake_nic.lock);
    uint32_t key = 0x1000 + ++keys * 0x101;
    mr->base = (struct ibv_mr){.context = pd->context,
                               .pd = pd,
                               .addr = addr,
                               .length = length,
                               .lkey = key,
                               .rkey = key ^ 0x800000};
    mr->access = access;
    mr->next = fake_nic.mrs;
    fake_nic.mrs = mr;
    fake_nic.live++;
    pthread_mutex_unlock(&fake_nic.lock);
    return &mr->base;
}

FAKE_EXPORT struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
    return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, (unsigned)access);
}

FAKE_EXPORT int ibv_dereg_mr(struct ibv_mr *base)
{
    struct fake_mr *mr = (struct fake_mr *)base, **at = &fake_nic.mrs;
    pthread_mutex_lock(&fake_nic.lock);
    while (*at != mr) {
        at = &(*at)->next;
    }
    *at = mr->next;
    fake_nic.live--;
    pthread_mutex_unlock(&fake_nic.lock);
    free(mr);
    return 0;
}

bool fake_access(const struct ibv_pd *pd, uint32_t key, bool remote, unsigned needed, uint64_t address,
                 uint64_t length)
{
    for (struct fake_mr *mr = fake_nic.mrs; mr != NULL; mr = mr->next) {
        uint64_t begin = (uintptr_t)mr->base.addr;
        if ((remote ? mr->base.rkey : mr->base.lkey) == key && mr->base.pd == pd) {
            return (mr->access & needed) == needed && address >= begin && length <= mr->base.length &&
                   address - begin <= mr->base.length - length;
        }
    }
    return false;
}

/* ---- asynchronous events ---- */

void fake_event(struct fake_context *context, enum ibv_event_type type, void *element)
{
    struct ibv_async_event event = {.event_type = type};
    if (type == IBV_EVENT_PORT_ERR) {
        event.element.port_num = *(int *)element;
    } else if (type == IBV_EVENT_CQ_ERR) {
        event.element.cq = element;
    } else if (type != IBV_EVENT_DEVICE_FATAL) {
        event.element.qp = element;
    }
    if (write(context->async_write, &event, sizeof(event)) < 0) {
        return; /* nobody has been reading for thousands of events */
    }
}

FAKE_EXPORT int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
    if (read(context->async_fd, event, sizeof(*event)) != (ssize_t)sizeof(*event)) {
        return -1;
    }
    pthread_mutex_lock(&fake_nic.lock);
    fake_nic.live++;
    pthread_mutex_unlock(&fake_nic.lock);
    return 0;
}

FAKE_EXPORT void ibv_ack_async_event(struct ibv_async_event *event)
{
    (void)event;
    pthread_mutex_lock(&fake_nic.lock);
    fake_nic.live--;
    pthread_mutex_unlock(&fake_nic.lock);
}

FAKE_EXPORT const char *ibv_wc_status_str(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_SUCCESS:
        return "success";
    case IBV_WC_LOC_PROT_ERR:
        return "local protection error";
    case IBV_WC_WR_FLUSH_ERR:
        return "Work Request Flushed Error";
    case IBV_WC_REM_ACCESS_ERR:
        return "remote access error";
    case IBV_WC_RETRY_EXC_ERR:
        return "transport retry counter exceeded";
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return "RNR retry counter exceeded";
    default:
        return "general error";
    }
}

FAKE_EXPORT const char *ibv_event_type_str(enum ibv_event_type type)
{
    switch (type) {
    case IBV_EVENT_PORT_ERR:
        return "port error";
    case IBV_EVENT_DEVICE_FATAL:
        return "local catastrophic error";
    case IBV_EVENT_CQ_ERR:
        return "CQ error";
    case IBV_EVENT_QP_ACCESS_ERR:
        return "local access violation work queue error";
    default:
        return "event";
    }
}

FAKE_EXPORT const char *ibv_port_state_str(enum ibv_port_state state)
{
    return state == IBV_PORT_ACTIVE ? "PORT_ACTIVE" : "PORT_DOWN";
}
