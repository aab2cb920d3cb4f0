corral_test(weights_link_test SOURCES weights/link/link_test.c DEPS corral_transport)
corral_test(weights_stream_test SOURCES weights/link/stream_test.c DEPS corral_transport)
