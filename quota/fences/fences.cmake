target_sources(corral_quota PRIVATE
  fences/canary.c fences/cgroup.c fences/cgroup_files.c fences/cgroup_find.c fences/cgroup_remove.c fences/dmem.c fences/fences.c fences/leftovers.c fences/mps.c
  fences/preflight.c fences/probe.c fences/report.c fences/try.c)

corral_test(quota_fences_find_test SOURCES fences/cgroup_find_test.c DEPS corral_quota)
corral_test(quota_fences_cgroup_test SOURCES fences/cgroup_test.c DEPS corral_quota)
corral_test(quota_fences_mps_test SOURCES fences/mps_test.c DEPS corral_quota)
corral_test(quota_fences_test SOURCES fences/fences_test.c DEPS corral_quota)
corral_test(quota_fences_preflight_test SOURCES fences/preflight_test.c DEPS corral_quota)
foreach(test fences_mps fences_cgroup fences)
  if(TARGET quota_${test}_test)
    target_compile_definitions(quota_${test}_test PRIVATE FAKE_DRIVER="${CMAKE_BINARY_DIR}/tests/fakecuda")
    add_dependencies(quota_${test}_test fakecuda)
  endif()
endforeach()
