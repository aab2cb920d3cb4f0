list(APPEND CORRAL_WEIGHTS_SOURCES
  weights/lanes/nccl/device.c weights/lanes/nccl/end.c weights/lanes/nccl/library.c weights/lanes/nccl/nccl.c
  weights/lanes/nccl/receive.c weights/lanes/nccl/side.c weights/lanes/nccl/worker.c)
