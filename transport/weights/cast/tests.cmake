corral_test(weights_cast_test SOURCES weights/cast/cast_test.c DEPS corral_transport)
corral_test(weights_cast_source_test SOURCES weights/cast/source_test.c DEPS corral_transport)
