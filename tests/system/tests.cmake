# System tests: bash scripts that start the real programs. `ctest -L system`; each may also be run by hand, see lib.sh.
set(CORRAL_SYSTEM_TESTS
  config_errors launch_learns two_nodes tenants fake_gpus doctor quota_live weights_status weights_nodes weights_delta spill kills coordinator_killed interrupt two_launches disk_full wal plugin_crash prometheus detach silent agent_paused torn_checkpoint reproducible audit)
if(CORRAL_BUILD_TESTS)
  foreach(test ${CORRAL_SYSTEM_TESTS})
    add_test(NAME system_${test} COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/${test}.sh)
    set_tests_properties(system_${test} PROPERTIES LABELS system TIMEOUT 300 SKIP_RETURN_CODE 77
      ENVIRONMENT "RLCTL=$<TARGET_FILE:rlctl>;SYSTEM_PLUGINS=${CMAKE_BINARY_DIR}/rollout/test_plugins;FAKECUDA=${CMAKE_BINARY_DIR}/tests/fakecuda")
  endforeach()
endif()
corral_test(system_overcommit SOURCES ${CMAKE_CURRENT_LIST_DIR}/overcommit_test.c DEPS corral_quota corral_base)
