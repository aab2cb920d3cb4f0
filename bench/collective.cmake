# Sums over the shm and tcp collectives as a ratio to memcpy of the same bytes in the same run.
add_executable(collective_bench ${CMAKE_CURRENT_LIST_DIR}/collective_bench.c)
target_link_libraries(collective_bench PRIVATE corral_flags corral_transport)
