# Deltas of weights: model bytes per second of encode and apply on one core, what is moved of a 9B model, and the same for casts to fp8.
add_executable(delta_bench ${CMAKE_CURRENT_LIST_DIR}/delta_bench.c)
target_link_libraries(delta_bench PRIVATE corral_flags corral_transport m)
