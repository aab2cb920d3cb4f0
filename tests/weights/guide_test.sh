#!/bin/bash
# Follows the example of docs/guide/weights.md: its commands, as they stand there, against the library of this build.
# usage: guide_test.sh LIBRARY SOURCE_ROOT CC
set -eu
library=$(realpath "$1") root=$(realpath "$2") cc=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$(command -v "$cc")" "$work/bin/gcc"
printf '#!/bin/sh\necho -I%s/include %s\n' "$root" "$library" >"$work/bin/pkg-config"
chmod +x "$work/bin/pkg-config"
ln -s "$root/docs" "$work/docs"
cd "$work"
awk '/^```sh$/ {on = 1; next} /^```$/ {on = 0} on' docs/guide/weights.md >commands
[[ $(grep -c . commands) -ge 5 ]] || { echo "the guide has lost its commands" >&2; exit 1; }
LD_LIBRARY_PATH=$(dirname "$library") PATH=$work/bin:$PATH timeout 60 bash -eu commands >out 2>err || {
    cat out err >&2
    exit 1
}
for version in 1 2 3; do
    grep -q "^trainer: version $version applied by 2 of 2 shards$" out || { cat out err >&2; exit 1; }
done
grep -q '^engine: both shards decode with version 3$' out || { cat out err >&2; exit 1; }
echo "the guide works as written"
