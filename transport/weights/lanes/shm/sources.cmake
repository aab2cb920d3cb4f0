list(APPEND CORRAL_WEIGHTS_SOURCES weights/lanes/shm/channel.c weights/lanes/shm/rx.c weights/lanes/shm/tx.c weights/lanes/shm/copy.c)
