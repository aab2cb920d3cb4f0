#!/bin/bash
# stream.durability = "wal": kill -9 of everything at random moments, resume, and at the end every logged record is accounted for once. Also single workers, and a log that is trimmed.
source "$(dirname "$0")/lib.sh"
ROUNDS=${ROUNDS:-5}
SEED=${SEED:-$$}
RANDOM=$SEED
note "ROUNDS=$ROUNDS SEED=$SEED"
cartpole job.toml wal
sed -i -e 's/host_devices = 3/host_devices = 5/; s/"a:0"/"a:0-1"/; s/"a:1"/"a:2-3"/; s/"a:2"/"a:4"/' "$T/job.toml"
BATCH=$((2 * CARTPOLE_BATCH)) # two rollout workers
STEPS=400
launch wal job.toml --set stop.train_steps=$STEPS --set checkpoint.every=5 --set eval.every=50 --set 'stream.durability="wal"' \
    --set 'stream.keep="all"' --set 'stream.log_segment="64KiB"' --set staleness.max_versions=4
need "the run starts" wait_until 30 eval 'RUN=$(run_of wal) && reached "$RUN" 6'
name=wal
grown() { [[ $(wc -l <"$RUN/metrics.jsonl") -gt $((lines + $1)) ]]; }
for ((round = 1; round <= ROUNDS; round++)); do
    lines=$(wc -l <"$RUN/metrics.jsonl")
    wait_until 30 grown $((RANDOM % 12))
    if ((round % 2)); then # everything at once
        mapfile -t all < <(survivors "$RUN")
        [[ ${#all[@]} -eq 0 ]] || kill -KILL "${all[@]}" 2>/dev/null
    else # a worker first: its successor reads the same log
        workers_of "$RUN" | awk '($2 == "train" || $2 == "rollout") && $4 > 1 { print $4 }' | shuf -n 1 --random-source=<(yes "$SEED$round") |
            while read -r pid; do kill -KILL "$pid"; done
        wait_until 30 grown $((RANDOM % 8))
        pid=$(coordinator_of "$RUN")
        [[ ${pid:-0} -gt 1 ]] && kill -KILL "$pid"
    fi
    check "round $round: every process is gone within 2 s" wait_until 2 none_left "$RUN"
    reap $name
    rl stats traj stats "$RUN"
    same "round $round: the log can be read as it is" "$rc" 0
    note "checkpoint of step $(checkpoint_of "$RUN"), last step $(last_step "$RUN")"
    name=resume$round
    old=$(coordinator_of "$RUN")
    rl_bg $name resume "$RUN" --quiet
    alive_again() { [[ $(coordinator_of "$RUN") != "$old" ]] && kill -0 "$(coordinator_of "$RUN")" 2>/dev/null; }
    need "round $round: resume takes over" wait_until 10 alive_again
done
reap $name
same "the last resume reaches the end" "$rc" 0
same "the last step" "$(last_step "$RUN")" $STEPS
check_steps "versions grew across all crashes, environment steps are exact" "$RUN" $BATCH $STEPS 100

# The ledger: what each rank's last state says is done with (its cursors, 16 bytes each from offset 224), against what its log holds.
state=$(find "$RUN/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1)
same "the last checkpoint is of the last step" "$(basename "$state")" "$(printf 'step-%09d' $STEPS)"
covered=0
for rank in 0 1; do
    file=$state/trainer-$rank.state
    cursors=$(od -An -tu4 -j220 -N4 "$file" | tr -d ' ')
    od -An -v -w16 -tu4 -j224 -N$((16 * cursors)) "$file" | awk '{ print $1, $2, $3 }' >"$T/cursors"
    rl tail$rank traj tail "$RUN" --rank $rank -n 100000000
    # worker W.EPOCH #SEQUENCE; a worker's stream has every number once, and its lives follow each other
    ledger=$(out_of tail$rank | sed -E 's/.* worker ([0-9]+)\.([0-9]+) #([0-9]+) .*/\1 \2 \3/' | awk -v cursors="$T/cursors" '
        BEGIN { while ((getline line < cursors) > 0) { split(line, c, " "); epoch[c[1]] = c[2]; done[c[1]] = c[3] } }
        seen[$0]++ { print "twice: " $0; exit }
        $2 < life[$1] { print "an older life after a newer one: " $0; exit }
        $2 > life[$1] { life[$1] = $2; next_one[$1] = 1 }
        $3 != next_one[$1]++ { print "a gap before " $0; exit }
        $2 < epoch[$1] || ($2 == epoch[$1] && $3 <= done[$1]) { n++ }
        END { print n + 0 }')
    matches "rank $rank: every record is in the log once, none is missing" "$ledger" '^[0-9]+$'
    [[ $ledger =~ ^[0-9]+$ ]] && covered=$((covered + ledger))
done
dropped=$(cat "$RUN"/logs/trainer-*.log | grep -c 'fragment dropped as too stale')
same "nothing was too stale, whatever number its version had" "$dropped" 0
# Each step takes one fragment of each of the two workers.
same "records done with = records that the steps of the surviving line took" "$covered" $((2 * STEPS))
rl audit audit "$RUN"
same "audit" "$rc" 0

# ---- trimmed ----
launch trim job.toml --set stop.train_steps=120 --set checkpoint.every=5 --set checkpoint.keep=2 --set 'stream.durability="wal"' --set 'stream.log_segment="64KiB"' --set 'stream.buffer="256KiB"' --set 'stream.log_max="1MiB"'
reap trim
same "a run with a small log ends" "$rc" 0
RUN=$(run_of trim)
rl trimmed traj tail "$RUN" --rank 0 -n 1000000
first=$(out_of trimmed | head -n 1 | sed -E 's/^0:([0-9]+) .*/\1/')
check "the log was trimmed at checkpoints" test "${first:-0}" -gt 40
check "and not beyond the oldest kept one" test "${first:-0}" -le 116
rl small plan "$T/job.toml" --set checkpoint.every=50 --set 'stream.durability="wal"' --set 'stream.log_max="300KiB"'
matches "a limit below what the checkpoints need is refused" "$(err_of small)" "stream.log_max of 300KiB: .* at least .* are needed"
rl disk plan "$T/job.toml" --set checkpoint.every=50 --set 'stream.durability="wal"'
matches "the plan says what the log takes on disk" "$(out_of disk | tr '\n' ' ')" "on disk, each trainer +one gradient step +[0-9.]+ KiB +kept at most, trimmed at checkpoints +[0-9.]+ MiB"
finish
