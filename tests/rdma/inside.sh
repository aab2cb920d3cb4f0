#!/bin/bash
# What the guest runs: the rdma lane on real verbs. inside.sh BIN [conformance | ROUNDS], BIN being the folder of the built programs. With `conformance`, the lanes' suite and nothing else: minutes under emulation.
# ROUNDS: of the comparison with ib_write_bw (3).
set -euo pipefail
bin=$1
suite=$bin/weights_lane_rdma pair=$bin/lane-pair rate=$bin/lane-rate
failed=0 limit=60 rounds=3

say() { printf '%s\n' "$*"; }
check() { # WHAT COMMAND...
    local what=$1 code=0
    shift
    timeout "$limit" "$@" >/run/tmp/log 2>&1 || code=$?
    if [[ $code -eq 0 ]]; then
        say "ok    $what"
    elif [[ $code -eq 77 ]]; then
        say "skip  $what: $(tail -n 1 /run/tmp/log)"
    else
        say "FAIL  $what (exit status $code)"
        tail -n 40 /run/tmp/log
        failed=1
    fi
}

check "ibv_devinfo: the port is active" bash -c 'ibv_devinfo -d rxe0 | grep -q PORT_ACTIVE'

# Between one process's two ends, and with children that die.
if [[ ${2:-} == conformance ]]; then
    limit=500
    check "rdma: conformance" "$suite" rdma host=10.9.0.1 device=rxe0
    exit "$failed"
fi
[[ -z ${2:-} ]] || rounds=$2
check "rdma: 4 MiB between two processes, strided" "$pair" rdma host=10.9.0.1 device=rxe0 mib=4 bucket-kib=256 strided
# It is the lane that notices, within seconds, and not the push's deadline.
for who in sender receiver; do
    SECONDS=0
    check "rdma: the $who is killed" "$pair" rdma host=10.9.0.1 device=rxe0 mib=2 bucket-kib=64 deadline-s=45 "$who-dies=3"
    cat /run/tmp/log
    if grep -q deadline /run/tmp/log; then
        say "FAIL  only the deadline shows it, after $SECONDS s"
        failed=1
    fi
done

# The same bytes by perftest and by our lane, in turns: two queue pairs, 32 MiB in 1 MiB writes or 4 MiB buckets (of slices of 512 KiB), the port's MTU. Rates swing with what else the host does, hence several rounds and the median.
bare() {
    ib_write_bw -d rxe0 -F -q 2 -s 1048576 -n 16 -t 3 >/run/tmp/server 2>&1 &
    local server=$! try
    for ((try = 0; try < 50; try++)); do
        if ib_write_bw -d rxe0 -F -q 2 -s 1048576 -n 16 -t 3 10.9.0.1 >/run/tmp/client 2>&1; then
            break
        fi
        read -r -t 0.2 <> <(:) || true # the server does not listen yet
    done
    wait "$server"
    # bytes, iterations, peak MB/s, average MB/s (of 2^20)
    awk '$1 == 1048576 { printf "%.1f\n", $4 * 1.048576; found = 1 } END { exit !found }' /run/tmp/client
}
lane() { # WORK
    timeout 60 "$rate" rdma host=10.9.0.1 device=rxe0 streams=2 mib=32 bucket-kib=4096 pushes=2 work="$1" | sed 's| MB/s$||'
}
median() { # NUMBER...: "MEDIAN LEAST GREATEST"
    printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { printf "%.2f %.2f %.2f", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2, v[1], v[NR] }'
}
ratios=() wires=() rates=()
for ((round = 0; round < rounds; round++)); do
    if ! b=$(bare) || ! l=$(lane copy) || ! w=$(lane none); then
        say "FAIL  a measurement"
        cat /run/tmp/client
        exit 1
    fi
    say "ib_write_bw $b MB/s; lane $l MB/s; lane without copies into and out of staging $w MB/s"
    rates+=("$l")
    ratios+=("$(awk -v o="$l" -v b="$b" 'BEGIN { print o / b }')")
    wires+=("$(awk -v o="$w" -v b="$b" 'BEGIN { print o / b }')")
done
say "rdma lane: MB/s, median, least and greatest of $rounds: $(median "${rates[@]}")"
say "rdma lane / ib_write_bw: $(median "${ratios[@]}") (to reach: 0.90)"
say "the same without copies: $(median "${wires[@]}")"
exit "$failed"
