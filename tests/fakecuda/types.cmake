# types_check: the same list printed with our declarations and with a toolkit's, compared. Skipped where there is no toolkit.
find_path(CORRAL_CUDA_H cuda.h PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include NO_CACHE)
add_executable(types_ours types_list.c)
target_link_libraries(types_ours PRIVATE corral_flags)
set(theirs none)
if(CORRAL_CUDA_H)
  add_executable(types_theirs types_list.c)
  target_compile_definitions(types_theirs PRIVATE WITH_TOOLKIT _GNU_SOURCE)
  target_compile_features(types_theirs PRIVATE c_std_17)
  target_include_directories(types_theirs SYSTEM PRIVATE ${CORRAL_CUDA_H})
  set(theirs $<TARGET_FILE:types_theirs>)
endif()
add_test(NAME fakecuda_types_check
  COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/types_check.sh $<TARGET_FILE:types_ours> ${theirs})
set_tests_properties(fakecuda_types_check PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 60)
add_test(NAME fakecuda_has_every_hook
  COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/coverage.sh ${PROJECT_SOURCE_DIR}/quota/cuda
    $<TARGET_FILE:fakecuda> $<TARGET_FILE:fakenvml>)
set_tests_properties(fakecuda_has_every_hook PROPERTIES TIMEOUT 60)
