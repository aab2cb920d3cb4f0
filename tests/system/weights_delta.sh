#!/bin/bash
# A job of two nodes whose weight versions travel as deltas and cast to bf16: it learns, both nodes have the same bytes as without deltas, status says what was saved, and combinations that make no sense are refused.
source "$(dirname "$0")/lib.sh"
cartpole one.toml delta
two_nodes() { sed -e '/^\[partition.trainer\]/i [[node]]\nname = "b"\nhost_devices = 1\nhost_memory = "96MiB"' -e 's/"a:1"/"a:1", "b:0"/' "$1"; }
two_nodes "$T/one.toml" >"$T/job.toml"
two_nodes "$TESTS_HOME/../../configs/cartpole.toml" >"$T/learn.toml"
# of_node FOLDER NODE KEY and of_push FOLDER KEY: of the status.json of the run in the folder
status_of() { tr -d '\n' <"$(ls -d "$T/$1"/*/ | tail -n 1)status.json"; }
of_node() { status_of "$1" | grep -o '"nodes": *\[.*' | grep -o "{[^}]*\"node\": \"$2\"[^}]*}" | head -n 1 | grep -o "\"$3\": [^,}]*" | sed 's/.*: //; s/"//g; s/ *$//'; }
of_push() { status_of "$1" | grep -o '"push": *{[^}]*}' | grep -o "\"$2\": [0-9]*" | sed 's/.*: //'; }

rl learns launch learn.toml --dir "$T/learns" --set weights.delta=true --set weights.cast=bf16 --set weights.anchor_every=6
same "a job with deltas and casts" "$rc" 0
matches "learns" "$(err_of learns)$(out_of learns)" "learned +in"
matches "its memory stays within its quotas" "$(err_of learns)$(out_of learns)" "0 violations of the memory fence"
check "versions went as deltas" test "$(of_push learns deltas_total)" -gt 0
check "some of them, anchors between them" test "$(of_push learns deltas_total)" -lt "$(of_node learns b version)"
check "little more than half of the bytes moved" test $((10 * $(of_push learns moved_total))) -lt $((6 * $(of_push learns whole_total)))
check "what is held for deltas is known" test "$(of_push learns memory)" -gt 0
rl told weights status "$(ls -d "$T"/learns/*/ | tail -n 1)"
matches "status shows what was saved" "$(out_of told)" "bytes +[0-9.]+ [KM]iB sent to other nodes instead of [0-9.]+ [KM]iB: [0-9.]+ [KM]iB saved"
matches "and the stages" "$(out_of told)" "stages +gather [0-9.]+ [mnu]?s, pack [0-9.]+ [mnu]?s, wire [0-9.]+ [mnu]?s, apply [0-9.]+ [mnu]?s, flip [0-9.]+ [mnu]?s, pause [0-9.]+ [mnu]?s"

# The same seed and admitted order: the same weights at the end, however they travelled.
play() # NAME SET...
{
    local name=$1 args=()
    shift
    for set in "$@"; do args+=(--set "$set"); done
    rl "$name" launch job.toml --dir "$T/$name" --set stop.env_steps=0 --set stop.train_steps=12 --set staleness.max_versions=0 "${args[@]}"
    same "$name: exit code" "$rc" 0
}
for cast in none bf16 fp8; do
    play "whole-$cast" weights.cast=$cast
    play "delta-$cast" weights.cast=$cast weights.delta=true
    same "$cast: as many versions" "$(of_node "delta-$cast" b version)" "$(of_node "whole-$cast" b version)"
    same "$cast: the receiving node has the same bytes" "$(of_node "delta-$cast" b digest)" "$(of_node "whole-$cast" b digest)"
    same "$cast: and the trainer's own" "$(of_node "delta-$cast" a digest)" "$(of_node "whole-$cast" a digest)"
    same "$cast: none went as a delta when none was asked for" "$(of_push "whole-$cast" deltas_total)" 0
    check "$cast: and all but the first when they were" test "$(of_push "delta-$cast" deltas_total)" -gt 8
done
if [[ $(of_node whole-none b digest) != "$(of_node whole-bf16 b digest)" ]]; then pass "a cast makes other bytes"; else fail "a cast makes other bytes"; fi

refused() # TEXT FILE LINES PATTERN
{
    { cat "$T/$2"; printf '%b' "$3"; } >"$T/wrong.toml"
    rl wrong launch wrong.toml --dir "$T/wrong"
    same "$1: refused" "$rc" 2
    matches "$1: with its place" "$(err_of wrong)" "$4"
    check "$1: before anything is made" test ! -e "$T/wrong"
}
refused "deltas within one node" one.toml '[weights]\ndelta = true\n' 'wrong.toml:[0-9]+:9: error: .weights.delta. = true has no use in a job of one node'
refused "anchors without deltas" job.toml '[weights]\nanchor_every = 3\n' 'wrong.toml:[0-9]+:16: error: .weights.anchor_every. is for deltas'
refused "an unknown precision" job.toml '[weights]\ncast = "int4"\n' 'wrong.toml:[0-9]+:8: error: .weights.cast. must be one of'
if [[ -z $(ls /dev/infiniband 2>/dev/null) ]]; then
    refused "a lane that is not here" job.toml '[weights]\ntransport = "rdma"\n' 'wrong.toml:[0-9]+:13: error: .weights.transport. = .rdma. cannot be used here: '
fi
finish
