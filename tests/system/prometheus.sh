#!/bin/bash
# The metrics page: on any free port, in Prometheus' text format; a port in use is one clear error before anything starts.
source "$(dirname "$0")/lib.sh"
cartpole job.toml metrics
launch page job.toml --set stop.train_steps=1000000000 --set 'observe.prometheus="127.0.0.1:0"'
page_known() { RUN=$(run_of page) && [[ $(status_of "$RUN" prometheus) == http* ]] && reached "$RUN" 3; }
need "the run tells where its page is" wait_until 30 page_known
URL=$(status_of "$RUN" prometheus)
matches "the page's address" "$URL" '^http://127\.0\.0\.1:[1-9][0-9]*/metrics$'
PORT=${URL##*:}
PORT=${PORT%/metrics}
# get PATH: status line, headers and body
get()
{
    exec {web}<>"/dev/tcp/127.0.0.1/$PORT" || return 1
    printf '%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "${2:-GET}" "$1" >&"$web"
    timeout 10 cat <&"$web"
    exec {web}>&-
}
get /metrics | tr -d '\r' >"$T/reply"
same "GET /metrics: 200" "$(head -n 1 "$T/reply")" "HTTP/1.1 200 OK"
matches "GET /metrics: content type" "$(cat "$T/reply")" $'\nContent-Type: text/plain'
sed '1,/^$/d' "$T/reply" >"$T/body"
for family in corral_gradient_steps_total corral_env_steps_total corral_weight_version corral_ledger_violations_total corral_worker_up corral_memory_ceiling_bytes corral_memory_used_bytes corral_memory_denied_total \
    corral_memory_physical_bytes corral_steps_total corral_utilisation corral_idle_seconds_total; do
    check "GET /metrics: $family" grep -qE "^$family(\{[^}]*\})? [0-9.e+]+$" "$T/body"
    check "GET /metrics: $family has help and type" grep -q "^# TYPE $family " "$T/body"
done
wrong=$(grep -vE '^(# (HELP|TYPE) [a-z_]+ .*|[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? (-?[0-9.]+(e[+-]?[0-9]+)?|NaN|[+-]Inf))$' "$T/body")
same "GET /metrics: every line is in the text format" "$wrong" ""
if command -v promtool >/dev/null; then
    check "promtool agrees" promtool check metrics <"$T/body"
fi
matches "GET /nothing: 404" "$(get /nothing | head -n 1)" "404"
matches "POST is refused" "$(get /metrics POST | head -n 1)" "HTTP/1.1 (405|501|400)"
get /status | sed '1,/^\r$/d' >"$T/status.json"
check "GET /status is JSON" json_valid "$T/status.json"

# Somebody who connects and says nothing, or garbage, does not stop the run.
exec {silent}<>"/dev/tcp/127.0.0.1/$PORT"
exec {garbage}<>"/dev/tcp/127.0.0.1/$PORT"
head -c 4000 /dev/urandom >&"$garbage" 2>/dev/null
at=$(last_step "$RUN")
check "the run goes on beside bad clients" wait_until 20 reached "$RUN" $((at + 10))
matches "and still answers" "$(get /metrics | head -n 1)" "200"
exec {silent}>&- {garbage}>&-

# ---- the port is taken ----
rl taken launch job.toml --dir "$T/taken" --set "observe.prometheus=\"127.0.0.1:$PORT\""
check "port in use: fails" test "$rc" -ne 0
matches "port in use: says so" "$(err_of taken)" "observe\.prometheus: cannot listen on 127\.0\.0\.1:$PORT"
check "port in use: nothing is left" wait_until 5 none_left "$T/taken" # its children are told to die, and do a moment later
rl status status --dir "$T/taken"
matches "port in use: the run counts as failed, not as crashed" "$(out_of status | head -n 1)" "failed"
rl stop stop "$RUN"
same "stop" "$rc" 0
reap page
finish
