#!/usr/bin/env bash
# The interposer's own cost, on a driver that does next to nothing (bench/bare_driver): allocation + free of one process and of 8 contending ones, launches, copies, and the start of 200
# processes, each with and without the interposer in turns.   bench/interposer.sh [BUILD_FOLDER [DRIVER_FOLDER]]
# Exit status 1: added to an allocation + free with 8 processes, 1 us median or 5 us p99; added to a launch or a copy, 5 ns; 200 processes not started within 1 s. DRIVER_FOLDER: another libcuda.so.1.
set -euo pipefail
cd "$(dirname "$0")/.."
turns=${TURNS:-7}
[ -d "${1:-build/release}" ] || { echo "no build folder ${1:-build/release}: cmake --preset release && cmake --build build/release" >&2; exit 2; }
build=$(cd "${1:-build/release}" && pwd)
bench=$build/bin/interposer_bench node=$build/bin/quota-node driver=${2:-$build/bench/bare_driver}
export CORRAL_TEST_PRELOAD=$build/lib/corral/libcorral-quota.so
for file in "$bench" "$node" "$CORRAL_TEST_PRELOAD" "$driver/libcuda.so.1"; do
  [ -e "$file" ] || { echo "$file has not been built: cmake --build $build" >&2; exit 2; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export LD_LIBRARY_PATH=$driver CORRAL_QUOTA_LOG=$folder/log
export CORRAL_FAKECUDA_STATE=$folder/state CORRAL_FAKECUDA_MEMORY=64GiB # should that be the driver
with() { "$node" --role a=10%:100% -- a "$@"; }
without() { "$@"; }
missed=0
# Of numbers, one a line: median, least, most.
spread() { sort -n | awk '{v[NR] = $1} END {printf "%d %d %d", v[int((NR + 1) / 2)], v[1], v[NR]}'; }
# NAME ROUNDS WHAT PROCESSES MEDIAN_MAX P99_MAX (ns; 0: no bound): both in turns, and the differences turn by turn
row() {
  local name=$1 rounds=$2 what=$3 processes=$4
  : >"$folder/row"
  for _ in $(seq "$turns"); do
    echo "$(without "$bench" "$rounds" "$what" "$processes") $(with "$bench" "$rounds" "$what" "$processes")" >>"$folder/row"
  done
  local median p99 plain
  read -r -a plain <<<"$(awk '{print $1}' "$folder/row" | spread) $(awk '{print $2}' "$folder/row" | spread)"
  read -r -a median <<<"$(awk '{print $3 - $1}' "$folder/row" | spread)"
  read -r -a p99 <<<"$(awk '{print $4 - $2}' "$folder/row" | spread)"
  local verdict=""
  if [ "$5" -gt 0 ]; then
    verdict="ok"
    if [ "${median[0]}" -ge "$5" ] || { [ "$6" -gt 0 ] && [ "${p99[0]}" -ge "$6" ]; }; then
      verdict="MISSED" missed=1
    fi
    local bound=$5
    [ "$6" -eq 0 ] || bound="$5, $6"
    verdict="  bound $bound: $verdict"
  fi
  printf '%-26s without %5d, p99 %5d   added %5d (%d … %d), p99 %5d (%d … %d)   ratio %.2f%s\n' "$name" "${plain[0]}" "${plain[3]}" \
    "${median[@]}" "${p99[@]}" "$(awk -v a="${plain[0]}" -v d="${median[0]}" 'BEGIN {print (a + d) / a}')" "$verdict"
}
echo "nanoseconds, median of $turns turns (least … most)"
row "alloc + free, 1 process" 100000 alloc 1 0 0
row "alloc + free, 8 processes" 20000 alloc 8 1000 5000
row "kernel launch" 200000 launch 1 5 0
row "copy of 4 KiB" 200000 copy 1 5 0
cat >"$folder/start" <<'SH'
#!/usr/bin/env bash
pids=()
for i in $(seq 200); do "$1" 1 start & pids+=($!); done
for p in "${pids[@]}"; do wait "$p" || exit 1; done
SH
for mode in without with; do
  begin=$(date +%s%N)
  "$mode" bash "$folder/start" "$bench"
  ms=$((($(date +%s%N) - begin) / 1000000))
  verdict=""
  if [ "$mode" = with ]; then
    verdict="  bound 1000: ok"
    [ "$ms" -lt 1000 ] || { verdict="  bound 1000: MISSED" missed=1; }
  fi
  echo "start of 200 processes     $mode: $ms ms$verdict"
done
exit "$missed"
