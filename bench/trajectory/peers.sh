#!/bin/bash
# Records per second at 1 KiB from one process to another: Corral's ring and stream beside what Python programs use instead, all in one run, in turns.
# usage: bench/trajectory/peers.sh BUILD_FOLDER [--venv FOLDER] [--rounds N] [--seconds S]
# Without --venv, a scratch environment is made and removed; pip installs ray, pyzmq, msgpack and grpcio there. What cannot be had is a row that says so.
set -u
here=$(cd "$(dirname "$0")" && pwd)
[[ $# -ge 1 && -x $1/bin/trajectory_pair ]] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
pair=$1/bin/trajectory_pair venv='' rounds=3 seconds=1
shift
while [[ $# -ge 2 ]]; do
    case $1 in
    --venv) venv=$2 ;;
    --rounds) rounds=$2 ;;
    --seconds) seconds=$2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

declare -A missing
if [[ -z $venv ]]; then
    venv=$work/venv
    python3 -m venv "$venv" >"$work/venv.log" 2>&1 || missing[python]=$(tail -1 "$work/venv.log")
fi
for package in ray pyzmq msgpack grpcio; do
    module=${package/pyzmq/zmq} module=${module/grpcio/grpc}
    [[ -z ${missing[python]:-} ]] || { missing[$package]="no virtual environment: ${missing[python]}"; continue; }
    "$venv/bin/python" -c "import $module" 2>/dev/null && continue
    timeout 600 "$venv/bin/pip" -q install --disable-pip-version-check "$package" >"$work/pip.log" 2>&1 &&
        "$venv/bin/python" -c "import $module" 2>>"$work/pip.log" ||
        missing[$package]="pip: $(grep -v '^ *$' "$work/pip.log" | tail -1 | cut -c1-80)"
done

# name | peer or ours | what it needs | records in a first try
rows=(
    "Corral ring|ring||400000"
    "Corral stream, ipc|ipc||200000"
    "Corral stream, tcp + CURVE|tcp||50000"
    "ZeroMQ + msgpack|zmq|pyzmq msgpack|20000"
    "ZeroMQ + msgpack, 200 a message|zmq-batched|pyzmq msgpack|40000"
    "gRPC stream + msgpack|grpc|grpcio msgpack|2000"
    "Ray queue|ray-queue|ray|200"
    "Ray queue, 200 a call|ray-queue-batched|ray|4000"
    "Ray object store|ray-objects|ray|800"
)
run_row() { # HOW COUNT
    case $1 in
    ring | ipc | tcp) timeout 120 "$pair" "$1" "$2" ;;
    *) timeout 120 "$venv/bin/python" "$here/peers.py" "$1" "$2" ;;
    esac 2>"$work/err" | tail -1
}
reason_of() { # PACKAGES
    local package
    for package in $1; do
        [[ -z ${missing[$package]:-} ]] || { echo "$package: ${missing[$package]}"; return; }
    done
}
declare -A count rates why
for ((i = 0; i < ${#rows[@]}; i++)); do
    IFS='|' read -r _ how needs first <<<"${rows[i]}"
    why[$how]=$(reason_of "$needs")
    [[ -z ${why[$how]} ]] || continue
    rate=$(run_row "$how" "$first")
    [[ $rate =~ ^[0-9]+$ && $rate -gt 0 ]] || { why[$how]="failed: $(grep -v '^ *$' "$work/err" | tail -1 | cut -c1-90)"; continue; }
    count[$how]=$((rate * seconds > first ? rate * seconds : first)) # long enough to be counted
done
for ((round = 0; round < rounds; round++)); do
    for row in "${rows[@]}"; do
        IFS='|' read -r _ how _ _ <<<"$row"
        [[ -z ${why[$how]} ]] || continue
        rate=$(run_row "$how" "${count[$how]}")
        if [[ $rate =~ ^[0-9]+$ ]]; then rates[$how]+="$rate "; else why[$how]="failed in round $((round + 1))"; fi
    done
done

best=0 best_batched=0
declare -A median
for row in "${rows[@]}"; do
    IFS='|' read -r _ how _ _ <<<"$row"
    [[ -z ${why[$how]} ]] || continue
    mapfile -t sorted < <(tr ' ' '\n' <<<"${rates[$how]}" | grep . | sort -n)
    median[$how]=${sorted[$((${#sorted[@]} / 2))]}
    rates[$how]="${sorted[0]} … ${sorted[-1]}"
    case $how in
    ring | ipc | tcp) ;;
    *-batched) ((median[$how] > best_batched)) && best_batched=${median[$how]} ;;
    *) ((median[$how] > best)) && best=${median[$how]} ;;
    esac
done
((best_batched > best)) || best_batched=$best
ratio() { awk -v a="$1" -v b="$2" 'BEGIN {if (b > 0) printf "%.1fx", a / b; else printf "-"}'; }
printf 'records of 1 KiB from one process to another, %d rounds in turns, %s, load %s\n\n' "$rounds" "$(nproc) cores" "$(cut -d' ' -f1 /proc/loadavg)"
printf '%-33s %12s %27s %14s %18s\n' '' 'records/s' 'least … most' 'to best plain' 'to best batched'
for row in "${rows[@]}"; do
    IFS='|' read -r name how _ _ <<<"$row"
    if [[ -n ${why[$how]} ]]; then
        printf '%-33s not available: %s\n' "$name" "${why[$how]}"
    else
        printf '%-33s %12d %27s %14s %18s\n' "$name" "${median[$how]}" "${rates[$how]}" "$(ratio "${median[$how]}" "$best")" "$(ratio "${median[$how]}" "$best_batched")"
    fi
done
