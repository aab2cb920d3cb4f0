#!/bin/bash
# libcorral-quota.so exports dlsym, dlvsym and exactly the functions that entry_points.tsv says are hooked, and needs nothing but libc.
# usage: exports_test.sh LIBRARY TABLE [sanitized]
set -euo pipefail
library=$1 table=$2 sanitized=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    printf 'dlsym\ndlvsym\n'
    awk -F'\t' '!/^#/ && $5 ~ /^(charge|release|query|lookup|count|deny)$/ {print $1}' "$table"
} | sort -u >"$work/hooked"
nm -D --defined-only "$library" | awk '{print $3}' | sort -u >"$work/exported"
bad=0
diff -u --label "$table" --label exported "$work/hooked" "$work/exported" >&2 || bad=1
if [[ -z $sanitized ]] && readelf -d "$library" | grep NEEDED | grep -vE 'libc\.so|ld-linux|libpthread|libdl'; then
    echo "needs more than libc" >&2
    bad=1
fi
readelf -d "$library" | grep -qE 'R(UN)?PATH' && { echo "has a run path" >&2; bad=1; }
[[ $bad -eq 0 ]] && echo "$(wc -l <"$work/exported") functions exported, all in the table"
exit $bad
