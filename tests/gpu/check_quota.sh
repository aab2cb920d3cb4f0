#!/usr/bin/env bash
# The fences on a real GPU: the conformance suite, and two roles with PyTorch where there is one. BUILD is the build folder; with FAKE the fake driver's folder, to try this script.
set -euo pipefail
build=$(cd "${BUILD:-$(dirname "$RLCTL")/..}" && pwd)
node=$build/bin/quota-node program=$build/bin/quota-conformance interposer=$build/lib/corral/libcorral-quota.so
here=$(cd "$(dirname "$0")" && pwd)
for file in "$node" "$program" "$interposer"; do
  [ -e "$file" ] || { echo "FAIL  quota: $file has not been built (the release preset builds no tests: cmake --preset dev && cmake --build build/dev)"; exit 1; }
done
failed=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
# WHAT RC: one line for the case. What was skipped has said so itself; if it has not, it is said here.
verdict() {
  case $2 in
  0) echo "ok    quota $1" ;;
  77) grep -q "^SKIPPED " "$out" || echo "SKIPPED quota $1: $(tail -1 "$out")" ;;
  *) echo "FAIL  quota $1 (exit status $2)"; failed=1 ;;
  esac
}
for what in canary families agree managed compared hog ipc shareable external multicast; do
  rc=0
  bash "$here/../quota/conformance.sh" "$node" "$program" "$interposer" "$what" ${FAKE:+"$FAKE"} 2>&1 | tee "$out" || rc=${PIPESTATUS[0]}
  verdict "$what" "$rc"
done

no_torch=""
if [ -n "${FAKE:-}" ]; then
  no_torch="PyTorch does not run on the fake driver"
elif ! command -v python3 >/dev/null; then
  no_torch="no python3"
elif ! python3 -c 'import torch' 2>/dev/null; then
  no_torch="python3 ($(command -v python3)) has no torch: pip install torch, or put a venv's python3 first in PATH"
elif ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  no_torch="torch finds no CUDA device"
fi
if [ -n "$no_torch" ]; then
  echo "SKIPPED quota torch: $no_torch"
  exit "$failed"
fi
export CORRAL_TEST_PRELOAD=$interposer CONFORMANCE=$program
for allocator in expandable_segments:False expandable_segments:True backend:cudaMallocAsync; do
  rc=0
  PYTORCH_CUDA_ALLOC_CONF=$allocator PYTORCH_ALLOC_CONF=$allocator timeout 300 "$node" --headroom 4294967296 --wait-all \
    --role trainer=30%:55% --role rollout=30%:45% \
    -- rollout python3 "$here/two_roles.py" rollout -- trainer python3 "$here/two_roles.py" trainer 2>&1 | tee "$out" || rc=${PIPESTATUS[0]}
  verdict "torch $allocator" "$rc"
done
exit "$failed"
