corral_test(weights_layouts_test SOURCES weights/layouts/layouts_test.c DEPS corral_transport)
corral_fuzz(weights_fuzz_config SOURCES weights/layouts/fuzz_config.c DEPS corral_transport)
