#!/usr/bin/env bash
# The fences on a real GPU: the conformance suite, and two roles with PyTorch where there is one. BUILD is the build folder.
set -euo pipefail
build=${BUILD:-$(dirname "$RLCTL")/..}
node=$build/bin/quota-node program=$build/bin/quota-conformance interposer=$build/lib/corral/libcorral-quota.so
here=$(cd "$(dirname "$0")" && pwd)
for file in "$node" "$program" "$interposer"; do
  [ -e "$file" ] || { echo "$file has not been built"; exit 1; }
done
failed=0
for what in canary families agree managed hog; do
  rc=0
  bash "$here/../quota/conformance.sh" "$node" "$program" "$interposer" "$what" || rc=$?
  case $rc in 0) echo "ok    quota $what" ;; 77) echo "skip  quota $what" ;; *) echo "FAIL  quota $what"; failed=1 ;; esac
done
if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  echo "skip  quota torch: python3 has no torch with CUDA"
  exit "$failed"
fi
export CORRAL_TEST_PRELOAD=$interposer
for allocator in expandable_segments:False expandable_segments:True backend:cudaMallocAsync; do
  rc=0
  PYTORCH_CUDA_ALLOC_CONF=$allocator PYTORCH_ALLOC_CONF=$allocator timeout 240 "$node" --headroom 2147483648 \
    --role trainer=30%:55% --role rollout=30%:45% \
    -- rollout python3 "$here/two_roles.py" rollout -- trainer python3 "$here/two_roles.py" trainer || rc=$?
  if [ "$rc" -eq 0 ]; then echo "ok    quota torch $allocator"; else echo "FAIL  quota torch $allocator"; failed=1; fi
done
exit "$failed"
