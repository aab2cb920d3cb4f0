#!/bin/bash
# rlctl env: exit codes, which stream gets what, JSON.
# usage: cmd_env_test.sh RLCTL TEST_PLUGIN_DIR
set -u
rlctl=$1 plugins=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0

# expect CODE WHERE PATTERN ARGS...: WHERE is out or err
expect() {
    local code=$1 where=$2 pattern=$3
    shift 3
    "$rlctl" env "$@" >"$work/out" 2>"$work/err"
    local got=$?
    if [[ $got -ne $code ]]; then
        echo "rlctl env $*: exit $got, not $code" >&2
        cat "$work/out" "$work/err" >&2
        bad=1
    elif ! grep -qF -- "$pattern" "$work/$where"; then
        echo "rlctl env $*: \"$pattern\" is not in std$where:" >&2
        cat "$work/$where" >&2
        bad=1
    fi
}

expect 0 out 'Examples:' --help
expect 0 out 'walk/Same-v0' list "$plugins/walk.so"
expect 0 out '"id": "walk/Next-v0"' list "$plugins/walk.so" --json
expect 0 out 'CartPole-v1' list
CORRAL_ENV_PATH=$plugins expect 0 err 'exports no corral_env_plugin_v1' list
expect 0 out '0 failed' check "$plugins/walk.so" --id walk/Same-v0
expect 0 out '0 failed' check CartPole-v1
expect 1 out 'FAIL     observation bounds' check walk/ObsLie-v0 --library "$plugins/walk.so"
expect 1 out '"result": "fail"' check "$plugins/walk.so" --id walk/Crash-v0 --json
expect 1 out 'it hung while in step 7' check "$plugins/walk.so" --id walk/Hang-v0 --timeout 300ms
expect 2 err 'did you mean CartPole-v1?' check CartPol-v1
expect 2 err 'exports no corral_env_plugin_v1' check "$plugins/no_symbol.so"
expect 2 err 'there is no plug-in file' check ./absent.so
expect 0 out '"unit": "environment steps per second"' bench "$plugins/walk.so" --id walk/Same-v0 --seconds 0.2 --envs 4 --json
expect 0 out 'with a policy, 32 x 32' bench "$plugins/walk.so" --id walk/Turns-v0 --seconds 0.2 --envs 4
expect 1 err 'step failed for the whole batch' bench "$plugins/walk.so" --id walk/BatchFails-v0 --seconds 0.2
expect 2 err 'say what to do'
expect 2 err 'did you mean `check`?' chekc x.so
expect 2 err '--seconds needs a number' bench x.so --seconds soon
expect 2 err '--timeout needs a time' check x.so --timeout 5
expect 2 err 'unknown option' list --nothing
expect 2 err 'needs a plug-in file or an id' check
[[ $bad -eq 0 ]] && echo "rlctl env behaves"
exit $bad
