#!/usr/bin/env bash
# The comparison of the ledger with NVML, as it runs on a real GPU, here with the fake NVML and without the fake driver's own count:
#   physical_test.sh QUOTA_NODE CONFORMANCE INTERPOSER FAKE_FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failed=0
# NAME STATUS TEXT ENVIRONMENT… WHAT: conformance.sh's exit status, and what it has to print
try() {
  local name=$1 wanted=$2 text=$3 rc=0
  shift 3
  env "${@:1:$#-1}" bash "$here/conformance.sh" "$node" "$program" "$interposer" "${!#}" "$fake" >"$out" 2>&1 || rc=$?
  if [ "$rc" -eq "$wanted" ] && grep -qE "$text" "$out"; then
    echo "ok    $name: $(grep -hE "$text" "$out" | head -1)"
  else
    echo "FAIL  $name: status $rc, not $wanted, or no \"$text\" in:"
    cat "$out"
    failed=1
  fi
}
node=$1 program=$2 interposer=$3 fake=$4
nvml=CORRAL_TEST_PHYSICAL=nvml
for what in families shareable external multicast ipc compared; do
  try "$what by process" 0 "physical: NVML, of the (process|device), [0-9]+ comp" $nvml $what
  try "$what by device" 0 "physical: NVML, of the device, [0-9]+ comp" $nvml CORRAL_FAKECUDA_NVML=no-process $what
done
try "by process: it is the process" 0 "NVML, of the process" $nvml families
try "bytes of processes not available" 0 "NVML, of the device" $nvml CORRAL_FAKECUDA_NVML=no-value families
# An NVML that counts more or less than was charged.
try "less than charged" 1 "NVML, of the process says .*apart by" $nvml CORRAL_FAKECUDA_NVML=50% families
try "more than charged" 1 "NVML, of the process says .*apart by" $nvml CORRAL_FAKECUDA_NVML=150% families
try "within the tolerance" 0 "physical: NVML, of the process" $nvml CORRAL_FAKECUDA_NVML=150% CORRAL_TEST_TOLERANCE=400000000 families
# Nothing to compare with.
try "no NVML" 77 "^SKIPPED families, 81 comparisons" CORRAL_TEST_PHYSICAL=none families
try "no multicast" 77 "^SKIPPED multicast: the device has no" CORRAL_FAKECUDA_MULTICAST=0 multicast
exit "$failed"
