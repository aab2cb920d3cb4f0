#!/bin/bash
# Environments that crash or hang: isolated in a process they cost episodes; in the worker they cost the worker, and in the end the run, with a reason.
source "$(dirname "$0")/lib.sh"
WALK=${SYSTEM_PLUGINS:-}/walk.so
[[ -r $WALK ]] || skip "set SYSTEM_PLUGINS to the folder of walk.so"
cartpole cart.toml walk
sed -e 's|^id = .*|id = "walk/Same-v0"\nlibrary = "'"$WALK"'"|' -e 's/^instances = 8/instances = 4/' -e 's/^fragment = 32/fragment = 4/' -e 's/^minibatch = .*/minibatch = 16/' \
    "$T/cart.toml" >"$T/job.toml"
BATCH=16
FAULT=(--set fault.restarts_max=3 --set fault.backoff=1ms --set fault.backoff_max=5ms)

launch good job.toml
reap good
same "a sound plug-in: exit code 0" "$rc" 0
check_steps "a sound plug-in: steps" "$(run_of good)" $BATCH

# ---- isolated: the plug-in's process is replaced, its episodes are void ----
launch crash job.toml --set env.id=\"walk/Crash-v0\" --set env.isolation=\"process\" --set env.restarts=100000 --set stop.train_steps=8
reap crash
RUN=$(run_of crash)
same "isolated crash: exit code 0" "$rc" 0
check_steps "isolated crash: steps" "$RUN" $BATCH
check "isolated crash: episodes were voided" test "$(status_of "$RUN" void_episodes)" -gt 0
same "isolated crash: no worker died" "$(status_of "$RUN" restarts)" 0
launch hang job.toml --set env.id=\"walk/Hang-v0\" --set env.isolation=\"process\" --set env.restarts=100000 --set env.step_timeout=50ms --set stop.train_steps=3
reap hang
RUN=$(run_of hang)
same "isolated hang: exit code 0" "$rc" 0
check_steps "isolated hang: steps" "$RUN" $BATCH
same "isolated hang: no worker died" "$(status_of "$RUN" restarts)" 0
launch worn job.toml --set env.id=\"walk/Crash-v0\" --set env.isolation=\"process\" --set env.restarts=2 "${FAULT[@]}" --set stop.train_steps=1000000
reap worn
same "isolated crash, env.restarts used up: exit code 1" "$rc" 1
matches "isolated crash, env.restarts used up: the reason" "$(err_of worn)" "(rollout|eval)-0 ended 4 times .*walk/Crash-v0"

# ---- in the worker: the worker is replaced, and at fault.restarts_max the run fails ----
launch inside job.toml --set env.id=\"walk/Crash-v0\" "${FAULT[@]}" --set stop.train_steps=1000000
reap inside
same "crash in the worker: exit code 1" "$rc" 1
matches "crash in the worker: the reason" "$(err_of inside)" "(rollout|eval)-0 ended 4 times .*fault.restarts_max 3.*SIGABRT"
check "crash in the worker: nothing is left" none_left
launch inside_hang job.toml --set env.id=\"walk/Hang-v0\" "${FAULT[@]}" --set env.step_timeout=100ms --set fault.heartbeat=50ms --set stop.train_steps=1000000
reap inside_hang
same "hang in the worker: exit code 1" "$rc" 1
matches "hang in the worker: the reason" "$(err_of inside_hang)" "(rollout|eval)-0 ended 4 times .*env.step_timeout"
check "hang in the worker: nothing is left" none_left

# ---- before anything starts ----
launch create job.toml --set env.id=\"walk/CrashInCreate-v0\"
reap create
check "crash when created: fails" test "$rc" -ne 0
matches "crash when created: the reason, before anything starts" "$(err_of create)" "walk/CrashInCreate-v0: .*died of signal 6 .*in create"
check "crash when created: no run folder" test ! -e "$T/create"
for broken in no_symbol wrong_abi no_step short_ops; do
    rl "$broken" launch job.toml --set env.library=\""${WALK%/*}/$broken.so"\" --dir "$T/$broken"
    same "$broken: exit code 2" "$rc" 2
    check "$broken: no run folder" test ! -e "$T/$broken"
done
finish
