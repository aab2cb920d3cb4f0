# Steps per second of every built-in environment beside a plain scalar loop of the same dynamics.
add_executable(envs_bench ${CMAKE_CURRENT_LIST_DIR}/envs_bench.c ${CMAKE_CURRENT_LIST_DIR}/envs_scalar.c)
target_compile_options(envs_bench PRIVATE -O3 -fno-trapping-math)
target_compile_definitions(envs_bench PRIVATE CORRAL_ENV_PLUGIN_DIR="${CMAKE_BINARY_DIR}/lib/corral/envs")
target_link_libraries(envs_bench PRIVATE corral_flags ${CMAKE_DL_LIBS} m)
add_dependencies(envs_bench corral_envs)
