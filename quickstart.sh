#!/usr/bin/env bash
# From a fresh clone to a learned policy: install what is missing, build, run the main job.
set -euo pipefail
cd "$(dirname "$0")"

if [[ $# -gt 0 ]]; then
    cat <<'TEXT'
Usage: ./quickstart.sh

Installs the Debian packages that are missing, builds rlctl and the built-in environments in build/release, and runs
configs/cartpole.toml until the policy has learned to balance the pole.

CORRAL_NO_INSTALL=1: never install packages.
TEXT
    [[ $1 == -h || $1 == --help ]] && exit 0
    exit 2
fi

phase_logs=$PWD/build/logs/quickstart
# shellcheck source=scripts/phase.sh
source scripts/phase.sh
# shellcheck source=scripts/packages.sh
source scripts/packages.sh

packages_ensure "${packages_build[@]}"
phase "configure" cmake --preset release
phase "build rlctl and the environments" cmake --build build/release --target rlctl corral_envs corral-env-host -j "$(nproc)"

echo
echo "\$ build/release/bin/rlctl launch configs/cartpole.toml"
build/release/bin/rlctl launch configs/cartpole.toml
cat <<'TEXT'

That was a whole job: a trainer, rollout workers and an evaluator, each within its own share of memory.
Next: README.md, or `build/release/bin/rlctl --help`.
TEXT
