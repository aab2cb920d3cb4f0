# Harness of the system tests: each starts the real rlctl in a folder of its own, waits for events, and leaves nothing behind.
# A test sources this file, calls `check`, `need`, `same` and `matches`, and ends with `finish`. Output is TAP-like.
#   RLCTL           the program (default: rlctl of $PATH)
#   SYSTEM_PLUGINS  folder of the test plug-ins (walk.so)
#   KEEP=1          keep the folder of a test that failed
# Exit: 0 all passed, 1 something failed, 77 skipped.
set -u
RLCTL=${RLCTL:-$(command -v rlctl)} || RLCTL=
RLCTL=$(realpath -- "${RLCTL:-/nonexistent}") && [[ -x $RLCTL ]] || { echo "set RLCTL to the program under test" >&2; exit 1; }
TESTS_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

T=$(realpath -- "$(mktemp -d "${TMPDIR:-/tmp}/corral-system.XXXXXX")") || exit 1
mkdir "$T/tmp"
export TMPDIR=$T/tmp # what the programs leave there is found by `nothing_left`
cd /                 # so that only processes under test have $T as their current directory
exec {NAP}<> <(:)    # never readable: reading it with a timeout is a pause without a process

COUNT=0
FAILED=0
MOUNTS=()

# ---- assertions ----
pass() { COUNT=$((COUNT + 1)); echo "ok $COUNT - $1"; }
fail()
{
    COUNT=$((COUNT + 1))
    FAILED=$((FAILED + 1))
    echo "not ok $COUNT - $1"
    [[ -z ${2:-} ]] || sed 's/^/#   /' <<<"$2"
}
# check TEXT CMD...: the command succeeds
check()
{
    local text=$1
    shift
    # No subshell: the command may set variables.
    if "$@" >"$T/said" 2>&1; then pass "$text"; else fail "$text" "$* → $? $(cat "$T/said")"; fi
}
# need TEXT CMD...: as check, and nothing after it makes sense without it
need()
{
    local before=$FAILED
    check "$@"
    [[ $FAILED -eq $before ]] || finish
}
same() { if [[ $2 == "$3" ]]; then pass "$1"; else fail "$1" "got:  $2"$'\n'"want: $3"; fi; }
matches() { if [[ $2 =~ $3 ]]; then pass "$1"; else fail "$1" "got:  $2"$'\n'"want: $3"; fi; }
skip() { echo "1..0 # SKIP $1"; COUNT=0; exit 77; }
note() { echo "# $*"; }

finish()
{
    nothing_left
    echo "1..$COUNT"
    if [[ $FAILED -gt 0 ]]; then
        show_logs
        exit 1
    fi
    exit 0
}

show_logs()
{
    local f
    for f in "$T"/*.err "$T"/*.out "$T"/*/*/logs/*.log; do
        if [[ -s $f ]]; then
            echo "# ---- ${f#"$T/"}"
            tail -n 15 "$f" | cut -c1-300 | sed 's/^/# /'
        fi
    done
}

# ---- processes ----
# Pids of the processes that work below a folder (default: this test's): every process of a run has the run folder as its current directory.
survivors() { find /proc -maxdepth 2 -name cwd \( -lname "${1:-$T}" -o -lname "${1:-$T}/*" \) 2>/dev/null | cut -d/ -f3; }
none_left() { [[ -z $(survivors "${1:-$T}") ]]; }
describe_survivors()
{
    local pid
    for pid in $(survivors "${1:-$T}"); do
        echo "$pid $(tr '\0' ' ' <"/proc/$pid/cmdline") $(grep State "/proc/$pid/status")"
    done
}

nothing_left()
{
    local kept
    if none_left; then pass "no process is left"; else fail "no process is left" "$(describe_survivors)"; fi
    kept=$(ls -A "$TMPDIR" 2>/dev/null)
    same "nothing is left in the temporary folder" "$kept" ""
    kept=$(grep -rhE -m1 'ERROR: [A-Za-z]*Sanitizer|runtime error:|ThreadSanitizer' "$T" --include='*.log' --include='*.err' 2>/dev/null | head -n 3)
    same "no sanitizer complained" "$kept" ""
}

cleanup()
{
    local pid m
    for pid in $(survivors); do
        echo "# killing survivor $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
        kill -KILL "$pid" 2>/dev/null
    done
    wait 2>/dev/null
    for m in "${MOUNTS[@]}"; do
        umount "$m" 2>/dev/null || umount -l "$m"
    done
    if [[ $FAILED -gt 0 && -n ${KEEP:-} ]]; then
        echo "# kept: $T"
    else
        rm -rf -- "$T"
    fi
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

# wait_until SECONDS CMD...: true as soon as the command is, false when the time is over
wait_until()
{
    local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000)) _
    shift
    until "$@"; do
        [[ ${EPOCHREALTIME/./} -lt $deadline ]] || return 1
        read -r -t 0.02 -u "$NAP" _
    done
    return 0
}
now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

# ---- rlctl ----
# rl NAME ARG...: run it in $T, with its output in NAME.out and NAME.err; $rc is its exit code. Nothing runs for longer than 90 s.
rl()
{
    local name=$1
    shift
    (cd "$T" && exec timeout -k 5 90 "$RLCTL" "$@") >"$T/$name.out" 2>"$T/$name.err" </dev/null
    rc=$?
    return 0
}
# The same in the background; `reap NAME` waits for it.
declare -A JOBS=()
rl_bg()
{
    local name=$1
    shift
    # A shell has its background jobs ignore SIGINT.
    (cd "$T" && exec env --default-signal=INT timeout -k 5 "${LIMIT_S:-90}" "$RLCTL" "$@") >"$T/$name.out" 2>"$T/$name.err" </dev/null &
    JOBS[$name]=$!
}
reap()
{
    wait "${JOBS[$1]}"
    rc=$?
    unset "JOBS[$1]"
    return 0
}
err_of() { cat "$T/$1.err"; }
out_of() { cat "$T/$1.out"; }

# ---- a run ----
# launch NAME JOB ARG...: in the background, its run folder alone in $T/NAME
launch() { rl_bg "$1" launch "$T/$2" --dir "$T/$1" --quiet "${@:3}"; }
# The newest run folder of a launch; false while there is none.
run_of()
{
    local newest
    newest=$(ls -dt "$T/$1"/*/ 2>/dev/null | head -n 1)
    [[ -n $newest ]] && echo "${newest%/}"
}
# The process that holds the run's lock, as "pid start"; only its pid.
coordinator_of() { cut -d' ' -f1 <"$1/lock" 2>/dev/null; }
has() { [[ -s $1 ]]; }
last_step() { local s; s=$(grep '"event":"step"' "$1/metrics.jsonl" 2>/dev/null | tail -n 1 | grep -o '"step":[0-9]*' | head -n 1); echo "${s#*:}"; }
# metrics.jsonl is flushed with status.json, four times a second
reached() { local s; s=$(last_step "$1"); [[ ${s:-0} -ge $2 ]]; }
# status_of RUN KEY: a number or text at the top level of status.json, which has one key per line
status_of() { sed -n "s/^ \"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$1/status.json" 2>/dev/null | head -n 1; }
phase_is() { [[ $(status_of "$1" phase) == "$2" ]]; }
# workers_of RUN: "name role state pid version restarts device" per worker
workers_of()
{
    awk '/"workers":/ { on = 1 } on && match($0, /"[a-z_]+": /) {
        key = substr($0, RSTART + 1, RLENGTH - 4); value = $0; sub(/^[^:]*: "?/, "", value); sub(/"?,?$/, "", value); v[key] = value
        if (key == "memory") print v["name"], v["role"], v["state"], v["pid"], v["version"], v["restarts"], v["device"]
    }' "$1/status.json" 2>/dev/null
}
# agents_of RUN: pids
agents_of()
{
    local pid
    for pid in $(survivors "$1"); do
        [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == "rlctl agent "* ]] && echo "$pid"
    done
}
checkpoint_of() { (cd "$T" && "$RLCTL" stop "$1" --json) 2>/dev/null | sed -n 's/.*"checkpoint_step": \([0-9]*\).*/\1/p'; }

