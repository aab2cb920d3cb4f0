#!/bin/bash
# Tenants beside a run: one that serves, one that ends well, one that crashes until it is given up, one that wants more memory than it may have, and one whose
# start cannot be. None of them costs the run a step, and nothing of them is left.
source "$(dirname "$0")/lib.sh"
cartpole one.toml tenants
mkdir "$T/work"
# Devices 3 to 7 are the tenants' own; `serve` also shares the eval worker's device.
sed -e 's/^host_devices = 3/host_devices = 8/' -e 's/^gpus = \["a:2"\]/&\nshared = true\ncompute = 60/' "$T/one.toml" >"$T/job.toml"
cat >>"$T/job.toml" <<TOML
[[tenant]]
name = "serve"
gpus = ["a:3", "a:2"]
floor = "16MiB"
ceiling = "24MiB"
compute = 40
restart = "always"
environment = ["GREETING=hello there"]
folder = "work"
command = ["bash", "-c", "echo \"\$GREETING from \$PWD, gpus '\$CUDA_VISIBLE_DEVICES', ledger \$CORRAL_QUOTA_LEDGER\"; (trap '' TERM; sleep 600) & sleep 600"]
[[tenant]]
name = "once"
gpus = ["a:4"]
floor = "64MiB"
command = ["true"]
[[tenant]]
name = "crash"
gpus = ["a:5"]
floor = "64MiB"
command = ["bash", "-c", "echo started; exit 3"]
[[tenant]]
name = "holder"
gpus = ["a:7"]
floor = "64MiB"
restart = "never"
command = ["bash", "-c", "x=\$(head -c 6M /dev/zero | tr '\\\\0' x); echo \"has \${#x}\"; sleep 700"]
[[tenant]]
name = "hog"
gpus = ["a:6"]
floor = "32MiB"
restart = "never"
command = ["bash", "-c", "echo taking; x=\$(head -c 300M /dev/zero | tr '\\\\0' x); echo \"took \${#x}\""]
TOML
# tenants_of RUN: "name state restarts code memory" of each
tenants_of()
{
    awk '/"tenants":/ { on = 1 } /"workers":/ { on = 0 } on && match($0, /"[a-z_]+": /) {
        key = substr($0, RSTART + 1, RLENGTH - 4); value = $0; sub(/^[^:]*: "?/, "", value); sub(/"?,?$/, "", value); v[key] = value
        if (key == "memory") print v["name"], v["state"], v["restarts"], v["code"], v["memory"]
    }' "$1/status.json" 2>/dev/null
}
tenant() { tenants_of "$RUN" | grep -q "^$1\( \|$\)"; }
launch tenants job.toml --set algorithm.epochs=20 --set stop.train_steps=1000000000 --set fault.restarts_max=3 --set fault.backoff=5ms --set fault.backoff_max=20ms \
    --set fault.window=10m
need "the run starts" wait_until 30 eval 'RUN=$(run_of tenants) && reached "$RUN" 2'
check "the one that crashes is started again until it is given up" wait_until 20 tenant "crash down 3 3"
same "four lives of it" "$(grep -c started "$RUN/logs/crash.log")" 4
check "the one that ends well stays down" wait_until 20 tenant "once down 0 0"
hog_is_down() { tenants_of "$RUN" | grep -q '^hog down 0 '; }
check "the one that takes too much is stopped" wait_until 30 hog_is_down
check "it began" grep -q taking "$RUN/logs/hog.log"
same "it did not get more than its ceiling" "$(grep -c took "$RUN/logs/hog.log")" 0
check "the one that serves runs, with its whole ceiling charged" wait_until 10 tenant "serve running 0 0 $((24 << 20))"
holds() { rl held quota show "$RUN" --json && [[ $(awk '/"role": "holder"/ { on = 1 } on && /"physical": / { gsub(/[^0-9]/, ""); print; exit }' "$T/held.out") -gt $((6 << 20)) ]]; }
check "what a tenant's processes really hold is read" wait_until 10 holds
line=$(head -n 1 "$RUN/logs/serve.log")
matches "it has its environment, its folder, no GPU and a quota" "$line" "^hello there from $T/work, gpus '', ledger /proc/[0-9]+/fd/[0-9]+$"

