#!/usr/bin/env bash
# Every check that needs an NVIDIA GPU, one after the other:   tests/gpu/run.sh [BUILD_FOLDER]     (default build/dev; it needs the tests: cmake --preset dev && cmake --build build/dev)
# At the end it says how many checks passed, failed and were skipped, and repeats each failure and each reason for skipping. Exit status: 1 when one failed, 77 where there is no GPU.
# FAKE=BUILD_FOLDER/tests/fakecuda runs what can be run on the fake driver instead, to try this script.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/dev}
if [ -z "${FAKE:-}" ] && ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
  echo "skipped: no /dev/nvidia* device on this machine"
  exit 77
fi
[ -d "$build" ] || { echo "FAIL  no build folder $build: cmake --preset dev && cmake --build build/dev"; exit 1; }
build=$(cd "$build" && pwd)
# Both the driver's and NVML's numbers of devices by their place on the bus.
export CUDA_DEVICE_ORDER=PCI_BUS_ID BUILD=$build RLCTL=$build/bin/rlctl FAKE=${FAKE:-}
cd "$root"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ -z "$FAKE" ] && command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv,noheader || true
  others=$(nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader 2>/dev/null || true)
  [ -z "$others" ] || printf 'NOTE  others use the GPUs, which disturbs comparisons by the use of a whole device:\n%s\n' "$others"
fi
bad=0
for check in tests/gpu/check_*.sh; do
  echo "== $(basename "$check" .sh)"
  rc=0
  bash "$check" 2>&1 | tee -a "$log" || rc=${PIPESTATUS[0]}
  if [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ]; then
    bad=1
    grep -q "^FAIL " "$log" || echo "FAIL  $(basename "$check"): exit status $rc" | tee -a "$log"
  fi
done
failed=$(grep -c "^FAIL " "$log" || true)
skipped=$(grep -c "^SKIPPED " "$log" || true)
passed=$(grep -c "^ok " "$log" || true)
echo "== $passed passed, $failed failed, $skipped skipped"
grep -E "^(FAIL|SKIPPED) " "$log" || true
[ "$bad" -eq 0 ] && [ "$failed" -eq 0 ]
