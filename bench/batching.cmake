add_executable(batching_bench ${CMAKE_CURRENT_LIST_DIR}/batching_bench.c)
target_link_libraries(batching_bench PRIVATE corral_flags corral_trainer m)
