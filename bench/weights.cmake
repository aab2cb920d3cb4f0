add_executable(weights_bench ${CMAKE_CURRENT_LIST_DIR}/weights_bench.c)
target_link_libraries(weights_bench PRIVATE corral_flags corral_transport m)
