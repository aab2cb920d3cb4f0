#!/bin/bash
# kill -9 of the coordinator, at random points: nothing outlives it, and `rlctl resume` goes on with higher versions. Then of an agent.
source "$(dirname "$0")/lib.sh"
ROUNDS=${ROUNDS:-4}
SEED=${SEED:-$$}
RANDOM=$SEED
note "ROUNDS=$ROUNDS SEED=$SEED"
STEPS=3000
cartpole job.toml crash
launch crash job.toml --set stop.train_steps=$STEPS --set checkpoint.every=5 --set eval.every=50
need "the run starts" wait_until 30 eval 'RUN=$(run_of crash) && reached "$RUN" 6'
ID=${RUN##*-}
name=crash
for ((round = 1; round <= ROUNDS; round++)); do
    lines=$(wc -l <"$RUN/metrics.jsonl")
    grown() { [[ $(wc -l <"$RUN/metrics.jsonl") -gt $((lines + $1)) ]]; }
    case $((round % 3)) in
    0) ;;                                         # at once: while it starts
    *) wait_until 30 grown $((RANDOM % 30)) ;;
    esac
    wait_until 10 has "$RUN/lock"
    pid=$(coordinator_of "$RUN")
    kill -KILL "$pid"
    killed_at=$(now_ms)
    check "round $round: every process is gone within 2 s" wait_until 2 none_left "$RUN"
    note "gone after $(($(now_ms) - killed_at)) ms"
    reap $name
    rl status status "$RUN"
    matches "round $round: status says crashed and what to do" "$(out_of status | tr '\n' ' ')" "crashed.*rlctl resume $ID"
    rl list list --dir "$T/crash"
    matches "round $round: list says crashed" "$(out_of list)" "$ID .* crashed "
    checkpoint=$(checkpoint_of "$RUN")
    note "checkpoint of step ${checkpoint:-none}, last step $(last_step "$RUN")"
    name=resume$round
    rl_bg $name resume "$RUN" --quiet
    alive_again() { [[ $(coordinator_of "$RUN") != "$pid" ]] && kill -0 "$(coordinator_of "$RUN")" 2>/dev/null; }
    need "round $round: resume takes over" wait_until 10 alive_again
done
lines=$(wc -l <"$RUN/metrics.jsonl")
grown() { [[ $(wc -l <"$RUN/metrics.jsonl") -gt $((lines + $1)) ]]; }
check "the last resume trains on" wait_until 30 grown 20
rl stop stop "$RUN"
reap $name
same "the last resume ends in order" "$rc" 0
check "metrics.jsonl survived every crash" json_valid "$RUN/metrics.jsonl" lines
# A crash loses the steps since the newest checkpoint: they appear again, under higher versions.
check_steps "versions grew across all crashes, environment steps are exact" "$RUN" $CARTPOLE_BATCH $STEPS
same "no half-written checkpoint is left" "$(find "$RUN/checkpoints" -name '.step-*')" ""

# ---- the agent ----
launch agent job.toml --set stop.train_steps=1000000 --set checkpoint.every=5
need "the second run starts" wait_until 30 eval 'RUN=$(run_of agent) && reached "$RUN" 6'
kill -KILL "$(agents_of "$RUN")"
reap agent
same "agent killed: launch exits with 1" "$rc" 1
matches "agent killed: the reason" "$(err_of agent)" "agent of node a ended: killed by SIGKILL"
check "agent killed: nothing is left" wait_until 2 none_left
rl status status "$RUN"
matches "agent killed: status" "$(out_of status)" "failed after"
before=$(steps_of "$RUN" | tail -n 1 | cut -d' ' -f2)
rl_bg again resume "$RUN" --quiet
lines=$(wc -l <"$RUN/metrics.jsonl")
check "agent killed: resume goes on" wait_until 30 grown 20
rl stop stop "$RUN"
reap again
same "agent killed: the resumed run ends in order" "$rc" 0
check_steps "agent killed: versions are above $before" "$RUN" $CARTPOLE_BATCH 1000000
finish
