#!/usr/bin/env bash
# Install what is needed, build, run the tests. Ends with ctest's own summary; exit status 0 when all passed.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat <<'TEXT'
Usage: ./test.sh [--quick | --all] [CTEST_ARG ...]

Builds the dev preset and runs its tests, after the unit tests under the address and undefined-behaviour sanitizers.

  --quick   without the sanitizers
  --all     also the slow tests, the thread sanitizer, Clang 14, and a short run of every fuzz target

Other arguments go to the last ctest: ./test.sh --quick -R quota
Builds and logs are in build/. CORRAL_NO_INSTALL=1: never install packages.
TEXT
}

mode=default
while [[ $# -gt 0 ]]; do
    case $1 in
    --quick) mode=quick ;;
    --all) mode=all ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) break ;;
    esac
    shift
done

phase_logs=$PWD/build/logs/test
# shellcheck source=scripts/phase.sh
source scripts/phase.sh
# shellcheck source=scripts/packages.sh
source scripts/packages.sh
jobs=$(nproc)

build() { # NAME [CMAKE_ARG ...]    the preset NAME, in build/NAME
    local name=$1
    shift
    phase "$name: configure" cmake --preset "$name" "$@"
    phase "$name: build" cmake --build "build/$name" -j "$jobs"
}

# The thread sanitizer does not see the atomics inside libzmq, and cannot place its shadow memory where the kernel randomises
# addresses too widely.
tsan() { # COMMAND [ARG ...]
    local fixed=()
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        fixed=(setarch "$(uname -m)" -R)
    fi
    TSAN_OPTIONS=ignore_noninstrumented_modules=1 "${fixed[@]}" "$@"
}

fuzz_briefly() { # FOLDER
    local target seeds
    for target in "$1"/bin/*fuzz*; do
        echo "== $target"
        # Where a target has seeds, they lie in the folder `corpus` beside its source: transport_fuzz_record has record/corpus.
        seeds=$(find . -path ./build -prune -o -path "*/${target##*_fuzz_}/corpus" -print)
        mkdir -p "$1/found/${target##*/}"
        "$target" -runs=50000 -max_total_time=20 -rss_limit_mb=2048 -artifact_prefix="$1/" "$1/found/${target##*/}" $seeds || return 1
    done
}

all() {
    build tsan
    phase "tsan: tests" tsan ctest --test-dir build/tsan -j "$jobs" -LE 'slow|system' --output-on-failure
    phase "clang: configure" cmake --preset dev -B build/clang -DCMAKE_C_COMPILER=clang-14 -DCMAKE_CXX_COMPILER=clang++-14
    phase "clang: build" cmake --build build/clang -j "$jobs"
    phase "clang: tests" ctest --test-dir build/clang -j "$jobs" -LE 'slow|system' --output-on-failure
    build fuzz
    phase "fuzz: a short run of each" fuzz_briefly build/fuzz
}

packages=("${packages_build[@]}" "${packages_test[@]}")
[[ $mode != all ]] || packages+=("${packages_clang[@]}")
packages_ensure "${packages[@]}"
# Without these, tests/rdma is skipped with the reason.
if packages_ensure "${packages_guest[@]}" && [[ ${CORRAL_NO_INSTALL:-0} != 1 ]]; then
    phase "fetch the guest's kernel" bash tests/rdma/kernel.sh fetch || echo "going on without it"
fi

build dev
if [[ $mode != quick ]]; then
    build asan
    phase "asan: unit tests" ctest --test-dir build/asan -j "$jobs" -LE 'slow|system' --output-on-failure
fi
exclude=(-LE slow)
if [[ $mode == all ]]; then
    all
    exclude=()
fi
echo "dev: tests"
exec ctest --test-dir build/dev -j "$jobs" "${exclude[@]}" --output-on-failure "$@"
