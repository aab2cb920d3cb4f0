#!/bin/bash
# Follows docs/guide/environments.md to the letter: runs every command of its `sh` blocks, with the job it shows.
# usage: guide_test.sh RLCTL SOURCE_ROOT CC [plugins-only]     plugins-only: stop before the job is planned and launched
set -eu
rlctl=$1 root=$(realpath "$2") cc=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$(realpath "$rlctl")" "$work/bin/rlctl"
ln -s "$(command -v "$cc")" "$work/bin/gcc"
ln -s "$root/include" "$root/docs" "$work/"
cd "$work"
guide=docs/guide/environments.md
awk '/^```toml$/ {on = 1; next} /^```$/ {on = 0} on' $guide >catch.toml
awk '/^```sh$/ {on = 1; next} /^```$/ {on = 0} on' $guide >commands
[[ -s catch.toml && $(grep -c . commands) -ge 5 ]] || { echo "the guide has lost its commands" >&2; exit 1; }
if [[ ${4:-} == plugins-only ]]; then
    sed -i '/rlctl \(plan\|launch\)/d' commands
fi
PATH=$work/bin:$PATH timeout 240 bash -eux commands >out 2>err || {
    cat out err >&2
    exit 1
}
grep -q ' 0 failed, ' out || { cat out >&2; exit 1; }
if [[ ${4:-} != plugins-only ]]; then
    grep -Eq '^learned ' out || { cat out err >&2; echo "the job did not learn" >&2; exit 1; }
fi
echo "the guide works as written"
