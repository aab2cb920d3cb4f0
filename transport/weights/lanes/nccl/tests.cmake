# On the fake driver and the fake NCCL. pair_test.c is about both lanes of this kind: two processes, device memory, and what goes wrong.
set(weights_fake_cuda "LD_LIBRARY_PATH=path_list_prepend:${CMAKE_BINARY_DIR}/tests/fakecuda"
  "LD_LIBRARY_PATH=path_list_prepend:${CMAKE_BINARY_DIR}/tests/fakenccl")
corral_test(weights_lane_nccl SOURCES weights/lanes/nccl/conformance_cuda_test.c weights/lanes/conformance_rig_test.c
  weights/lanes/conformance_moves_test.c DEPS corral_transport ARGS nccl)
corral_test(weights_lane_pair_test SOURCES weights/lanes/nccl/pair_test.c weights/lanes/nccl/test_pair.c DEPS corral_transport)
corral_test(weights_lane_side_test SOURCES weights/lanes/nccl/side_test.c DEPS corral_transport)
corral_test(weights_shard_cuda_test SOURCES weights/link/shard_cuda_test.c DEPS corral_transport)
foreach(test weights_lane_nccl weights_lane_pair_test weights_shard_cuda_test)
  if(TARGET ${test})
    add_dependencies(${test} fakecuda fakenccl)
    set_tests_properties(${test} PROPERTIES ENVIRONMENT_MODIFICATION "${weights_fake_cuda}")
  endif()
endforeach()
