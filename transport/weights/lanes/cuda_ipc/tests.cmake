# On the fake driver, within one process; across processes in lanes/nccl/pair_test.c.
corral_test(weights_lane_cuda_ipc SOURCES weights/lanes/nccl/conformance_cuda_test.c weights/lanes/conformance_rig_test.c
  weights/lanes/conformance_moves_test.c DEPS corral_transport ARGS cuda_ipc)
if(TARGET weights_lane_cuda_ipc)
  add_dependencies(weights_lane_cuda_ipc fakecuda)
  set_tests_properties(weights_lane_cuda_ipc PROPERTIES
    ENVIRONMENT_MODIFICATION "LD_LIBRARY_PATH=path_list_prepend:${CMAKE_BINARY_DIR}/tests/fakecuda")
endif()
