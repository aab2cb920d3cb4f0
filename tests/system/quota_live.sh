#!/bin/bash
# Quotas of a running job: shown, changed without a restart, all or nothing, and refused with the numbers.
source "$(dirname "$0")/lib.sh"
cartpole one.toml live
# Two nodes that share nothing; b's devices are smaller, so that a change can fit a and not b.
sed -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 1\nhost_memory = "80MiB"' -e 's/"a:1"/"a:1", "b:0"/' "$T/one.toml" >"$T/job.toml"
launch live job.toml --set stop.train_steps=1000000000 --set fault.start_timeout=60s --set fault.heartbeat=100ms
stepped() { RUN=$(run_of live) && reached "$RUN" 5; }
need "the run takes steps" wait_until 60 stepped
pids() { workers_of "$RUN" | awk '{ print $1, $4 }' | sort; }
have_pids() { [[ $(pids | grep -vc ' 0$') -eq 4 ]]; }
check "every worker has a process" wait_until 10 have_pids
before=$(pids)

# ---- show ----
rl show quota show "$RUN"
same "show: exit code" "$rc" 0
same "show: a line per device and partition" "$(out_of show | awk 'NR > 1 { print $1, $2 }' | sort | tr '\n' ' ')" "a:0 trainer a:1 rollout a:2 eval b:0 rollout "
matches "show: limits" "$(out_of show)" 'a:1 +rollout +16 MiB +64 MiB '
rl show_json quota show "$RUN" --json --allocations
same "show --json: exit code" "$rc" 0
check "show --json is JSON" json_valid "$T/show_json.out"
# value OUT DEVICE ROLE KEY, of an indented document
value()
{
    awk -v device="$2" -v role="$3" -v key="$4" '
        match($0, /"[a-z_]+": /) { k = substr($0, RSTART + 1, RLENGTH - 4); v = $0; sub(/^[^:]*: "?/, "", v); sub(/"?,?$/, "", v) }
        k == "device" { d = v }
        k == "role" { r = v }
        k == key && d == device && r == role { print v; exit }' "$T/$1.out"
}
check "show: the trainer uses memory" test "$(value show_json a:0 trainer used)" -gt 0
check "show: and its process holds at least that" test "$(value show_json a:0 trainer physical)" -gt "$(value show_json a:0 trainer used)"
matches "show --allocations: what it is for" "$(out_of show_json)" '"kind": "host"'
matches "show --allocations: what is shared is told apart" "$(out_of show_json)" '"kind": "mapping"'

# ---- set ----
rl up quota set "$RUN" rollout.ceiling=72MiB
same "set: exit code" "$rc" 0
same "set: says what is in force" "$(out_of up)" "rollout.ceiling is 72 MiB per device"
# ceiling_of DEVICE ROLE, as the agents say
ceiling_of() { rl seen quota show "$RUN" --json && value seen "$1" "$2" ceiling; }
same "in force on node a" "$(ceiling_of a:1 rollout)" $((72 << 20))
same "in force on node b" "$(ceiling_of b:0 rollout)" $((72 << 20))
same "the others have kept theirs" "$(ceiling_of a:0 trainer)" $((64 << 20))
told() { grep -q '"ceiling": 75497472' "$RUN/status.json"; }
check "status.json tells it" wait_until 10 told
recorded() { grep -q '"event":"quota".*"partition":"rollout".*"ceiling":75497472' "$RUN/metrics.jsonl"; }
check "metrics.jsonl tells it" wait_until 10 recorded

# ---- in the proof ----
chain=$RUN/proof/trainer-0.chain
limits() { [[ $(grep -c '"type":"limits"' "$chain") -ge $1 ]]; }
rl raise quota set "$RUN" trainer.ceiling=72MiB
check "the proof chain says that the trainer's ceiling is another" wait_until 10 limits 1
rl lower quota set "$RUN" trainer.ceiling=64MiB
check "and that it is the old one again" wait_until 10 limits 2
rl proof audit "$RUN" --json
same "steps before and after are proven, each under the limits in force" "$rc" 0
matches "audit counts the changes" "$(out_of proof)" '"limit_changes": 2'
matches "and names the highest ceiling" "$(out_of proof)" '"trainer_ceiling": 75497472'

