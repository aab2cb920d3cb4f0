#!/bin/bash
# Follows the example of docs/guide/trainers.md: its commands, as they stand there, against the library of this build.
# usage: guide_test.sh LIBRARY SOURCE_ROOT CC
set -eu
library=$(realpath "$1") root=$(realpath "$2") cc=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$(command -v "$cc")" "$work/bin/gcc"
printf '#!/bin/sh\necho -I%s/include -Wall -Wextra -Werror %s\n' "$root" "$library" >"$work/bin/pkg-config"
chmod +x "$work/bin/pkg-config"
ln -s "$root/docs" "$work/docs"
cd "$work"
awk '/^```sh$/ {on = 1; next} /^```$/ {on = 0} on' docs/guide/trainers.md >commands
[[ $(grep -c . commands) -ge 6 ]] || { echo "the guide has lost its commands" >&2; exit 1; }
LD_LIBRARY_PATH=$(dirname "$library") PATH=$work/bin:$PATH timeout 60 bash -eu commands >out 2>err || {
    cat out err >&2
    exit 1
}
for line in 'step 5: 8 groups' 'worker 0: everything is trained on' 'worker 1: everything is trained on'; do
    grep -q "^$line" out || { cat out err >&2; exit 1; }
done
[[ $(grep -c '^step' out) -eq 5 ]] || { cat out err >&2; exit 1; }
echo "the guide works as written"
