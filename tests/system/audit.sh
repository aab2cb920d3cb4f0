#!/bin/bash
# Every gradient step leaves a proof: `rlctl audit` passes after trainers were killed and the run was resumed, on a copy of the folder too, and finds whatever is changed in it.
source "$(dirname "$0")/lib.sh"
cartpole one.toml audit
sed -e 's/^host_devices = 3/host_devices = 4/' -e 's/"a:0"/"a:0-1"/' -e 's/"a:1"/"a:2"/' -e 's/"a:2"$/"a:3"/' "$T/one.toml" | sed 's/gpus = \["a:2"\]/&/' >"$T/job.toml"
sed -i '/^\[partition.eval\]/,$ s/gpus = \["a:2"\]/gpus = ["a:3"]/' "$T/job.toml"
launch audit job.toml --set stop.train_steps=1000000000 --set checkpoint.every=50 --set fault.restarts_max=1000 --set fault.backoff=1ms --set fault.backoff_max=5ms --set eval.every=50
need "the run starts" wait_until 30 eval 'RUN=$(run_of audit) && reached "$RUN" 5'
rl while audit "$RUN"
same "a run that goes on can be audited" "$rc" 0
kill_trainer()
{
    local name role state pid rest
    while read -r name role state pid rest; do
        [[ $role == train && $pid -gt 0 && $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) == "rlctl worker $name "* ]] && kill -KILL "$pid" 2>/dev/null && return 0
    done < <(workers_of "$RUN" | sort -R)
    return 1
}
for i in 1 2 3 4 5; do
    check "trainer killed" wait_until 20 kill_trainer
    at=$(last_step "$RUN")
    check "and it trains on" wait_until 30 reached "$RUN" $((at + 7))
done
rl stop stop "$RUN"
reap audit
same "launch ended in order" "$rc" 0
matches "the summary says that all steps are proven" "$(out_of audit)" "memory +trainer peak .* rollout floor intact in all [0-9]+ steps \(0 refused, 0 unproven\); chain ok"
rl whole audit "$RUN"
same "after the kills every step is proven" "$rc" 0
matches "and the restarts are told" "$(out_of whole)" "restarts"
rl resume resume "$RUN" --quiet --set stop.train_steps=1000000000
[[ $rc -eq 2 ]] && { rl_bg resume resume "$RUN" --quiet; at=$(last_step "$RUN"); check "it goes on" wait_until 30 reached "$RUN" $((at + 20)); rl stop stop "$RUN"; reap resume; }
rl resumed audit "$RUN" --json
same "after a resume every step is proven" "$rc" 0
check "the JSON is valid" json_valid "$T/resumed.out"

mkdir "$T/copies"
copy() { rm -rf "$T/copies/c"; mkdir "$T/copies/c"; cp -a "$RUN/job.toml" "$RUN/journal.db"* "$RUN/metrics.jsonl" "$RUN/proof" "$T/copies/c/"; C=$T/copies/c; F=$C/proof/trainer-1.chain; }
audit_copy() { rl copy audit "$C"; }
copy; audit_copy
same "a copy passes" "$rc" 0
lines=$(wc -l <"$F")
copy; sed -i "$((lines / 2))d" "$F"; audit_copy
same "a dropped record is found" "$rc" 1
matches "and named" "$(out_of copy)" "trainer-1.chain: record $((lines / 2)):"
copy; sed -i '$d' "$F"; audit_copy
same "a chain without its last record is found" "$rc" 1
matches "as cut short" "$(out_of copy)" "cut short"
copy; sed -i '7{h;d};8{G}' "$F"; audit_copy
same "records that changed places are found" "$rc" 1
copy; sed -i '9p' "$F"; audit_copy
same "a repeated record is found" "$rc" 1
copy; sed -i '5s/"own_peak":\([0-9]\)/"own_peak":9\1/' "$F"; audit_copy
same "a changed number is found" "$rc" 1
copy; truncate -s -1 "$F"; audit_copy
same "a chain without its last newline is found" "$rc" 1
copy; rm "$F"; audit_copy
same "a missing chain is found" "$rc" 1
copy; sed -i "$((lines / 2)),\$d" "$F"; sed -i "$(($(wc -l <"$C/metrics.jsonl") / 2)),\$d" "$C/metrics.jsonl"; audit_copy
same "a chain cut short together with the metrics is found" "$rc" 1
matches "by the journal" "$(out_of copy)" "cut short"
copy; cp "$C/proof/trainer-0.chain" "$F"; rm "$C/metrics.jsonl"; audit_copy
same "another rank's chain is found" "$rc" 1

# Somebody who knows how chains are made: from record $1 on, the hashes of what is now there.
rehash()
{
    local h n=0 have body
    h=$(sed -n "$(($1 - 1))p" "$F" | cut -d' ' -f1)
    sed -n "$1,\$p" "$F" >"$T/tail"
    sed -i "$1,\$d" "$F"
    while read -r have body; do
        h=$(printf '%s %s' "$h" "$body" | sha256sum | cut -d' ' -f1)
        printf '%s %s\n' "$h" "$body" >>"$F"
    done <"$T/tail"
}
copy; last=$(grep -n '"type":"step"' "$F" | tail -n 1 | cut -d: -f1)
sed -i "${last}s/\"slack_min\":/\"slack_min\":1/" "$F"; rehash "$last"; audit_copy
same "a forged record with new hashes is found" "$rc" 1
matches "and named" "$(out_of copy)" "trainer-1.chain: record $last:"
rl forged audit "$F"
same "one that breaks the arithmetic also without its run" "$rc" 1
matches "as what it is" "$(out_of forged)" "slack"
copy; sed -i "${last}s/\"device_foreign\":/\"device_foreign\":99999999999/" "$F"; rehash "$last"; rl forged audit "$F"
same "a step that unknown processes make unproven cannot be called proven" "$rc" 1

# A run that ends before its first checkpoint has no heads in its journal.
sed 's/audit/crash/' "$T/job.toml" >"$T/crash.toml"
launch crash crash.toml --set stop.train_steps=1000000000 --set checkpoint.every=100000000
need "another run starts" wait_until 30 eval 'OTHER=$(run_of crash) && reached "$OTHER" 10'
kill -KILL "$(coordinator_of "$OTHER")"
reap crash
check "and is killed" wait_until 20 none_left "$OTHER"
rl other audit "$OTHER"
same "its proof is whole" "$rc" 0
rm -rf "$T/copies/c"; mkdir "$T/copies/c"; cp -a "$OTHER/job.toml" "$OTHER/journal.db"* "$RUN/metrics.jsonl" "$RUN/proof" "$T/copies/c/"; C=$T/copies/c; audit_copy
same "chains and metrics of another run are found" "$rc" 1
matches "and named" "$(out_of copy)" "of run [0-9a-f]{16}"
rl file audit "$RUN/proof/trainer-0.chain"
same "a chain file alone can be checked" "$rc" 0
rl none audit nosuchrun
same "a run that is not there is a usage error" "$rc" 2
finish
