/* libnccl.so.2, opened at run time, and the little of it that the lane uses. Internal to the nccl lane. */
#ifndef CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_LIBRARY_H
#define CORRAL_TRANSPORT_WEIGHTS_LANES_NCCL_LIBRARY_H

#include "base/cuda_driver.h"

#define NCCL_ID_BYTES 128
#define NCCL_TYPE_INT8 0

typedef struct ncclComm *nccl_comm;
enum nccl_result { NCCL_SUCCESS = 0, NCCL_SYSTEM_ERROR = 2, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };

struct nccl_id {
    char internal[NCCL_ID_BYTES];
};
/* ncclConfig_t as NCCL 2.14 knew it, which later ones read as such by its version; the last field, unset here, fills its tail. */
struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, unset;
};
#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_CONFIG_VERSION 21400u
#define NCCL_UNSET INT32_MIN

struct nccl {
    int (*ncclGetVersion)(int *version);
    int (*ncclGetUniqueId)(struct nccl_id *id);
    int (*ncclCommInitRankConfig)(nccl_comm *comm, int ranks, struct nccl_id id, int rank,
                                  struct nccl_config *config);
    int (*ncclCommGetAsyncError)(nccl_comm comm, int *result);
    int (*ncclCommAbort)(nccl_comm comm);
    int (*ncclGroupStart)(void);
    int (*ncclGroupEnd)(void);
    int (*ncclSend)(const void *memory, size_t count, int type, int peer, nccl_comm comm,
                    corral_cuda_stream stream);
    int (*ncclRecv)(void *memory, size_t count, int type, int peer, nccl_comm comm,
                    corral_cuda_stream stream);
    const char *(*ncclGetErrorString)(int result);
    const char *(*ncclGetLastError)(nccl_comm comm);
};

/* Once per process. CORRAL_UNSUPPORTED with the reason: no library, or older than 2.14. Calls no function that may block. */
enum corral_status nccl_open(const struct nccl **out, struct corral_error *err);
/* comm may be NULL. CORRAL_PEER for what the other end or the network caused, CORRAL_IO otherwise. */
enum corral_status nccl_fail(const struct nccl *nccl, int result, nccl_comm comm, struct corral_error *err,
                             const char *what);

#endif
