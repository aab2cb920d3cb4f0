# The memory families, on the fake driver.
corral_test(quota_cuda_table_test SOURCES table_test.c table.c DEPS corral_base)
foreach(family memory vmm pool context faults)
  corral_test(quota_cuda_families_${family}_test SOURCES families_${family}_test.c tests/families.c DEPS corral_quota LIBS ${CMAKE_DL_LIBS})
  target_compile_definitions(quota_cuda_families_${family}_test PRIVATE FAKE_DRIVER="${CMAKE_BINARY_DIR}/tests/fakecuda"
    INTERPOSER="$<TARGET_FILE:corral_quota_interposer>" ENTRY_POINTS="${CMAKE_CURRENT_SOURCE_DIR}/entry_points.tsv")
  add_dependencies(quota_cuda_families_${family}_test corral_quota_interposer fakecuda fakenvml)
endforeach()
