#!/bin/bash
# 12 GPUs on two nodes, on the fake driver: every worker's memory is on its GPU under its quota, and every gradient step is proven. With a tenant on a GPU.
source "$(dirname "$0")/lib.sh"
FAKECUDA=${FAKECUDA:-}
CONFIGS=$TESTS_HOME/../../configs
[[ -e $FAKECUDA/libcuda.so.1 ]] || skip "no fake driver: set FAKECUDA to its folder"
ldd "$RLCTL" | grep -q lib[at]san && skip "a preloaded library cannot come before a sanitizer's"
export LD_LIBRARY_PATH=$FAKECUDA${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} CORRAL_FAKECUDA_STATE=$T/gpus CORRAL_FAKECUDA_DEVICES=12

rl devices devices --json
same "the fake driver shows 12 GPUs" "$(grep -o '"uuid"' "$T/devices.out" | wc -l)" 12
rl plan plan "$CONFIGS/12gpu-small.toml"
same "plan: exit code 0" "$rc" 0
matches "plan: 12 GPUs" "$(out_of plan)" "2 nodes, 12 GPUs"

cp "$CONFIGS/12gpu-small.toml" "$T/job.toml"
rl gpus launch "$T/job.toml" --dir "$T/gpus-run" --set stop.train_steps=30 --set stop.eval_return=1000000.0 --set fault.start_timeout=60s
same "launch: exit code 0" "$rc" 0
matches "the launch report names the fences" "$(err_of gpus)" "fences +.*ledger ok.*interposer ok"
need "there is a run" eval 'RUN=$(run_of gpus-run)'
same "12 workers" "$(workers_of "$RUN" | wc -l)" 12
same "nobody had to be restarted" "$(status_of "$RUN" restarts)" 0
matches "the fence held" "$(out_of gpus)" "0 violations of the memory fence"
peak() { awk '/"memory":/ { on = 1 } on && /"peak":/ { gsub(/[^0-9]/, ""); print; exit }' "$RUN/status.json"; }
same "pre-flight's refusals are not counted as the roles'" "$(out_of gpus | grep -c ' 0 allocations denied')" 3
same "nor logged" "$(grep -rh 'memory denied' "$RUN" | wc -l)" 0
check "the trainers' memory was charged to their GPUs ($(peak) B)" test "$(peak)" -gt $((256 << 10))
rl audit audit "$RUN"
same "audit: exit code 0" "$rc" 0

# The same GPUs for two runs: the second is told whose they are.
rl held launch "$T/job.toml" --dir "$T/held" --detach --set stop.train_steps=1000000 --set stop.eval_return=1000000.0 --set stop.env_steps=1000000000 --set fault.start_timeout=60s
same "a run holds its GPUs" "$rc" 0
rl twice launch "$T/job.toml" --dir "$T/twice" --quiet
same "another run on them: exit code 1" "$rc" 1
matches "it says why" "$(err_of twice)" "GPU [0-9]+ of node [ab]: GPU-.* is fenced by another run on this machine"
rl stopped stop --dir "$T/held"
same "the first one is not touched by it" "$rc" 0

# More memory declared than there is.
rl less launch "$T/job.toml" --dir "$T/less" --quiet --set node.a.gpu_memory=2GiB
same "gpu_memory above the real one: exit code 1" "$rc" 1
matches "it says so" "$(err_of less)" "GPU 0 of node a .* has 1GiB; the job says gpu_memory = 2GiB"
rl fewer launch "$T/job.toml" --dir "$T/fewer" --quiet --set 'node.b.gpus=[8, 9, 10, 11, 12]' --set partition.eval.gpus=b:12
same "a GPU that is not there: exit code 1" "$rc" 1
matches "it says so" "$(err_of fewer)" "node b has no GPU 12: it has 12"

# A tenant on two GPUs of its own, one of them shared with the eval worker. What it runs here is the canary: it succeeds only inside a fence that holds.
sed -e 's/^gpus = \["b:11"\]/&\nshared = true\nceiling = "768MiB"/' "$T/job.toml" >"$T/tenant.toml"
sed -i -e 's/^gpus = \["a:4-7", "b:8-10"\]/gpus = ["a:4-7", "b:8-9"]/' -e '/^\[partition.eval\]/,/^\[/s/^gpus = .*/&\ncompute = 50/' "$T/tenant.toml"
cat >>"$T/tenant.toml" <<TOML
[[tenant]]
name = "probe"
gpus = ["b:10", "b:11"]
floor = "64MiB"
ceiling = "128MiB"
compute = 50
command = ["$RLCTL", "canary"]
TOML
rl tenant launch "$T/tenant.toml" --dir "$T/tenant-run" --set stop.train_steps=30 --set stop.eval_return=1000000.0 --set fault.start_timeout=60s
same "with a tenant: exit code 0" "$rc" 0
RUN=$(run_of tenant-run)
matches "its fence held, tried before its start and by itself" "$(grep -c 'the fence holds' "$RUN/logs/probe.log")" "^2$"
matches "it ended well" "$(out_of tenant)" "probe (down|stopped), 0 restarts"
rm -f "$T/gpus"
finish
