list(APPEND CORRAL_TRAJECTORY_SOURCES trajectory/ring/ring.c trajectory/ring/memory.c trajectory/ring/wake.c trajectory/ring/copy.c)
