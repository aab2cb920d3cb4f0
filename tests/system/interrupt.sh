#!/bin/bash
# Ctrl-C and `rlctl stop` end a run in order, with a checkpoint that `rlctl resume` goes on from.
source "$(dirname "$0")/lib.sh"
STEPS=1000000000
cartpole job.toml stops

launch int job.toml --set stop.train_steps=$STEPS
need "the run starts" wait_until 30 eval 'RUN=$(run_of int) && reached "$RUN" 5'
kill -INT "$(coordinator_of "$RUN")"
reap int
same "SIGINT: exit code 0" "$rc" 0
matches "SIGINT: summary" "$(out_of int)" "^stopped +after .*interrupted"
check "SIGINT: nothing is left" none_left
checkpoint=$(checkpoint_of "$RUN")
same "SIGINT: the checkpoint is of the last step" "$checkpoint" "$(status_of "$RUN" step)"
check "SIGINT: the checkpoint is whole" test -s "$RUN/checkpoints/step-$(printf %09d "$checkpoint")/checkpoint.json"

# ---- resume, followed by a reader, ended by rlctl stop ----
rl_bg again resume "$RUN" --quiet
further() { reached "$RUN" $((checkpoint + 10)) && [[ $(status_of "$RUN" incarnation) == 2 ]] && phase_is "$RUN" running; }
check "resume: goes on after the checkpoint" wait_until 30 further
rl_bg follow logs "$RUN" -f
rl resume2 resume "$RUN"
same "resume of a running run is refused" "$rc" 1
same "resume of a running run: one line" "$(wc -l <"$T/resume2.err")" 1
matches "resume of a running run: says so" "$(err_of resume2)" "already running"
rl status status "$RUN"
matches "status of a running run" "$(out_of status | tr '\n' '~')" "running for .*\(process [0-9]+\).*worker +device.*trainer-0 .*rollout-0 .*eval-0 "
rl status_json status "$RUN" --json
matches "status --json of a running run" "$(tr -d '\n' <"$T/status_json.out")" '"running": true'
rl stop stop "$RUN"
same "stop: exit code 0" "$rc" 0
matches "stop: says how it ended" "$(out_of stop)" "ended in .*: stopped by .rlctl stop"
check "stop: nothing but the reader of the log is left when it returns" none_left "$RUN"
reap again
same "stop: the run's own exit code is 0" "$rc" 0
reap follow
same "logs -f ends with the run" "$rc" 0
matches "logs -f showed the end" "$(out_of follow)" "finishing to over"
steps=$(steps_of "$RUN" | awk -v at="$checkpoint" '$1 == at + 1' | wc -l)
same "resume: the step after the checkpoint is taken once" "$steps" 1
check_steps "resume: no step twice, no version twice" "$RUN" $CARTPOLE_BATCH

# ---- early and impatient ----
launch early job.toml --set stop.train_steps=$STEPS
need "the next run has a coordinator" wait_until 10 eval 'RUN=$(run_of early) && has "$RUN/lock" && has "$RUN/journal.db"'
rl stop stop "$RUN"
same "stop while it starts: exit code 0" "$rc" 0
reap early
check "stop while it starts: nothing is left" none_left
launch twice job.toml --set stop.train_steps=$STEPS
need "the next run starts" wait_until 30 eval 'RUN=$(run_of twice) && reached "$RUN" 1'
pid=$(coordinator_of "$RUN")
kill -INT "$pid"
kill -INT "$pid" 2>/dev/null
reap twice
check "two interrupts: nothing is left" none_left
launch hard job.toml --set stop.train_steps=$STEPS
need "the last run starts" wait_until 30 eval 'RUN=$(run_of hard) && reached "$RUN" 1'
kill -STOP "$(coordinator_of "$RUN")"
rl stop stop "$RUN" --timeout 1
same "a coordinator that hangs is killed: exit code 1" "$rc" 1
matches "a coordinator that hangs is killed: says so" "$(err_of stop)$(out_of stop)" "killing it.*was killed after"
check "a coordinator that hangs is killed: nothing is left" none_left "$RUN"
reap hard
finish
