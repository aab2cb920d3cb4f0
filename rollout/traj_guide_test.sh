#!/bin/bash
# Follows docs/guide/trajectories.md: its commands, as they stand there, against the library of this build and a trainer's receiver.
# usage: traj_guide_test.sh LIBRARY SOURCE_ROOT CC RECEIVER
set -eu
library=$(realpath "$1") root=$(realpath "$2") cc=$3 receiver=$(realpath "$4")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$(command -v "$cc")" "$work/bin/gcc"
printf '#!/bin/sh\necho -I%s/include %s\n' "$root" "$library" >"$work/bin/pkg-config"
chmod +x "$work/bin/pkg-config"
ln -s "$root/docs" "$work/docs"
cd "$work"
awk '/^```sh$/ {on = 1; next} /^```$/ {on = 0} on' docs/guide/trajectories.md >commands
[[ $(grep -c . commands) -ge 2 ]] || { echo "the guide has lost its commands" >&2; exit 1; }
export ENDPOINT=ipc://$work/traj-0 TOKEN=secret
timeout 60 "$receiver" "$ENDPOINT" "$TOKEN" 20 >received 2>&1 &
LD_LIBRARY_PATH=$(dirname "$library") PATH=$work/bin:$PATH timeout 60 bash -eu commands >out 2>err || {
    cat out err received >&2
    exit 1
}
wait $! || { cat received >&2; exit 1; }
grep -q '^player: 20 games are with the trainer$' out || { cat out err >&2; exit 1; }
[[ $(grep -c '^episode ' received) -eq 20 && $(grep -c 'env      guess  0 to 63' received) -eq 20 ]] || { cat received >&2; exit 1; }
grep -q 'group    4, 4 of 4' received || { cat received >&2; exit 1; }
echo "the guide works as written"
