list(APPEND CORRAL_WEIGHTS_SOURCES weights/lanes/lanes.c weights/lanes/support.c weights/lanes/probe.c)
