# What the interposer costs: bench/interposer.sh runs it with and without.
add_executable(interposer_bench interposer_bench.c)
target_link_libraries(interposer_bench PRIVATE corral_quota m)
