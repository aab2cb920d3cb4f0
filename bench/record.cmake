# What the header of a trajectory record costs, beside msgpack-c.
add_executable(record_bench ${CMAKE_CURRENT_LIST_DIR}/record_bench.c
  ${CMAKE_CURRENT_LIST_DIR}/../transport/trajectory/record/test_records.c ${CMAKE_CURRENT_LIST_DIR}/../transport/trajectory/test_support.c)
target_link_libraries(record_bench PRIVATE corral_flags corral_transport PkgConfig::MSGPACK)
