corral_test(orchestrator_plan_test SOURCES plan/plan_test.c DEPS corral_orchestrator)
if(TARGET orchestrator_plan_test)
  target_compile_definitions(orchestrator_plan_test PRIVATE CORRAL_CONFIGS="${PROJECT_SOURCE_DIR}/configs")
endif()
