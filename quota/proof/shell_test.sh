#!/bin/bash
# The shell loop of docs/spec/proof.md accepts a chain that the library wrote, gives its head, and finds a changed byte.
# usage: shell_test.sh SAMPLE_PROGRAM SPEC
set -euo pipefail
command -v sha256sum >/dev/null || { echo "skipped: no sha256sum"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed -n '/^```sh$/,/^```$/p' "$2" | grep -v '^```' >"$work/check.sh"
[[ $(wc -l <"$work/check.sh") -eq 5 ]] || { echo "the specification's loop is not five lines" >&2; exit 1; }
head=$("$1" "$work/chain" 20)
said=$(sh "$work/check.sh" "$work/chain")
[[ $said == "$head" ]] || { echo "the loop says '$said', the library '$head'" >&2; exit 1; }
cp "$work/chain" "$work/room"
head -c 5000 /dev/zero >>"$work/room" # as a writer that was killed leaves it
said=$(sh "$work/check.sh" "$work/room" 2>/dev/null)
[[ $said == "$head" ]] || { echo "with room at its end, the loop says '$said'" >&2; exit 1; }
sed '7s/"i":6/"i":7/' "$work/chain" >"$work/changed"
if said=$(sh "$work/check.sh" "$work/changed"); then
    echo "a changed record was not found" >&2
    exit 1
fi
[[ $said == "record 7 is broken" ]] || { echo "got: $said" >&2; exit 1; }
sed 3d "$work/chain" >"$work/dropped"
if sh "$work/check.sh" "$work/dropped" >/dev/null; then
    echo "a dropped record was not found" >&2
    exit 1
fi
echo "checked with sha256sum"
