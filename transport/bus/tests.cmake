corral_test(transport_bus_idmap_test SOURCES bus/idmap_test.c DEPS corral_transport)
corral_test(transport_bus_test SOURCES bus/bus_test.c DEPS corral_transport LIBS PkgConfig::ZMQ TIMEOUT 300)
if(CORRAL_SANITIZE STREQUAL "thread" AND TARGET transport_bus_test)
  # ZeroMQ is not instrumented: the queues between its threads are invisible to the sanitizer.
  set_tests_properties(transport_bus_test PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
endif()
