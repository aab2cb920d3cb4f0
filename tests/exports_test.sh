#!/bin/bash
# libcorral exports exactly the functions that the public headers declare CORRAL_API, under one version node, and has a soname.
# usage: exports_test.sh LIBRARY INCLUDE_DIR CC
set -euo pipefail
library=$1 include=$2 cc=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for header in "$include"/corral/*.h; do
    "$cc" -E -P -DCORRAL_API=corral_api_mark -I"$include" "$header"
done | tr '\n' ' ' | grep -oP 'corral_api_mark\b[^;{(]*?\K\bcorral_\w+(?=\s*\()' | sort -u >"$work/declared"
nm -D --defined-only "$library" | awk '$2 != "A" {sub(/@.*/, "", $3); print $3}' | sort -u >"$work/exported"

bad=0
if [[ ! -s $work/declared ]]; then
    echo "no CORRAL_API function found under $include" >&2
    bad=1
fi
diff -u --label declared --label exported "$work/declared" "$work/exported" >&2 || bad=1
if nm -D --defined-only "$library" | awk '$2 != "A" && $3 !~ /@@CORRAL_0$/ {print; bad = 1} END {exit !bad}' >&2; then
    echo "exported outside the version node CORRAL_0" >&2
    bad=1
fi
readelf -d "$library" | grep -q 'SONAME.*\[libcorral\.so\.0\]' || {
    echo "$library: the soname is not libcorral.so.0" >&2
    bad=1
}
[[ $bad -eq 0 ]] && echo "libcorral exports $(wc -l <"$work/declared") functions, all declared"
exit $bad
