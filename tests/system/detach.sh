#!/bin/bash
# `rlctl launch --detach` gives its output back as soon as the workers are up: RUN=$(rlctl launch JOB --detach) must not wait for the run's end.
source "$(dirname "$0")/lib.sh"
cartpole job.toml away
begun=$(now_ms)
id=$(cd "$T" && timeout -k 5 60 "$RLCTL" launch job.toml --dir "$T/away" --detach --set stop.train_steps=1000000000 2>&1 </dev/null)
rc=$?
took=$(($(now_ms) - begun))
same "launch --detach: exit code 0" "$rc" 0
matches "launch --detach: prints the run's id and nothing else" "$id" "^[0-9a-z]+$"
note "back after $took ms"
need "the run has a folder" eval 'RUN=$(run_of away)'
matches "the id is that run's" "$RUN" "$id\$"
check "the run is still there" kill -0 "$(coordinator_of "$RUN")"
check "and trains" wait_until 30 reached "$RUN" 5
pid=$(coordinator_of "$RUN")
same "its input and output are nobody's" "$(readlink "/proc/$pid/fd/0" "/proc/$pid/fd/1" | sort -u)" "/dev/null"
same "its errors go to its log" "$(readlink "/proc/$pid/fd/2")" "$RUN/logs/coordinator.log"
rl stop stop "$id" --dir "$T/away"
same "stop by that id: exit code 0" "$rc" 0
check "nothing is left" none_left
same "the run ended in order" "$(status_of "$RUN" outcome)" stopped

id=$(cd "$T" && timeout -k 5 60 "$RLCTL" resume "$RUN" --detach 2>"$T/resume.err" </dev/null)
same "resume --detach: exit code 0" "$?" 0
matches "resume --detach: prints the id" "$RUN" "$id\$"
rl stop2 stop "$RUN"
same "stop: exit code 0" "$rc" 0

# A run that cannot start says why, and the caller learns of it.
sed 's/CartPole-v1/NoSuchEnv-v0/' "$T/job.toml" >"$T/bad.toml"
out=$(cd "$T" && timeout -k 5 60 "$RLCTL" launch bad.toml --dir "$T/bad" --detach 2>"$T/bad.err" </dev/null)
check "a job that cannot start: not exit code 0" test $? -ne 0
same "a job that cannot start: no id" "$out" ""
matches "a job that cannot start: says why" "$(cat "$T/bad.err")" NoSuchEnv
finish
