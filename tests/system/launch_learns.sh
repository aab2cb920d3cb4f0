#!/bin/bash
# A small job from launch to summary, and what the commands that look at runs say about it.
source "$(dirname "$0")/lib.sh"
cartpole job.toml tiny
STEPS=24
before=$(ls /dev/shm 2>/dev/null | sort)
rl launch launch job.toml --set stop.train_steps=0 --set stop.env_steps=$((STEPS * CARTPOLE_BATCH)) --set eval.every=4
same "launch: exit code 0" "$rc" 0
check "nothing of it is left once launch has returned" none_left
RUN=$(run_of runs)
matches "summary: outcome" "$(out_of launch)" "^done +after .*$((STEPS * CARTPOLE_BATCH)) environment steps"
matches "summary: memory" "$(out_of launch)" "0 violations of the memory fence"
matches "summary: where it is" "$(out_of launch)" "run +runs/${RUN##*/}"
ID=${RUN##*-}

check "metrics.jsonl: one JSON object per line" json_valid "$RUN/metrics.jsonl" lines
check_steps "metrics.jsonl: each step once, versions grow, environment steps are exact" "$RUN" $CARTPOLE_BATCH
same "metrics.jsonl: a line per step" "$(steps_of "$RUN" | wc -l)" $STEPS
check "metrics.jsonl: evaluations" grep -q '"event":"eval"' "$RUN/metrics.jsonl"
check "status.json is JSON" json_valid "$RUN/status.json"
same "sockets are gone" "$(find "$RUN/sock" -type s)" ""
same "no temporary files" "$(find "$RUN" -name '*.tmp*' -o -name '.step-*')" ""
same "no new object in /dev/shm" "$(comm -13 <(echo "$before") <(ls /dev/shm 2>/dev/null | sort) | grep -i corral)" ""
same "secrets are for the owner only" "$(stat -c %a "$RUN/launch.json" "$RUN/sock" | paste -sd' ')" "600 700"

# ---- status, list, logs, stop ----
for which in "" last "$ID" "${ID:0:6}" "tiny-$ID" "runs/tiny-$ID" "$RUN"; do
    rl status status $which
    same "status ${which/$T/…}: exit code" "$rc" 0
    matches "status ${which/$T/…}: outcome and step" "$(out_of status | tr '\n' '~')" "tiny  run $ID  done after.*step +$STEPS "
done
rl status_json status --json
check "status --json is JSON" json_valid "$T/status_json.out"
matches "status --json: running and path" "$(tr -d '\n' <"$T/status_json.out")" "\"running\": false.*\"path\": \"$RUN\""
rl list list
matches "list" "$(out_of list)" "$ID +tiny +[0-9]{4}-[0-9-]+ [0-9:]+ +done +$STEPS +[0-9.]+"
rl list_json list --json
check "list --json is JSON" json_valid "$T/list_json.out"

rl logs logs
same "logs: exit code" "$rc" 0
same "logs: coordinator, agent, workers" "$(grep '^==> ' "$T/logs.out" | paste -sd' ')" "==> coordinator <== ==> agent-a <== ==> eval-0 <== ==> rollout-0 <== ==> trainer-0 <=="
rl logs_one logs last trainer-0 coordinator -n 1
same "logs of two: headers in the order asked for" "$(grep '^==> ' "$T/logs_one.out" | paste -sd' ')" "==> trainer-0 <== ==> coordinator <=="
same "logs -n 1: the last line" "$(tail -n 1 "$T/logs_one.out")" "$(tail -n 1 "$RUN/logs/coordinator.log")"
rl logs_one logs last trainer-0
same "logs of one is its file" "$(out_of logs_one)" "$(cat "$RUN/logs/trainer-0.log")"
rl logs_json logs last --json
check "logs --json is JSON" json_valid "$T/logs_json.out" lines
rl logs_near logs last trainer0
same "logs: unknown worker, exit code" "$rc" 2
matches "logs: unknown worker, nearest name" "$(err_of logs_near)" "did you mean .trainer-0"
rl logs_follow logs -f -n 1
same "logs -f of a run that is over returns" "$rc" 0
rl stop stop
same "stop of a run that is over: exit code" "$rc" 0
matches "stop of a run that is over" "$(out_of stop)" "not running"

# ---- damage: a note, never a crash ----
cp -a "$RUN" "$T/runs/broken-00000001"
cp -a "$RUN" "$T/runs/broken-00000002"
cp -a "$RUN" "$T/runs/broken-00000003"
head -c 300 "$RUN/status.json" >"$T/runs/broken-00000001/status.json"
head -c 3000 /dev/urandom >"$T/runs/broken-00000002/journal.db"
rm -f "$T/runs/broken-00000003/"{journal.db*,status.json}
rl list list
same "list with damaged runs: exit code" "$rc" 0
same "list with damaged runs: a row each" "$(wc -l <"$T/list.out")" 5
for i in 1 2 3; do
    matches "damaged run $i: a note in its row" "$(grep "^0000000$i" "$T/list.out")" "note: "
    rl status status "0000000$i"
    same "damaged run $i: status works" "$rc" 0
done
rl list_json list --json
check "list --json with damaged runs is JSON" json_valid "$T/list_json.out"
finish
