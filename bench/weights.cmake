add_executable(weights_bench ${CMAKE_CURRENT_LIST_DIR}/weights_bench.c)
target_link_libraries(weights_bench PRIVATE corral_flags corral_transport m)
# The issue's word: a whole push of a 9B model's shapes. `weights --model tiny` is a test, so that it goes on working.
add_executable(weights ${CMAKE_CURRENT_LIST_DIR}/weights.c ${CMAKE_CURRENT_LIST_DIR}/weights_memory.c
  ${CMAKE_CURRENT_LIST_DIR}/weights_model.c ${CMAKE_CURRENT_LIST_DIR}/weights_yardstick.c)
target_link_libraries(weights PRIVATE corral_flags corral_transport m)
if(CORRAL_BUILD_TESTS)
  add_test(NAME bench_weights_tiny COMMAND weights --model tiny --rounds 1)
  add_test(NAME bench_weights_tiny_delta COMMAND weights --model tiny --rounds 1 --delta 0.01)
  add_test(NAME bench_weights_tiny_delta_in_place COMMAND weights --model tiny --rounds 1 --delta 0.01 --in-place)
  add_test(NAME bench_weights_tiny_cast COMMAND weights --model tiny --rounds 1 --cast e4m3)
  set_tests_properties(bench_weights_tiny bench_weights_tiny_delta bench_weights_tiny_delta_in_place
    bench_weights_tiny_cast PROPERTIES TIMEOUT 120)
endif()
