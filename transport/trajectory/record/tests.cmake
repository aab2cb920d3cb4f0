corral_test(transport_trajectory_record_test SOURCES trajectory/record/record_test.c trajectory/record/test_records.c DEPS corral_transport)
corral_test(transport_trajectory_fragment_record_test SOURCES trajectory/record/fragment_record_test.c trajectory/record/test_records.c
  trajectory/test_support.c DEPS corral_transport)
corral_test(transport_trajectory_record_text_test SOURCES trajectory/record/text_test.c trajectory/record/test_records.c
  trajectory/test_support.c DEPS corral_transport)
corral_fuzz(transport_fuzz_record SOURCES trajectory/record/fuzz_record.c DEPS corral_transport)
