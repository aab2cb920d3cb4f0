set(CORRAL_WEIGHTS_SOURCES
  weights/manifest.c weights/owner.c weights/store.c weights/store_read.c weights/wire.c weights/publisher.c weights/form.c weights/node_receiver.c
  weights/reshard/layout.c weights/reshard/plan.c weights/reshard/copy.c weights/reshard/overlap.c)
set(CORRAL_WEIGHTS_PARTS layouts link delta cast encode lanes lanes/shm lanes/tcp lanes/rdma lanes/nccl lanes/cuda_ipc push api)
foreach(weights_part ${CORRAL_WEIGHTS_PARTS})
  include(${CMAKE_CURRENT_SOURCE_DIR}/weights/${weights_part}/sources.cmake OPTIONAL)
endforeach()
