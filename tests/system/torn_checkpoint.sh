#!/bin/bash
# Resume takes the newest checkpoint that is all there, and a last checkpoint is written also while the trainers are down.
source "$(dirname "$0")/lib.sh"
cartpole job.toml torn
launch torn job.toml --set stop.train_steps=60 --set checkpoint.every=20 --set checkpoint.keep=5 --set fault.backoff=1s
reap torn
RUN=$(run_of torn)
same "launch: exit code 0" "$rc" 0
same "checkpoints" "$(ls -A "$RUN/checkpoints" | tr '\n' ' ')" "step-000000020 step-000000040 step-000000060 "
same "the one of the last step is counted once" "$(status_of "$RUN" checkpoints)" 3
truncate -s 0 "$RUN/checkpoints/step-000000060/trainer-0.state"
rm "$RUN/checkpoints/step-000000040/policy.safetensors"
sed -i 's/^train_steps = .*/train_steps = 100/' "$RUN/job.toml"
lines=$(wc -l <"$RUN/metrics.jsonl")
rl again resume "$RUN" --quiet
same "resume: exit code 0" "$rc" 0
first=$(tail -n +$((lines + 1)) "$RUN/metrics.jsonl" | grep -m 1 '"event":"step"')
matches "resume: from the newest that is whole" "$first" '"step":21,'
matches "resume: says which ones are not" "$(err_of again)" "step-000000060 is not complete.*step-000000040 is not complete|step-000000040 is not complete.*step-000000060 is not complete"
check "resume: step 60 has a whole checkpoint again" test -s "$RUN/checkpoints/step-000000060/trainer-0.state"
same "resume: every checkpoint is there" "$(ls -A "$RUN/checkpoints" | tr '\n' ' ')" "step-000000020 step-000000040 step-000000060 step-000000080 step-000000100 "

# ---- Ctrl-C while the trainer is down ----
sed -i 's/^train_steps = .*/train_steps = 1000000000/' "$RUN/job.toml"
rl_bg again resume "$RUN" --quiet
need "resume: goes on" wait_until 30 reached "$RUN" 130
# status.json lags behind: wait until it names a process that is the trainer
alive()
{
    pid=$(workers_of "$RUN" | awk '$1 == "trainer-0" { print $4 }')
    [[ ${pid:-0} -gt 0 && $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == "rlctl worker trainer-0 "* ]]
}
need "the trainer is there" wait_until 20 alive
kill -KILL "$pid"
need "the coordinator has noticed" wait_until 10 grep -q "worker ended and will be restarted" "$RUN/logs/coordinator.log"
kill -INT "$(coordinator_of "$RUN")"
reap again
same "interrupted while the trainer is down: exit code 0" "$rc" 0
same "interrupted while the trainer is down: the last step is saved" "$(checkpoint_of "$RUN")" "$(status_of "$RUN" step)"
same "no unfinished checkpoint is left" "$(ls -A "$RUN/checkpoints" | grep -c '^\.')" 0

# ---- none is whole ----
for c in "$RUN"/checkpoints/step-*; do
    rm "$c/checkpoint.json"
done
rl none resume "$RUN"
check "resume without a whole checkpoint does not begin again" test "$rc" -ne 0
matches "resume without a whole checkpoint says so" "$(err_of none)" "none of the run's .* checkpoints is complete"
finish
