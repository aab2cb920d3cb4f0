/* libibverbs, opened at run time, so that one binary runs on machines with and without it. The headers are needed to build (libibverbs-dev); without them the lane is absent.c.
 *
 * Only the functions that libibverbs exports are in the table. Posting and polling are inline functions of <infiniband/verbs.h> that go through context->ops; they need no symbol.
 */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_VERBS_LOADER_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_RDMA_VERBS_LOADER_H

#include "base/error.h"
#include <infiniband/verbs.h>

/* X(result, name, symbol version, parameters). With the version, because the library also has functions of the same names with the structures of 2006 (IBVERBS_1.0). */
#define CORRAL_VERBS_FUNCTIONS(X)                                                                          \
    X(int, fork_init, "IBVERBS_1.1", (void))                                                               \
    X(struct ibv_device **, get_device_list, "IBVERBS_1.1", (int *count))                                  \
    X(void, free_device_list, "IBVERBS_1.1", (struct ibv_device * *list))                                  \
    X(struct ibv_context *, open_device, "IBVERBS_1.1", (struct ibv_device * device))                      \
    X(int, close_device, "IBVERBS_1.1", (struct ibv_context * context))                                    \
    X(int, query_device, "IBVERBS_1.1", (struct ibv_context * context, struct ibv_device_attr * attr))     \
    X(int, query_port, "IBVERBS_1.1",                                                                      \
      (struct ibv_context * context, uint8_t port, struct _compat_ibv_port_attr * attr))                   \
    X(int, query_gid, "IBVERBS_1.1",                                                                       \
      (struct ibv_context * context, uint8_t port, int index, union ibv_gid *gid))                         \
    X(struct ibv_pd *, alloc_pd, "IBVERBS_1.1", (struct ibv_context * context))                            \
    X(int, dealloc_pd, "IBVERBS_1.1", (struct ibv_pd * pd))                                                \
    X(struct ibv_mr *, reg_mr, "IBVERBS_1.1", (struct ibv_pd * pd, void *addr, size_t length, int access)) \
    X(int, dereg_mr, "IBVERBS_1.1", (struct ibv_mr * mr))                                                  \
    X(struct ibv_comp_channel *, create_comp_channel, "IBVERBS_1.0", (struct ibv_context * context))       \
    X(int, destroy_comp_channel, "IBVERBS_1.0", (struct ibv_comp_channel * channel))                       \
    X(struct ibv_cq *, create_cq, "IBVERBS_1.1",                                                           \
      (struct ibv_context * context, int cqe, void *cq_context, struct ibv_comp_channel *channel,          \
       int comp_vector))                                                                                   \
    X(int, destroy_cq, "IBVERBS_1.1", (struct ibv_cq * cq))                                                \
    X(int, get_cq_event, "IBVERBS_1.1",                                                                    \
      (struct ibv_comp_channel * channel, struct ibv_cq * *cq, void **cq_context))                         \
    X(void, ack_cq_events, "IBVERBS_1.1", (struct ibv_cq * cq, unsigned int count))                        \
    X(struct ibv_qp *, create_qp, "IBVERBS_1.1", (struct ibv_pd * pd, struct ibv_qp_init_attr * attr))     \
    X(int, modify_qp, "IBVERBS_1.1", (struct ibv_qp * qp, struct ibv_qp_attr * attr, int mask))            \
    X(int, destroy_qp, "IBVERBS_1.1", (struct ibv_qp * qp))                                                \
    X(int, get_async_event, "IBVERBS_1.1", (struct ibv_context * context, struct ibv_async_event * event)) \
    X(void, ack_async_event, "IBVERBS_1.1", (struct ibv_async_event * event))                              \
    X(const char *, wc_status_str, "IBVERBS_1.1", (enum ibv_wc_status status))                             \
    X(const char *, event_type_str, "IBVERBS_1.1", (enum ibv_event_type type))                             \
    X(const char *, port_state_str, "IBVERBS_1.1", (enum ibv_port_state state))

struct corral_verbs {
#define CORRAL_VERBS_FIELD(result, name, version, parameters) result(*name) parameters;
    CORRAL_VERBS_FUNCTIONS(CORRAL_VERBS_FIELD)
#undef CORRAL_VERBS_FIELD
    /* With access flags that a kernel may not know, such as relaxed ordering. NULL: rdma-core before 28. */
    struct ibv_mr *(*reg_mr_iova2)(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
                                   unsigned int access);
};

/* The table, loaded by the first call and kept for the life of the process. CORRAL_UNSUPPORTED with the reason; asked again, the same answer. Any thread. */
enum corral_status corral_verbs_load(const struct corral_verbs **out, struct corral_error *err);

#endif
