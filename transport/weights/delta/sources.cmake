list(APPEND CORRAL_WEIGHTS_SOURCES
  weights/delta/encode.c weights/delta/apply.c weights/delta/kernels.c weights/delta/kernels_x86.c weights/delta/chain.c)
