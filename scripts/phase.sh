# shellcheck shell=bash
# One line per phase on success; the end of its log, and where the log is, on failure. To be sourced; needs $phase_logs, a folder.
#
#   phase WHAT COMMAND [ARG ...]    runs COMMAND quietly; returns its status

phase_count=0
phase_tail=150

phase() { # WHAT COMMAND [ARG ...]
    local what=$1 start=$SECONDS code=0 log
    shift
    phase_count=$((phase_count + 1))
    mkdir -p "${phase_logs:?}"
    log=$phase_logs/$(printf '%02d' "$phase_count")-${what//[^A-Za-z0-9]/-}.log
    printf '%-40s' "$what"
    "$@" >"$log" 2>&1 </dev/null || code=$?
    if [[ $code -eq 0 ]]; then
        printf '%5d s\n' $((SECONDS - start))
        return 0
    fi
    printf 'failed (exit %d) after %d s\n' "$code" $((SECONDS - start))
    {
        echo "---- the last lines of $log"
        tail -n "$phase_tail" "$log"
        echo "---- failed: $what; the whole log is $log"
        # Last, so that it is seen: what a test, a sanitizer or the compiler said of it.
        grep -E '^\[  (ERROR|FAILED) |^\[   LINE   \]|Sanitizer: |runtime error: |: (fatal )?error: ' "$log" | sort -u | head -n 30
    } >&2
    return "$code"
}
