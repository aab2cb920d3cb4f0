/* Which ports of which RDMA adapters a lane uses, and under which address each is reached.
 *
 * Without a choice of the user's: every active port; when `near` names a GPU, of them those with the shortest way over PCI.
 * RoCE: a port has several GIDs, one per address and protocol. Version 2 (routable, UDP) is preferred over version 1, then what shares the longest prefix with the wanted address. Never just index 0.
 * InfiniBand: by LID.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_PORT_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_PORT_H

#include "transport/weights/lanes/lane.h"
#include "transport/weights/lanes/rdma/verbs_loader.h"

#define CORRAL_RDMA_RAILS_MAX 8 /* ports of one lane */
#define CORRAL_RDMA_GIDS_MAX 1024
#define CORRAL_RDMA_NAME_MAX (IBV_SYSFS_NAME_MAX + 8)

enum corral_rdma_gid_type { CORRAL_RDMA_GID_NONE, CORRAL_RDMA_GID_IB, CORRAL_RDMA_GID_ROCE2 }; /* by worth */

struct corral_rdma_gid {
    enum corral_rdma_gid_type type;
    int index;
    uint8_t raw[16];
};

struct corral_rdma_port {
    struct ibv_context *context;     /* of this port alone: closed with it */
    char name[CORRAL_RDMA_NAME_MAX]; /* "mlx5_0:1" */
    char folder[IBV_SYSFS_PATH_MAX]; /* the adapter's in sysfs */
    uint8_t number;
    bool ethernet; /* RoCE: reached by GID */
    uint8_t mtu;   /* enum ibv_mtu */
    uint16_t lid;
    int gids;
    struct corral_rdma_gid gid;
    int queue_depth_max, completions_max;
};

/* Opens up to CORRAL_RDMA_RAILS_MAX ports. CORRAL_UNSUPPORTED: there is none, with what was found instead. CORRAL_INVALID: `options->device` has something that is not there. */
enum corral_status corral_rdma_ports_open(const struct corral_verbs *verbs,
                                          const struct corral_lane_options *options,
                                          struct corral_rdma_port port[CORRAL_RDMA_RAILS_MAX],
                                          uint32_t *count, struct corral_error *err);
void corral_rdma_port_close(const struct corral_verbs *verbs, struct corral_rdma_port *port);

/* `wanted`: an address as a GID (IPv4 is ::ffff:a.b.c.d). Sets port->gid; CORRAL_UNSUPPORTED when the port has none. */
enum corral_status corral_rdma_port_choose_gid(const struct corral_verbs *verbs,
                                               struct corral_rdma_port *port, const uint8_t wanted[16],
                                               struct corral_error *err);
/* Higher is better; 0: not to be used. */
uint32_t corral_rdma_gid_score(const struct corral_rdma_gid *gid, const uint8_t wanted[16]);
/* A numeric address as a GID. */
bool corral_rdma_gid_of_host(const char *host, uint8_t out[16]);
/* Steps between two devices in the PCI tree, by their real paths in sysfs. */
uint32_t corral_rdma_pci_distance(const char *a, const char *b);

#endif
