# What the interposer costs: bench/interposer.sh runs interposer_bench with and without it, in a node that quota-node (of the tests) makes, on a driver that does next to nothing.
add_executable(quota-node ${PROJECT_SOURCE_DIR}/tests/quota/node.c ${PROJECT_SOURCE_DIR}/tests/quota/physical_count.c)
target_link_libraries(quota-node PRIVATE corral_quota m)
add_executable(interposer_bench interposer_bench.c)
target_link_libraries(interposer_bench PRIVATE corral_quota m)
if(TARGET corral_quota_interposer)
  add_dependencies(interposer_bench corral_quota_interposer quota-node bare_driver)
endif()
add_library(bare_driver SHARED bare_driver/bare_driver.c)
target_link_libraries(bare_driver PRIVATE corral_flags)
target_link_options(bare_driver PRIVATE -Wl,-Bsymbolic)
set_target_properties(bare_driver PROPERTIES OUTPUT_NAME cuda SOVERSION 1
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench/bare_driver)