# ---- refused ----
rl big quota set "$RUN" rollout.ceiling=88MiB
same "fits node a, not node b: exit code" "$rc" 1
matches "and the text names the device and what would fit" "$(err_of big)" 'b:0: ceilings would be 88 MiB together.*80 MiB'
same "nothing has changed on node a" "$(ceiling_of a:1 rollout)" $((72 << 20))
rl small quota set "$RUN" trainer.floor=64KiB trainer.ceiling=64KiB --wait 200ms
same "a ceiling below what a step needs: exit code" "$rc" 1
matches "and the text says how much that is" "$(err_of small)" 'trainer on a:0: a ceiling of 64 KiB is below what its workers need to start, [0-9.]+ MiB'
same "the trainer has its ceiling again" "$(ceiling_of a:0 trainer)" $((64 << 20))
rl typo quota set "$RUN" rolout.ceiling=32MiB
matches "an unknown partition: the nearest is named" "$(err_of typo)" 'did you mean `rollout`'
same "an unknown partition: exit code" "$rc" 1
for wrong in rollout.ceiling=32 rollout.size=32MiB ceiling=32MiB rollout.ceiling= "rollout.ceiling=32MiB rollout.ceiling=33MiB"; do
    rl wrong quota set "$RUN" $wrong
    same "wrong usage: $wrong" "$rc" 2
done
rl none quota set "$RUN"
same "nothing to set" "$rc" 2

# ---- two assignments are one change ----
rl both quota set "$RUN" rollout.floor=60MiB rollout.ceiling=70MiB eval.ceiling=24MiB
same "several assignments: exit code" "$rc" 0
same "several assignments: rollout" "$(ceiling_of a:1 rollout)" $((70 << 20))
same "several assignments: eval" "$(ceiling_of a:2 eval)" $((24 << 20))

# ---- a floor and a ceiling below the floor of the job file: the steps declare what they need, not what was planned ----
rl under quota set "$RUN" trainer.floor=1MiB trainer.ceiling=12MiB
same "below the planned floor: exit code" "$rc" 0
at=$(last_step "$RUN")
check "steps go on below the planned floor" wait_until 20 reached "$RUN" $((at + 50))

# ---- a client that is killed while it waits: its change is put back, and others need not wait for it ----
agent_b=$(for p in $(survivors "$RUN"); do [[ $(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null) == *" agent "*" b "* ]] && echo "$p"; done | head -n 1)
need "node b has an agent" test -n "$agent_b"
kill -STOP "$agent_b" # it does not answer, so the change waits
(cd "$T" && exec "$RLCTL" quota set "$RUN" rollout.ceiling=68MiB --wait 60s >"$T/gone.out" 2>&1) &
gone=$!
begun() { grep -q "a change of quotas begins.*wait_ms 60000" "$RUN/logs/coordinator.log"; }
check "a change begins" wait_until 4 begun
rl second quota set "$RUN" eval.ceiling=23MiB
matches "while it waits, others are kept out" "$(err_of second)" "another change of quotas is under way"
kill -KILL "$gone"
wait "$gone" 2>/dev/null
noticed() { grep -q "who asked for a change of quotas has gone" "$RUN/logs/coordinator.log"; }
check "the coordinator notices that its client is gone" wait_until 4 noticed
kill -CONT "$agent_b"
again() { rl after quota set "$RUN" eval.ceiling=23MiB; [[ $rc -eq 0 ]]; }
check "another change is taken" wait_until 10 again
same "the one of the killed client is not in force" "$(ceiling_of a:1 rollout)" $((70 << 20))

# ---- a worker that is down uses nothing, and must come up again all the same ----
refused() { rl tiny quota set "$RUN" rollout.ceiling=100KiB rollout.floor=0B; [[ $rc -eq 1 ]]; }
check "a ceiling below what a worker needs to come up again is refused, also while none is up" refused

# ---- nobody was restarted, and the change outlives a restart ----
at=$(last_step "$RUN")
check "steps go on" wait_until 20 reached "$RUN" $((at + 5))
same "the same processes as before" "$(pids)" "$before"
kill -KILL "$(workers_of "$RUN" | awk '$1 == "rollout-0" { print $4 }')"
restarted() { [[ $(workers_of "$RUN" | awk '$1 == "rollout-0" { print $3, $6 }') == "running 1" ]]; }
check "a killed worker comes back" wait_until 30 restarted
same "under the changed quota" "$(ceiling_of a:1 rollout)" $((70 << 20))
matches "status has it too" "$(rl st status "$RUN" && out_of st)" 'rollout .* ceiling +70 MiB'
matches "status tells what is idle" "$(out_of st)" 'idle +[0-9]+ % of '

# ---- afterwards ----
rl stop stop "$RUN"
same "stop" "$rc" 0
reap live
matches "the journal tells it" "$(grep -a -o 'ceiling 67108864B -> 75497472B\|ceiling 64MiB -> 72MiB' "$RUN/journal.db" "$RUN"/journal.db-wal 2>/dev/null | head -n 1)" 'ceiling 64MiB -> 72MiB'
check "utilisation is in metrics.jsonl" grep -q '"event":"utilisation".*"idle":' "$RUN/metrics.jsonl"
check "metrics.jsonl is JSON" json_valid "$RUN/metrics.jsonl" lines
rl over quota show "$RUN"
same "a run that is over: exit code" "$rc" 1
matches "a run that is over: says so" "$(err_of over)" "is not running"
finish
