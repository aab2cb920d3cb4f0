#!/bin/bash
# One machine as two nodes: 12 workers, trajectories and weights between two agents that share nothing but sockets.
source "$(dirname "$0")/lib.sh"
cartpole one.toml pair
sed -e 's/^host_devices = 3/host_devices = 7/' -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 5\nhost_memory = "96MiB"' \
    -e 's/"a:0"/"a:0-3"/' -e 's/"a:1"/"a:4-6", "b:0-2"/' -e 's/"a:2"/"b:3-4"/' "$T/one.toml" >"$T/job.toml"
BATCH=$((12 * 8 * 32)) # two fragments of each of 6 rollout workers deal evenly to 4 trainers
STEPS=300
launch pair job.toml --set stop.train_steps=$STEPS --set eval.every=1 --set fault.start_timeout=60s
wait_until 60 eval 'RUN=$(run_of pair) && phase_is "$RUN" running' && note "12 workers are up"
two_agents() { [[ $(agents_of "$RUN" | wc -l) -eq 2 ]]; }
saw_agents=0
wait_until 20 two_agents && saw_agents=1
reap pair
same "launch: exit code 0" "$rc" 0
same "two agents" "$saw_agents" 1
check "nothing is left" none_left
check_steps "each step once, versions grow, environment steps are exact" "$RUN" $BATCH
same "every step was taken" "$(last_step "$RUN")" $STEPS
same "workers" "$(workers_of "$RUN" | cut -d' ' -f2 | sort | uniq -c | tr -s ' \n' ' ')" " 2 eval 6 rollout 4 train "
version=$(status_of "$RUN" version)
# The agents share no memory: what a worker of node b acts with came over TCP.
same "rollout workers of node b act with recent weights" "$(workers_of "$RUN" | awk -v v="$version" '$2 == "rollout" && $7 ~ /^b:/ && $5 >= v - 2' | wc -l)" 3
evaluated=$(grep '"event":"eval"' "$RUN/metrics.jsonl" | tail -n 1 | grep -o '"version":[0-9]*')
check "eval workers of node b evaluated recent weights (${evaluated#*:} of $version)" test "${evaluated#*:}" -gt $((version / 2))
same "no version was skipped on the way" "$((version > STEPS))" 1
matches "both nodes kept their memory fences" "$(out_of pair)" "0 violations of the memory fence"
same "nobody had to be restarted" "$(status_of "$RUN" restarts)" 0
finish
