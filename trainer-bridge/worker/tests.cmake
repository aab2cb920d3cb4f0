corral_test(trainer_batch_queue_test SOURCES worker/batch_queue_test.c DEPS corral_trainer LIBS PkgConfig::ZMQ)
corral_test(trainer_lane_charge_test SOURCES worker/lane_charge_test.c DEPS corral_trainer)
corral_test(trainer_state_test SOURCES worker/trainer_state_test.c learners/test_batch.c DEPS corral_trainer)
if(CORRAL_SANITIZE STREQUAL "thread" AND TARGET trainer_batch_queue_test)
  # ZeroMQ is not instrumented: the queues between its threads are invisible to the sanitizer.
  set_tests_properties(trainer_batch_queue_test PROPERTIES ENVIRONMENT "TSAN_OPTIONS=ignore_noninstrumented_modules=1")
endif()
