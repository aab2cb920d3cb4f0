corral_test(weights_cast_test SOURCES weights/cast/cast_test.c DEPS corral_transport)
