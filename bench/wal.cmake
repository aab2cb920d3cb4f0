# The trajectory log as a ratio to a plain write + fdatasync.
add_executable(bench_wal ${CMAKE_CURRENT_LIST_DIR}/wal_bench.c)
target_link_libraries(bench_wal PRIVATE corral_flags corral_transport)
