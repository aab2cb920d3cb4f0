#!/bin/bash
# The run folder's disk fills up: the run goes on or ends with a reason, never with a torn checkpoint, and goes on when there is space again.
source "$(dirname "$0")/lib.sh"
[[ $(id -u) -eq 0 ]] || skip "mounting a small disk needs root"
mkdir "$T/full"
mount -t tmpfs -o size=32m none "$T/full" 2>/dev/null || skip "no right to mount a tmpfs"
MOUNTS+=("$T/full")
cartpole job.toml disk
launch full job.toml --set stop.train_steps=1000000000 --set checkpoint.every=5 --set checkpoint.keep=2 --set eval.every=50
a_checkpoint() { RUN=$(run_of full) && compgen -G "$RUN/checkpoints/step-*/checkpoint.json" >/dev/null; }
need "the run starts and writes a checkpoint" wait_until 30 a_checkpoint
# What is there stays: giving it back for a moment would let the run have it.
fill() { dd if=/dev/zero bs=4k >>"$T/full/filler" 2>/dev/null; [[ $(stat -f -c %a "$T/full") -eq 0 ]]; }
fill
at=$(last_step "$RUN")
# For a while everything that writes fails, while old checkpoints are pruned and every freed byte is taken again.
noticed() { fill; ! kill -0 "$(coordinator_of "$RUN")" 2>/dev/null || grep -qi 'no space left\|abandoned\|dropped\|full' "$RUN/logs/coordinator.log" "$T/full.err"; }
check "the full disk is noticed" wait_until 30 noticed
still_there() { kill -0 "$(coordinator_of "$RUN")" 2>/dev/null; }
if still_there; then
    note "the run goes on without the disk, from step $at"
    rm -f "$T/full/filler"
    newest() { ls "$RUN/checkpoints" | sort | tail -n 1; }
    was=$(newest)
    newer() { [[ $(newest) > $was ]] || ! still_there; } # it may yet meet something it cannot do without, such as more version numbers
    check "with space again there are new checkpoints, or it has ended" wait_until 30 newer
fi
if still_there; then
    fill
    rl stop stop "$RUN" --timeout 40
    same "stopping with a full disk: exit code 0" "$rc" 0
    reap full
else
    reap full
    same "the run ended: exit code 1" "$rc" 1
    matches "the run ended: the reason" "$(err_of full)" "[Nn]o space left|full|cannot be written"
fi
check "nothing is left" none_left
rl status status "$RUN"
same "status works on a full disk" "$rc" 0
rl list list --dir "$T/full"
same "list works on a full disk" "$rc" 0
rl_bg nospace resume "$RUN" --quiet
reap nospace
note "resume on a full disk: exit code $rc: $(err_of nospace | head -n 1)"
check "resume on a full disk fails" test "$rc" -ne 0
check "resume on a full disk leaves nothing" none_left
rm -f "$T/full/filler"
torn=0
for c in "$RUN"/checkpoints/step-*; do
    [[ -s $c/checkpoint.json && -s $c/trainer-0.state && -s $c/policy.safetensors ]] || torn=$((torn + 1))
done
same "no torn checkpoint" "$torn" 0
checkpoint=$(checkpoint_of "$RUN")
lines=$(wc -l <"$RUN/metrics.jsonl")
grown() { [[ $(wc -l <"$RUN/metrics.jsonl") -gt $((lines + 20)) ]]; }
rl_bg again resume "$RUN" --quiet
check "with space again resume goes on from step ${checkpoint:-0}" wait_until 30 grown
rl stop stop "$RUN"
same "and stops in order" "$rc" 0
reap again
same "with exit code 0" "$rc" 0
finish
