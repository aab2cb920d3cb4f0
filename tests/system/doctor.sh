#!/bin/bash
# rlctl doctor: every fence has a state and a reason, nothing is left behind, and what a killed run left is found and removed.
source "$(dirname "$0")/lib.sh"

# Groups that the process PID made; other runs on this machine have theirs.
trees_by() { find /sys/fs/cgroup -maxdepth 12 -type d -name "corral-????????????????-$1-*" 2>/dev/null; }
groups_by() { trees_by "$1" | wc -l; }
# A process in the first group of each tree: another run that starts meanwhile removes groups that are empty.
occupy()
{
    local tree group
    for tree in $(trees_by "$1"); do
        group=$(find "$tree" -mindepth 1 -type d | head -n 1)
        echo "$BASHPID" >"$group/cgroup.procs" || return 1
    done
    echo ready >"$T/occupied"
    exec sleep 300
}

rl plain doctor
same "exit code 0" "$rc" 0
for fence in ledger affinity rlimit cgroup-memory cpuset cpu dmem mps interposer; do
    check "$fence has a state and a reason" grep -qE "^$fence +(ok|absent) +[^ ]" "$T/plain.out"
done
check "the ledger holds" grep -qE '^ledger +ok ' "$T/plain.out"
check "says that jobs can run" grep -q 'Jobs on host devices can run here' "$T/plain.out"
same "nothing on stderr" "$(err_of plain)" ""
rl again doctor
check "its own groups are gone" eval '! grep -q "^0000000000000000 " "$T/again.out"'

rl json doctor --json
same "as JSON: exit code 0" "$rc" 0
check "as JSON: one document" json_valid "$T/json.out"
check "as JSON: ok" grep -q '"ok": true' "$T/json.out"
same "as JSON: nine fences" "$(grep -c '"state": "' "$T/json.out")" 9

rl wrong doctor now
same "an argument is wrong usage" "$rc" 2
rl unknown doctor --fix
same "an unknown option is wrong usage" "$rc" 2

# A machine that refuses: without the right to make groups the fences are absent, and that is no failure.
if [[ $EUID -eq 0 ]] && command -v setpriv >/dev/null && setpriv --reuid 65534 --regid 65534 --clear-groups test -x "$RLCTL" 2>/dev/null; then
    (cd / && setpriv --reuid 65534 --regid 65534 --clear-groups "$RLCTL" doctor) >"$T/nobody.out" 2>"$T/nobody.err"
    same "without rights: exit code 0" "$?" 0
    check "without rights: cgroup-memory says what is missing" grep -qE '^cgroup-memory +absent +.{10}' "$T/nobody.out"
else
    note "without rights: needs root, setpriv and a program that others may read"
fi

# A run whose processes are all killed at once.
cartpole job.toml killed
launch run job.toml --set stop.train_steps=1000000
if wait_until 30 run_of run >/dev/null && RUN=$(run_of run) && wait_until 30 reached "$RUN" 2; then
    agent=$(agents_of "$RUN" | head -n 1)
    coordinator=$(coordinator_of "$RUN")
    had=$(groups_by "$agent")
    rl alive doctor
    check "groups of a run that lives are not listed" eval '! grep -q -- "-$agent-" "$T/alive.out"'
    if [[ $had -gt 0 ]]; then
        occupy "$agent" &
        sleeper=$!
        need "a process of somebody else is in its groups" wait_until 10 has "$T/occupied"
    fi
    # Stopped, the coordinator cannot start anything or end in order before it dies, too.
    kill -STOP "$coordinator" && kill -KILL "$agent" && kill -KILL "$coordinator"
    check "a killed run leaves no process" wait_until 20 none_left
    reap run
    if [[ $had -gt 0 ]]; then
        same "its groups are still there" "$(groups_by "$agent")" "$had"
        rl found doctor
        same "they are found" "$(grep -c -- "-$agent-" "$T/found.out")" "$had"
        rl clean doctor --clean
        same "and removed: exit code 0" "$rc" 0
        same "which is said" "$(grep -- "-$agent-" "$T/clean.out" | grep -c ' removed$')" "$had"
        same "they are gone" "$(groups_by "$agent")" 0
        wait "$sleeper"
        same "and what was in them is killed" "$?" 137
    else
        note "no cgroups here: a killed run leaves none"
    fi
else
    fail "the run started" "$(err_of run)"
fi
finish
