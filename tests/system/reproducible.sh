#!/bin/bash
# With staleness.max_versions = 0, the same job and seed end in the same weights, bit for bit, whatever the timing; another seed does not. Also with two trainers.
source "$(dirname "$0")/lib.sh"
cartpole job.toml same
weights_of() { sha256sum "$(ls -d "$1"/*/checkpoints/step-*/policy.safetensors | tail -n 1)" | cut -d' ' -f1; }
play() # NAME SET...
{
    local name=$1 args=()
    shift
    for set in "$@"; do args+=(--set "$set"); done
    rl "$name" launch job.toml --dir "$T/$name" --set stop.env_steps=0 --set stop.train_steps=12 --set staleness.max_versions=0 "${args[@]}"
    same "$name: exit code" "$rc" 0
}
play first
play second
play other job.seed=99
same "same seed, same weights" "$(weights_of "$T/first")" "$(weights_of "$T/second")"
if [[ $(weights_of "$T/first") != "$(weights_of "$T/other")" ]]; then pass "another seed, other weights"; else fail "another seed, other weights"; fi
play two_first partition.trainer.workers_per_device=2
play two_second partition.trainer.workers_per_device=2
same "two trainers: same seed, same weights" "$(weights_of "$T/two_first")" "$(weights_of "$T/two_second")"
finish
