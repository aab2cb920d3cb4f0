#!/bin/bash
# `rlctl weights`: status follows a run that goes on and one that has ended; probe measures the lanes of this machine.
source "$(dirname "$0")/lib.sh"
cartpole job.toml weights
launch weights job.toml --set stop.train_steps=1000000000 --set eval.every=50
need "the run starts" wait_until 30 eval 'RUN=$(run_of weights) && reached "$RUN" 5'
published() { rl json weights status "$RUN" --json; [[ $(out_of json) =~ '"published": '[1-9] ]]; }
need "versions are published" wait_until 30 published
told() { rl live weights status "$RUN"; [[ $(out_of live) =~ a\ +[0-9]+\ [0-9a-f]{8}\ +store ]]; } # with the agent's next beat
check "the node has been heard of" wait_until 20 told
rl live weights status "$RUN"
same "status of a run that goes on" "$rc" 0
matches "it names the newest version" "$(out_of live)" "version +[0-9]+; [0-9]+ published"
matches "what publishing costs" "$(out_of live)" "publish +[0-9.]+ [mnµu]?s last"
matches "and each worker" "$(out_of live)" "rollout-0 +a:[0-9]"
matches "what the push cost, by stage" "$(out_of live)" "last push  version [0-9]+, .*own store"
matches "what the node has" "$(out_of live)" "a +[0-9]+ [0-9a-f]{8} +store"
check "the JSON is valid" json_valid "$T/json.out"
rl within weights probe "$RUN" --lanes shm,tcp --bytes 4MiB
same "the run's own lanes are measured" "$rc" 0
matches "within its node" "$(out_of within)" "a: memcpy [0-9.]+ GB/s"
rl stop stop "$RUN"
reap weights
rl ended weights status "$RUN"
same "status of a run that has ended" "$rc" 0
rl over weights probe "$RUN"
same "lanes of a run that has ended cannot be measured" "$rc" 1
rl none weights status no-such-run
same "a run that is not there" "$rc" 2

rl probe weights probe --lanes shm,tcp --bytes 8MiB
same "probe works" "$rc" 0
matches "shared memory is measured" "$(out_of probe)" "shm +[0-9.]+ +[0-9.]+ +[0-9]+ %"
matches "and TCP" "$(out_of probe)" "tcp +[0-9.]+ +[0-9.]+ +[0-9]+ %"
rl all weights probe --bytes 1MiB --json
same "a lane that is not here is no failure" "$rc" 0
check "the JSON is valid" json_valid "$T/all.out"
rl wrong weights probe --lanes pigeon
same "an unknown lane is refused" "$rc" 2
rl wrong weights status --lanes tcp
same "an option of the other verb is refused" "$rc" 2
rl wrong weights
same "a verb is needed" "$rc" 2
finish
