# Transitions per second of PPO updates beside one large product of the same arithmetic, and rows per second of acting.
add_executable(learner_bench ${CMAKE_CURRENT_LIST_DIR}/learner_bench.c)
target_link_libraries(learner_bench PRIVATE corral_flags corral_trainer PkgConfig::OPENBLAS m)
