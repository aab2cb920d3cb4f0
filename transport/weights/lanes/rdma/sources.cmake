# Only headers are needed to build; libibverbs is opened at run time. Without them the lane is there and says that it cannot be used.
find_path(VERBS_INCLUDE infiniband/verbs.h)
if(VERBS_INCLUDE)
  list(APPEND CORRAL_WEIGHTS_SOURCES weights/lanes/rdma/verbs_loader.c weights/lanes/rdma/port.c weights/lanes/rdma/blob.c
    weights/lanes/rdma/rail.c weights/lanes/rdma/rdma.c weights/lanes/rdma/rx.c weights/lanes/rdma/tx.c)
else()
  list(APPEND CORRAL_WEIGHTS_SOURCES weights/lanes/rdma/absent.c)
endif()
