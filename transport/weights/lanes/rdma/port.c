#include "transport/weights/lanes/rdma/port.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What was looked at and not taken, for the error. */
struct survey {
    char text[200];
    size_t at;
};

static void survey_add(struct survey *s, const char *name, const char *why)
{
    int n = snprintf(s->text + s->at, sizeof(s->text) - s->at, "%s%s %s", s->at > 0 ? ", " : "", name, why);
    if (n > 0) {
        s->at = CORRAL_MIN(s->at + (size_t)n, sizeof(s->text) - 1);
    }
}

bool corral_rdma_gid_of_host(const char *host, uint8_t out[16])
{
    struct in_addr v4;
    if (inet_pton(AF_INET, host, &v4) == 1) {
        memset(out, 0, 10);
        memset(out + 10, 0xff, 2);
        memcpy(out + 12, &v4, 4);
        return true;
    }
    return inet_pton(AF_INET6, host, out) == 1;
}

static bool is_v4(const uint8_t gid[16])
{
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid, prefix, sizeof(prefix)) == 0;
}

uint32_t corral_rdma_gid_score(const struct corral_rdma_gid *gid, const uint8_t wanted[16])
{
    static const uint8_t none[16];
    if (gid->type == CORRAL_RDMA_GID_NONE || memcmp(gid->raw, none, 16) == 0) {
        return 0;
    }
    uint32_t common = 0;
    while (common < 128 && ((gid->raw[common / 8] ^ wanted[common / 8]) >> (7 - common % 8) & 1) == 0) {
        common++;
    }
    bool link_local = gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80;
    bool wanted_link_local = wanted[0] == 0xfe && (wanted[1] & 0xc0) == 0x80;
    return 1 + common + (link_local == wanted_link_local ? 256u : 0u) +
           (is_v4(gid->raw) == is_v4(wanted) ? 512u : 0u) + 1024u * (uint32_t)gid->type;
}

/* "RoCE v2", "IB/RoCE v1"; an index without an address cannot be read. */
static enum corral_rdma_gid_type gid_type(const struct corral_rdma_port *port, int index)
{
    char path[IBV_SYSFS_PATH_MAX + 64], text[32] = "";
    snprintf(path, sizeof(path), "%s/ports/%u/gid_attrs/types/%d", port->folder, port->number, index);
    CORRAL_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0) {
        return CORRAL_RDMA_GID_NONE;
    }
    return strncmp(text, "RoCE v2", 7) == 0 ? CORRAL_RDMA_GID_ROCE2 : CORRAL_RDMA_GID_IB;
}

enum corral_status corral_rdma_port_choose_gid(const struct corral_verbs *verbs,
                                               struct corral_rdma_port *port, const uint8_t wanted[16],
                                               struct corral_error *err)
{
    struct corral_rdma_gid best = {.type = CORRAL_RDMA_GID_NONE};
    uint32_t best_score = 0;
    for (int i = 0; i < CORRAL_MIN(port->gids, CORRAL_RDMA_GIDS_MAX); i++) {
        union ibv_gid raw;
        struct corral_rdma_gid gid = {.type = gid_type(port, i), .index = i};
        if (gid.type == CORRAL_RDMA_GID_NONE || verbs->query_gid(port->context, port->number, i, &raw) != 0) {
            continue;
        }
        memcpy(gid.raw, raw.raw, 16);
        uint32_t score = corral_rdma_gid_score(&gid, wanted);
        if (score > best_score) {
            best_score = score;
            best = gid;
        }
    }
    if (best_score == 0) {
        return corral_fail(
            err, CORRAL_UNSUPPORTED,
            "rdma %s has no GID: its network interface has no address (or %s/ports is not there)", port->name,
            port->folder);
    }
    port->gid = best;
    return CORRAL_OK;
}

uint32_t corral_rdma_pci_distance(const char *a, const char *b)
{
    size_t same = 0; /* length of the common path */
    for (size_t i = 0;; i++) {
        bool end_a = a[i] == '\0' || a[i] == '/', end_b = b[i] == '\0' || b[i] == '/';
        if (end_a && end_b) {
            same = i;
        }
        if (a[i] != b[i] || a[i] == '\0') {
            break;
        }
    }
    uint32_t steps = 0;
    for (const char *p = a + same; *p != '\0'; p++) {
        steps += *p == '/';
    }
    for (const char *p = b + same; *p != '\0'; p++) {
        steps += *p == '/';
    }
    return steps;
}

