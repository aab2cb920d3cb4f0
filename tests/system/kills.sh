#!/bin/bash
# Workers are killed at random, KILLS times (default 30), while the run trains on. Each death costs at most the step in flight: versions keep
# growing, every step has exactly its environment steps, and the run ends in order.
source "$(dirname "$0")/lib.sh"
KILLS=${KILLS:-30}
SEED=${SEED:-$$}
RANDOM=$SEED
note "KILLS=$KILLS SEED=$SEED"
cartpole one.toml kills
sed -e 's/^host_devices = 3/host_devices = 5/' -e 's/"a:0"/"a:0-1"/' -e 's/"a:1"/"a:2-3"/' -e 's/"a:2"/"a:4"/' "$T/one.toml" >"$T/job.toml"
BATCH=$((2 * 8 * 32))
LIMIT_S=$((60 + KILLS * 4)) launch kills job.toml --set stop.train_steps=1000000000 --set fault.restarts_max=10000 --set fault.backoff=1ms \
    --set fault.backoff_max=5ms --set eval.every=5
need "the run starts" wait_until 30 eval 'RUN=$(run_of kills) && reached "$RUN" 2'

# A pid of status.json that is still that worker's.
alive() { [[ $1 -gt 0 && $(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) == "rlctl worker $2 "* ]]; }
# Kill one worker of the moment's status; sets $victim.
kill_one()
{
    local name role state pid rest list
    mapfile -t list < <(workers_of "$RUN")
    [[ ${#list[@]} -gt 0 ]] || return 1
    read -r name role state pid rest <<<"${list[RANDOM % ${#list[@]}]}"
    alive "${pid:-0}" "$name" || return 1
    kill -KILL "$pid" 2>/dev/null || return 1
    victim=$role
}
declare -A killed=([train]=0 [rollout]=0 [eval]=0)
for ((i = 1; i <= KILLS; i++)); do
    wait_until 20 kill_one || { fail "kill $i: no worker is alive for 20 s"; break; }
    killed[$victim]=$((killed[$victim] + 1))
    # Mostly at once, while the last one is still being restarted; sometimes after some more steps.
    if ((RANDOM % 4 == 0)); then
        at=$(last_step "$RUN")
        wait_until 30 reached "$RUN" $((at + 3)) || { fail "kill $i ($victim): no progress from step $at within 30 s"; break; }
    fi
done
same "killed as often as planned" "$((killed[train] + killed[rollout] + killed[eval]))" "$KILLS"
note "killed: ${killed[train]} trainers, ${killed[rollout]} rollout, ${killed[eval]} eval workers"
at=$(last_step "$RUN")
evals=$(grep -c '"event":"eval"' "$RUN/metrics.jsonl")
more_evals() { [[ $(grep -c '"event":"eval"' "$RUN/metrics.jsonl") -gt $evals ]]; }
check "it trains on after the last kill" wait_until 30 reached "$RUN" $((at + 10))
check "it evaluates after the last kill" wait_until 30 more_evals
rl stop stop kills --dir "$T/kills"
[[ $rc -eq 2 ]] && rl stop stop "$RUN"
same "stop: exit code 0" "$rc" 0
reap kills
same "launch: exit code 0" "$rc" 0
restarts=$(status_of "$RUN" restarts)
check "the coordinator counted the deaths ($restarts restarts)" test "$restarts" -ge 1
# A trainer that dies after its optimizer step and before the others finished theirs takes the group back: that step may appear twice. One that dies after
# the step was safe and before its report left takes the report along: the step counts, its line is missing. Nothing depends on those lines.
back=0
[[ ${killed[train]} -gt 0 ]] && back=1
check_steps "versions grow, steps follow one another, environment steps are exact" "$RUN" $BATCH $back "${killed[train]}"
note "$(steps_of "$RUN" | awk '{ if ($1 == s) twice++; if ($1 > s + 1) { gaps++; missing += $1 - s - 1 } s = $1 } END { print NR " lines; " twice + 0 " steps seen twice, " missing + 0 " lines missing in " gaps + 0 " places" }')"
matches "the memory fence held" "$(out_of kills)" "0 violations of the memory fence"
finish
