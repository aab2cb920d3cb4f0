# Both of our sides of bench/trajectory/peers.sh.
add_executable(trajectory_pair ${CMAKE_CURRENT_LIST_DIR}/trajectory/pair.c
  ${CMAKE_CURRENT_LIST_DIR}/../transport/trajectory/test_support.c)
target_link_libraries(trajectory_pair PRIVATE corral_flags corral_rollout corral_transport PkgConfig::ZMQ)
