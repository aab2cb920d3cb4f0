#!/bin/bash
# An agent that is stopped for a while: its node misses weights, and its rollout workers send what is too stale without end. When it goes on, so does the run; nobody is taken for hung.
source "$(dirname "$0")/lib.sh"
cartpole one.toml paused
sed -e 's/^host_devices = 3/host_devices = 2/' -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 1\nhost_memory = "96MiB"' -e 's/"a:1"/"b:0"/' -e 's/"a:2"/"a:1"/' "$T/one.toml" >"$T/job.toml"
launch paused job.toml --set stop.train_steps=1000000000 --set fault.dead_after=20s --set fault.heartbeat=100ms
need "the run starts" wait_until 60 eval 'RUN=$(run_of paused) && reached "$RUN" 5'
agent_b=
for pid in $(agents_of "$RUN"); do
    [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"--node b "* ]] && agent_b=$pid
done
need "node b has an agent" test -n "$agent_b"
kill -STOP "$agent_b"
stale() { grep -q "too stale .* dropped 64$" "$RUN/logs/trainer-0.log"; }
check "its workers do not hear of new weights" wait_until 15 stale
kill -CONT "$agent_b"
at=$(last_step "$RUN")
check "the run goes on" wait_until 60 reached "$RUN" $((at + 20))
same "nobody was started again" "$(grep -c 'will be restarted' "$RUN/logs/coordinator.log")" 0
rl stop stop "$RUN"
reap paused
same "and it ends in order" "$rc" 0
finish
