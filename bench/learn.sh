#!/usr/bin/env bash
# Time to learn: runs job files over seeds with the real rlctl, one job at a time, and prints what it took.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<'TEXT'
Usage: bench/learn.sh [--config NAME|FILE]... [--seeds N] [--first-seed N] [--set KEY=VALUE]... [--rlctl FILE] [--keep DIR] [--peer PYTHON] [--each]

Per job file: on how many seeds the job learned (its stop.eval_return or stop.train_return was reached), and the
median, least and most of
  solved s     from the start of `rlctl launch` until that happened
  command s    the whole command, from typing it to its exit
  env steps    trained on by then
over the seeds that learned. Every run is a fresh job with its own processes and its own episodes.

  --config NAME   a job file, or the name of one in configs/; may be repeated (default: all that have a target)
  --seeds N       seeds per job file (10)
  --first-seed N  the first of them (1)
  --set KEY=VALUE passed to rlctl; may be repeated
  --rlctl FILE    (build/release/bin/rlctl)
  --keep DIR      keep the run folders there
  --peer PYTHON   after every run of cartpole-window also one of Stable-Baselines3's PPO with the same seed, by this
                  interpreter (bench/README.md says how to install it); two more lines: from typing the command, and
                  inside learn() alone
  --each          one line per run too
TEXT
}

configs=() sets=() seeds=10 first=1 rlctl=$root/build/release/bin/rlctl keep="" each="" peer=""
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --each) each=1 && shift && continue ;;
    --config | --seeds | --first-seed | --set | --rlctl | --keep | --peer)
        [[ $# -ge 2 ]] || { echo "learn.sh: $1 needs a value" >&2 && exit 2; }
        case $1 in
        --config) configs+=("$2") ;;
        --seeds) seeds=$2 ;;
        --first-seed) first=$2 ;;
        --set) sets+=(--set "$2") ;;
        --rlctl) rlctl=$2 ;;
        --keep) keep=$2 ;;
        --peer) peer=$2 ;;
        esac
        shift 2
        ;;
    *) usage >&2 && exit 2 ;;
    esac
done
[[ $seeds =~ ^[1-9][0-9]*$ && $first =~ ^[0-9]+$ ]] || { echo "learn.sh: --seeds and --first-seed are numbers" >&2 && exit 2; }
[[ -x $rlctl ]] || { echo "learn.sh: no $rlctl: build it (cmake --preset release && cmake --build build/release), or give --rlctl" >&2 && exit 2; }
if [[ ${#configs[@]} -eq 0 ]]; then
    mapfile -t configs < <(grep -lE '^(eval|train)_return' "$root"/configs/*.toml)
fi

scratch=$(mktemp -d)
child=""
# shellcheck disable=SC2317  # called by the trap
clean() {
    [[ -z $child ]] || kill "$child" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 130' INT TERM
runs=${keep:-$scratch/runs}

# Top-level number or string of the summary; it is printed one member per line, indented by one space.
member() { sed -nE "s/^ \"$1\": \"?([^\",]*)\"?,?\$/\1/p" "$2"; }

# Median, least and most of the numbers on stdin.
spread() {
    sort -g | awk -v form="$1" '{ x[NR] = $1 } END {
        if (NR == 0) { printf "%8s %8s %8s", "-", "-", "-"; exit }
        m = NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2
        printf form " " form " " form, m, x[1], x[NR] }'
}

# Runs a command as the child; sets `code` and `command_s`, the time from starting it to its exit.
timed() { # OUTPUT COMMAND...
    local begun=$EPOCHREALTIME output=$1
    shift
    "$@" >"$output" 2>"$scratch/talk" &
    child=$!
    code=0
    wait "$child" || code=$?
    child=""
    command_s=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }')
}

each_line() { # SEED OUTCOME SOLVED COMMAND STEPS REASON
    [[ -z $each ]] || printf '  seed %-4s %-8s solved %-8s command %-8s env steps %-9s %s\n' "$@"
}

launch() { # FILE SEED: adds "solved_s command_s env_steps" to $scratch/learned when it learned
    timed "$scratch/summary" "$rlctl" launch "$1" --quiet --json --dir "$runs" --set "job.seed=$2" "${sets[@]}"
    if [[ $code -ne 0 ]]; then
        echo "learn.sh: $1, seed $2: rlctl ended with $code" >&2
        cat "$scratch/talk" >&2
        [[ $code -ne 2 ]] || exit 2 # the job itself is wrong
        return
    fi
    local outcome solved steps
    outcome=$(member outcome "$scratch/summary") solved=$(member learned_s "$scratch/summary") steps=$(member env_steps "$scratch/summary")
    [[ $outcome != learned ]] || echo "$solved $command_s $steps" >>"$scratch/learned"
    each_line "$2" "$outcome" "${solved:0:6}" "$command_s" "$steps" "$(member reason "$scratch/summary")"
    [[ -n $keep ]] || rm -rf "$runs"
}

launch_peer() { # SEED: adds to $scratch/peer and $scratch/peer-learn
    timed "$scratch/summary" env OMP_NUM_THREADS=1 "$peer" "$root/bench/learn_sb3.py" "$1"
    if [[ $code -ne 0 ]]; then
        echo "learn.sh: learn_sb3.py, seed $1, ended with $code" >&2
        cat "$scratch/talk" >&2
        exit 2
    fi
    local outcome inside steps
    read -r outcome inside steps <"$scratch/summary"
    if [[ $outcome == learned ]]; then
        echo "$command_s $command_s $steps" >>"$scratch/peer"
        echo "$inside $command_s $steps" >>"$scratch/peer-learn"
    fi
    each_line "$1" "$outcome" "$inside" "$command_s" "$steps" "Stable-Baselines3"
}

row() { # NAME FILE
    printf '%-24s %7s  %s  %s  %s\n' "$1" "$(wc -l <"$2")/$seeds" "$(cut -d' ' -f1 "$2" | spread %8.3f)" \
        "$(cut -d' ' -f2 "$2" | spread %8.3f)" "$(cut -d' ' -f3 "$2" | spread %9d)"
}

printf '%-24s %7s  %26s  %26s  %29s\n' "" "seeds" "solved s" "command s" "env steps"
printf '%-24s %7s  %8s %8s %8s  %8s %8s %8s  %9s %9s %9s\n' "job" "learned" median least most median least most median least most
failed=0
for config in "${configs[@]}"; do
    file=$config
    [[ -f $file ]] || file=$root/configs/${config%.toml}.toml
    [[ -f $file ]] || { echo "learn.sh: no job file $config" >&2 && exit 2; }
    name=$(basename "$file" .toml)
    for list in learned peer peer-learn; do
        : >"$scratch/$list"
    done
    for ((seed = first; seed < first + seeds; seed++)); do
        launch "$file" "$seed"
        [[ -z $peer || $name != cartpole-window ]] || launch_peer "$seed"
    done
    [[ $(wc -l <"$scratch/learned") -eq $seeds ]] || failed=1
    row "$name" "$scratch/learned"
    if [[ -n $peer && $name == cartpole-window ]]; then
        row "  stable-baselines3" "$scratch/peer"
        row "  its learn() alone" "$scratch/peer-learn"
    fi
done
exit $failed
