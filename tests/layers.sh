#!/bin/bash
# Checks every #include in the tree against the one-way order of the folders:
#   base <- quota, transport, model <- worker <- rollout, trainer-bridge <- orchestrator <- cli
# usage: layers.sh SOURCE_ROOT       exit 0: all as it should be; 1: something reaches up or across
set -eu
cd "$1"

# Folder: what it may include, itself included. A folder that is not listed is an error.
declare -A allowed=(
    [base]="base"
    [quota]="base quota"
    [transport]="base transport"
    [model]="base model"
    [worker]="base quota transport model worker"
    [rollout]="base quota transport model worker rollout"
    [trainer-bridge]="base quota transport model worker trainer-bridge"
    [orchestrator]="base quota transport model worker rollout trainer-bridge orchestrator"
    [cli]="base quota transport model worker rollout trainer-bridge orchestrator cli"
    [bench]="base quota transport model worker rollout trainer-bridge orchestrator bench"
    [envs]=""    # plug-ins like a user's own: <corral/env.h> and system headers
    [include]="" # public headers: <corral/...> and system headers
)
# Programs and scripts that stand outside the order.
outside=" build cmake configs docs python tests "

bad=0
seen=0
complain() {
    echo "$1: $2" >&2
    bad=1
}

# Tests, and headers that only tests share.
is_test() {
    [[ $1 == *_test.c || $1 == *_fuzz.c || $1 == */fuzz_*.c || $1 == *_test.cpp || $1 == *_for_tests.h || $1 == */test_*.[ch] || $1 == */tests/* ]]
}

check_quoted() { # FILE LINE FOLDER INCLUDED
    local file=$1 line=$2 folder=$3 included=$4 target=${4%%/*}
    case $included in
    ../* | */../* | /*) complain "$file:$line" "\"$included\": include by the path from the root" ;;
    tests/*)
        is_test "$file" ||
            complain "$file:$line" "\"$included\": only tests include tests/" ;;
    */*)
        # A test of a plug-in may use the host that loads it, and its neighbours' headers.
        local may=${allowed[$folder]}
        [[ $folder == envs ]] && is_test "$file" && may="${allowed[rollout]} envs"
        [[ " $may " == *" $target "* ]] ||
            complain "$file:$line" "\"$included\": $folder may include ${may:-no other folder}" ;;
    *)
        [[ -f $(dirname "$file")/$included ]] ||
            complain "$file:$line" "\"$included\": no such file beside this one; include by the path from the root" ;;
    esac
}

check_folder() {
    local folder=$1 file line rest
    while IFS=: read -r file line rest; do
        seen=$((seen + 1))
        if [[ $rest =~ \#[[:space:]]*include[[:space:]]*\"([^\"]+)\" ]]; then
            check_quoted "$file" "$line" "$folder" "${BASH_REMATCH[1]}"
        elif [[ $folder == envs && $rest =~ \<(corral/[^>]+)\> ]] && ! is_test "$file"; then
            [[ ${BASH_REMATCH[1]} == corral/env.h ]] ||
                complain "$file:$line" "<${BASH_REMATCH[1]}>: an environment needs <corral/env.h> and nothing else of ours"
        fi
    done < <(grep -rnE --include='*.[ch]' --include='*.cpp' --include='*.cc' --include='*.hpp' --include='*.cu' --include='*.inc' \
        '^[[:space:]]*#[[:space:]]*include' "$folder" || true)
}

for path in */; do
    folder=${path%/}
    [[ $outside == *" $folder "* || $folder == build* ]] && continue
    if [[ -z ${allowed[$folder]+set} ]]; then
        if [[ -n $(find "$folder" -name '*.[ch]' -print -quit) ]]; then
            complain "$folder" "a folder with C sources that has no place in the order (tests/layers.sh)"
        fi
        continue
    fi
    check_folder "$folder"
done
[[ $seen -gt 0 ]] || complain "$PWD" "no #include found at all; is this the source root?"
[[ $bad -eq 0 ]] && echo "layers: $seen includes, all downwards"
exit $bad
