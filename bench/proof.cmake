# The cost of a step's proof as a share of the step.
add_executable(proof_bench ${CMAKE_CURRENT_LIST_DIR}/proof_bench.c)
target_link_libraries(proof_bench PRIVATE corral_flags corral_trainer)
