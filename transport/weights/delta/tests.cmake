corral_test(weights_delta_test SOURCES weights/delta/delta_test.c DEPS corral_transport)
corral_test(weights_delta_chain_test SOURCES weights/delta/chain_test.c DEPS corral_transport)
corral_fuzz(weights_fuzz_delta SOURCES weights/delta/fuzz_delta.c DEPS corral_transport)
