# Drivers of a few functions, a library in between, and the programs that look for them.
set(tiny ${CMAKE_CURRENT_BINARY_DIR}/tiny_drivers)
foreach(driver tiny newer versioned)
  add_library(corral_driver_${driver} SHARED tests/tiny_driver.c)
  set_target_properties(corral_driver_${driver} PROPERTIES OUTPUT_NAME cuda SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${tiny}/${driver})
  target_link_options(corral_driver_${driver} PRIVATE -Wl,-Bsymbolic)
endforeach()
target_compile_definitions(corral_driver_newer PRIVATE TINY_DRIVER_NEWER)
target_link_options(corral_driver_versioned PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/tests/tiny_driver.map)
add_library(corral_tiny_nvml SHARED tests/tiny_nvml.c)
set_target_properties(corral_tiny_nvml PROPERTIES OUTPUT_NAME nvidia-ml SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${tiny}/tiny)
add_library(corral_tiny_between MODULE tests/tiny_between.c)
target_link_libraries(corral_tiny_between PRIVATE ${CMAKE_DL_LIBS})
target_compile_definitions(corral_tiny_between PRIVATE _GNU_SOURCE)
set_target_properties(corral_tiny_between PROPERTIES PREFIX lib OUTPUT_NAME tiny-between LIBRARY_OUTPUT_DIRECTORY ${tiny})

add_executable(corral_cuda_probe tests/probe.c)
target_link_libraries(corral_cuda_probe PRIVATE corral_flags ${CMAKE_DL_LIBS})
add_executable(corral_cuda_linked tests/linked.c)
target_link_libraries(corral_cuda_linked PRIVATE corral_flags corral_driver_tiny ${CMAKE_DL_LIBS})
set_target_properties(corral_cuda_probe corral_cuda_linked PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${tiny})

corral_test(quota_cuda_library_test SOURCES library_test.c DEPS corral_quota)
target_compile_definitions(quota_cuda_library_test PRIVATE TINY_DRIVERS="${tiny}" INTERPOSER="$<TARGET_FILE:corral_quota_interposer>"
  PROBE="$<TARGET_FILE:corral_cuda_probe>" LINKED="$<TARGET_FILE:corral_cuda_linked>")
add_dependencies(quota_cuda_library_test corral_quota_interposer corral_cuda_probe corral_cuda_linked corral_driver_newer
  corral_driver_versioned corral_tiny_between corral_tiny_nvml)

add_test(NAME quota_cuda_exports COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/tests/exports_test.sh $<TARGET_FILE:corral_quota_interposer>
  ${CMAKE_CURRENT_SOURCE_DIR}/entry_points.tsv ${CORRAL_SANITIZE})
add_test(NAME quota_cuda_entry_points COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/tests/entry_points_test.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(quota_cuda_exports quota_cuda_entry_points PROPERTIES TIMEOUT 60 SKIP_RETURN_CODE 77)
if(NOT CORRAL_SANITIZE)
  # Python and NVIDIA's runtime know nothing of the sanitizer's runtime, which must be loaded first.
  add_test(NAME quota_cuda_ctypes COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/tests/ctypes_test.sh $<TARGET_FILE:corral_quota_interposer>
    ${tiny}/tiny)
  add_test(NAME quota_cuda_cudart COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/tests/cudart_test.sh $<TARGET_FILE:corral_quota_interposer>
    ${tiny}/tiny ${CMAKE_C_COMPILER} "${CUDAToolkit_INCLUDE_DIRS}" "${CUDAToolkit_LIBRARY_DIR}")
  set_tests_properties(quota_cuda_ctypes quota_cuda_cudart PROPERTIES TIMEOUT 60 SKIP_RETURN_CODE 77)
endif()
