# On the fake adapter of tests/fakeverbs. The binaries know nothing of it: without LD_LIBRARY_PATH they run on the real library, as tests/rdma does with soft-RoCE.
if(VERBS_INCLUDE AND CORRAL_BUILD_TESTS)
  corral_test(weights_rdma_test SOURCES weights/lanes/rdma/rdma_test.c DEPS corral_transport)
  corral_test(weights_rdma_death_test SOURCES weights/lanes/rdma/rdma_death_test.c DEPS corral_transport)
  corral_test(weights_lane_rdma SOURCES ${CORRAL_LANE_CONFORMANCE} DEPS corral_transport ARGS rdma TIMEOUT 300)
  # The suite once more under faults that an adapter repairs: bytes must come out the same.
  foreach(faults "delay_us=300" "hold_odd_us=500" "drop=50" "rnr=40")
    string(REGEX REPLACE "[=_0-9,].*" "" name ${faults})
    add_test(NAME weights_lane_rdma_${name} COMMAND weights_lane_rdma rdma streams=3)
    set_tests_properties(weights_lane_rdma_${name} PROPERTIES TIMEOUT 300 SKIP_RETURN_CODE 77
      ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fakeverbs;FAKEVERBS_FAULTS=ack_us=50000,${faults}")
  endforeach()
  foreach(name weights_rdma_test weights_rdma_death_test weights_lane_rdma)
    add_dependencies(${name} fakeverbs)
    # Peers that are gone are given up after 0.35 s instead of 2 s.
    set_tests_properties(${name} PROPERTIES
      ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fakeverbs;FAKEVERBS_FAULTS=ack_us=50000")
  endforeach()
endif()
