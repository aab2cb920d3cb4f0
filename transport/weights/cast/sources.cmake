list(APPEND CORRAL_WEIGHTS_SOURCES weights/cast/cast.c weights/cast/element.c weights/cast/cast_x86.c weights/cast/layout.c weights/cast/source.c)
