foreach(test chain record tamper verify)
  corral_test(quota_proof_${test}_test SOURCES proof/${test}_test.c DEPS corral_quota)
endforeach()
if(CORRAL_BUILD_TESTS)
  # The check that the specification prints, on a chain that the library wrote.
  add_executable(quota_proof_sample proof/sample.c)
  target_link_libraries(quota_proof_sample PRIVATE corral_flags corral_quota)
  add_test(NAME quota_proof_shell COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/proof/shell_test.sh
    $<TARGET_FILE:quota_proof_sample> ${PROJECT_SOURCE_DIR}/docs/spec/proof.md)
  set_tests_properties(quota_proof_shell PROPERTIES TIMEOUT 60 SKIP_RETURN_CODE 77)
endif()
corral_fuzz(quota_fuzz_proof SOURCES proof/fuzz_proof.c DEPS corral_quota)
