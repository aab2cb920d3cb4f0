# The trajectory plane as a ratio to bare ZeroMQ, and what heartbeats cost the coordinator.
add_executable(bench_trajectory ${CMAKE_CURRENT_LIST_DIR}/stream_bench.c
  ${CMAKE_CURRENT_LIST_DIR}/../transport/trajectory/test_support.c)
target_link_libraries(bench_trajectory PRIVATE corral_flags corral_transport PkgConfig::ZMQ m)
add_executable(bench_bus ${CMAKE_CURRENT_LIST_DIR}/bus_bench.c)
target_link_libraries(bench_bus PRIVATE corral_flags corral_transport PkgConfig::ZMQ m)
# The shared-memory ring as a ratio to memcpy.
add_executable(bench_ring ${CMAKE_CURRENT_LIST_DIR}/ring_bench.c)
target_link_libraries(bench_ring PRIVATE corral_flags corral_transport)
