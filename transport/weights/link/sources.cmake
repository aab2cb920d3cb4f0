list(APPEND CORRAL_WEIGHTS_SOURCES weights/link/link.c weights/link/bytes.c weights/link/stream.c weights/link/shard.c weights/link/shard_cuda.c weights/link/cuda_copy.c)
