# The policy that configs/tictactoe.toml leaves behind, against a random and a perfect opponent.
add_executable(tictactoe_play ${CMAKE_CURRENT_LIST_DIR}/tictactoe_play.c)
target_link_libraries(tictactoe_play PRIVATE corral_flags corral_model)
