list(APPEND CORRAL_WEIGHTS_SOURCES weights/layouts/model.c weights/layouts/layouts.c)
