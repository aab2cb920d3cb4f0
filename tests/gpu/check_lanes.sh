#!/usr/bin/env bash
# The weight lanes of device memory on a real GPU: the suite within one process, then two processes, with the rates. Two NCCL ranks on one GPU are two hosts to NCCL, over its socket transport:
# right bytes, and no figure to quote.
set -euo pipefail
bin=$BUILD/bin
[ -x "$bin/lane-pair" ] || { echo "FAIL  lanes: $bin/lane-pair has not been built"; exit 1; }
export NCCL_SOCKET_IFNAME=lo NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0 NCCL_NVLS_ENABLE=0 NCCL_PROTO=Simple NCCL_ALGO=Ring
failed=0
if [ -n "${FAKE:-}" ]; then
  state=$(mktemp -d)
  trap 'rm -rf "$state"' EXIT
  export LD_LIBRARY_PATH=$FAKE:$BUILD/tests/fakenccl CORRAL_FAKECUDA_STATE=$state/devices
fi
check() { # WHAT COMMAND...
  local what=$1 rc=0 out
  shift
  out=$(timeout 120 "$@" 2>&1) || rc=$?
  case $rc in
  0) echo "ok    lanes: $what: $(tail -n 1 <<<"$out")" ;;
  77) echo "SKIPPED lanes: $what: $(tail -n 1 <<<"$out")" ;;
  *) echo "FAIL  lanes: $what (exit status $rc)"; tail -n 20 <<<"$out"; failed=1 ;;
  esac
}
check "shards of device memory" "$bin/lane-pair" tcp mib=64 memory=device strided
check "cuda_ipc within one process" "$bin/weights_lane_cuda_ipc" cuda_ipc
for lane in cuda_ipc nccl; do
  check "$lane between two processes" "$bin/lane-pair" $lane mib=64 bucket-kib=8192 memory=device
  check "$lane, strided" "$bin/lane-pair" $lane mib=64 bucket-kib=8192 memory=device strided
  check "$lane, memory of the host" "$bin/lane-pair" $lane mib=64 bucket-kib=8192
  check "$lane, the sender is killed" "$bin/lane-pair" $lane mib=64 memory=device deadline-s=20 sender-dies=5
  check "$lane, the receiver is killed" "$bin/lane-pair" $lane mib=64 memory=device deadline-s=20 receiver-dies=5
done
exit "$failed"