/* CUDA writes "00000000:3B:00.0", the kernel 0000:3b:00.0. */
static bool gpu_path(const char *near, char out[PATH_MAX])
{
    const char *colon = strchr(near, ':');
    if (colon == NULL || strchr(colon + 1, ':') == NULL || strlen(near) > 31 || strchr(near, '/') != NULL) {
        return false;
    }
    while (colon - near > 4 && *near == '0') {
        near++;
    }
    char path[64] = "/sys/bus/pci/devices/";
    size_t at = strlen(path);
    for (; *near != '\0'; near++) {
        path[at++] = (char)tolower((unsigned char)*near);
    }
    path[at] = '\0';
    return realpath(path, out) != NULL;
}

static void keep_near(const struct corral_verbs *verbs, const char *near, struct corral_rdma_port *port,
                      uint32_t *count)
{
    char gpu[PATH_MAX], path[IBV_SYSFS_PATH_MAX + 16], real[PATH_MAX];
    uint32_t distance[CORRAL_RDMA_RAILS_MAX], least = UINT32_MAX, kept = 0;
    if (near == NULL || !gpu_path(near, gpu)) {
        return; /* a GPU whose place nobody knows is equally far from all */
    }
    for (uint32_t i = 0; i < *count; i++) {
        snprintf(path, sizeof(path), "%s/device", port[i].folder);
        distance[i] = realpath(path, real) != NULL ? corral_rdma_pci_distance(real, gpu) : UINT32_MAX;
        least = CORRAL_MIN(least, distance[i]);
    }
    for (uint32_t i = 0; i < *count; i++) {
        if (distance[i] == least) {
            port[kept++] = port[i];
        } else {
            corral_rdma_port_close(verbs, &port[i]);
        }
    }
    *count = kept;
}

void corral_rdma_port_close(const struct corral_verbs *verbs, struct corral_rdma_port *port)
{
    if (port->context != NULL) {
        verbs->close_device(port->context);
        port->context = NULL;
    }
}

/* Is "mlx5_0:1" in the user's list "mlx5_0:1,mlx5_1"? An entry without a port means all of them. */
static bool listed(const char *list, const char *device, const char *name)
{
    for (const char *p = list; p != NULL && *p != '\0';) {
        size_t n = strcspn(p, ",");
        if ((strlen(name) == n && strncmp(p, name, n) == 0) ||
            (strlen(device) == n && strncmp(p, device, n) == 0)) {
            return true;
        }
        p += n + (p[n] == ',');
    }
    return false;
}

/* The first entry of the user's list that no port was found for. */
static const char *first_missing(const char *list, const struct corral_rdma_port *port, uint32_t count)
{
    for (const char *p = list; *p != '\0';) {
        size_t n = strcspn(p, ",");
        bool found = false;
        for (uint32_t i = 0; i < count && !found; i++) {
            size_t device = strcspn(port[i].name, ":");
            found = strncmp(port[i].name, p, n) == 0 && (n == device || n == strlen(port[i].name));
        }
        if (!found) {
            return p;
        }
        p += n + (p[n] == ',');
    }
    return NULL;
}

/* *context is taken over when the port is good. */
static bool port_describe(const struct corral_verbs *verbs, struct ibv_device *device,
                          struct ibv_context *context, const struct ibv_device_attr *attr,
                          struct corral_rdma_port *p, struct survey *survey)
{
    /* query_port of this version fills the beginning of the structure that the header declares. */
    struct ibv_port_attr port;
    memset(&port, 0, sizeof(port));
    void *compat = &port;
    if (verbs->query_port(context, p->number, compat) != 0) {
        survey_add(survey, p->name, "does not answer");
        return false;
    }
    if (port.state != IBV_PORT_ACTIVE) {
        survey_add(survey, p->name, verbs->port_state_str(port.state));
        return false;
    }
    p->context = context;
    p->ethernet = port.link_layer == IBV_LINK_LAYER_ETHERNET;
    p->mtu = (uint8_t)port.active_mtu;
    p->lid = port.lid;
    p->gids = port.gid_tbl_len;
    p->queue_depth_max = attr->max_qp_wr;
    p->completions_max = attr->max_cqe;
    snprintf(p->folder, sizeof(p->folder), "%s", device->ibdev_path);
    if (!p->ethernet && p->lid == 0) {
        survey_add(survey, p->name, "has no LID: no subnet manager");
        return false;
    }
    return true;
}

