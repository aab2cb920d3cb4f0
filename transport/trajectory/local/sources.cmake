list(APPEND CORRAL_TRAJECTORY_SOURCES trajectory/local/local.c)
