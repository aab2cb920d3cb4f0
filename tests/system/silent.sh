#!/bin/bash
# Silence: a worker that hangs is killed and started again, a node that hangs ends the run with a reason, and the run can be resumed.
source "$(dirname "$0")/lib.sh"
cartpole one.toml silent
sed -e 's/^host_devices = 3/host_devices = 2/' -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 1\nhost_memory = "96MiB"' -e 's/"a:2"/"b:0"/' "$T/one.toml" >"$T/job.toml"
launch silent job.toml --set stop.train_steps=1000000000 --set fault.dead_after=2s --set fault.heartbeat=100ms --set env.step_timeout=2s --set eval.every=1000000 \
    --set fault.backoff=10ms
need "the run starts" wait_until 30 eval 'RUN=$(run_of silent) && reached "$RUN" 5'

# ---- hung workers ----
pid_of() { workers_of "$RUN" | awk -v name="$1" '$1 == name { print $4 }'; }
for name in eval-0 rollout-0 trainer-0; do
    # status.json lags behind: wait until it names a process that is this worker
    alive() { was=$(pid_of "$name"); [[ ${was:-0} -gt 0 && $(tr '\0' ' ' <"/proc/$was/cmdline" 2>/dev/null) == "rlctl worker $name "* ]]; }
    need "$name is there" wait_until 20 alive
    at=$(last_step "$RUN")
    kill -STOP "$was"
    replaced() { local pid; pid=$(pid_of "$name"); [[ ${pid:-0} -gt 0 && $pid -ne $was ]]; }
    # A stopped trainer may be in a step, which gets ten times as long.
    check "$name hangs: it is started again" wait_until 40 replaced
    check "$name hangs: the run goes on" wait_until 30 reached "$RUN" $((at + 20))
done
check "the log names what a hung worker was doing" grep -Eq "no sign of life for .* while |has not returned for" "$RUN/logs/coordinator.log"

# ---- a hung node ----
agent_b=
for pid in $(agents_of "$RUN"); do
    [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"--node b "* ]] && agent_b=$pid
done
need "node b has an agent" test -n "$agent_b"
begun=$(now_ms)
kill -STOP "$agent_b"
reap silent
note "ended $(($(now_ms) - begun)) ms after the agent was stopped"
same "a silent node: exit code 1" "$rc" 1
matches "a silent node: the reason" "$(err_of silent)" "node b has been silent for [0-9.]+ s \(fault.dead_after\)"
check "a silent node: nothing is left" none_left
step=$(status_of "$RUN" step)
same "a silent node without a trainer: the last step is saved" "$(checkpoint_of "$RUN")" "$step"
LIMIT_S=60 rl_bg again resume "$RUN" --quiet
check "the run can be resumed" wait_until 30 reached "$RUN" $((step + 5))
rl stop stop "$RUN"
reap again
same "and ends in order" "$rc" 0
finish
