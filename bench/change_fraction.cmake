# Which part of the weights changes from one push to the next in real training, as f32 and as bf16, and what a delta of it takes.
add_executable(change_fraction ${CMAKE_CURRENT_LIST_DIR}/change_fraction.c)
target_link_libraries(change_fraction PRIVATE corral_flags corral_rollout corral_trainer ${CMAKE_DL_LIBS} m)
add_dependencies(change_fraction corral_envs)