# A life that is killed takes along what it has started, also what does not want to end, and is started again.
sleepers() { pgrep -x sleep | while read -r p; do [[ $(readlink "/proc/$p/cwd" 2>/dev/null) == "$T/work" ]] && echo "$p"; done; }
two_sleepers() { [[ $(sleepers | wc -l) -eq 2 ]]; }
check "it has started two processes" wait_until 10 two_sleepers
before=$(sleepers | sort | tr '\n' ' ')
serve=$(for p in $(survivors "$T/work"); do [[ $(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null) == "bash -c "* && $(awk '{ print $4 }' "/proc/$p/stat") != 1 ]] && echo "$p"; done | sort -n | head -n 1)
kill -KILL "$serve"
again() { tenants_of "$RUN" | grep -q '^serve running 1 -9' && two_sleepers && [[ $(sleepers | sort | tr '\n' ' ') != "$before" ]]; }
check "killed, it is started again" wait_until 20 again
gone() { local p; for p in $before; do [[ ! -d /proc/$p ]] || return 1; done; }
check "what it had started is gone" wait_until 10 gone

# The same when it is the supervisor that is killed, which cannot take anybody along: the agent adopts what is left.
check "it has started two processes again" wait_until 10 two_sleepers
before=$(sleepers | sort | tr '\n' ' ')
supervisor=$(for p in $(survivors "$RUN"); do [[ $(tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null) == "rlctl tenant "*"sleep 600"* ]] && echo "$p"; done)
kill -KILL "$supervisor"
again() { tenants_of "$RUN" | grep -q '^serve running 2 -9' && two_sleepers && [[ $(sleepers | sort | tr '\n' ' ') != "$before" ]]; }
check "its supervisor killed, it is started again" wait_until 20 again
check "and nothing of the life before is left" gone

rl status status "$RUN"
matches "status shows them" "$(out_of status)" "serve +a:3 a:2|serve +a:3,2"
matches "with their restarts" "$(out_of status)" "crash .*down .*3 restarts"
at=$(last_step "$RUN")
check "the run trains on" wait_until 30 reached "$RUN" $((at + 10))
same "no worker was started again" "$(status_of "$RUN" restarts)" 0
rl stop stop "$RUN"
same "stop: exit code 0" "$rc" 0
reap tenants
same "launch: exit code 0" "$rc" 0
check "nothing is left, not even what ignores SIGTERM" none_left
check_steps "the run lost no step" "$RUN" $CARTPOLE_BATCH
matches "the fence held" "$(out_of tenants)" "0 violations of the memory fence"
matches "the summary tells of them" "$(out_of tenants)" "crash down, 3 restarts; last: 3 restarts within 600 s"

# All or nothing: a tenant that cannot be started is an error of the launch.
rl missing launch "$T/job.toml" --dir "$T/missing" --quiet --set 'tenant.once.command=["corral-no-such-program"]'
same "a program that is not there: exit code 1" "$rc" 1
matches "it says which" "$(err_of missing)" "tenant once cannot start: there is no program corral-no-such-program in PATH"
check "nothing is left of that" none_left

# An agent that is killed cannot tidy up; its tenants go all the same.
launch orphan job.toml --set algorithm.epochs=20 --set stop.train_steps=1000000000
need "another run starts" wait_until 30 eval 'RUN=$(run_of orphan) && reached "$RUN" 2'
check "it has the two processes again" wait_until 10 two_sleepers
kill -KILL "$(agents_of "$RUN")"
reap orphan
check "a killed agent's tenants are gone" wait_until 5 none_left
finish