static void device_ports(const struct corral_verbs *verbs, struct ibv_device *device, const char *list,
                         struct corral_rdma_port *port, uint32_t *count, struct survey *survey)
{
    struct ibv_device_attr attr;
    uint8_t ports = 1;
    for (uint8_t n = 1; n <= ports && *count < CORRAL_RDMA_RAILS_MAX; n++) {
        struct corral_rdma_port p = {.number = n};
        snprintf(p.name, sizeof(p.name), "%.*s:%u", IBV_SYSFS_NAME_MAX - 1, device->name, n);
        if (list != NULL && n == 1 && strstr(list, device->name) == NULL) {
            return; /* not opened at all */
        }
        struct ibv_context *context = verbs->open_device(device);
        if (context == NULL) {
            survey_add(survey, p.name, "cannot be opened");
            return;
        }
        if (verbs->query_device(context, &attr) != 0) {
            verbs->close_device(context);
            survey_add(survey, p.name, "does not answer");
            return;
        }
        ports = attr.phys_port_cnt;
        if ((list != NULL && !listed(list, device->name, p.name)) ||
            !port_describe(verbs, device, context, &attr, &p, survey)) {
            verbs->close_device(context);
            continue;
        }
        port[(*count)++] = p;
    }
}

static enum corral_status ports_find(const struct corral_verbs *verbs,
                                     const struct corral_lane_options *options, struct corral_rdma_port *port,
                                     uint32_t *count, struct corral_error *err)
{
    struct survey survey = {.at = 0};
    int devices = 0;
    struct ibv_device **list = verbs->get_device_list(&devices);
    if (list == NULL || devices == 0) {
        if (list != NULL) {
            verbs->free_device_list(list);
        }
        return corral_fail(
            err, CORRAL_UNSUPPORTED,
            "no RDMA device: no adapter, or its driver (ib_uverbs, mlx5_ib, rdma_rxe) is not loaded");
    }
    *count = 0;
    for (int i = 0; i < devices; i++) {
        device_ports(verbs, list[i], options->device, port, count, &survey);
    }
    verbs->free_device_list(list);
    const char *missing = options->device != NULL ? first_missing(options->device, port, *count) : NULL;
    if (*count > 0 && missing == NULL) {
        return CORRAL_OK;
    }
    for (uint32_t i = 0; i < *count; i++) {
        corral_rdma_port_close(verbs, &port[i]);
    }
    *count = 0;
    if (missing != NULL) {
        return corral_fail(err, CORRAL_INVALID, "there is no active RDMA port \"%.*s\"%s%s",
                           (int)CORRAL_MIN(strcspn(missing, ","), 80u), missing, survey.at > 0 ? ": " : "",
                           survey.text);
    }
    return corral_fail(err, CORRAL_UNSUPPORTED, "no RDMA port is active: %s", survey.text);
}

enum corral_status corral_rdma_ports_open(const struct corral_verbs *verbs,
                                          const struct corral_lane_options *options,
                                          struct corral_rdma_port port[CORRAL_RDMA_RAILS_MAX],
                                          uint32_t *count, struct corral_error *err)
{
    const char *host = options->local_host != NULL ? options->local_host : "127.0.0.1";
    uint8_t wanted[16];
    if (!corral_rdma_gid_of_host(host, wanted)) {
        return corral_fail(err, CORRAL_INVALID, "rdma: \"%s\" is no numeric address", host);
    }
    uint32_t found = 0, good = 0;
    CORRAL_TRY(ports_find(verbs, options, port, &found, err));
    if (options->device == NULL) {
        keep_near(verbs, options->near, port, &found);
    }
    struct corral_error last = {.status = CORRAL_OK};
    for (uint32_t i = 0; i < found; i++) {
        if (port[i].ethernet && corral_rdma_port_choose_gid(verbs, &port[i], wanted, &last) != CORRAL_OK) {
            corral_rdma_port_close(verbs, &port[i]);
            continue;
        }
        struct corral_rdma_port p = port[i];
        port[i].context = NULL;
        port[good++] = p;
    }
    if (good == 0) {
        return corral_fail(err, last.status, "%s", last.text);
    }
    *count = good;
    return CORRAL_OK;
}
