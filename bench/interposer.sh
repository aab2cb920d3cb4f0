#!/usr/bin/env bash
# The interposer's cost on the fake driver: allocation + free alone and with 8 processes contending, launches, copies, and the start of 200 processes, each with and
# without the interposer in the same run.   bench/interposer.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(cd "${1:-build/release}" && pwd)
bench=$build/bin/interposer_bench node=$build/bin/quota-node
export CORRAL_TEST_PRELOAD=$build/lib/corral/libcorral-quota.so
export LD_LIBRARY_PATH=$build/tests/fakecuda CORRAL_FAKECUDA_MEMORY=64GiB
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export CORRAL_FAKECUDA_STATE=$folder/state CORRAL_QUOTA_LOG=$folder/log
with() { "$node" --role a=10%:100% -- a "$@"; }
without() { "$@"; }
# NAME CALLS WHAT: median of 5 turns of each
row() {
  local name=$1 calls=$2 what=$3
  for mode in without with; do
    : >"$folder/$mode"
  done
  for turn in 1 2 3 4 5; do
    for mode in without with; do
      "$mode" "$bench" "$calls" "$what" >>"$folder/$mode"
    done
  done
  paste -d' ' <(sort -n "$folder/without" | sed -n 3p) <(sort -n "$folder/with" | sed -n 3p) |
    awk -v n="$name" '{printf "%-28s %8d %8d ns without, %8d %8d ns with (median, p99); added %d ns, ratio %.3f\n", n, $1, $2, $3, $4, $3-$1, $3/$1}'
}
row "alloc + free" 20000 alloc
row "kernel launch" 200000 launch
row "copy of 4 KiB" 50000 copy
cat >"$folder/many" <<'SH'
#!/usr/bin/env bash
for i in 1 2 3 4 5 6 7 8; do "$1" 5000 alloc & done
wait
SH
cat >"$folder/start" <<'SH'
#!/usr/bin/env bash
pids=()
for i in $(seq 200); do "$1" 1 start & pids+=($!); done
for p in "${pids[@]}"; do wait "$p" || exit 1; done
SH
for mode in without with; do
  "$mode" bash "$folder/many" "$bench" | sort -n | awk -v m="$mode" '{a[NR]=$1; if ($2>p) p=$2} END {printf "alloc + free, 8 processes     %s: median %d ns, worst p99 %d ns\n", m, a[int((NR+1)/2)], p}'
done
for mode in without with; do
  begin=$(date +%s%N)
  "$mode" bash "$folder/start" "$bench"
  echo "start of 200 processes       $mode: $((($(date +%s%N) - begin) / 1000000)) ms"
done
