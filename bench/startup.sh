#!/usr/bin/env bash
# Time from nothing to training, and back: launches a job of 12 workers that stops after one gradient step, again and again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
Usage: bench/startup.sh [--launches N] [--rlctl FILE]

Launches configs/cartpole.toml on 12 host devices of one node (6 trainers, 5 rollout workers, 1 evaluator), stopped after
the first gradient step, and prints median, least and most of
  first step   start of `rlctl launch` until the first gradient step is committed: plan, agent, 12 processes, logins,
               trainer group, first weights, environments, trajectories, gradient
  to exit      from then on: last checkpoint, everybody told to stop, waited for, summary
  command      the whole command
  12 processes the yardstick, in turns with the launches: 12 times `rlctl --version` at once, until all have ended
  ratio        first step / 12 processes of the same turn

  --launches N  (9)
  --rlctl FILE  (build/release/bin/rlctl)
TEXT
}

launches=9 rlctl=$root/build/release/bin/rlctl
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --launches | --rlctl)
        [[ $# -ge 2 ]] || { echo "startup.sh: $1 needs a value" >&2 && exit 2; }
        [[ $1 == --launches ]] && launches=$2 || rlctl=$2
        shift 2
        ;;
    *) usage >&2 && exit 2 ;;
    esac
done
[[ $launches =~ ^[1-9][0-9]*$ ]] || { echo "startup.sh: --launches is a number" >&2 && exit 2; }
[[ -x $rlctl ]] || { echo "startup.sh: no $rlctl: build it (cmake --preset release && cmake --build build/release), or give --rlctl" >&2 && exit 2; }

scratch=$(mktemp -d)
child=""
# shellcheck disable=SC2317  # called by the trap
clean() {
    [[ -z $child ]] || kill "$child" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 130' INT TERM

job=(--set node.a.host_devices=12 --set 'partition.trainer.gpus=["a:0-5"]' --set 'partition.rollout.gpus=["a:6-10"]'
    --set 'partition.eval.gpus=["a:11"]' --set rollout.fragment=16 --set stop.eval_return=1e9 --set stop.train_steps=1)

since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.4f", b - a }'; }

twelve_processes() {
    local begun=$EPOCHREALTIME pids=()
    for _ in {1..12}; do
        "$rlctl" --version >/dev/null &
        pids+=($!)
    done
    wait "${pids[@]}"
    processes_s=$(since "$begun")
}

launch() {
    local begun=$EPOCHREALTIME
    "$rlctl" launch "$root/configs/cartpole.toml" --quiet --json --dir "$scratch/runs" "${job[@]}" >"$scratch/summary" 2>"$scratch/talk" &
    child=$!
    if ! wait "$child"; then
        echo "startup.sh: rlctl launch failed" >&2
        cat "$scratch/talk" >&2
        exit 1
    fi
    child=""
    command_s=$(since "$begun")
    first_s=$(sed -nE 's/^ +"first_step_s": ([0-9.]+),?$/\1/p' "$scratch/summary")
    [[ -n $first_s ]] || { echo "startup.sh: the job took no gradient step" >&2 && exit 1; }
    rm -rf "$scratch/runs"
}

for ((i = 0; i < launches; i++)); do
    twelve_processes
    launch
    awk -v f="$first_s" -v c="$command_s" -v p="$processes_s" 'BEGIN { print f, c - f, c, p, f / p }' >>"$scratch/times"
done

row() { # NAME COLUMN UNIT
    cut -d' ' -f"$2" "$scratch/times" | sort -g | awk -v name="$1" -v unit="$3" '{ x[NR] = $1 } END {
        m = NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2
        printf "%-14s %8.3f %8.3f %8.3f  %s\n", name, m, x[1], x[NR], unit }'
}

printf '%-14s %8s %8s %8s  %s launches of 12 workers\n' "" median least most "$launches"
row "first step" 1 s
row "to exit" 2 s
row "command" 3 s
row "12 processes" 4 s
row "ratio" 5 ""
