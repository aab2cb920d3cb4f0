# The support file is compiled into each test: it is no part of the library.
corral_test(transport_trajectory_credit_test SOURCES trajectory/credit_test.c DEPS corral_transport)
corral_test(transport_trajectory_wire_test SOURCES trajectory/wire_test.c trajectory/test_support.c DEPS corral_transport)
corral_test(transport_trajectory_stream_test SOURCES trajectory/stream_test.c trajectory/test_support.c DEPS corral_transport
  LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_share_test SOURCES trajectory/share_test.c trajectory/test_support.c DEPS corral_transport
  LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_fault_test SOURCES trajectory/fault_test.c trajectory/test_support.c DEPS corral_transport
  LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_records_test SOURCES trajectory/records_test.c trajectory/test_support.c
  DEPS corral_transport LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_log_test SOURCES trajectory/log_test.c trajectory/test_support.c
  DEPS corral_transport LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_protocol_test SOURCES trajectory/protocol_test.c trajectory/test_support.c
  DEPS corral_transport LIBS PkgConfig::ZMQ TIMEOUT 300)
corral_test(transport_trajectory_rings_test SOURCES trajectory/rings_test.c trajectory/test_support.c
  DEPS corral_transport LIBS PkgConfig::ZMQ TIMEOUT 300)
# The same tests once more, through rings in shared memory.
foreach(trajectory_test stream fault records log)
  if(TARGET transport_trajectory_${trajectory_test}_test)
    add_test(NAME transport_trajectory_${trajectory_test}_rings_test COMMAND transport_trajectory_${trajectory_test}_test)
    set_tests_properties(transport_trajectory_${trajectory_test}_rings_test PROPERTIES ENVIRONMENT "CORRAL_TEST_RINGS=1"
      TIMEOUT 300 SKIP_RETURN_CODE 77)
  endif()
endforeach()
if(CORRAL_SANITIZE STREQUAL "thread" AND TARGET transport_trajectory_stream_test)
  # ZeroMQ is not instrumented: the queues between its threads are invisible to the sanitizer.
  set_tests_properties(transport_trajectory_stream_test transport_trajectory_fault_test transport_trajectory_protocol_test
    transport_trajectory_share_test transport_trajectory_records_test transport_trajectory_log_test PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
endif()
corral_fuzz(transport_fuzz_wire SOURCES trajectory/fuzz_wire.c DEPS corral_transport)
foreach(trajectory_part record ring wal local)
  include(${CMAKE_CURRENT_SOURCE_DIR}/trajectory/${trajectory_part}/tests.cmake OPTIONAL)
endforeach()
