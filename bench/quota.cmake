add_executable(quota_bench ${CMAKE_CURRENT_LIST_DIR}/quota_bench.c)
target_link_libraries(quota_bench PRIVATE corral_flags corral_quota m)
add_executable(quota_recovery_bench ${CMAKE_CURRENT_LIST_DIR}/quota_recovery_bench.c)
target_link_libraries(quota_recovery_bench PRIVATE corral_flags corral_quota m)
