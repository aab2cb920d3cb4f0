list(APPEND CORRAL_WEIGHTS_SOURCES weights/encode/base.c weights/encode/onto.c)
