#!/usr/bin/env bash
# Whatever the interposer hooks, and whatever it calls itself, the fake driver must have, or no test would ever meet it:
#   coverage.sh FOLDER_OF_THE_INTERPOSER LIBCUDA LIBNVML
set -euo pipefail
folder=$1
shift
have=$(nm -D --defined-only "$@" | awk '{print $3}' | sort -u)
hooked=$(awk -F'\t' '$5 ~ /^(charge|release|query|lookup|count)$/ {print $1}' "$folder/entry_points.tsv")
called=$(grep -oh 'REAL(\(cu\|nvml\)[A-Za-z0-9_]*)' "$folder"/*.c | sed 's/REAL(\(.*\))/\1/')
missing=$(printf '%s\n' $hooked $called | sort -u | comm -23 - <(echo "$have"))
if [ -n "$missing" ]; then
  echo "hooked or called by the interposer, but not in the fake driver:" $missing
  exit 1
fi
