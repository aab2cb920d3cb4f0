#!/bin/bash
# Weights between two nodes on one machine: what status says of each, the lanes measured between them, which lane is taken, and a node that pulls what it has missed.
source "$(dirname "$0")/lib.sh"
cartpole one.toml nodes
sed -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 1\nhost_memory = "96MiB"' -e 's/"a:1"/"a:1", "b:0"/' "$T/one.toml" >"$T/job.toml"
# of_node NODE KEY: of status.json, a number or a text
of_node_in() { tr -d '\n' <"$1/status.json" | grep -o '"nodes": *\[.*' | grep -o "{[^}]*\"node\": \"$2\"[^}]*}" | head -n 1 | grep -o "\"$3\": [^,}]*" | sed 's/.*: //; s/"//g; s/ *$//'; }
of_node() { of_node_in "$RUN" "$1" "$2"; }

launch nodes job.toml --set stop.train_steps=1000000000 --set eval.every=1000000 --set weights.deadline=300ms --set fault.dead_after=40s --set fault.backoff=15s --set fault.backoff_max=20s
need "the run starts" wait_until 40 eval 'RUN=$(run_of nodes) && reached "$RUN" 20'
both_have() { [[ $(of_node a version) -gt 0 && $(of_node b version) -gt 0 ]]; }
need "both nodes have versions" wait_until 20 both_have
rl live weights status "$RUN"
same "status" "$rc" 0
matches "which lanes, and why" "$(out_of live)" "lanes +shm,.*tcp between nodes, the first that opens .versions of .*: too small to measure"
matches "the trainer's node is written directly" "$(out_of live)" "a +[0-9]+ [0-9a-f]{8} +store"
matches "the other one over a lane" "$(out_of live)" "b +[0-9]+ [0-9a-f]{8} +shm"
rl json weights status "$RUN" --json
check "the JSON is valid" json_valid "$T/json.out"
matches "it has the digest" "$(out_of json)" '"digest": "[0-9a-f]{32}"'

rl probe weights probe "$RUN" --lanes shm,tcp --bytes 4MiB
same "probe" "$rc" 0
matches "from a to b" "$(out_of probe)" "a → b: memcpy"
same "two lanes for each of three pairs" "$(grep -cE '^  (shm|tcp) +[0-9.]+ ' "$T/probe.out")" 6
rl wrong weights probe "$RUN" --lanes pigeon
same "an unknown lane is refused" "$rc" 2

# b sleeps while versions are pushed; before it wakes up, the trainer dies and stays away for a while: only node a has what b has missed.
agent_b=$(agents_of "$RUN" | while read -r pid; do grep -qz -- '^b$' "/proc/$pid/cmdline" && echo "$pid"; done)
need "the agent of b is found" test -n "$agent_b"
kill -STOP "$agent_b"
without_b() { [[ $(tr -d '\n' <"$RUN/status.json" | grep -o '"dropped_total": [0-9]*') != '"dropped_total": 0' ]]; }
need "a push does without it" wait_until 30 without_b
before=$(of_node a version)
ahead() { [[ $(of_node a version) -gt $before ]]; }
need "versions go on without it" wait_until 30 ahead
trainer=$(workers_of "$RUN" | awk '$1 == "trainer-0" { print $4 }')
kill -KILL "$trainer"
kill -CONT "$agent_b"
pulled() { [[ $(of_node b pulls) -gt 0 ]]; }
need "b pulls from a" wait_until 14 pulled
same "b has what a has" "$(of_node b version)" "$(of_node a version)"
rl stop stop "$RUN"
reap nodes

for lane in nccl cuda_ipc; do
    rl refused launch job.toml --dir "$T/refused" --set weights.transport=$lane
    same "$lane: refused" "$rc" 2
    matches "with one line" "$(err_of refused)" "weights.transport. = .$lane. moves GPU memory"
done
launch tcp job.toml --set stop.train_steps=50 --set weights.transport=tcp
reap tcp
same "weights.transport = tcp" "$rc" 0
RUN=$(run_of tcp)
same "takes TCP" "$(of_node b lane)" tcp

# The lanes between the nodes are measured before the run starts, and the report says what was picked.
rl picks launch "$T/job.toml" --dir "$T/picks" --set stop.train_steps=20 --set weights.measure=1B
same "a run that measures" "$rc" 0
matches "says which lane was picked, and what was measured" "$(err_of picks)" "weights +b: (shm|tcp) picked .shm [0-9.]+ GB/s, .*tcp [0-9.]+ GB/s"
RUN=$(run_of picks)
same "and takes it" "$(of_node b lane)" "$(of_node b picked)"
finish
