list(APPEND CORRAL_WEIGHTS_SOURCES
  weights/lanes/cuda_ipc/cuda_ipc.c weights/lanes/cuda_ipc/ipc.c weights/lanes/cuda_ipc/receive.c)
