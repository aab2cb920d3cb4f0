#!/bin/bash
# rlctl traj: exit codes, filters, text, JSON; exported files read back (by numpy when python3 has it).
# usage: cmd_traj_test.sh RLCTL FIXTURE
set -u
rlctl=$1 fixture=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
mkdir "$work/runs"
"$fixture" "$work/runs/demo-7f3a0000" || exit 1
"$fixture" "$work/runs/bare-00000001" && rm -r "$work/runs/bare-00000001/traj"
cd "$work" || exit 1

# expect CODE WHERE PATTERN ARGS...: WHERE is out or err
expect() {
    local code=$1 where=$2 pattern=$3
    shift 3
    "$rlctl" traj "$@" >"$work/out" 2>"$work/err"
    local got=$?
    if [[ $got -ne $code ]]; then
        echo "rlctl traj $*: exit $got, not $code" >&2
        cat "$work/out" "$work/err" >&2
        bad=1
    elif ! grep -qF -- "$pattern" "$work/$where"; then
        echo "rlctl traj $*: \"$pattern\" is not in std$where:" >&2
        cat "$work/$where" >&2
        bad=1
    fi
}
lines() { # COUNT: of the last output
    if [[ $(wc -l <"$work/out") -ne $1 ]]; then
        echo "$(wc -l <"$work/out") lines, not $1" >&2
        cat "$work/out" >&2
        bad=1
    fi
}

expect 0 out 'Examples:' --help
expect 2 err 'say what to do'
expect 2 err 'there is no `frobnicate`' frobnicate
expect 2 err 'unknown option' tail --frob
expect 2 err 'unknown option' stats --all
expect 2 err "does not take" tail --worker x
expect 2 err 'no run `nope`' tail nope
expect 2 err 'stream.durability = "wal"' tail 00000001

expect 0 out '0:22 ' tail 7f3a
lines 12
expect 0 out 'worker 1.1 #12' tail 7f3a -n 1
lines 2
expect 0 out '"sequence":12' tail 7f3a --json -n 2
lines 4
expect 0 out 'group 40 (2 of 2)' tail 7f3a --rank 1
expect 0 out 'reward 0.25' tail 7f3a --env calc
lines 2
expect 0 out 'worker 0.1 #3' tail 7f3a -n 1000 --versions 3-3 --rank 0
lines 2

expect 0 out 'rank 1, record 2' show 7f3a
expect 0 out 'It is 4.' show 7f3a --episode 901
expect 0 out 'rank 0, record 3 ' show 7f3a --worker 0 --sequence 2
expect 0 out '"position":4' show 7f3a --position 4 --rank 0 --json
expect 2 err 'no record in the log fits' show 7f3a --worker 99
if "$rlctl" traj show 7f3a | grep -q $'\033'; then
    echo "rlctl traj show passes escape sequences to the terminal" >&2
    bad=1
fi

expect 0 out '2 missing, 0 repeated' stats 7f3a
expect 0 out 'score reward' stats 7f3a
expect 0 out '"missing": 2' stats 7f3a --json
expect 0 out '"records": 24' stats 7f3a --json

expect 2 err '--format says how' export 7f3a
expect 2 err '-o FILE says where' export 7f3a --format npz
expect 0 out '"values":{"obs":[1000, 1001' export 7f3a --format jsonl
lines 24
expect 0 out '"scores":{"reward":1.0}' export 7f3a --format jsonl --no-tensors --env calc
lines 2
expect 0 err '24 records in' export 7f3a --format npz -o all.npz
expect 0 err '22 records in' export 7f3a --format safetensors -o cartpole.safetensors --env cartpole
expect 0 err '24 records in' export 7f3a --format jsonl -o all.jsonl
expect 1 err 'cannot' export 7f3a --format npz -o absent/all.npz
[[ -z $(find . -name '*.tmp*' -o -name '.export-*') ]] || { echo "temporary files are left" >&2; bad=1; }

# Damage is said, with its place, and is exit code 1.
first=$(find "$work/runs/demo-7f3a0000/traj/rank-0" -name '*.wal' | sort | head -1)
cp "$first" "$work/first"
printf X | dd of="$first" bs=1 seek=200 conv=notrunc status=none
expect 1 err 'is damaged at offset' stats 7f3a
cp "$work/first" "$first"

python=${CORRAL_TEST_PYTHON:-python3}
if "$python" -c 'import json' 2>/dev/null; then
    "$python" - <<'P' || bad=1
import json, struct, sys, zipfile
z = zipfile.ZipFile("all.npz")
assert z.testzip() is None, "zip check sums"
rows = [json.loads(line) for line in open("all.jsonl")]
assert len(rows) == 24 and rows[0]["values"]["version"] == [1, 1, 1, 1]
with open("cartpole.safetensors", "rb") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    head = json.loads(f.read(n))
    obs = head["obs"]
    assert obs["shape"] == [22 * 4, 2, 3], obs
    f.seek(8 + n + obs["data_offsets"][0])
    assert struct.unpack("<f", f.read(4))[0] == 1000.0
    size = f.seek(0, 2) - 8 - n
    assert size == max(v["data_offsets"][1] for k, v in head.items() if k != "__metadata__")
try:
    import numpy as np
except ImportError:
    print("numpy is not here: npz was checked as a zip only")
    sys.exit(0)
a = np.load("all.npz")
assert a["record.position"].tolist() == list(range(1, 23)) + [1, 2]
assert a["obs"].shape == (88, 2, 3) and a["obs"].dtype == np.float32
o = a["obs.offsets"]
assert o.shape == (25,) and o[0] == 0 and o[1] == 4 and o[22] == 88 and o[24] == 88
for i in range(22):
    assert a["obs"][o[i], 0, 0] == 1000 * a["record.sequence"][i]
t = a["token_ids.offsets"]
assert a["token_ids"][t[22]:t[23]].tolist() == [11, 12, 13, 14, 15]
e = a["record.env.offsets"]
assert bytes(a["record.env"][e[22]:e[23]]) == b"calc"
assert np.isnan(a["score.reward"][:22]).all() and a["score.reward"][22:].tolist() == [1.0, 0.25]
print("numpy agrees")
P
fi
[[ $bad -eq 0 ]] && echo "rlctl traj: ok"
exit $bad
