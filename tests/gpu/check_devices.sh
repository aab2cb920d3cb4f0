#!/usr/bin/env bash
# `rlctl devices` must agree with nvidia-smi on how many GPUs there are, their names and their memory.
set -euo pipefail
[ -z "${FAKE:-}" ] || { echo "SKIPPED devices: nvidia-smi knows nothing of the fake driver"; exit 77; }
[ -x "$RLCTL" ] || { echo "FAIL  devices: $RLCTL has not been built"; exit 1; }
command -v nvidia-smi >/dev/null || { echo "SKIPPED devices: no nvidia-smi to compare with"; exit 77; }
smi=$(nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits)
out=$("$RLCTL" devices --json)
while IFS=, read -r index name mib; do
  name=$(echo "$name" | sed 's/^ *//; s/ *$//')
  mib=$(echo "$mib" | tr -d ' ')
  bytes=$((mib * 1024 * 1024))
  grep -qF "$name" <<<"$out" || { echo "FAIL  devices: GPU $index ($name) is missing from rlctl devices"; exit 1; }
  # NVML counts bytes, nvidia-smi prints whole MiB.
  found=$(grep -oE '"memory_total": *[0-9]+' <<<"$out" | grep -oE '[0-9]+$' | sed -n "$((index + 1))p")
  [ -n "$found" ] && [ $((found / 1048576)) -eq $((bytes / 1048576)) ] || { echo "FAIL  devices: GPU $index: rlctl says '$found' bytes, nvidia-smi $bytes"; exit 1; }
done <<<"$smi"
echo "ok    devices: rlctl and nvidia-smi agree on $(wc -l <<<"$smi")"