# json_valid FILE [lines]: one document, or one per line
json_valid()
{
    if command -v jq >/dev/null; then
        jq -e . "$1" >/dev/null
    elif command -v python3 >/dev/null && [[ ${2:-} == lines ]]; then
        python3 -c 'import json,sys; [json.loads(l) for l in open(sys.argv[1])]' "$1"
    elif command -v python3 >/dev/null; then
        python3 -m json.tool "$1" >/dev/null
    else
        grep -q '^[[{]' "$1"
    fi
}

# steps_of RUN: "step version env_steps" per gradient step in metrics.jsonl
steps_of()
{
    grep '"event":"step"' "$1/metrics.jsonl" | sed -E 's/.*"step":([0-9]+),"version":([0-9]+),"env_steps":([0-9]+),.*/\1 \2 \3/'
}
# check_steps TEXT RUN BATCH [BACK [LOST]]: versions strictly grow; env_steps = step × BATCH; each step is the one before plus one. Where trainers died or
# a run was resumed, a step may fall back by up to BACK steps, and up to LOST times the reports of the last steps may have died with their trainer (0 when not given).
check_steps()
{
    local complaint
    complaint=$(steps_of "$2" | awk -v batch="$3" -v back="${4:-0}" -v lost="${5:-0}" '
        NF != 3 { print "cannot read: " $0; exit }
        $2 + 0 <= version { print "version " $2 " after " version " at step " $1; exit }
        $3 != $1 * batch { print "step " $1 " has " $3 " environment steps, not " $1 * batch; exit }
        NR > 1 && $1 > step + 1 && ++gaps > lost { print "step " $1 " after " step; exit }
        NR > 1 && $1 <= step && step - $1 >= back { print "step " $1 " after " step; exit }
        { step = $1; version = $2 + 0 }
        END { if (NR == 0) print "no steps" }')
    same "$1" "$complaint" ""
}

# ---- jobs ----
# cartpole FILE NAME: one trainer, one rollout and one eval worker; 256 transitions per step. Append further sections, or use --set.
cartpole()
{
    cat >"$T/$1" <<TOML
schema = 1
[job]
name = "$2"
seed = 7
[[node]]
name = "a"
host_devices = 3
host_memory = "96MiB"
[partition.trainer]
role = "train"
gpus = ["a:0"]
floor = "16MiB"
ceiling = "64MiB"
[partition.rollout]
role = "rollout"
gpus = ["a:1"]
floor = "16MiB"
ceiling = "64MiB"
[partition.eval]
role = "eval"
gpus = ["a:2"]
floor = "16MiB"
ceiling = "32MiB"
[model]
hidden = [16]
[env]
id = "CartPole-v1"
instances = 8
[rollout]
fragment = 32
[algorithm]
epochs = 2
minibatch = 128
lr = 1e-3
lr_final = 1e-3
schedule_steps = 1000000
[eval]
episodes = 4
every = 20
[stop]
train_steps = 40
TOML
}
CARTPOLE_BATCH=256
