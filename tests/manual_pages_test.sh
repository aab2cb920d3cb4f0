#!/bin/bash
# The manual pages are correct roff, and each has a name that `man -k` can find.
# usage: manual_pages_test.sh FOLDER       exit 77: nothing here can check roff
set -eu
command -v groff >/dev/null || {
    echo "skipped: groff is not installed"
    exit 77
}
count=0
bad=0
for page in "$1"/*.[1-8]; do
    count=$((count + 1))
    complaints=$(groff -man -Tutf8 -ww -z "$page" 2>&1) || complaints+=" (groff failed)"
    if [[ -n $complaints ]]; then
        echo "$complaints" >&2
        bad=1
    fi
    name=$(basename "${page%.*}")
    grep -A1 '^\.SH NAME' "$page" | grep -q "^${name//-/\\\\-}.* \\\\- " || {
        echo "$page: NAME does not start with '$name ... \\- '" >&2
        bad=1
    }
done
[[ $count -gt 0 ]] || { echo "no pages in $1" >&2; exit 1; }
[[ $bad -eq 0 ]] && echo "$count manual pages"
exit $bad
