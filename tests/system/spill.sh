#!/bin/bash
# A trainer that does not fit its quota spills to host memory when the job allows it: planned, counted in every step's record, shown by status and audit.
source "$(dirname "$0")/lib.sh"
cartpole job.toml spill
small=(--set partition.trainer.floor=140KiB --set partition.trainer.ceiling=140KiB)

rl without plan "$T/job.toml" "${small[@]}"
same "without spill the plan is refused: exit code" "$rc" 2
matches "and says what would fit" "$(err_of without)" 'trainer: its workers need .*; the ceiling is 140 KiB'
launch run job.toml "${small[@]}" --set memory.spill=16MiB --set stop.train_steps=1000000000
need "with spill it runs" wait_until 30 eval 'RUN=$(run_of run) && reached "$RUN" 40'
told() { rl status status "$RUN" && out_of status | grep -qE 'trainer .* spilled to host memory'; }
check "status tells what is spilled" wait_until 10 told
rl stop stop "$RUN"
reap run
same "launch: exit code" "$rc" 0
same "nobody had to be restarted" "$(status_of "$RUN" restarts)" 0
check "what the trainer spilled is in its log" grep -q 'memory spilled beyond the quota' "$RUN/logs/trainer-0.log"
same "and in every step's record" "$(grep -h '"type":"step"' "$RUN"/proof/* | grep -vc '"spilled":[1-9]')" 0
rl audit audit "$RUN" --json
same "audit: exit code" "$rc" 0
matches "audit: shows it" "$(out_of audit)" '"spilled_max": [1-9]'
rl told audit "$RUN"
matches "audit: to people too" "$(out_of told)" "rank 0: up to [1-9].* beside the quota, spilled to host memory"
finish
