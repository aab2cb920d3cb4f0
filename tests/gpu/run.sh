#!/usr/bin/env bash
# Every check that needs an NVIDIA GPU, one after the other. Exits 77 with the reason where there is none.
#   tests/gpu/run.sh [BUILD_FOLDER]        default build/dev
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/dev}
rlctl=$build/bin/rlctl
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
  echo "skipped: no /dev/nvidia* device on this machine"
  exit 77
fi
failed=0
for check in tests/gpu/check_*.sh; do
  if RLCTL=$rlctl BUILD=$build bash "$check"; then
    echo "ok    $(basename "$check")"
  else
    echo "FAIL  $(basename "$check")"
    failed=1
  fi
done
exit "$failed"
