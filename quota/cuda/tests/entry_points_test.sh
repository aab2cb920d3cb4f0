#!/bin/bash
# entry_points.tsv has every function of the installed toolkit, and each that could allocate is hooked or explained; a new one is noticed.
# usage: entry_points_test.sh SOURCE_DIR
set -euo pipefail
source=$1
command -v python3 >/dev/null || { echo "no python3: the table cannot be compared"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tool=$source/scripts/cuda-entry-points table=$source/quota/cuda/entry_points.tsv

# A toolkit of tomorrow: one harmless function, then one that could allocate.
echo 'CUresult CUDAAPI cuDeviceGetMood(int *mood, CUdevice device);' >"$work/cuda.h"
out=$("$tool" --check --table "$table" --include "$work") && { echo "a new function went unnoticed" >&2; exit 1; }
grep -q 'not in the table: cuDeviceGetMood' <<<"$out" || { echo "$out" >&2; exit 1; }
echo 'CUresult CUDAAPI cuMemAllocElsewhere(CUdeviceptr *pointer, size_t bytes);' >"$work/cuda.h"
out=$("$tool" --check --table "$table" --include "$work" 2>&1) && { echo "a new allocation went unnoticed" >&2; exit 1; }
grep -q 'no rule says what to do: cuMemAllocElsewhere' <<<"$out" || { echo "$out" >&2; exit 1; }
cp "$table" "$work/table"
"$tool" --table "$work/table" --include "$work" >/dev/null 2>&1 && { echo "a table was made with it" >&2; exit 1; }
cmp "$table" "$work/table"

"$tool" --check --table "$table"
