set(CORRAL_WEIGHTS_SOURCES
  weights/manifest.c weights/owner.c weights/store.c weights/wire.c weights/lane_shm.c weights/lane_tcp.c
  weights/publisher.c weights/publisher_target.c weights/receiver.c weights/receiver_conn.c)
