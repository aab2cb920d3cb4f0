add_executable(reshard_bench ${CMAKE_CURRENT_LIST_DIR}/reshard_bench.c)
target_link_libraries(reshard_bench PRIVATE corral_flags corral_transport m)
