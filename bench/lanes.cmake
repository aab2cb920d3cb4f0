add_executable(lanes_bench ${CMAKE_CURRENT_LIST_DIR}/lanes_bench.c)
target_link_libraries(lanes_bench PRIVATE corral_flags corral_transport m)
