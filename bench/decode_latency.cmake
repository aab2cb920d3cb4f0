# p99 of a rollout's decode step with and without a trainer's gradient steps beside it, on devices of their own and on a shared one.
add_executable(decode_latency ${CMAKE_CURRENT_LIST_DIR}/decode_latency.c)
target_link_libraries(decode_latency PRIVATE corral_flags corral_quota corral_model corral_base m)
