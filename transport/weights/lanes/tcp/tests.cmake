corral_test(weights_lane_tcp_frames_test SOURCES weights/lanes/tcp/tcp_test.c DEPS corral_transport)
