#!/bin/bash
# The same job twice at once, into the same folder: two runs that do not know of each other.
source "$(dirname "$0")/lib.sh"
cartpole job.toml twin
rl_bg one launch job.toml --quiet
rl_bg two launch job.toml --quiet
reap one
same "the first: exit code 0" "$rc" 0
reap two
same "the second: exit code 0" "$rc" 0
rl list list
same "two runs are listed as done" "$(grep -c ' done ' "$T/list.out")" 2
for run in "$T"/runs/*; do
    check_steps "${run##*/}: each step once" "$run" $CARTPOLE_BATCH
    same "${run##*/}: all steps" "$(last_step "$run")" 40
done
# The same seed and the same order of fragments: with one trainer and one rollout worker the first step is the same number for number.
losses=$(for run in "$T"/runs/*; do grep -m1 '"event":"step"' "$run/metrics.jsonl" | grep -o '"policy_loss":[^,]*'; done | sort -u | wc -l)
same "both took the same first step" "$losses" 1
rl ambiguous status "t"
same "a prefix of nothing" "$rc" 2
finish
