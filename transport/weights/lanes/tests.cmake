# One suite, one test per lane: SOURCES ${CORRAL_LANE_CONFORMANCE} ARGS NAME.
set(CORRAL_LANE_CONFORMANCE weights/lanes/conformance_test.c weights/lanes/conformance_rig_test.c
  weights/lanes/conformance_moves_test.c weights/lanes/conformance_deaths_test.c)
corral_test(weights_lane_shm SOURCES ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS shm)
corral_test(weights_lane_tcp SOURCES ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS tcp)
corral_test(weights_lane_tcp_zero_copy SOURCES ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS tcp zero-copy=always)
corral_test(weights_lane_tcp_copy SOURCES ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS tcp zero-copy=never)
corral_test(weights_lane_probe SOURCES weights/lanes/probe_test.c DEPS corral_transport)
