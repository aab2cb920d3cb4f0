set(CORRAL_WEIGHTS_SOURCES
  weights/manifest.c weights/owner.c weights/store.c weights/wire.c weights/lane_shm.c weights/lane_tcp.c
  weights/publisher.c weights/publisher_target.c weights/receiver.c weights/receiver_conn.c
  weights/reshard/layout.c weights/reshard/plan.c weights/reshard/copy.c weights/reshard/overlap.c)
