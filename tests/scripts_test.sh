#!/bin/bash
# scripts/: packages are installed only when missing, a refusal names what is missing, and a failed phase shows its log.
# usage: scripts_test.sh SOURCE_ROOT
set -euo pipefail
root=$(readlink -f "$1")
unset CORRAL_NO_INSTALL
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

# A machine that has the package "there", and an apt-get that writes down how it was called.
mkdir "$work/bin"
cat >"$work/bin/dpkg-query" <<'FAKE'
#!/bin/bash
[[ ${*: -1} == there ]] && echo -n installed
FAKE
cat >"$work/bin/apt-get" <<FAKE
#!/bin/bash
echo "\$*" >>"$work/called"
FAKE
printf '#!/bin/bash\nexec "$@"\n' >"$work/bin/sudo"
chmod +x "$work"/bin/*

run() { # SNIPPET     with the scripts sourced; sets $code, $output, $called
    code=0
    : >"$work/called"
    output=$(PATH=$work/bin:$PATH phase_logs=$work/logs bash -euc '
        source "$0/scripts/phase.sh"
        source "$0/scripts/packages.sh"
        '"$1" "$root" 2>&1) || code=$?
    called=$(cat "$work/called")
}

expect() { # WHAT CONDITION...
    local what=$1
    shift
    if ! "$@"; then
        printf '%s\n  exit %s, output: %s\n  apt-get: %s\n' "not so: $what" "$code" "$output" "$called" >&2
        failures=1
    fi
}
# shellcheck disable=SC2317  # called by expect
says() { grep -qF -- "$1" <<<"$output"; }
# shellcheck disable=SC2317
is() { [[ $1 == "$2" ]]; }

run 'packages_ensure there'
expect "a package that is there needs no apt-get" is "$called" ""
expect "and no words" is "$code$output" "0"

run 'packages_ensure there missing-a missing-b'
expect "missing packages are installed" is "$code" 0
expect "only the missing ones" is "$(grep -c 'install --no-install-recommends missing-a missing-b$' <<<"$called")" 1
expect "after the lists were brought up to date" is "$(grep -c ' update$' <<<"$called")" 1

run 'CORRAL_NO_INSTALL=1 packages_ensure there missing-a'
expect "CORRAL_NO_INSTALL forbids" is "$code" 1
expect "nothing was called" is "$called" ""
expect "the refusal names what is missing" says "missing-a"

printf '#!/bin/bash\necho no network >&2\nexit 100\n' >"$work/bin/apt-get"
run 'packages_ensure missing-a'
expect "a failed installation fails" is "$code" 100
expect "and shows why" says "no network"

run 'phase "good phase" true; echo after'
expect "a good phase goes on" says "after"
run 'phase "bad phase" bash -c "echo the reason; exit 3"; echo after'
expect "a bad phase ends the script with its status" is "$code" 3
expect "shows the log" says "the reason"
expect "and where it is" says "$work/logs/01-bad-phase.log"

[[ $failures -eq 0 ]] && echo "scripts: as they should be"
exit $failures
