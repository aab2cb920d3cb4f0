# libcorral, and what `cmake --install` gives besides the programs and plug-ins of the folders: headers, pkg-config and CMake
# package files, manual pages, completion. tests/install_test.sh uses all of it from outside.
include(CMakePackageConfigHelpers)

# The public interface is compiled into the library; the linker takes what it needs from the modules. cmake/libcorral.map and
# -fvisibility=hidden keep everything but CORRAL_API functions inside.
add_library(corral_shared SHARED ${PROJECT_SOURCE_DIR}/base/error.c ${PROJECT_SOURCE_DIR}/rollout/rollout_api.c
  ${PROJECT_SOURCE_DIR}/rollout/traj_writer_api.c ${PROJECT_SOURCE_DIR}/trainer-bridge/batching/trainer_api.c
  ${PROJECT_SOURCE_DIR}/trainer-bridge/quota_api.c ${PROJECT_SOURCE_DIR}/transport/weights/api/common.c
  ${PROJECT_SOURCE_DIR}/transport/weights/api/layout_api.c ${PROJECT_SOURCE_DIR}/transport/weights/api/publisher_api.c
  ${PROJECT_SOURCE_DIR}/transport/weights/api/subscriber_api.c
  ${PROJECT_SOURCE_DIR}/transport/trajectory/record/encode.c ${PROJECT_SOURCE_DIR}/transport/trajectory/record/decode.c)
target_compile_definitions(corral_shared PRIVATE CORRAL_IN_LIBRARY)
target_link_libraries(corral_shared PRIVATE corral_flags corral_rollout corral_trainer corral_transport corral_base)
target_include_directories(corral_shared INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set_target_properties(corral_shared PROPERTIES
  OUTPUT_NAME corral EXPORT_NAME corral VERSION ${PROJECT_VERSION} SOVERSION 0
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/libcorral.map)
target_link_options(corral_shared PRIVATE
  -Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/libcorral.map -Wl,--as-needed)
if(NOT CORRAL_SANITIZE)
  # Clang's sanitizers leave their own symbols to the program.
  target_link_options(corral_shared PRIVATE -Wl,-z,defs)
endif()
add_library(corral_headers INTERFACE)
set_target_properties(corral_headers PROPERTIES EXPORT_NAME headers)
target_include_directories(corral_headers INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

install(TARGETS rlctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS corral_shared corral_headers EXPORT CorralTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/corral DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

# CMake package
set(CORRAL_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/Corral)
set(CORRAL_ENV_INSTALL_DIR ${CMAKE_INSTALL_LIBDIR}/corral/envs)
install(EXPORT CorralTargets NAMESPACE Corral:: DESTINATION ${CORRAL_PACKAGE_DIR})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/CorralConfig.cmake.in ${PROJECT_BINARY_DIR}/CorralConfig.cmake
  INSTALL_DESTINATION ${CORRAL_PACKAGE_DIR} PATH_VARS CORRAL_ENV_INSTALL_DIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/CorralConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/CorralConfig.cmake ${PROJECT_BINARY_DIR}/CorralConfigVersion.cmake
  DESTINATION ${CORRAL_PACKAGE_DIR})

# pkg-config; found relative to the file itself, so that an installation may be moved or given another prefix at install time
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(CORRAL_PC_PREFIX ${CMAKE_INSTALL_PREFIX})
  set(CORRAL_PC_INCLUDEDIR ${CMAKE_INSTALL_FULL_INCLUDEDIR})
  set(CORRAL_PC_LIBDIR ${CMAKE_INSTALL_FULL_LIBDIR})
else()
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE up)
  set(CORRAL_PC_PREFIX "\${pcfiledir}/${up}")
  set(CORRAL_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
  set(CORRAL_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/corral.pc.in ${PROJECT_BINARY_DIR}/corral.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/corral.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# manual pages, completion, examples, licence
foreach(section 1 3 7)
  file(GLOB pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/docs/man/*.${section})
  install(FILES ${pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
endforeach()
if(NOT CMAKE_CROSSCOMPILING)
  set(completion ${PROJECT_BINARY_DIR}/share/bash-completion/rlctl)
  file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/share/bash-completion)
  add_custom_command(OUTPUT ${completion} COMMAND rlctl completion bash > ${completion} DEPENDS rlctl VERBATIM)
  add_custom_target(corral_completion ALL DEPENDS ${completion})
  install(FILES ${completion} DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples FILES_MATCHING PATTERN "*.toml")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/CHANGELOG.md ${PROJECT_SOURCE_DIR}/README.md
  DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(CORRAL_BUILD_TESTS)
  set(tests ${PROJECT_SOURCE_DIR}/tests)
  add_test(NAME library_exports COMMAND bash ${tests}/exports_test.sh $<TARGET_FILE:corral_shared> ${PROJECT_SOURCE_DIR}/include
    ${CMAKE_C_COMPILER})
  add_test(NAME manual_pages COMMAND bash ${tests}/manual_pages_test.sh ${PROJECT_SOURCE_DIR}/docs/man)
  add_test(NAME scripts COMMAND bash ${tests}/scripts_test.sh ${PROJECT_SOURCE_DIR})
  set_tests_properties(library_exports manual_pages scripts PROPERTIES TIMEOUT 60 SKIP_RETURN_CODE 77)
  if(NOT CORRAL_SANITIZE)
    # A program outside knows nothing of the sanitizer's runtime, which must be loaded first.
    add_test(NAME install COMMAND bash ${tests}/install_test.sh ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR}
      ${CMAKE_C_COMPILER} ${CMAKE_COMMAND} ${CMAKE_GENERATOR})
    set_tests_properties(install PROPERTIES TIMEOUT 180 SKIP_RETURN_CODE 77)
  endif()
endif()
