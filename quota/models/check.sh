#!/usr/bin/env bash
# Checks ledger.pml exhaustively with spin, and that spin finds the error which -DSPLIT seeds. Exit 77: there is no spin here.
set -euo pipefail
model=$(cd "$(dirname "$0")" && pwd)/ledger.pml
for tool in spin "${CC:-cc}"; do
    if ! command -v "$tool" >/dev/null; then
        echo "skipped: $tool is not installed"
        exit 77
    fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

check() { # NAME DEFINES...: makes and runs the checker; its report is in NAME.out
    local name=$1
    shift
    mkdir "$name"
    cd "$name"
    spin "$@" -a "$model" >"../$name.spin" || { cat "../$name.spin"; exit 1; }
    "${CC:-cc}" -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=1200 -o pan pan.c
    ./pan -m4000000 -n >"../$name.out" 2>&1 || true
    cd ..
}

check good
cat good.out
grep -q 'errors: 0' good.out || { echo "the model breaks its promises"; exit 1; }
if grep -qiE 'search (incomplete|not completed)|max search depth too small|out of memory' good.out; then
    echo "the search was not exhaustive"
    exit 1
fi
check seeded -DSPLIT
grep -q 'assertion violated' seeded.out || { cat seeded.out; echo "the seeded error was not found"; exit 1; }
echo "no error in $(grep -oE '[0-9.e+]+ states, stored' good.out); the seeded error is found"
